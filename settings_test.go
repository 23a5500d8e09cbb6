//go:build unix && !cluster_nofork

package cluster_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
)

func linuxOnly(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
}

func rootOnly(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// program skips the test where a program is missing.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

// Workers is the number of CPUs unless it is set.
func TestWorkers(t *testing.T) {
	t.Parallel()
	p := serve(t, "http")
	if n := len(p.workers()); n != runtime.GOMAXPROCS(0) {
		t.Errorf("%d workers for %d CPUs", n, runtime.GOMAXPROCS(0))
	}
	p.quit()
}

// The working directory holds in master and workers, and all other paths are
// relative to it.
func TestWorkingDirectory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sub", "absolute"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := command(t, "addr", "workers=1", "addr=unix:app.sock")
			p.cmd.Args = append(p.cmd.Args, "working directory="+map[string]string{"sub": "sub", "absolute": filepath.Join(p.dir, "sub")}[name])
			sub := filepath.Join(p.dir, "sub")
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			p.start().wait("listening")
			if files, _ := filepath.Glob(filepath.Join(sub, "*.sock")); len(files) != 2 {
				t.Errorf("sockets in the directory: %q", files)
			}
			c, err := net.Dial("unix", filepath.Join(sub, "app.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			body, err := roundTrip(c, "/info")
			if err != nil {
				t.Fatal(err)
			}
			want, _ := filepath.EvalSymlinks(sub)
			if got := parseInfo(t, body).Dir; got != want {
				t.Errorf("worker's directory is %s, want %s", got, want)
			}
			if got := p.masterInfo().Dir; got != want {
				t.Errorf("master's directory is %s, want %s", got, want)
			}
			p.quit("sub")
			if files, _ := os.ReadDir(sub); len(files) > 0 {
				t.Errorf("files left behind: %v", files)
			}
		})
	}
}

// Backlog shows in ss, for a passed listener too.
func TestBacklog(t *testing.T) {
	t.Parallel()
	ss := program(t, "ss")
	for _, helper := range []string{"http", "plain"} {
		p := serve(t, helper, "workers=1", "backlog=77", "listen=tcp 127.0.0.1:0")
		_, address := p.addr()
		out, err := exec.Command(ss, "-ltnH", "src", address).CombinedOutput()
		if fields := strings.Fields(string(out)); err != nil || len(fields) < 4 || fields[2] != "77" {
			t.Errorf("%s: ss: %v\n%s", helper, err, out)
		}
		p.quit()
	}
}

// The master socket has the name it should, and is for nobody.
func TestSocket(t *testing.T) {
	t.Parallel()
	for _, settings := range [][]string{
		{},
		{"socket path=run"},
		{"socket filename=master.sock"},
		{"socket path=run", "socket filename=m{PID}.sock"},
	} {
		t.Run(fmt.Sprint(settings), func(t *testing.T) {
			t.Parallel()
			p := command(t, "http", append(settings, "workers=1")...)
			if err := os.Mkdir(filepath.Join(p.dir, "run"), 0o755); err != nil {
				t.Fatal(err)
			}
			p.start().wait("listening")
			dir, name := "", "cluster.{PID}.server.sock"
			for _, s := range settings {
				k, v, _ := strings.Cut(s, "=")
				if k == "socket path" {
					dir = v
				} else {
					name = v
				}
			}
			path := filepath.Join(p.dir, dir, strings.ReplaceAll(name, "{PID}", strconv.Itoa(p.pid())))
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode() != os.ModeSocket|0o600 {
				t.Errorf("mode is %v", fi.Mode())
			}
			p.quit("run")
			if files, _ := os.ReadDir(filepath.Join(p.dir, "run")); len(files) > 0 {
				t.Errorf("files left behind: %v", files)
			}
		})
	}
}

// Whoever connects to the master socket from another process, root
// included, is sent away without a word, and does no harm.
func TestSocketRefusesStrangers(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	path := filepath.Join(p.dir, fmt.Sprintf("cluster.%d.server.sock", p.pid()))
	for range 20 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("\x01\x01\x00\x00\x00\x00\x00\x02{}"))
		// What was not read makes a reset of it.
		if b, err := io.ReadAll(c); len(b) > 0 || os.IsTimeout(err) {
			t.Errorf("a stranger got %q, %v", b, err)
		}
		c.Close()
	}
	p.mustCall("spawn 1")
	waitWorkers(p, 2)
	p.quit()
}

// Workers inherit their connection: the master socket may go, and somebody
// else's be in its place, and they still come up.
func TestSocketRemoved(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	path := filepath.Join(p.dir, fmt.Sprintf("cluster.%d.server.sock", p.pid()))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	stranger, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := stranger.Accept()
			if err != nil {
				return
			}
			t.Error("somebody has connected to what is in the place of the master socket")
			c.Write([]byte("\x01\x01\x00\x00\x00\x00\x00\x02{}"))
			c.Close()
		}
	}()
	p.mustCall("spawn 1")
	waitWorkers(p, 2)
	stranger.Close()
	<-accepted
	p.quit()
}

// A stale master socket is removed, and nothing else is.
func TestSocketStale(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	path := filepath.Join(p.dir, fmt.Sprintf("cluster.%d.server.sock", p.pid()))
	p.signal(syscall.SIGKILL)
	p.end(-int(syscall.SIGKILL), filepath.Base(path))
	other := filepath.Join(p.dir, "cluster.1.server.sock")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	q := command(t, "http", "workers=1")
	q.cmd.Dir = p.dir
	q.start().wait("listening")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("stale socket: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	q.quit()
}

// Where no master socket can be made, the cluster does without.
func TestNoSocket(t *testing.T) {
	t.Parallel()
	linuxOnly(t)
	rootOnly(t)
	t.Run("no permission", func(t *testing.T) {
		t.Parallel()
		p := command(t, "http", "workers=1")
		os.Chmod(p.dir, 0o755)
		p.cmd.Path = "/proc/self/exe" // its file may be where nobody can reach it
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		p.start().wait("listening")
		p.waitLog("no master socket")
		if i := p.info(); i.Uid != 65534 {
			t.Errorf("user id %d", i.Uid)
		}
		p.quit()
	})
	t.Run("read-only", func(t *testing.T) {
		t.Parallel()
		p := command(t, "http", "workers=1")
		p.cmd.Args = append([]string{"unshare", "-m", "sh", "-c", `mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && exec "$0" "$@"`, p.cmd.Path}, p.cmd.Args[1:]...)
		p.cmd.Path = program(t, "unshare")
		p.start().wait("listening")
		p.waitLog("no master socket")
		p.get("/")
		p.quit()
	})
}

// Titles show in ps, and os.Args and flag values stay as they were.
var _ = helper("title", func() {
	fs := flag.NewFlagSet("title", flag.ExitOnError)
	addr := fs.String("addr", "", "")
	fs.Parse(os.Args[1:])
	m := new(cluster.Master)
	m.On(reportHooks)
	m.Workers = 2
	if fs.Arg(0) == "set" {
		m.Title, m.WorkerTitle = "the master", "worker number {n} of the cluster, with a title that is longer than comm"
	}
	m.Server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q %q", *addr, os.Args)
	})}
	if !cluster.IsWorker() {
		go obey(m)
	}
	finish(m.ListenAndServe(listen(0)))
})

func TestTitle(t *testing.T) {
	t.Parallel()
	linuxOnly(t)
	for _, set := range []bool{false, true} {
		p := command(t, "title", "-addr", "127.0.0.1:3000")
		master, worker := "cluster", "cluster worker"
		if set {
			p.cmd.Args = append(p.cmd.Args, "set")
			master, worker = "the master", "worker number {n} of the cluster, with a title that is longer than comm"
		}
		p.start().wait("listening")
		check := func(pid int, want string) {
			t.Helper()
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if got := string(bytes.TrimRight(cmdline, "\x00")); got != want {
				t.Errorf("cmdline is %q, want %q", got, want)
			}
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if got := strings.TrimSuffix(string(comm), "\n"); got != want[:min(15, len(want))] {
				t.Errorf("comm is %q, want %q", got, want)
			}
		}
		check(p.pid(), master)
		for id, pid := range p.workers() {
			check(pid, strings.ReplaceAll(worker, "{n}", strconv.Itoa(id)))
		}
		if got, want := p.get("/"), fmt.Sprintf("%q %q", "127.0.0.1:3000", p.cmd.Args); got != want {
			t.Errorf("the worker's flag and arguments are %s, want %s", got, want)
		}
		if i := p.masterInfo(); !slices.Equal(i.Args, p.cmd.Args) {
			t.Errorf("the master's arguments are %q", i.Args)
		}
		p.quit()
	}
}

// Workers run as User and Group, without supplementary groups.
func TestUser(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	gid, _ := strconv.Atoi(nobody.Gid)
	for _, c := range []struct {
		settings []string
		uid, gid int
	}{
		{[]string{"user=nobody"}, uid, gid},
		{[]string{"user=" + nobody.Uid}, uid, gid},
		{[]string{"user=nobody", "group=1234"}, uid, 1234},
		{[]string{"group=1234"}, 0, 1234},
	} {
		t.Run(fmt.Sprint(c.settings), func(t *testing.T) {
			t.Parallel()
			p := command(t, "http", append(c.settings, "workers=1")...)
			p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{0, 7, 8}}}
			p.start().wait("listening")
			i := p.info()
			groups := slices.DeleteFunc(i.Groups, func(g int) bool { return g == c.gid })
			if i.Uid != c.uid || i.Gid != c.gid || len(groups) > 0 {
				t.Errorf("worker runs as %d:%d with groups %v, want %d:%d", i.Uid, i.Gid, groups, c.uid, c.gid)
			}
			if m := p.masterInfo(); m.Uid != 0 || len(m.Groups) != 3 {
				t.Errorf("master runs as %d with groups %v", m.Uid, m.Groups)
			}
			p.quit()
		})
	}
}

// Workers share the CPUs out, unless the user has decided.
func TestGOMAXPROCS(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		env           string
		workers, want int
	}{
		{"", 1, runtime.NumCPU()},
		{"", 4 * runtime.NumCPU(), 1},
		{"3", 1, 3},
	} {
		p := command(t, "http", fmt.Sprintf("workers=%d", c.workers))
		p.cmd.Env = slices.DeleteFunc(p.cmd.Env, func(kv string) bool { return strings.HasPrefix(kv, "GOMAXPROCS=") })
		if c.env != "" {
			p.cmd.Env = append(p.cmd.Env, "GOMAXPROCS="+c.env)
		}
		p.start().wait("listening")
		i := p.info()
		if i.GOMAXPROCS != c.want {
			t.Errorf("GOMAXPROCS=%q, %d workers: each has %d, want %d", c.env, c.workers, i.GOMAXPROCS, c.want)
		}
		if has := slices.ContainsFunc(i.Env, func(kv string) bool { return strings.HasPrefix(kv, "GOMAXPROCS=") }); has != (c.env != "") {
			t.Errorf("the worker's environment: %q", i.Env)
		}
		p.quit()
	}
}

// Stdout and Stderr are the workers'.
var _ = helper("output", func() {
	m := newMaster()
	f, err := os.OpenFile("worker.log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		fatal(err)
	}
	m.Stderr = f
	m.Server = &http.Server{Handler: handler}
	if m.IsWorker() {
		fmt.Fprintln(os.Stderr, "a worker's error")
	}
	m.On(cluster.Hooks{Reopen: func() {
		if m.IsWorker() {
			fmt.Fprintf(os.Stderr, "reopened by %d\n", os.Getpid())
			return
		}
		next, err := os.OpenFile("next.log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err == nil {
			err = unix.Dup2(int(next.Fd()), int(f.Fd()))
		}
		if err != nil {
			fatal(err)
		}
		next.Close()
	}})
	finish(m.ListenAndServe(listen(0)))
})

func TestStderr(t *testing.T) {
	t.Parallel()
	p := serve(t, "output", "workers=1")
	if got, _ := os.ReadFile(filepath.Join(p.dir, "worker.log")); string(got) != "a worker's error\n" {
		t.Errorf("worker.log is %q", got)
	}
	if p.log() != "" {
		t.Errorf("the master's: %q", p.log())
	}
	p.quit("worker.log")
}

// On SIGUSR1 the workers that run get the files that Stdout and Stderr have
// become, those of an old master too; before their own hooks are called.
func TestReopenGivesWorkersTheirFilesAgain(t *testing.T) {
	t.Parallel()
	p := serve(t, "output", "workers=2", "timeout=1m")
	held := p.hold() // so that the old workers stay
	p.signal(syscall.SIGUSR2)
	p.wait("listening")
	p.waitN(4, "connected")
	p.wait("closing")
	p.signal(syscall.SIGUSR1)
	want := []int{held.Pid}
	for _, e := range p.history("connected")[2:] {
		want = append(want, e.Pid)
	}
	var got []byte
	if !eventually(patience, func() bool {
		got, _ = os.ReadFile(filepath.Join(p.dir, "next.log"))
		return !slices.ContainsFunc(want, func(pid int) bool {
			return !strings.Contains(string(got), fmt.Sprintf("reopened by %d\n", pid))
		})
	}) {
		t.Errorf("next.log is %q, it should have %v", got, want)
	}
	held.Close()
	p.quit("worker.log", "next.log")
}

// Every mistake is an error that names the setting, and leaves nothing.
var _ = helper("bad", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	switch mode() {
	case "unknown option":
		m.Set("wrokers", 3)
	case "type":
		m.Set("workers", "many")
		m.Set("timeout", 60)
		m.Set("title", 7)
	case "nil listener":
		var l *net.TCPListener
		finish(m.ListenAndServe(l))
	case "nil server":
		var s *http.Server
		m.Server = s
	case "no server":
		m.Server = nil
	case "hook":
		m.On(cluster.Hooks{Start: func() error { return fmt.Errorf("no start today") }})
	case "plugin":
		m.Use(func(*cluster.Master) error { return fmt.Errorf("no such plugin") })
	case "not inherited":
		if m.IsWorker() {
			_, err := cluster.Listen("tcp", "127.0.0.1:1")
			fatal(err)
		}
	case "start":
		if err := m.Start(); err != nil {
			fatal(err)
		}
	case "in use":
		cluster.Listen("unix", "other.sock")
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fatal(err)
		}
		m.Addr = l.Addr().String()
		finish(m.ListenAndServe(nil))
	case "nothing":
		finish(m.ListenAndServe(nil))
	case "foreign listener":
		finish(m.ListenAndServe(struct{ net.Listener }{listenPlain()}))
	case "twice served":
		l := listen(0)
		m.Add(l, m.Server)
		finish(m.ListenAndServe(l))
	case "add nil":
		m.Add(nil, m.Server)
	case "pdeathsig":
		m.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{}}
	}
	finish(m.ListenAndServe(listen(0)))
})

func listenPlain() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatal(err)
	}
	return l
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long", 50)
	for _, c := range []struct {
		args []string
		want []string // in the error
	}{
		{[]string{"mode=unknown option"}, []string{`"wrokers"`, "worker title"}},
		{[]string{"mode=type"}, []string{`"workers"`, "many", `"timeout"`, "60s", `"title"`}}, // all of them
		{[]string{"timeout=60"}, []string{`"timeout"`}},
		{[]string{"mode=nil listener"}, []string{"listener", "*net.TCPListener"}},
		{[]string{"mode=nil server"}, []string{"Server", "*http.Server"}},
		{[]string{"mode=no server"}, []string{"Server"}},
		{[]string{"mode=hook"}, []string{"no start today"}},
		{[]string{"mode=plugin"}, []string{"plugin", "no such plugin"}},
		{[]string{"mode=not inherited", "workers=1"}, []string{"did not become ready", "exit status 1"}},
		{[]string{"mode=start"}, []string{"Start", "ListenAndServe"}},
		{[]string{"mode=in use"}, []string{"address already in use"}},
		{[]string{"mode=nothing"}, []string{"Addr"}},
		{[]string{"mode=foreign listener"}, []string{"cluster.Listen"}},
		{[]string{"mode=twice served"}, []string{"twice"}},
		{[]string{"mode=add nil"}, []string{"Add", "listener"}},
		{[]string{"mode=pdeathsig"}, []string{"SysProcAttr.Credential", "User"}},
		{[]string{"workers=-1"}, []string{"Workers is -1"}},
		{[]string{"backlog=-1"}, []string{"Backlog is -1"}},
		{[]string{"timeout=-1s"}, []string{"Timeout is -1s"}},
		{[]string{"user=nosuchuser"}, []string{`User "nosuchuser"`}},
		{[]string{"group=nosuchgroup"}, []string{"Group", "nosuchgroup"}},
		{[]string{"socket path=" + long}, []string{"SocketPath", "limit"}},
		{[]string{"socket path=/nosuchdirectory"}, []string{"SocketPath", "/nosuchdirectory"}},
		{[]string{"dir=/nosuchdirectory"}, []string{"Dir", "/nosuchdirectory"}},
		{[]string{"path=/nosuchprogram"}, []string{"Path", "/nosuchprogram"}},
		{[]string{"addr=3000"}, []string{`Addr "3000"`}},
		{[]string{"workers=0x", "dir=/nosuchdirectory"}, []string{`"workers"`}},
	} {
		t.Run(strings.Join(c.args, " ")[:min(30, len(strings.Join(c.args, " ")))], func(t *testing.T) {
			t.Parallel()
			p := start(t, "bad", c.args...)
			failed := p.waitFor("the master's error", func(e event) bool { return e.Name == "failed" && e.ID < 0 })
			for _, want := range c.want {
				if !strings.Contains(failed.Text, want) {
					t.Errorf("the error doesn't tell %q: %s", want, failed.Text)
				}
			}
			if c.args[0] == "mode=hook" {
				p.wait("close") // for what other Start hooks have opened
			}
			if strings.Contains(strings.Join(c.args, ""), "not inherited") {
				e := p.waitFor("the worker's error", func(e event) bool { return e.Name == "failed" && e.ID == 0 })
				if !strings.Contains(e.Text, "not inherited") || !strings.Contains(e.Text, "127.0.0.1:1") {
					t.Errorf("the worker's error: %s", e.Text)
				}
			}
			p.end(1)
		})
	}
	t.Run("User without root", func(t *testing.T) {
		t.Parallel()
		linuxOnly(t)
		rootOnly(t)
		p := command(t, "bad", "user=nobody")
		os.Chmod(p.dir, 0o755)
		p.cmd.Path = "/proc/self/exe"
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
		p.start()
		if e := p.wait("failed"); !strings.Contains(e.Text, `User "nobody"`) || !strings.Contains(e.Text, "root") {
			t.Errorf("error: %s", e.Text)
		}
		p.end(1)
	})
}

// A second start changes nothing.
func TestSecondStart(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	for _, command := range []string{"listen", "start"} {
		if got := p.call("%s", command); !strings.Contains(got, "already started") {
			t.Errorf("%s: %q", command, got)
		}
	}
	p.get("/")
	p.quit()
}

// A unix socket: a stale one is replaced, a live one is in use, and a
// regular file is never touched.
func TestUnixSocketFile(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1", "listen=unix app.sock")
	q := command(t, "http", "workers=1", "listen=unix "+filepath.Join(p.dir, "app.sock"))
	q.start()
	if e := q.wait("failed"); !strings.Contains(e.Text, "address already in use") {
		t.Errorf("a live socket: %s", e.Text)
	}
	q.end(1)
	p.get("/")
	p.signal(syscall.SIGKILL)
	p.end(-int(syscall.SIGKILL), "app.sock", fmt.Sprintf("cluster.%d.server.sock", p.pid()))

	q = serve(t, "http", "workers=1", "listen=unix "+filepath.Join(p.dir, "app.sock"))
	q.get("/")
	q.quit()
	path := filepath.Join(p.dir, "app.sock")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket's file: %v", err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	q = start(t, "http", "workers=1", "listen=unix "+path)
	if e := q.wait("failed"); !strings.Contains(e.Text, "address already in use") {
		t.Errorf("a regular file: %s", e.Text)
	}
	q.end(1)
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is now %q", b)
	}
}
