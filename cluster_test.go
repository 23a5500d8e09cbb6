//go:build unix && !cluster_nofork

package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
)

// The tests run real clusters. The test binary is their program: with
// helperEnv in its environment it is the helper of that name, in the master
// and in the workers, which have the same environment.
const (
	helperEnv = "CLUSTER_TEST_HELPER"
	runEnv    = "CLUSTER_TEST_RUN" // marks every process that a test has started, however far from it
)

// patience is how long a test waits for what should happen at once.
const patience = 30 * time.Second

var (
	helpers     = make(map[string]func())
	helpersUsed sync.Map
)

// helper registers a program that the test binary can be. It returns with
// exit status 0. One that no test uses fails the run.
func helper(name string, f func()) struct{} {
	if helpers[name] != nil {
		panic("duplicate helper: " + name)
	}
	helpers[name] = f
	return struct{}{}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		f, ok := helpers[name]
		if !ok {
			log.Fatalf("no helper %q", name)
		}
		f()
		os.Exit(0)
	}
	before := clustertest.Prepare()
	code := m.Run()
	if code == 0 {
		code = checkMain(before)
	}
	os.Exit(code)
}

// checkMain looks for what tests have left behind.
func checkMain(before []string) int {
	code := 0
	complain := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
		code = 1
	}
	if f := flag.Lookup("test.run").Value.String() + flag.Lookup("test.skip").Value.String() + flag.Lookup("test.list").Value.String(); f == "" && !testing.Short() {
		for name := range helpers {
			if _, ok := helpersUsed.Load(name); !ok {
				complain("no test uses the helper %q", name)
			}
		}
	}
	if pids := marked(strconv.Itoa(os.Getpid()) + "."); len(pids) > 0 {
		complain("processes left behind: %v", pids)
	}
	for _, complaint := range clustertest.Leaks(before) {
		complain("%s", complaint)
	}
	return code
}

// eventually calls f until it is true, for what sends no event. It reports
// whether it became so in time.
var eventually = clustertest.Eventually

// marked returns the processes whose run mark begins with prefix. A zombie
// has no environment, and is gone.
func marked(prefix string) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if bytes.Contains(env, []byte("\x00"+runEnv+"="+prefix)) || bytes.HasPrefix(env, []byte(runEnv+"="+prefix)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// An event is what a process of a test's cluster tells: one line of JSON on
// standard output, which all of them share.
type event struct {
	Name string `json:"event"`
	ID   int    `json:"id"`  // the worker that it is about, -1 for none
	Pid  int    `json:"pid"` // the worker's, else that of the process that tells
	Text string `json:"text,omitempty"`
}

// A proc is a cluster under test: its first process, and what all its
// processes tell.
type proc struct {
	t    testing.TB
	cmd  *exec.Cmd // may be changed until start
	dir  string    // its working directory
	mark string
	racy bool // a data race is what the test is about

	stdin io.WriteCloser
	gone  chan struct{} // closed when no process has standard output or error any more
	done  chan struct{} // closed when cmd has been waited for

	mu      sync.Mutex // guards the following
	events  []event
	taken   []bool
	stderr  bytes.Buffer
	changed chan struct{} // closed by the next event
	calls   int
	checked bool // for what it should have left behind
}

var procs atomic.Int64

// command returns the helper with these arguments, to be started in a
// temporary directory of its own.
func command(t testing.TB, name string, args ...string) *proc {
	t.Helper()
	if helpers[name] == nil {
		t.Fatalf("no helper %q", name)
	}
	helpersUsed.Store(name, true)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &proc{
		t:       t,
		cmd:     exec.Command(exe, args...),
		dir:     tempDir(t),
		mark:    fmt.Sprintf("%d.%d.", os.Getpid(), procs.Add(1)),
		gone:    make(chan struct{}),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	p.cmd.Dir = p.dir
	p.cmd.Env = append(os.Environ(), helperEnv+"="+name, runEnv+"="+p.mark,
		"GORACE=atexit_sleep_ms=0") // the race detector's is a second for every process
	return p
}

// tempDir is t.TempDir with a name that leaves room for one of a socket.
func tempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// start starts the helper with these arguments.
func start(t testing.TB, name string, args ...string) *proc {
	t.Helper()
	return command(t, name, args...).start()
}

// serve starts the helper and waits until it serves.
func serve(t testing.TB, name string, args ...string) *proc {
	t.Helper()
	p := start(t, name, args...)
	p.wait("listening")
	return p
}

func (p *proc) start() *proc {
	p.t.Helper()
	stdout, w1, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	stderr, w2, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w1, w2
	if p.cmd.Stdin == nil {
		if p.stdin, err = p.cmd.StdinPipe(); err != nil {
			p.t.Fatal(err)
		}
	}
	err = p.cmd.Start()
	w1.Close()
	w2.Close()
	if err != nil {
		stdout.Close()
		stderr.Close()
		p.t.Fatal(err)
	}
	var readers sync.WaitGroup
	readers.Go(func() { p.readEvents(stdout) })
	readers.Go(func() { p.readLog(stderr) })
	go func() { readers.Wait(); close(p.gone) }()
	go func() { p.cmd.Wait(); close(p.done) }()
	p.t.Cleanup(p.cleanup)
	return p
}

func (p *proc) readEvents(r *os.File) {
	defer r.Close()
	for sc := bufio.NewScanner(r); sc.Scan(); {
		e := event{ID: -1}
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			e = event{Name: "output", ID: -1, Text: sc.Text()}
		}
		p.mu.Lock()
		p.events = append(p.events, e)
		p.taken = append(p.taken, false)
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *proc) readLog(r *os.File) {
	defer r.Close()
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		p.mu.Lock()
		p.stderr.Write(b[:n])
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// cleanup ends what the test has not, and tells what happened if it failed.
func (p *proc) cleanup() {
	p.mu.Lock()
	checked := p.checked
	p.mu.Unlock()
	if !checked && !p.t.Failed() && !p.t.Skipped() {
		p.t.Error("the test has not waited for the end of its cluster")
	}
	if p.t.Failed() {
		for _, pid := range marked(p.mark) {
			syscall.Kill(pid, syscall.SIGABRT) // to see what they are doing
		}
		eventually(5*time.Second, func() bool { return len(marked(p.mark)) == 0 })
		p.mu.Lock()
		for _, e := range p.events {
			p.t.Logf("%+v", e)
		}
		p.t.Logf("standard error:\n%s", p.stderr.Bytes())
		p.mu.Unlock()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
	for deadline := time.Now().Add(patience); ; {
		for _, pid := range marked(p.mark) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-p.gone:
			<-p.done
			return
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(deadline) {
				p.t.Error("can't get rid of the cluster")
				return
			}
		}
	}
}

// await waits until cond is true, which is called with p.mu held after every
// change.
func (p *proc) await(what string, cond func() bool) {
	p.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		p.mu.Lock()
		ok, changed := cond(), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			p.t.Fatalf("timeout waiting for %s", what)
		case <-p.gone:
			p.mu.Lock()
			ok = cond()
			p.mu.Unlock()
			if !ok {
				p.t.Fatalf("everything is gone while waiting for %s", what)
			}
			return
		}
	}
}

// wait takes the first event of the name that has not been taken yet, about
// any worker, or about one with an id that is given.
func (p *proc) wait(name string, id ...int) event {
	p.t.Helper()
	return p.waitFor(fmt.Sprintf("event %q %v", name, id), func(e event) bool {
		return e.Name == name && (len(id) == 0 || slices.Contains(id, e.ID))
	})
}

// waitFor takes the first event that matches and has not been taken yet.
func (p *proc) waitFor(what string, match func(event) bool) (found event) {
	p.t.Helper()
	p.await(what, func() bool {
		for i, e := range p.events {
			if !p.taken[i] && match(e) {
				p.taken[i], found = true, e
				return true
			}
		}
		return false
	})
	return found
}

// waitN is wait for n events.
func (p *proc) waitN(n int, name string) (list []event) {
	p.t.Helper()
	for range n {
		list = append(list, p.wait(name))
	}
	return list
}

// waitLog waits until standard error has text in it.
func (p *proc) waitLog(text string) {
	p.t.Helper()
	p.await(fmt.Sprintf("%q on standard error", text), func() bool {
		return strings.Contains(p.stderr.String(), text)
	})
}

// log returns what is on standard error up to now.
func (p *proc) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// history returns all events of these names up to now, taken or not; without
// a name, all.
func (p *proc) history(names ...string) (list []event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if len(names) == 0 || slices.Contains(names, e.Name) {
			list = append(list, e)
		}
	}
	return list
}

// pid is the master's process id.
func (p *proc) pid() int { return p.cmd.Process.Pid }

// workers returns the pids of the workers that are ready, by id.
func (p *proc) workers() map[int]int {
	live := make(map[int]int)
	for _, e := range p.history("connected", "killed") {
		switch {
		case e.Name == "connected":
			live[e.ID] = e.Pid
		case live[e.ID] == e.Pid:
			delete(live, e.ID)
		}
	}
	return live
}

// signal sends sig to the master.
func (p *proc) signal(sig syscall.Signal) {
	p.t.Helper()
	kill(p.t, p.pid(), sig)
}

func kill(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	if pid <= 1 { // these mean many processes, ourselves among them
		t.Fatalf("kill %d %v", pid, sig)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("kill %d %v: %v", pid, sig, err)
	}
}

// suspend stops a process, and returns when none of its threads runs.
func suspend(t testing.TB, pid int) {
	t.Helper()
	kill(t, pid, syscall.SIGSTOP)
	if runtime.GOOS != "linux" {
		return
	}
	if !eventually(patience, func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		return !slices.ContainsFunc(tasks, func(name string) bool {
			b, err := os.ReadFile(name)
			return err == nil && !strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " T")
		})
	}) {
		t.Fatalf("process %d doesn't stop", pid)
	}
}

// call has the master run a command, and returns what it answers: see
// commands. begin doesn't wait for the answer.
func (p *proc) call(format string, args ...any) string {
	p.t.Helper()
	return p.begin(format, args...)()
}

func (p *proc) begin(format string, args ...any) (answer func() string) {
	p.t.Helper()
	p.mu.Lock()
	p.calls++
	n := p.calls
	p.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintf(p.stdin, "%d %s\n", n, line); err != nil {
		p.t.Fatal(err)
	}
	return func() string {
		p.t.Helper()
		return p.waitFor("the answer to "+line, func(e event) bool { return e.Name == "answer" && e.ID == n }).Text
	}
}

// mustCall is call for a command that answers only if it fails.
func (p *proc) mustCall(format string, args ...any) {
	p.t.Helper()
	if got := p.call(format, args...); got != "" {
		p.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), got)
	}
}

// exit waits for the end of the first process and returns its exit status,
// which is negative after a signal.
func (p *proc) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatal("timeout waiting for the end of the master")
	}
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return -int(ws.Signal())
	}
	return ws.ExitStatus()
}

// end checks that the first process ends with the given status, that no
// other outlives it, and that no file is left but these.
func (p *proc) end(status int, files ...string) {
	p.t.Helper()
	if got := p.exit(); got != status {
		p.t.Errorf("exit status %d, want %d", got, status)
	}
	p.empty(files...)
}

// empty checks that no process is left, and no file but these.
func (p *proc) empty(files ...string) {
	p.t.Helper()
	p.over()
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		p.t.Error(err)
	}
	for _, e := range entries {
		if !slices.Contains(files, e.Name()) {
			p.t.Errorf("file left behind: %s", e.Name())
		}
	}
}

// over waits until no process is left.
func (p *proc) over() {
	p.t.Helper()
	select {
	case <-p.gone:
	case <-time.After(patience):
		p.t.Fatalf("processes left behind: %v", marked(p.mark))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checked = true
	if !p.racy && strings.Contains(p.stderr.String(), "DATA RACE") {
		p.t.Error("data race")
	}
}

// quit shuts the cluster down gracefully and checks its end.
func (p *proc) quit(files ...string) {
	p.t.Helper()
	p.signal(syscall.SIGQUIT)
	p.end(0, files...)
}

// addr returns network and address of the first listener, or the nth.
func (p *proc) addr(n ...int) (network, address string) {
	p.t.Helper()
	want := 0
	if len(n) > 0 {
		want = n[0]
	}
	var list []event
	p.await("an address", func() bool {
		list = list[:0]
		for _, e := range p.events {
			if e.Name == "addr" {
				list = append(list, e)
			}
		}
		return len(list) > want
	})
	network, address, _ = strings.Cut(list[want].Text, " ")
	if strings.HasPrefix(network, "unix") && address[0] != '@' && !filepath.IsAbs(address) {
		address = filepath.Join(p.dir, address)
	}
	return network, address
}

// dial connects to the first listener, or the nth.
func (p *proc) dial(n ...int) net.Conn {
	p.t.Helper()
	network, address := p.addr(n...)
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		p.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	p.t.Cleanup(func() { c.Close() })
	return c
}

// get requests path in a connection of its own, and returns the body.
func (p *proc) get(path string, n ...int) string {
	p.t.Helper()
	c := p.dial(n...)
	defer c.Close()
	body, err := roundTrip(c, path)
	if err != nil {
		p.t.Fatalf("GET %s: %v", path, err)
	}
	return body
}

// roundTrip requests path, and has the connection closed after it. Nothing
// is ever tried again.
func roundTrip(c net.Conn, path string) (string, error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: cluster\r\nConnection: close\r\n\r\n", path); err != nil {
		return "", err
	}
	return readResponse(bufio.NewReader(c))
}

func readResponse(r *bufio.Reader) (string, error) {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// A held request is one that a worker is busy with until it is told to
// finish.
type held struct {
	net.Conn
	t testing.TB
	event
}

// hold makes a request that lasts until finish.
func (p *proc) hold(n ...int) *held {
	p.t.Helper()
	c := p.dial(n...)
	fmt.Fprint(c, "POST /hold HTTP/1.1\r\nHost: cluster\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
	return &held{c, p.t, p.wait("held")}
}

// finish returns the response.
func (h *held) finish() string {
	h.t.Helper()
	defer h.Close()
	if _, err := io.WriteString(h, "0\r\n\r\n"); err != nil {
		h.t.Fatal(err)
	}
	body, err := readResponse(bufio.NewReader(h))
	if err != nil {
		h.t.Fatalf("a request in flight: %v", err)
	}
	return body
}

// info asks the worker that answers, or the master.
func (p *proc) info() (i info) {
	p.t.Helper()
	return parseInfo(p.t, p.get("/info"))
}

func (p *proc) masterInfo() info {
	p.t.Helper()
	return parseInfo(p.t, p.call("info"))
}

func parseInfo(t testing.TB, s string) (i info) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &i); err != nil {
		t.Fatalf("%v in %q", err, s)
	}
	return i
}

// What follows runs in helpers.

var reportMu sync.Mutex

// report tells the test what happened.
func report(name string, w *cluster.Worker, text string) {
	e := event{Name: name, ID: -1, Pid: os.Getpid(), Text: text[:min(len(text), 3000)]}
	if id, err := strconv.Atoi(os.Getenv("CLUSTER_WORKER")); err == nil {
		e.ID = id
	}
	if w != nil {
		e.ID, e.Pid = w.ID, w.Pid
	}
	reportEvent(e)
}

func reportEvent(e event) {
	line, _ := json.Marshal(e)
	reportMu.Lock()
	defer reportMu.Unlock()
	os.Stdout.Write(append(line, '\n')) // at once, as far as the processes are concerned
}

// reportHooks has all events reported.
var reportHooks = cluster.Hooks{
	Start:           func() error { report("start", nil, ""); return nil },
	Worker:          func(w *cluster.Worker) { report("worker", w, "") },
	WorkerConnected: func(w *cluster.Worker) { report("connected", w, "") },
	Listening:       func() { report("listening", nil, "") },
	Closing:         func() { report("closing", nil, "") },
	Close:           func() { report("close", nil, "") },
	WorkerKilled:    func(w *cluster.Worker) { report("killed", w, w.ProcessState.String()) },
	WorkerException: func(w *cluster.Worker, err error) { report("exception", w, err.Error()) },
	WorkerTimeout:   func(w *cluster.Worker, after time.Duration) { report("timeout", w, after.String()) },
	WorkerWaiting:   func(w *cluster.Worker, conns int) { report("waiting", w, strconv.Itoa(conns)) },
	WorkerRemoved:   func(w *cluster.Worker) { report("removed", w, "") },
	Kill:            func(sig os.Signal) { report("kill", nil, sig.String()) },
	Reopen:          func() { report("reopen", nil, "") },
	Serving:         func() { report("serving", nil, "") },
	Message: func(w *cluster.Worker, name string, data json.RawMessage) {
		report("message", w, name+" "+string(data))
	},
}

// newMaster returns a Master that reports its events and runs commands from
// standard input. Arguments of the form option=value are Set.
func newMaster() *cluster.Master {
	m := new(cluster.Master)
	for _, arg := range os.Args[1:] {
		if k, v, ok := strings.Cut(arg, "="); ok && k != "listen" && k != "mode" {
			m.Set(k, v)
		}
	}
	m.On(reportHooks)
	if !cluster.IsWorker() {
		go obey(m)
	}
	return m
}

// argument returns the value of the nth argument name=value.
func argument(name string, n int) (value string, ok bool) {
	for _, arg := range os.Args[1:] {
		if v, found := strings.CutPrefix(arg, name+"="); found {
			if n--; n < 0 {
				return v, true
			}
		}
	}
	return "", false
}

// mode returns the argument mode=value.
func mode() string {
	v, _ := argument("mode", 0)
	return v
}

// listen listens as the nth argument listen=network address says, on a port
// of the loopback interface if there is none.
func listen(n int) net.Listener {
	spec, ok := argument("listen", n)
	if !ok {
		spec = "tcp 127.0.0.1:0"
	}
	network, address, _ := strings.Cut(spec, " ")
	l, err := cluster.Listen(network, address)
	if err != nil {
		fatal(err)
	}
	reportAddr(l.Addr())
	return l
}

func reportAddr(a net.Addr) {
	if !cluster.IsWorker() {
		report("addr", nil, a.Network()+" "+a.String())
	}
}

// finish ends the program as the documentation recommends.
func finish(err error) {
	if err != nil {
		fatal(err)
	}
	report("returned", nil, "")
	commandsRunning.Wait()
}

func fatal(err error) {
	report("failed", nil, err.Error())
	os.Exit(1)
}

var commandsRunning sync.WaitGroup

// obey runs the commands that come on standard input.
func obey(m *cluster.Master) {
	for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		n, _ := strconv.Atoi(fields[0])
		commandsRunning.Go(func() {
			answer := "unknown command"
			if f, ok := commands[fields[1]]; ok {
				answer = f(m, fields[2:])
			}
			reportEvent(event{Name: "answer", ID: n, Pid: os.Getpid(), Text: answer})
		})
	}
}

// commands are what a test can have its master do. They answer with the
// error's text, or nothing.
var commands = map[string]func(m *cluster.Master, args []string) string{
	"spawn": func(m *cluster.Master, args []string) string { return errText(m.Spawn(number(args))) },
	"remove": func(m *cluster.Master, args []string) string {
		return errText(m.Remove(number(args), signals(args)...))
	},
	"kill":    func(m *cluster.Master, args []string) string { return errText(m.Kill(signals(args)...)) },
	"close":   func(m *cluster.Master, args []string) string { return errText(m.Close()) },
	"destroy": func(m *cluster.Master, args []string) string { return errText(m.Destroy()) },
	"restartworkers": func(m *cluster.Master, args []string) string {
		return errText(m.RestartWorkers(signals(args)...))
	},
	"replace": func(m *cluster.Master, args []string) string { return errText(m.Replace(number(args))) },
	"state":   func(m *cluster.Master, args []string) string { return m.State().String() },
	"listen":  func(m *cluster.Master, args []string) string { return errText(m.ListenAndServe(nil)) },
	"start":   func(m *cluster.Master, args []string) string { return errText(m.Start()) },
	"info":    func(m *cluster.Master, args []string) string { return infoText() },
	"shutdown": func(m *cluster.Master, args []string) string {
		d, _ := time.ParseDuration(args[0])
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		return errText(m.Shutdown(ctx))
	},
	"children": func(m *cluster.Master, args []string) string {
		var list []string
		for _, w := range m.Children() {
			list = append(list, fmt.Sprintf("%d %d %v", w.ID, w.Pid, w.State()))
		}
		return strings.Join(list, "\n")
	},
	"send": func(m *cluster.Master, args []string) string { // id name text
		for _, w := range m.Children() {
			if w.ID == number(args) {
				return errText(w.Send(args[1], args[2]))
			}
		}
		return "no such worker"
	},
}

func errText(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func number(args []string) int {
	n, _ := strconv.Atoi(args[0])
	return n
}

// signals returns the signals among args, which are numbers after a "-".
func signals(args []string) (list []os.Signal) {
	for _, arg := range args {
		if n, err := strconv.Atoi(arg); err == nil && n < 0 {
			list = append(list, syscall.Signal(-n))
		}
	}
	return list
}

// An info is what a process knows of itself.
type info struct {
	Worker              bool
	Args, Env, Files    []string
	Dir                 string
	Pid, Ppid, Pgid     int
	Uid, Gid            int
	Groups              []int
	GOMAXPROCS, Threads int
	Goroutines          int
}

func infoText() string {
	i := info{
		Worker: cluster.IsWorker(), Args: os.Args, Files: clustertest.OpenFiles(),
		Pid: os.Getpid(), Ppid: os.Getppid(),
		Uid: os.Getuid(), Gid: os.Getgid(), GOMAXPROCS: runtime.GOMAXPROCS(0), Goroutines: runtime.NumGoroutine(),
	}
	i.Dir, _ = os.Getwd()
	i.Pgid, _ = unix.Getpgid(0) // illumos has no Getpgrp
	i.Groups, _ = os.Getgroups()
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "CLUSTER_") || strings.HasPrefix(kv, "GOMAXPROCS") {
			i.Env = append(i.Env, kv)
		}
	}
	b, _ := json.Marshal(i)
	return string(b)
}

// handler is what helpers serve.
var handler = newHandler()

func newHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/info", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, infoText()) })
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		report("held", nil, "")
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, os.Getpid())
	})
	mux.HandleFunc("/stuck", func(w http.ResponseWriter, r *http.Request) {
		report("stuck", nil, "")
		select {}
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) { os.Exit(3) })
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) { go panic("here is a panic"); select {} })
	mux.HandleFunc("/maps", func(w http.ResponseWriter, r *http.Request) {
		m := make(map[int]int)
		for range 8 {
			go func() {
				for {
					m[1]++
				}
			}()
		}
		select {}
	})
	return mux
}

var _ = helper("http", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// A cluster serves, and ends with status 0 and without a trace.
func TestServe(t *testing.T) {
	t.Parallel()
	for _, end := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT} {
		p := serve(t, "http", "workers=2")
		pid, _ := strconv.Atoi(p.get("/"))
		if w := p.workers(); len(w) != 2 || pid != w[0] && pid != w[1] {
			t.Errorf("answered by %d, workers are %v", pid, w)
		}
		p.signal(end)
		p.end(0)
	}
}
