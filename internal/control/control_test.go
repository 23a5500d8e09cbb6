//go:build unix

package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"cluster": program, "crowded": crowded})
}

// serveClient tells a client which process serves it, and its last word.
func serveClient(ctx context.Context, c net.Conn) {
	fmt.Fprintln(c, os.Getpid())
	defer context.AfterFunc(ctx, func() {
		time.Sleep(50 * time.Millisecond) // it has that time
		fmt.Fprintln(c, "bye")
		c.Close()
	})()
	io.Copy(io.Discard, c)
}

// run runs a cluster whose worker doesn't end while there is a file "busy".
func run(m *cluster.Master) {
	m.Workers = 1
	if err := m.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if m.IsWorker() {
		<-m.Done()
		clustertest.Eventually(clustertest.Patience, func() bool {
			_, err := os.Stat("busy")
			return err != nil
		})
	} else if err := m.Wait(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// program is a cluster with a server at the address in the file "addr". A new
// master fails while there is a file "fail".
func program() {
	addr, err := os.ReadFile("addr")
	if err != nil {
		panic(err)
	}
	s := &Server{Name: "test", Addr: string(addr), Handle: serveClient}
	m := new(cluster.Master).Use(clustertest.Events, s.Attach)
	m.On(cluster.Hooks{
		WorkerConnected: func(*cluster.Worker) {
			if _, err := os.Stat("fail"); err == nil {
				os.Exit(3)
			}
		},
	})
	run(m)
}

// crowded is a cluster whose master on SIGUSR1 runs out of descriptors, and
// next time frees them.
func crowded() {
	if cluster.IsWorker() {
		run(new(cluster.Master))
		return
	}
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	limit.Cur = 100
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		panic(err)
	}
	var files []*os.File
	m := new(cluster.Master)
	m.On(cluster.Hooks{Reopen: func() {
		for _, f := range files {
			f.Close()
		}
		if files != nil {
			files = nil
			clustertest.Tell("free")
			return
		}
		for {
			f, err := os.Open(os.DevNull)
			if err != nil {
				clustertest.Tell("full %v", errors.Is(err, syscall.EMFILE))
				return
			}
			files = append(files, f)
		}
	}})
	s := &Server{Name: "test", Addr: "./s", Handle: serveClient}
	run(m.Use(clustertest.Events, s.Attach))
}

func TestResolve(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	long := "/" + strings.Repeat("x", 200)
	for _, test := range []struct {
		addr    string
		any     bool
		network string // "" is an error
		address string
	}{
		{addr: "/run/x.sock", network: "unix", address: "/run/x.sock"},
		{addr: "unix:/run/x.sock", network: "unix", address: "/run/x.sock"},
		{addr: "x.sock", network: "unix", address: wd + "/x.sock"},
		{addr: "./8888", network: "unix", address: wd + "/8888"},
		{addr: "unix:8888", network: "unix", address: wd + "/8888"},
		{addr: "unix:a:1", network: "unix", address: wd + "/a:1"},
		{addr: "/a:1", network: "unix", address: "/a:1"},
		{addr: "8888", network: "tcp", address: "127.0.0.1:8888"},
		{addr: ":8888", network: "tcp", address: "127.0.0.1:8888"},
		{addr: "localhost:8888", network: "tcp", address: "127.0.0.1:8888"},
		{addr: "127.0.0.9:8888", network: "tcp", address: "127.0.0.9:8888"},
		{addr: "[::1]:8888", network: "tcp", address: "[::1]:8888"},
		{addr: ""},
		{addr: "unix:"},
		{addr: long},
		{addr: "a:b:c"},
		{addr: "0.0.0.0:8888"},
		{addr: "[::]:8888"},
		{addr: "*:8888"},
		{addr: "192.0.2.1:8888"},
		{addr: "example.com:8888"},
		{addr: "localhost.example.com:8888"},
		{addr: "0.0.0.0:8888", any: true, network: "tcp", address: "0.0.0.0:8888"},
		{addr: ":8888", any: true, network: "tcp", address: ":8888"},
		{addr: "8888", any: true, network: "tcp", address: ":8888"},
		{addr: "/x", any: true, network: "unix", address: "/x"},
	} {
		network, address, err := Resolve(test.addr, test.any)
		if network != test.network || address != test.address || (err == nil) != (test.network != "") {
			t.Errorf("Resolve(%.40q, %v) = %q, %q, %v, want %q, %q", test.addr, test.any,
				network, address, err, test.network, test.address)
		}
	}
	err = (&Server{Name: "test", Addr: "0.0.0.0:8888"}).Attach(new(cluster.Master))
	if err == nil || !strings.HasPrefix(err.Error(), "test: 0.0.0.0:8888 ") {
		t.Errorf("Attach to all interfaces: %v", err)
	}
}

// newServer returns a server that has been attached, in a way.
func newServer(t *testing.T, addr string) *Server {
	s := &Server{Name: "test", Addr: addr, Handle: serveClient}
	var err error
	if s.network, s.address, err = Resolve(addr, false); err != nil {
		t.Fatal(err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		s.close()
		s.cancel()
		s.handlers.Wait()
	})
	return s
}

// tempDir is t.TempDir, but its name leaves room for a socket's.
func tempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A client is a connection to a server.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, path string) *client {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(clustertest.Patience))
	return &client{c, bufio.NewReader(c)}
}

func (c *client) expect(t *testing.T, want string) {
	t.Helper()
	if line, err := c.r.ReadString('\n'); line != want+"\n" {
		t.Fatalf("got %q, %v, want %q", line, err, want)
	}
}

func (c *client) expectEOF(t *testing.T) {
	t.Helper()
	if b, err := io.ReadAll(c.r); err != nil || len(b) > 0 {
		t.Fatalf("got %q, %v, want the end", b, err)
	}
}

func wantMode(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if info, err := os.Lstat(path); err != nil {
		t.Error(err)
	} else if info.Mode() != mode {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), mode)
	}
}

func TestListenMakesTheDirectory(t *testing.T) {
	path := filepath.Join(tempDir(t), "a/b/s")
	s := newServer(t, path)
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	dial(t, path).expect(t, strconv.Itoa(os.Getpid()))
	s.close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close: %v", err)
	}
	if err := s.listen(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen after close: %v", err)
	}
}

// The umask belongs to the process: no other test may run meanwhile.
func TestSocketIsPrivate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(tempDir(t), "s")
	if err := newServer(t, path).listen(); err != nil {
		t.Fatal(err)
	}
	wantMode(t, path, fs.ModeSocket|0o600)

	if runtime.GOOS == "linux" { // it is from birth
		path += "2"
		l, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		wantMode(t, path, fs.ModeSocket|0o600)
	}
}

func TestListenInTheWay(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	t.Run("listener", func(t *testing.T) {
		path := filepath.Join(dir, "listener")
		if err := newServer(t, path).listen(); err != nil {
			t.Fatal(err)
		}
		err := newServer(t, path).listen()
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
			t.Errorf("listen: %v", err)
		}
		dial(t, path).expect(t, strconv.Itoa(os.Getpid()))
	})
	t.Run("stale socket", func(t *testing.T) {
		path := filepath.Join(dir, "stale")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
		for { // a process that another test has just forked may have it for a moment
			c, err := net.Dial("unix", path)
			if err != nil {
				break
			}
			c.Close()
			time.Sleep(time.Millisecond)
		}
		if err := newServer(t, path).listen(); err != nil {
			t.Fatal(err)
		}
		wantMode(t, path, fs.ModeSocket|0o600)
		dial(t, path).expect(t, strconv.Itoa(os.Getpid()))
	})
	t.Run("another kind of socket", func(t *testing.T) {
		path := filepath.Join(dir, "datagram")
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := newServer(t, path).listen(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listen: %v", err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	})
	for name, create := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("precious"), 0o644) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"link":      func(path string) error { return os.Symlink("nowhere", path) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			if err := create(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			s := newServer(t, path)
			if err := s.listen(); err == nil || !strings.Contains(err.Error(), path+" is in the way") {
				t.Errorf("listen: %v", err)
			}
			s.close()
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || after.Mode() != before.Mode() {
				t.Errorf("it was touched: %v, %v", after, err)
			}
		})
	}
}

func TestCloseRemovesNothingElse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "s")
	s := newServer(t, path)
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.close()
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("after close: %q, %v", b, err)
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	s := newServer(t, "0")
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	addr := s.l.Addr().(*net.TCPAddr)
	if !addr.IP.IsLoopback() {
		t.Errorf("listens on %v", addr)
	}
	if err := newServer(t, strconv.Itoa(addr.Port)).listen(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("a second listener: %v", err)
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); line != fmt.Sprintln(os.Getpid()) {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "s")
	if err := newServer(t, path).listen(); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(os.Getpid())
	var clients []*client
	for range maxConns {
		c := dial(t, path)
		c.expect(t, pid)
		clients = append(clients, c)
	}
	dial(t, path).expectEOF(t)
	clients[100].Close()
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		c := dial(t, path)
		line, _ := c.r.ReadString('\n')
		return line == pid+"\n"
	}) {
		t.Error("no place for another one")
	}
}

func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "crowded")
	pid := strconv.Itoa(p.WaitPid("listening"))
	p.Signal(syscall.SIGUSR1)
	p.Wait("full", "true")
	c := dial(t, filepath.Join(p.Dir, "s"))
	c.SetReadDeadline(time.Now().Add(250 * time.Millisecond)) // for Accept to fail, and be tried again
	if b, err := c.r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %q, %v", b, err)
	}
	c.SetReadDeadline(time.Now().Add(clustertest.Patience))
	p.Signal(syscall.SIGUSR1)
	p.Wait("free")
	c.expect(t, pid)
	p.Signal(syscall.SIGQUIT)
	c.expect(t, "bye")
	c.expectEOF(t)
	p.End(0)
}

// start starts a cluster that has its server at addr.
func start(t *testing.T, addr string) *clustertest.Program {
	p := clustertest.Command(t, "cluster")
	setAddr(t, p, addr)
	return p.Start()
}

func setAddr(t *testing.T, p *clustertest.Program, addr string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.Dir, "addr"), []byte(addr), 0o644); err != nil {
		t.Fatal(err)
	}
}

// awaitMaster waits until a certain master is at path.
func awaitMaster(t *testing.T, path string, pid int) *client {
	t.Helper()
	var c *client
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return false
		}
		c = &client{conn, bufio.NewReader(conn)}
		c.SetDeadline(time.Now().Add(clustertest.Patience))
		line, _ := c.r.ReadString('\n')
		if line == fmt.Sprintln(pid) {
			return true
		}
		c.Close()
		return false
	}) {
		t.Fatalf("master %d isn't at %s", pid, path)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestNewMasterTakesOver(t *testing.T) {
	t.Parallel()
	p := start(t, "./run/s")
	path := filepath.Join(p.Dir, "run/s")
	old := p.WaitPid("listening")
	c := dial(t, path)
	c.expect(t, strconv.Itoa(old))
	busy := filepath.Join(p.Dir, "busy")
	for range 2 {
		if err := os.WriteFile(busy, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		p.Signal(syscall.SIGUSR2)
		next := awaitMaster(t, path, p.WaitPid("listening")) // while the old one drains
		wantMode(t, path, fs.ModeSocket|0o600)
		if err := os.Remove(busy); err != nil {
			t.Fatal(err)
		}
		c.expect(t, "bye")
		c.expectEOF(t)
		c = next
		p.WaitPid("restarted")
	}
	p.Signal(syscall.SIGQUIT)
	c.expect(t, "bye")
	c.expectEOF(t)
	p.End(0, "addr", "run")
	if files, err := os.ReadDir(filepath.Join(p.Dir, "run")); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestFailedRestart(t *testing.T) {
	t.Parallel()
	p := start(t, "./s")
	path := filepath.Join(p.Dir, "s")
	pid := p.WaitPid("listening")
	c := dial(t, path)
	c.expect(t, strconv.Itoa(pid))
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}

	fail := filepath.Join(p.Dir, "fail")
	if err := os.WriteFile(fail, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGUSR2)
	p.Wait("failed")
	os.Remove(fail)

	if err := os.WriteFile(filepath.Join(p.Dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	setAddr(t, p, "./file")
	p.Signal(syscall.SIGUSR2)
	if reason := strings.Join(p.Wait("failed"), " "); !strings.Contains(reason, "file is in the way") {
		t.Errorf("failed because of %s", reason)
	}

	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the socket has changed: %v, %v", after, err)
	}
	dial(t, path).expect(t, strconv.Itoa(pid))
	p.Signal(syscall.SIGQUIT)
	c.expect(t, "bye")
	p.End(0, "addr", "file")
}

func TestNewAddressInUse(t *testing.T) {
	t.Parallel()
	p := start(t, "./s")
	p.WaitPid("listening")
	other := filepath.Join(p.Dir, "other")
	l, err := net.Listen("unix", other)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	setAddr(t, p, "./other")
	p.Signal(syscall.SIGUSR2)
	next := p.WaitPid("listening")
	p.WaitLog("test: listen unix " + other)
	l.Close()
	awaitMaster(t, other, next)
	p.Quit("addr")
}

func TestKilledMaster(t *testing.T) {
	t.Parallel()
	p := start(t, "./s")
	pid := p.WaitPid("listening")
	p.Kill(pid, syscall.SIGKILL)
	p.End(-1, "addr", "s", fmt.Sprintf("cluster.%d.server.sock", pid))

	next := clustertest.Command(t, "cluster")
	setAddr(t, next, filepath.Join(p.Dir, "s"))
	next.Start()
	pid = next.WaitPid("listening")
	dial(t, filepath.Join(p.Dir, "s")).expect(t, strconv.Itoa(pid))

	third := clustertest.Command(t, "cluster")
	setAddr(t, third, filepath.Join(p.Dir, "s"))
	third.Start().WaitLog("test: listen unix " + filepath.Join(p.Dir, "s"))
	third.WaitPid("close")
	third.End(1, "addr")
	next.Quit("addr")
}
