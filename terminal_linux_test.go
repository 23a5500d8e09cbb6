//go:build !cluster_nofork

package cluster_test

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A terminal sends a signal to the whole process group. It must end the
// cluster, and be heard once.
func TestInterruptFromATerminalEndsEverythingOnce(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		for _, test := range []struct {
			name string
			do   func(*fleet, *os.File)
			kill string // what the workers get
		}{
			{"ctrl-c", func(f *fleet, tty *os.File) { tty.WriteString("\x03") }, syscall.SIGKILL.String()},
			{"ctrl-backslash", func(f *fleet, tty *os.File) { tty.WriteString("\x1c") }, syscall.SIGQUIT.String()},
			{"hangup", func(f *fleet, tty *os.File) { tty.Close() }, syscall.SIGQUIT.String()},
		} {
			if !restarted && test.name == "ctrl-backslash" {
				continue // a signal as any other
			}
			f := newFleet(t, "v1", "workers=1")
			tty := f.terminal()
			f.launch()
			if restarted {
				f.upgrade("v2")
			}
			held := f.hold()
			before := len(f.history("kill"))
			test.do(f, tty)
			if test.kill == syscall.SIGQUIT.String() {
				f.await("the signal", func() bool {
					return slices.ContainsFunc(f.events, func(e event) bool { return e.Name == "closing" && e.Pid == f.master })
				})
				if got := held.finish(); got != strconv.Itoa(held.Pid) {
					t.Errorf("%s, restarted %t: a request in flight was answered by %s, want %d", test.name, restarted, got, held.Pid)
				}
			}
			f.end(0)
			kills := f.history("kill")[before:]
			if len(kills) != 1 || kills[0].Text != test.kill || kills[0].Pid != f.master {
				t.Errorf("%s, restarted %t: signals to the workers: %+v, want one %s", test.name, restarted, kills, test.kill)
			}
		}
	}
}

// terminal gives the fleet a controlling terminal, and returns its other end.
func (f *fleet) terminal() *os.File {
	f.t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		f.t.Skipf("no terminal: %v", err)
	}
	main := os.NewFile(uintptr(fd), "ptmx")
	f.t.Cleanup(func() { main.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		f.t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		f.t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		f.t.Skipf("no terminal: %v", err)
	}
	f.t.Cleanup(func() { tty.Close() })
	f.cmd.ExtraFiles = []*os.File{tty}
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	go io.Copy(io.Discard, main) // its echo
	return main
}
