//go:build unix && !cluster_nofork

package cluster_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"golang.org/x/sys/unix"
)

// A fleet is a cluster that is restarted. Its program is a symbolic link to
// one of many versions, which are all the test binary: the version is the
// name of the file, and the options in it win over the arguments, as in
// "v2,workers=3,mode=hang".
//
// All its generations have the same standard input, so that masters are told
// what to do through sockets of their own.
type fleet struct {
	*proc
	bin    string // where the versions are
	path   string // the symbolic link
	ctl    string // where the masters' sockets are
	master int    // the current one, as far as upgrade has brought it
}

const (
	controlEnv = "CLUSTER_TEST_CONTROL"
	trailer    = "\nversion of the program: "
)

// newFleet returns a fleet that is yet to be started.
func newFleet(t testing.TB, version string, args ...string) *fleet {
	t.Helper()
	return fleetOf(t, "fleet", version, args...)
}

// fleetOf is newFleet for another helper that calls runFleet.
func fleetOf(t testing.TB, name, version string, args ...string) *fleet {
	t.Helper()
	f := &fleet{proc: command(t, name, args...), bin: tempDir(t), ctl: tempDir(t)}
	f.path = filepath.Join(f.bin, "app")
	f.cmd.Path, f.cmd.Args[0] = f.path, f.path
	f.cmd.Env = append(f.cmd.Env, controlEnv+"="+f.ctl)
	if err := unix.Mkfifo(filepath.Join(f.ctl, "gate"), 0o666); err != nil {
		t.Fatal(err)
	}
	f.flip(version)
	return f
}

// startFleet starts one and waits until it serves.
func startFleet(t testing.TB, version string, args ...string) *fleet {
	t.Helper()
	return newFleet(t, version, args...).launch()
}

func (f *fleet) launch() *fleet {
	f.t.Helper()
	f.start()
	f.master = f.wait("listening").Pid
	return f
}

// build makes a version, without a copy of the test binary if possible.
func (f *fleet) build(version string) string {
	f.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	file := filepath.Join(f.bin, version)
	if _, err := os.Lstat(file); err == nil {
		return file
	}
	if err := os.Link(exe, file); err != nil {
		copyFile(f.t, exe, file, "")
	}
	return file
}

// copyFile copies the test binary, to be of that version whatever its name.
func copyFile(t testing.TB, from, to, version string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if version != "" {
		_, err2 := io.WriteString(out, trailer+version)
		err = errors.Join(err, err2)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

// flip has the symbolic link point to another version.
func (f *fleet) flip(version string) {
	f.t.Helper()
	f.point(f.build(version))
}

func (f *fleet) point(file string) {
	f.t.Helper()
	next := f.path + ".next"
	if err := errors.Join(os.Symlink(file, next), os.Rename(next, f.path)); err != nil {
		f.t.Fatal(err)
	}
}

// tell has the master with that pid run a command, and returns its answer.
func (f *fleet) tell(pid int, format string, args ...any) string {
	f.t.Helper()
	answer := f.told(pid, format, args...)
	select {
	case s := <-answer:
		return s
	case <-time.After(patience):
		f.t.Fatalf("timeout waiting for an answer to %s", fmt.Sprintf(format, args...))
	}
	return ""
}

// told is tell that doesn't wait.
func (f *fleet) told(pid int, format string, args ...any) <-chan string {
	f.t.Helper()
	c, err := net.Dial("unix", filepath.Join(f.ctl, strconv.Itoa(pid)))
	if err != nil {
		f.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(2 * patience))
	if _, err := fmt.Fprintf(c, format+"\n", args...); err != nil {
		f.t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() {
		defer c.Close()
		b, err := io.ReadAll(c)
		if err == nil && len(b) == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			b = []byte("0" + err.Error())
		}
		answer <- string(b[1:])
	}()
	return answer
}

// mustTell is tell for a command that answers only if it fails.
func (f *fleet) mustTell(pid int, format string, args ...any) {
	f.t.Helper()
	if got := f.tell(pid, format, args...); got != "" {
		f.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), got)
	}
}

// upgrade restarts to the version, and waits until the old generation is gone.
func (f *fleet) upgrade(version string) {
	f.t.Helper()
	f.flip(version)
	f.mustTell(f.master, "restart")
	f.next()
}

// next waits for the next generation, and for the end of the one before.
func (f *fleet) next() {
	f.t.Helper()
	f.master = f.wait("listening").Pid
	f.wait("restart")
}

// version asks a worker for its version.
func (f *fleet) version(n ...int) string {
	f.t.Helper()
	v, _, _ := strings.Cut(f.get("/version", n...), " ")
	return v
}

func (f *fleet) wantVersion(want string, n ...int) {
	f.t.Helper()
	if got := f.version(n...); got != want {
		f.t.Errorf("version %s answers, want %s", got, want)
	}
}

// open lets all pass that wait at the gate, now and later.
func (f *fleet) open() {
	f.t.Helper()
	file, err := os.OpenFile(filepath.Join(f.ctl, "gate"), os.O_RDWR, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { file.Close() })
}

// masterInfo and workerInfo ask for what the process knows of itself.
func (f *fleet) masterInfo(pid int) info {
	f.t.Helper()
	return parseInfo(f.t, f.tell(pid, "info"))
}

// alive returns the fleet's processes, zombies excepted.
func (f *fleet) alive() []int {
	pids := marked(f.mark)
	slices.Sort(pids)
	return pids
}

// settled waits until these are the fleet's processes.
func (f *fleet) settled(want []int) {
	f.t.Helper()
	if !eventually(patience, func() bool { return slices.Equal(f.alive(), want) }) {
		f.t.Errorf("processes %v, want %v", f.alive(), want)
	}
}

// processes waits until there are so many, and returns their pids.
func (f *fleet) processes(n int) (pids []int) {
	f.t.Helper()
	if !eventually(patience, func() bool { pids = f.alive(); return len(pids) == n }) {
		f.t.Errorf("processes %v, want %d", pids, n)
	}
	return pids
}

// dead waits until a process is gone or a zombie.
func (f *fleet) dead(pid int) {
	f.t.Helper()
	if !eventually(patience, func() bool { return !slices.Contains(f.alive(), pid) }) {
		f.t.Errorf("process %d is still there", pid)
	}
}

// files returns what is in the fleet's directory.
func (f *fleet) files() (names []string) {
	entries, _ := os.ReadDir(f.dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// clients make a connection for every request.
type clients struct {
	t    testing.TB
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	answers map[string]int // by version
	failed  []string
	changed chan struct{}
}

func (f *fleet) load(n ...int) *clients {
	f.t.Helper()
	network, address := f.addr(n...)
	l := &clients{t: f.t, stop: make(chan struct{}), answers: make(map[string]int), changed: make(chan struct{})}
	for range 2 {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(time.Millisecond): // the processors are for others, too
				}
				answer, err := request(network, address, "/version")
				version, _, _ := strings.Cut(answer, " ")
				l.mu.Lock()
				if err != nil {
					l.failed = append(l.failed, err.Error())
				} else {
					l.answers[version]++
				}
				close(l.changed)
				l.changed = make(chan struct{})
				l.mu.Unlock()
			}
		})
	}
	f.t.Cleanup(l.halt)
	return l
}

func (l *clients) halt() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// more waits until n more requests have been answered.
func (l *clients) more(n int) {
	l.t.Helper()
	start, deadline := -1, time.After(patience)
	for {
		l.mu.Lock()
		now := len(l.failed)
		for _, n := range l.answers {
			now += n
		}
		changed := l.changed
		l.mu.Unlock()
		if start < 0 {
			start = now
		}
		if now >= start+n {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			l.t.Fatal("timeout waiting for answers")
		}
	}
}

// end ends them, of whose requests nothing may have failed, and returns which
// versions have answered how often.
func (l *clients) end() map[string]int {
	l.t.Helper()
	l.halt()
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.failed); n > 0 {
		l.t.Errorf("%d requests failed, %v were answered: %q", n, l.answers, l.failed[:min(n, 5)])
	}
	return l.answers
}

// only is end where no other version than this may have answered.
func (l *clients) only(version string) {
	l.t.Helper()
	if got := l.end(); len(got) != 1 || got[version] == 0 {
		l.t.Errorf("answers %v, want only %s", got, version)
	}
}

func request(network, address, path string) (string, error) {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	return roundTrip(c, path)
}

// What follows runs in helpers.

// version returns this process's version, and its options.
func version() (string, []string) {
	exe, _ := os.Executable()
	name := filepath.Base(exe)
	if f, err := os.Open("/proc/self/exe"); err == nil {
		tail := make([]byte, 256)
		if end, err := f.Seek(-int64(len(tail)), io.SeekEnd); err == nil {
			n, _ := f.ReadAt(tail, end)
			if _, v, ok := strings.Cut(string(tail[:n]), trailer); ok {
				name = v
			}
		}
		f.Close()
	}
	list := strings.Split(name, ",")
	return list[0], list[1:]
}

// gate waits for the test.
func gate() {
	report("gate", nil, "")
	f, err := os.Open(filepath.Join(os.Getenv(controlEnv), "gate"))
	if err != nil {
		fatal(err)
	}
	f.Close()
}

// hang is for ever, and no deadlock.
func hang() {
	report("hangs", nil, "")
	for {
		time.Sleep(time.Hour)
	}
}

// control runs the commands of the test.
func control(m *cluster.Master) {
	l, err := net.Listen("unix", filepath.Join(os.Getenv(controlEnv), strconv.Itoa(os.Getpid())))
	if err != nil {
		fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				fields := strings.Fields(line)
				if len(fields) == 0 {
					return
				}
				report("command", nil, fields[0])
				answer := "unknown command"
				if f, ok := commands[fields[0]]; ok {
					answer = f(m, fields[1:])
				}
				io.WriteString(c, "0"+answer)
			}()
		}
	}()
}

var timeoutMu sync.Mutex

func init() {
	commands["restart"] = func(m *cluster.Master, args []string) string { return errText(m.Restart(signals(args)...)) }
	commands["restartwithin"] = func(m *cluster.Master, args []string) string { // time
		timeoutMu.Lock()
		defer timeoutMu.Unlock()
		m.RestartTimeout, _ = time.ParseDuration(args[0])
		defer func() { m.RestartTimeout = 0 }()
		return errText(m.Restart())
	}
}

// located is a server that tells where it serves.
type located struct{ *http.Server }

func (s located) Serve(l net.Listener) error {
	report("addr", nil, l.Addr().Network()+" "+l.Addr().String())
	return s.Server.Serve(l)
}

// deaf is a server that never accepts.
type deaf struct{ cluster.Server }

func (deaf) Serve(net.Listener) error { hang(); return nil }

// late is a server that accepts when the gate is open.
type late struct{ cluster.Server }

func (s late) Serve(l net.Listener) error {
	gate()
	return s.Server.Serve(l)
}

var _ = helper("fleet", func() { runFleet(&http.Server{Handler: fleetHandler()}) })

// fleetHandler is handler, and tells the version.
func fleetHandler() *http.ServeMux {
	name, _ := version()
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name, " ", os.Getpid()) })
	mux.HandleFunc("/fork", func(w http.ResponseWriter, r *http.Request) {
		if err := exec.Command("sleep", "1").Start(); err != nil {
			http.Error(w, err.Error(), 500)
		}
	})
	return mux
}

// runFleet is the program of a fleet.
func runFleet(server cluster.Server) {
	name, options := version()
	if !cluster.IsWorker() {
		args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
			key, _, _ := strings.Cut(arg, "=")
			return slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, key+"=") })
		})
		os.Args = slices.Concat(os.Args[:1], options, args)
		switch mode() {
		case "exit":
			os.Exit(7)
		case "hang":
			hang()
		case "panic":
			panic("a version that panics")
		case "gate":
			gate()
		}
	}
	m := newMaster()
	if !cluster.IsWorker() {
		control(m)
	}
	generation, shy := 1, mode()
	m.On(cluster.Hooks{
		Restarting: func(v cluster.Values) {
			report("restarting", nil, "")
			switch once := shy; once {
			case "hookpanic", "slowtotell":
				shy = ""
				panic("not today")
			case "hookslow":
				shy = ""
				hang()
			}
			v.Set("generation", generation)
		},
		Restart: func(v cluster.Values) {
			v.Get("generation", &generation)
			generation++
		},
		RestartFailed: func(err error) {
			if mode() == "slowtotell" {
				time.Sleep(300 * time.Millisecond)
			}
			report("restart failed", nil, err.Error())
		},
	})
	m.On(cluster.Hooks{
		Established: func() { report("established", nil, "") },
		Closing:     func() { report("successor", nil, strconv.Itoa(m.Successor())) },
	})
	m.On(cluster.Hooks{ // another plugin
		Restarting: func(v cluster.Values) { v.Set("plugin", "of "+name) },
		Restart: func(v cluster.Values) {
			text, _ := json.Marshal(v)
			report("restart", nil, string(text))
		},
	})
	m.NewServer = func() (cluster.Server, error) {
		switch mode() {
		case "servergate":
			gate()
		case "serverhang":
			hang()
		case "serverpanic":
			panic("a server that panics")
		case "serverfail":
			return nil, errors.New("no database")
		case "half", "exitready":
			if os.Getenv("CLUSTER_WORKER") == "1" {
				return deaf{server}, nil
			}
			if mode() == "exitready" {
				m.On(cluster.Hooks{Serving: func() { time.AfterFunc(10*time.Millisecond, func() { os.Exit(9) }) }})
			}
		}
		return server, nil
	}
	if m.Addr != "" {
		m.NewServer = func() (cluster.Server, error) { return located{server.(*http.Server)}, nil }
		finish(m.ListenAndServe(nil))
		return
	}
	l := listen(0)
	for i := 1; ; i++ {
		if _, ok := argument("listen", i); !ok {
			break
		}
		if mode() == "late" {
			m.Add(listen(i), late{server})
		} else {
			m.Add(listen(i), server)
		}
	}
	if mode() == "take" && !cluster.IsWorker() {
		os.Exit(8)
	}
	finish(m.ListenAndServe(l))
}

// The tests.

func TestRestartReplacesMasterAndWorkers(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	load := f.load()
	load.more(5)
	first := f.alive()
	f.upgrade("v2")
	f.wantVersion("v2")
	second := f.processes(4)
	for _, pid := range first {
		if slices.Contains(second, pid) != (pid == f.pid()) {
			t.Errorf("of the processes %v there are %v, want only %d", first, second, f.pid())
		}
	}
	f.flip("v3")
	f.signal(syscall.SIGUSR2)
	f.next()
	f.wantVersion("v3")
	f.processes(4)
	load.more(5)
	if got := load.end(); got["v1"] == 0 || got["v3"] == 0 {
		t.Errorf("answers %v, want some of v1 and v3", got)
	}
	f.quit()
}

func TestRestartWithSIGTERMEndsTheOldGenerationHard(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	held := f.hold()
	f.flip("v2")
	f.mustTell(f.master, "restart -%d", syscall.SIGTERM)
	if b, err := io.ReadAll(held); len(b) > 0 {
		t.Errorf("a request in flight was answered: %q, %v", b, err)
	}
	f.next()
	f.wantVersion("v2")
	f.quit()
}

func TestRestartReturnsWhenTheOutcomeIsKnown(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	f.flip("v2,mode=servergate")
	answer := f.told(f.master, "restart")
	f.wait("gate")
	load := f.load()
	load.more(10)
	load.only("v1")
	select {
	case s := <-answer:
		t.Errorf("Restart has returned already: %q", s)
	default:
	}
	f.open()
	if s := <-answer; s != "" {
		t.Errorf("Restart: %s", s)
	}
	f.next()
	f.wantVersion("v2")
	f.quit()
}

func TestValuesTravelFromMasterToMaster(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	for i := 1; i <= 3; i++ {
		f.flip("v" + strconv.Itoa(i+1))
		f.mustTell(f.master, "restart")
		f.master = f.wait("listening").Pid
		got := f.wait("restart")
		want := fmt.Sprintf(`{"generation":%d,"plugin":"of v%d"}`, i, i)
		if got.Text != want || got.Pid != f.master {
			t.Errorf("got %s in %d, want %s in %d", got.Text, got.Pid, want, f.master)
		}
	}
	if n := len(f.history("restarting")); n != 3 {
		t.Errorf("Restarting was called %d times", n)
	}
	f.quit()
}

func TestRestartingHookCanFailTheRestart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ mode, reason string }{
		{"hookpanic", "hook panicked: not today"},
		{"hookslow", "hooks took longer than 100ms"},
	} {
		f := startFleet(t, "v1,mode="+test.mode, "workers=1")
		f.flip("v2")
		if got := f.tell(f.master, "restartwithin 100ms"); !strings.Contains(got, test.reason) {
			t.Errorf("Restart: %q, want %q in it", got, test.reason)
		}
		if e := f.wait("restart failed"); !strings.Contains(e.Text, test.reason) || e.Pid != f.master {
			t.Errorf("RestartFailed: %+v, want %q", e, test.reason)
		}
		f.wantVersion("v1")
		f.upgrade("v2")
		f.wantVersion("v2")
		f.quit()
	}
}

// Hooks are told of one restart after the other, however soon that is.
func TestRestartFailedComesBeforeTheNextRestarting(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1,mode=slowtotell", "workers=1")
	f.flip("v2")
	if f.tell(f.master, "restart") == "" {
		t.Fatal("the first restart has not failed")
	}
	f.mustTell(f.master, "restart")
	f.next()
	var order []string
	for _, e := range f.history("restarting", "restart failed") {
		order = append(order, e.Name)
	}
	if got := strings.Join(order, ", "); got != "restarting, restart failed, restarting" {
		t.Errorf("hooks were called in the order %s", got)
	}
	f.wantVersion("v2")
	f.quit()
}

func TestEnvironmentDirectoryAndArgumentsCarryOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "v1", "workers=1", "dir=sub", "listen=unix app.sock", "worker title=two words")
	f.cmd.Env = append(f.cmd.Env, "CLUSTER_FLAVOUR=a=b c")
	sub := filepath.Join(f.dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	f.launch()
	before := f.masterInfo(f.master)
	for range 2 {
		f.mustTell(f.master, "restart")
		f.next()
		after, worker := f.masterInfo(f.master), f.info()
		if after.Dir != sub || worker.Dir != sub {
			t.Errorf("master runs in %s, worker in %s, want %s", after.Dir, worker.Dir, sub)
		}
		if !slices.Equal(after.Args, before.Args) || !slices.Equal(after.Env, before.Env) {
			t.Errorf("args %q, environment %q; before %q, %q", after.Args, after.Env, before.Args, before.Env)
		}
		if !slices.Contains(worker.Env, "CLUSTER_FLAVOUR=a=b c") || !slices.Contains(worker.Args, "worker title=two words") {
			t.Errorf("the worker's args %q, environment %q", worker.Args, worker.Env)
		}
	}
	f.quit("sub")
	if entries, _ := os.ReadDir(sub); len(entries) > 0 {
		t.Errorf("left behind in Dir: %v", entries)
	}
}

// The file of an Addr that is relative to Dir is the cluster's, and another of
// the same name, where the program was started, is not.
func TestSocketInDirAfterARestart(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "v1", "workers=1", "dir=sub", "addr=unix:app.sock")
	if err := os.Mkdir(filepath.Join(f.dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", filepath.Join(f.dir, "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	f.launch()
	for range 2 {
		f.mustTell(f.master, "restart")
		f.next()
	}
	f.quit("sub", "app.sock")
	if _, err := os.Lstat(filepath.Join(f.dir, "app.sock")); err != nil {
		t.Error("somebody else's socket: ", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(f.dir, "sub")); len(entries) > 0 {
		t.Errorf("left behind in Dir: %v", entries)
	}
}

// Nor does a new master take a socket for its own that somebody else has put
// where the cluster's was.
func TestSocketTakenBeforeARestart(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1", "addr=unix:app.sock")
	path := filepath.Join(f.dir, "app.sock")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	f.mustTell(f.master, "restart")
	f.next()
	f.quit("app.sock")
	if _, err := os.Lstat(path); err != nil {
		t.Error("somebody else's socket: ", err)
	}
}

// crash has all workers of the master killed, and waits for their successors.
func (f *fleet) crash() {
	f.t.Helper()
	live := f.workers()
	for _, pid := range live {
		kill(f.t, pid, syscall.SIGKILL)
	}
	for range live {
		f.wait("killed")
	}
	f.await("new workers", func() bool {
		now := make(map[int]bool)
		for _, e := range f.events {
			switch e.Name {
			case "connected":
				now[e.Pid] = true
			case "killed":
				delete(now, e.Pid)
			}
		}
		return len(now) == len(live)
	})
}

// A crashed worker's successor is of its master's version, whatever has
// become of the file.
func TestProgramIsFoundAnewBehindAFlippedLink(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	f.flip("v2")
	f.crash()
	load := f.load()
	load.more(10)
	load.only("v1")
	f.mustTell(f.master, "restart")
	f.next()
	f.wantVersion("v2")
	f.quit()
}

func TestProgramIsFoundAnewWhenItsFileIsReplacedOrDeleted(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "v1", "workers=1")
	if err := errors.Join(os.Remove(f.path), os.Rename(f.build("v1"), f.path)); err != nil { // no link
		t.Fatal(err)
	}
	f.launch()
	f.wantVersion("app")
	next := filepath.Join(f.bin, "next")
	copyFile(t, f.path, next, "v2")
	if err := os.Rename(next, f.path); err != nil {
		t.Fatal(err)
	}
	f.crash()
	f.wantVersion("app")
	f.mustTell(f.master, "restart")
	f.next()
	f.wantVersion("v2")

	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.crash()
	f.wantVersion("v2")
	if got := f.tell(f.master, "restart"); !strings.Contains(got, "does not exist") || !strings.Contains(got, f.path) {
		t.Errorf("Restart with a deleted program: %q", got)
	}
	f.wait("restart failed")
	f.wantVersion("v2")
	f.upgrade("v3")
	f.wantVersion("v3")
	f.quit()
}

func TestProgramIsFoundAnewAfterAChangeOfDirectory(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "v1", "workers=1", "dir=/")
	f.cmd.Args[0] = "./bin/app"
	f.cmd.Env = append(f.cmd.Env, "HERE=x")
	if err := os.Symlink(f.bin, filepath.Join(f.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	f.cmd.Args = append(f.cmd.Args, "socket path="+f.dir)
	f.launch()
	for _, v := range []string{"v2", "v3"} {
		f.upgrade(v)
		f.wantVersion(v)
	}
	if i := f.masterInfo(f.master); i.Dir != "/" || i.Args[0] != "./bin/app" {
		t.Errorf("the master is %q in %s", i.Args, i.Dir)
	}
	f.quit("bin")
}

func TestProgramIsFoundAnewThroughPATH(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "v1", "workers=1")
	f.cmd.Args[0] = "app"
	f.cmd.Env = append(f.cmd.Env, "PATH=/nowhere:"+f.bin)
	f.launch()
	f.upgrade("v2")
	f.wantVersion("v2")
	f.quit()
}

func TestProgramThatIsBeingWrittenIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	file := filepath.Join(f.bin, "written")
	copyFile(t, f.build("v1"), file, "v2")
	writer, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	f.point(file)
	if got := f.tell(f.master, "restart"); !strings.Contains(got, "text file busy") {
		t.Errorf("Restart to a file that is open for writing: %q", got)
	}
	f.wait("restarting")
	f.wait("restart failed")
	answer := f.told(f.master, "restart")
	f.wait("restarting") // and is then busy with trying
	writer.Close()
	if got := <-answer; got != "" {
		t.Errorf("Restart: %s", got)
	}
	f.next()
	f.wantVersion("v2")
	f.quit()
}

func TestAddressesAreAddedAndDroppedByTheNewVersion(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2", "listen=tcp 127.0.0.1:0", "listen=unix a.sock", "listen=tcp localhost:0")
	for n := range 3 {
		f.wantVersion("v1", n)
	}
	load := f.load()
	f.upgrade("v2,listen=tcp 127.0.0.1:0,listen=unix b.sock") // addresses 3 and 4
	load.more(5)
	load.end()
	f.wantVersion("v2", 3)
	f.wantVersion("v2", 4)
	if _, before := f.addr(0); true {
		if _, after := f.addr(3); before != after {
			t.Errorf("port 0 was %s and is %s", before, after)
		}
	}
	for n := 1; n <= 2; n++ {
		network, address := f.addr(n)
		if _, err := net.Dial(network, address); err == nil {
			t.Errorf("%s %s still answers", network, address)
		} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s %s: %v", network, address, err)
		}
	}
	if got := f.files(); slices.Contains(got, "a.sock") || !slices.Contains(got, "b.sock") {
		t.Errorf("files %v, want b.sock and no a.sock", got)
	}
	f.upgrade("v3,listen=unix b.sock,listen=unix a.sock")
	f.wantVersion("v3", 5)
	f.wantVersion("v3", 6)
	f.quit()
}

// A request that waits in a dropped socket's queue is answered.
func TestRequestInFlightOnADroppedAddressIsAnswered(t *testing.T) {
	t.Parallel()
	for _, dropped := range []string{"tcp localhost:0", "unix a.sock"} {
		f := startFleet(t, "v1", "workers=1", "listen=tcp 127.0.0.1:0", "listen="+dropped)
		held := f.hold(1)
		old := f.workers()[0]
		f.flip("v2,listen=tcp 127.0.0.1:0")
		f.mustTell(f.master, "restart")
		f.master = f.wait("listening").Pid
		if got := held.finish(); got != strconv.Itoa(old) {
			t.Errorf("answered by %s, want %d", got, old)
		}
		f.wait("restart")
		f.quit()
	}
}

func TestNumberOfWorkersIsTheNewVersions(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	for _, n := range []int{3, 1} {
		f.upgrade(fmt.Sprintf("v%d,workers=%d", n, n))
		if got := f.tell(f.master, "children"); strings.Count(got, "ready") != n {
			t.Errorf("workers %q, want %d", got, n)
		}
		f.processes(n + 2) // with master and stand-in
	}
	f.quit()
}

func TestUserOfTheWorkersIsTheNewVersions(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can change it")
	}
	f := newFleet(t, "v1", "workers=1")
	if err := os.Chmod(f.ctl, 0o755); err != nil {
		t.Fatal(err)
	}
	f.launch()
	if i := f.info(); i.Uid != 0 {
		t.Errorf("worker of v1 is user %d", i.Uid)
	}
	f.upgrade("v2,user=65534")
	if i := f.info(); i.Uid != 65534 || len(i.Groups) > 1 {
		t.Errorf("worker of v2 is user %d, groups %v", i.Uid, i.Groups)
	}
	f.upgrade("v3")
	if i := f.info(); i.Uid != 0 {
		t.Errorf("worker of v3 is user %d", i.Uid)
	}
	f.quit()
}

func TestVersionThatStartsHalfAnswersNoRequest(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	old := f.workers()[0]
	load := f.load()
	f.flip("v2,mode=half,workers=2")
	answer := f.told(f.master, "restart")
	f.wait("hangs", 1)
	f.waitFor("its worker 0", func(e event) bool { return e.Name == "connected" && e.ID == 0 && e.Pid != old })
	load.more(50)
	kill(t, f.heir(), syscall.SIGKILL)
	if got := <-answer; !strings.Contains(got, "ended before it was ready: signal: killed") {
		t.Errorf("Restart: %q", got)
	}
	load.more(5)
	load.only("v1")
	f.upgrade("v3")
	f.wantVersion("v3")
	f.quit()
}

// heir returns the pid of the master that is starting, or has started last.
func (f *fleet) heir() (pid int) {
	f.t.Helper()
	f.await("a new master", func() bool {
		for _, e := range f.events {
			if e.Name == "addr" && e.Pid != f.master {
				pid = e.Pid
			}
		}
		return pid != 0
	})
	return pid
}

// A badVersion is what an upgrade fails with.
type badVersion struct {
	name    string
	version string              // or
	point   func(*fleet) string // returns what the program becomes
	within  string
	reason  string
}

// After an upgrade that fails everything is as it was, and requests have been
// served meanwhile. Then one that is good succeeds.
func TestFailedUpgradeChangesNothing(t *testing.T) {
	t.Parallel()
	groups := make([][]badVersion, 4)
	for i, test := range []badVersion{
		{name: "a program that is missing", reason: "file does not exist",
			point: func(f *fleet) string { return filepath.Join(f.bin, "missing") }},
		{name: "a program that is not executable", reason: "permission denied",
			point: func(f *fleet) string {
				file := filepath.Join(f.bin, "text")
				if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
					f.t.Fatal(err)
				}
				return file
			}},
		{name: "a program that is no program", reason: "exec format error",
			point: func(f *fleet) string {
				file := filepath.Join(f.bin, "text")
				if err := os.WriteFile(file, []byte("hello"), 0o700); err != nil {
					f.t.Fatal(err)
				}
				return file
			}},
		{name: "a directory", reason: "permission denied",
			point: func(f *fleet) string { return f.dir }},
		{name: "a program that has nothing to do with it and ends", reason: "ended before it was ready: exit status 0",
			point: func(f *fleet) string { return systemProgram(f.t, "true") }},
		{name: "a program that has nothing to do with it and stays", reason: "not ready after 500ms", within: "500ms",
			point: func(f *fleet) string {
				// It is given the arguments of the fleet, and sleeps all the same.
				file := filepath.Join(f.bin, "sleep")
				if err := os.WriteFile(file, []byte("#!"+systemProgram(f.t, "sh")+"\nexec "+systemProgram(f.t, "sleep")+" 1000\n"), 0o700); err != nil {
					f.t.Fatal(err)
				}
				return file
			}},
		{name: "exits at once", version: "bad,mode=exit", reason: "exit status 7"},
		{name: "exits after taking the sockets", version: "bad,mode=take", reason: "exit status 8"},
		{name: "hangs before it listens", version: "bad,mode=hang", within: "500ms", reason: "not ready after 500ms"},
		{name: "hangs in NewServer", version: "bad,mode=serverhang", within: "1s", reason: "not ready after 1s"},
		{name: "panics", version: "bad,mode=panic", reason: "panic: a version that panics"},
		{name: "panics in a worker", version: "bad,mode=serverpanic", reason: "panic: a server that panics"},
		{name: "fails in a worker", version: "bad,mode=serverfail", reason: "no database"},
		{name: "refuses to become ready", version: "bad,mode=half,workers=2", within: "1s", reason: "not ready after 1s"},
		{name: "has workers that exit when they are ready", version: "bad,mode=exitready,workers=2", within: "1s", reason: "not ready after 1s"},
		{name: "gives its workers too little time", version: "bad,mode=half,workers=2,restart timeout=1s", reason: "not ready after 1s"},
		{name: "has settings that are wrong", version: "bad,workers=-2", reason: "Workers is -2"},
		{name: "can't bind", version: "bad,listen=tcp 127.0.0.1:0,listen=tcp 192.0.2.1:1", reason: "exit status 1"},
	} {
		groups[i%len(groups)] = append(groups[i%len(groups)], test)
	}
	for i, group := range groups {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, "v0", "workers=1", "listen=tcp 127.0.0.1:0", "listen=unix a.sock")
			for i, test := range group {
				if !t.Run(test.name, func(t *testing.T) {
					f.t = t
					f.fails(test, i)
				}) {
					break
				}
			}
			f.t = t
			f.quit()
		})
	}
}

// fails tries a bad upgrade from version n, and then a good one to the next.
func (f *fleet) fails(bad badVersion, n int) {
	version := "v" + strconv.Itoa(n)
	load, unixLoad := f.load(), f.load(1)
	load.more(5)
	processes, files, open := f.processes(2+min(n, 1)), f.files(), len(f.masterInfo(f.master).Files)

	if bad.version != "" {
		f.flip(bad.version)
	} else {
		f.point(bad.point(f))
	}
	command, args := "restart", []any(nil)
	if bad.within != "" {
		command, args = "restartwithin %s", []any{bad.within}
	}
	if got := f.tell(f.master, command, args...); !strings.Contains(got, bad.reason) {
		f.t.Errorf("Restart: %q, want %q in it", got, bad.reason)
	}
	if e := f.wait("restart failed"); !strings.Contains(e.Text, bad.reason) || e.Pid != f.master {
		f.t.Errorf("RestartFailed: %+v, want %q", e, bad.reason)
	}
	load.more(5)
	unixLoad.more(5)
	load.only(version)
	unixLoad.only(version)
	f.settled(processes)
	if got := f.files(); !slices.Equal(got, files) {
		f.t.Errorf("files %v, before %v", got, files)
	}
	var now int
	if !eventually(patience, func() bool { now = len(f.masterInfo(f.master).Files); return now <= open }) {
		f.t.Errorf("%d open files in the master, before %d", now, open)
	}

	load = f.load()
	old := f.master
	f.flip("v" + strconv.Itoa(n+1))
	f.mustTell(old, "restart")
	e := f.waitFor("the next generation", func(e event) bool { return e.Name == "restart" })
	f.master = e.Pid
	f.wantVersion("v" + strconv.Itoa(n+1))
	load.end()
}

func systemProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

func TestRestartsAskedForMeanwhileAreOneMore(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	f.flip("v2,mode=gate")
	answers := []<-chan string{f.told(f.master, "restart")}
	f.wait("gate")
	for range 3 {
		answers = append(answers, f.told(f.master, "restart"))
	}
	f.settledOn(f.master, "restart", 4)
	f.flip("v3")
	f.open()
	for _, answer := range answers {
		if got := <-answer; got != "" {
			t.Errorf("Restart: %s", got)
		}
	}
	f.next()
	f.next()
	f.wantVersion("v3")
	f.quit()
	if n := len(f.history("restarting")); n != 2 {
		t.Errorf("there were %d restarts, want 2", n)
	}
}

// settledOn waits until a master has read n commands of that name.
func (f *fleet) settledOn(pid int, name string, n int) {
	f.t.Helper()
	for range n {
		f.waitFor("the command "+name, func(e event) bool { return e.Name == "command" && e.Pid == pid && e.Text == name })
	}
}

// A slow request delays no restart, not even the one after that, and is
// answered by the generation that it was made to.
func TestSlowDrainDelaysNoRestart(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	var slow []*held
	var want []string
	for i := 1; i <= 3; i++ {
		h := f.hold()
		slow, want = append(slow, h), append(want, strconv.Itoa(h.Pid))
		f.flip("v" + strconv.Itoa(i+1))
		f.mustTell(f.master, "restart")
		f.master = f.wait("listening").Pid
		f.waitFor("the old worker to accept no more", func(e event) bool { return e.Name == "waiting" && e.Pid == h.Pid })
	}
	for _, e := range f.history("restart") {
		if e.Pid == f.master {
			t.Error("Restart was called while the old generation has work to do")
		}
	}
	for i, h := range slow {
		if got := h.finish(); got != want[i] {
			t.Errorf("the slow request was answered by %s, want %s", got, want[i])
		}
	}
	e := f.waitFor("the end of all old generations", func(e event) bool { return e.Name == "restart" && e.Pid == f.master })
	if want := `{"generation":3,"plugin":"of v3"}`; e.Text != want {
		t.Errorf("values %s, want %s", e.Text, want)
	}
	f.wantVersion("v4")
	f.quit()
}

// awaitVersion waits until requests are answered by the version: an old
// generation may accept until it has heard that it should not.
func (f *fleet) awaitVersion(want string) {
	f.t.Helper()
	if !eventually(patience, func() bool { return f.version() == want }) {
		f.t.Fatalf("timeout waiting for %s", want)
	}
}

func TestShutdownDuringARestartEndsBothGenerations(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		where, name string
		end         func(*fleet)
		hard        bool
	}{
		{"before it listens", "SIGQUIT", func(f *fleet) { f.signal(syscall.SIGQUIT) }, false},
		{"before it listens", "Destroy", func(f *fleet) { f.told(f.master, "destroy") }, true},
		{"in NewServer", "SIGQUIT", func(f *fleet) { f.signal(syscall.SIGQUIT) }, false},
		{"in NewServer", "SIGTERM", func(f *fleet) { f.signal(syscall.SIGTERM) }, true},
		{"in NewServer", "Close", func(f *fleet) { f.told(f.master, "close") }, false},
	} {
		t.Run(test.where+" "+test.name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, "v1", "workers=1")
			held := f.hold()
			if test.where == "in NewServer" {
				f.flip("v2,mode=servergate")
			} else {
				f.flip("v2,mode=gate")
			}
			f.told(f.master, "restart")
			f.wait("gate")
			test.end(f)
			f.wait("closing")
			if !test.hard {
				if got := held.finish(); got != strconv.Itoa(held.Pid) {
					t.Errorf("a request in flight was answered by %s, want %d", got, held.Pid)
				}
			}
			f.end(0)
		})
	}
}

// A worker that is not ready yet, as one of its servers does not accept, may
// have a request by another one all the same.
func TestRequestToAWorkerThatIsStartingIsAnswered(t *testing.T) {
	t.Parallel()
	for _, end := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTTOU, syscall.SIGKILL} {
		f := newFleet(t, "v1,mode=late", "workers=2", "listen=tcp 127.0.0.1:0", "listen=tcp 127.0.0.1:0")
		f.start()
		f.waitN(2, "gate")
		var requests []*held
		for id := range 2 { // one to each worker
			for len(requests) == id {
				if h := f.hold(); id == 0 || h.Pid != requests[0].Pid {
					requests = append(requests, h)
				} else {
					h.finish()
				}
			}
		}
		f.signal(end)
		switch end {
		case syscall.SIGQUIT:
			f.wait("closing")
		case syscall.SIGTTOU:
			f.wait("removed")
		case syscall.SIGKILL:
			f.dead(f.pid())
		}
		f.open()
		for _, h := range requests {
			if got := h.finish(); got != strconv.Itoa(h.Pid) {
				t.Errorf("%v: answered by %s, want %d", end, got, h.Pid)
			}
		}
		switch end {
		case syscall.SIGQUIT:
			f.end(0)
		case syscall.SIGTTOU:
			f.wait("listening")
			f.quit()
		case syscall.SIGKILL:
			f.end(-int(end), fmt.Sprintf("cluster.%d.server.sock", f.pid()))
		}
	}
}

// What is passed on to the new master stays open until that has been decided.
func TestDestroyWhileTheNewMasterIsForked(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	file := filepath.Join(f.bin, "written")
	copyFile(t, f.build("v1"), file, "v2")
	writer, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	f.point(file)
	f.told(f.master, "restart")
	f.wait("restarting") // and is then busy with trying
	f.told(f.master, "destroy")
	f.wait("close")
	writer.Close()
	f.end(0)
}

func TestWorkersMayDieDuringARestart(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	old := f.workers()
	f.flip("v2,mode=servergate")
	answer := f.told(f.master, "restart")
	gates := f.waitN(2, "gate")
	kill(t, old[1], syscall.SIGKILL)
	f.waitFor("its successor", func(e event) bool { return e.Name == "connected" && e.ID == 1 && e.Pid != old[1] })
	f.wantVersion("v1")
	kill(t, gates[0].Pid, syscall.SIGKILL)
	f.wait("gate")
	f.open()
	if got := <-answer; got != "" {
		t.Errorf("Restart: %s", got)
	}
	f.next()
	f.wantVersion("v2")
	if got := f.tell(f.master, "children"); strings.Count(got, "ready") != 2 {
		t.Errorf("workers %q, want 2", got)
	}
	f.quit()
}

func TestNewMasterMayBeKilledBeforeItTakesOver(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		version string
		sig     syscall.Signal
		reason  string
	}{
		{"v2,mode=gate", syscall.SIGKILL, "signal: killed"},
		{"v2,mode=servergate", syscall.SIGKILL, "signal: killed"},
		{"v2,mode=servergate", syscall.SIGTERM, "exit status 0"},
		{"v2,mode=servergate", syscall.SIGQUIT, "exit status 0"}, // what it closes is the old master's
		{"v2,mode=half,workers=2", syscall.SIGQUIT, "exit status 0"},
	} {
		f := startFleet(t, "v1", "workers=1")
		processes, files := f.alive(), f.files()
		load := f.load()
		f.flip(test.version)
		answer := f.told(f.master, "restart")
		e := f.waitFor("the new version", func(e event) bool { return e.Name == "gate" || e.Name == "hangs" })
		if e.ID >= 0 {
			e.Pid = f.heir()
		}
		kill(t, e.Pid, test.sig)
		if got := <-answer; !strings.Contains(got, test.reason) {
			t.Errorf("Restart: %q, want %q in it", got, test.reason)
		}
		load.more(5)
		load.only("v1")
		f.settled(processes)
		if got := f.files(); !slices.Equal(got, files) {
			t.Errorf("files %v, before %v", got, files)
		}
		f.upgrade("v3")
		f.wantVersion("v3")
		f.quit()
	}
}

// The workers of a master that was killed finish what they are doing, and
// the process that was started first tells.
func TestMasterKilledOutrightIsTheStandInsFailure(t *testing.T) {
	t.Parallel()
	for _, draining := range []bool{false, true} {
		f := startFleet(t, "v1", "workers=1")
		var old *held
		if draining {
			old = f.hold()
		}
		f.flip("v2")
		f.mustTell(f.master, "restart")
		f.master = f.wait("listening").Pid
		if !draining {
			f.wait("restart")
		}
		f.awaitVersion("v2")
		held := f.hold()
		kill(t, f.master, syscall.SIGKILL)
		f.dead(f.master)
		if got := held.finish(); got != strconv.Itoa(held.Pid) {
			t.Errorf("a request in flight was answered by %s, want %d", got, held.Pid)
		}
		if old != nil {
			if got := old.finish(); got != strconv.Itoa(old.Pid) {
				t.Errorf("a request in flight was answered by %s, want %d", got, old.Pid)
			}
		}
		if e := f.waitFor("the outcome", func(e event) bool { return e.Name == "failed" }); e.Pid != f.pid() || !strings.Contains(e.Text, "killed") {
			t.Errorf("outcome %+v, want signal: killed", e)
		}
		f.end(1, fmt.Sprintf("cluster.%d.server.sock", f.master))
	}
}

func TestOldMasterMayBeKilledDuringARestart(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v2,mode=gate", "v2,mode=servergate"} {
		f := startFleet(t, "v1", "workers=1")
		held := f.hold()
		f.flip(version)
		f.told(f.master, "restart")
		f.wait("gate")
		f.signal(syscall.SIGKILL)
		if got := held.finish(); got != strconv.Itoa(held.Pid) {
			t.Errorf("a request in flight was answered by %s, want %d", got, held.Pid)
		}
		f.open()
		if e := f.wait("failed"); !strings.Contains(e.Text, "old master is gone") {
			t.Errorf("the new master's error: %+v", e)
		}
		f.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", f.pid()))
	}
}

// Whoever kills the process that was started first wants an end; an old
// master after that may die without any consequence.
func TestOldMasterMayBeKilledWhileItDrains(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	f.upgrade("v2")
	second := f.master
	held := f.hold()
	f.flip("v3")
	f.mustTell(f.master, "restart")
	f.master = f.wait("listening").Pid
	f.awaitVersion("v3")
	load := f.load()
	kill(t, second, syscall.SIGKILL)
	f.wait("restart")
	if got := held.finish(); got != strconv.Itoa(held.Pid) {
		t.Errorf("a request in flight was answered by %s, want %d", got, held.Pid)
	}
	load.more(5)
	load.only("v3")
	f.dead(held.Pid)
	f.upgrade("v4")
	f.wantVersion("v4")
	f.quit(fmt.Sprintf("cluster.%d.server.sock", second))
}

func TestStandInKilledOutrightClosesTheCluster(t *testing.T) {
	t.Parallel()
	for _, draining := range []bool{false, true} {
		f := startFleet(t, "v1", "workers=1")
		var held []*held
		if draining {
			held = append(held, f.hold())
			f.flip("v2")
			f.mustTell(f.master, "restart")
			f.awaitVersion("v2")
		} else {
			f.upgrade("v2")
		}
		held = append(held, f.hold())
		heir := f.heir()
		f.signal(syscall.SIGKILL)
		f.waitFor("closing", func(e event) bool { return e.Name == "closing" && e.Pid == heir })
		for _, h := range held {
			if got := h.finish(); got != strconv.Itoa(h.Pid) {
				t.Errorf("a request in flight was answered by %s, want %d", got, h.Pid)
			}
		}
		if draining {
			f.end(-int(syscall.SIGKILL), fmt.Sprintf("cluster.%d.server.sock", f.pid()))
		} else {
			f.end(-int(syscall.SIGKILL))
		}
	}
}

// counts returns the numbers of goroutines and open files.
func (i info) counts() string {
	return fmt.Sprintf("%d goroutines, %d files", i.Goroutines, len(i.Files))
}

// steady waits until there is no more of anything than there was, for the
// previous generation's last traces go in their own time.
func (f *fleet) steady(what string, before info, now func() info) {
	f.t.Helper()
	var i info
	if !eventually(10*time.Second, func() bool {
		i = now()
		return i.Goroutines <= before.Goroutines && len(i.Files) <= len(before.Files)
	}) {
		f.t.Errorf("%s: %s, before %s: %q", what, i.counts(), before.counts(), i.Files)
	}
}

// zombies returns the children of the fleet's processes that are to be reaped.
func (f *fleet) zombies() (list []string) {
	parents := f.alive()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, _ := os.ReadFile(name)
		i := bytes.LastIndexByte(b, ')')
		if i < 0 {
			continue
		}
		fields := strings.Fields(string(b[i+1:]))
		if ppid, _ := strconv.Atoi(fields[1]); fields[0] == "Z" && slices.Contains(parents, ppid) {
			list = append(list, string(b[:i+8]))
		}
	}
	return list
}

// Ten generations have the same first process, addresses, and counts of
// everything that could leak.
func TestChainOfRestartsLeaksNothing(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2", "listen=tcp 127.0.0.1:0", "listen=unix app.sock")
	_, port := f.addr()
	file, err := os.Lstat(filepath.Join(f.dir, "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	f.processes(3)
	load, unixLoad := f.load(), f.load(1)
	var master, worker, standIn info
	for i := 2; i <= 11; i++ {
		f.upgrade("v" + strconv.Itoa(i))
		switch i {
		case 2, 3:
			continue
		case 4: // two generations of new masters have come and gone
			load.more(1)
			load.end()
			unixLoad.end()
			f.quiet()
			master, worker, standIn = f.masterInfo(f.master), f.info(), f.masterInfo(f.pid())
			load, unixLoad = f.load(), f.load(1)
			continue
		}
	}
	load.more(5)
	unixLoad.more(5)
	if got := load.end(); got["v11"] == 0 {
		t.Errorf("answers %v", got)
	}
	unixLoad.end()
	f.steady("master", master, func() info { return f.masterInfo(f.master) })
	f.steady("worker", worker, f.info)
	f.steady("stand-in", standIn, func() info { return f.masterInfo(f.pid()) })
	f.processes(4) // one more than before
	if !eventually(patience, func() bool { return len(f.zombies()) == 0 }) {
		t.Errorf("zombies: %q", f.zombies())
	}
	for n := range 22 {
		if network, address := f.addr(n); network == "tcp" && address != port {
			t.Errorf("generation %d listens on %s, want %s", n/2+1, address, port)
		}
	}
	if now, err := os.Lstat(filepath.Join(f.dir, "app.sock")); err != nil || !os.SameFile(now, file) {
		t.Errorf("the unix socket's file is another one: %v", err)
	}
	f.wantVersion("v11", 1)
	if n := len(f.history("addr")); n != 22 {
		t.Errorf("%d addresses, want 22", n)
	}
	f.quit()
}

// quiet waits until nothing changes any more in the processes' counts.
func (f *fleet) quiet() {
	f.t.Helper()
	before, same := "", 0
	if !eventually(10*time.Second, func() bool {
		now := f.masterInfo(f.master).counts() + f.info().counts() + f.masterInfo(f.pid()).counts()
		if same++; now != before {
			before, same = now, 0
		}
		return same >= 5
	}) {
		f.t.Error("the processes don't settle")
	}
}

// A new master may have opened its files when those of the old one are opened
// anew. It is told when it takes over.
func TestReopenDuringARestart(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	f.flip("v2,mode=servergate")
	f.signal(syscall.SIGUSR2)
	f.wait("gate")
	f.signal(syscall.SIGUSR1)
	f.wait("reopen")
	f.wait("reopen")
	f.open()
	f.next()
	f.await("its files to be opened anew", func() bool {
		return slices.ContainsFunc(f.events, func(e event) bool { return e.Name == "reopen" && e.Pid == f.master })
	})
	f.quit()
}

func TestSignalsToTheStandInReachTheMaster(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	f.upgrade("v2")
	f.wait("connected", 0)
	f.wait("connected", 0)
	f.signal(syscall.SIGTTIN)
	f.wait("connected", 1)
	f.signal(syscall.SIGTTOU)
	f.wait("removed", 1)
	f.wait("killed", 1)
	f.signal(syscall.SIGUSR1)
	if got := []int{f.wait("reopen").Pid, f.wait("reopen").Pid}; !slices.Contains(got, f.master) {
		t.Errorf("reopened by %v, want %d and its worker", got, f.master)
	}
	f.signal(syscall.SIGHUP)
	f.wait("connected", 0)
	f.flip("v3")
	f.signal(syscall.SIGUSR2)
	f.next()
	f.wantVersion("v3")
	closing := len(f.history("closing"))
	held := f.hold()
	f.signal(syscall.SIGQUIT)
	f.await("the end", func() bool {
		n := 0
		for _, e := range f.events {
			if e.Name == "closing" {
				n++
			}
		}
		return n > closing
	})
	held.finish()
	f.end(0)
}

func TestStandInEndsWithTheLastMastersOutcome(t *testing.T) {
	t.Parallel()
	for _, end := range []func(*fleet){
		func(f *fleet) { f.signal(syscall.SIGTERM) },
		func(f *fleet) { kill(t, f.master, syscall.SIGQUIT) },
		func(f *fleet) { f.told(f.master, "close") },
	} {
		f := startFleet(t, "v1", "workers=1")
		f.upgrade("v2")
		end(f)
		f.end(0)
		last := f.history("returned")
		if e := last[len(last)-1]; e.Pid != f.pid() {
			t.Errorf("the last to return is %d, want %d", e.Pid, f.pid())
		}
	}
}

func init() {
	commands["exit3"] = func(m *cluster.Master, args []string) string { // time before it is waited for
		d, _ := time.ParseDuration(args[0])
		cmd := exec.Command("sh", "-c", "exit 3")
		if err := cmd.Start(); err != nil {
			return err.Error()
		}
		time.Sleep(d)
		return errText(cmd.Wait())
	}
}

// What a worker has forked comes to the process that was started first if the
// worker dies, and to nobody that waits for it. What the program has forked
// there itself is left to the program.
func TestOrphansOfWorkersAreReaped(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("they go to init")
	}
	t.Run("after a restart", func(t *testing.T) {
		t.Parallel()
		f := startFleet(t, "v1", "workers=1")
		f.upgrade("v2")
		own := f.told(f.pid(), "exit3 5s")
		if !eventually(patience, func() bool { return len(f.zombies()) == 1 }) {
			t.Error("the program's child doesn't end")
		}
		f.orphans()
		if got := <-own; got != "exit status 3" {
			t.Errorf("a child of the program: %q", got)
		}
		f.quit()
	})
	t.Run("in a container", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, "v1", "workers=1")
		pid := f.contain()
		f.orphans()
		kill(t, pid, syscall.SIGQUIT)
		f.end(0)
	})
}

// orphans has a worker fork and be killed, and waits until what it has forked
// is dead and buried.
func (f *fleet) orphans() {
	f.t.Helper()
	n := len(f.alive())
	f.get("/fork")
	f.get("/fork")
	f.processes(n + 2)
	roundTrip(f.dial(), "/exit")
	f.processes(n)
	if !eventually(patience, func() bool { return len(f.zombies()) == 0 }) {
		f.t.Errorf("zombies: %q", f.zombies())
	}
}

// The old master knows who has replaced it, the new one that it has, and a new
// one that fails that it hasn't.
func TestBothMastersKnowOfTheHandover(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1")
	old := f.master
	f.flip("v2,mode=serverpanic")
	kill(t, old, syscall.SIGUSR2)
	f.wait("restart failed")
	f.upgrade("v3")
	if e := f.wait("established"); e.Pid != f.master {
		t.Errorf("master %d is established, want %d", e.Pid, f.master)
	}
	for _, e := range f.history("successor") {
		switch {
		case e.Pid == old && e.Text != strconv.Itoa(f.master), e.Pid != old && e.Text != "0":
			t.Errorf("master %d is followed by %s; there were %d and %d", e.Pid, e.Text, old, f.master)
		}
	}
	f.quit()
	if e := f.waitFor("the end of the new one", func(e event) bool { return e.Name == "successor" && e.Pid == f.master }); e.Text != "0" {
		t.Errorf("the last master is followed by %s", e.Text)
	}
	if n := len(f.history("established")); n != 1 {
		t.Errorf("%d masters were established by a restart, want 1", n)
	}
}

func TestDetachedMasterEndsAndTheNewOneGoesOn(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=1", "detach=true")
	for _, v := range []string{"v2", "v3"} {
		before := f.master
		f.flip(v)
		kill(t, before, syscall.SIGUSR2)
		f.next()
		f.dead(before)
		f.wantVersion(v)
	}
	if got := f.exit(); got != 0 {
		t.Errorf("exit status %d, want 0", got)
	}
	f.processes(2)
	kill(t, f.master, syscall.SIGQUIT)
	f.empty()
}

// contain launches the fleet with a master that is process 1 of a container,
// and returns its pid outside.
func (f *fleet) contain() int {
	f.t.Helper()
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		f.t.Skip("needs root for a namespace")
	}
	unshare := systemProgram(f.t, "unshare")
	if out, err := exec.Command(unshare, "-pf", "--mount-proc", "true").CombinedOutput(); err != nil {
		f.t.Skipf("unshare: %v: %s", err, out)
	}
	f.cmd.Path, f.cmd.Args = unshare, append([]string{unshare, "-pf", "--mount-proc", f.path}, f.cmd.Args[1:]...)
	f.launch()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", f.pid()))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil || f.master != 1 || pid == 0 {
		f.t.Fatalf("the master is %d, %q outside, %v", f.master, children, err)
	}
	return pid
}

func TestRestartAsTheFirstProcessOfAContainer(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "v1", "workers=1")
	pid := f.contain()
	for i := 2; i <= 4; i++ {
		f.flip("v" + strconv.Itoa(i))
		kill(t, pid, syscall.SIGUSR2)
		f.next()
		f.wantVersion("v" + strconv.Itoa(i))
		f.processes(4) // with unshare and stand-in
		if !eventually(patience, func() bool { return len(f.zombies()) == 0 }) {
			t.Errorf("zombies: %q", f.zombies())
		}
	}
	kill(t, pid, syscall.SIGQUIT)
	f.end(0)
}

// The successor comes first, so that no request fails, and is of the master's
// version.
func TestWorkersAreReplacedByTheirSuccessors(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(f *fleet) (ids []int){
		"RestartWorkers": func(f *fleet) []int { f.mustTell(f.master, "restartworkers"); return []int{0, 1} },
		"SIGHUP":         func(f *fleet) []int { f.signal(syscall.SIGHUP); return []int{0, 1} },
		"Replace":        func(f *fleet) []int { f.mustTell(f.master, "replace 1"); return []int{1} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, "v1", "workers=2", "listen=tcp 127.0.0.1:0", "listen=unix app.sock")
			load, unixLoad := f.load(), f.load(1)
			load.more(5)
			f.flip("v2") // which is not for workers
			f.waitN(2, "connected")
			for range 2 {
				before := f.workers()
				held := f.hold()
				ids := replace(f)
				if got := held.finish(); got != strconv.Itoa(held.Pid) {
					t.Errorf("a request in flight was answered by %s, want %d", got, held.Pid)
				}
				for _, id := range ids {
					f.waitFor("the end of the old worker", func(e event) bool { return e.Name == "killed" && e.Pid == before[id] })
				}
				after := f.workers()
				for id := range 2 {
					if changed := after[id] != before[id]; changed != slices.Contains(ids, id) {
						t.Errorf("worker %d was %d and is %d", id, before[id], after[id])
					}
				}
				for _, e := range f.history("connected", "killed") {
					if i := slices.Index(ids, e.ID); i < 0 {
						continue
					} else if e.Pid == after[e.ID] {
						ids = slices.Delete(ids, i, i+1)
					} else if e.Pid == before[e.ID] && e.Name == "killed" {
						t.Errorf("worker %d, %d, was gone before %d was ready", e.ID, e.Pid, after[e.ID])
					}
				}
			}
			load.more(5)
			unixLoad.more(5)
			load.only("v1")
			unixLoad.only("v1")
			f.quit()
		})
	}
}
