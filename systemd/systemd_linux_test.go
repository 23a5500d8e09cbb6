package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/systemd"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"service": service, "activated": activated})
}

// service is the program: a cluster of two workers that write back what they
// read. The file "mode" in its directory says what goes wrong.
func service() {
	mode, _ := os.ReadFile("mode")
	m := &cluster.Master{
		Workers: 2,
		Inline:  string(mode) == "inline",
		NewServer: func() (cluster.Server, error) {
			if mode, _ := os.ReadFile("mode"); string(mode) == "worker fails" {
				return nil, errors.New("no server\ntoday")
			}
			return echo, nil
		},
	}
	if new(cluster.Master).Predecessor() != 0 && string(mode) == "exit" {
		os.Exit(3)
	}
	if string(mode) == "hangs" {
		m.Heartbeat = 300 * time.Millisecond
		m.ErrorLog = log.New(stuck{}, "", 0)
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid == "self" {
		os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	}
	m.Use(systemd.New(), clustertest.Events)
	m.On(cluster.Hooks{Serving: func() {
		for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
			if value, ok := os.LookupEnv(name); ok {
				clustertest.Tell("environment %s=%s", name, value)
			}
		}
	}})
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if !cluster.IsWorker() && new(cluster.Master).Predecessor() == 0 {
		clustertest.Tell("addr %v", l.Addr())
	}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

var echo = &cluster.TCPServer{Handler: func(ctx context.Context, c net.Conn) { io.Copy(c, c) }}

// stuck is a log that makes whoever writes to it wait for the file "go on".
type stuck struct{}

func (stuck) Write(b []byte) (int, error) {
	clustertest.Tell("stuck %q", b)
	clustertest.Eventually(clustertest.Patience, func() bool {
		_, err := os.Stat("go on")
		return err == nil
	})
	return len(b), nil
}

// A manager is what a service manager is to a service with NotifyAccess=main:
// it takes messages from the main process alone.
type manager struct {
	t    *testing.T
	p    *clustertest.Program
	conn *net.UnixConn

	access string // NotifyAccess: "main" by default, or "all"

	mu       sync.Mutex // guards the following
	main     int
	messages []message // that nobody has taken
	all      []message
}

type message struct {
	pid  int
	text string
	at   time.Time
}

// manage returns a program with a manager, to be started.
func manage(t *testing.T, addr string, env ...string) *manager {
	t.Helper()
	p := clustertest.Command(t, "service")
	p.Forbid("environment")
	if addr == "" {
		addr = fmt.Sprintf("@cluster-test-%d-%s", os.Getpid(), filepath.Base(p.Dir))
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	rc, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1) })
	if err != nil {
		t.Fatal(err)
	}
	p.Cmd.Env = append(p.Cmd.Env, "NOTIFY_SOCKET="+addr)
	p.Cmd.Env = append(p.Cmd.Env, env...)
	m := &manager{t: t, p: p, conn: conn}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.read()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
		if t.Failed() {
			for _, msg := range m.all {
				t.Logf("%v %d %q", msg.at.Format("05.000"), msg.pid, msg.text)
			}
		}
	})
	return m
}

func (m *manager) start() *manager {
	m.t.Helper()
	m.mu.Lock()
	m.p.Start()
	m.main = m.p.Pid()
	m.mu.Unlock()
	return m
}

func (m *manager) read() {
	b, oob := make([]byte, 4096), make([]byte, 128)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		cmsgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(cmsgs) != 1 {
			m.t.Errorf("control messages: %v, %v", cmsgs, err)
			return
		}
		cred, err := syscall.ParseUnixCredentials(&cmsgs[0])
		if err != nil {
			m.t.Error(err)
			return
		}
		msg := message{int(cred.Pid), string(b[:n]), time.Now()}
		m.mu.Lock()
		m.messages = append(m.messages, msg)
		m.all = append(m.all, msg)
		if msg.pid != m.main && m.access != "all" {
			m.t.Errorf("process %d says %q; the main process is %d", msg.pid, msg.text, m.main)
		}
		for _, a := range strings.Split(msg.text, "\n") {
			if pid, ok := strings.CutPrefix(a, "MAINPID="); ok {
				m.main, _ = strconv.Atoi(pid)
			}
		}
		m.mu.Unlock()
	}
}

// wait takes the first message with all these assignments, or beginnings of
// them.
func (m *manager) wait(assignments ...string) (found message) {
	m.t.Helper()
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i, msg := range m.messages {
			if has(msg.text, assignments...) {
				m.messages = slices.Delete(m.messages, i, i+1)
				found = msg
				return true
			}
		}
		return false
	}) {
		m.t.Fatalf("no message %q", assignments)
	}
	return found
}

func has(text string, assignments ...string) bool {
	for _, want := range assignments {
		if !slices.ContainsFunc(strings.Split(text, "\n"), func(a string) bool { return strings.HasPrefix(a, want) }) {
			return false
		}
	}
	return true
}

// history returns all messages with these assignments.
func (m *manager) history(assignments ...string) (list []message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, msg := range m.all {
		if has(msg.text, assignments...) {
			list = append(list, msg)
		}
	}
	return list
}

// mode says what goes wrong from now on.
func (m *manager) mode(mode string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.p.Dir, "mode"), []byte(mode), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// mainPid is the main process as the manager knows it.
func (m *manager) mainPid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.main
}

// quit stops the service.
func (m *manager) quit() {
	m.t.Helper()
	m.p.Kill(m.mainPid(), syscall.SIGQUIT)
	m.end()
}

// end checks that all has ended, and that the manager was told once.
func (m *manager) end() {
	m.t.Helper()
	m.wait("STOPPING=1")
	m.p.End(0, "mode", "notify", "go on")
	if n := len(m.history("STOPPING=1")); n != 1 {
		m.t.Errorf("%d messages that it stops, want 1", n)
	}
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	exchange(t, conn)
	return conn
}

// exchange waits until somebody has conn.
func exchange(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(clustertest.Patience))
	b := []byte("x")
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
}

func TestService(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"path", "abstract"} {
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			path := ""
			if addr == "path" {
				dir, err := os.MkdirTemp("", "notify")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				path = filepath.Join(dir, "notify")
			}
			m := manage(t, path).start()
			first := m.p.WaitPid("ready", "0")
			m.wait("READY=1", "STATUS=2/2 workers")
			m.p.Signal(syscall.SIGTTIN)
			m.wait("STATUS=3/3 workers")
			m.p.Signal(syscall.SIGTTOU)
			m.wait("STATUS=2/2 workers")
			m.p.Kill(first, syscall.SIGKILL)
			m.wait("STATUS=1/2 workers")
			m.wait("STATUS=2/2 workers")
			m.quit()
			if len(m.history("READY=1")) != 1 || len(m.history("WATCHDOG=1")) > 0 || len(m.history("RELOADING=1")) > 0 {
				t.Error("there was more to tell than there should have been")
			}
		})
	}
}

// The manager follows the cluster from master to master. Each says what it has
// to while it is the main process: manager.read checks that.
func TestRestart(t *testing.T) {
	t.Parallel()
	m := manage(t, "", "WATCHDOG_USEC=2000000", "WATCHDOG_PID=self").start()
	m.wait("READY=1")
	addr := m.p.Wait("addr")[0]
	for range 2 {
		old := m.p.WaitPid("listening")
		if old != m.mainPid() {
			t.Fatalf("the main process is %d, want %d", m.mainPid(), old)
		}
		conn := dial(t, "tcp", addr)
		m.p.Kill(old, syscall.SIGUSR2)
		msg := m.wait("RELOADING=1", "MONOTONIC_USEC=")
		var usec int64
		fmt.Sscanf(msg.text[strings.Index(msg.text, "USEC="):], "USEC=%d", &usec)
		if up := uptime(t); usec <= 0 || usec > up || usec < up-10e6 {
			t.Errorf("MONOTONIC_USEC is %d, and now it is %d", usec, up)
		}
		msg = m.wait("MAINPID=", "READY=1")
		next := m.mainPid()
		if msg.pid != old || next == old {
			t.Errorf("%d has told %q, want it of %d", msg.pid, msg.text, old)
		}

		// While the old one drains, the new one gives signs of life.
		m.wait("STATUS=2/2 workers")
		if !clustertest.Eventually(clustertest.Patience, func() bool {
			list := m.history("WATCHDOG=1")
			return list[len(list)-1].pid == next
		}) {
			t.Error("the new master gives no sign of life")
		}
		m.p.Kill(old, 0) // it is there
		conn.Close()
		if !clustertest.Eventually(clustertest.Patience, func() bool { return !slices.Contains(m.p.Processes(), old) }) {
			t.Errorf("the old master %d is still there", old)
		}
		m.p.Wait("restarted", strconv.Itoa(next))
	}

	// And a rolling restart.
	before := len(m.history("READY=1"))
	m.p.Kill(m.mainPid(), syscall.SIGHUP)
	m.wait("RELOADING=1")
	if !clustertest.Eventually(clustertest.Patience, func() bool { return len(m.history("READY=1")) > before }) {
		t.Error("not ready after a rolling restart")
	}
	m.quit()

	var last time.Time
	for _, msg := range m.history() {
		if has(msg.text, "READY=1") && last.IsZero() || has(msg.text, "WATCHDOG=1") {
			if !last.IsZero() && msg.at.Sub(last) > 2*time.Second {
				t.Errorf("no sign of life for %v", msg.at.Sub(last))
			}
			last = msg.at
		}
	}
}

// uptime returns the time of the monotonic clock.
func uptime(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/timer_list")
	if err == nil {
		for line := range strings.Lines(string(data)) {
			var ns int64
			if n, _ := fmt.Sscanf(line, "now at %d nsecs", &ns); n == 1 {
				return ns / 1000
			}
		}
	}
	if data, err = os.ReadFile("/proc/uptime"); err != nil { // the same but where the machine was suspended
		t.Fatal(err)
	}
	var s float64
	fmt.Sscanf(string(data), "%f", &s)
	return int64((s + 1) * 1e6)
}

func TestFailedRestart(t *testing.T) {
	t.Parallel()
	m := manage(t, "").start()
	m.wait("READY=1")
	for _, test := range []struct{ mode, why string }{
		{"exit", "the new master ended before it was ready: exit status 3"},
		{"worker fails", "the new master failed: "},
	} {
		m.mode(test.mode)
		m.p.Signal(syscall.SIGUSR2)
		m.wait("RELOADING=1")
		m.wait("READY=1", "STATUS=2/2 workers; restart failed: cluster: "+test.why)
	}
	m.p.Signal(syscall.SIGHUP)
	m.wait("RELOADING=1")
	m.wait("READY=1", "STATUS=2/2 workers; restart of the workers failed: ")
	for _, msg := range m.history() {
		if msg.pid != m.p.Pid() || has(msg.text, "MAINPID=") {
			t.Errorf("%d says %q", msg.pid, msg.text)
		}
	}
	m.mode("")
	m.p.Signal(syscall.SIGUSR2)
	m.wait("MAINPID=")
	if msg := m.wait("MAINPID=", "STATUS="); !has(msg.text, "STATUS=2/2 workers") || strings.Contains(msg.text, "failed") {
		t.Errorf("after a good restart: %q", msg.text)
	}
	m.quit()
}

// The service is stopped while the old master drains: the new one is the last
// to end. Both ask for the time that takes.
func TestStopDuringDrain(t *testing.T) {
	t.Parallel()
	m := manage(t, "").start()
	m.wait("READY=1")
	old := m.p.WaitPid("listening")
	conn := dial(t, "tcp", m.p.Wait("addr")[0])
	m.p.Signal(syscall.SIGUSR2)
	m.wait("MAINPID=")
	next := m.mainPid()
	m.p.Kill(next, syscall.SIGQUIT)
	m.wait("EXTEND_TIMEOUT_USEC=15000000")
	if pids := m.p.Processes(); !slices.Contains(pids, old) || !slices.Contains(pids, next) {
		t.Errorf("of the masters %d and %d there are %v", old, next, pids)
	}
	conn.Close()
	m.end()
}

func TestHardShutdown(t *testing.T) {
	t.Parallel()
	m := manage(t, "").start()
	m.wait("READY=1")
	dial(t, "tcp", m.p.Wait("addr")[0])
	m.p.Signal(syscall.SIGTERM)
	m.end()
}

// No sign of life is given while the supervisor hangs: while it waits for its
// log.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	m := manage(t, "", "WATCHDOG_USEC=200000")
	m.mode("hangs")
	m.start()
	worker := m.p.WaitPid("ready", "0")
	m.wait("WATCHDOG=1")
	m.wait("WATCHDOG=1")
	m.p.Kill(worker, syscall.SIGSTOP)
	m.p.Wait("stuck")
	time.Sleep(200 * time.Millisecond) // one may be on its way
	before := len(m.history("WATCHDOG=1"))
	time.Sleep(500 * time.Millisecond)
	if n := len(m.history("WATCHDOG=1")) - before; n > 0 {
		t.Errorf("%d signs of life while it hangs", n)
	}
	if err := os.WriteFile(filepath.Join(m.p.Dir, "go on"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !clustertest.Eventually(clustertest.Patience, func() bool { return len(m.history("WATCHDOG=1")) > before+1 }) {
		t.Error("no sign of life when it goes on")
	}
	m.p.Wait("killed", "0")
	m.quit()
}

// A watchdog is for one process.
func TestWatchdogOfAnother(t *testing.T) {
	t.Parallel()
	m := manage(t, "", "WATCHDOG_USEC=2000", "WATCHDOG_PID=1").start()
	m.wait("READY=1")
	m.p.Signal(syscall.SIGUSR2)
	m.wait("MAINPID=")
	m.wait("STATUS=2/2 workers")
	m.quit()
	for _, msg := range m.history("WATCHDOG=1") {
		if !has(msg.text, "MAINPID=") {
			t.Errorf("%d says %q", msg.pid, msg.text)
		}
	}
}

func TestInline(t *testing.T) {
	t.Parallel()
	m := manage(t, "", "WATCHDOG_USEC=100000")
	m.mode("inline")
	m.start()
	m.wait("READY=1")
	m.wait("WATCHDOG=1")
	m.wait("WATCHDOG=1")
	m.quit()
}

// Without a manager the process that was started stays, for whoever knows it.
func TestNoManager(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "service")
	p.Wait("listening")
	p.Signal(syscall.SIGUSR2)
	p.Wait("restarted")
	if !slices.Contains(p.Processes(), p.Pid()) {
		t.Error("the first process is gone")
	}
	p.Quit()
}

// In a container the first process stays, and is the manager's main process.
func TestContainer(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "-pf", "true").CombinedOutput(); err != nil {
		t.Skipf("no container to be had: %v %s", err, out)
	}
	for restarts := range 3 {
		t.Run(fmt.Sprint(restarts), func(t *testing.T) {
			t.Parallel()
			testContainer(t, restarts)
		})
	}
}

func testContainer(t *testing.T, restarts int) {
	m := manage(t, "", "WATCHDOG_USEC=500000", "WATCHDOG_PID=self")
	m.access = "all"
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	m.p.Cmd.Args = []string{unshare, "-pf", m.p.Cmd.Path}
	m.p.Cmd.Path = unshare
	m.start()
	first := m.wait("READY=1").pid
	before := first
	for range restarts {
		m.p.Kill(first, syscall.SIGUSR2)
		m.wait("RELOADING=1")
		if msg := m.wait("READY=1", "WATCHDOG=1"); msg.pid != before {
			t.Errorf("%d says %q, want it of %d", msg.pid, msg.text, before)
		}
		before = m.wait("STATUS=2/2 workers").pid
		if !clustertest.Eventually(clustertest.Patience, func() bool {
			list := m.history("WATCHDOG=1")
			return list[len(list)-1].pid == before
		}) {
			t.Error("the new master gives no sign of life")
		}
	}
	if !slices.Contains(m.p.Processes(), first) {
		t.Error("the first process is gone")
	}
	if list := m.history("MAINPID="); len(list) > 0 {
		t.Errorf("another main process: %v", list)
	}
	m.p.Kill(first, syscall.SIGQUIT)
	m.end()
}

// What can't be told is said once, and stops nobody.
func TestManagerGone(t *testing.T) {
	t.Parallel()
	m := manage(t, "")
	m.conn.Close()
	m.start()
	m.p.WaitLog("systemd: NOTIFY_SOCKET: ")
	m.p.WaitPid("ready", "0")
	m.p.Signal(syscall.SIGTTIN)
	m.p.WaitPid("ready", "2")
	m.p.Quit()
	if n := strings.Count(m.p.Log(), "NOTIFY_SOCKET"); n != 1 {
		t.Errorf("said %d times", n)
	}
}
