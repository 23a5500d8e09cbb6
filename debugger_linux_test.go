//go:build !cluster_nofork

package cluster_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	pauses = append(pauses, pause{"master, by a debugger", func(p *proc, workers map[int]int) {
		underDebugger(p, p.pid())
		underDebugger(p, p.pid())
	}}, pause{"all, by a debugger", func(p *proc, workers map[int]int) {
		underDebugger(p, p.pid(), workers[0], workers[1])
	}})
}

// underDebugger has a debugger stop processes for two heartbeats. It is a process of
// its own: our wait for the master would take what its wait is for.
func underDebugger(p *proc, pids ...int) {
	p.t.Helper()
	helpersUsed.Store("debugger", true)
	cmd := exec.Command("/proc/self/exe")
	for _, pid := range pids {
		cmd.Args = append(cmd.Args, strconv.Itoa(pid))
	}
	cmd.Env = append(os.Environ(), helperEnv+"=debugger")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), unix.EPERM.Error()) {
		p.quit()
		p.t.Skipf("%s", out)
	}
	if err != nil {
		p.t.Errorf("%v: %s", err, out)
	}
}

var _ = helper("debugger", func() {
	runtime.LockOSThread() // the thread is the tracer
	must := func(what string, err error) {
		if err != nil {
			fatal(fmt.Errorf("%s: %w", what, err))
		}
	}
	attached := make(map[int]bool)
	attach := func(pid int) (more bool) {
		tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
		for _, task := range tasks {
			if tid, _ := strconv.Atoi(filepath.Base(task)); !attached[tid] {
				must("attach", unix.PtraceAttach(tid))
				_, err := unix.Wait4(tid, nil, unix.WALL, nil)
				must("wait", err)
				attached[tid], more = true, true
			}
		}
		return more
	}
	for _, arg := range os.Args[1:] {
		pid, _ := strconv.Atoi(arg)
		for attach(pid) { // its threads start threads
		}
	}
	time.Sleep(2 * heartbeat)
	for tid := range attached {
		must("detach", unix.PtraceDetach(tid))
	}
})
