//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package logger

import "syscall"

// dup makes newfd the file that oldfd is.
func dup(oldfd, newfd int) error {
	syscall.ForkLock.RLock() // no process may inherit it
	defer syscall.ForkLock.RUnlock()
	err := syscall.Dup2(oldfd, newfd)
	if err == nil {
		syscall.CloseOnExec(newfd)
	}
	return err
}
