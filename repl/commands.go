package repl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/gocluster/cluster"
)

// A Func is a command. It runs in the master m, in the goroutine of the
// session, which runs one command at a time. It gets the arguments as they
// were written, without their quotes. What it writes to w, the client sees, with
// control characters other than newline and tab quoted; w may be used by
// several goroutines, and fails when the session has ended. An error that is
// returned is written too. A Func that panics is logged to m.ErrorLog, and
// survived.
type Func func(m *cluster.Master, w io.Writer, args ...string) error

// A command is what a name stands for.
type command struct {
	name        string
	params      []string // for help
	most        int      // how many arguments it takes; -1: any number
	description string
	run         func(s *session, args []string) error
}

var commands struct {
	sync.Mutex
	list []*command // in the order of their definition
}

// Define defines the command name for all sessions, in place of one that has
// this name already. name may carry the parameters, for the command help:
// "kill(id, signal)". It is letters, digits, '_' and '-', and a letter first;
// Define panics if it isn't, and if f is nil.
//
// Define is to be called before the start, from main or an init function, but
// may be called at any time, by any goroutine.
func Define(name string, f Func, description string) {
	if f == nil {
		panic(fmt.Sprintf("repl: Define(%q): the Func is nil", name))
	}
	define(name, -1, func(s *session, args []string) error { return f(s.m, s, args...) }, description)
}

func define(name string, most int, run func(*session, []string) error, description string) {
	word, params, err := parse(name)
	if err != nil || word == "" || len(params) > 0 && !strings.HasPrefix(name, word+"(") {
		panic(fmt.Sprintf("repl: Define(%q): bad name", name))
	}
	c := &command{word, params, most, description, run}
	commands.Lock()
	defer commands.Unlock()
	i := slices.IndexFunc(commands.list, func(c *command) bool { return c.name == word })
	if i < 0 {
		commands.list = append(commands.list, c)
	} else {
		commands.list[i] = c
	}
}

// lookup returns the command with a name, or nil.
func lookup(name string) *command {
	commands.Lock()
	defer commands.Unlock()
	i := slices.IndexFunc(commands.list, func(c *command) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return commands.list[i]
}

// Title writes the title of a section to w, as the command pids does: there
// are no colours.
func Title(w io.Writer, s string) { fmt.Fprintf(w, "\n  %s\n", s) }

// Row writes one line of a section to w, a key and a value of any type.
func Row(w io.Writer, key string, value any) { fmt.Fprintf(w, "  %s: %v\n", key, value) }

func init() {
	define("help", 0, help, "Display help information")
	define("pids", 0, pids, "Output process ids")
	define("spawn(n)", 2, spawn, "Spawn one or more workers, or remove some: spawn(-1)")
	define("kill(id, signal)", 2, kill, "Send a signal, SIGTERM if none is given, to a worker")
	define("reload", 0, reload, "Replace all workers, one after the other")
	define("restart", 0, restart, "Replace the master and all workers by a new version")
	define("shutdown", 0, shutdown, "Shut down gracefully")
	define("stop", 0, stop, "Shut down hard")
	define("echo(msg)", -1, echo, "Echo the given message")
	define("quit", 0, quit, "End this session")
	define("exit", 0, quit, "End this session")
}

func help(s *session, args []string) error {
	commands.Lock()
	list := slices.Clone(commands.list)
	commands.Unlock()
	var b strings.Builder
	Title(&b, "Commands")
	for _, c := range list {
		Row(&b, c.name+"("+strings.Join(c.params, ", ")+")", c.description)
	}
	_, err := fmt.Fprintln(s, b.String())
	return err
}

func pids(s *session, args []string) error {
	var b strings.Builder
	Title(&b, "pids")
	Row(&b, "master", os.Getpid())
	for _, w := range s.m.Children() {
		key := fmt.Sprintf("worker #%d", w.ID)
		if state := w.State(); state == cluster.WorkerReady {
			Row(&b, key, w.Pid)
		} else {
			Row(&b, key, fmt.Sprintf("%d (%v)", w.Pid, state))
		}
	}
	_, err := fmt.Fprintln(s, b.String())
	return err
}

// workers is n workers, in words.
func workers(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return strconv.Itoa(n) + " workers"
}

func spawn(s *session, args []string) error {
	n, sig := 1, syscall.SIGQUIT
	var err error
	if len(args) > 0 {
		if n, err = strconv.Atoi(args[0]); err != nil || n == 0 {
			return fmt.Errorf("spawn: %q is no number of workers", args[0])
		}
	}
	if len(args) > 1 {
		if n > 0 {
			return errors.New("spawn: a signal is for removing workers")
		}
		if sig, err = parseSignal(args[1]); err != nil {
			return fmt.Errorf("spawn: %w", err)
		}
	}
	if n > 0 {
		if err := s.m.Spawn(n); err != nil {
			return err
		}
		fmt.Fprintf(s, "spawning %s\n", workers(n))
		return nil
	}
	if err := s.m.Remove(-n, sig); err != nil {
		return err
	}
	fmt.Fprintf(s, "removing %s with %s\n", workers(-n), signalName(sig))
	return nil
}

func kill(s *session, args []string) error {
	if len(args) == 0 {
		return errors.New("kill: the id of a worker is missing: pids() lists them")
	}
	w := find(s.m.Children(), args[0])
	if w == nil {
		return fmt.Errorf("kill: no worker %q: pids() lists them", args[0])
	}
	sig := syscall.SIGTERM
	if len(args) > 1 {
		var err error
		if sig, err = parseSignal(args[1]); err != nil {
			return fmt.Errorf("kill: %w", err)
		}
	}
	if err := w.Kill(sig); err != nil {
		return fmt.Errorf("kill: worker #%d: %w", w.ID, err)
	}
	fmt.Fprintf(s, "sent %s to worker #%d\n", signalName(sig), w.ID)
	return nil
}

// find returns the worker with the given id, or else the one with that
// process id. Of several with the same id it is the one that is ready, or
// else the youngest: those that drain have made room for another.
func find(list []*cluster.Worker, id string) (found *cluster.Worker) {
	n, err := strconv.Atoi(id)
	if err != nil {
		return nil
	}
	for _, w := range list {
		if w.ID == n && (found == nil || better(w, found)) {
			found = w
		}
	}
	if found == nil {
		if i := slices.IndexFunc(list, func(w *cluster.Worker) bool { return w.Pid == n }); i >= 0 {
			found = list[i]
		}
	}
	return found
}

func better(w, than *cluster.Worker) bool {
	if ready := w.State() == cluster.WorkerReady; ready != (than.State() == cluster.WorkerReady) {
		return ready
	}
	return w.Started.After(than.Started)
}

func reload(s *session, args []string) error {
	fmt.Fprintln(s, "restarting the workers")
	if err := s.m.RestartWorkers(); err != nil {
		return err
	}
	fmt.Fprintln(s, "the new workers are ready")
	return nil
}

func restart(s *session, args []string) error {
	fmt.Fprintln(s, restarting)
	s.asked.Store(true)
	err := s.m.Restart()
	if errors.Is(err, cluster.ErrNotRunning) { // nobody is told of that
		s.asked.Store(false)
	}
	if err != nil {
		return restartFailed(err)
	}
	fmt.Fprintln(s, "the new master has taken over")
	return nil
}

func shutdown(s *session, args []string) error {
	return s.end(cluster.GracefulShutdown, s.m.Close)
}

func stop(s *session, args []string) error {
	return s.end(cluster.HardShutdown, s.m.Destroy)
}

// end calls f, which ends the master, and waits for that.
func (s *session) end(state cluster.State, f func() error) error {
	fmt.Fprintln(s, closing(state))
	s.asked.Store(true)
	if err := f(); err != nil {
		s.asked.Store(false)
		return err
	}
	<-s.ctx.Done()
	return nil
}

func echo(s *session, args []string) error {
	_, err := fmt.Fprintln(s, strings.Join(args, " "))
	return err
}

func quit(*session, []string) error { return errQuit }
