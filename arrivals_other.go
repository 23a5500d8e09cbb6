//go:build unix && !linux && !cluster_nofork

package cluster

import "golang.org/x/sys/unix"

// stopArrivals makes the queue of fd as short as the system can.
func stopArrivals(_ string, fd int) { unix.Listen(fd, 1) } // on macOS 0 is the maximum
