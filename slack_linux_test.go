//go:build !cluster_nofork

package cluster_test

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gocluster/cluster"
	"golang.org/x/sys/unix"
)

// slack returns the slack of this process's timers, in nanoseconds.
func slack() int {
	n, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	return n
}

func init() {
	handler.(*http.ServeMux).HandleFunc("/slack", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, slack()) })
	commands["slack"] = func(*cluster.Master, []string) string { return strconv.Itoa(slack()) }
}

// Workers with one P have slack in their timers, and nobody else: the master,
// those with more, and those for whom somebody has chosen either.
func TestTimerSlack(t *testing.T) {
	t.Parallel()
	const kernels = 50_000
	if slack() != kernels {
		t.Skipf("the timer slack is %d", slack())
	}
	for _, c := range []struct {
		name    string
		workers int
		procs   string // GOMAXPROCS in the master's environment
		chosen  int
		want    int
	}{
		{"one P", 2 * runtime.NumCPU(), "", kernels, 300_000},
		{"all Ps", 1, "", kernels, kernels},
		{"GOMAXPROCS", 2, "1", kernels, kernels},
		{"slack", 2 * runtime.NumCPU(), "", 70_000, 70_000},
	} {
		if c.name == "all Ps" && runtime.NumCPU() == 1 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			p := command(t, "http", fmt.Sprintf("workers=%d", c.workers))
			p.cmd.Env = slices.DeleteFunc(p.cmd.Env, func(kv string) bool { return strings.HasPrefix(kv, "GOMAXPROCS=") })
			if c.procs != "" {
				p.cmd.Env = append(p.cmd.Env, "GOMAXPROCS="+c.procs)
			}
			runtime.LockOSThread()
			unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.chosen), 0, 0, 0)
			p.start()
			unix.Prctl(unix.PR_SET_TIMERSLACK, kernels, 0, 0, 0)
			runtime.UnlockOSThread()
			p.wait("listening")
			for i := range 2 {
				if got := p.get("/slack"); got != strconv.Itoa(c.want) {
					t.Errorf("a worker's timer slack is %s, want %d", got, c.want)
				}
				if got := p.call("slack"); got != strconv.Itoa(c.chosen) {
					t.Errorf("the master's timer slack is %s, want %d", got, c.chosen)
				}
				p.mustCall("spawn 1")
				waitWorkers(p, c.workers+i+1)
			}
			p.quit()
		})
	}
}
