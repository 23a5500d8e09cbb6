//go:build !cluster_nofork

package cluster_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/gocluster/cluster"
)

// confine has a shell prepare the mount namespace that the fleet runs in.
func (f *fleet) confine(script string) {
	f.t.Helper()
	unshare := systemProgram(f.t, "unshare")
	f.cmd.Path = unshare
	f.cmd.Args = append([]string{unshare, "-m", "sh", "-c", script + ` && exec "$0" "$@"`, f.path}, f.cmd.Args[1:]...)
}

// Where the working directory can't be written, and where there is no /proc,
// a cluster starts, serves, replaces dead workers and restarts all the same.
func TestBareSystems(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	for name, script := range map[string]string{
		"read-only working directory": `mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && ! touch file 2>/dev/null`,
		"no proc":                     `umount -l /proc && ! test -e /proc/self`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "v1", "workers=2")
			f.confine(script)
			f.launch()
			before := f.workers()
			kill(t, before[0], syscall.SIGKILL)
			f.wait("killed")
			if after := waitWorkers(f.proc, 2); after[0] == before[0] || after[1] != before[1] {
				t.Errorf("workers %v, were %v", after, before)
			}
			load := f.load()
			load.more(5)
			for _, v := range []string{"v2", "v3"} {
				master, workers := f.master, f.workers()
				f.upgrade(v)
				if f.master == master {
					t.Error("the master is the old one")
				}
				for _, pid := range f.workers() {
					if slices.Contains([]int{workers[0], workers[1]}, pid) {
						t.Errorf("worker %d is an old one", pid)
					}
				}
				load.more(5)
			}
			load.end()
			f.processes(4)
			f.quit()
		})
	}
}

// The first process of a container gets all signals, when it is the master and
// when it stands in for one.
func TestSignalsToTheFirstProcessOfAContainer(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]syscall.Signal{
		"SIGQUIT": syscall.SIGQUIT, "SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT, "SIGKILL": syscall.SIGKILL,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "v1", "workers=1")
			pid := f.contain()
			load := f.load()
			load.more(2)
			for restarted := range 2 {
				if restarted == 1 {
					kill(t, pid, syscall.SIGUSR2)
					f.next()
				}
				before := f.workers()[0]
				kill(t, pid, syscall.SIGHUP)
				f.waitFor("the end of the old worker", func(e event) bool { return e.Name == "killed" && e.Pid == before })
				kill(t, pid, syscall.SIGTTIN)
				waitWorkers(f.proc, 2)
				kill(t, pid, syscall.SIGTTOU)
				waitWorkers(f.proc, 1)
				kill(t, pid, syscall.SIGUSR1)
				f.waitFor("the master to reopen", func(e event) bool { return e.Name == "reopen" && e.Pid == f.master })
			}
			load.more(2)
			load.end()
			kill(t, pid, end)
			if end != syscall.SIGKILL {
				f.end(0)
				return
			}
			f.exit() // with unshare's own status: the kernel has killed all
			f.empty(fmt.Sprintf("cluster.%d.server.sock", f.master))
		})
	}
}

// Somebody looks into a container, and leaves a process behind: it comes to
// the first process, which reaps it.
func TestOrphansOfVisitorsAreReaped(t *testing.T) {
	t.Parallel()
	nsenter := systemProgram(t, "nsenter")
	f := newFleet(t, "v1", "workers=1")
	pid := f.contain()
	for restarted := range 2 {
		if restarted == 1 {
			f.upgrade("v2")
		}
		f.processes(3 + restarted) // with unshare, and the stand-in
		cmd := exec.Command(nsenter, "-t", strconv.Itoa(pid), "-p", "setsid", "sh", "-c", "sleep 0.1 &")
		if out, err := cmd.CombinedOutput(); err != nil { // ends with the sleep, which has the pipe
			t.Fatalf("%v: %s", err, out)
		}
		if !eventually(patience, func() bool { return len(f.zombies()) == 0 }) {
			t.Errorf("zombies: %q", f.zombies())
		}
	}
	kill(t, pid, syscall.SIGQUIT)
	f.end(0)
}

func init() {
	commands["leave"] = func(m *cluster.Master, args []string) string {
		return errText(exec.Command("sh", "-c", "sleep 0.1 &").Run())
	}
}

// A process that the program itself has left behind in the first process is
// not reaped, as the program may wait for it. It is in the way of no other.
func TestOrphansOfTheProgramHideNoOthers(t *testing.T) {
	t.Parallel()
	nsenter := systemProgram(t, "nsenter")
	f := newFleet(t, "v1", "workers=1")
	pid := f.contain()
	f.mustTell(f.master, "leave")
	if !eventually(patience, func() bool { return len(f.zombies()) == 1 }) {
		t.Fatalf("zombies: %q", f.zombies())
	}
	own := f.zombies()
	cmd := exec.Command(nsenter, "-t", strconv.Itoa(pid), "-p", "setsid", "sh", "-c", "sleep 0.1 &")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !eventually(patience, func() bool { return slices.Equal(f.zombies(), own) }) {
		t.Errorf("zombies: %q, want %q", f.zombies(), own)
	}
	kill(t, pid, syscall.SIGQUIT)
	f.end(0)
}
