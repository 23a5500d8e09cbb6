//go:build unix

package control

import "syscall"

// private makes a unix socket one for its owner alone, before it has a name.
func private(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { syscall.Fchmod(int(fd), 0o600) })
}
