//go:build !cluster_nofork

package cluster

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var reaping bool // of the goroutine that restarts

// becomeSubreaper makes this process the parent of descendants whose own
// parents end, and has them reaped.
func becomeSubreaper() {
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	if !reaping {
		reaping = true
		go reapOrphans()
	}
}

// orphanGrace is for children of ours: somebody waits for them, and reaps
// them sooner.
const orphanGrace = 2 * time.Second

// reapOrphans reaps dead children that nobody waits for: what workers have
// left behind. Those of our own process group are left alone: the program may
// have forked them, and may wait for them when it likes.
func reapOrphans() {
	for last := int32(0); ; time.Sleep(orphanGrace) {
		var info struct { // of a child that is dead and not reaped
			_   [3]int32
			_   [0]uintptr // aligned as the kernel has it
			pid int32
			_   [112]byte
		}
		syscall.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		if group, _ := syscall.Getpgid(int(last)); last != 0 && last == info.pid && group > 0 && group != syscall.Getpgrp() {
			for n := 1; n > 0; {
				n, _ = syscall.Wait4(-group, nil, syscall.WNOHANG, nil)
			}
		}
		last = info.pid
	}
}
