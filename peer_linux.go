package cluster

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// canTellOurselves reports whether madeByUs can recognise a connection of
// this very process.
const canTellOurselves = true

// madeByUs reports whether the other end of c was connected by this process.
func madeByUs(c *net.UnixConn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	ours := false
	rc.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ours = err == nil && int(cred.Pid) == os.Getpid()
	})
	return ours
}
