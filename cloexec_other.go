//go:build unix && !linux && !cluster_nofork

package cluster

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// closeOnExecAll makes every descriptor but the first three close-on-exec.
func closeOnExecAll() {
	for fd := 3; fd < 1024; fd++ {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	}
}

// hasPdeathsig is of interest on FreeBSD too, but its field isn't portable.
func hasPdeathsig(*syscall.SysProcAttr) bool { return false }
