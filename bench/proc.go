//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// children returns the child processes of one.
func children(pid int) (list []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(t)
		for f := range strings.FieldsSeq(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// field returns the number after a name in a file of /proc.
func field(path, name string) float64 {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			if f := strings.Fields(value); len(f) > 0 {
				n, _ := strconv.ParseFloat(f[0], 64)
				return n
			}
		}
	}
	return 0
}

// memory returns kibibytes of a process: "Rss", "Pss", "Anonymous".
func memory(pid int, what string) float64 {
	return field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), what)
}

// wakeups returns how often the threads of processes have begun to wait for
// something.
func wakeups(pids ...int) (n float64) {
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, t := range tasks {
			n += field(t, "voluntary_ctxt_switches")
		}
	}
	return n
}

// cpu returns the CPU time that a process has used.
func cpu(pid int) time.Duration {
	var t unix.Timespec
	unix.ClockGettime(int32(^pid<<3|2), &t) // as clock_getcpuclockid(3) has it
	return time.Duration(t.Nano())
}

// accepts counts the returns of accept4(2) in some processes for a while: all of
// them, and those that found nothing (EAGAIN). It needs perf, and the rights to use it.
func accepts(pids []int, d time.Duration) (all, vain float64, err error) {
	list := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(pids)), ","), "[]")
	const event = "syscalls:sys_exit_accept4"
	out, err := exec.Command("perf", "stat", "-x", ";", "-p", list,
		"-e", event, "-e", event, "--filter", "ret == -11", "sleep", fmt.Sprint(d.Seconds())).CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("perf: %w: %s", err, out)
	}
	counts := regexp.MustCompile(`(?m)^(\d+);;`+event).FindAllSubmatch(out, -1)
	if len(counts) != 2 {
		return 0, 0, fmt.Errorf("perf: %s", out)
	}
	all, _ = strconv.ParseFloat(string(counts[0][1]), 64)
	vain, _ = strconv.ParseFloat(string(counts[1][1]), 64)
	return all, vain, nil
}
