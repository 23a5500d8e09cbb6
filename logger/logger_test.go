//go:build unix

package logger_test

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/logger"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"server": serve})
}

// serve is a cluster with a logger. Arguments of the form option=value are
// Set, but for those of the switch.
func serve() {
	m := &cluster.Master{Workers: 1}
	dir := ""
	var level slog.Leveler
	for _, arg := range os.Args[1:] {
		switch k, v, _ := strings.Cut(arg, "="); k {
		case "log":
			dir = v
		case "level":
			var l slog.Level
			must(l.UnmarshalText([]byte(v)))
			level = l
		case "own": // the program's own
			if v == "errorlog" {
				m.ErrorLog = log.New(os.Stderr, "own: ", 0)
				break
			}
			f, err := os.OpenFile("own.log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
			must(err)
			m.Stdout = f
		case "panic": // on SIGUSR1
			m.On(cluster.Hooks{Reopen: func() { panic("not today") }})
		case "unprivileged":
			if os.Geteuid() == 0 {
				must(syscall.Setgroups(nil))
				must(syscall.Setgid(65534))
				must(syscall.Setuid(65534))
			}
		default:
			m.Set(k, v)
		}
	}
	if _, err := os.Stat("fail"); err == nil && m.Predecessor() != 0 {
		os.Exit(7)
	}
	m.Use(logger.New(dir, level), clustertest.Events) // what is told has been written
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	must(err)
	m.On(cluster.Hooks{Listening: func() { clustertest.Tell("addr %v", l.Addr()) }})
	m.NewServer = func() (cluster.Server, error) {
		go func() {
			<-m.Done()
			fmt.Println("draining", os.Getpid())
		}()
		mux := http.NewServeMux()
		answer := func(path string, f func(r *http.Request)) {
			mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
				f(r)
				fmt.Fprint(w, os.Getpid())
			})
		}
		answer("/line", func(r *http.Request) { fmt.Printf("line %s\n", r.FormValue("n")) })
		answer("/error", func(r *http.Request) { fmt.Fprintf(os.Stderr, "error %s\n", r.FormValue("n")) })
		answer("/send", func(r *http.Request) { must(m.Send("hello", 1)) })
		answer("/panic", func(r *http.Request) { go panic("boom") })
		answer("/hold", func(r *http.Request) {
			stuck.Store(r.FormValue("until") == "death")
			fmt.Println("held by", os.Getpid())
			io.Copy(io.Discard, r.Body)
			fmt.Println("released by", os.Getpid())
		})
		return &http.Server{Handler: mux}, nil
	}
	must(m.ListenAndServe(l))
	if stuck.Load() {
		select {}
	}
}

// stuck has a worker drain for ever.
var stuck atomic.Bool

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A site is such a cluster.
type site struct {
	*clustertest.Program
	t    *testing.T
	addr string
	logs string // its directory
}

func command(t *testing.T, args ...string) *site {
	p := clustertest.Command(t, "server", args...)
	return &site{Program: p, t: t, logs: filepath.Join(p.Dir, "logs")}
}

func (s *site) start() *site {
	s.t.Helper()
	s.Start()
	s.addr = s.Wait("addr")[0]
	return s
}

var client = &http.Client{
	Transport: &http.Transport{DisableKeepAlives: true},
	Timeout:   clustertest.Patience,
}

// get requests path and returns the pid of the worker that has answered.
func (s *site) get(path string) (pid int, err error) { return s.post(path, nil) }

func (s *site) post(path string, body io.Reader) (pid int, err error) {
	r, err := client.Post("http://"+s.addr+path, "text/plain", body)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(b))
}

func (s *site) mustGet(path string) (pid int) {
	s.t.Helper()
	pid, err := s.get(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

var held = regexp.MustCompile(`(?m)^held by (\d+)$`)

// hold has a worker wait. It returns its pid, and a function that lets go of
// it and returns the pid of who has answered.
func (s *site) hold(query ...string) (pid int, release func() int) {
	s.t.Helper()
	before := len(held.FindAllString(s.read("workers.access.log"), -1))
	body, w := io.Pipe()
	s.t.Cleanup(func() { w.Close() })
	answered := make(chan int, 1)
	go func() {
		pid, _ := s.post("/hold"+strings.Join(query, ""), body)
		answered <- pid
	}()
	s.eventually("a request to be held", func() bool {
		lines := held.FindAllStringSubmatch(s.read("workers.access.log"), -1)
		if len(lines) == before {
			return false
		}
		pid, _ = strconv.Atoi(lines[before][1])
		return true
	})
	return pid, func() int {
		w.Close()
		return <-answered
	}
}

// worker waits for an event of a worker, and returns its pid.
func (s *site) worker(event string) int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.Wait(event)[1])
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

func (s *site) eventually(what string, f func() bool) {
	s.t.Helper()
	if !clustertest.Eventually(clustertest.Patience, f) {
		s.t.Fatalf("timeout waiting for %s", what)
	}
}

// read returns what is in a log file now.
func (s *site) read(name string) string {
	b, _ := os.ReadFile(filepath.Join(s.logs, name))
	return string(b)
}

var names = []string{"master.log", "workers.access.log", "workers.error.log"}

// rotate renames all log files and signals the master, as logrotate does.
func (s *site) rotate(suffix string) {
	s.t.Helper()
	for _, name := range names {
		path := filepath.Join(s.logs, name)
		if err := os.Rename(path, path+suffix); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Signal(syscall.SIGUSR1)
}

// has reports whether the descriptor of a process is open, to a log file with
// that name now.
func (s *site) has(pid, fd int, name string) bool {
	a, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return false
	}
	b, err := os.Stat(filepath.Join(s.logs, name))
	return err == nil && os.SameFile(a, b)
}

// open returns the names of the log files that a process has open.
func (s *site) open(pid int) (list []string) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && filepath.Dir(target) == s.logs {
			list = append(list, filepath.Base(target))
		}
	}
	slices.Sort(list)
	return list
}

// needProc skips the test where processes can't be looked into.
func needProc(t *testing.T) {
	if _, err := os.Readlink("/proc/self/fd/1"); err != nil {
		t.Skip("no /proc")
	}
}

// A record is a line of master.log.
type record struct {
	level string
	text  string
	pid   int
	attrs string
}

var line = regexp.MustCompile(`^time=\S+ level=([A-Z]+) msg=("(?:[^"\\]|\\.)*"|\S+) pid=(\d+)(.*)$`)

func (s *site) records() (list []record) {
	s.t.Helper()
	for l := range strings.Lines(s.read("master.log")) {
		f := line.FindStringSubmatch(strings.TrimSuffix(l, "\n"))
		if f == nil {
			s.t.Fatalf("master.log has the line %q", l)
		}
		text, err := strconv.Unquote(f[2])
		if err != nil {
			text = f[2]
		}
		pid, _ := strconv.Atoi(f[3])
		list = append(list, record{f[1], text, pid, f[4]})
	}
	return list
}

// of returns what a master has written, with the level.
func (s *site) of(pid int) (list []string) {
	s.t.Helper()
	for _, r := range s.records() {
		if r.pid == pid {
			list = append(list, r.level+" "+r.text)
		}
	}
	return list
}

// Everything that happens in two generations, and one that fails.
func TestEvents(t *testing.T) {
	t.Parallel()
	s := command(t, "level=debug", "timeout=2s").start()
	s.Wait("ready")
	s.mustGet("/send")
	s.eventually("a message", func() bool { return strings.Contains(s.read("master.log"), "hello") })
	s.get("/panic")
	s.Wait("ready")
	s.Signal(syscall.SIGTTIN)
	s.Wait("ready", "1")
	s.Signal(syscall.SIGTTOU)
	s.Wait("killed", "1")
	_, release := s.hold("?until=death")
	s.Signal(syscall.SIGHUP)
	s.Wait("killed", "0") // of the panic
	s.Wait("killed", "0") // of impatience
	release()
	s.Wait("ready", "0")
	s.Signal(syscall.SIGUSR1)
	s.eventually("a reopening", func() bool { return strings.Contains(s.read("master.log"), "reopen") })
	if err := os.WriteFile(filepath.Join(s.Dir, "fail"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGUSR2)
	s.Wait("failed")
	if err := os.Remove(filepath.Join(s.Dir, "fail")); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGUSR2)
	next := s.WaitPid("restarted")
	s.Signal(syscall.SIGTERM)
	s.End(0, "logs")

	first := s.of(s.Pid())
	waiting := 0
	first = slices.DeleteFunc(first, func(r string) bool { // it waits for seconds, and every one is told
		if strings.Contains(r, "waiting") {
			waiting++
			return waiting > 1
		}
		return false
	})
	want := []string{
		"INFO master started",
		"INFO worker 0 spawned",
		"DEBUG worker 0 connected",
		"INFO listening for connections",
		`DEBUG worker 0 message "hello"`,
		"ERROR worker 0 uncaught exception panic: boom",
		"ERROR worker 0 died: exit status 2",
		"INFO worker 0 spawned",
		"DEBUG worker 0 connected",
		"INFO worker 1 spawned",
		"DEBUG worker 1 connected",
		"INFO worker 1 removed",
		"INFO worker 1 died: exit status 0",
		"INFO worker 0 spawned",
		"DEBUG worker 0 connected",
		"INFO worker 0 waiting on 1 connection",
		"WARN worker 0 timed out after 2s",
		"ERROR worker 0 died: signal: killed",
		"INFO reopen requested",
		"INFO restart requested",
		"ERROR restart failed: cluster: the new master ended before it was ready: exit status 7",
		"INFO restart requested",
		"WARN shutting down",
		"WARN kill(SIGQUIT)",
		"INFO worker 0 died: exit status 0",
		"INFO shutdown complete",
	}
	// What the package logs of its own accord is an error, too.
	first = slices.DeleteFunc(first, func(r string) bool { return strings.HasPrefix(r, "ERROR cluster: ") })
	if !slices.Equal(first, want) {
		t.Errorf("the first master wrote\n%s\nwant\n%s", strings.Join(first, "\n"), strings.Join(want, "\n"))
	}
	second := s.of(next)
	want = []string{
		"INFO master started",
		"INFO worker 0 spawned",
		"DEBUG worker 0 connected",
		"INFO listening for connections",
		"INFO restart complete",
		"WARN shutting down",
		"WARN kill(SIGKILL)",
		"INFO worker 0 died: signal: killed",
		"INFO shutdown complete",
	}
	if !slices.Equal(second, want) {
		t.Errorf("the second master wrote\n%s\nwant\n%s", strings.Join(second, "\n"), strings.Join(want, "\n"))
	}
	for _, r := range s.records() {
		worker := ""
		if strings.HasPrefix(r.text, "worker ") {
			worker = " worker.id=" + r.text[len("worker "):][:1] + " worker.pid="
		}
		if !strings.HasPrefix(r.attrs, worker) {
			t.Errorf("%s has attributes%s, want%s", r.text, r.attrs, worker)
		}
		if strings.Contains(r.text, "boom") && !strings.Contains(r.attrs, " stack=\"panic: boom\\n\\ngoroutine ") {
			t.Errorf("%s has attributes%s, want the stack", r.text, r.attrs)
		}
		if started := r.text == "master started"; started && r.pid == next && r.attrs != fmt.Sprintf(" predecessor=%d", s.Pid()) {
			t.Errorf("%s has attributes%s", r.text, r.attrs)
		}
	}
}

// The death of a worker that was told to end is an error only if it didn't end
// by that.
func TestDeathsWhileDraining(t *testing.T) {
	t.Parallel()
	s := command(t, "workers=2", "timeout=1500ms").start()
	level := func(pid int) string {
		t.Helper()
		for _, r := range s.records() {
			if strings.Contains(r.text, "died") && strings.HasSuffix(r.attrs, fmt.Sprintf("worker.pid=%d", pid)) {
				return r.level
			}
		}
		t.Fatalf("no death of %d in\n%s", pid, s.read("master.log"))
		return ""
	}
	pid := s.worker("ready")
	other := s.worker("ready")
	s.Signal(syscall.SIGHUP)
	s.Wait("killed")
	s.Wait("killed")
	if got := []string{level(pid), level(other)}; !slices.Equal(got, []string{"INFO", "INFO"}) {
		t.Errorf("deaths in a rolling restart: %v", got)
	}

	ready := map[string]int{} // pids by id
	for range 2 {
		e := s.Wait("ready")
		ready[e[0]], _ = strconv.Atoi(e[1])
	}
	for pid = 0; pid != ready["1"]; {
		pid, _ = s.hold()
	}
	s.Signal(syscall.SIGTTOU)
	s.Wait("killed", "1", strconv.Itoa(pid))
	if got := level(pid); got != "ERROR" {
		t.Errorf("death of a worker that was removed and took too long: %s", got)
	}

	pid, _ = s.hold()
	s.Signal(syscall.SIGHUP)
	s.eventually("the worker to drain", func() bool {
		return strings.Contains(s.read("workers.access.log"), fmt.Sprintf("draining %d\n", pid))
	})
	s.Kill(pid, syscall.SIGKILL)
	s.Wait("killed", "0", strconv.Itoa(pid))
	if got := level(pid); got != "ERROR" {
		t.Errorf("death of a worker that was killed while it drained: %s", got)
	}
	s.Quit("logs")
}

func TestLevels(t *testing.T) {
	t.Parallel()
	for level, want := range map[string][]string{
		"":     {"INFO", "WARN"},
		"info": {"INFO", "WARN"},
		"warn": {"WARN"},
	} {
		args := []string{"log=logs"}
		if level != "" {
			args = append(args, "level="+level)
		}
		s := command(t, args...).start()
		s.Quit("logs")
		var got []string
		for _, r := range s.records() {
			got = append(got, r.level)
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("level %q: records are %v, want %v", level, got, want)
		}
	}
}

func TestWorkersOutput(t *testing.T) {
	t.Parallel()
	s := command(t, "log=a/logs").start()
	s.logs = filepath.Join(s.Dir, "a/logs")
	s.mustGet("/line?n=1")
	pid := s.mustGet("/error?n=2")
	if got := s.read("workers.access.log"); got != "line 1\n" {
		t.Errorf("workers.access.log is %q", got)
	}
	if got := s.read("workers.error.log"); got != "error 2\n" {
		t.Errorf("workers.error.log is %q", got)
	}
	for _, name := range names {
		info, err := os.Stat(filepath.Join(s.logs, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm()&^0o644 != 0 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	s.Quit("a")
	if want := fmt.Sprintf("line 1\ndraining %d\n", pid); s.read("workers.access.log") != want {
		t.Errorf("workers.access.log is %q, want %q", s.read("workers.access.log"), want)
	}
	if s.Log() != "" {
		t.Errorf("the master's standard error: %q", s.Log())
	}
}

func TestOutputOfTheProgramsOwnChoice(t *testing.T) {
	t.Parallel()
	s := command(t, "own=stdout").start()
	s.mustGet("/line?n=1")
	s.mustGet("/error?n=2")
	s.Quit("logs", "own.log")
	if b, _ := os.ReadFile(filepath.Join(s.Dir, "own.log")); !strings.HasPrefix(string(b), "line 1\n") {
		t.Errorf("own.log is %q", b)
	}
	if got := s.read("workers.error.log"); got != "error 2\n" {
		t.Errorf("workers.error.log is %q", got)
	}
	if _, err := os.Stat(filepath.Join(s.logs, "workers.access.log")); err == nil {
		t.Error("there is an unused workers.access.log")
	}
}

// As logrotate does it, while every request writes a line. No line is lost or
// doubled, whatever else happens.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	s := command(t, "workers=2").start()
	var n, answered atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var mu sync.Mutex
	sure := make(map[string]bool) // lines of requests that were answered
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := n.Add(1)
				if _, err := s.get(fmt.Sprintf("/line?n=%d", i)); err == nil {
					mu.Lock()
					sure[fmt.Sprintf("line %d", i)] = true
					mu.Unlock()
					answered.Add(1)
				}
			}
		})
	}
	halt := sync.OnceFunc(func() {
		close(stop)
		clients.Wait()
	})
	t.Cleanup(halt)
	more := func() {
		t.Helper()
		enough := answered.Load() + 100
		s.eventually("answers", func() bool { return answered.Load() >= enough })
	}
	rotations := 0
	rotate := func() {
		t.Helper()
		more()
		rotations++
		s.rotate(fmt.Sprintf(".%d", rotations))
		s.eventually("new files", func() bool { return s.read("workers.access.log") != "" && s.read("master.log") != "" })
	}

	rotate()
	rotate()
	s.Signal(syscall.SIGUSR2)
	s.Wait("start") // the first
	s.Wait("start") // it has the files
	rotate()
	s.WaitPid("restarted")
	rotate()
	s.Signal(syscall.SIGUSR2)
	s.WaitPid("restarted")
	pid := s.mustGet("/line?n=x")
	rotate()
	s.Kill(pid, syscall.SIGKILL)
	rotate()
	more()
	halt()
	s.Quit("logs")

	seen := make(map[string]int)
	files, _ := filepath.Glob(filepath.Join(s.logs, "workers.access.log*"))
	if len(files) != rotations+1 {
		t.Errorf("%d rotations made %q", rotations, files)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			l, whole := strings.CutSuffix(l, "\n")
			if !whole || !regexp.MustCompile(`^(line (\d+|x)|draining \d+)$`).MatchString(l) {
				t.Errorf("%s has the line %q", filepath.Base(file), l)
			}
			seen[l]++
		}
	}
	for l, n := range seen {
		if n > 1 {
			t.Errorf("%q is there %d times", l, n)
		}
	}
	for l := range sure {
		if seen[l] == 0 {
			t.Errorf("%q is lost", l)
		}
	}
	if failed := n.Load() - answered.Load(); failed > 20 {
		t.Errorf("%d requests failed", failed)
	}
	t.Logf("%d requests, %d answered, %d rotations", n.Load(), answered.Load(), rotations)
}

// All that run get the new files: workers, also of an old master that drains,
// and masters. A stand-in has none.
func TestRotationReachesEverybody(t *testing.T) {
	needProc(t)
	t.Parallel()
	s := command(t, "workers=2").start()
	s.Wait("ready")
	s.Wait("ready")
	held, release := s.hold()
	s.Signal(syscall.SIGUSR2)
	s.Wait("listening")
	next := s.WaitPid("listening")
	s.Wait("closing")
	s.rotate(".1")
	for _, pid := range []int{held, s.worker("ready"), s.worker("ready")} {
		s.eventually("its files in a worker", func() bool {
			return s.has(pid, 1, "workers.access.log") && s.has(pid, 2, "workers.error.log")
		})
	}
	for _, pid := range []int{s.Pid(), next} {
		s.eventually("its files in a master", func() bool { return slices.Equal(s.open(pid), names) })
	}
	if got := release(); got != held {
		t.Errorf("%d has answered, want %d", got, held)
	}
	s.Wait("restarted")
	if want := fmt.Sprintf("released by %d\n", held); !strings.Contains(s.read("workers.access.log"), want) {
		t.Errorf("workers.access.log is %q, want in it %q", s.read("workers.access.log"), want)
	}
	s.eventually("the stand-in to close its files", func() bool { return s.open(s.Pid()) == nil })
	s.rotate(".2") // by the stand-in
	s.eventually("its files in a master", func() bool { return slices.Equal(s.open(next), names) })
	s.Signal(syscall.SIGHUP)
	for range 2 {
		if pid := s.worker("ready"); !slices.Equal(s.open(pid), names[1:]) {
			t.Errorf("a new worker has %q open, want %q", s.open(pid), names[1:])
		}
	}
	s.Quit("logs")
}

// The master gives the new files to workers that could not open them.
func TestRotationForAnotherUser(t *testing.T) {
	needProc(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := user.Lookup("nobody"); err != nil {
		t.Skip(err)
	}
	t.Parallel()
	s := command(t, "user=nobody")
	if err := os.Mkdir(s.logs, 0o700); err != nil {
		t.Fatal(err)
	}
	s.start()
	pid := s.worker("ready")
	s.mustGet("/line?n=1")
	s.rotate(".1")
	s.eventually("its files in the worker", func() bool {
		return s.has(pid, 1, "workers.access.log") && s.has(pid, 2, "workers.error.log")
	})
	s.mustGet("/line?n=2")
	if got := s.read("workers.access.log"); got != "line 2\n" {
		t.Errorf("workers.access.log is %q", got)
	}
	if status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); !strings.Contains(string(status), "\nUid:\t65534\t65534") {
		t.Errorf("the worker is not nobody:\n%s", status)
	}
	s.Quit("logs")
}

func TestOutputSurvivesTheMaster(t *testing.T) {
	t.Parallel()
	s := command(t).start()
	held, release := s.hold()
	s.Kill(s.Pid(), syscall.SIGKILL)
	s.eventually("the worker to drain", func() bool {
		return strings.Contains(s.read("workers.access.log"), fmt.Sprintf("draining %d\n", held))
	})
	if got := release(); got != held {
		t.Errorf("%d has answered, want %d", got, held)
	}
	s.eventually("the end of the worker", func() bool { return len(s.Processes()) == 0 })
	if want := fmt.Sprintf("released by %d\n", held); !strings.HasSuffix(s.read("workers.access.log"), want) {
		t.Errorf("workers.access.log is %q, want at its end %q", s.read("workers.access.log"), want)
	}
	s.End(-1, "logs", fmt.Sprintf("cluster.%d.server.sock", s.Pid()))
}

// What can't be opened anew goes on as it is, and is tried again.
func TestReopenFails(t *testing.T) {
	t.Parallel()
	s := command(t).start()
	gone := filepath.Join(s.Dir, "gone")
	if err := os.Rename(s.logs, gone); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGUSR1)
	for _, name := range names {
		s.WaitLog(fmt.Sprintf("logger: open %s: no such file or directory; going on with the old file\n", filepath.Join(s.logs, name)))
	}
	logs := s.logs
	s.logs = gone
	s.mustGet("/line?n=1")
	if got := s.read("workers.access.log"); got != "line 1\n" {
		t.Errorf("workers.access.log is %q", got)
	}
	s.eventually("a record in the old file", func() bool { return strings.Contains(s.read("master.log"), "reopen requested") })
	if got := strings.Join(s.of(s.Pid()), "\n"); !strings.Contains(got, "ERROR logger: open "+logs) {
		t.Errorf("master.log has\n%s", got)
	}
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	s.logs = logs
	s.Signal(syscall.SIGUSR1)
	s.eventually("a record in the new file", func() bool { return strings.Contains(s.read("master.log"), "reopen requested") })
	s.eventually("a line in the new file", func() bool { s.mustGet("/line?n=2"); return s.read("workers.access.log") != "" })
	s.Quit("logs", "gone")
	if got := strings.Count(s.Log(), "\n"); got != 3 {
		t.Errorf("%d lines on standard error, want 3:\n%s", got, s.Log())
	}
}

func TestFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	t.Parallel()
	s := command(t)
	if err := os.Mkdir(s.logs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Symlink("/dev/full", filepath.Join(s.logs, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	s.Kill(s.mustGet("/line?n=1"), syscall.SIGKILL)
	s.Wait("ready")
	s.Wait("ready")
	s.mustGet("/line?n=2")
	for _, name := range names {
		if err := os.Remove(filepath.Join(s.logs, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.Signal(syscall.SIGUSR1)
	s.eventually("a record", func() bool { return strings.Contains(s.read("master.log"), "reopen requested") })
	s.eventually("a line", func() bool { s.mustGet("/line?n=3"); return s.read("workers.access.log") != "" })
	s.Quit("logs")
	if got := strings.Join(s.of(s.Pid()), "\n"); !strings.HasSuffix(got, "\nINFO shutdown complete") {
		t.Errorf("master.log has\n%s", got)
	}
	const want = "logger: write %s: no space left on device; records are lost until it can be written again\n"
	if log := s.Log(); !strings.Contains(log, fmt.Sprintf(want, filepath.Join(s.logs, "master.log"))) || strings.Count(log, "\n") != 1 {
		t.Errorf("standard error is %q", log)
	}
}

func TestBadDirectory(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		make func(dir string) error
		want string
	}{
		"a file": {
			make: func(dir string) error { return os.WriteFile(dir+"/logs", nil, 0o644) },
			want: "logger: mkdir {}/logs: not a directory; ",
		},
		"below a file": {
			args: []string{"log=logs/here"},
			make: func(dir string) error { return os.WriteFile(dir+"/logs", nil, 0o644) },
			want: "logger: mkdir {}/logs: not a directory; ",
		},
		"a directory in the place of a file": {
			make: func(dir string) error { return os.MkdirAll(dir+"/logs/workers.error.log", 0o755) },
			want: "logger: open {}/logs/workers.error.log: is a directory; ",
		},
		"read-only": {
			args: []string{"unprivileged"},
			make: func(dir string) error { return os.Mkdir(dir+"/logs", 0o555) },
			want: "logger: open {}/logs/master.log: permission denied; ",
		},
		"none, and none can be made": {
			args: []string{"unprivileged", "log=logs/here"},
			make: func(dir string) error { return os.Mkdir(dir+"/logs", 0o555) },
			want: "logger: mkdir {}/logs/here: permission denied; ",
		},
	} {
		s := command(t, test.args...)
		if err := os.Chmod(s.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := test.make(s.Dir); err != nil {
			t.Fatal(err)
		}
		s.Start()
		s.End(1, "logs")
		want := strings.ReplaceAll(test.want, "{}", s.Dir) + "set a directory that the master can write\n"
		if !strings.HasSuffix(s.Log(), want) {
			t.Errorf("%s: standard error is %q, want at its end %q", name, s.Log(), want)
		}
	}
}

// A new master that can't write its log fails, and the old one goes on.
func TestBadDirectoryInARestart(t *testing.T) {
	t.Parallel()
	s := command(t).start()
	if err := os.Rename(s.logs, s.logs+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.logs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGUSR2)
	if got := strings.Join(s.Wait("failed"), " "); !strings.Contains(got, "logger: mkdir "+s.logs+": not a directory") {
		t.Errorf("the restart failed with %q", got)
	}
	s.mustGet("/line?n=1")
	s.Quit("logs", "logs.1")
}

func TestInline(t *testing.T) {
	t.Parallel()
	s := command(t, "inline=true").start()
	s.mustGet("/line?n=1")
	s.Wait("line", "1")
	if err := os.Rename(filepath.Join(s.logs, "master.log"), filepath.Join(s.logs, "old")); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGUSR1)
	s.eventually("master.log", func() bool { return s.read("master.log") != "" })
	s.Quit("logs")
	if got, want := s.of(s.Pid()), []string{"INFO reopen requested", "INFO shutdown complete"}; !slices.Equal(got, want) {
		t.Errorf("master.log has %q, want %q", got, want)
	}
	if !strings.Contains(s.read("old"), "listening") {
		t.Errorf("the old master.log is %q", s.read("old"))
	}
	for _, name := range names[1:] {
		if _, err := os.Stat(filepath.Join(s.logs, name)); err == nil {
			t.Errorf("there is a %s", name)
		}
	}
}

// What nobody can be told as an error goes to master.log too, unless the
// program has said where it should go.
func TestErrorLog(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} {
		args := []string{"panic"}
		if own {
			args = append(args, "own=errorlog")
		}
		s := command(t, args...).start()
		s.Signal(syscall.SIGUSR1)
		const want = "cluster: a hook panicked: not today\n"
		s.WaitLog(want)
		s.Quit("logs")
		if got := strings.Contains(s.Log(), "own: "+want); got != own {
			t.Errorf("own %t: standard error is %q", own, s.Log())
		}
		found := slices.ContainsFunc(s.records(), func(r record) bool {
			return r.level == "ERROR" && r.pid == s.Pid() && strings.HasPrefix(r.text, want) && !strings.HasSuffix(r.text, "\n")
		})
		if found == own {
			t.Errorf("own %t: master.log is\n%s", own, s.read("master.log"))
		}
	}
}
