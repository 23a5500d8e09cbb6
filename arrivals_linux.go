//go:build !cluster_nofork

package cluster

import (
	"strings"

	"golang.org/x/sys/unix"
)

// stopArrivals lets no connection join fd's queue any more, so that the
// queue can be emptied and the socket closed without resetting one that the
// kernel had already accepted. A filter drops the packets of newcomers; a
// unix socket is shut down for reading, which leaves its queue as it is.
// It holds for every process that has the socket.
func stopArrivals(network string, fd int) {
	if strings.HasPrefix(network, "unix") {
		unix.Shutdown(fd, unix.SHUT_RD)
		return
	}
	const bpfRetK = 0x06 // BPF_RET|BPF_K: accept this many bytes, none
	drop := unix.SockFilter{Code: bpfRetK}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	if err != nil { // multipath TCP, from a plain net.Listen: the next best thing
		unix.Listen(fd, 0)
	}
}
