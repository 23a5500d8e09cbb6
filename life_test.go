//go:build unix && !cluster_nofork

package cluster_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// waitWorkers waits until there are exactly n ready workers.
func waitWorkers(p *proc, n int) map[int]int {
	p.t.Helper()
	for len(p.workers()) != n {
		p.waitFor("a worker to come or go", func(e event) bool { return e.Name == "connected" || e.Name == "killed" })
	}
	return p.workers()
}

// The count of workers is kept whatever kills one, and the successor has the
// same slot.
func TestReplace(t *testing.T) {
	t.Parallel()
	ends := map[string]func(p *proc, pid int){
		"kill -9": func(p *proc, pid int) { kill(p.t, pid, syscall.SIGKILL) },
		"SIGTERM": func(p *proc, pid int) { kill(p.t, pid, syscall.SIGTERM) },
		"SIGQUIT": func(p *proc, pid int) { kill(p.t, pid, syscall.SIGQUIT) },
		"SIGSEGV": func(p *proc, pid int) { kill(p.t, pid, syscall.SIGSEGV) },
		"exit":    func(p *proc, pid int) { roundTrip(p.dial(), "/exit") },
		"panic":   func(p *proc, pid int) { roundTrip(p.dial(), "/panic") },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := serve(t, "http", "workers=2")
			before := p.workers()
			end(p, before[0])
			dead := p.wait("killed")
			if dead.Pid != before[dead.ID] {
				t.Errorf("worker %d (pid %d) was killed, workers were %v", dead.ID, dead.Pid, before)
			}
			after := waitWorkers(p, 2)
			if after[dead.ID] == before[dead.ID] || after[1-dead.ID] != before[1-dead.ID] {
				t.Errorf("workers were %v, are %v; worker %d had died", before, after, dead.ID)
			}
			p.get("/")
			p.quit()
		})
	}
}

func TestSpawnRemove(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	p.mustCall("spawn 2")
	if w := waitWorkers(p, 3); w[0] == 0 || w[1] == 0 || w[2] == 0 {
		t.Errorf("workers are %v", w)
	}
	if got := p.call("children"); strings.Count(got, "ready") != 3 || !strings.HasPrefix(got, "0 ") || !strings.Contains(got, "\n2 ") {
		t.Errorf("children:\n%s", got)
	}
	p.mustCall("remove 1")
	if e := p.wait("removed"); e.ID != 2 {
		t.Errorf("worker %d was removed, not the highest", e.ID)
	}
	waitWorkers(p, 2)
	p.mustCall("remove 1 -15") // with SIGTERM
	if e := p.wait("killed", 1); !strings.Contains(e.Text, "terminated") {
		t.Errorf("worker 1: %s", e.Text)
	}
	if got := p.call("remove 2"); !strings.Contains(got, "only 1") {
		t.Errorf("remove 2 of 1: %q", got)
	}
	if got := p.call("spawn -1"); !strings.Contains(got, "Spawn(-1)") {
		t.Errorf("spawn -1: %q", got)
	}
	p.mustCall("spawn 1")
	if e := p.wait("worker", 1); e.ID != 1 {
		t.Error("the free slot was not taken")
	}
	p.quit()
}

// Kill signals all workers, and the master replaces them.
func TestKill(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	before := p.workers()
	p.mustCall("kill")
	p.waitN(2, "killed")
	after := waitWorkers(p, 2)
	if after[0] == before[0] || after[1] == before[1] {
		t.Errorf("workers were %v, are %v", before, after)
	}
	if e := p.wait("kill"); e.Text != "terminated" {
		t.Errorf("kill event: %q", e.Text)
	}
	p.quit()
}

// Close and Shutdown wait for requests in flight, and Destroy doesn't.
func TestClose(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	h := p.hold()
	closed := p.begin("close")
	p.wait("closing")
	p.wait("waiting", h.ID)
	if got := p.call("state"); got != "graceful shutdown" {
		t.Errorf("state is %q", got)
	}
	if got := p.call("spawn 1"); !strings.Contains(got, "not running") {
		t.Errorf("spawn while closing: %q", got)
	}
	if got := h.finish(); got != strconv.Itoa(h.Pid) {
		t.Errorf("answer %q, want %d", got, h.Pid)
	}
	if got := closed(); got != "" {
		t.Errorf("close: %s", got)
	}
	p.end(0)
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	h := p.hold()
	if got := p.call("shutdown 10ms"); got != "context deadline exceeded" {
		t.Errorf("shutdown: %q", got)
	}
	if _, err := readResponse(bufio.NewReader(h)); err == nil {
		t.Error("the request was answered")
	}
	p.end(0)
}

func TestDestroy(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	p.hold()
	if got := p.call("destroy"); got != "" {
		t.Errorf("destroy: %s", got)
	}
	p.end(0)
	for _, e := range p.history("killed") {
		if !strings.Contains(e.Text, "killed") {
			t.Errorf("worker %d: %s", e.ID, e.Text)
		}
	}
}

// A graceful shutdown that lasts too long can be made a hard one.
func TestDestroyAfterClose(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	h := p.hold()
	p.signal(syscall.SIGQUIT)
	p.wait("waiting", h.ID)
	p.signal(syscall.SIGTERM)
	p.end(0)
}

// A worker that doesn't finish within Timeout is reported and ended.
func TestWorkerTimeout(t *testing.T) {
	t.Parallel()
	t.Run("stuck handler", func(t *testing.T) {
		t.Parallel()
		p := serve(t, "http", "workers=1", "timeout=200ms")
		c := p.dial()
		io.WriteString(c, "GET /stuck HTTP/1.1\r\nHost: cluster\r\n\r\n")
		p.wait("stuck")
		p.signal(syscall.SIGQUIT)
		p.wait("close")
		p.end(0)
	})
	t.Run("stuck TCPServer handler", func(t *testing.T) {
		t.Parallel()
		p := serve(t, "tcp", "workers=1", "timeout=200ms")
		c := p.dial()
		io.WriteString(c, "stuck\n")
		p.wait("stuck")
		p.signal(syscall.SIGQUIT)
		p.end(0)
	})
	t.Run("suspended while it drains", func(t *testing.T) {
		t.Parallel()
		p := serve(t, "http", "workers=1", "timeout=200ms", "heartbeat=-1s")
		suspend(t, p.workers()[0])
		p.signal(syscall.SIGQUIT)
		if e := p.wait("timeout"); e.Text != "200ms" || e.ID != 0 {
			t.Errorf("timeout event: %+v", e)
		}
		p.end(0)
	})
	t.Run("suspended while it serves", func(t *testing.T) {
		t.Parallel()
		p := serve(t, "http", "workers=1", "heartbeat=300ms")
		before := p.workers()[0]
		suspend(t, before)
		if e := p.wait("timeout"); e.Text != "300ms" || e.Pid != before {
			t.Errorf("timeout event: %+v", e)
		}
		if e := p.wait("exception"); !strings.Contains(e.Text, "SIGABRT") || e.Pid != before {
			t.Errorf("exception event: %+v", e)
		}
		p.wait("killed")
		if w := waitWorkers(p, 1); w[0] == before {
			t.Error("the worker was not replaced")
		}
		p.quit()
	})
}

// WorkerWaiting tells how many connections are left.
func TestWorkerWaiting(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	a, b := p.hold(), p.hold()
	p.signal(syscall.SIGQUIT)
	if e := p.wait("waiting"); e.Text != "2" {
		t.Errorf("waiting for %s connections, want 2", e.Text)
	}
	a.finish()
	p.waitFor("one connection left", func(e event) bool { return e.Name == "waiting" && e.Text == "1" })
	b.finish()
	p.end(0)
}

// What the kernel has already accepted when the last generation stops is
// still answered.
func TestQueued(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"http", "tcp"} {
		for _, spec := range []string{"tcp 127.0.0.1:0", "unix app.sock"} {
			t.Run(server+" "+spec, func(t *testing.T) {
				t.Parallel()
				p := serve(t, server, "workers=2", "listen="+spec)
				for _, pid := range p.workers() {
					suspend(t, pid)
				}
				var conns []net.Conn
				for range 50 {
					c := p.dial()
					defer c.Close()
					if server == "http" {
						io.WriteString(c, "GET / HTTP/1.1\r\nHost: cluster\r\nConnection: close\r\n\r\n")
					} else {
						io.WriteString(c, "hello\n")
					}
					conns = append(conns, c)
				}
				p.signal(syscall.SIGQUIT)
				p.wait("kill") // the sockets let nobody in any more
				for _, pid := range p.workers() {
					kill(t, pid, syscall.SIGCONT)
				}
				for i, c := range conns {
					var err error
					if server == "http" {
						_, err = readResponse(bufio.NewReader(c))
					} else {
						_, err = bufio.NewReader(c).ReadString('\n')
					}
					if err != nil {
						t.Errorf("connection %d: %v", i, err)
					}
				}
				p.end(0)
			})
		}
	}
}

// A load makes requests, each in a connection of its own, and tries none
// again.
type load struct {
	p            *proc
	ok, failed   atomic.Int64
	clients      sync.WaitGroup
	stop         chan struct{}
	firstFailure sync.Once
}

func (p *proc) load(clients int) *load {
	l := &load{p: p, stop: make(chan struct{})}
	network, address := p.addr()
	for range clients {
		l.clients.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				c, err := net.DialTimeout(network, address, patience)
				if err != nil {
					return // nobody listens any more
				}
				c.SetDeadline(time.Now().Add(patience))
				_, err = roundTrip(c, "/")
				c.Close()
				if err != nil {
					l.failed.Add(1)
					l.firstFailure.Do(func() { p.t.Errorf("first failed request: %v", err) })
				} else {
					l.ok.Add(1)
				}
			}
		})
	}
	return l
}

// reach waits until n more requests have been answered.
func (l *load) reach(n int64) {
	l.p.t.Helper()
	n += l.ok.Load()
	if !eventually(patience, func() bool { return l.ok.Load() >= n }) {
		l.p.t.Fatal("timeout waiting for requests to be answered")
	}
}

// end ends the load, and checks that no request has failed.
func (l *load) end() {
	l.p.t.Helper()
	close(l.stop)
	l.check()
}

// check waits until nobody listens any more.
func (l *load) check() {
	l.p.t.Helper()
	l.clients.Wait()
	if n := l.failed.Load(); n > 0 {
		l.p.t.Errorf("%d requests failed, %d were answered", n, l.ok.Load())
	}
}

func TestConnectionPerRequestRestartWorkers(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	l := p.load(4)
	for range 4 {
		l.reach(50)
		p.mustCall("restartworkers")
	}
	l.reach(50)
	l.end()
	p.quit()
}

func TestConnectionPerRequestClose(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"tcp 127.0.0.1:0", "unix app.sock"} {
		p := serve(t, "http", "workers=2", "listen="+spec)
		l := p.load(4)
		l.reach(100)
		p.signal(syscall.SIGQUIT)
		l.check()
		p.end(0)
	}
}

// Keep-alive connections: a response that has begun is finished, and the
// connection is closed only where a client has been told so, or was idle.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"restartworkers", "close"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			p := serve(t, "http", "workers=2")
			var idle, busy []*held
			for range 4 {
				h := p.hold()
				busy = append(busy, h)
			}
			for range 4 {
				c := p.dial()
				fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: cluster\r\n\r\n")
				if _, err := readResponse(bufio.NewReader(c)); err != nil {
					t.Error(err)
				}
				idle = append(idle, &held{Conn: c})
			}
			answer := p.begin("%s", end)
			for _, h := range idle { // closed, not reset, and not served by half
				if n, err := h.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("idle connection: %d bytes, %v", n, err)
				}
			}
			for _, h := range busy {
				if got := h.finish(); got != strconv.Itoa(h.Pid) {
					t.Errorf("busy connection: answer %q, want %d", got, h.Pid)
				}
			}
			if got := answer(); got != "" {
				t.Errorf("%s: %s", end, got)
			}
			if end == "close" {
				p.end(0)
			} else {
				p.quit()
			}
		})
	}
}

// RestartWorkers has a successor ready before its predecessor goes; Replace
// does that for one.
func TestRestartWorkers(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=3")
	before := p.workers()
	h := p.hold()
	p.mustCall("restartworkers")
	h.finish()
	for id, pid := range before {
		p.waitFor("the old workers' end", func(e event) bool { return e.Name == "killed" && e.ID == id && e.Pid == pid })
	}
	after := p.workers()
	ready := make(map[int]bool)
	for _, e := range p.history("connected", "killed") {
		if e.Name == "connected" {
			ready[e.ID] = ready[e.ID] || before[e.ID] != e.Pid
		} else if !ready[e.ID] {
			t.Errorf("worker %d had no successor when it died", e.ID)
		}
	}
	p.mustCall("replace 1")
	p.wait("killed", 1)
	last := p.workers()
	if len(last) != 3 || last[1] == after[1] || last[0] != after[0] || last[2] != after[2] {
		t.Errorf("workers were %v, are %v after replace 1", after, last)
	}
	if got := p.call("replace 7"); !strings.Contains(got, "no worker 7") {
		t.Errorf("replace 7: %q", got)
	}
	p.quit()
}

// A worker that drains at the signal's word, told by hand, is replaced while
// it finishes.
func TestDrainByHand(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	h := p.hold()
	kill(t, h.Pid, syscall.SIGQUIT)
	p.wait("connected") // the first
	p.wait("connected")
	if got := p.get("/"); got == strconv.Itoa(h.Pid) {
		t.Error("a worker that drains has accepted")
	}
	h.finish()
	p.wait("killed")
	p.quit()
}

// Children lists the workers that drain too.
func TestChildren(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	h := p.hold()
	p.mustCall("restartworkers")
	if got := p.call("children"); !strings.Contains(got, fmt.Sprintf("0 %d draining", h.Pid)) || !strings.Contains(got, "ready") {
		t.Errorf("children:\n%s", got)
	}
	h.finish()
	p.quit()
}
