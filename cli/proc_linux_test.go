package cli

import (
	"os"
	"os/exec"
	"testing"

	"github.com/gocluster/cluster/internal/clustertest"
)

func TestIdentity(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id := identify(cmd.Process.Pid)
	if !id.alive() {
		t.Error("a process is not alive")
	}
	if other := (identity{pid: id.pid, start: "1"}); other.alive() {
		t.Error("a process is taken for another that had its id")
	}
	if plausible(id.pid, []string{"", "cluster", "app"}) {
		t.Error("cat is taken for a process of the cluster")
	}
	if !plausible(id.pid, []string{"ca"}) {
		t.Error("the title is not recognized")
	}
	in.Close()
	if !clustertest.Eventually(clustertest.Patience, func() bool { return !id.alive() }) { // not reaped
		t.Error("a zombie is alive")
	}
	cmd.Wait()
	if id.alive() || identify(id.pid).alive() || (identity{}).alive() {
		t.Error("nothing is alive")
	}
}

func TestOwnProcess(t *testing.T) {
	pid := os.Getpid()
	if !plausible(pid, nil) {
		t.Error("the program is not recognized")
	}
	if n := memory(pid); n == nil || *n < 1<<20 || *n > 1<<32 {
		t.Errorf("memory: %v", n)
	}
	if n := memory(1 << 30); n != nil {
		t.Errorf("memory of no process: %d", *n)
	}
}
