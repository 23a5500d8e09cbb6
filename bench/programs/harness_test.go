//go:build linux

package programs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster/internal/clustertest"
)

func TestMain(m *testing.M) { clustertest.Main(m, nil) }

// A program is one that is running.
type program struct {
	*clustertest.Program
	first  int        // the first process
	former [][]string // the workers of every generation but the last, by their own ids
}

// start builds a program and runs it.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	exe := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", exe, "./"+name).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return run(t, append([]string{exe}, args...)...)
}

// run runs a command that is a program, or gives way to one.
func run(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{Program: clustertest.Command(t, "")}
	p.Cmd.Path, p.Cmd.Args = args[0], args
	p.Start()
	p.first = p.Pid()
	return p
}

// address waits until the first process has bound port 0, and returns what
// the kernel has given it.
func (p *program) address(network string) (addr string) {
	p.T.Helper()
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		table, _ := os.ReadFile("/proc/net/" + network)
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if _, port, ok := strings.Cut(fields[1], ":"); ok && slices.Contains(p.files(p.first), "socket:["+fields[9]+"]") {
				n, _ := strconv.ParseUint(port, 16, 16)
				addr = net.JoinHostPort("127.0.0.1", strconv.FormatUint(n, 10))
				return true
			}
		}
		return false
	}) {
		p.T.Fatal("the program binds no port")
	}
	return addr
}

// files returns what the descriptors of a process are.
func (p *program) files(pid int) (list []string) {
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, path := range paths {
		if target, err := os.Readlink(path); err == nil {
			list = append(list, target)
		}
	}
	return list
}

// processes returns the program's masters, with the stand-in, and workers: a
// process without children is a worker.
func (p *program) processes() (masters, workers []int) {
	for _, pid := range p.Processes() {
		paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		var children []byte
		for _, path := range paths {
			b, _ := os.ReadFile(path)
			children = append(children, b...)
		}
		if len(bytes.TrimSpace(children)) > 0 {
			masters = append(masters, pid)
		} else {
			workers = append(workers, pid)
		}
	}
	return masters, workers
}

// ownIDs returns what processes have for their ids, in a namespace perhaps.
func ownIDs(pids []int) (ids []string) {
	for _, pid := range pids {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if fields := strings.Fields(line); fields[0] == "NSpid:" {
				ids = append(ids, fields[len(fields)-1])
			}
		}
	}
	return ids
}

// replace sends sig to the first process and waits until none of the present
// workers is left.
func (p *program) replace(sig syscall.Signal) {
	p.T.Helper()
	_, old := p.processes()
	p.former = append(p.former, ownIDs(old))
	p.Kill(p.first, sig)
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		_, workers := p.processes()
		return !slices.ContainsFunc(workers, func(pid int) bool { return slices.Contains(old, pid) })
	}) {
		p.T.Fatalf("after %v the workers are still there", sig)
	}
}

// A load is a number of clients that ask over and over.
type load struct {
	name    string
	p       *program
	stop    context.CancelFunc
	clients sync.WaitGroup

	mu       sync.Mutex // guards the following
	answers  map[string]int
	failures []error
}

// load starts clients. Each of them calls connect once, and ask, which returns
// the process id of the worker that has answered, again and again.
func (p *program) load(name string, clients int, connect func() (ask func() (pid string, err error), close func())) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{name: name, p: p, stop: cancel, answers: make(map[string]int)}
	for range clients {
		l.clients.Go(func() {
			ask, close := connect()
			defer close()
			for ctx.Err() == nil {
				pid, err := ask()
				l.mu.Lock()
				if err != nil {
					l.failures = append(l.failures, err)
				} else {
					l.answers[pid]++
				}
				l.mu.Unlock()
				time.Sleep(time.Millisecond) // spare the system's port numbers
			}
		})
	}
	p.T.Cleanup(func() { cancel(); l.clients.Wait() })
	return l
}

// total returns the number of answers. l.mu is held.
func (l *load) total() (n int) {
	for _, k := range l.answers {
		n += k
	}
	return n
}

// more waits for n more answers.
func (l *load) more(n int) {
	l.p.T.Helper()
	l.mu.Lock()
	n += l.total()
	l.mu.Unlock()
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.total() >= n || len(l.failures) > 100
	}) {
		l.p.T.Fatalf("%s: no more answers", l.name)
	}
}

// end stops the clients, tells the numbers, and checks that no request has
// failed and that every generation of workers has answered. It returns the
// number of answers.
func (l *load) end() int {
	l.p.T.Helper()
	l.stop()
	l.clients.Wait()
	n := l.total()
	l.p.T.Logf("%s: %d requests, %d failed, %d restarts", l.name, n+len(l.failures), len(l.failures), len(l.p.former))
	for _, err := range l.failures[:min(5, len(l.failures))] {
		l.p.T.Errorf("%s: %v", l.name, err)
	}
	_, last := l.p.processes()
	for _, workers := range append(l.p.former, ownIDs(last)) {
		if !slices.ContainsFunc(workers, func(id string) bool { return l.answers[id] > 0 }) {
			l.p.T.Errorf("%s: no answer from the workers %v: %v", l.name, workers, l.answers)
		}
	}
	return n
}

// restarts replaces everything, the workers alone, and everything again, while
// the clients go on.
func (p *program) restarts(loads ...*load) {
	p.T.Helper()
	more := func() {
		for _, l := range loads {
			l.more(200)
		}
	}
	more()
	for _, sig := range []syscall.Signal{syscall.SIGUSR2, syscall.SIGHUP, syscall.SIGUSR2} {
		p.replace(sig)
		more()
	}
}

// get returns the answer to a request.
func get(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

// httpClient returns what load takes: requests over a transport that every client
// gets from transport.
func httpClient(url string, transport func() *http.Transport) func() (func() (string, error), func()) {
	return func() (func() (string, error), func()) {
		c := &http.Client{Transport: transport(), Timeout: clustertest.Patience}
		return func() (string, error) { return get(c, url) }, c.CloseIdleConnections
	}
}

// once is a transport with a connection for every request.
func once() *http.Transport { return &http.Transport{DisableKeepAlives: true} }
