//go:build unix

// Package clustertest runs real clusters in the tests of this module's
// packages. The test binary is their program: it is run again as one of those
// that Main knows.
package clustertest

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
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

	"github.com/gocluster/cluster"
)

const (
	programEnv = "CLUSTERTEST_PROGRAM" // the program that the test binary is
	markEnv    = "CLUSTERTEST_MARK"    // of every process that a test has started, however far from it
)

// Patience is how long a test waits for what should happen at once.
const Patience = 30 * time.Second

// Main is for TestMain: it runs the program that this process was started
// as, or else the tests, and doesn't return. It fails if they leave goroutines
// or open files behind.
func Main(m *testing.M, programs map[string]func()) {
	if name := os.Getenv(programEnv); name != "" {
		f := programs[name]
		if f == nil {
			fmt.Fprintf(os.Stderr, "clustertest: no program %q\n", name)
			os.Exit(1)
		}
		f()
		os.Exit(0)
	}
	before := Prepare()
	code := m.Run()
	if code == 0 {
		for _, complaint := range Leaks(before) {
			fmt.Fprintln(os.Stderr, complaint)
			code = 1
		}
	}
	os.Exit(code)
}

// Prepare is for TestMain, before the tests run. It returns what Leaks needs.
func Prepare() (before []string) {
	// What is ignored, under nohup or in the background of a script, would be
	// so in every program that a test starts.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close() // the runtime's poller has its descriptors now
	}
	return OpenFiles()
}

// Leaks tells what goroutines and open files tests have left behind. before
// is what Prepare returned.
func Leaks(before []string) (complaints []string) {
	var goroutines, files []string
	Eventually(5*time.Second, func() bool {
		goroutines = leakedGoroutines()
		runtime.GC() // of test files, os.Process and the like
		files = OpenFiles()
		return len(goroutines) == 0 && len(files) <= len(before)
	})
	if len(goroutines) > 0 {
		complaints = append(complaints, "goroutines left behind:\n\n"+strings.Join(goroutines, "\n\n"))
	}
	if len(files) > len(before) {
		complaints = append(complaints, fmt.Sprintf("open files left behind: %q, before the tests %q", files, before))
	}
	return complaints
}

// Eventually calls f until it is true, for what sends no event. It reports
// whether it became so in time.
func Eventually(d time.Duration, f func() bool) bool {
	for end := time.Now().Add(d); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// OpenFiles returns what this process's descriptors are, as far as the system
// tells.
func OpenFiles() (list []string) {
	entries, _ := os.ReadDir("/dev/fd")
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/dev/fd", e.Name()))
		if err != nil && runtime.GOOS == "linux" {
			continue // the one that read the directory
		}
		list = append(list, e.Name()+" "+target)
	}
	return list
}

func leakedGoroutines() (list []string) {
	buf := make([]byte, 2<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		_, stack, _ := strings.Cut(g, "\n")
		if stack == "" || strings.Contains(stack, "leakedGoroutines") ||
			strings.Contains(stack, "created by testing.") || strings.Contains(stack, "testing.(*M).") ||
			strings.Contains(stack, "os/signal.signal_recv") || strings.Contains(stack, "os/signal.loop") {
			continue
		}
		list = append(list, g)
	}
	return list
}

// Tell is for programs: it writes a line that Wait takes by its first word.
func Tell(format string, args ...any) {
	fmt.Printf(format+"\n", args...) // one write: several processes may tell at a time
}

// Events makes the program tell what happens to m:
//
//	start PID, listening PID, closing PID, close PID
//	worker ID PID, ready ID PID, killed ID PID STATE, exception ID PID ERR
//	restarting PID, restarted PID, failed ERR
//
// PID is the master's but where an ID goes before it.
func Events(m *cluster.Master) error {
	pid := os.Getpid()
	m.On(cluster.Hooks{
		Start:           func() error { Tell("start %d", pid); return nil },
		Listening:       func() { Tell("listening %d", pid) },
		Closing:         func() { Tell("closing %d", pid) },
		Close:           func() { Tell("close %d", pid) },
		Worker:          func(w *cluster.Worker) { Tell("worker %d %d", w.ID, w.Pid) },
		WorkerConnected: func(w *cluster.Worker) { Tell("ready %d %d", w.ID, w.Pid) },
		WorkerKilled:    func(w *cluster.Worker) { Tell("killed %d %d %v", w.ID, w.Pid, w.ProcessState) },
		WorkerException: func(w *cluster.Worker, err error) { Tell("exception %d %d %.200q", w.ID, w.Pid, err.Error()) },
		Restarting:      func(cluster.Values) { Tell("restarting %d", pid) },
		Restart:         func(cluster.Values) { Tell("restarted %d", pid) },
		RestartFailed:   func(err error) { Tell("failed %v", err) },
	})
	return nil
}

// A Program is a cluster under test: its first process, and what all its
// processes tell.
type Program struct {
	Cmd *exec.Cmd // may be changed until Start
	Dir string    // its working directory, empty at first
	T   testing.TB

	mark   string
	forbid []string
	done   chan struct{} // closed when Cmd has been waited for

	mu      sync.Mutex // guards the following
	lines   []string   // that nobody has taken
	log     bytes.Buffer
	changed chan struct{} // closed by the next line, or output on standard error
	end     chan struct{} // closed when no process has standard output or error any more
}

var programs atomic.Int64

// Command returns a program to be started, in a temporary directory of its
// own. When the test ends none of its processes may be left.
func Command(t testing.TB, name string, args ...string) *Program {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cluster") // a short name, with room for that of a socket
	if err != nil {
		t.Fatal(err)
	}
	p := &Program{
		Cmd:     exec.Command(exe, args...),
		Dir:     dir,
		T:       t,
		mark:    fmt.Sprintf("%d.%d.", os.Getpid(), programs.Add(1)),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		end:     make(chan struct{}),
	}
	p.Cmd.Dir = dir
	p.Cmd.Env = append(os.Environ(), programEnv+"="+name, markEnv+"="+p.mark,
		"GORACE=atexit_sleep_ms=0") // the race detector's is a second for every process
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Start starts a program.
func Start(t testing.TB, name string, args ...string) *Program {
	t.Helper()
	return Command(t, name, args...).Start()
}

// Start starts what Command has returned.
func (p *Program) Start() *Program {
	p.T.Helper()
	stdout, w1, err := os.Pipe()
	if err != nil {
		p.T.Fatal(err)
	}
	stderr, w2, err := os.Pipe()
	if err != nil {
		p.T.Fatal(err)
	}
	p.Cmd.Stdout, p.Cmd.Stderr = w1, w2
	err = p.Cmd.Start()
	w1.Close()
	w2.Close()
	if err != nil {
		stdout.Close()
		stderr.Close()
		p.T.Fatal(err)
	}
	var readers sync.WaitGroup
	readers.Go(func() {
		defer stdout.Close()
		for sc := bufio.NewScanner(stdout); sc.Scan(); {
			line := sc.Text()
			if word, _, _ := strings.Cut(line, " "); slices.Contains(p.forbid, word) {
				p.T.Errorf("the cluster says: %s", line)
			}
			p.note(func() { p.lines = append(p.lines, line) })
		}
	})
	readers.Go(func() {
		defer stderr.Close()
		b := make([]byte, 4096)
		for {
			n, err := stderr.Read(b)
			p.note(func() { p.log.Write(b[:n]) })
			if err != nil {
				return
			}
		}
	})
	go func() { readers.Wait(); close(p.end) }()
	go func() { p.Cmd.Wait(); close(p.done) }()
	p.T.Cleanup(p.cleanup)
	return p
}

func (p *Program) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// cleanup ends what the test has not, which is an error unless it failed.
func (p *Program) cleanup() {
	if !p.Ended() && !p.T.Failed() {
		p.T.Errorf("the test has left processes behind: %v", p.Processes())
	}
	if p.T.Failed() {
		for _, pid := range p.Processes() {
			syscall.Kill(pid, syscall.SIGABRT) // to see what they are doing
		}
		Eventually(5*time.Second, func() bool { return len(p.Processes()) == 0 })
		p.mu.Lock()
		p.T.Logf("not taken: %q\nstandard error:\n%s", p.lines, p.log.Bytes())
		p.mu.Unlock()
	}
	if !Eventually(Patience, func() bool {
		for _, pid := range p.Processes() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		return p.Ended()
	}) {
		p.T.Error("can't get rid of the cluster")
	}
	<-p.done
}

// Processes returns the pids of all of the program's processes, but zombies.
func (p *Program) Processes() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if bytes.Contains(env, []byte("\x00"+markEnv+"="+p.mark)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Wait takes the first line with these first words that has not been taken
// yet, and returns what follows them, split at blanks.
func (p *Program) Wait(words ...string) []string {
	p.T.Helper()
	var found []string
	p.await(fmt.Sprintf("%q", words), func() bool {
		for i, line := range p.lines {
			fields := strings.Fields(line)
			if len(fields) >= len(words) && slices.Equal(fields[:len(words)], words) {
				p.lines = slices.Delete(p.lines, i, i+1)
				found = fields[len(words):]
				return true
			}
		}
		return false
	})
	return found
}

// Forget forgets the lines that begin with one of the words.
func (p *Program) Forget(words ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = slices.DeleteFunc(p.lines, func(line string) bool {
		word, _, _ := strings.Cut(line, " ")
		return slices.Contains(words, word)
	})
}

// Forbid makes lines that begin with one of the words errors. It must be
// called before Start.
func (p *Program) Forbid(words ...string) { p.forbid = words }

// WaitPid is Wait for a line that goes on with a process id.
func (p *Program) WaitPid(words ...string) int {
	p.T.Helper()
	rest := p.Wait(words...)
	if len(rest) > 0 {
		if pid, err := strconv.Atoi(rest[0]); err == nil {
			return pid
		}
	}
	p.T.Fatalf("no process id after %q: %q", words, rest)
	return 0
}

// WaitLog waits until standard error has text in it.
func (p *Program) WaitLog(text string) {
	p.T.Helper()
	p.await(fmt.Sprintf("%q on standard error", text), func() bool {
		return strings.Contains(p.log.String(), text)
	})
}

// Log returns what is on standard error up to now.
func (p *Program) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// await waits until cond is true, which is called with p.mu held after every
// change.
func (p *Program) await(what string, cond func() bool) {
	p.T.Helper()
	late := time.NewTimer(Patience)
	defer late.Stop()
	for ended := false; ; {
		p.mu.Lock()
		ok, changed := cond(), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		if ended {
			p.T.Fatalf("everything is gone while waiting for %s", what)
		}
		select {
		case <-changed:
		case <-p.end:
			ended = true
		case <-late.C:
			p.T.Fatalf("timeout waiting for %s", what)
		}
	}
}

// Pid is the process id of the first process.
func (p *Program) Pid() int { return p.Cmd.Process.Pid }

// Ended reports whether all processes have ended.
func (p *Program) Ended() bool {
	select {
	case <-p.end:
		return true
	default:
		return false
	}
}

// Signal sends sig to the first process.
func (p *Program) Signal(sig syscall.Signal) {
	p.T.Helper()
	p.Kill(p.Pid(), sig)
}

// Kill sends sig to a process.
func (p *Program) Kill(pid int, sig syscall.Signal) {
	p.T.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		p.T.Fatalf("kill %d %v: %v", pid, sig, err)
	}
}

// End checks that the first process ends with the given exit status, that no
// other outlives it, and that no file is left in its directory but these.
func (p *Program) End(status int, files ...string) {
	p.T.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.T.Fatal("timeout waiting for the end of the first process")
	}
	if got := p.Cmd.ProcessState.ExitCode(); got != status {
		p.T.Errorf("%v, want exit status %d", p.Cmd.ProcessState, status)
	}
	select {
	case <-p.end:
	case <-time.After(Patience):
		p.T.Fatalf("processes left behind: %v", p.Processes())
	}
	entries, err := os.ReadDir(p.Dir)
	if err != nil {
		p.T.Error(err)
	}
	for _, e := range entries {
		if !slices.Contains(files, e.Name()) {
			p.T.Errorf("file left behind: %s", e.Name())
		}
	}
	if log := p.Log(); strings.Contains(log, "DATA RACE") {
		p.T.Error("data race")
	}
}

// Quit shuts the cluster down gracefully and checks its end.
func (p *Program) Quit(files ...string) {
	p.T.Helper()
	p.Signal(syscall.SIGQUIT)
	p.End(0, files...)
}
