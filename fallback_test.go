//go:build !unix || cluster_nofork

package cluster

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests are of systems where a process can't fork. The build tag
// cluster_nofork makes any system one of them:
//
//	go test -tags cluster_nofork .

// run starts m's server in this process and waits until it serves.
func run(t *testing.T, m *Master) (served chan error) {
	t.Helper()
	listening := make(chan struct{})
	m.On(Hooks{Listening: func() { close(listening) }})
	served = make(chan error, 1)
	go func() { served <- m.ListenAndServe(nil) }()
	select {
	case <-listening:
	case err := <-served:
		t.Fatal(err)
	}
	return served
}

// ended checks that what run has started ends, without an error.
func ended(t *testing.T, m *Master, served chan error, state State) {
	t.Helper()
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("ListenAndServe: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("ListenAndServe doesn't return")
	}
	if got := m.State(); got != state {
		t.Errorf("the state is %v, want %v", got, state)
	}
}

func nothing() *http.Server { return &http.Server{Handler: http.NotFoundHandler()} }

func TestFallbackServesInTheCallingProcess(t *testing.T) {
	cleanUp(t)
	l := mustListen(t, "tcp", "127.0.0.1:0") // claimed by ListenAndServe
	m := &Master{NewServer: func() (Server, error) {
		return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strconv.Itoa(os.Getpid()))
		})}, nil
	}, Workers: 2}
	l.Close()
	m.Addr = l.Addr().String()
	served := run(t, m)
	if !m.IsMaster() || !m.IsWorker() || len(m.Children()) != 0 || m.Predecessor() != 0 {
		t.Errorf("IsMaster %v, IsWorker %v, Children %v, Predecessor %d", m.IsMaster(), m.IsWorker(), m.Children(), m.Predecessor())
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(b) != strconv.Itoa(os.Getpid()) {
		t.Errorf("the answer is %q, %v", b, err)
	}
	for name, f := range map[string]func() error{
		"Restart":        func() error { return m.Restart() },
		"RestartWorkers": func() error { return m.RestartWorkers() },
		"Replace":        func() error { return m.Replace(0) },
		"Spawn":          func() error { return m.Spawn(1) },
		"Remove":         func() error { return m.Remove(1) },
		"Kill":           func() error { return m.Kill() },
	} {
		if err := f(); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s returns %v, want ErrNotRunning", name, err)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	ended(t, m, served, GracefulShutdown)
}

func TestFallbackSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no process can send itself a signal")
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		signals map[os.Signal]Action
		sig     os.Signal
		state   State
	}{
		{"SIGTERM", nil, syscall.SIGTERM, HardShutdown},
		{"interrupt", nil, os.Interrupt, HardShutdown},
		{"changed", map[os.Signal]Action{os.Interrupt: ActionClose}, os.Interrupt, GracefulShutdown},
		{"added", map[os.Signal]Action{syscall.SIGQUIT: ActionClose}, syscall.SIGQUIT, GracefulShutdown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cleanUp(t)
			m := &Master{Addr: "127.0.0.1:0", Server: nothing(), Signals: tt.signals}
			served := run(t, m)
			if err := self.Signal(tt.sig); err != nil {
				t.Fatal(err)
			}
			ended(t, m, served, tt.state)
		})
	}
	t.Run("others", func(t *testing.T) {
		cleanUp(t)
		l := make(lines, 10)
		reopened := make(chan struct{})
		m := &Master{Addr: "127.0.0.1:0", Server: nothing(), ErrorLog: log.New(l, "", 0), Signals: map[os.Signal]Action{
			syscall.SIGHUP: ActionReopen, os.Interrupt: ActionRestart,
		}}
		m.On(Hooks{Reopen: func() { close(reopened) }})
		served := run(t, m)
		for _, sig := range []os.Signal{syscall.SIGHUP, os.Interrupt} {
			if err := self.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		late := time.After(30 * time.Second)
		select {
		case <-reopened:
		case <-late:
			t.Error("Reopen is not called")
		}
		select {
		case line := <-l:
			if !strings.Contains(line, "no worker processes") {
				t.Errorf("logged: %s", line)
			}
		case <-late:
			t.Error("nobody is told that there is no restart")
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		ended(t, m, served, GracefulShutdown)
	})
}

// lines get what is logged.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// A stale socket file is replaced, one that is served is not, and the file is
// gone at the end.
func TestFallbackUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Skip(err)
	}
	cleanUp(t)
	m := &Master{Addr: "unix:" + path, Server: nothing()}
	if err := m.ListenAndServe(nil); err == nil {
		t.Error("the socket of another server is replaced")
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	m = &Master{Addr: "unix:" + path, Server: nothing()}
	served := run(t, m)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	ended(t, m, served, GracefulShutdown)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// An abstract cluster's work is done in the calling process.
func TestFallbackGivenSockets(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("package net has no files of sockets there")
	}
	path := filepath.Join(t.TempDir(), "socket")
	theirs, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	f, err := theirs.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if c, err := FilePacketConn(f); err == nil {
		c.Close()
		t.Error("a stream socket is one for packets")
	}
	l, err := FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	m := &Master{Server: nothing()}
	m.On(Hooks{Listening: func() {
		if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		go m.Close()
	}})
	if err := m.ListenAndServe(l); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestFallbackAbstract(t *testing.T) {
	cleanUp(t)
	conn, err := ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := new(Master)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if !m.IsWorker() {
		t.Error("the process takes itself for no worker")
	}
	if _, err := conn.WriteTo([]byte("hello"), conn.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, _, err := conn.ReadFrom(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	conn.Close()
	select {
	case <-m.Done():
		t.Error("done before Close")
	default:
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	<-m.Done()
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
}

// The smallest example, as somebody would run it.
func TestFallbackProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	exe := filepath.Join(t.TempDir(), "hello")
	if runtime.GOOS == "windows" {
		exe += ".exe"
	}
	if out, err := exec.Command("go", "build", "-tags", "cluster_nofork", "-o", exe, "./examples/hello").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	cmd := exec.Command(exe, addr)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var resp *http.Response
	for range 300 {
		if resp, err = client.Get("http://" + addr); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if pid := regexp.MustCompile("[0-9]+").Find(b); err != nil || string(pid) != strconv.Itoa(cmd.Process.Pid) {
		t.Errorf("process %d answers %q, %v", cmd.Process.Pid, b, err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// Children, hooks of workers and the like are never heard of.
func TestFallbackHooks(t *testing.T) {
	cleanUp(t)
	var heard []string
	note := func(name string) func(*Worker) { return func(*Worker) { heard = append(heard, name) } }
	m := &Master{Addr: "127.0.0.1:0", Server: nothing()}
	m.On(Hooks{
		Start:           func() error { heard = append(heard, "Start"); return nil },
		Worker:          note("Worker"),
		WorkerConnected: note("WorkerConnected"),
		WorkerKilled:    note("WorkerKilled"),
		Serving:         func() { heard = append(heard, "Serving") },
		Drained:         func() { heard = append(heard, "Drained") },
		Close:           func() { heard = append(heard, "Close") },
	})
	served := run(t, m)
	if err := m.Destroy(); err != nil {
		t.Error(err)
	}
	ended(t, m, served, HardShutdown)
	if want := []string{"Start", "Serving", "Drained", "Close"}; !slices.Equal(heard, want) {
		t.Errorf("hooks %q, want %q", heard, want)
	}
}
