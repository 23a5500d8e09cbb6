//go:build linux

package cluster_test

import (
	"fmt"
	"os"
	"testing"
)

// threads returns how many threads a process has.
func threads(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// The master needs no thread for each worker: one that it can't have would be
// its end.
func TestMasterNeedsFewThreads(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	before := threads(t, p.pid())
	p.mustCall("spawn 30")
	waitWorkers(p, 32)
	if after := threads(t, p.pid()); after > before+8 {
		t.Errorf("%d threads with 32 workers, %d with 2", after, before)
	}
	p.quit()
}
