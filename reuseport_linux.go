package cluster

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const canReusePort = true

func setReusePort(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

// bindBeside returns a socket that is bound to the same address as fd's. It
// doesn't listen if backlog is 0.
func bindBeside(fd, backlog int) (int, error) {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return -1, os.NewSyscallError("getsockname", err)
	}
	if err := setReusePort(fd); err != nil { // an older version may have made it without
		return -1, err
	}
	family := syscall.AF_INET
	if _, ok := sa.(*syscall.SockaddrInet6); ok {
		family = syscall.AF_INET6
	}
	port, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if family == syscall.AF_INET6 {
		only, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		unix.SetsockoptInt(port, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	unix.SetsockoptInt(port, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err = setReusePort(port); err == nil {
		err = os.NewSyscallError("bind", syscall.Bind(port, sa))
	}
	if err == nil && backlog > 0 {
		err = setBacklog(port, backlog)
	}
	if err != nil {
		syscall.Close(port)
		return -1, err
	}
	return port, nil
}
