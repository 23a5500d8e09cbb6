//go:build !cluster_nofork

package cluster

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const canReusePort = true

func setReusePort(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// bindBeside returns a socket that is bound to the same address as fd's. It
// doesn't listen if backlog is 0.
func bindBeside(fd, backlog int) (port int, err error) {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return -1, err
	}
	family := syscall.AF_INET
	if _, ok := sa.(*syscall.SockaddrInet6); ok {
		family = syscall.AF_INET6
	}
	port, err = syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if family == syscall.AF_INET6 {
		only, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		unix.SetsockoptInt(port, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	unix.SetsockoptInt(port, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	setReusePort(fd) // an older version may have made it without
	setReusePort(port)
	if err = syscall.Bind(port, sa); err == nil && backlog > 0 {
		err = unix.Listen(port, backlog)
	}
	if err != nil {
		unix.Close(port)
		return -1, errorf("cluster: another socket for a slot: %w", err)
	}
	return port, nil
}
