//go:build unix

package stats_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/repl"
	"github.com/gocluster/cluster/stats"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"cluster": program})
}

// program is a cluster with two workers that all tests use. Its arguments are
// the interval, "" being a short one, and the address of stats.Serve.
func program() {
	interval, err := time.ParseDuration(os.Args[1])
	if err != nil {
		interval = 20 * time.Millisecond
	}
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Workers: 2}
	m.NewServer = func() (cluster.Server, error) {
		if _, err := os.Stat("broken"); err == nil {
			return nil, fmt.Errorf("this version is broken")
		}
		return handoff.Server(&http.Server{Handler: stats.Handler(http.HandlerFunc(answer))}), nil
	}
	m.Use(
		stats.Serve(os.Args[2]), // before New, though it says more
		clustertest.Events,
		repl.New("repl.sock"),
		stats.New(&stats.Options{Interval: interval}),
	)
	m.On(cluster.Hooks{Message: func(w *cluster.Worker, name string, data json.RawMessage) {
		clustertest.Tell("batch %d %s", w.ID, data)
	}})
	if m.IsMaster() && m.Predecessor() == 0 {
		clustertest.Tell("addr %s", l.Addr())
	}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

// answer answers with the process id; to /slow when there is a file "go".
func answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/slow" {
		clustertest.Tell("slow %d", os.Getpid())
		if !clustertest.Eventually(clustertest.Patience/2, func() bool {
			_, err := os.Stat("go")
			return err == nil
		}) {
			http.Error(w, "nobody has released this request", http.StatusInternalServerError)
			return
		}
	}
	fmt.Fprintf(w, "%d", os.Getpid())
}

// A running is a cluster under test.
type running struct {
	*clustertest.Program
	addr  string       // of the cluster
	stats *http.Client // reaches stats.Serve
}

// start starts a cluster and waits until it serves. An address of "" for
// stats.Serve is a unix socket.
func start(t *testing.T, interval, addr string) *running {
	t.Helper()
	network := "tcp"
	if addr == "" {
		network, addr = "unix", "stats.sock"
	}
	r := &running{Program: clustertest.Start(t, "cluster", interval, addr)}
	if network == "unix" {
		addr = filepath.Join(r.Dir, addr)
	}
	r.stats = client(t, network, addr)
	r.addr = r.Wait("addr")[0]
	r.Wait("listening")
	return r
}

// client returns a client whose connections all go to one address.
func client(t *testing.T, network, addr string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: clustertest.Patience}
}

// get returns an answer, and tries again while the address goes over to a
// new master.
func (r *running) get(path string) string {
	r.T.Helper()
	var body string
	var err error
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		body, err = fetch(r.stats, "http://stats"+path)
		return err == nil
	}) {
		r.T.Fatalf("%s: %v", path, err)
	}
	return body
}

func fetch(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

func (r *running) read() (s stats.Stats) {
	r.T.Helper()
	if err := json.Unmarshal([]byte(r.get("/stats.json")), &s); err != nil {
		r.T.Fatal(err)
	}
	return s
}

// until reads until what is read is right.
func (r *running) until(what string, right func(stats.Stats) bool) (s stats.Stats) {
	r.T.Helper()
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		s = r.read()
		return right(s)
	}) {
		r.T.Fatalf("waiting for %s: %+v", what, s)
	}
	return s
}

// metrics returns the samples of /metrics.
func (r *running) metrics() map[string]float64 {
	r.T.Helper()
	samples := make(map[string]float64)
	for line := range strings.Lines(r.get("/metrics")) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			r.T.Fatalf("%q: %v", line, err)
		}
		samples[name] = f
	}
	return samples
}

// requests makes n requests, each on a connection of its own or all on one.
// It returns what tells who has answered, and closes the connection.
func (r *running) requests(n int, keepAlive bool) (pid int, closeAll func()) {
	r.T.Helper()
	transport := &http.Transport{DisableKeepAlives: !keepAlive}
	c := &http.Client{Transport: transport, Timeout: clustertest.Patience}
	for range n {
		body, err := fetch(c, "http://"+r.addr)
		if err != nil {
			r.T.Fatal(err)
		}
		if pid, err = strconv.Atoi(body); err != nil {
			r.T.Fatal(err)
		}
	}
	return pid, transport.CloseIdleConnections
}

// slow begins a request that lasts until release is called, which checks how
// it has ended. It returns when the request is being served.
func (r *running) slow() (release func()) {
	r.T.Helper()
	done := make(chan error)
	go func() {
		_, err := fetch(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+r.addr+"/slow")
		done <- err
	}()
	r.Wait("slow")
	return func() {
		r.T.Helper()
		if err := os.WriteFile(filepath.Join(r.Dir, "go"), nil, 0o644); err != nil {
			r.T.Fatal(err)
		}
		if err := <-done; err != nil {
			r.T.Error(err)
		}
	}
}

func (r *running) upgrade() {
	r.T.Helper()
	r.Signal(syscall.SIGUSR2)
	r.Wait("listening")
	r.Wait("restarted")
}

// Connections and requests are counted exactly, and every way to read them
// tells the same.
func TestCounts(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	_, closeAll := r.requests(40, true)
	defer closeAll()
	r.requests(10, false)
	release := r.slow()
	s := r.until("12 connections", func(s stats.Stats) bool { return s.Connections == 12 && s.Active == 2 && s.Requests == 51 })
	var sum stats.Stats
	for i, w := range s.Workers {
		if w.ID != i || w.State != "ready" || w.Uptime <= 0 || w.Uptime > s.Uptime {
			t.Errorf("worker %d: %+v", i, w)
		}
		if w.Resident < 1<<20 {
			t.Errorf("worker %d has %d bytes of memory", i, w.Resident)
		}
		sum.Active += w.Active
		sum.Connections += w.Connections
		sum.Requests += w.Requests
	}
	if sum.Active != 2 || sum.Connections != 12 || sum.Requests != 51 {
		t.Errorf("sums of the workers: %+v", sum)
	}
	if len(s.Workers) != 2 || s.Spawned != 2 || s.Deaths != 0 || s.Restarts != 0 || s.State != "active" || s.Pid != r.Pid() ||
		s.CPUs < 1 || len(s.Load) != 3 || s.Memory == nil || s.Memory.Free == 0 || s.Memory.Total <= s.Memory.Free ||
		s.MemoryAtBoot == nil || s.MasterResident < 1<<20 || s.Uptime <= 0 || s.Uptime > 60 {
		t.Errorf("%+v", s)
	}
	m := r.metrics()
	for name, want := range map[string]float64{
		`cluster_workers{state="ready"}`:    2,
		`cluster_workers{state="draining"}`: 0,
		"cluster_workers_spawned_total":     2,
		"cluster_worker_deaths_total":       0,
		"cluster_restarts_total":            0,
		"cluster_start_time_seconds":        float64(s.Started.UnixMilli()) / 1000,
	} {
		if got, ok := m[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]float64{"cluster_connections_active": 2, "cluster_connections_total": 12, "cluster_requests_total": 51} {
		if got := m[name+`{worker="0"}`] + m[name+`{worker="1"}`]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	release()
	closeAll()
	r.until("the end of the connections", func(s stats.Stats) bool { return s.Connections == 12 && s.Active == 0 })
	r.Quit("go")
}

// A worker sends at most once in an interval, and nothing when it is idle.
func TestBatches(t *testing.T) {
	t.Parallel()
	const interval = 100 * time.Millisecond
	r := start(t, interval.String(), "")
	type batch struct{ Active, Connections, Requests int }
	last := make(map[string]batch)
	batches := 0
	await := func(want batch) {
		t.Helper()
		for sum := (batch{-1, 0, 0}); sum != want; batches++ {
			line := r.Wait("batch")
			var b batch
			if err := json.Unmarshal([]byte(line[1]), &b); err != nil {
				t.Fatal(err)
			}
			if b == last[line[0]] {
				t.Errorf("worker %s has sent %+v again", line[0], b)
			}
			last[line[0]] = b
			sum = batch{}
			for _, b := range last {
				sum.Active += b.Active
				sum.Connections += b.Connections
				sum.Requests += b.Requests
			}
		}
	}
	begun := time.Now()
	var closers []func()
	for range 20 {
		_, closeAll := r.requests(10, true)
		closers = append(closers, closeAll)
	}
	await(batch{20, 20, 200})
	if most := 2 * (1 + int(time.Since(begun)/interval)); batches > most {
		t.Errorf("%d batches in %v", batches, time.Since(begun))
	}
	time.Sleep(3 * interval) // what is sent now, await sees
	for _, closeAll := range closers {
		closeAll()
	}
	await(batch{0, 20, 200})
	r.Quit()
}

// What a worker has sent stays in the totals when it is killed, and what its
// successor counts is added.
func TestKilledWorker(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	pid, closeAll := r.requests(30, true)
	closeAll()
	r.until("the requests", func(s stats.Stats) bool { return s.Requests == 30 && s.Connections == 1 && s.Active == 0 })
	before := r.metrics()
	for range 2 {
		r.Wait("ready")
	}
	r.Kill(pid, syscall.SIGKILL)
	r.Wait("ready")
	r.Wait("killed")
	s := r.read()
	if s.Requests != 30 || s.Connections != 1 || s.Spawned != 3 || s.Deaths != 1 || len(s.Workers) != 2 {
		t.Errorf("after the death of a worker: %+v", s)
	}
	for _, w := range s.Workers {
		if w.Requests != 0 {
			t.Errorf("worker %d has counted %d requests, and has got none", w.ID, w.Requests)
		}
	}
	after := r.metrics()
	for _, name := range []string{"cluster_requests_total", "cluster_connections_total"} {
		for _, label := range []string{`{worker="0"}`, `{worker="1"}`} {
			if before[name+label] != after[name+label] {
				t.Errorf("%s%s was %v and is %v", name, label, before[name+label], after[name+label])
			}
		}
	}
	r.requests(5, false)
	r.until("more requests", func(s stats.Stats) bool { return s.Requests == 35 && s.Connections == 6 })
	r.Quit()
}

// The last batch comes when a worker has drained: here there is no other.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	r := start(t, "1h", "")
	r.requests(25, false)
	release := r.slow()
	if s := r.read(); s.Requests != 0 {
		t.Errorf("%d requests before the first batch", s.Requests)
	}
	r.Signal(syscall.SIGHUP)
	r.Wait("killed") // the other worker
	release()
	r.Wait("killed")
	if s := r.read(); s.Requests != 26 || s.Connections != 26 || s.Active != 0 || s.Spawned != 4 || s.Deaths != 2 || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	r.Quit("go")
}

// Removed workers stay in the totals, and their slot goes on where it was.
func TestRemovedWorker(t *testing.T) {
	t.Parallel()
	r := start(t, "1h", "")
	r.requests(20, false)
	r.Signal(syscall.SIGTTOU)
	r.Wait("killed", "1")
	removed := r.metrics()[`cluster_requests_total{worker="1"}`]
	r.Wait("ready", "1")
	r.Signal(syscall.SIGTTIN)
	r.Wait("ready", "1")
	if again := r.metrics()[`cluster_requests_total{worker="1"}`]; again != removed {
		t.Errorf("worker 1 had %v requests, and its successor begins with %v", removed, again)
	}
	r.Signal(syscall.SIGHUP)
	r.Wait("killed")
	r.Wait("killed")
	if s := r.read(); s.Requests != 20 || s.Spawned != 5 || s.Deaths != 3 {
		t.Errorf("%+v", s)
	}
	r.Quit()
}

// All totals survive restarts, with what the old workers count until they
// are dead.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := start(t, "1h", "")
	first := r.read()
	r.requests(15, false)
	release := r.slow()
	r.Signal(syscall.SIGUSR2)
	pid := r.WaitPid("listening")
	s := r.until("the new master", func(s stats.Stats) bool { return s.Pid == pid })
	if s.Restarts != 1 || s.Spawned != 4 || !s.Started.Equal(first.Started) || !s.MasterStarted.After(first.MasterStarted) || s.Memory == nil {
		t.Errorf("while the old master drains: %+v", s)
	}
	release()
	r.Wait("restarted")
	s = r.until("what the old workers have counted", func(s stats.Stats) bool { return s.Requests == 16 && s.Deaths == 2 })
	if s.Connections != 16 || s.Spawned != 4 || s.Restarts != 1 || *s.MemoryAtBoot != *first.MemoryAtBoot {
		t.Errorf("after the restart: %+v", s)
	}
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		sockets, _ := os.ReadFile("/proc/net/unix")
		return !strings.Contains(string(sockets), fmt.Sprintf("%s/cluster.%d.stats", r.Dir, r.Pid()))
	}) {
		t.Error("the stand-in has kept a socket")
	}
	r.requests(4, false)
	r.upgrade()
	s = r.until("what both generations have counted", func(s stats.Stats) bool { return s.Requests == 20 && s.Deaths == 4 })
	if s.Connections != 20 || s.Spawned != 6 || s.Restarts != 2 || !s.Started.Equal(first.Started) {
		t.Errorf("after two restarts: %+v", s)
	}
	r.Quit("go")
}

// Under load, no counter falls from one reading to the next while masters
// and workers are replaced, and at the end not one request is missing.
func TestRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	r := start(t, "10ms", "")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	made := make([]int, 4)
	for i := range made {
		clients.Go(func() {
			transport := new(http.Transport)
			defer transport.CloseIdleConnections()
			c := &http.Client{Transport: transport}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := fetch(c, "http://"+r.addr); err != nil {
					t.Error(err)
					return
				}
				made[i]++
			}
		})
	}
	var reader sync.WaitGroup
	readings := 0
	reader.Go(func() {
		for before := r.metrics(); ; readings++ {
			select {
			case <-stop:
				return
			default:
			}
			now := r.metrics()
			for name, value := range before {
				if strings.Contains(name, "_total") && now[name] < value {
					t.Errorf("%s was %v, and then %v", name, value, now[name])
				}
			}
			before = now
		}
	})
	for range 2 {
		r.upgrade()
	}
	r.Signal(syscall.SIGHUP)
	for range 6 {
		r.Wait("killed")
	}
	close(stop)
	clients.Wait()
	reader.Wait()
	total := 0
	for _, n := range made {
		total += n
	}
	s := r.until(fmt.Sprintf("%d requests", total), func(s stats.Stats) bool { return s.Requests >= uint64(total) && s.Active == 0 })
	if s.Requests != uint64(total) || s.Restarts != 2 || s.Spawned != 8 || s.Deaths != 6 {
		t.Errorf("%d requests, but %+v", total, s)
	}
	t.Logf("%d requests, %d readings", total, readings)
	r.Quit()
}

// A restart that fails counts as none and changes nothing.
func TestFailedRestart(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	r.requests(5, false)
	before := r.until("the requests", func(s stats.Stats) bool { return s.Requests == 5 && s.Active == 0 })
	broken := filepath.Join(r.Dir, "broken")
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.Signal(syscall.SIGUSR2)
		r.Wait("failed")
	}
	os.Remove(broken)
	after := r.read()
	if after.Restarts != 0 || after.Spawned != 2 || after.Deaths != 0 || after.Requests != 5 || after.Pid != before.Pid {
		t.Errorf("before: %+v\nafter: %+v", before, after)
	}
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		left, _ := filepath.Glob(filepath.Join(r.Dir, "*.stats"))
		return len(left) == 0
	}) {
		t.Error("the failed restart has left its socket behind")
	}
	r.upgrade()
	r.until("the good restart", func(s stats.Stats) bool {
		return s.Restarts == 1 && s.Spawned == 4 && s.Deaths == 2 && s.Requests == 5
	})
	r.Quit()
}

// Where there can be no socket the values of the restart have to do.
func TestRestartWithoutSocket(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	first := r.read()
	r.requests(5, false)
	r.until("the requests", func(s stats.Stats) bool { return s.Requests == 5 && s.Connections == 5 && s.Active == 0 })
	inTheWay := fmt.Sprintf("cluster.%d.stats", r.Pid())
	if err := os.MkdirAll(filepath.Join(r.Dir, inTheWay, "something"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.upgrade()
	s := r.until("the values", func(s stats.Stats) bool { return s.Spawned == 4 })
	if s.Requests != 5 || s.Connections != 5 || s.Restarts != 1 || !s.Started.Equal(first.Started) {
		t.Errorf("%+v", s)
	}
	r.Quit(inTheWay)
}

// The old master is killed while it drains: what it has told is kept.
func TestKilledMaster(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	r.upgrade() // the first process stays as a stand-in, and is not the one to be killed
	old := r.read().Pid
	r.requests(5, false)
	r.until("the requests", func(s stats.Stats) bool { return s.Requests == 5 })
	release := r.slow()
	r.until("the slow request", func(s stats.Stats) bool { return s.Requests == 6 })
	r.Signal(syscall.SIGUSR2)
	pid := r.WaitPid("listening")
	r.until("the new master", func(s stats.Stats) bool { return s.Pid == pid })
	r.Kill(old, syscall.SIGKILL) // which leaves its master socket behind
	r.Wait("restarted")
	if s := r.read(); s.Requests != 6 || s.Restarts != 2 {
		t.Errorf("%+v", s)
	}
	release()
	r.Quit("go", fmt.Sprintf("cluster.%d.server.sock", old))
}

// The address goes over to the new master, and can be a TCP port.
func TestServeTakeOver(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	r := start(t, "", addr)
	if s := r.read(); s.Pid != r.Pid() {
		t.Errorf("master %d answers, not %d", s.Pid, r.Pid())
	}
	// The client's idle connection would keep it with the old master.
	release := r.slow()
	r.Signal(syscall.SIGUSR2)
	pid := r.WaitPid("listening")
	r.until("the new master", func(s stats.Stats) bool { return s.Pid == pid })
	release()
	r.Wait("restarted")
	r.Quit("go")
}

func TestServeAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, addr := range []string{l.Addr().String(), "nonsense:port"} {
		p := clustertest.Start(t, "cluster", "", addr)
		p.WaitLog("stats: ")
		p.End(1)
	}
}

// What is served, and what isn't.
func TestServe(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	for _, test := range []struct {
		method, path string
		status       int
		contentType  string
		body         string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "<title>cluster</title>"},
		{"GET", "/stats.json", 200, "application/json", `"requests": 0`},
		{"GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "\n# TYPE cluster_workers gauge\n"},
		{"HEAD", "/", 200, "text/html; charset=utf-8", ""},
		{"HEAD", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", ""},
		{"POST", "/", 405, "text/plain; charset=utf-8", ""},
		{"DELETE", "/stats.json", 405, "text/plain; charset=utf-8", ""},
		{"PUT", "/metrics", 405, "text/plain; charset=utf-8", ""},
		{"GET", "/favicon.ico", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/debug/pprof/", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/metrics/", 404, "text/plain; charset=utf-8", ""},
		{"POST", "/nothing", 404, "text/plain; charset=utf-8", ""},
	} {
		req, err := http.NewRequest(test.method, "http://stats"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.stats.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || resp.Header.Get("Content-Type") != test.contentType || !strings.Contains(string(body), test.body) {
			t.Errorf("%s %s: %v %q %v\n%s", test.method, test.path, resp.Status, resp.Header, err, body)
		}
	}
	if page := r.get("/"); regexp.MustCompile(`(?i)(src|href|url|import)\W{1,3}(https?:)?//`).MatchString(page) {
		t.Error("the page needs something from elsewhere")
	}
	info, err := os.Stat(filepath.Join(r.Dir, "stats.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	r.Quit()
}

// Clients that say nothing, or don't read, hold neither readers nor the end
// of the master: not for longer than they are given, if they are many.
func TestServeSlowClients(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	texts := []string{"", "GET /stats.json HT", "GET /", strings.Repeat("GET / HTTP/1.1\r\nHost: stats\r\n\r\n", 500)}
	connect := func() {
		for i := range 300 {
			c, err := net.Dial("unix", filepath.Join(r.Dir, "stats.sock"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			io.WriteString(c, texts[i%len(texts)])
		}
	}
	connect()
	r.read()
	connect()
	begun := time.Now()
	r.Quit()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// The command in a session of the REPL.
func TestREPL(t *testing.T) {
	t.Parallel()
	r := start(t, "", "")
	_, closeAll := r.requests(7, true)
	defer closeAll()
	r.until("the requests", func(s stats.Stats) bool { return s.Requests == 7 && s.Connections == 1 })
	c, err := net.Dial("unix", filepath.Join(r.Dir, "repl.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(clustertest.Patience))
	io.WriteString(c, "stats()\n")
	c.(*net.UnixConn).CloseWrite()
	var b strings.Builder
	if _, err := io.Copy(&b, bufio.NewReader(c)); err != nil {
		t.Error(err)
	}
	want := regexp.MustCompile(`(?m)^  Master
  os: Linux \S+
  state: active
  started: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT
  uptime: \d+ (milli)?seconds?
  restarts: 0
  workers: 2
  spawned: 2
  deaths: 0

  Resources
  load average: \d+\.\d\d \d+\.\d\d \d+\.\d\d
  cores utilized: \d+ / \d+
  memory at boot \(free / total\): \d+\.\d\d[mgt]b / \d+\.\d\d[mgt]b
  memory now \(free / total\): \d+\.\d\d[mgt]b / \d+\.\d\d[mgt]b
  memory used \(master / workers\): \d+\.\d\d[mgt]b / \d+\.\d\d[mgt]b

  Workers
  connections total: 1
  connections active: 1
  requests total: 7
  0: \d+ (?:milli)?seconds? (\d\|\d\|\d)
  1: \d+ (?:milli)?seconds? (\d\|\d\|\d)
$`)
	found := want.FindStringSubmatch(strings.ReplaceAll(b.String(), "\r", ""))
	if found == nil {
		t.Fatalf("got %q", b.String())
	}
	if got := found[2] + " " + found[3]; got != "0|0|0 1|1|7" && got != "1|1|7 0|0|0" {
		t.Errorf("the workers have %s", got)
	}
	closeAll()
	r.Quit()
}

// With Inline the calling process is the worker.
func TestInline(t *testing.T) {
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	var served int
	m := &cluster.Master{
		Inline: true,
		Server: &http.Server{Handler: stats.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { served++ }))},
	}
	m.Use(stats.New(nil), stats.Serve(socket))
	before := stats.Read(m) // others of this process count too
	listening := make(chan struct{})
	m.On(cluster.Hooks{Listening: func() { close(listening) }})
	done := make(chan error)
	go func() { done <- m.ListenAndServe(l) }()
	<-listening
	transport := new(http.Transport)
	for range 10 {
		if _, err := fetch(&http.Client{Transport: transport}, "http://"+l.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	s := stats.Read(m)
	if s.Requests-before.Requests != 10 || s.Connections != 1 || s.Active != 1 || len(s.Workers) != 1 ||
		s.Workers[0].ID != 0 || s.Workers[0].Pid != os.Getpid() || s.Workers[0].Connections != 1 || s.Spawned != 0 {
		t.Errorf("before: %+v\nafter: %+v", before, s)
	}
	stat := client(t, "unix", socket)
	body, err := fetch(stat, "http://stats/metrics")
	if err != nil || !strings.Contains(body, `cluster_connections_total{worker="0"} 1`) {
		t.Errorf("%v\n%s", err, body)
	}
	transport.CloseIdleConnections()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A Master without the plugin has no counts, and can be read.
func TestReadWithout(t *testing.T) {
	s := stats.Read(new(cluster.Master))
	if s.Pid != os.Getpid() || s.Requests != 0 || s.Workers == nil || s.Uptime <= 0 {
		t.Errorf("%+v", s)
	}
}

func TestOptions(t *testing.T) {
	m := &cluster.Master{Inline: true}
	m.Use(stats.New(&stats.Options{Interval: -time.Second}))
	if err := m.Start(); err == nil || !strings.Contains(err.Error(), "stats: Interval is -1s") {
		t.Errorf("got %v", err)
	}
}

// Handler passes on the very ResponseWriter that it gets.
func TestHandler(t *testing.T) {
	var got http.ResponseWriter
	h := stats.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = w }))
	want := httptest.NewRecorder()
	h.ServeHTTP(want, httptest.NewRequest("GET", "/", nil))
	if got != want {
		t.Errorf("got %T, want %T", got, want)
	}
	rec := httptest.NewRecorder()
	stats.Handler(nil).ServeHTTP(rec, httptest.NewRequest("GET", "/nothing", nil))
	if rec.Code != http.StatusNotFound {
		t.Errorf("the default mux: %d", rec.Code)
	}
}
