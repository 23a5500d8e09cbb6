//go:build unix

package cluster_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
	f := &fleet{proc: command(t, "fleet", args...), bin: tempDir(t), ctl: tempDir(t)}
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

// A load is clients that make a connection for every request.
type load struct {
	t    testing.TB
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	answers map[string]int // by version
	failed  []string
	changed chan struct{}
}

func (f *fleet) load(n ...int) *load {
	f.t.Helper()
	network, address := f.addr(n...)
	l := &load{t: f.t, stop: make(chan struct{}), answers: make(map[string]int), changed: make(chan struct{})}
	for range 2 {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
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

func (l *load) halt() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// more waits until n more requests have been answered.
func (l *load) more(n int) {
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

// end ends the load, of which nothing may have failed, and returns which
// versions have answered how often.
func (l *load) end() map[string]int {
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
func (l *load) only(version string) {
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

// deaf is a server that never accepts.
type deaf struct{ *http.Server }

func (deaf) Serve(net.Listener) error { hang(); return nil }

var _ = helper("fleet", func() {
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
			case "hookpanic":
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
		RestartFailed: func(err error) { report("restart failed", nil, err.Error()) },
	})
	m.On(cluster.Hooks{ // another plugin
		Restarting: func(v cluster.Values) { v.Set("plugin", "of "+name) },
		Restart: func(v cluster.Values) {
			text, _ := json.Marshal(v)
			report("restart", nil, string(text))
		},
	})
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name, " ", os.Getpid()) })
	server := &http.Server{Handler: mux}
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
		case "half":
			if os.Getenv("CLUSTER_WORKER") == "1" {
				return deaf{server}, nil
			}
		}
		return server, nil
	}
	l := listen(0)
	for i := 1; ; i++ {
		if _, ok := argument("listen", i); !ok {
			break
		}
		m.Add(listen(i), server)
	}
	if mode() == "take" && !cluster.IsWorker() {
		os.Exit(8)
	}
	finish(m.ListenAndServe(l))
})

// The tests.

func TestRestartReplacesMasterAndWorkers(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	clients := f.load()
	clients.more(5)
	first := f.alive()
	f.upgrade("v2")
	f.wantVersion("v2")
	second := f.alive()
	for _, pid := range first {
		if slices.Contains(second, pid) != (pid == f.pid()) {
			t.Errorf("of the processes %v there are %v, want only %d", first, second, f.pid())
		}
	}
	f.flip("v3")
	f.signal(syscall.SIGUSR2)
	f.next()
	f.wantVersion("v3")
	if got := f.alive(); len(got) != 4 || len(second) != 4 {
		t.Errorf("processes %v and %v, want stand-in, master and two workers", second, got)
	}
	clients.more(5)
	if got := clients.end(); got["v1"] == 0 || got["v3"] == 0 {
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
	clients := f.load()
	clients.more(10)
	clients.only("v1")
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
