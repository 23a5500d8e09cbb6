//go:build !cluster_nofork

package cluster

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// closeOnExecAll makes every descriptor but the first three close-on-exec:
// one that came from this process's parent, or from C code, is not for the
// workers.
func closeOnExecAll() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	for fd := 3; fd < 1024; fd++ { // before Linux 5.11
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	}
}

func hasPdeathsig(a *syscall.SysProcAttr) bool { return a.Pdeathsig != 0 }
