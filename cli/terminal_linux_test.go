package cli_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal gives a command a terminal, and returns its other end.
func (l *tool) terminal() *os.File {
	l.t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		l.t.Skipf("no terminal: %v", err)
	}
	main := os.NewFile(uintptr(fd), "ptmx")
	l.t.Cleanup(func() { main.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		l.t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		l.t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		l.t.Skipf("no terminal: %v", err)
	}
	l.t.Cleanup(func() { tty.Close() })
	l.cmd.Stdin, l.cmd.Stdout = tty, tty
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	go io.Copy(l, main)
	return main
}

// On a terminal the progress is one line that changes, and the outcome takes
// its place.
func TestTerminal(t *testing.T) {
	r := start(t, "", "WORKERS=2")
	r.create("slow.1")
	l := r.command("restart")
	l.terminal()
	l.start()
	l.wait("\r1/2 workers ready")
	r.remove("slow.1")
	l.first()
	l.wait(" ms\r\n")
	out := l.output()
	if strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "\r1/2 workers ready\r") {
		t.Errorf("%q", out)
	}

	r.create("slow")
	l = r.command("restart")
	tty := l.terminal()
	l.start()
	r.Wait("restarting")
	r.Wait("restarting")
	tty.WriteString("\x03") // reaches the command alone
	_, errs := l.end(1)
	contains(t, errs, "interrupted; the restart goes on\n")
	r.remove("slow")
	r.Wait("restarted")
	r.Wait("restarted")

	l = r.command("repl")
	tty = l.terminal()
	l.start()
	l.wait("cluster> ")
	tty.WriteString("pids\n")
	l.wait("worker #1: ")
	tty.WriteString("\x04") // end of input
	l.end(0)
	r.do(0, "stop")
	r.gone()
}
