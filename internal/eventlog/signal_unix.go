//go:build unix

package eventlog

import (
	"os"
	"syscall"
)

var signalNames = map[os.Signal]string{
	syscall.SIGABRT:  "SIGABRT",
	syscall.SIGALRM:  "SIGALRM",
	syscall.SIGBUS:   "SIGBUS",
	syscall.SIGCHLD:  "SIGCHLD",
	syscall.SIGCONT:  "SIGCONT",
	syscall.SIGFPE:   "SIGFPE",
	syscall.SIGHUP:   "SIGHUP",
	syscall.SIGILL:   "SIGILL",
	syscall.SIGINT:   "SIGINT",
	syscall.SIGKILL:  "SIGKILL",
	syscall.SIGPIPE:  "SIGPIPE",
	syscall.SIGQUIT:  "SIGQUIT",
	syscall.SIGSEGV:  "SIGSEGV",
	syscall.SIGSTOP:  "SIGSTOP",
	syscall.SIGTERM:  "SIGTERM",
	syscall.SIGTRAP:  "SIGTRAP",
	syscall.SIGTSTP:  "SIGTSTP",
	syscall.SIGTTIN:  "SIGTTIN",
	syscall.SIGTTOU:  "SIGTTOU",
	syscall.SIGURG:   "SIGURG",
	syscall.SIGUSR1:  "SIGUSR1",
	syscall.SIGUSR2:  "SIGUSR2",
	syscall.SIGWINCH: "SIGWINCH",
}

// signalName returns "SIGKILL" where String returns "killed".
func signalName(sig os.Signal) string {
	if name := signalNames[sig]; name != "" {
		return name
	}
	return sig.String()
}
