//go:build !cluster_nofork

package cluster

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// A worker with one P has this much slack in its timers: Go's poller rounds
// them up to a millisecond anyway. With the kernel's own, the runtime's monitor
// thread gets up to look after that P every 70 microseconds, which takes up to a
// tenth of what the worker's requests need. With more Ps, one that looks for
// work sleeps for a moment before it takes what another is about to run: that
// must be short.
const (
	slack       = 300_000 // nanoseconds
	kernelSlack = 50_000
)

// slacken has this thread, and the goroutine that runs in it, fork processes
// with that slack, until the function that it returns is called. If somebody
// has chosen another than the kernel's, as TimerSlackNSec= in a systemd unit
// does, that stays.
func slacken() (restore func()) {
	runtime.LockOSThread()
	if is, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); is != kernelSlack {
		return runtime.UnlockOSThread
	}
	unix.Prctl(unix.PR_SET_TIMERSLACK, slack, 0, 0, 0)
	return func() {
		unix.Prctl(unix.PR_SET_TIMERSLACK, kernelSlack, 0, 0, 0)
		runtime.UnlockOSThread()
	}
}
