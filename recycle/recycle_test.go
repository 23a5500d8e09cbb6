//go:build unix

package recycle_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/recycle"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"server": server})
}

// server is the program: a cluster of three workers with the options that are
// its first argument. They answer lines: "pid", or "grow" by 64 MiB. While
// there is a file "fail" no worker can be started, and while there is one "slow"
// none becomes ready.
func server() {
	var o recycle.Options
	if err := json.Unmarshal([]byte(os.Args[1]), &o); err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{
		Workers: 3,
		NewServer: func() (cluster.Server, error) {
			if _, err := os.Stat("fail"); err == nil {
				return nil, errors.New("no server today")
			}
			if _, err := os.Stat("slow"); err == nil {
				clustertest.Tell("waits %d", os.Getpid())
				clustertest.Eventually(clustertest.Patience, func() bool {
					_, err := os.Stat("slow")
					return err != nil
				})
			}
			return &cluster.TCPServer{Handler: serve}, nil
		},
	}
	m.Use(recycle.New(&o), clustertest.Events)
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if !cluster.IsWorker() && new(cluster.Master).Predecessor() == 0 {
		clustertest.Tell("addr %v", l.Addr())
	}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

var (
	mu   sync.Mutex
	leak [][]byte
)

func serve(ctx context.Context, c net.Conn) {
	for sc := bufio.NewScanner(c); sc.Scan(); {
		if sc.Text() == "grow" {
			b := make([]byte, 64<<20)
			for i := 0; i < len(b); i += 512 {
				b[i] = 1
			}
			mu.Lock()
			leak = append(leak, b)
			mu.Unlock()
		}
		fmt.Fprintln(c, os.Getpid())
	}
}

// A client is a connection to a worker.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(clustertest.Patience))
	return &client{conn, bufio.NewReader(conn)}
}

// ask returns the process id of the worker.
func (c *client) ask(t *testing.T, line string) int {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := c.r.ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(answer))
	if err = errors.Join(err, perr); err != nil {
		t.Fatal(err)
	}
	return pid
}

// command returns the program, to be started.
func command(t *testing.T, o recycle.Options) *clustertest.Program {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return clustertest.Command(t, "server", string(data))
}

// start starts a cluster and returns it with its address and its workers, by
// id.
func start(t *testing.T, o recycle.Options) (p *clustertest.Program, addr string, pids map[string]int) {
	t.Helper()
	p = command(t, o).Start()
	pids = make(map[string]int)
	for _, id := range []string{"0", "1", "2"} {
		pids[id] = p.WaitPid("ready", id)
	}
	return p, p.Wait("addr")[0], pids
}

// quit shuts down. Nothing is replaced meanwhile.
func quit(t *testing.T, p *clustertest.Program, master int) {
	t.Helper()
	p.Kill(master, syscall.SIGQUIT)
	p.Wait("close", strconv.Itoa(master))
	p.End(0, "fail")
}

// Every worker is replaced when it is too old, but no two at a time.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	p, addr, pids := start(t, recycle.Options{MaxAge: 500 * time.Millisecond, Interval: 5 * time.Millisecond})
	held := dial(t, addr)
	pid := held.ask(t, "pid")
	for range 2 {
		for range pids {
			id, next := "", 0
			p.WaitLog("recycle: replacing worker")
			if ready := p.Wait("ready"); len(ready) == 2 { // some id
				id = ready[0]
				next, _ = strconv.Atoi(ready[1])
			}
			old := pids[id]
			pids[id] = next
			if old == pid {
				// It can't go: the others have to wait, however old they are.
				replaced := strings.Count(p.Log(), "replacing")
				time.Sleep(700 * time.Millisecond)
				if n := strings.Count(p.Log(), "replacing"); n != replaced {
					t.Errorf("%d more workers were replaced while one drains", n-replaced)
				}
				if n := len(p.Processes()); n != 1+4 {
					t.Errorf("%d processes, want the master, 3 workers, and one that drains", n)
				}
				held.Close()
				pid = 0
			}
			p.Wait("killed", id, strconv.Itoa(old), "exit", "status", "0")
		}
	}
	if pid != 0 {
		t.Errorf("worker %d was not replaced", pid)
	}
	quit(t, p, p.Pid())
}

func TestMaxConns(t *testing.T) {
	t.Parallel()
	p, addr, pids := start(t, recycle.Options{MaxConns: 30, Jitter: -1, Interval: 5 * time.Millisecond})
	served := make(map[int]int)
	for len(served) == 0 || slices.Max(values(served)) < 30 {
		c := dial(t, addr)
		served[c.ask(t, "pid")]++
		c.Close()
	}
	for id, pid := range pids {
		if served[pid] >= 30 {
			p.WaitPid("ready", id)
			p.Wait("killed", id, strconv.Itoa(pid), "exit", "status", "0")
			p.WaitLog(fmt.Sprintf("recycle: replacing worker %s (pid %d): it has accepted 30 connections, its limit is 30", id, pid))
		}
	}
	if n := strings.Count(p.Log(), "replacing"); n != 1 {
		t.Errorf("%d workers were replaced, want 1", n)
	}
	quit(t, p, p.Pid())
}

func values(m map[int]int) (list []int) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

func TestMaxMemory(t *testing.T) {
	t.Parallel()
	p, addr, pids := start(t, recycle.Options{MaxMemory: 128 << 20, Interval: 5 * time.Millisecond})
	c := dial(t, addr)
	pid := c.ask(t, "grow")
	c.ask(t, "grow")
	for id := range pids {
		if pids[id] == pid {
			p.WaitPid("ready", id)
			p.WaitLog(fmt.Sprintf("recycle: replacing worker %s (pid %d): it takes ", id, pid))
			c.ask(t, "pid") // it drains
			c.Close()
			p.Wait("killed", id, strconv.Itoa(pid), "exit", "status", "0")
		}
	}
	if n := strings.Count(p.Log(), "replacing"); n != 1 {
		t.Errorf("%d workers were replaced, want 1", n)
	}
	quit(t, p, p.Pid())
}

// A worker whose successor fails stays, and is tried again less and less
// often.
func TestFailure(t *testing.T) {
	t.Parallel()
	p, addr, _ := start(t, recycle.Options{MaxAge: time.Second, Jitter: 0.01, Interval: 5 * time.Millisecond})
	fail := filepath.Join(p.Dir, "fail")
	if err := os.WriteFile(fail, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var first time.Time
	for _, pause := range []string{"50ms", "100ms", "200ms", "400ms"} {
		p.WaitLog("no server today; next try in " + pause)
		if first.IsZero() {
			first = time.Now()
		}
	}
	if d := time.Since(first); d < 300*time.Millisecond {
		t.Errorf("four tries in %v", d)
	}
	c := dial(t, addr)
	c.ask(t, "pid")
	c.Close()
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"0", "1", "2"} {
		p.Wait("ready", id)
	}
	quit(t, p, p.Pid())
}

// A new master replaces its own workers, and none before it is the master. The
// old one, which drains, replaces nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	p, addr, _ := start(t, recycle.Options{MaxAge: 300 * time.Millisecond, Interval: 5 * time.Millisecond})
	held := dial(t, addr)
	old := held.ask(t, "pid")
	p.Wait("listening")
	p.Signal(syscall.SIGUSR2)
	master := p.WaitPid("listening")
	p.Wait("closing", strconv.Itoa(p.Pid()))
	if runtime.GOOS == "linux" && !slices.Contains(p.Processes(), old) {
		t.Errorf("worker %d does not drain", old)
	}
	p.Forget("worker", "ready", "killed")
	seen := make(map[string]bool)
	for len(seen) < 3 {
		seen[p.Wait("ready")[0]] = true
	}
	held.Close()
	p.Wait("close", strconv.Itoa(p.Pid()))
	p.Wait("restarted", strconv.Itoa(master))
	quit(t, p, master)
}

// While the cluster or its workers are restarted nothing else is replaced.
func TestRestartTakesLong(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR2} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			p, _, _ := start(t, recycle.Options{MaxAge: 800 * time.Millisecond, Interval: 5 * time.Millisecond})
			p.Wait("listening")
			slow := filepath.Join(p.Dir, "slow")
			if err := os.WriteFile(slow, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			p.Signal(sig)
			p.Wait("waits")
			time.Sleep(time.Second) // all workers are too old now
			if log := p.Log(); log != "" {
				t.Errorf("it says %q", log)
			}
			if err := os.Remove(slow); err != nil {
				t.Fatal(err)
			}
			p.WaitLog("recycle: replacing")
			p.Signal(syscall.SIGQUIT)
			p.End(0)
		})
	}
}

// No limit, no plugin.
func TestOff(t *testing.T) {
	t.Parallel()
	p, _, _ := start(t, recycle.Options{Interval: time.Millisecond})
	before := p.Processes()
	time.Sleep(200 * time.Millisecond)
	if now := p.Processes(); !slices.Equal(now, before) || p.Log() != "" {
		t.Errorf("the processes are %v, and were %v; it says %q", now, before, p.Log())
	}
	p.Signal(syscall.SIGTERM)
	p.End(0)
}
