//go:build unix && !cluster_nofork

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mustDial(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// hear checks that what is said at one end is heard at the other.
func hear(t *testing.T, said, heard net.Conn) {
	t.Helper()
	b := make([]byte, 5)
	if _, err := said.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(heard, b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestListen(t *testing.T) {
	for _, tt := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"},
		{"tcp4", "127.0.0.1:0"},
		{"tcp6", "[::1]:0"},
		{"unix", filepath.Join(t.TempDir(), "a.sock")},
		{"unix", fmt.Sprintf("@cluster-test-%d", os.Getpid())},
	} {
		t.Run(tt.network+" "+tt.address, func(t *testing.T) {
			if tt.address[0] == '@' && runtime.GOOS != "linux" {
				t.Skip("no abstract sockets here")
			}
			if l, err := net.Listen(tt.network, tt.address); err != nil {
				t.Skip(err)
			} else {
				l.Close()
			}
			cleanUp(t)
			l := mustListen(t, tt.network, tt.address)
			if got := l.Addr().Network(); got != strings.TrimRight(tt.network, "46") {
				t.Errorf("the network is %q", got)
			}
			for range 2 { // before and after it has been parked
				client := mustDial(t, l.Addr())
				server, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				hear(t, client, server)
				hear(t, server, client)
				server.Close()
				if _, err := l.socket.park(); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after Close: %v", err)
			}
		})
	}
}

func TestListenPacket(t *testing.T) {
	for _, tt := range []struct{ network, address string }{
		{"udp", "127.0.0.1:0"},
		{"udp4", "127.0.0.1:0"},
		{"udp6", "[::1]:0"},
		{"unixgram", filepath.Join(t.TempDir(), "a.sock")},
	} {
		t.Run(tt.network, func(t *testing.T) {
			if tt.network == "udp6" {
				if c, err := net.ListenPacket(tt.network, tt.address); err != nil {
					t.Skip(err)
				} else {
					c.Close()
				}
			}
			cleanUp(t)
			c, err := ListenPacket(tt.network, tt.address)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // before and after it has been parked
				client := mustDial(t, c.LocalAddr())
				if _, err := client.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 10)
				if n, _, err := c.ReadFrom(b); err != nil || string(b[:n]) != "hello" {
					t.Errorf("read %q, %v", b[:n], err)
				}
				s := shared.sockets()[0]
				if _, err := s.park(); err != nil {
					t.Fatal(err)
				}
				conn, err := s.open()
				if err != nil {
					t.Fatal(err)
				}
				c = conn.(net.PacketConn)
			}
		})
	}
}

func TestListenRefusesOtherNetworks(t *testing.T) {
	for _, network := range []string{"", "udp", "unixgram", "unixpacket", "tcp5", "ip"} {
		if _, err := Listen(network, "127.0.0.1:0"); err == nil {
			t.Errorf("Listen on %q is no error", network)
		}
	}
	for _, network := range []string{"", "tcp", "unix", "unixpacket", "ip"} {
		if _, err := ListenPacket(network, "127.0.0.1:0"); err == nil {
			t.Errorf("ListenPacket on %q is no error", network)
		}
	}
}

func TestListenOnAnAddressInUseIsAnError(t *testing.T) {
	cleanUp(t)
	tcp := mustListen(t, "tcp", "127.0.0.1:0").Addr().String()
	udp, err := ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("tcp", tcp); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v, want EADDRINUSE", err)
	}
	if _, err := ListenPacket("udp", udp.LocalAddr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v, want EADDRINUSE", err)
	}
}

func TestListenWaitsForAnAddressThatIsAboutToBeFree(t *testing.T) {
	cleanUp(t)
	bindPatience = 20 * time.Second
	unix := filepath.Join(t.TempDir(), "s")
	for _, test := range []struct{ network, address string }{{"tcp", "127.0.0.1:0"}, {"unix", unix}} {
		l, err := net.Listen(test.network, test.address)
		if err != nil {
			t.Fatal(err)
		}
		if l, ok := l.(*net.UnixListener); ok {
			l.SetUnlinkOnClose(false)
		}
		time.AfterFunc(100*time.Millisecond, func() { l.Close() })
		if _, err := Listen(test.network, l.Addr().String()); err != nil {
			t.Error(err)
		}
	}
}

func TestEqualCallsGiveDifferentSocketsInTheSameOrder(t *testing.T) {
	cleanUp(t)
	a, b := mustListen(t, "tcp", "127.0.0.1:0"), mustListen(t, "tcp", "127.0.0.1:0")
	if a == b || a.Addr().String() == b.Addr().String() {
		t.Fatal("they are the same")
	}

	// So they are in a process that inherits them.
	var set socketSet
	var list []socketSetting
	var fds []int
	for _, s := range shared.sockets() {
		fd, err := s.park()
		if err != nil {
			t.Fatal(err)
		}
		if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		list, fds = append(list, socketSetting{s.network, s.address, false, 0, s.inode.path}), append(fds, fd)
	}
	if err := set.inherit(&settings{Sockets: list}, fds); err != nil {
		t.Fatal(err)
	}
	defer set.close(false)
	bind := func() (any, error) { return nil, errors.New("bound") }
	for _, want := range []*listener{a, b} {
		s, err := set.get("tcp", "127.0.0.1:0", bind)
		if err != nil || s.addr.String() != want.Addr().String() {
			t.Errorf("got %v, %v, want %v", s, err, want.Addr())
		}
	}
	if s, err := set.get("tcp", "127.0.0.1:0", bind); err == nil {
		t.Errorf("the third is %v", s)
	}
	if s, err := set.get("tcp4", "127.0.0.1:0", bind); err == nil {
		t.Errorf("another network's is %v", s)
	}
}

func TestSocketsThatWereNotAnnouncedAreClosed(t *testing.T) {
	fds := files(t, 2)
	leaksNothing(t, func() {
		var dups []int
		for _, fd := range fds {
			dup, _ := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			dups = append(dups, dup)
		}
		var set socketSet
		if err := set.inherit(&settings{Sockets: []socketSetting{{"tcp", ":80", false, 0, ""}}}, dups[:2]); err == nil {
			t.Error("a surplus is no error")
		}
		dup, _ := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
		if err := set.inherit(&settings{Sockets: []socketSetting{{"tcp", ":80", false, 0, ""}}}, []int{dup}); err == nil {
			t.Error("a file is taken for a socket")
		}
	})
}

func TestUnclaimedListenersAreServedByDefault(t *testing.T) {
	cleanUp(t)
	mustListen(t, "tcp", "127.0.0.1:0")
	if left := shared.unclaimed(); len(left) != 0 {
		t.Errorf("%d listeners are left, but all are claimed", len(left))
	}
	for _, s := range shared.sockets() {
		s.claimed = false
	}
	if left := shared.unclaimed(); len(left) != 1 {
		t.Errorf("%d listeners are left, want 1", len(left))
	}
	if left := shared.unclaimed(); len(left) != 0 {
		t.Error("they can be claimed twice")
	}
}

func TestUnixSocketFiles(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		listen := func(path string) error {
			if network == "unix" {
				_, err := Listen(network, path)
				return err
			}
			_, err := ListenPacket(network, path)
			return err
		}
		t.Run(network+" stale", func(t *testing.T) {
			cleanUp(t)
			path := filepath.Join(t.TempDir(), "s")
			fd, err := unix.Socket(unix.AF_UNIX, map[string]int{"unix": unix.SOCK_STREAM, "unixgram": unix.SOCK_DGRAM}[network], 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			if err := listen(path); err != nil {
				t.Errorf("it is not replaced: %v", err)
			}
			c, err := net.Dial(network, path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
		t.Run(network+" live", func(t *testing.T) {
			cleanUp(t)
			path := filepath.Join(t.TempDir(), "s")
			if err := listen(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			if err := listen(path); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("error %v, want EADDRINUSE", err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("the live socket has been touched: %v", err)
			}
		})
		t.Run(network+" regular file", func(t *testing.T) {
			cleanUp(t)
			path := filepath.Join(t.TempDir(), "s")
			if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := listen(path); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("error %v, want EADDRINUSE", err)
			}
			if b, err := os.ReadFile(path); string(b) != "precious" {
				t.Errorf("the file has become %q, %v", b, err)
			}
		})
		t.Run(network+" is removed at the end", func(t *testing.T) {
			cleanUp(t)
			path := filepath.Join(t.TempDir(), "s")
			for _, remove := range []bool{true, false} {
				if err := listen(path); err != nil {
					t.Fatal(err)
				}
				shared.sockets()[0].park()
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("parking has removed it: %v", err)
				}
				shared.close(remove)
				if _, err := os.Lstat(path); os.IsNotExist(err) != remove {
					t.Errorf("removed=%v: %v", remove, err)
				}
			}
		})
		t.Run(network+" of somebody else is not removed", func(t *testing.T) {
			cleanUp(t)
			path := filepath.Join(t.TempDir(), "s")
			if err := listen(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path, path+".old"); err != nil {
				t.Fatal(err)
			}
			other, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			shared.close(true)
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("the other's socket is gone: %v", err)
			}
		})
	}
}

func flagsOf(t *testing.T, fd int) int {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags
}

// O_NONBLOCK is common to all processes that have the socket. It must not be
// cleared even for a moment: a sibling would block in accept(2).
func TestSocketStaysNonblocking(t *testing.T) {
	cleanUp(t)
	mustListen(t, "tcp", "127.0.0.1:0")
	mustListen(t, "unix", filepath.Join(t.TempDir(), "s"))
	if _, err := ListenPacket("udp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	for _, s := range shared.sockets() {
		fd, err := s.park()
		if err != nil {
			t.Fatal(err)
		}
		sibling, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(sibling)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if flags, err := unix.FcntlInt(uintptr(sibling), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
					t.Errorf("%v: flags %#x, %v", s, flags, err)
					return
				}
			}
		}()
		for range 200 {
			if _, err := s.open(); err != nil {
				t.Fatal(err)
			}
			if fd, err = s.park(); err != nil {
				t.Fatal(err)
			}
			if flagsOf(t, fd)&unix.O_NONBLOCK == 0 {
				t.Fatalf("%v: O_NONBLOCK has been cleared", s)
			}
			if _, err := addrOf(fd, isPacket(s.network)); err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(mustDup(t, fd)), "socket")
			_, release, err := rawFiles(f)
			if err != nil {
				t.Fatal(err)
			}
			release()
			f.Close()
		}
		close(stop)
		<-done
	}
}

func mustDup(t *testing.T, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return dup
}

func TestParkingLeaksNothing(t *testing.T) {
	cleanUp(t)
	l := mustListen(t, "tcp", "127.0.0.1:0")
	leaksNothing(t, func() {
		for range 100 {
			if _, err := l.socket.park(); err != nil {
				t.Fatal(err)
			}
			if _, err := l.socket.open(); err != nil {
				t.Fatal(err)
			}
		}
	})
	shared.close(true)
	if _, err := l.socket.park(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("park after close: %v", err)
	}
	if _, err := l.socket.open(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("open after close: %v", err)
	}
}

// A stray is a listener of another package.
type stray struct{ net.Listener }

func (stray) Addr() net.Addr { return &net.TCPAddr{} }

func TestListenerIsFoundInsideItsWrappers(t *testing.T) {
	cleanUp(t)
	ours := mustListen(t, "tcp", "127.0.0.1:0")
	mustListen(t, "tcp", "127.0.0.1:0")
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]net.Listener{
		"itself":  ours,
		"TLS":     tls.NewListener(ours, &tls.Config{}),
		"TLS x 2": tls.NewListener(tls.NewListener(ours, &tls.Config{}), &tls.Config{}),
		"struct":  struct{ net.Listener }{ours},
	} {
		if got, err := shared.find(l); got != ours {
			t.Errorf("%s: found %v, %v", name, got, err)
		}
	}
	for range 2 { // the first time it joins the set
		for _, l := range []net.Listener{plain, tls.NewListener(plain, &tls.Config{})} {
			got, err := shared.find(l)
			if err != nil || got.Addr() != plain.Addr() || len(shared.sockets()) != 3 {
				t.Errorf("a plain listener: found %v, %v among %d", got, err, len(shared.sockets()))
			}
		}
	}
	if got, err := shared.find(stray{ours}); err == nil {
		t.Errorf("a stray is found: %v", got)
	}
}

func TestAcceptWaitsForItsGate(t *testing.T) {
	cleanUp(t)
	l := mustListen(t, "tcp", "127.0.0.1:0")
	gate := make(chan struct{})
	l.gate = gate
	mustDial(t, l.Addr())
	accepted := make(chan error)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	<-l.first
	select {
	case err := <-accepted:
		t.Errorf("accepted before the gate was open: %v", err)
	default:
	}
	close(gate)
	if err := <-accepted; err != nil {
		t.Error(err)
	}
}

func TestAcceptIsEnded(t *testing.T) {
	for name, end := range map[string]func(*listener){
		"by stop":  func(l *listener) { l.stop(0, time.Minute) },
		"by sweep": func(l *listener) { l.stop(time.Minute, time.Minute) },
		"by Close": func(l *listener) { l.Close() },
	} {
		for _, state := range []string{"waiting", "at its gate", "parked"} {
			t.Run(name+" "+state, func(t *testing.T) {
				cleanUp(t)
				l := mustListen(t, "tcp", "127.0.0.1:0")
				switch state {
				case "at its gate":
					l.gate = make(chan struct{})
				case "parked":
					l.socket.park()
				}
				ended := make(chan error)
				if state != "parked" {
					go func() {
						_, err := l.Accept()
						ended <- err
					}()
					<-l.first
				}
				end(l)
				if state == "parked" {
					go func() {
						_, err := l.Accept()
						ended <- err
					}()
				}
				if err := <-ended; !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				<-l.stopped
				end(l) // once more does no harm
			})
		}
	}
}

// queueOf connects n clients to l, and waits until all are in its queue.
func queueOf(t *testing.T, l *listener, n int) (clients []net.Conn) {
	t.Helper()
	for i := range n {
		c := mustDial(t, l.Addr())
		if _, err := fmt.Fprintf(c, "%05d", i); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	return clients
}

func TestStopWithSweepTakesWhatIsQueued(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		for _, quiet := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s quiet=%v", network, quiet), func(t *testing.T) {
				cleanUp(t)
				l := mustListen(t, network, address)
				clients := queueOf(t, l, 20)
				if quiet {
					l.socket.quiesce()
				}
				l.stop(time.Minute, time.Minute)
				n := 0
				for {
					c, err := l.Accept()
					if err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Error(err)
						}
						break
					}
					n++
					b := make([]byte, 5)
					if _, err := io.ReadFull(c, b); err != nil {
						t.Error(err)
					}
					c.Write(b)
					c.Close()
				}
				if n != len(clients) {
					t.Errorf("took %d connections, want %d", n, len(clients))
				}
				for i, c := range clients {
					b, err := io.ReadAll(c)
					if err != nil || string(b) != fmt.Sprintf("%05d", i) {
						t.Errorf("client %d got %q, %v", i, b, err)
					}
				}
				if c, err := net.DialTimeout(l.Addr().Network(), l.Addr().String(), time.Minute); err == nil {
					c.Close()
					t.Error("somebody still listens")
				}
			})
		}
	}
}

func TestStopWithoutSweepLeavesTheQueueToOthers(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			cleanUp(t)
			l := mustListen(t, network, address)
			var fd int
			l.socket.control(func(old int) { fd = mustDup(t, old) })
			defer unix.Close(fd)
			clients := queueOf(t, l, 3)
			l.stop(0, time.Minute)
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
			other, err := unpark(fd, false)
			if err != nil {
				t.Fatal(err)
			}
			defer other.(net.Listener).Close()
			for range clients {
				c, err := other.(net.Listener).Accept()
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

// A socket that this process was given takes connections after it, and its
// file stays.
func TestGivenSocketOutlivesTheCluster(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			cleanUp(t)
			theirs, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			theirs.(deadlineListener).SetDeadline(time.Now().Add(10 * time.Second))
			f, err := theirs.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			given, err := FileListener(f)
			if err != nil {
				t.Fatal(err)
			}
			l := given.(*listener)
			if found, err := shared.find(given); err != nil || found != l || l.Addr().String() != theirs.Addr().String() {
				t.Errorf("%v is %v in the set, %v", l.Addr(), found, err)
			}
			queued := mustDial(t, l.Addr())
			l.socket.quiesce()
			l.stop(time.Minute, time.Minute)
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
			shared.close(true)
			if c, err := theirs.Accept(); err != nil {
				t.Errorf("queued: %v", err)
			} else {
				c.Close()
			}
			queued.Close()
			done := make(chan error)
			go func() {
				c, err := theirs.Accept()
				if err == nil {
					c.Close()
				}
				done <- err
			}()
			c, err := net.DialTimeout(network, theirs.Addr().String(), 10*time.Second)
			if err != nil {
				t.Error(err)
			} else {
				c.Close()
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGivenSocketMustBeOfItsKind(t *testing.T) {
	cleanUp(t)
	dir := t.TempDir()
	file := func(conn any, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.(io.Closer).Close()
		f, err := conn.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	udp := file(net.ListenPacket("udp", "127.0.0.1:0"))
	unixgram := file(net.ListenPacket("unixgram", filepath.Join(dir, "gram")))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp := file(net.Dial("tcp", l.Addr().String()))
	plain, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for _, f := range []*os.File{udp, unixgram, tcp, plain, file(net.Listen("unixpacket", filepath.Join(dir, "packet")))} {
		if l, err := FileListener(f); err == nil {
			t.Errorf("%v is a listener", l.Addr())
		}
	}
	for _, f := range []*os.File{tcp, plain} {
		if c, err := FilePacketConn(f); err == nil {
			t.Errorf("%v is a packet connection", c.LocalAddr())
		}
	}
	for _, f := range []*os.File{udp, unixgram} {
		if _, err := FilePacketConn(f); err != nil {
			t.Error(err)
		}
	}
}

// A neighbour has shut the socket down before the order to drain has come:
// Accept waits for it, and then takes its share.
func TestAcceptOfAQuietUnixSocketWaitsForTheOrder(t *testing.T) {
	cleanUp(t)
	l := mustListen(t, "unix", filepath.Join(t.TempDir(), "s"))
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	<-l.first
	l.socket.quiesce()
	select {
	case err := <-ended:
		t.Errorf("Accept has returned: %v", err)
	default:
	}
	l.stop(time.Minute, time.Minute)
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	cleanUp(t)
	open, total := shared.conns.open.Load(), shared.conns.total.Load()
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		l := mustListen(t, network, address)
		mustDial(t, l.Addr())
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if n := shared.conns.open.Load() - open; n != 1 {
			t.Errorf("%d are open, want 1", n)
		}
		c.Close()
		c.Close() // counts once
		if n := shared.conns.open.Load() - open; n != 0 {
			t.Errorf("%d are open, want 0", n)
		}
	}
	if n := shared.conns.total.Load() - total; n != 2 {
		t.Errorf("%d were accepted, want 2", n)
	}
}

func TestCounterTellsWhenItIsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c counter
		never := make(chan struct{})
		c.empty(never, func(int) { t.Error("a report of nothing") })
		for range 3 {
			c.add()
		}
		var reports []int
		var wg sync.WaitGroup
		wg.Go(func() { c.empty(never, func(n int) { reports = append(reports, n) }) })
		wg.Go(func() { c.empty(never, func(int) {}) })
		for range 3 {
			time.Sleep(1400 * time.Millisecond)
			c.done()
		}
		wg.Wait()
		if got := fmt.Sprint(reports); got != "[3 3 2 1 1]" {
			t.Errorf("reports: %s", got)
		}
		if c.total.Load() != 3 || c.open.Load() != 0 {
			t.Errorf("%d of %d are open", c.open.Load(), c.total.Load())
		}

		c.add()
		stop := make(chan struct{})
		time.AfterFunc(time.Millisecond, func() { close(stop) })
		began := time.Now()
		c.empty(stop, func(int) {})
		if d := time.Since(began); d != time.Millisecond {
			t.Errorf("empty took %v to stop", d)
		}
	})
}

func TestConnectionsKeepTheFastPaths(t *testing.T) {
	var tcp, uds net.Conn = &tcpConn{}, &unixConn{}
	for name, ok := range map[string]bool{
		"tcp io.ReaderFrom": is[io.ReaderFrom](tcp),
		"tcp io.WriterTo":   is[io.WriterTo](tcp),
		"tcp syscall.Conn":  is[syscall.Conn](tcp),
		"tcp CloseWrite":    is[interface{ CloseWrite() error }](tcp),
		"tcp SetNoDelay":    is[interface{ SetNoDelay(bool) error }](tcp),
		"unix syscall.Conn": is[syscall.Conn](uds),
		"unix CloseWrite":   is[interface{ CloseWrite() error }](uds),
		"unix ReadMsgUnix": is[interface {
			ReadMsgUnix(_, _ []byte) (int, int, int, *net.UnixAddr, error)
		}](uds),
		"unix net.PacketConn":  is[net.PacketConn](uds),
		"tcp size at most 64":  unsafe.Sizeof(tcpConn{}) <= 64,
		"unix size at most 64": unsafe.Sizeof(unixConn{}) <= 64,
	} {
		if !ok {
			t.Errorf("not so: %s", name)
		}
	}
}

func is[T any](v any) bool { _, ok := v.(T); return ok }

// io.Copy from a connection begins with what the client has sent: an empty
// Write would be a message to some.
func TestWriteToBeginsWithData(t *testing.T) {
	cleanUp(t)
	client, server := connect(t, mustListen(t, "tcp", "127.0.0.1:0"))
	io.WriteString(client, "data")
	client.Close()
	r, w := net.Pipe() // where a Write of nothing waits to be read
	go func() {
		io.Copy(w, server)
		w.Close()
	}()
	b := make([]byte, 10)
	if n, err := r.Read(b); n != 4 || err != nil {
		t.Errorf("the first Write: %q, %v", b[:n], err)
	}
	io.Copy(io.Discard, r)
}

// sendfile(2) and splice(2) need no buffer of io.Copy's 32 KiB.
func TestCopyToAConnectionNeedsNoBuffer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not everywhere")
	}
	cleanUp(t)
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	l := mustListen(t, "tcp", "127.0.0.1:0")
	pair := func() (client, server net.Conn) {
		client = mustDial(t, l.Addr())
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		return client, server
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	client, server := pair()
	source, relay := pair()
	buf := make([]byte, size)
	copied := func(src io.Reader) uint64 {
		done := make(chan error)
		go func() {
			_, err := io.ReadFull(client, buf)
			done <- err
		}()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := io.Copy(server, src)
		runtime.ReadMemStats(&after)
		if n != size || err != nil {
			t.Errorf("copied %d bytes, %v", n, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	const buffer = 32 << 10
	if n := copied(f); n >= buffer {
		t.Errorf("copying a file allocates %d bytes", n)
	}
	data := make([]byte, size)
	go func() {
		source.Write(data)
		source.(*net.TCPConn).CloseWrite()
	}()
	if n := copied(relay); n >= buffer {
		t.Errorf("copying from a connection allocates %d bytes", n)
	}
}

func TestAcceptAllocatesLittle(t *testing.T) {
	cleanUp(t)
	l := mustListen(t, "tcp", "127.0.0.1:0")
	mustDial(t, l.Addr())
	inner, err := l.socket.open()
	if err != nil {
		t.Fatal(err)
	}
	c, err := inner.(net.Listener).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var sink net.Conn
	if n := testing.AllocsPerRun(100, func() { sink = l.count(c, nil, false) }); n > 1 {
		t.Errorf("%v allocations beside those of net", n)
	}
	sink.(*tcpConn).done()
	shared.conns.open.Add(-100)
}

func BenchmarkAccept(b *testing.B) {
	run := func(b *testing.B, l net.Listener) {
		b.ReportAllocs()
		for b.Loop() {
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			c, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			client.(*net.TCPConn).SetLinger(0) // no TIME-WAIT
			client.Close()
			c.Close()
		}
	}
	b.Run("net", func(b *testing.B) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		run(b, l)
	})
	b.Run("cluster", func(b *testing.B) {
		cleanUp(b)
		run(b, mustListen(b, "tcp", "127.0.0.1:0"))
	})
}

// serveTCP serves s on a listener of ours, and returns where Serve's error
// will be.
func serveTCP(t *testing.T, s *TCPServer) (*listener, <-chan error) {
	t.Helper()
	cleanUp(t)
	l := mustListen(t, "tcp", "127.0.0.1:0")
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	<-l.first
	return l, served
}

func TestTCPServerServesConnections(t *testing.T) {
	s := &TCPServer{Handler: func(_ context.Context, c net.Conn) { io.Copy(c, c) }}
	l, served := serveTCP(t, s)
	for range 3 {
		c := mustDial(t, l.Addr())
		if _, err := c.Write([]byte("echo")); err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, []byte("echo")) {
			t.Errorf("got %q, %v", b, err)
		}
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("the second Shutdown: %v", err)
	}
}

func TestTCPServerShutdownWaitsForHandlers(t *testing.T) {
	handling, told, finish := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := &TCPServer{Handler: func(ctx context.Context, c net.Conn) {
		close(handling)
		<-ctx.Done()
		close(told)
		<-finish
		c.Write([]byte("bye"))
	}}
	l, served := serveTCP(t, s)
	c := mustDial(t, l.Addr())
	<-handling
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); err != context.Canceled {
		t.Errorf("Shutdown without time: %v", err)
	}
	<-told
	<-served
	shut := make(chan error)
	for range 2 {
		go func() { shut <- s.Shutdown(context.Background()) }()
	}
	select {
	case err := <-shut:
		t.Errorf("Shutdown has not waited: %v", err)
	default:
	}
	close(finish)
	for range 2 {
		if err := <-shut; err != nil {
			t.Error(err)
		}
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestTCPServerCloseClosesConnections(t *testing.T) {
	handling, ended := make(chan struct{}), make(chan error)
	s := &TCPServer{Handler: func(_ context.Context, c net.Conn) {
		close(handling)
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}}
	l, served := serveTCP(t, s)
	mustDial(t, l.Addr())
	<-handling
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the handler's Read: %v", err)
	}
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
}

func TestTCPServerMayServeSeveralListeners(t *testing.T) {
	s := &TCPServer{Handler: func(_ context.Context, c net.Conn) { io.WriteString(c, "hello") }}
	l, served := serveTCP(t, s)
	other := mustListen(t, "unix", filepath.Join(t.TempDir(), "s"))
	go func() { s.Serve(other) }()
	for _, l := range []*listener{l, other} {
		if b, err := io.ReadAll(mustDial(t, l.Addr())); err != nil || string(b) != "hello" {
			t.Errorf("%v: got %q, %v", l.Addr(), b, err)
		}
	}
	s.Shutdown(context.Background())
	<-served
	<-other.stopped
}

func TestTCPServerNeedsAHandler(t *testing.T) {
	cleanUp(t)
	if err := (&TCPServer{}).Serve(mustListen(t, "tcp", "127.0.0.1:0")); err == nil {
		t.Error("no error")
	}
	if err := (&TCPServer{}).Close(); err != nil {
		t.Error(err)
	}
	if err := (&TCPServer{}).Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// A flaky listener lacks something, for a while.
type flaky struct {
	deadlineListener
	err      error
	failures int
}

func (l *flaky) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", l.err)}
	}
	return l.deadlineListener.Accept()
}

// A server goes on with what it has, and accepts again later.
func TestServersSurviveAShortage(t *testing.T) {
	var text strings.Builder
	log.SetOutput(&text)
	defer log.SetOutput(os.Stderr)
	for _, err := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS} {
		for _, s := range []Server{
			&TCPServer{Handler: func(_ context.Context, c net.Conn) { io.WriteString(c, "hello") }},
			&http.Server{},
		} {
			cleanUp(t)
			text.Reset()
			l := mustListen(t, "tcp", "127.0.0.1:0")
			inner, e := l.socket.open()
			if e != nil {
				t.Fatal(e)
			}
			l.socket.conn = &flaky{inner.(deadlineListener), err, 3}
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()
			c := mustDial(t, l.Addr())
			io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
			if b, err := io.ReadAll(c); len(b) == 0 { // what TCPServer doesn't read may reset it
				t.Errorf("%T: no answer: %v", s, err)
			}
			s.Close()
			<-served
			said := 1
			if _, ok := s.(*http.Server); ok {
				said = 3 // it always does
			}
			if n := strings.Count(text.String(), err.Error()); n != said {
				t.Errorf("%T: %v was said %d times: %s", s, err, n, text.String())
			}
		}
	}
}

// What Accept returns of it when a draining worker takes what is queued.
func TestShortageIsTemporary(t *testing.T) {
	if err := (&listener{socket: new(socket)}).error(shortage{syscall.ENOMEM}); !errors.Is(err, syscall.ENOMEM) || !err.(interface{ Temporary() bool }).Temporary() {
		t.Errorf("%v is for good", err)
	}
}
