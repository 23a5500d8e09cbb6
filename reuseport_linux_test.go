//go:build !cluster_nofork

package cluster_test

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var reusePortRounds = flag.Int("reuseport", 5, "how many times the tests of ReusePort kill, remove, roll and restart")

// startApart starts a fleet whose slots have sockets of their own.
func startApart(t *testing.T, addr string, workers int) *fleet {
	t.Helper()
	return startFleet(t, fmt.Sprintf("v1,reuse port=true,workers=%d", workers), "addr="+addr)
}

// queue connects n times, and sends a request each time.
func (f *fleet) queue(n int) (conns []net.Conn) {
	f.t.Helper()
	for range n {
		c := f.dial()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: cluster\r\nConnection: close\r\n\r\n"); err != nil {
			f.t.Fatal(err)
		}
		conns = append(conns, c)
	}
	return conns
}

// answers reads what the connections are answered, and counts the processes
// that it is from.
func (f *fleet) answers(conns []net.Conn) map[int]int {
	f.t.Helper()
	count := make(map[int]int)
	for _, c := range conns {
		body, err := readResponse(bufio.NewReader(c))
		c.Close()
		if err != nil {
			f.t.Fatal(err)
		}
		pid, _ := strconv.Atoi(body)
		count[pid]++
	}
	return count
}

// answeredBy waits until new connections are answered by n processes.
func (f *fleet) answeredBy(n int) {
	f.t.Helper()
	var count map[int]int
	if !eventually(patience, func() bool { count = f.answers(f.queue(20 * n)); return len(count) == n }) {
		f.t.Errorf("answers by %v, want %d processes", count, n)
	}
}

// Connections wait for the worker whose slot the kernel has chosen, even if
// it is stopped; when it dies others take them.
func TestReusePort(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			f := startApart(t, addr, 3)
			workers := f.workers()
			count := f.answers(f.queue(150))
			for _, pid := range workers {
				if count[pid] < 20 {
					t.Errorf("process %d has answered %d of 150 requests: %v", pid, count[pid], count)
				}
			}
			f.wait("connected", 1)
			for range *reusePortRounds {
				stopped := f.workers()[1]
				suspend(t, stopped)
				queued := f.queue(60)
				kill(t, stopped, syscall.SIGKILL)
				f.wait("killed", 1)
				if count := f.answers(queued); count[stopped] > 0 {
					t.Errorf("answers of a process that was stopped: %v", count)
				}
				f.wait("connected", 1)
				f.answeredBy(3)
			}
			f.quit()
		})
	}
}

// A worker that there is no more leaves its socket to others, until there is
// one again.
func TestReusePortRemove(t *testing.T) {
	t.Parallel()
	f := startApart(t, "127.0.0.1:0", 4)
	load := f.load()
	for range *reusePortRounds {
		f.mustTell(f.master, "remove 3")
		f.waitN(3, "killed")
		f.answeredBy(1)
		f.mustTell(f.master, "spawn 3")
		f.answeredBy(4)
	}
	load.end()
	f.quit()
}

func TestReusePortLosesNothing(t *testing.T) {
	t.Parallel()
	f := startApart(t, "127.0.0.1:0", 3)
	load := f.load()
	for i := range *reusePortRounds {
		load.more(20)
		f.mustTell(f.master, "restartworkers")
		f.mustTell(f.master, "remove 1")
		f.mustTell(f.master, "spawn 1")
		load.more(20)
		f.upgrade(fmt.Sprintf("v%d,reuse port=true,workers=%d", i+2, 2+i%3))
	}
	load.end()
	f.quit()
}

// A new version may begin with it, or do without, and its number of workers
// may be another.
func TestReusePortInANewVersion(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1,workers=2", "addr=127.0.0.1:0")
	load := f.load()
	for _, v := range []struct {
		name    string
		workers int
	}{
		{"v2,reuse port=true,workers=3", 3},
		{"v3,reuse port=true,workers=5", 5},
		{"v4,reuse port=true,workers=2", 2},
		{"v5,workers=3", 3},
		{"v6,reuse port=true,workers=2", 2},
	} {
		load.more(20)
		f.upgrade(v.name)
		f.answeredBy(v.workers)
	}
	load.end()
	f.quit()
}

// What has been accepted for a slot is served when the cluster closes.
func TestReusePortCloseServesWhatIsQueued(t *testing.T) {
	t.Parallel()
	f := startApart(t, "127.0.0.1:0", 3)
	f.mustTell(f.master, "spawn 0") // the supervisor has told that nobody need cover
	for id := range 3 {             // and it has been heard
		f.mustTell(f.master, "send %d sync now", id)
		f.wait("message", id)
	}
	for _, pid := range f.workers() {
		suspend(t, pid)
	}
	queued := f.queue(60)
	f.signal(syscall.SIGQUIT)
	f.wait("closing")
	for _, pid := range f.workers() {
		kill(t, pid, syscall.SIGCONT)
	}
	if count := f.answers(queued); len(count) != 3 {
		t.Errorf("answers by %v, want three processes", count)
	}
	f.end(0)
}

func TestReusePortNeedsATCPAddress(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"addr=unix:app.sock"}, {}} {
		p := start(t, "bad", slices.Concat(args, []string{"reuse port=true"})...)
		if e := p.wait("failed"); e.Text == "" {
			t.Errorf("%q is no error", args)
		}
		p.end(1)
	}
}

// Of several idle workers each new connection wakes one, the one that has
// waited longest.
func TestWorkersAcceptInTurn(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			addr := "addr=127.0.0.1:0"
			if network == "unix" {
				addr = "addr=unix:socket"
			}
			const workers, each = 4, 50
			f := startFleet(t, fmt.Sprintf("v1,workers=%d", workers), addr)
			count := make(map[int]int)
			for range workers * each {
				for pid, n := range f.answers(f.queue(1)) {
					count[pid] += n
				}
			}
			if len(count) < workers {
				t.Fatalf("answers by %v, want %d workers", count, workers)
			}
			for pid, n := range count {
				if n < each/2 || n > each*2 {
					t.Errorf("worker %d answered %d of %d requests: %v", pid, n, workers*each, count)
				}
				if !eventually(patience, func() bool { return inTurn(t, pid) }) {
					t.Errorf("worker %d is woken for every connection", pid)
				}
			}
			f.quit()
		})
	}
}

// inTurn reports whether the process has a socket for which epoll wakes it
// alone.
func inTurn(t *testing.T, pid int) bool {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fdinfo/", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, _ := os.ReadFile(dir + e.Name())
		for line := range strings.Lines(string(info)) {
			var fd int
			var events uint32
			if n, _ := fmt.Sscanf(line, "tfd: %d events: %x", &fd, &events); n == 2 && events&(1<<28) != 0 {
				return true
			}
		}
	}
	return false
}

// A new master has the sockets of the slots that there were when it was
// started: no other may come while it starts.
func TestReusePortSpawnDuringARestart(t *testing.T) {
	t.Parallel()
	f := startApart(t, "127.0.0.1:0", 1)
	f.flip("v2,reuse port=true,workers=2,mode=gate")
	answer := f.told(f.master, "restart")
	f.wait("gate")
	if got := f.tell(f.master, "spawn 1"); !strings.Contains(got, "restart") {
		t.Errorf("Spawn during a restart: %q", got)
	}
	f.open()
	if got := <-answer; got != "" {
		t.Errorf("Restart: %s", got)
	}
	f.next()
	f.mustTell(f.master, "spawn 1")
	waitWorkers(f.proc, 3)
	f.quit()
}
