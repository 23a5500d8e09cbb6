//go:build linux && !cluster_nofork

package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"golang.org/x/sys/unix"
)

// openTerminal returns both sides of a new terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { master.Close() })
	rc, _ := master.SyscallConn()
	n := 0
	rc.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// When its terminal goes, the cluster closes. SIGHUP alone, in a terminal,
// restarts the workers.
func TestHangup(t *testing.T) {
	t.Parallel()
	master, slave := openTerminal(t)
	p := command(t, "http", "workers=1")
	p.cmd.Stdin = slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.start().wait("listening")
	slave.Close()
	before := p.workers()[0]
	p.signal(syscall.SIGHUP)
	p.wait("killed")
	if after := waitWorkers(p, 1)[0]; after == before {
		t.Error("SIGHUP didn't restart the worker")
	}
	h := p.hold()
	master.Close()
	p.wait("closing")
	h.finish()
	p.end(0)
}

// Ctrl-C as a terminal does it.
func TestTerminalCtrlC(t *testing.T) {
	t.Parallel()
	master, slave := openTerminal(t)
	p := command(t, "ctrlc", "workers=2")
	p.cmd.Stdin = slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.start().wait("listening")
	slave.Close()
	h := p.hold()
	if _, err := io.WriteString(master, "\x03"); err != nil {
		t.Fatal(err)
	}
	p.wait("waiting", h.ID)
	h.finish()
	p.end(0)
	master.Close()
}

// When the master dies, workers finish what is in flight and leave.
func TestMasterDeath(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=3")
	h := p.hold()
	idle := p.workers()
	delete(idle, h.ID)
	p.signal(syscall.SIGKILL)
	for id := range idle {
		p.wait("returned", id)
	}
	if got := h.finish(); got != strconv.Itoa(h.Pid) {
		t.Errorf("answer %q, want %d", got, h.Pid)
	}
	p.wait("returned", h.ID)
	p.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", p.pid()))
}

// A worker that doesn't finish leaves when its Timeout is over.
func TestMasterDeathTimeout(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1", "timeout=300ms")
	c := p.dial()
	fmt.Fprint(c, "GET /stuck HTTP/1.1\r\nHost: cluster\r\n\r\n")
	p.wait("stuck")
	p.signal(syscall.SIGKILL)
	p.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", p.pid()))
}

// An abstract cluster's workers are told by Done.
func TestMasterDeathAbstract(t *testing.T) {
	t.Parallel()
	p := serve(t, "abstract", "workers=2")
	p.signal(syscall.SIGKILL)
	p.waitN(2, "done")
	p.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", p.pid()))
}

// A master that dies while its workers start leaves none.
func TestMasterDeathAtStart(t *testing.T) {
	t.Parallel()
	for range 5 {
		p := start(t, "http", "workers=4")
		p.wait("worker")
		p.signal(syscall.SIGKILL)
		p.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", p.pid()))
	}
}

var _ = helper("stuck", func() {
	if cluster.IsWorker() {
		report("hanging", nil, "")
		time.Sleep(time.Hour) // before any call that waits for the master
	}
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// A worker that hangs before it asks for its sockets is no orphan either.
func TestMasterDeathBeforeListen(t *testing.T) {
	t.Parallel()
	p := start(t, "stuck", "workers=2")
	p.waitN(2, "hanging")
	p.signal(syscall.SIGKILL)
	p.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", p.pid()))
}

// As PID 1, where the workers' parent is 1 from the beginning.
func TestPID1(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	for _, end := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(end.String(), func(t *testing.T) {
			t.Parallel()
			p := command(t, "http", "workers=2")
			p.cmd.Args = append([]string{"unshare", "-pf", "--mount-proc", p.cmd.Path}, p.cmd.Args[1:]...)
			p.cmd.Path = program(t, "unshare")
			p.start().wait("listening")
			if m := p.masterInfo(); m.Pid != 1 {
				t.Fatalf("the master is process %d", m.Pid)
			}
			p.get("/")
			old := p.workers()[0]
			p.mustCall("kill -9")
			p.waitN(2, "killed")
			if w := waitWorkers(p, 2); w[0] == old {
				t.Error("not replaced")
			}
			h := p.hold()
			if i := p.info(); i.Ppid != 1 {
				t.Errorf("the worker's parent is %d", i.Ppid)
			}
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.pid()))
			master, _ := strconv.Atoi(strings.TrimSpace(string(children)))
			if err != nil || master == 0 {
				t.Fatalf("the master's pid outside: %q, %v", children, err)
			}
			kill(t, master, end)
			switch end {
			case syscall.SIGQUIT:
				p.wait("waiting")
				h.finish()
				p.end(0)
			case syscall.SIGTERM:
				p.end(0)
			case syscall.SIGKILL: // the kernel kills all
				p.exit() // with unshare's own status
				p.empty("cluster.1.server.sock")
			}
		})
	}
}

var _ = helper("subreaper", func() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), helperEnv+"=http")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fatal(err)
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch err {
		case nil:
			reportEvent(event{Name: "reaped", ID: -1, Pid: pid, Text: strconv.Itoa(int(ws))})
		case syscall.ECHILD:
			return
		}
	}
})

// Under a subreaper, where an orphan's parent is not 1.
func TestSubreaper(t *testing.T) {
	t.Parallel()
	p := serve(t, "subreaper", "workers=2")
	helpersUsed.Store("http", true)
	h := p.hold()
	idle := p.workers()[1-h.ID]
	master := p.masterInfo().Pid
	kill(t, master, syscall.SIGKILL)
	p.waitFor("the idle worker's end", func(e event) bool { return e.Name == "reaped" && e.Pid == idle })
	h.finish()
	p.waitFor("the busy worker's end", func(e event) bool { return e.Name == "reaped" && e.Pid == h.Pid && e.Text == "0" })
	p.end(0, fmt.Sprintf("cluster.%d.server.sock", master))
}

// A stray process tells what it takes itself for, and how it finds the
// descriptors that it was given.
var _ = helper("stray", func() {
	m := new(cluster.Master)
	text := fmt.Sprintf("worker %v, predecessor %d, variables", cluster.IsWorker() || m.IsWorker(), m.Predecessor())
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "CLUSTER_") && !strings.HasPrefix(kv, "CLUSTER_TEST_") {
			text += " " + kv
		}
	}
	for fd := 3; fd < 6; fd++ {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		status, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		text += fmt.Sprintf("\n%d: %v, inode %d, flags %#x %d", fd, err, st.Ino, status, flags)
	}
	fmt.Println(text)
	os.Stdout.Close()
	io.Copy(io.Discard, os.Stdin) // until the test has seen that it lives
})

// strays returns files that are not a connection to a master.
func strays(t *testing.T) map[string]*os.File {
	t.Helper()
	list := make(map[string]*os.File)
	add := func(name string, fd int, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		unix.CloseOnExec(fd)
		list[name] = os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { list[name].Close() })
	}
	dir := tempDir(t)
	open := func(name, path string, flags int) {
		t.Helper()
		fd, err := unix.Open(path, flags, 0o600)
		add(name, fd, err)
	}
	open("file", filepath.Join(dir, "file"), unix.O_RDWR|unix.O_CREAT)
	open("directory", dir, unix.O_RDONLY)
	open("device", os.DevNull, unix.O_RDWR)
	var pipe [2]int
	err := unix.Pipe(pipe[:])
	add("pipe to read", pipe[0], err)
	add("pipe to write", pipe[1], err)
	for name, typ := range map[string]int{"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET} {
		pair, err := unix.Socketpair(unix.AF_UNIX, typ, 0)
		add("unix "+name+" pair", pair[0], err)
		add("unix "+name+" pair, other end", pair[1], err)
		fd, err := unix.Socket(unix.AF_UNIX, typ, 0)
		add("unix "+name, fd, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	add("unix stream pair without the other end", pair[0], err)
	unix.Close(pair[1])
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(dir, "sock")} {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]any{" listener": l, " connection": c} {
			f, err := c.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			list[network+name] = f
			t.Cleanup(func() { f.Close(); c.(io.Closer).Close() })
		}
	}
	fd, err := unix.EpollCreate1(0)
	add("epoll", fd, err)
	fd, err = unix.Eventfd(0, 0)
	add("eventfd", fd, err)
	fd, err = unix.MemfdCreate("memory", 0)
	add("memory", fd, err)
	return list
}

// Whatever is in the environment, and whatever descriptors there are, a
// process that no master has started is neither worker nor new master, and
// is no worse off.
func TestEnvironmentByHand(t *testing.T) {
	t.Parallel()
	stray := func(t *testing.T, files []*os.File, env ...string) string {
		t.Helper()
		p := command(t, "stray")
		p.checked = true
		p.cmd.Env = append(p.cmd.Env, env...)
		p.cmd.ExtraFiles = files
		in, err := p.cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(out)
		if err != nil {
			t.Error(err)
		}
		in.Close()
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%q: %v", env, err)
		}
		return string(text)
	}
	self := strconv.Itoa(os.Getpid())
	forms := []string{"3,4,1", "3,4,", "3,4,heir,5", "3,4,heir,"}
	pids := []string{"", "0", "1", "-1", "x", self + "0"}
	n := 0
	for name, f := range strays(t) {
		files := []*os.File{f, f, f}
		want := stray(t, files)
		if !strings.HasPrefix(want, "worker false, predecessor 0, variables\n") {
			t.Fatal(want)
		}
		for _, form := range forms {
			n++
			env := []string{"CLUSTER_WORKER=1", "CLUSTER_FDS=" + form}
			if pid := pids[n%len(pids)]; pid != "" { // each form meets all of them
				env = append(env, "CLUSTER_MASTER_PID="+pid)
			}
			if got := stray(t, files, env...); got != want {
				t.Errorf("%s, %q: %s\nwithout: %s", name, env, got, want)
			}
		}
	}
	want := stray(t, nil)
	for _, env := range [][]string{
		{"CLUSTER_WORKER=1"},
		{"CLUSTER_WORKER="},
		{"CLUSTER_MASTER_PID=1"},
		{"CLUSTER_MASTER_PID=" + self, "CLUSTER_WORKER=1", "CLUSTER_FDS=3,4,1"}, // nothing is open
		{"CLUSTER_MASTER_PID=" + self, "CLUSTER_FDS=3,4,heir,5"},
		{"CLUSTER_MASTER_PID=" + self, "CLUSTER_WORKER=1", "CLUSTER_FDS=0,1,1"},
		{"CLUSTER_MASTER_PID=" + self, "CLUSTER_FDS=0,1,heir,2"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS="},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=,,"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=,,,"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=-1,-2,1"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=99999999999999999999,4,1"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=2147483647,2147483648,1"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=4294967299,4,1"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=/tmp/fake.sock"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=/tmp/fake.sock,/tmp/fake.sock,1", "CLUSTER_SOCKET=/tmp/fake.sock"},
		{"CLUSTER_WORKER=1", "CLUSTER_FDS=" + strings.Repeat("3,", 10000)},
		{"CLUSTER_WORKER=99999999999999999999", "CLUSTER_FDS=3,4,1"},
		{"CLUSTER_WORKER=-1", "CLUSTER_FDS=3,4,1"},
		{"CLUSTER_WORKER=\xff\n", "CLUSTER_FDS=\xff\n", "CLUSTER_MASTER_PID=\xff\n"},
	} {
		got := stray(t, nil, env...)
		for _, kv := range env {
			if strings.HasPrefix(kv, "CLUSTER_SOCKET=") { // none of ours
				got = strings.Replace(got, " "+kv, "", 1)
			}
		}
		if got != want {
			t.Errorf("%q: %s\nwithout: %s", env, got, want)
		}
	}

	// And it can be a cluster of its own.
	p := command(t, "http", "workers=1")
	p.cmd.ExtraFiles = []*os.File{os.Stdin, os.Stdin, os.Stdin}
	p.cmd.Env = append(p.cmd.Env, "CLUSTER_WORKER=1", "CLUSTER_FDS=3,4,1", "CLUSTER_MASTER_PID=1")
	p.start().wait("listening")
	if p.masterInfo().Worker || len(p.history("connected")) != 1 {
		t.Error("the environment made a worker")
	}
	p.quit()
}

var _ = helper("grandchild", func() {
	if name := mode(); name == "child" { // of a worker
		fmt.Println(infoText())
		return
	}
	m := newMaster()
	m.Server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := exec.Command("/proc/self/exe", "mode=child").Output()
		if err != nil {
			http.Error(w, err.Error(), 500)
		}
		w.Write(out)
	})}
	finish(m.ListenAndServe(listen(0)))
})

// A worker's child is no worker, and inherits nothing but the standard
// streams.
func TestGrandchild(t *testing.T) {
	t.Parallel()
	p := command(t, "grandchild", "workers=1")
	p.cmd.Env = slices.DeleteFunc(p.cmd.Env, func(kv string) bool { return strings.HasPrefix(kv, "GOMAXPROCS=") })
	p.start().wait("listening")
	i := parseInfo(t, p.get("/"))
	if i.Worker {
		t.Error("a worker's child is a worker")
	}
	if slices.ContainsFunc(i.Env, func(kv string) bool {
		return strings.HasPrefix(kv, "CLUSTER_FDS=") || strings.HasPrefix(kv, "CLUSTER_WORKER=") || strings.HasPrefix(kv, "GOMAXPROCS=")
	}) {
		t.Errorf("its environment has %q", i.Env)
	}
	if files := passed(i.Files); len(files) > 0 {
		t.Errorf("it has the files %q", files)
	}
	p.quit()
}

// passed returns the files that are neither standard streams nor of the Go
// runtime.
func passed(files []string) []string {
	return slices.DeleteFunc(files, func(f string) bool {
		n, target, _ := strings.Cut(f, " ")
		return n == "0" || n == "1" || n == "2" || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/sys/fs/cgroup/")
	})
}

// What the master has inherited, and what its program has opened, doesn't
// get to the workers.
func TestNoExtraFiles(t *testing.T) {
	t.Parallel()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := command(t, "http", "workers=2")
	p.cmd.ExtraFiles = []*os.File{f, f, f}
	p.start().wait("listening")
	p.mustCall("spawn 1") // by a master that has connections to others
	waitWorkers(p, 3)
	holders := make(map[string]int)
	for _, pid := range p.workers() {
		for _, f := range passed(descriptors(pid)) {
			_, target, _ := strings.Cut(f, " ")
			holders[target]++
		}
	}
	own := make(map[string]int)
	for target, n := range holders {
		kind, _, _ := strings.Cut(target, ":")
		if kind != "socket" && kind != "pipe" || n != 1 && n != 3 {
			t.Errorf("%d workers have %s", n, target)
		}
		if n == 1 {
			own[kind]++
		}
	}
	// Each has its connection to the master and its pipe for a panic.
	if own["socket"] != 3 || own["pipe"] != 3 {
		t.Errorf("the workers' files: %v", holders)
	}
	p.quit()
}

func descriptors(pid int) (list []string) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(dir, e.Name()))
		list = append(list, e.Name()+" "+target)
	}
	return list
}

// O_NONBLOCK, which all processes share, stays: Accept and Close return at
// once in a worker while others start and end.
func TestNonblock(t *testing.T) {
	t.Parallel()
	p := serve(t, "tcp", "workers=2")
	for range 10 {
		p.mustCall("spawn 2")
		p.mustCall("remove 2 -9")
		for _, pid := range p.workers() {
			for _, f := range descriptors(pid) {
				n, target, _ := strings.Cut(f, " ")
				if !strings.HasPrefix(target, "socket:") {
					continue
				}
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, n))
				if err != nil {
					continue // it has gone
				}
				_, flags, _ := bytes.Cut(b, []byte("flags:\t"))
				flags, _, _ = bytes.Cut(flags, []byte("\n"))
				if v, _ := strconv.ParseInt(string(flags), 8, 64); v&syscall.O_NONBLOCK == 0 {
					t.Fatalf("descriptor %s of %d is blocking", f, pid)
				}
			}
		}
	}
	waitWorkers(p, 2)
	p.quit()
}

// No zombie is left of many deaths, and no descriptor or goroutine.
func TestManyDeaths(t *testing.T) {
	t.Parallel()
	deaths := 200
	if testing.Short() || raced() {
		deaths = 40 // where a process takes its time to start
	}
	p := serve(t, "http", "workers=4")
	for range 4 { // a first round, so that all that is made once is there
		kill(t, p.workers()[0], syscall.SIGKILL)
		p.wait("killed")
		waitWorkers(p, 4)
	}
	before := p.masterInfo()
	for n := 0; n < deaths; n += 4 {
		for _, pid := range p.workers() {
			kill(t, pid, syscall.SIGKILL)
		}
		p.waitN(4, "killed")
		waitWorkers(p, 4)
	}
	var after info
	if !eventually(5*time.Second, func() bool {
		after = p.masterInfo()
		return after.Goroutines <= before.Goroutines && len(after.Files) <= len(before.Files)
	}) {
		t.Errorf("goroutines %d, before %d; files %q, before %q", after.Goroutines, before.Goroutines, after.Files, before.Files)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.pid()))
	if err == nil && len(strings.Fields(string(children))) > 4 {
		t.Errorf("the master's children are %s", children)
	}
	p.quit()
}

// The master reaps its workers and nobody else.
var _ = helper("reap", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	if m.IsMaster() {
		m.On(cluster.Hooks{Listening: func() {
			go func() {
				for i := range 100 {
					var exit *exec.ExitError
					err := exec.Command("sh", "-c", "exit "+strconv.Itoa(i%5)).Run()
					if code := i % 5; code == 0 && err != nil || code != 0 && (!errors.As(err, &exit) || exit.ExitCode() != code) {
						report("wrong status", nil, fmt.Sprint(i, err))
					}
				}
				report("commands done", nil, "")
			}()
		}})
	}
	finish(m.ListenAndServe(listen(0)))
})

func TestReaping(t *testing.T) {
	t.Parallel()
	p := serve(t, "reap", "workers=2")
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.wait("commands done")
	}()
	for {
		select {
		case <-done:
			for _, e := range p.history("wrong status") {
				t.Error(e.Text)
			}
			waitWorkers(p, 2)
			p.quit()
			return
		default:
		}
		kill(t, p.workers()[0], syscall.SIGKILL)
		p.wait("killed")
		waitWorkers(p, 2)
	}
}

// A program that a worker has forked doesn't keep the master from seeing
// that the worker has died.
func TestDeathWithChild(t *testing.T) {
	t.Parallel()
	p := serve(t, "sleeper", "workers=1")
	e := p.wait("sleeper")
	if _, err := roundTrip(p.dial(), "/exit"); err == nil {
		t.Error("/exit was answered")
	}
	p.wait("killed")
	waitWorkers(p, 1)
	second := p.wait("sleeper")
	p.signal(syscall.SIGQUIT)
	if code := p.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, e := range []event{e, second} {
		pid, _ := strconv.Atoi(e.Text)
		kill(t, pid, syscall.SIGKILL)
	}
	p.empty()
}

var _ = helper("sleeper", func() {
	m := newMaster()
	if m.IsWorker() {
		cmd := exec.Command("sleep", "1000")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			fatal(err)
		}
		report("sleeper", nil, strconv.Itoa(cmd.Process.Pid))
	}
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// Quick deaths back off, without end and without harm to other slots; one
// that has lived is replaced at once.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	p := serve(t, "crashloop", "workers=2")
	if err := os.WriteFile(filepath.Join(p.dir, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill(t, p.workers()[1], syscall.SIGKILL)
	var deaths []time.Time
	for range 5 {
		p.wait("killed", 1)
		deaths = append(deaths, time.Now())
	}
	if last, first := deaths[4].Sub(deaths[3]), deaths[1].Sub(deaths[0]); last < 200*time.Millisecond {
		t.Errorf("no back-off: a death every %v at first and every %v at last", first, last)
	}
	p.get("/")
	if err := os.Remove(filepath.Join(p.dir, "broken")); err != nil {
		t.Fatal(err)
	}
	waitWorkers(p, 2)
	p.quit()
}

// A shutdown doesn't wait for a slot that does.
func TestCrashLoopClose(t *testing.T) {
	t.Parallel()
	p := serve(t, "crashloop", "workers=2")
	if err := os.WriteFile(filepath.Join(p.dir, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill(t, p.workers()[1], syscall.SIGKILL)
	for range 8 {
		p.wait("killed", 1)
	}
	begin := time.Now() // of a wait of 3.2 s
	p.signal(syscall.SIGQUIT)
	p.wait("close")
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("closing took %v", d)
	}
	p.end(0, "broken")
	if n := len(p.history("worker")); n != 2+7 {
		t.Errorf("%d workers were started, want 9", n)
	}
}

var _ = helper("crashloop", func() {
	m := newMaster()
	if _, err := os.Stat("broken"); err == nil && m.IsWorker() && os.Getenv("CLUSTER_WORKER") == "1" {
		os.Exit(7)
	}
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// Workers that never become ready make ListenAndServe return their exit
// status and exception.
func TestNeverReady(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]string{"exit": "exit status 7", "panic": "no luck", "hang": "not ready after 300ms"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			timeout := "1m"
			if mode == "hang" {
				timeout = "300ms"
			}
			p := start(t, "neverready", "mode="+mode, "workers=2", "restart timeout="+timeout)
			e := p.waitFor("the master's error", func(e event) bool { return e.Name == "failed" && e.ID < 0 })
			if !strings.Contains(e.Text, want) {
				t.Errorf("error %q, want %q", e.Text, want)
			}
			p.end(1)
		})
	}
}

var _ = helper("neverready", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	if m.IsWorker() {
		switch mode() {
		case "exit":
			os.Exit(7)
		case "panic":
			panic("no luck")
		case "hang":
			time.Sleep(time.Hour)
		}
	}
	finish(m.ListenAndServe(listen(0)))
})

// A worker that fails a rolling restart ends it, and the old ones stay.
func TestRestartWorkersFails(t *testing.T) {
	t.Parallel()
	p := serve(t, "crashloop", "workers=2")
	before := p.workers()
	if err := os.WriteFile(filepath.Join(p.dir, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := p.call("replace 1"); !strings.Contains(got, "exit status 7") {
		t.Errorf("replace: %q", got)
	}
	if got := p.call("restartworkers"); !strings.Contains(got, "exit status 7") {
		t.Errorf("restartworkers: %q", got)
	}
	if w := p.workers(); w[1] != before[1] {
		t.Errorf("workers were %v, are %v", before, w)
	}
	if err := os.Remove(filepath.Join(p.dir, "broken")); err != nil {
		t.Fatal(err)
	}
	p.mustCall("restartworkers")
	p.waitFor("the old worker's end", func(e event) bool { return e.Name == "killed" && e.Pid == before[1] })
	if w := waitWorkers(p, 2); w[1] == before[1] {
		t.Errorf("workers were %v, are %v", before, w)
	}
	p.quit()
}
