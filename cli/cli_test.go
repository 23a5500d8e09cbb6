//go:build unix

package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/cli"
	"github.com/gocluster/cluster/handoff"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/pidfiles"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"app": app, "early": early})
}

// app is both server and tool. What it does depends on files in its
// directory: with "slow", workers are not ready until it is gone, with
// "slow.1" worker 1 isn't; with "fail", they don't become so; with "linger",
// the master doesn't exit until it is gone. $PLUGINS says what is used, in order, and
// $WORKERS how many workers there are, 1 if it is not set.
func app() {
	m := &cluster.Master{
		Addr:      "unix:app.sock", // which can be bound but once
		Workers:   1,
		NewServer: newServer,
	}
	if n := os.Getenv("WORKERS"); n != "" {
		m.Set("workers", n)
	}
	plugins := os.Getenv("PLUGINS")
	if plugins == "" {
		plugins = "pidfiles cli events"
	}
	for name := range strings.FieldsSeq(plugins) {
		m.Use(map[string]cluster.Plugin{
			"cli":      cli.New(nil),
			"version":  cli.New(&cli.Options{Version: "v1.2.3"}),
			"hasty":    cli.New(&cli.Options{Timeout: 500 * time.Millisecond}),
			"run":      cli.New(&cli.Options{Dir: "run"}),
			"pidfiles": pidfiles.New(""),
			"bundle": func(m *cluster.Master) error {
				m.Use(pidfiles.New("elsewhere"))
				return nil
			},
			"events": clustertest.Events,
			"mute": func(m *cluster.Master) error {
				m.On(cluster.Hooks{Message: func(*cluster.Worker, string, json.RawMessage) { time.Sleep(time.Hour) }})
				return nil
			},
			"args":   func(m *cluster.Master) error { m.Args = []string{"status"}; return nil },
			"detach": func(m *cluster.Master) error { m.Detach = true; return nil },
			"define": func(m *cluster.Master) error {
				cli.Define("-x, --example, example", func(args []string) error {
					fmt.Printf("example %q in %d\n", args, os.Getpid())
					if len(args) > 0 {
						return errors.New(args[0])
					}
					return nil
				}, "show how it is done")
				cli.Define("version", func(args []string) error { fmt.Println("mine"); return nil }, "another version")
				cli.Define("-v, reload", nil, "")
				return nil
			},
		}[name])
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
	for !cluster.IsWorker() && exists("linger") {
		time.Sleep(time.Millisecond)
	}
}

func newServer() (cluster.Server, error) {
	for exists("slow") || exists("slow."+os.Getenv("CLUSTER_WORKER")) {
		time.Sleep(time.Millisecond)
	}
	if exists("fail") {
		return nil, errors.New("no database")
	}
	return handoff.Server(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, os.Getpid())
	})}), nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// early binds before ListenAndServe.
func early() {
	o := &cli.Options{Dir: "run", Version: "early"}
	cli.Main(o)
	l, err := cluster.Listen("unix", "app.sock")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Workers: 1, NewServer: newServer}
	m.Use(cli.New(o), clustertest.Events)
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

// A run is a running cluster.
type run struct {
	*clustertest.Program
	master int
}

// start starts a cluster with these plugins, "" being the usual ones, and
// waits until it serves. env is added to its environment.
func start(t *testing.T, plugins string, env ...string) *run {
	t.Helper()
	t.Parallel()
	r := command(t, plugins, env...)
	r.Start()
	r.listening()
	return r
}

// command returns a cluster that has not been started.
func command(t *testing.T, plugins string, env ...string) *run {
	t.Helper()
	p := clustertest.Command(t, "app")
	p.Cmd.Env = append(append(p.Cmd.Env, "PLUGINS="+plugins), env...)
	return &run{p, 0}
}

// A tool is a run of the program as its own control tool.
type tool struct {
	t    testing.TB
	cmd  *exec.Cmd
	mu   sync.Mutex // guards out
	out  bytes.Buffer
	errs bytes.Buffer
	done chan struct{}
}

func (l *tool) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

// begin starts a command.
func (r *run) begin(args ...string) *tool {
	r.T.Helper()
	l := r.command(args...)
	l.start()
	return l
}

func (r *run) command(args ...string) *tool {
	l := &tool{t: r.T, cmd: exec.Command(r.Cmd.Path, args...), done: make(chan struct{})}
	l.cmd.Dir = r.Dir
	l.cmd.Env = r.Cmd.Env
	l.cmd.Stdout, l.cmd.Stderr = l, &l.errs
	return l
}

func (l *tool) start() {
	l.t.Helper()
	if err := l.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() { l.cmd.Wait(); close(l.done) }()
}

// output returns what the command has printed on standard output.
func (l *tool) output() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

// wait waits until the command has printed something.
func (l *tool) wait(text string) {
	l.t.Helper()
	if !clustertest.Eventually(clustertest.Patience, func() bool { return strings.Contains(l.output(), text) }) {
		l.t.Fatalf("%q: timeout waiting for %q in %q", l.cmd.Args[1:], text, l.output())
	}
}

// end waits for the end of a command, checks its exit status, and returns
// what it has printed on standard output and error.
func (l *tool) end(status int) (string, string) {
	l.t.Helper()
	select {
	case <-l.done:
	case <-time.After(clustertest.Patience):
		l.cmd.Process.Signal(syscall.SIGABRT)
		<-l.done
		l.t.Fatalf("%q: timeout: %s%s", l.cmd.Args[1:], l.output(), l.errs.String())
	}
	if got := l.cmd.ProcessState.ExitCode(); got != status {
		l.t.Fatalf("%q: exit status %d, want %d\n%s%s", l.cmd.Args[1:], got, status, l.output(), l.errs.String())
	}
	if strings.Contains(l.errs.String(), "DATA RACE") {
		l.t.Fatal(l.errs.String())
	}
	return l.output(), l.errs.String()
}

// first waits for the command, which must succeed, and returns what it prints
// on standard output.
func (l *tool) first() string {
	l.t.Helper()
	out, _ := l.end(0)
	return out
}

// do runs a command, and returns what it prints on standard output.
func (r *run) do(status int, args ...string) string {
	r.T.Helper()
	out, errs := r.begin(args...).end(status)
	if (errs == "") != (status == 0) {
		r.T.Errorf("%q: exit status %d, and on standard error %q", args, status, errs)
	}
	return out
}

// json runs a command with --json, and returns the object.
func (r *run) json(status int, args ...string) map[string]any {
	r.T.Helper()
	out, _ := r.begin(append(args, "--json")...).end(status)
	var v map[string]any
	d := json.NewDecoder(strings.NewReader(out))
	if err := d.Decode(&v); err != nil || d.More() {
		r.T.Fatalf("%q: no JSON object, or more than one: %v: %q", args, err, out)
	}
	if v["ok"] != (status == 0) || v["code"] != float64(status) || v["command"] == "" || v["ms"] == nil || (v["error"] == nil) != (status == 0) {
		r.T.Errorf("%q: %s", args, out)
	}
	return v
}

func match(t *testing.T, got, want string) {
	t.Helper()
	if !regexp.MustCompile("^(?:" + want + ")$").MatchString(got) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func contains(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %q, want %q in it", got, want)
	}
}

func (r *run) path(name string) string { return filepath.Join(r.Dir, name) }

func (r *run) create(name string) {
	r.T.Helper()
	if err := os.WriteFile(r.path(name), nil, 0o644); err != nil {
		r.T.Fatal(err)
	}
}

func (r *run) remove(name string) {
	r.T.Helper()
	if err := os.Remove(r.path(name)); err != nil {
		r.T.Fatal(err)
	}
}

// listening notes that there is a new master.
func (r *run) listening() {
	r.T.Helper()
	r.master = r.WaitPid("listening")
}

// gone checks that a cluster has ended and left nothing behind.
func (r *run) gone() {
	r.T.Helper()
	dirs := []string{"pids", "run", "elsewhere"}
	r.End(0, dirs...)
	for _, name := range dirs {
		if err := os.Remove(r.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.T.Error(err)
		}
	}
}

func (r *run) dial() net.Conn {
	r.T.Helper()
	c, err := net.Dial("unix", r.path("app.sock"))
	if err != nil {
		r.T.Fatal(err)
	}
	r.T.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(clustertest.Patience))
	return c
}

// A held request has been begun, and not finished.
type held struct {
	t  testing.TB
	c  net.Conn
	in *bufio.Reader
}

func (r *run) hold() *held {
	r.T.Helper()
	h := &held{t: r.T, c: r.dial()}
	h.in = bufio.NewReader(h.c)
	io.WriteString(h.c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, err := h.in.ReadString('\n'); err != nil || !strings.Contains(line, "100") { // the handler reads
		r.T.Fatalf("%q, %v", line, err)
	}
	h.in.ReadString('\n')
	return h
}

// finish finishes the request, and returns the worker that has served it.
func (h *held) finish() int {
	h.t.Helper()
	io.WriteString(h.c, "done")
	resp, err := http.ReadResponse(h.in, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer h.c.Close()
	body, _ := io.ReadAll(resp.Body)
	pid, _ := strconv.Atoi(string(body))
	return pid
}

// A row is a process in the status command's object.
type row struct {
	Name   string
	Pid    int
	Alive  bool
	State  string
	Uptime *float64
	Memory *int64
	Active *int64
	Total  *int64
}

// rows returns the processes in an object.
func rows(t *testing.T, v map[string]any) (list []row) {
	t.Helper()
	data, _ := json.Marshal(v["processes"])
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// states returns for every process its name and state.
func states(list []row) string {
	var all []string
	for _, p := range list {
		state := p.State
		if !p.Alive {
			state = "dead"
		}
		all = append(all, strings.TrimSpace(p.Name+" "+state))
	}
	return strings.Join(all, ", ")
}

func TestStatus(t *testing.T) {
	r := start(t, "", "WORKERS=2")
	h := r.hold()
	out := r.do(0, "status")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 4 {
		t.Fatal(out)
	}
	memory, active := `\d+\.\d MiB`, 0
	if runtime.GOOS != "linux" {
		memory = "-"
	}
	match(t, lines[0], "process +pid +status +state +uptime +memory +connections")
	match(t, lines[1], fmt.Sprintf(`master +%d +alive +active +\d+s +%s +-`, r.master, memory))
	for i, line := range lines[2:] {
		match(t, line, fmt.Sprintf(`worker %d +%d +alive +ready +\d+s +%s +\d/\d`, i, r.WaitPid("worker", strconv.Itoa(i)), memory))
		if strings.HasSuffix(line, " 1/1") {
			active++
		}
	}
	if active != 1 {
		t.Errorf("the open connection is not to be seen:\n%s", out)
	}
	h.finish()
	v := r.json(0, "-s")
	list := rows(t, v)
	if got, want := states(list), "master active, worker 0 ready, worker 1 ready"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if v["ready"] != 2.0 || v["workers"] != 2.0 {
		t.Errorf("%v", v)
	}
	for _, p := range list {
		if p.Uptime == nil || *p.Uptime <= 0 || *p.Uptime > 60 || runtime.GOOS == "linux" && (p.Memory == nil || *p.Memory < 1<<20) {
			t.Errorf("%+v", p)
		}
		if (p.Total == nil) != (p.Name == "master") {
			t.Errorf("connections: %+v", p)
		}
	}
	r.do(0, "-g")
	r.gone()
}

// A slot whose worker is dead and waits to be tried again is to be seen, and
// whoever doesn't answer holds nothing up.
func TestStatusOfTheSick(t *testing.T) {
	r := start(t, "pidfiles cli events mute", "WORKERS=2")
	r.create("fail")
	pid := r.WaitPid("ready", "1")
	r.Kill(r.WaitPid("ready", "0"), syscall.SIGSTOP)
	r.Kill(pid, syscall.SIGKILL)
	var list []row
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		list = rows(t, r.json(0, "status"))
		return states(list) == "master active, worker 0 ready, worker 1 dead"
	}) {
		t.Fatalf("%+v", list)
	}
	if list[1].Active != nil || list[2].Memory != nil || list[2].Uptime != nil {
		t.Errorf("%+v", list)
	}
	r.remove("fail")
	for r.WaitPid("ready", "1") == pid {
	}
	list = rows(t, r.json(0, "status"))
	if got, want := states(list), "master active, worker 0 ready, worker 1 ready"; got != want || list[1].Active != nil {
		t.Errorf("got %s, want %s: %+v", got, want, list)
	}
	r.do(0, "stop")
	r.gone()
}

func TestNothing(t *testing.T) {
	t.Parallel()
	r := command(t, "")
	r.json(3, "status")
	os.Mkdir(r.path("pids"), 0o755)
	var tools []*tool
	for _, name := range []string{"status", "restart", "reload", "shutdown", "stop", "repl"} {
		tools = append(tools, r.begin(name))
	}
	for _, l := range tools {
		_, errs := l.end(3)
		contains(t, errs, "nothing runs")
	}
	r.json(3, "spawn", "1")
	if v := r.json(3, "status"); len(rows(t, v)) != 0 {
		t.Errorf("%v", v)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	r := command(t, "")
	if out := r.do(2, "status", "more"); out != "" {
		t.Error(out)
	}
	r.json(2, "spawn")
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	r := command(t, "version")
	out := r.do(0, "-h")
	contains(t, out, "\n  -s, --status, status ")
	contains(t, out, "\n  spawn N ")
	if list := r.json(0, "--help")["commands"].([]any); len(list) != 9 {
		t.Errorf("%v", list)
	}
	match(t, r.do(0, "-v"), "v1.2.3\n")
	if v := r.json(0, "version"); v["version"] != "v1.2.3" {
		t.Errorf("%v", v)
	}
	if out := command(t, "cli").do(0, "--version"); strings.TrimSpace(out) == "" {
		t.Error("no version")
	}
}

func TestDefine(t *testing.T) {
	t.Parallel()
	r := command(t, "cli define")
	for _, name := range []string{"-x", "example"} {
		l := r.begin(name)
		out, _ := l.end(0)
		match(t, out, fmt.Sprintf("example \\[\\] in %d\n", l.cmd.Process.Pid))
	}
	l := r.begin("example", "fails", "--json")
	out, errs := l.end(1)
	contains(t, out, `["fails" "--json"]`)
	contains(t, errs, ": fails\n")
	match(t, r.do(0, "version"), "mine\n")
	help := r.do(0, "help")
	for _, want := range []string{"\n  -x, --example, example     show how it is done\n", "\n  version ", "another version", "\n  --version "} {
		contains(t, help, want)
	}
	for _, not := range []string{"-v,", "reload"} {
		if strings.Contains(help, not) {
			t.Errorf("%q in %s", not, help)
		}
	}
}

// What is no command starts the program, as does a command that is not its
// first argument. In a worker nothing is a command.
func TestOtherArgumentsStart(t *testing.T) {
	t.Parallel()
	r := command(t, "pidfiles cli events args")
	r.Cmd.Args = append(r.Cmd.Args, "-vv", "status")
	r.Start()
	r.listening()
	r.do(0, "restart") // by which the new master gets them too
	r.do(0, "shutdown")
	r.gone()
}

func TestRestart(t *testing.T) {
	r := start(t, "", "WORKERS=2")
	old := r.master
	r.create("slow.1")
	l := r.begin("restart")
	l.wait("1/2 workers ready\n")
	r.remove("slow.1")
	lines := strings.Split(strings.TrimSpace(l.first()), "\n")
	match(t, lines[len(lines)-1], fmt.Sprintf(`2/2 workers ready, old master %d gone, (\d+ ms|\d+\.\d s)`, old))
	r.listening()
	if r.master == old {
		t.Fatal("the master is the same")
	}
	old = r.master
	v := r.json(0, "-r")
	r.listening()
	if v["master"] != float64(r.master) || v["old"] != float64(old) || v["ready"] != 2.0 || v["workers"] != 2.0 {
		t.Errorf("%v", v)
	}
	list := rows(t, r.json(0, "--status"))
	if got, want := states(list), "master active, stand-in, worker 0 ready, worker 1 ready"; got != want || list[1].Pid != r.Pid() {
		t.Errorf("got %s, want %s: %+v", got, want, list)
	}
	out := r.do(0, "--shutdown")
	lines = strings.Split(strings.TrimSpace(out), "\n")
	match(t, lines[len(lines)-1], fmt.Sprintf(`master %d gone, with 2 workers, .*`, r.master))
	if left := r.Processes(); len(left) > 0 {
		t.Errorf("shutdown has ended before %v", left)
	}
	r.gone()
}

// A restart under load fails no request, and ends when the old workers have.
func TestRestartUnderLoad(t *testing.T) {
	r := start(t, "")
	var served, stop atomic.Int64
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				return net.Dial("unix", r.path("app.sock"))
			}}
			defer transport.CloseIdleConnections()
			for stop.Load() == 0 {
				resp, err := (&http.Client{Transport: transport, Timeout: clustertest.Patience}).Get("http://x/")
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				served.Add(1)
			}
		})
	}
	h := r.hold()
	l := r.begin("restart")
	r.listening()
	l.wait("waiting for 1 old worker to finish")
	list := rows(t, r.json(0, "status"))
	if got, want := states(list), "master active, old master draining, worker 0 ready"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	select {
	case <-l.done:
		t.Error("the command didn't wait for the old master")
	default:
	}
	h.finish()
	l.end(0)
	r.do(0, "reload")
	r.do(0, "restart")
	n := served.Load()
	clustertest.Eventually(clustertest.Patience, func() bool { return served.Load() > n })
	stop.Store(1)
	clients.Wait()
	t.Logf("%d requests", served.Load())
	r.do(0, "shutdown")
	r.gone()
}

func TestFailedRestart(t *testing.T) {
	r := start(t, "")
	r.create("fail")
	_, errs := r.begin("restart").end(1)
	contains(t, errs, "no database")
	contains(t, errs, "; the old cluster serves on\n")
	contains(t, r.json(1, "reload")["error"].(string), "no database")
	if got, want := states(rows(t, r.json(0, "status"))), "master active, worker 0 ready"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.remove("fail")
	r.do(0, "restart")
	for r.master == r.Pid() { // the failed ones told of themselves, too
		r.listening()
	}
	r.do(0, "shutdown")
	r.gone()
}

// Of two restarts at once each is told what became of its own.
func TestTwoRestarts(t *testing.T) {
	for _, test := range []struct {
		bySignal, fails bool // the first one
	}{
		{false, false},
		{false, true},
		{true, false},
	} {
		t.Run(fmt.Sprintf("%+v", test), func(t *testing.T) {
			r := start(t, "")
			r.create("slow")
			var first *tool
			if test.bySignal {
				r.Signal(syscall.SIGUSR2)
			} else {
				first = r.begin("restart")
			}
			r.Wait("restarting")
			second := r.begin("restart")
			second.wait("waiting for another restart")
			old := r.master
			if test.fails {
				r.WaitPid("start") // of the first master
				r.Kill(r.WaitPid("start"), syscall.SIGKILL)
				r.Wait("failed")
			}
			r.remove("slow")
			if !test.fails { // the second one is that of the new master
				r.listening()
				old = r.master
			}
			switch {
			case test.fails:
				_, errs := first.end(1)
				contains(t, errs, "signal: killed")
			case first != nil:
				first.end(0)
			}
			out, _ := second.end(0)
			contains(t, out, fmt.Sprintf("old master %d gone", old))
			r.do(0, "shutdown")
			r.gone()
		})
	}
}

func TestReload(t *testing.T) {
	r := start(t, "", "WORKERS=2")
	before := rows(t, r.json(0, "status"))
	h := r.hold()
	out := r.do(0, "reload")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	match(t, lines[len(lines)-1], `2/2 workers replaced, [12] old workers? still to finish, .*`)
	list := slices.DeleteFunc(rows(t, r.json(0, "status")), func(p row) bool { return p.State == "draining" })
	if got, want := states(list), "master active, worker 0 ready, worker 1 ready"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	for i, p := range list {
		if (p.Pid == before[i].Pid) != (i == 0) {
			t.Errorf("before %+v, after %+v", before[i], p)
		}
	}
	h.finish()
	if v := r.json(0, "reload"); v["replaced"] != 2.0 || v["workers"] != 2.0 {
		t.Errorf("%v", v)
	}
	r.do(0, "--stop")
	r.gone()
}

func TestSpawn(t *testing.T) {
	r := start(t, "")
	count := func(want string) {
		t.Helper()
		if got := states(rows(t, r.json(0, "status"))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	r.create("slow.1")
	l := r.begin("spawn", "2")
	l.wait("1/2 workers ready\n")
	r.remove("slow.1")
	contains(t, l.first(), "1/2 workers ready\n2/2 workers ready\n2 workers ready, 3 in all, ")
	count("master active, worker 0 ready, worker 1 ready, worker 2 ready")
	contains(t, r.do(0, "spawn", "-1"), "1 worker gone, 2 in all, ")
	if v := r.json(0, "spawn", "-1"); v["workers"] != 1.0 {
		t.Errorf("%v", v)
	}
	count("master active, worker 0 ready")
	contains(t, r.json(1, "spawn", "-2")["error"].(string), "only 1 worker")
	r.create("fail")
	_, errs := r.begin("spawn", "1").end(1)
	contains(t, errs, "worker 1 died before it was ready: exit status 1: cluster: NewServer: no database; the master goes on trying\n")
	r.remove("fail")
	h := r.hold() // by the one that is left
	l = r.begin("spawn", "-2")
	l.wait("waiting for 1 worker to finish")
	count("master active, worker 0 draining")
	h.finish()
	contains(t, l.first(), "2 workers gone, 0 in all, ")
	contains(t, r.do(0, "spawn", "1"), "1 worker ready, 1 in all, ")
	r.do(0, "stop")
	r.gone()
}

func TestShutdownWaits(t *testing.T) {
	r := start(t, "")
	h := r.hold()
	l := r.begin("shutdown", "--json")
	r.Wait("closing")
	second, status, reload := r.begin("-g"), r.begin("status"), r.begin("reload") // they find no socket
	second.wait("takes no commands; it has been sent SIGQUIT")
	out, errs := status.end(0)
	contains(t, out, "alive")
	contains(t, errs, "shutting down")
	_, errs = reload.end(1)
	contains(t, errs, "shutting down")
	select {
	case <-l.done:
		t.Error("shutdown didn't wait for the request")
	default:
	}
	r.create("linger")
	h.finish()
	second.wait("to exit")
	select {
	case <-l.done:
		t.Error("shutdown didn't wait for the master's exit")
	default:
	}
	r.remove("linger")
	l.end(0)
	second.end(0)
	if left := r.Processes(); len(left) > 0 {
		t.Errorf("shutdown has ended before %v", left)
	}
	r.gone()
}

// Stop ends at once what a restart or shutdown lets finish.
func TestStop(t *testing.T) {
	r := start(t, "")
	r.hold()
	l := r.begin("restart")
	l.wait("waiting for 1 old worker to finish")
	r.do(0, "stop")
	r.gone()
	<-l.done
	status := l.cmd.ProcessState.ExitCode()
	if _, errs := l.end(min(status, 1)); status == 1 { // the new master was gone before it was asked how it is
		contains(t, errs, "has been replaced, but the new one does not answer at ")
	}
}

func TestStopAfterShutdown(t *testing.T) {
	r := start(t, "")
	r.hold()
	l := r.begin("shutdown")
	r.Wait("closing")
	r.do(0, "-S")
	l.end(0)
	r.gone()
}

// The cluster goes on with what an interrupted command has begun.
func TestInterrupt(t *testing.T) {
	r := start(t, "")
	r.create("slow")
	l := r.begin("restart", "--json")
	r.Wait("restarting")
	l.cmd.Process.Signal(os.Interrupt)
	out, errs := l.end(1)
	contains(t, errs, "interrupted; the restart goes on\n")
	if !json.Valid([]byte(out)) {
		t.Errorf("no JSON: %q", out)
	}
	r.remove("slow")
	r.Wait("restarted")
	r.listening()
	// A client that is killed harms nothing either.
	h := r.hold()
	l = r.begin("shutdown")
	r.Wait("closing", strconv.Itoa(r.master))
	l.cmd.Process.Kill()
	l.end(-1)
	h.finish()
	r.gone()
}

// dead returns a cluster whose master was killed, and whose worker holds a
// request.
func dead(t *testing.T) (*run, *held) {
	t.Helper()
	r := start(t, "")
	h := r.hold()
	r.Kill(r.master, syscall.SIGKILL)
	return r, h
}

func (r *run) killed() {
	r.T.Helper()
	entries, _ := os.ReadDir(r.path("pids"))
	for _, e := range entries {
		os.Remove(filepath.Join(r.Dir, "pids", e.Name()))
	}
	os.Remove(r.path("pids"))
	r.End(-1, "app.sock", fmt.Sprintf("cluster.%d.server.sock", r.master))
}

func TestDeadMaster(t *testing.T) {
	r, h := dead(t)
	out, errs := r.begin("status").end(1)
	match(t, strings.ReplaceAll(out, "\n", " "), fmt.Sprintf(`process .*master +%d +dead .*worker 0 +\d+ +alive .*`, r.master))
	contains(t, errs, fmt.Sprintf("master %d is dead, but not 1 worker\n", r.master))
	for _, name := range []string{"restart", "repl"} {
		_, errs := r.begin(name).end(3)
		contains(t, errs, " starts anew\n")
	}
	l := r.begin("shutdown")
	l.wait("1 worker sent SIGQUIT\nwaiting for [")
	h.finish()
	out, _ = l.end(0)
	contains(t, out, "1 worker gone, ")
	contains(t, r.do(3, "status"), " dead ")
	r.killed()
}

func TestStopOfADeadMaster(t *testing.T) {
	r, _ := dead(t)
	contains(t, r.do(0, "stop"), "1 worker gone, ")
	if left := r.Processes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	r.killed()
}

// A pidfile whose process is dead may name another one's id by now.
func TestStrangersAreNotSignalled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("that can't be told here")
	}
	r, h := dead(t)
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { stranger.Wait(); close(ended) }()
	for _, name := range []string{"master", "worker.7"} {
		if err := os.WriteFile(filepath.Join(r.Dir, "pids", name+".pid"), fmt.Appendln(nil, stranger.Process.Pid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if list := rows(t, r.json(1, "status")); states(list) != "master dead, worker 0, worker 7 dead" {
		t.Errorf("%+v", list)
	}
	l := r.begin("shutdown")
	l.wait("1 worker sent SIGQUIT")
	h.finish()
	l.end(0)
	select {
	case <-ended:
		t.Errorf("a stranger was ended: %v", stranger.ProcessState)
	default:
		stranger.Process.Kill()
		<-ended
	}
	r.killed()
}

// A master that is stopped doesn't answer. Commands say so, and some do what
// they can.
func TestSilentMaster(t *testing.T) {
	for plugins, want := range map[string]string{
		"pidfiles hasty events": "master, worker 0",
		"hasty events":          "master",
	} {
		t.Run(plugins, func(t *testing.T) {
			r := start(t, plugins)
			r.hold()
			r.Kill(r.master, syscall.SIGSTOP)
			silent := fmt.Sprintf("master %d does not answer", r.master)
			if runtime.GOOS != "linux" && want == "master" {
				silent, want = "the master does not answer", ""
			}
			status, spawn, restart := r.begin("status", "--json"), r.begin("spawn", "1"), r.begin("restart")
			out, errs := status.end(1)
			contains(t, errs, silent+"\n")
			var v map[string]any
			if err := json.Unmarshal([]byte(out), &v); err != nil {
				t.Fatal(err)
			}
			if got := states(rows(t, v)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			_, errs = spawn.end(1)
			contains(t, errs, silent+"\n")
			_, errs = restart.end(1)
			if want == "" {
				r.Kill(r.master, syscall.SIGCONT)
				r.do(0, "stop")
				r.gone()
				return
			}
			contains(t, errs, silent+"; it has been sent SIGUSR2, and restarts if it recovers\n")
			contains(t, r.do(0, "stop"), silent+"; it has been sent SIGTERM\n")
			r.gone()
		})
	}
}

func TestShutdownOfASilentMaster(t *testing.T) {
	r := start(t, "pidfiles hasty events")
	h := r.hold()
	r.Kill(r.master, syscall.SIGSTOP)
	l := r.begin("shutdown")
	l.wait("does not answer; it has been sent SIGQUIT")
	r.Wait("closing")
	h.finish()
	l.end(0)
	r.gone()
}

// A master whose socket somebody has removed is restarted by signal.
func TestRestartWithoutASocket(t *testing.T) {
	r := start(t, "")
	r.remove("pids/cli.sock")
	out, errs := r.begin("status").end(0)
	contains(t, out, "alive")
	contains(t, errs, "takes no commands")
	old := r.master
	contains(t, r.do(0, "restart"), fmt.Sprintf(" has replaced master %d, ", old))
	r.Wait("restarted")
	r.do(0, "shutdown")
	r.gone()
}

// It makes no difference where the plugin stands, and whether there are
// pidfiles.
func TestPlugins(t *testing.T) {
	for plugins, socket := range map[string]string{
		"cli pidfiles events":        "pids",
		"cli bundle events":          "elsewhere",
		"cli events":                 "pids",
		"run events detach pidfiles": "run",
	} {
		t.Run(plugins, func(t *testing.T) {
			r := start(t, plugins)
			info, err := os.Stat(filepath.Join(r.Dir, socket, "cli.sock"))
			if err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("%v, %v", info, err)
			}
			r.do(0, "restart")
			r.listening()
			contains(t, r.do(0, "status"), strconv.Itoa(r.master))
			r.do(0, "shutdown")
			if left := r.Processes(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			r.gone()
		})
	}
}

// Neither commands nor a second start disturb the cluster.
func TestNothingIsDisturbed(t *testing.T) {
	r := start(t, "run events")
	look := func() (list []string) {
		for _, dir := range []string{".", "run"} {
			entries, err := os.ReadDir(r.path(dir))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				info, err := e.Info()
				if err != nil {
					t.Fatal(err)
				}
				if !e.IsDir() {
					list = append(list, fmt.Sprint(e.Name(), info.ModTime(), info.Sys().(*syscall.Stat_t).Ino))
				}
			}
		}
		return list
	}
	before := look()
	r.do(0, "status")
	_, errs := r.begin().end(1)
	contains(t, errs, "address already in use")
	r.do(0, "help")
	if after := look(); !slices.Equal(before, after) {
		t.Errorf("before %q, after %q", before, after)
	}
	if log := r.Log(); log != "" {
		t.Error(log)
	}
	r.do(0, "shutdown")
	r.gone()
}

func TestMainBeforeListen(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "early")
	r := &run{p, p.WaitPid("listening")}
	contains(t, r.do(0, "status"), "worker 0")
	match(t, r.do(0, "version"), "early\n")
	r.do(0, "restart")
	r.do(0, "shutdown")
	r.gone()
}

// What doesn't speak the protocol is turned away, and harms nobody.
func TestGarbage(t *testing.T) {
	r := start(t, "")
	for _, line := range []string{
		"\n",
		"status\n",
		"{\n",
		`{"version":1,"command":["status"]}` + "\n",
		"\x00\xff\xfe\n",
		strings.Repeat("x", 70<<10) + "\n",
		strings.Repeat("x", 70<<10),
	} {
		c, err := net.Dial("unix", r.path("pids/cli.sock"))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(4 * time.Second)) // it would wait five for the end of a line
		io.WriteString(c, line)
		in := bufio.NewReader(c)
		if hello, err := in.ReadString('\n'); err != nil || !strings.Contains(hello, `"hello"`) {
			t.Errorf("%.20q: %q, %v", line, hello, err)
		}
		if rest, err := io.ReadAll(in); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.20q: %q, %v", line, rest, err)
		}
		c.Close()
	}
	for line, want := range map[string]string{
		`{"version":2,"command":"stop"}`:  "version",
		`{"version":1,"command":"dance"}`: "dance",
	} {
		c, err := net.Dial("unix", r.path("pids/cli.sock"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c, line)
		answer, _ := io.ReadAll(c)
		contains(t, string(answer), `"failed"`)
		contains(t, string(answer), want)
		c.Close()
	}
	r.do(0, "status")
	r.do(0, "shutdown")
	r.gone()
}

// Another user than the cluster's can't control it.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this needs root")
	}
	t.Parallel()
	r := command(t, "")
	exe := r.path("app") // where everybody may look
	if err := errors.Join(os.Link(r.Cmd.Path, exe), os.Chmod(r.Dir, 0o755)); err != nil {
		t.Skip(err)
	}
	r.Start()
	r.listening()
	for _, name := range []string{"status", "stop"} {
		l := r.command(name)
		l.cmd.Path = exe
		l.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		l.start()
		_, errs := l.end(1)
		contains(t, errs, "no access")
	}
	r.remove("app")
	r.do(0, "shutdown")
	r.gone()
}

// A session goes on with the next master.
func TestRepl(t *testing.T) {
	r := start(t, "")
	l := r.command("repl")
	in, err := l.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.start()
	io.WriteString(in, "pids\n")
	l.wait(fmt.Sprintf("master: %d\n", r.master))
	r.do(0, "restart")
	r.listening()
	io.WriteString(in, "pids\n")
	l.wait(fmt.Sprintf("master: %d\n", r.master))
	io.WriteString(in, "quit\n")
	_, errs := l.end(0)
	match(t, errs, fmt.Sprintf(".*: master %d has replaced master %d: attached to it\n", r.master, r.Pid()))

	l = r.command("repl", "--json")
	l.cmd.Stdin = strings.NewReader("pids\n")
	l.start()
	var v struct{ Output string }
	if err := json.Unmarshal([]byte(l.first()), &v); err != nil {
		t.Fatal(err)
	}
	contains(t, v.Output, fmt.Sprintf("master: %d\n", r.master))

	l = r.command("repl")
	if in, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.wait("cluster> ")
	io.WriteString(in, "shutdown\n")
	_, errs = l.end(0)
	match(t, errs, fmt.Sprintf(".*: master %d has ended\n", r.master))
	r.gone()
}
