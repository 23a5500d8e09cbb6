package debug_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster/internal/clustertest"
)

const colored = "   info\033[90m - master started\033[0m\n" +
	"   info\033[90m - worker 0 spawned\033[0m\n" +
	"   info\033[90m - worker 0 connected\033[0m\n" +
	"   info\033[90m - listening for connections\033[0m\n" +
	"   info\033[90m - shutting down\033[0m\n" +
	"\033[33mwarning\033[0m\033[90m - kill(SIGKILL)\033[0m\n" +
	"\033[33mwarning\033[0m\033[90m - worker 0 died: signal: killed\033[0m\n" +
	"   info\033[90m - shutdown complete\033[0m\n"

// There are colours on a terminal whose user has not said no, and where they
// are asked for.
func TestColors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		terminal bool
		args     []string
		env      []string
		want     bool
	}{
		{"terminal", true, nil, nil, true},
		{"terminal, default options", true, []string{"default"}, nil, true},
		{"terminal, NO_COLOR is empty", true, nil, []string{"NO_COLOR="}, true},
		{"terminal, NO_COLOR", true, nil, []string{"NO_COLOR=0"}, false},
		{"terminal, NO_COLOR, but asked for", true, []string{"colors"}, []string{"NO_COLOR=1"}, true},
		{"terminal, TERM=dumb", true, nil, []string{"TERM=dumb"}, false},
		{"no terminal", false, nil, nil, false},
		{"no terminal, but asked for", false, []string{"colors"}, nil, true},
	} {
		p := clustertest.Command(t, "server", test.args...)
		p.Cmd.Env = append(p.Cmd.Env, "NO_COLOR=", "TERM=xterm")
		p.Cmd.Env = append(p.Cmd.Env, test.env...)
		output := p.Log
		if test.terminal {
			main, name := terminal(t)
			p.Cmd.Args = append(p.Cmd.Args, "stderr="+name)
			output = func() string {
				b, _ := io.ReadAll(main) // an error is its end: nobody has the other side
				return strings.ReplaceAll(string(b), "\r\n", "\n")
			}
		}
		p.Start()
		p.Wait("listening")
		p.Signal(syscall.SIGINT)
		p.End(0)
		want := colored
		if !test.want {
			for _, escape := range []string{"\033[90m", "\033[33m", "\033[0m"} {
				want = strings.ReplaceAll(want, escape, "")
			}
		}
		if got := output(); got != want {
			t.Errorf("%s: got\n%q\nwant\n%q", test.name, got, want)
		}
	}
}

// terminal makes one. It returns the end that shows what is written, and the
// name of the other.
func terminal(t *testing.T) (*os.File, string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no terminal: %v", err)
	}
	main := os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { main.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return main, fmt.Sprintf("/dev/pts/%d", n)
}
