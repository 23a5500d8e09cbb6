//go:build unix

package eventlog

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// end returns the state of a process that has ended so.
func end(t *testing.T, script string) *os.ProcessState {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("%v did not run", cmd)
	}
	return cmd.ProcessState
}

func TestObeyed(t *testing.T) {
	exit0, exit1 := end(t, "exit 0"), end(t, "exit 1")
	term, kill, usr1 := end(t, "kill -TERM $$"), end(t, "kill -KILL $$"), end(t, "kill -USR1 $$")
	sent := func(sig ...os.Signal) life { return life{connected: true, signals: sig} }
	for _, test := range []struct {
		name  string
		life  life
		state *os.ProcessState
		want  bool
	}{
		{"nobody asked it to exit", life{connected: true}, exit0, false},
		{"somebody has killed it", life{connected: true}, kill, false},
		{"it has drained", sent(syscall.SIGQUIT), exit0, true},
		{"it has drained for its successor", life{connected: true, followed: true}, exit0, true},
		{"it has drained to be one fewer", life{connected: true, removed: true}, exit0, true},
		{"it has failed while it drained", sent(syscall.SIGQUIT), exit1, false},
		{"it was killed while it drained", sent(syscall.SIGQUIT), kill, false},
		{"it was killed while it drained for its successor", life{connected: true, followed: true}, kill, false},
		{"it took too long to drain", life{connected: true, followed: true, late: true}, kill, false},
		{"it took too long, and then drained", life{connected: true, followed: true, late: true}, exit0, false},
		{"its successor's restart was with SIGTERM", life{connected: true, followed: true}, term, true},
		{"it was removed with SIGKILL", life{connected: true, removed: true}, kill, true},
		{"all were killed", sent(syscall.SIGQUIT, syscall.SIGKILL), kill, true},
		{"all were killed with something else", sent(syscall.SIGUSR1), usr1, true},
		{"it was killed with something else", sent(syscall.SIGQUIT), usr1, false},
		{"it was starting when all were to finish", life{signals: []os.Signal{syscall.SIGQUIT}}, kill, true},
		{"it was starting when somebody killed it", life{}, kill, false},
	} {
		if got := test.life.obeyed(test.state); got != test.want {
			t.Errorf("%s (%v): %t, want %t", test.name, test.state, got, test.want)
		}
	}
}

func TestSignalName(t *testing.T) {
	for sig, want := range map[os.Signal]string{
		syscall.SIGKILL:    "SIGKILL",
		syscall.SIGWINCH:   "SIGWINCH",
		syscall.Signal(99): "signal 99",
	} {
		if got := signalName(sig); got != want {
			t.Errorf("%d is %q, want %q", sig, got, want)
		}
	}
}
