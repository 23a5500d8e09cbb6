package logger

import "syscall"

// dup makes newfd the file that oldfd is.
func dup(oldfd, newfd int) error {
	return syscall.Dup3(oldfd, newfd, syscall.O_CLOEXEC)
}
