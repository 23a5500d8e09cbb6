//go:build unix && !cluster_nofork

package cluster

import (
	"cmp"
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A queue is a handoff queue: a pair of datagram sockets, of which all
// processes of the cluster have both ends. Draining workers write to one end,
// serving workers read from the other, one connection a datagram: a byte
// that is the version, and what has been read too early.
//
// No master relays anything, and what is in the queue survives the death of
// both sides. The kernel keeps the order, and makes writers wait.
type queue struct {
	mu   mutex
	fds  [2]int // to read from, and to write to; -1 once it is open
	r, w *net.UnixConn
}

const queueVersion = 1

func newQueue() (*queue, error) {
	fds, err := socketpair(syscall.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	syscall.SetNonblock(fds[0], true)
	syscall.SetNonblock(fds[1], true)
	return &queue{fds: fds}, nil
}

// reader and writer return the two ends, open.
func (q *queue) reader() (*net.UnixConn, error) { return q.open(&q.r, 0) }
func (q *queue) writer() (*net.UnixConn, error) { return q.open(&q.w, 1) }

func (q *queue) open(c **net.UnixConn, end int) (*net.UnixConn, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if *c != nil {
		return *c, nil
	}
	if q.fds[end] < 0 {
		return nil, net.ErrClosed
	}
	spare, err := unix.FcntlInt(uintptr(q.fds[end]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err) // connOf would close it all the same
	}
	unix.Close(spare)
	conn, err := connOf(q.fds[end])
	q.fds[end] = -1
	if err != nil {
		return nil, err
	}
	*c = conn.(*net.UnixConn)
	return *c, nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, c := range []*net.UnixConn{q.r, q.w} {
		if c != nil {
			c.Close()
		}
		if q.fds[i] >= 0 {
			unix.Close(q.fds[i])
			q.fds[i] = -1
		}
	}
}

// stop ends receiving in this process, and gives those that send so much
// time.
func (q *queue) stop(timeout time.Duration) {
	w, err := q.writer()
	if err == nil {
		w.SetWriteDeadline(time.Now().Add(timeout))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.r != nil {
		q.r.SetReadDeadline(time.Unix(1, 0))
	}
}

// send puts c into the queue, and waits for room until the writer's deadline.
func (q *queue) send(c net.Conn, unread []byte) error {
	w, err := q.writer()
	if err != nil {
		return err
	}
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	b := append([]byte{queueVersion}, unread...)
	cerr := rc.Control(func(fd uintptr) {
		oob := unix.UnixRights(int(fd))
		for {
			_, _, err = w.WriteMsgUnix(b, oob, nil)
			if !errors.Is(err, unix.ETOOMANYREFS) && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			time.Sleep(5 * time.Millisecond) // too many descriptors on their way, anywhere in the system
		}
	})
	return cmp.Or(cerr, err)
}

// startReceiving starts the goroutine that takes connections from the queue.
func (l *listener) startReceiving(inner deadlineListener) {
	l.socket.mu.Lock()
	q := l.socket.queue
	l.socket.mu.Unlock()
	if q == nil {
		return
	}
	r, err := q.reader()
	if err != nil {
		return
	}
	l.received = make(chan struct{})
	go func() {
		defer close(l.received)
		b := make([]byte, 1+maxUnread)
		for {
			select {
			case <-l.halt:
				if l.over() || !pending(r) {
					return
				}
				r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			default:
			}
			c, unread, err := receive(r, b, l.over)
			switch {
			case c != nil:
				l.hand(l.count(c, unread, true), inner)
			case errors.Is(err, net.ErrClosed):
				return
			case errors.Is(err, syscall.EMFILE):
				time.Sleep(100 * time.Millisecond) // others may take it
			}
		}
	}()
}

// over reports whether connections from the queue are for others now.
func (l *listener) over() bool {
	select {
	case <-l.halt:
		return !time.Now().Before(l.sweep)
	default:
		return false
	}
}

// receive waits for a connection and takes it from the queue. The error is
// EMFILE if this process has no descriptor to spare: one that arrives where
// there is no room is closed by the kernel, so that we don't look then. b is
// for what comes with it. Nothing is taken once over reports true, which r's
// deadline alone would not ensure: one that passes just before something
// arrives is forgotten.
func receive(r *net.UnixConn, b []byte, over func() bool) (c net.Conn, unread []byte, err error) {
	rc, err := r.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn, flags int
	var fds []int
	rerr := rc.Read(func(fd uintptr) bool {
		if over() {
			err = os.ErrDeadlineExceeded
			return true
		}
		if !headroom(int(fd)) {
			err = syscall.EMFILE
			return true
		}
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		n, oobn, flags, _, err = syscall.Recvmsg(int(fd), b, oob, 0)
		if err != nil {
			return err != syscall.EAGAIN && err != syscall.EINTR
		}
		if fds, err = parseRights(oob[:oobn]); err == nil {
			for _, fd := range fds {
				unix.CloseOnExec(fd)
			}
		}
		return true
	})
	if err = cmp.Or(rerr, err); err != nil {
		return nil, nil, err
	}
	if len(fds) != 1 || flags&unix.MSG_CTRUNC != 0 || n < 1 || b[0] != queueVersion {
		closeAll(fds)
		return nil, nil, errMalformed
	}
	if c, err = connOf(fds[0]); err != nil {
		return nil, nil, err
	}
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		if c.RemoteAddr() != nil { // nobody expects a connection without
			return c, slices.Clone(b[1:n]), nil
		}
	}
	c.Close()
	return nil, nil, errMalformed
}

// pending reports whether there is something to read from c.
func pending(c syscall.Conn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	rc.Control(func(fd uintptr) {
		for {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if err != unix.EINTR {
				return
			}
		}
	})
	return n > 0
}

// headroom reports whether this process can open some more descriptors. It
// tries: the limit is for the number of a descriptor, and any may be free.
func headroom(fd int) bool {
	var spare [4]int
	n := 0
	for n < len(spare) {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			break
		}
		spare[n] = dup
		n++
	}
	closeAll(spare[:n])
	return n == len(spare)
}
