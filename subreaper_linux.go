//go:build !cluster_nofork

package cluster

import (
	"os"
	"slices"
	"strconv"
	"strings"
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
	var last []int // those that were dead
	for ; ; time.Sleep(orphanGrace) {
		var dead []int
		if pid := deadChild(unix.P_ALL, 0); pid != 0 { // the first: there may be others
			dead = append(dead, pid)
			for _, pid := range children() {
				if deadChild(unix.P_PID, pid) != 0 {
					dead = append(dead, pid)
				}
			}
		}
		for _, pid := range dead {
			if group, _ := syscall.Getpgid(pid); slices.Contains(last, pid) && group > 0 && group != syscall.Getpgrp() {
				syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
		}
		last = dead
	}
}

// deadChild returns the id of a child that is dead and not reaped, or 0: any,
// or the one with that id.
func deadChild(kind, id int) int {
	var info struct {
		_   [3]int32
		_   [0]uintptr // aligned as the kernel has it
		pid int32
		_   [112]byte
	}
	syscall.Syscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	return int(info.pid)
}

// children returns the ids of this process's children, as far as /proc tells.
func children() (pids []int) {
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		b, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		for _, s := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(s)
			pids = append(pids, pid)
		}
	}
	return pids
}
