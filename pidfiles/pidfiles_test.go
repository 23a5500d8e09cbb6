//go:build unix

package pidfiles_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/pidfiles"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"server": server})
}

// server is the program: a cluster of two workers that write back what they
// read. The file "mode" in its directory says what goes wrong, and where.
func server() {
	syscall.Umask(0o077)
	mode, _ := os.ReadFile("mode")
	heir := new(cluster.Master).Predecessor() != 0
	m := &cluster.Master{
		Workers: 2,
		Inline:  string(mode) == "inline",
		NewServer: func() (cluster.Server, error) {
			if mode, _ := os.ReadFile("mode"); string(mode) == "worker fails" {
				return nil, errors.New("no server today")
			}
			return &cluster.TCPServer{Handler: func(ctx context.Context, c net.Conn) { io.Copy(c, c) }}, nil
		},
	}
	dir := "run/pids"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	m.Use(pidfiles.New(dir), clustertest.Events)
	if heir {
		switch string(mode) {
		case "exit":
			os.Exit(3)
		case "wider":
			m.Workers = 3
		case "wait":
			m.Use(func(m *cluster.Master) error {
				m.On(cluster.Hooks{Listening: func() {
					clustertest.Tell("waiting")
					clustertest.Eventually(clustertest.Patience, func() bool {
						_, err := os.Stat("mode")
						return err != nil
					})
				}})
				return nil
			})
		case "kill", "wide kill":
			if string(mode) == "wide kill" {
				m.Workers = 4
			}
			m.Use(func(m *cluster.Master) error {
				m.On(cluster.Hooks{Listening: func() {
					clustertest.Tell("wrote %v", read(string(pidfiles.InUse())))
					os.WriteFile(string(pidfiles.InUse())+"/.pidfile-123", nil, 0o600)
					syscall.Kill(os.Getpid(), syscall.SIGKILL)
					select {}
				}})
				return nil
			})
		}
	}
	m.On(cluster.Hooks{
		Start: func() error {
			if string(mode) == "start fails" {
				return errors.New("no start today")
			}
			return nil
		},
		WorkerConnected: func(w *cluster.Worker) { clustertest.Tell("at ready %d %v", w.Pid, pidOf("master")) },
		Closing:         func() { clustertest.Tell("at closing %d %v", os.Getpid(), pidOf("master")) },
		Serving: func() {
			pids, err := pidfiles.WorkerPids()
			clustertest.Tell("at serving %d %v %v %v", os.Getpid(), pidOf("master"), pids, err)
		},
	})
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if !cluster.IsWorker() && !heir {
		clustertest.Tell("addr %v", l.Addr())
	}
	err = m.ListenAndServe(l)
	if errors.Is(err, pidfiles.ErrRunning) {
		clustertest.Tell("refused %d", os.Getpid())
	}
	if err != nil {
		log.Fatal(err)
	}
}

func pidOf(name string) int {
	pid, err := pidfiles.PidOf(name)
	if err != nil {
		log.Print(err)
	}
	return pid
}

// A site is a directory with a cluster that writes to run/pids in it.
type site struct {
	*clustertest.Program
	pids string
}

func command(t *testing.T, args ...string) *site {
	t.Helper()
	p := clustertest.Command(t, "server", args...)
	return &site{p, filepath.Join(p.Dir, "run", "pids")}
}

// start starts a cluster and returns it with its processes, by name.
func start(t *testing.T) (*site, map[string]int) {
	t.Helper()
	s := command(t)
	s.Start()
	return s, s.up()
}

// up waits until the cluster is up, and returns its processes.
func (s *site) up() map[string]int {
	s.Wait("listening")
	return map[string]int{
		"master":   s.WaitPid("start"),
		"worker.0": s.WaitPid("ready", "0"),
		"worker.1": s.WaitPid("ready", "1"),
	}
}

func (s *site) mode(t *testing.T, mode string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, "mode"), []byte(mode), 0o644); err != nil {
		t.Fatal(err)
	}
}

// end checks that the directory is empty, and nothing else is left.
func (s *site) end(t *testing.T, status int) {
	t.Helper()
	s.End(status, "run", "mode")
	s.want(t, nil)
}

// quit shuts the cluster down.
func (s *site) quit(t *testing.T) {
	t.Helper()
	s.Signal(syscall.SIGQUIT)
	s.end(t, 0)
}

// want checks all that is in the directory.
func (s *site) want(t *testing.T, want map[string]int) {
	t.Helper()
	files := make(map[string]string)
	for name, pid := range want {
		files[name+".pid"] = fmt.Sprintf("%d\n", pid)
	}
	if got := read(s.pids); !maps.Equal(got, files) {
		t.Errorf("files are %q, want %q", got, files)
	}
}

// follows waits until that is all there is in the directory.
func (s *site) follows(t *testing.T, want map[string]int) {
	t.Helper()
	clustertest.Eventually(clustertest.Patience, func() bool {
		got := read(s.pids)
		for name, pid := range want {
			if got[name+".pid"] != fmt.Sprintf("%d\n", pid) {
				return false
			}
		}
		return len(got) == len(want)
	})
	s.want(t, want)
}

// read returns the contents of a directory's files.
func read(dir string) map[string]string {
	files := make(map[string]string)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			data = []byte(err.Error())
		}
		files[e.Name()] = string(data)
	}
	return files
}

func TestWorkers(t *testing.T) {
	t.Parallel()
	s, pids := start(t)
	s.want(t, pids)
	for _, name := range []string{"master", "worker.0"} {
		info, err := os.Stat(filepath.Join(s.pids, name+".pid"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o644 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}

	s.Kill(pids["worker.1"], syscall.SIGKILL)
	s.Wait("killed", "1")
	pids["worker.1"] = s.WaitPid("ready", "1")
	s.want(t, pids)
	s.Wait("at", "serving", strconv.Itoa(pids["worker.1"]), strconv.Itoa(pids["master"]))

	s.Signal(syscall.SIGTTIN)
	pids["worker.2"] = s.WaitPid("ready", "2")
	s.want(t, pids)
	got, err := pidfiles.Dir(s.pids).WorkerPids()
	if want := []int{pids["worker.0"], pids["worker.1"], pids["worker.2"]}; err != nil || !slices.Equal(got, want) {
		t.Errorf("WorkerPids: %v, %v, want %v", got, err, want)
	}

	s.Signal(syscall.SIGTTOU)
	s.Wait("killed", "2")
	delete(pids, "worker.2")
	s.want(t, pids)
	s.quit(t)
}

func TestRollingRestart(t *testing.T) {
	t.Parallel()
	s, pids := start(t)
	conn := dial(t, s) // holds one of the two old ones up

	s.Signal(syscall.SIGHUP)
	old := maps.Clone(pids)
	for _, id := range []string{"0", "1"} {
		pids["worker."+id] = s.WaitPid("ready", id)
	}
	s.want(t, pids)
	conn.Close()
	for _, id := range []string{"0", "1"} {
		s.Wait("killed", id, strconv.Itoa(old["worker."+id]))
	}
	s.want(t, pids)

	for mode, sig := range map[string]syscall.Signal{"worker fails": syscall.SIGHUP, "exit": syscall.SIGUSR2} {
		s.mode(t, mode)
		s.Signal(sig)
		if sig == syscall.SIGHUP {
			s.Wait("killed")
		} else {
			s.Wait("failed")
		}
		s.want(t, pids)
	}
	s.quit(t)
}

// dial returns a connection that a worker has.
func dial(t *testing.T, s *site) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Wait("addr")[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(clustertest.Patience))
	b := []byte("x")
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s, old := start(t)
	conn := dial(t, s)
	s.mode(t, "wider")
	s.Signal(syscall.SIGUSR2)
	pids := s.up()
	pids["worker.2"] = s.WaitPid("ready", "2")

	// The workers of the new master were ready while the files were the old
	// one's, and they were the new one's before the old one was told.
	for name, pid := range pids {
		if name != "master" {
			s.Wait("at", "ready", strconv.Itoa(pid), strconv.Itoa(old["master"]))
		}
	}
	s.Wait("at", "closing", strconv.Itoa(old["master"]), strconv.Itoa(pids["master"]))
	s.want(t, pids)

	// The old one's last worker drains, and the new one is restarted.
	s.mode(t, "")
	s.Kill(pids["master"], syscall.SIGUSR2)
	middle := pids
	pids = s.up()
	conn.Close()
	for _, gone := range []map[string]int{old, middle} {
		s.Wait("close", strconv.Itoa(gone["master"]))
	}
	s.Wait("restarted", strconv.Itoa(pids["master"]))
	s.want(t, pids) // without worker.2

	// The stand-in has no part in it: see TestMasterKilled.
	s.quit(t)
}

// A worker of the old master dies, and its successor becomes ready, when the
// files are the new one's already.
func TestLateWorker(t *testing.T) {
	t.Parallel()
	s, old := start(t)
	s.mode(t, "wait")
	s.Signal(syscall.SIGUSR2)
	pids := s.up()
	s.Wait("waiting")
	s.want(t, pids)
	s.Kill(old["worker.0"], syscall.SIGKILL)
	s.WaitPid("ready", "0")
	s.want(t, pids)
	if err := os.Remove(filepath.Join(s.Dir, "mode")); err != nil {
		t.Fatal(err)
	}
	s.Wait("close", strconv.Itoa(old["master"]))
	s.want(t, pids)
	s.quit(t)
}

// What the old master may have removed while it was there is written again
// when it is gone.
func TestLostInRestart(t *testing.T) {
	t.Parallel()
	s, old := start(t)
	conn := dial(t, s)
	s.Signal(syscall.SIGUSR2)
	pids := s.up()
	s.Wait("closing", strconv.Itoa(old["master"]))
	if err := os.Remove(filepath.Join(s.pids, "worker.0.pid")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	s.Wait("restarted")
	s.want(t, pids)
	s.quit(t)
}

func TestFailedRestart(t *testing.T) {
	t.Parallel()
	s, pids := start(t)
	for _, mode := range []string{"exit", "worker fails", "start fails", "kill", "wide kill"} {
		s.mode(t, mode)
		s.Signal(syscall.SIGUSR2)
		if mode == "kill" || mode == "wide kill" {
			if wrote := strings.Join(s.Wait("wrote"), " "); strings.Contains(wrote, strconv.Itoa(pids["master"])) {
				t.Errorf("%s: the new master has not written its files: %s", mode, wrote)
			}
		}
		s.Wait("failed")
		s.want(t, pids)
	}
	s.mode(t, "")
	for range 5 {
		s.Wait("restarting", strconv.Itoa(pids["master"]))
	}

	// Nor has it become another's: what happens later is still written.
	s.Kill(pids["worker.0"], syscall.SIGKILL)
	s.Wait("killed", "0", strconv.Itoa(pids["worker.0"]))
	if clustertest.Eventually(clustertest.Patience, func() bool {
		pid, err := pidfiles.Dir(s.pids).PidOf("worker.0")
		pids["worker.0"] = pid
		return err == nil
	}) {
		s.want(t, pids)
	} else {
		t.Error("worker.0 has no pidfile")
	}
	s.Signal(syscall.SIGUSR2)
	s.Wait("restarted")
	got := read(s.pids)
	if len(got) != 3 || got["master.pid"] == fmt.Sprintf("%d\n", pids["master"]) {
		t.Errorf("after a good restart: %q", got)
	}
	s.quit(t)
}

func TestStale(t *testing.T) {
	t.Parallel()
	dead := 1 << 22 // more than the largest process id
	for name, content := range map[string]string{
		"dead":      fmt.Sprintf("%d\n", dead),
		"unrelated": fmt.Sprintf("%d\n", os.Getpid()),
		"garbage":   "\x00\xffgarbage\n",
		"empty":     "",
		"zero":      "0\n",
		"negative":  "-1\n",
		"huge":      "99999999999999999999\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := command(t)
			if err := os.MkdirAll(s.pids, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"master.pid", "worker.0.pid", "worker.7.pid", ".pidfile-7", "worker.x.pid", "other.pid"} {
				if err := os.WriteFile(filepath.Join(s.pids, file), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			s.Start()
			pids := s.up()
			for _, file := range []string{"worker.x.pid", "other.pid"} { // not ours
				if err := os.Remove(filepath.Join(s.pids, file)); err != nil {
					t.Error(err)
				}
			}
			s.want(t, pids)
			s.quit(t)
		})
	}
	t.Run("pipe", func(t *testing.T) {
		t.Parallel()
		s := command(t)
		if err := errors.Join(os.MkdirAll(s.pids, 0o755), unix.Mkfifo(filepath.Join(s.pids, "master.pid"), 0o644)); err != nil {
			t.Fatal(err)
		}
		s.Start()
		s.want(t, s.up())
		s.quit(t)
	})
}

func TestRunning(t *testing.T) {
	t.Parallel()
	s, pids := start(t)
	refused := func(why string) {
		t.Helper()
		second := command(t)
		second.Cmd.Dir = s.Dir
		second.Start()
		second.Wait("refused")
		second.WaitLog(why)
		second.End(1)
	}
	text := fmt.Sprintf("pidfiles: %s/master.pid: process %d is running; stop it first or use another directory", s.pids, pids["master"])
	refused(text)
	s.want(t, pids)

	// The one after a restart is as good.
	s.Signal(syscall.SIGUSR2)
	pids = s.up()
	s.Wait("restarted")
	refused(fmt.Sprintf("process %d is running", pids["master"]))
	s.want(t, pids)

	// And so is one whose file is lost. It gets it back from the next.
	if err := os.Remove(filepath.Join(s.pids, "master.pid")); err != nil {
		t.Fatal(err)
	}
	refused("another cluster is running")
	s.Signal(syscall.SIGUSR2)
	pids = s.up()
	s.Wait("restarted")
	s.want(t, pids)
	s.quit(t)

	// It has ended. The stand-in is gone too.
	again := command(t)
	again.Cmd.Dir = s.Dir
	again.Start()
	s.want(t, again.up())
	again.Signal(syscall.SIGQUIT)
	again.End(0)
	s.want(t, nil)
}

// The master is killed outright. One of its workers is still busy, and the
// stand-in of a former master waits for it.
func TestMasterKilled(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	s.Signal(syscall.SIGUSR2)
	old := s.up()
	s.Wait("restarted")
	conn := dial(t, s)
	s.Kill(old["master"], syscall.SIGKILL)
	if !clustertest.Eventually(clustertest.Patience, func() bool { return !slices.Contains(s.Processes(), old["master"]) }) {
		t.Fatal("the master is still there")
	}
	s.want(t, old)

	again := command(t)
	again.Cmd.Dir = s.Dir
	again.Start()
	pids := again.up()
	s.want(t, pids)
	if !slices.Contains(s.Processes(), s.Pid()) {
		t.Error("the stand-in is gone")
	}
	conn.Close()
	if !clustertest.Eventually(clustertest.Patience, func() bool { return len(s.Processes()) == 0 }) {
		t.Error("the old cluster is still there")
	}
	s.want(t, pids)
	again.Signal(syscall.SIGQUIT)
	again.End(0)
	s.End(1, "run", fmt.Sprintf("cluster.%d.server.sock", old["master"]))
	s.want(t, nil)
}

func TestAtOnce(t *testing.T) {
	t.Parallel()
	home := command(t)
	for range 4 {
		var sites []*site
		for range 3 {
			s := command(t)
			s.Cmd.Dir = home.Dir
			sites = append(sites, s)
		}
		for _, s := range sites {
			s.Start()
		}
		running := make(chan *site, len(sites))
		var wg sync.WaitGroup
		for _, s := range sites {
			wg.Go(func() {
				if clustertest.Eventually(clustertest.Patience, func() bool {
					pid, err := pidfiles.Dir(home.pids).PidOf("master")
					return err == nil && pid == s.Pid() || !slices.Contains(s.Processes(), s.Pid())
				}) && slices.Contains(s.Processes(), s.Pid()) {
					running <- s
				}
			})
		}
		wg.Wait()
		close(running)
		if len(running) != 1 {
			t.Fatalf("%d of %d clusters run", len(running), len(sites))
		}
		winner := <-running
		home.want(t, winner.up())
		for _, s := range sites {
			if s != winner {
				s.Wait("refused")
				s.WaitLog(fmt.Sprintf("process %d is running", winner.Pid()))
				s.End(1)
			}
		}
		winner.Signal(syscall.SIGQUIT)
		winner.End(0)
		home.want(t, nil)
	}
}

// The directory is locked for a moment yet, as by a cluster that is ending.
func TestBusy(t *testing.T) {
	t.Parallel()
	s := command(t)
	if err := os.MkdirAll(s.pids, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(s.pids)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.Start()
	time.Sleep(300 * time.Millisecond)
	dir.Close()
	s.want(t, s.up())
	s.quit(t)
}

func TestCantWrite(t *testing.T) {
	t.Parallel()
	t.Run("read-only", func(t *testing.T) {
		t.Parallel()
		s := command(t)
		if os.Geteuid() == 0 {
			s = command(t, "/sys/kernel") // nobody writes there
		} else if err := errors.Join(os.Mkdir(filepath.Dir(s.pids), 0o755), os.Mkdir(s.pids, 0o555)); err != nil {
			t.Fatal(err)
		}
		s.Start()
		s.WaitLog("pidfiles: open ")
		s.End(1, "run")
	})
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		s := command(t)
		if err := os.WriteFile(filepath.Join(s.Dir, "run"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		s.Start()
		s.WaitLog("pidfiles: mkdir ")
		s.End(1, "run")
	})
	t.Run("later", func(t *testing.T) {
		t.Parallel()
		s, pids := start(t)
		away := s.pids + ".away"
		if err := errors.Join(os.Rename(s.pids, away), os.WriteFile(s.pids, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		s.Signal(syscall.SIGTTIN)
		pids["worker.2"] = s.WaitPid("ready", "2")
		s.WaitLog("pidfiles: open " + s.pids + "/.pidfile-")
		dial(t, s).Close() // it runs on

		// Once it can be written again, what is missing follows.
		if err := errors.Join(os.Remove(s.pids), os.Rename(away, s.pids)); err != nil {
			t.Fatal(err)
		}
		s.follows(t, pids)
		s.quit(t)
	})
}

func TestFailedStart(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"worker fails", "start fails"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := command(t)
			s.mode(t, mode)
			s.Start()
			s.end(t, 1)
		})
	}
}

func TestInline(t *testing.T) {
	t.Parallel()
	s := command(t)
	s.mode(t, "inline")
	s.Start()
	s.Wait("listening")
	s.want(t, map[string]int{"master": s.Pid()})
	s.Signal(syscall.SIGTERM)
	s.end(t, 0)
}

func TestDir(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	for name, content := range map[string]string{
		"worker.10.pid": "110\n", "worker.2.pid": " 102 ", "worker.0.pid": "100", "master.pid": "99\n",
		"worker.02.pid": "1", "worker.-1.pid": "1", "worker.pid": "1", "worker.x.pid": "1", "worker.3.pid~": "1", "master.log": "1", ".pidfile-1": "1",
	} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := pidfiles.Dir(tmp)
	names, err := d.Names()
	if want := []string{"master", "worker.0", "worker.2", "worker.10"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("Names: %q, %v, want %q", names, err, want)
	}
	pids, err := d.WorkerPids()
	if want := []int{100, 102, 110}; err != nil || !slices.Equal(pids, want) {
		t.Errorf("WorkerPids: %v, %v, want %v", pids, err, want)
	}
	if pid, err := d.PidOf("master"); err != nil || pid != 99 {
		t.Errorf("PidOf: %d, %v", pid, err)
	}
	if _, err := d.PidOf("worker.1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("PidOf without a file: %v", err)
	}
	for _, name := range []string{"", "worker", "worker.", "worker.02", "../master", "worker.0/../master"} {
		if _, err := d.PidOf(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("PidOf(%q): %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "worker.5.pid"), []byte("five"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WorkerPids(); err == nil || !strings.Contains(err.Error(), `worker.5.pid: "five"`) {
		t.Errorf("WorkerPids with garbage: %v", err)
	}
	if _, err := pidfiles.Dir(filepath.Join(tmp, "none")).Names(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Names without a directory: %v", err)
	}
	if d := pidfiles.InUse(); d != "" {
		t.Errorf("InUse: %q in a process without the plugin", d)
	}
	if _, err := pidfiles.PidOf("master"); err == nil {
		t.Error("PidOf in a process without the plugin")
	}
	if _, err := pidfiles.WorkerPids(); err == nil {
		t.Error("WorkerPids in a process without the plugin")
	}
}
