//go:build !cluster_nofork

package cluster

import (
	"strconv"
	"syscall"
)

// madeBy reports whether the process with that id has made the connection
// which fd is an end of, or one that has no id in this process's namespace.
func madeBy(fd int, pid string) bool {
	cred, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	return err == nil && (cred.Pid == 0 || strconv.Itoa(int(cred.Pid)) == pid)
}
