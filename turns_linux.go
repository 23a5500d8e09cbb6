//go:build !cluster_nofork

package cluster

import (
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// turns has this process wait for connections in turn with the others that
// have the same listening socket. Go's poller has the kernel wake all of them
// for every connection, of which one finds it and the rest have worked for
// nothing. Of those that wait with EPOLLEXCLUSIVE the kernel wakes one, the
// one that has waited longest.
//
// Package net can't ask for that. So the poller's own registration of the
// socket, which the kernel tells in /proc, is withdrawn, and made again with
// that flag while somebody is in Accept. Whoever is not must not be woken: the
// connection would wait for it, while others have time. Where any of this
// can't be had, turns is nil, and all are woken as ever.
//
// One that is woken and dies before it accepts, say, leaves its connection to
// whoever registers next: its successor, or somebody who accepts another one,
// or gives a sign of life, and does so anew for that.
type turns struct {
	conn        syscall.RawConn // of the socket
	join, leave func(fd uintptr)
	unclaimed   atomic.Int32 // how many connections may still be taken after the last turn

	mu      mutex // guards the following
	waiting int   // how many are in Accept
	err     error // of join
}

// turnsFor returns the turns for a listening socket in Go's poller.
func turnsFor(l syscall.Conn) *turns {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil
	}
	t := &turns{conn: rc}
	ok := false
	rc.Control(func(fd uintptr) {
		poller, events, data := registration(int(fd))
		if events != runtimeEvents {
			return
		}
		if unix.EpollCtl(poller, unix.EPOLL_CTL_DEL, int(fd), nil) != nil {
			return // it is that of another file, which has had the same number
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET | unix.EPOLLEXCLUSIVE}
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], data)
		event.Fd = int32(binary.NativeEndian.Uint32(b[:4]))
		event.Pad = int32(binary.NativeEndian.Uint32(b[4:]))
		t.join = func(fd uintptr) { t.err = unix.EpollCtl(poller, unix.EPOLL_CTL_ADD, int(fd), &event) }
		t.leave = func(fd uintptr) { unix.EpollCtl(poller, unix.EPOLL_CTL_DEL, int(fd), nil) }
		if t.join(fd); t.err == nil {
			ok = true
			t.leave(fd)
			return
		}
		event.Events = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET // as the runtime has it
		t.join(fd)
	})
	if !ok {
		return nil
	}
	t.unclaimed.Store(16)
	return t
}

// runtimeEvents are those that the runtime registers a socket with: EPOLLIN,
// EPOLLOUT, EPOLLRDHUP and EPOLLET, to which the kernel adds EPOLLERR and
// EPOLLHUP. A runtime that does otherwise is left alone.
const runtimeEvents = "8000201d"

// registration returns the epoll descriptor that fd is registered with, or -1,
// the events, and what it is told with them. The runtime's poller is there
// before main, so that it has a small number.
func registration(fd int) (poller int, events string, data uint64) {
	for poller := 3; poller < 100; poller++ {
		name := strconv.Itoa(poller)
		if kind, _ := os.Readlink("/proc/self/fd/" + name); kind != "anon_inode:[eventpoll]" {
			continue
		}
		info, _ := os.ReadFile("/proc/self/fdinfo/" + name)
		for _, line := range strings.Split(string(info), "\n") {
			// tfd: 5 events: 8000201d data: 7f8a8c3d5b080001 ...
			if f := strings.Fields(line); len(f) > 5 && f[1] == strconv.Itoa(fd) && f[4] == "data:" {
				data, _ = strconv.ParseUint(f[5], 16, 64)
				return poller, f[3], data
			}
		}
	}
	return -1, "", 0
}

// wait is called with 1 before somebody waits in Accept, with -1 after that,
// and with 0 now and then, to look for what this process may not have been
// woken for.
func (t *turns) wait(n int) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting > 0 {
		t.conn.Control(t.leave)
	}
	t.err = nil
	if t.waiting += n; t.waiting > 0 {
		t.conn.Control(t.join)
	}
	if t.err != nil && n > 0 {
		t.waiting--
	}
	return os.NewSyscallError("epoll_ctl", t.err)
}

// last reports whether a process that accepts no more should look for one
// connection more: it may have been woken for one, and nobody else.
func (t *turns) last() bool { return t != nil && t.unclaimed.Add(-1) >= 0 }
