//go:build !unix

package repl

import "syscall"

var signals = map[string]syscall.Signal{
	"INT":  syscall.SIGINT,
	"KILL": syscall.SIGKILL,
	"QUIT": syscall.SIGQUIT,
	"TERM": syscall.SIGTERM,
}
