//go:build unix && !cluster_nofork

package cluster

import (
	"cmp"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// park returns a bare descriptor for conn's socket, and closes conn.
func park(conn any) (int, error) {
	fd, err := dupOf(conn.(syscall.Conn))
	if err != nil {
		return -1, err
	}
	conn.(interface{ Close() error }).Close()
	return fd, nil
}

// unpark returns the net.Listener or net.PacketConn for fd, which it leaves
// open. O_NONBLOCK, which all processes share, is never touched on the way:
// os.NewFile leaves a descriptor as it finds it, and so does its Fd.
func unpark(fd int, packet bool) (any, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(dup), "socket")
	defer f.Close()
	if packet {
		return net.FilePacketConn(f)
	}
	return net.FileListener(f)
}

// fileConn returns the net.Listener or net.PacketConn for the socket that f is.
func fileConn(f *os.File, packet bool) (conn any, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) {
		if packet || listens(int(fd)) {
			conn, err = unpark(int(fd), packet)
		} else {
			err = &net.OpError{Op: "file", Err: errors.New("not a listening socket")}
		}
	})
	return conn, cmp.Or(cerr, err)
}

// listens reports whether fd is a socket that listens.
func listens(fd int) bool {
	n, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err == syscall.ENOPROTOOPT { // macOS and OpenBSD don't tell
		_, err = syscall.Getpeername(fd)
		return err == syscall.ENOTCONN
	}
	return err == nil && n != 0
}

func closeFD(fd int) { unix.Close(fd) }

// addrOf returns the local address of fd's socket.
func addrOf(fd int, packet bool) (net.Addr, error) {
	conn, err := unpark(fd, packet)
	if err != nil {
		return nil, err
	}
	defer conn.(interface{ Close() error }).Close()
	if packet {
		return conn.(net.PacketConn).LocalAddr(), nil
	}
	return conn.(net.Listener).Addr(), nil
}

// setBacklog tells the kernel how many connections may wait on fd.
func setBacklog(fd, n int) error { return os.NewSyscallError("listen", unix.Listen(fd, n)) }

// acceptQueued is l.Accept, but doesn't wait: the error is EAGAIN if no
// connection is queued. To poll first would not do: a unix socket that has
// been shut down is readable for ever.
func acceptQueued(l net.Listener) (net.Conn, error) {
	rc, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := rc.Control(func(lfd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if fd, _, err = syscall.Accept(int(lfd)); err == nil {
			unix.CloseOnExec(fd)
		}
	})
	if cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("accept", err)
	}
	return connOf(fd)
}

// connOf returns the connection that fd is, which it closes.
func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	return net.FileConn(f)
}

// socketpair returns the close-on-exec ends of a connection.
func socketpair(kind int) (fds [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if fds, err = syscall.Socketpair(syscall.AF_UNIX, kind, 0); err != nil {
		return fds, os.NewSyscallError("socketpair", err)
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	return fds, nil
}

// An inode is the file of a unix socket, so that only the very file that was
// made is ever removed.
type inode struct {
	path string
	info os.FileInfo
}

func inodeOf(addr net.Addr) inode {
	a, ok := addr.(*net.UnixAddr)
	if !ok || strings.HasPrefix(a.Name, "@") {
		return inode{}
	}
	return inodeAt(a.Name)
}

// inodeAt is inodeOf for a path.
func inodeAt(path string) inode {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return inode{}
	}
	path, err = filepath.Abs(path) // the master may change its directory
	if err != nil {
		return inode{}
	}
	return inode{path, info}
}

// there reports whether the file is still where it was made.
func (i inode) there() bool {
	if i.info == nil {
		return false
	}
	now, err := os.Lstat(i.path)
	return err == nil && os.SameFile(now, i.info)
}

func (i inode) remove() {
	if i.there() {
		os.Remove(i.path)
	}
}
