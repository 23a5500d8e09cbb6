//go:build !cluster_nofork

package cluster

import (
	"os"

	"golang.org/x/sys/unix"
)

// waitable waits until the child with that pid can be reaped, or returns at
// once where it can't tell. os.Process.Wait would hold a thread for every
// child, and a Go program dies when it may have no more of them.
func waitable(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK) // since Linux 5.10
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if rc, err := f.SyscallConn(); err == nil {
		rc.Read(func(uintptr) bool { return pending(f) })
	}
}
