//go:build unix && !cluster_nofork

package cluster

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenerWith returns a listener that has the handoff queue q, as another
// process would.
func listenerWith(t *testing.T, q *queue) *listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := new(queue)
	for i, fd := range q.fds {
		if own.fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	s := &socket{network: "tcp", conn: ln, addr: ln.Addr(), fd: -1, queue: own}
	l := s.listener()
	t.Cleanup(func() {
		l.Close()
		if l.received != nil {
			<-l.received
		}
		s.closeQueue()
	})
	return l
}

// drain stops l, and waits until it takes nothing more from the queue.
func drain(t *testing.T, l *listener, sweep time.Duration) {
	t.Helper()
	l.stop(sweep, time.Minute)
	if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the end: %v, %v", c, err)
	}
}

func testQueue(t *testing.T) *queue {
	t.Helper()
	q, err := newQueue()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.close)
	return q
}

// connect returns both ends of a connection that l has accepted.
func connect(t *testing.T, l *listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(20 * time.Second))
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// A connection arrives with what has been read from it, even if that was
// handed over before.
func TestHandoff(t *testing.T) {
	q := testQueue(t)
	first := listenerWith(t, q)
	client, c := connect(t, first)
	if HandedOver(c) {
		t.Error("a new connection has been handed over")
	}
	client.Write([]byte("abcdef"))
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if err := Handoff(c, b); !errors.Is(err, ErrNoSuccessor) {
		t.Errorf("Handoff before the worker drains: %v", err)
	}
	drain(t, first, 0)
	if err := Handoff(c, make([]byte, maxUnread+1)); err == nil {
		t.Error("Handoff takes too many bytes")
	}
	if err := Handoff(client, nil); err == nil {
		t.Error("Handoff takes a connection of somebody else")
	}
	if err := Handoff(c, b); err != nil {
		t.Fatal(err)
	}
	if err := Handoff(c, b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Handoff for the second time: %v", err)
	}

	second := listenerWith(t, q)
	c, err := second.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if !HandedOver(c) {
		t.Error("the connection has not been handed over")
	}
	if got, want := c.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("RemoteAddr %s, want %s", got, want)
	}
	if _, err := io.ReadFull(c, b[:1]); err != nil || b[0] != 'a' {
		t.Errorf("read %q, %v", b[0], err)
	}
	drain(t, second, 0)
	if err := Handoff(c, b[:1]); err != nil {
		t.Fatal(err)
	}

	third := listenerWith(t, q)
	if c, err = third.Accept(); err != nil {
		t.Fatal(err)
	}
	client.(*net.TCPConn).CloseWrite()
	var got strings.Builder
	if _, err := io.Copy(&got, c); err != nil || got.String() != "abcdef" {
		t.Errorf("read %q, %v", &got, err)
	}
	drain(t, third, time.Minute)
	if err := Handoff(c, nil); !errors.Is(err, ErrNoSuccessor) {
		t.Errorf("Handoff at the last stop: %v", err)
	}
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Errorf("after a Handoff that failed: %v", err)
	}
}

// The largest number of bytes arrives.
func TestHandoffManyBytes(t *testing.T) {
	q := testQueue(t)
	from, to := listenerWith(t, q), listenerWith(t, q)
	client, c := connect(t, from)
	drain(t, from, 0)
	want := bytes.Repeat([]byte("0123456789abcdef"), maxUnread/16)
	if err := Handoff(c, want); err != nil {
		t.Fatal(err)
	}
	c, err := to.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, %v; want %d", len(got), err, len(want))
	}
}

// Whatever is in the queue, what comes after it arrives.
func TestOddConnections(t *testing.T) {
	q := testQueue(t)
	from, to := listenerWith(t, q), listenerWith(t, q)
	_, good := connect(t, from)
	goneClient, gone := connect(t, from)
	drain(t, from, 0)

	w, err := from.socket.queue.writer()
	if err != nil {
		t.Fatal(err)
	}
	put := func(b string, files ...syscall.Conn) {
		t.Helper()
		var fds []int
		for _, f := range files {
			fd, err := dupOf(f)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			fds = append(fds, fd)
		}
		var oob []byte
		if fds != nil {
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := w.WriteMsgUnix([]byte(b), oob, nil); err != nil {
			t.Fatal(err)
		}
	}
	conn := good.(syscall.Conn)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	put("\x01")
	put("\x01no descriptor")
	put("", conn)
	put("\x00", conn)
	put("\x02another version", conn)
	put("\x01", conn, conn)
	put("\x01", conn, conn, conn, conn, conn, conn, conn, conn)
	put("\x01", file)
	put("\x01", udp.(syscall.Conn))
	put("\x01", to.socket.conn.(syscall.Conn))
	goneClient.(*net.TCPConn).SetLinger(0)
	goneClient.Close() // resets it: there is no RemoteAddr any more
	gone.Read(make([]byte, 1))
	put("\x01", gone.(syscall.Conn))

	if err := Handoff(good, []byte("good")); err != nil {
		t.Fatal(err)
	}
	c, err := to.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if n, err := c.Read(b); string(b[:n]) != "good" {
		t.Errorf("read %q, %v", b[:n], err)
	}
}

// A queue that can't be opened for lack of descriptors can be later.
func TestQueueOutOfDescriptors(t *testing.T) {
	q := testQueue(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	next, err := unix.FcntlInt(uintptr(q.fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	for room, want := range []error{syscall.EMFILE, nil} { // one is enough
		few := old
		setTo(&few.Cur, next+room)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
			t.Fatal(err)
		}
		_, err = q.reader()
		unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
		if !errors.Is(err, want) {
			t.Errorf("room for %d: the error is %v", room, err)
		}
		for range 3 {
			runtime.GC() // closes files that nobody refers to
		}
		time.Sleep(10 * time.Millisecond)
	}
	if r, err := q.reader(); err != nil || r == nil {
		t.Errorf("later: %v", err)
	} else if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Error(err)
	}
}

// A worker that drains already, and hears that the cluster closes, hands over
// nothing more: nobody would take it.
func TestHandoffKnowsWhenTheClusterCloses(t *testing.T) {
	cleanUp(t)
	l := listenerWith(t, testQueue(t))
	_, c := connect(t, l)
	sv := new(Master).newService([]pair{{l: l, ours: l}})
	drain(t, l, 0)
	sv.order(drainOrder{})
	sv.order(drainOrder{Last: true})
	if err := Handoff(c, nil); !errors.Is(err, ErrNoSuccessor) {
		t.Errorf("Handoff: %v, want ErrNoSuccessor", err)
	}
}
