package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrStarted is returned by a second ListenAndServe or Start, and by
	// that of a second Master while another one of the process has workers.
	ErrStarted = errors.New("cluster: already started")

	// ErrNotRunning is returned by methods that need a running cluster,
	// before its start, once it has begun to shut down, and where there are
	// no workers to act on: in a worker, and with Inline.
	ErrNotRunning = errors.New("cluster: not running")

	// ErrOldMasterGone is returned by ListenAndServe, Start and Wait in a
	// new master whose predecessor was gone before it had handed over.
	ErrOldMasterGone = errors.New("cluster: the old master is gone, and has not handed over")
)

// A Master runs a server as one master process and a number of worker
// processes. Its fields are the settings; the zero value of each is a good
// one, but for a Server. They must not be changed after the start, and a
// Master must not be copied.
//
// The program runs in all of these processes. ListenAndServe (or Start) finds
// out which one it is in: in the master it forks the workers and watches
// over them, in a worker it serves.
type Master struct {
	// Addr is the address to listen on if ListenAndServe gets no listener:
	// "host:port", ":port", or "unix:" and a path. "" is every socket that
	// this process has inherited and nobody has asked for.
	Addr string

	// Server is what every worker serves, in its own copy: one that was
	// forked, not shared. Server and NewServer are both nil for a cluster
	// of separate programs (Path), or of no servers at all (Start).
	Server Server

	// NewServer is called in workers only, and wins over Server, so that
	// what a server needs, a database for instance, isn't opened in the
	// master. An error makes the worker fail.
	NewServer func() (Server, error)

	// Path is the program of the workers, as for exec.Command: looked for
	// in PATH if it has no slash. "" is the running program itself, even
	// when its file has been replaced meanwhile.
	//
	// Such a program uses this package too: its Listen, ListenAndServe or
	// Start find the master's sockets.
	Path string

	// Args are the workers' command line arguments, without the program's
	// name. nil is the master's own.
	Args []string

	// Dir is the working directory of master and workers. "" is the
	// current one. The master changes to it before anything else, so that
	// all other paths are relative to it.
	Dir string

	// Workers is how many workers there are. 0 is one per CPU that the
	// process may use; limits of its cgroup count. Each worker is given
	// GOMAXPROCS, an equal share of the CPUs but at least 1, unless the
	// environment has one. Where that is 1, on Linux, its timers may be
	// up to 0.3 milliseconds late, unless somebody has chosen a timer
	// slack for the master (TimerSlackNSec= in a systemd unit does).
	Workers int

	// Backlog is how many connections the kernel queues for each listener
	// before it is accepted. 0 is the system's maximum. It holds for
	// listeners that are passed to ListenAndServe and Add, too.
	Backlog int

	// Timeout is the time that a worker has to drain: to finish what it is
	// doing. One that takes longer is killed. 0 is a minute.
	Timeout time.Duration

	// RestartTimeout is the time that a worker has to become ready. One
	// that takes longer is killed, and counts as dead. In a restart the new
	// master has it, with all its workers; and so have all Start hooks
	// together, and all Restarting hooks. 0 is a minute.
	RestartTimeout time.Duration

	// Heartbeat is the time after which a ready worker that has given no
	// sign of life is taken for hung, and replaced: it gets SIGABRT, for its
	// goroutines to be seen in Hooks.WorkerException, and then SIGKILL. 0 is
	// 30 seconds; a negative value turns this off.
	Heartbeat time.Duration

	// Alive, if not nil, is called in every worker before each sign of
	// life, three times per Heartbeat, in a goroutine of its own. If it
	// returns an error, or doesn't return before its context ends, after
	// a Heartbeat, no sign is given.
	Alive func(context.Context) error

	// SocketPath is the directory of the master socket, "" being "./", and
	// SocketFilename its name there, "" being "cluster.{PID}.server.sock",
	// where {PID} stands for the master's process id. It shows that a master
	// lives there; whoever connects to it is refused. There is none, and
	// ErrorLog says so, on a file system that is full or read-only, and with
	// SocketPath "" in a directory that may not be written.
	SocketPath, SocketFilename string

	// Title is the master's title as ps(1) shows it, "" being "cluster".
	// WorkerTitle is the workers', "" being "cluster worker"; {n} in it
	// stands for the worker's id. Both do nothing but on Linux.
	Title, WorkerTitle string

	// User and Group are what workers run as: names or numeric ids. "" for
	// User is the master's own, "" for Group is the primary group of User.
	// All supplementary groups are dropped, and workers are in sessions of
	// their own, without the master's terminal. This needs root.
	User, Group string

	// ReusePort gives every worker slot a listening socket of its own for
	// Addr, which must be a TCP address. The kernel then decides at once
	// which worker a connection is for, so that they spread evenly. The
	// price is that a connection waits for its own worker, however busy
	// that is, where from the one socket that workers share otherwise
	// whoever is free takes it. Only Linux has it; elsewhere it does
	// nothing.
	//
	// The master holds all the sockets. When a slot has no ready worker,
	// another accepts from its socket, so that nothing is lost.
	ReusePort bool

	// Stdout and Stderr are the workers' standard output and error. nil is
	// the master's. They must stay open. On SIGUSR1 running workers get
	// their descriptors again, after Hooks.Reopen, which has given them
	// another file with dup2, as package logger does.
	Stdout, Stderr *os.File

	// SysProcAttr holds attributes for the creation of workers: a cgroup,
	// namespaces. Credential and Pdeathsig must be left alone (use User
	// and Group; a worker finds out by itself that its master died), and
	// Chroot needs Path. Workers are always put into a process group of
	// their own.
	SysProcAttr *syscall.SysProcAttr

	// Inline makes the calling process serve, without forking any worker:
	// for a debugger, for tests. Where the system has no fork it is always
	// so.
	Inline bool

	// Detach makes the first master exit once it has been replaced by a
	// restart. Without it, it stays behind for whoever has started it: see
	// Restart.
	Detach bool

	// Plugins are run in order by ListenAndServe and Start, in every process.
	Plugins []Plugin

	// Signals overrides the package's table for the signals that it names.
	// In a worker, ActionClose makes it drain, ActionDestroy makes it exit
	// at once, ActionReopen calls Hooks.Reopen, and all others do nothing.
	Signals map[os.Signal]Action

	// ErrorLog gets what nobody can be told as an error. nil is the log
	// package's standard logger.
	ErrorLog *log.Logger

	mu      mutex // guards the following
	begun   bool
	errs    []error // mistakes in Set and the like
	extra   []pair  // of Add
	hooks   hookQueue
	sup     *supervisor // in a master that has begun
	local   *service    // in a process that serves
	done    chan struct{}
	outcome error // read it after done

	generation // this master's place between its predecessor and its successor

	state atomic.Int32
}

// A pair is a listener and the server for it.
type pair struct {
	l    net.Listener // what is served
	ours *listener    // what is l, or inside it
	s    Server
}

// ListenAndServe listens on addr with s as every worker's server. It is
// short for the method of a Master with these two fields.
func ListenAndServe(addr string, s Server) error {
	return (&Master{Addr: addr, Server: s}).ListenAndServe(nil)
}

// IsWorker reports whether this process is a worker. It may be called at any
// time, from the first init function of package main. It knows of no Master:
// with Inline it is false.
func IsWorker() bool { return self.worker }

// IsWorker reports whether this process is a worker. With Inline, and where
// there is no fork, the calling process is both worker and master.
func (m *Master) IsWorker() bool { return self.worker || m.inline() }

// IsMaster reports whether this process is the master.
func (m *Master) IsMaster() bool { return !self.worker }

func (m *Master) inline() bool { return !self.worker && (m.Inline || !canFork) }

// ListenAndServe runs the cluster. In the master it forks the workers and
// returns when they are gone; in a worker it serves until the worker drains.
// Both return nil after a shutdown that was asked for, by a method or a
// signal.
//
// l comes from Listen, called by this program in master and workers alike,
// perhaps with tls.NewListener around it; or in the master from net.Listen,
// and is then nil in the workers. If it is nil, Addr is listened on, or, if
// that is "", every socket that the process has and no call of Listen or Add
// has claimed.
//
// It returns an error at once if a setting is wrong, and later if the first
// workers can't become ready: a *StartError. No process and no file is left
// behind then.
func (m *Master) ListenAndServe(l net.Listener) error {
	err := m.begin()
	if err == nil && m.Server == nil && m.NewServer == nil && (m.Path == "" || self.worker || m.inline()) {
		err = errorf("cluster: no server: set Server or NewServer, or use Start")
	}
	var pairs []pair
	if err == nil {
		pairs, err = m.pairs(l)
	}
	switch {
	case err != nil:
		return m.failed(err)
	case self.worker:
		return m.work(pairs)
	case m.inline():
		return m.serveInline(pairs)
	}
	if err := m.start(); err != nil {
		return m.failed(err)
	}
	return m.Wait()
}

// Start runs an abstract cluster: one of processes that don't serve, but
// work off a queue, say. It returns in the master when the first workers are
// ready, and in every worker, which is ready by that. Errors are those of
// ListenAndServe.
//
// A worker should then do its work until Done is closed, and the master, as
// whoever is both, call Wait, which returns at once in a worker that is done.
func (m *Master) Start() error {
	err := m.begin()
	if err == nil && (m.Server != nil || m.NewServer != nil || len(m.extra) > 0) {
		err = errorf("cluster: Start is for clusters without a server: use ListenAndServe")
	}
	switch {
	case err != nil:
		return m.failed(err)
	case self.worker:
		return m.workAbstract()
	case m.inline():
		return m.startInline()
	}
	if err := m.start(); err != nil {
		return m.failed(err)
	}
	select {
	case <-m.sup.ready:
		return nil
	case <-m.Done():
		return m.Wait()
	}
}

// begin does what comes first in every process.
func (m *Master) begin() error {
	m.mu.Lock()
	if m.begun {
		m.mu.Unlock()
		return ErrStarted
	}
	m.begun = true
	m.hooks.logf = m.logf
	m.mu.Unlock()
	if err := self.await(); err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	if m.Dir != "" && !self.worker {
		if err := os.Chdir(m.Dir); err != nil {
			return errorf("cluster: Dir: %w", err)
		}
	}
	for i := 0; i < len(m.Plugins); i++ { // a plugin may use another
		if m.Plugins[i] == nil {
			return errorf("cluster: Plugins[%d] is nil", i)
		}
		if err := m.Plugins[i](m); err != nil {
			return errorf("cluster: plugin: %w", err)
		}
	}
	return m.check() // plugins set options too
}

// check returns what is wrong with the settings.
func (m *Master) check() error {
	errs := slices.Clip(m.errs)
	bad := func(format string, args ...any) { errs = append(errs, errorf("cluster: "+format, args...)) }
	for _, f := range []struct {
		name     string
		value    any
		negative bool
	}{
		{"Workers", m.Workers, m.Workers < 0},
		{"Backlog", m.Backlog, m.Backlog < 0},
		{"Timeout", m.Timeout, m.Timeout < 0},
		{"RestartTimeout", m.RestartTimeout, m.RestartTimeout < 0},
	} {
		if f.negative {
			bad("%s is %v; it can't be negative", f.name, f.value)
		}
	}
	if isNil(m.Server) {
		bad("Server is a nil %T", m.Server)
	}
	network := ""
	if m.Addr != "" {
		var err error
		if network, _, err = splitAddr(m.Addr); err != nil {
			errs = append(errs, err)
		}
	}
	if m.ReusePort && network == "unix" {
		bad("ReusePort is for TCP; Addr is %q", m.Addr)
	}
	if !self.worker && !m.inline() {
		errs = append(errs, m.checkFork()...)
	}
	return errors.Join(errs...)
}

// isNil reports whether v is an interface that holds a nil pointer.
func isNil(v any) bool {
	rv := reflect.ValueOf(v)
	return rv.Kind() == reflect.Pointer && rv.IsNil()
}

// pairs binds or finds all listeners.
func (m *Master) pairs(l net.Listener) ([]pair, error) {
	server := m.Server
	if m.NewServer != nil && (self.worker || m.inline()) {
		var err error
		if server, err = m.NewServer(); err != nil {
			return nil, errorf("cluster: NewServer: %w", err)
		}
		if server == nil || isNil(server) {
			return nil, errorf("cluster: NewServer returned nil")
		}
	}
	var pairs []pair
	add := func(l net.Listener, s Server) error {
		if isNil(l) {
			return errorf("cluster: the listener is a nil %T", l)
		}
		ours, err := shared.find(l)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(pairs, func(p pair) bool { return p.ours == ours }) {
			return errorf("cluster: the listener on %v is served twice", l.Addr())
		}
		if l.Addr() == ours.Addr() && reflect.TypeOf(l) != reflect.TypeOf(ours) {
			switch l.(type) {
			case *net.TCPListener, *net.UnixListener:
				l = ours // it was plain: serve the one that is shared
			}
		}
		pairs = append(pairs, pair{l, ours, s})
		return nil
	}
	for _, p := range m.extra {
		if err := add(p.l, p.s); err != nil {
			return nil, err
		}
	}
	if m.ReusePort && (l != nil || m.Addr == "") {
		return nil, errorf("cluster: ReusePort needs Addr, and no listener")
	}
	if l == nil && m.Addr != "" {
		network, address, _ := splitAddr(m.Addr)
		var err error
		if l, err = listen(network, address, m.ReusePort && canReusePort && !m.inline()); err != nil {
			return nil, err
		}
	}
	if l != nil {
		return pairs, add(l, server)
	}
	for _, ours := range shared.unclaimed() {
		if err := add(ours, server); err != nil {
			return nil, err
		}
	}
	if len(pairs) == 0 {
		return nil, errorf("cluster: nothing to listen on: set Addr, or pass a listener")
	}
	return pairs, nil
}

// start starts the master: from here on there are workers.
func (m *Master) start() error {
	s := &supervisor{
		fire:           m.hooks.fire,
		logf:           m.logf,
		setState:       func(s State) { m.state.Store(int32(s)) },
		size:           m.Workers,
		limit:          runtime.GOMAXPROCS(0),
		timeout:        m.timeout(),
		restartTimeout: m.restartTimeout(),
		heartbeat:      m.heartbeat(),
		events:         make(chan event),
		begun:          make(chan struct{}),
		ended:          make(chan struct{}),
		ready:          make(chan struct{}),
		closing:        make(chan struct{}),
	}
	if s.size == 0 {
		s.size = defaultWorkers()
	}
	var err error
	if s.release, err = m.fork(s); err != nil {
		return err
	}
	m.mu.Lock()
	m.sup = s
	m.mu.Unlock()
	close(s.begun)
	go func() { m.finish(m.leave(s, s.run())) }()
	return nil
}

// finish makes the outcome known, when hooks have been called.
func (m *Master) finish(err error) {
	m.hooks.flush(m.timeout())
	m.outcome = err
	close(m.doneChan())
}

// Done is closed when this process should finish: in the master when the
// cluster has shut down, and in a worker, or with Inline, when it drains.
func (m *Master) Done() <-chan struct{} { return m.doneChan() }

func (m *Master) doneChan() chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done == nil {
		m.done = make(chan struct{})
	}
	return m.done
}

// Wait waits until Done is closed. In the master it returns what
// ListenAndServe would: nil after a shutdown that was asked for.
func (m *Master) Wait() error {
	m.mu.Lock()
	local := m.local
	m.mu.Unlock()
	if local != nil && !self.worker {
		<-local.ended
		return local.err
	}
	<-m.Done()
	return m.outcome
}

// failed is for an error before the start: it undoes what has been done.
func (m *Master) failed(err error) error {
	if !errors.Is(err, ErrStarted) {
		self.failed(err)
		shared.close(!self.worker)
	}
	return err
}

// supervisor returns the supervisor of a master that has started.
func (m *Master) supervisor() (*supervisor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sup == nil {
		return nil, ErrNotRunning
	}
	return m.sup, nil
}

// do runs f in the supervisor, if the cluster is running.
func (m *Master) do(f func(*supervisor) error) error {
	s, err := m.supervisor()
	if err != nil {
		return err
	}
	return s.do(func() error {
		if s.state != Active {
			return ErrNotRunning
		}
		return f(s)
	})
}

// Spawn adds n workers, and returns when they have been asked for: see
// Hooks.WorkerConnected for when they are ready. With ReusePort it is an error
// while a restart is under way: the new master would not have their sockets.
func (m *Master) Spawn(n int) error {
	if n < 0 {
		return errorf("cluster: Spawn(%d): use Remove", n)
	}
	if m.ReusePort && m.restarting() {
		return errorf("cluster: Spawn(%d): a restart is under way", n)
	}
	return m.do(func(s *supervisor) error {
		s.grow(n)
		return nil
	})
}

// Remove removes n workers, those with the highest ids. They are sent sig,
// SIGQUIT by default, and killed if they have not ended within Timeout.
// Remove doesn't wait for that. It is an error to remove more workers than
// there are.
func (m *Master) Remove(n int, sig ...os.Signal) error {
	if n < 0 {
		return errorf("cluster: Remove(%d): use Spawn", n)
	}
	return m.do(func(s *supervisor) error { return s.shrink(n, first(sig, syscall.SIGQUIT)) })
}

// Kill sends sig, SIGTERM by default, to all workers. Those that die or
// drain of it are replaced.
func (m *Master) Kill(sig ...os.Signal) error {
	return m.do(func(s *supervisor) error { return s.kill(first(sig, syscall.SIGTERM)) })
}

// RestartWorkers replaces all workers by new ones of the same program, as
// many at a time as there are CPUs. A worker is sent sig, SIGQUIT by default,
// when its successor is ready. RestartWorkers returns when the last one has
// been sent it, and doesn't wait for the old workers to drain. The first
// successor that doesn't become ready ends it: the workers that are still to
// be replaced then stay, and the error tells why.
//
// Calls while a rolling restart is under way share one more, afterwards.
func (m *Master) RestartWorkers(sig ...os.Signal) error {
	return m.roll(first(sig, syscall.SIGQUIT))
}

// Replace is RestartWorkers for the one worker with the given id.
func (m *Master) Replace(id int) error { return m.roll(syscall.SIGQUIT, id) }

func (m *Master) roll(sig os.Signal, ids ...int) error {
	var done <-chan error
	err := m.do(func(s *supervisor) (err error) {
		done, err = s.restart(sig, ids...)
		return err
	})
	if err != nil {
		return err
	}
	return <-done
}

// Close shuts down gracefully: workers finish what they are doing, and take
// what the kernel has accepted for them, within Timeout. It returns when
// all are gone; hooks may still be called then. It may be called several
// times, and returns at once if the cluster has already shut down. So it does
// in a master that has been replaced: the cluster is its Successor's then.
func (m *Master) Close() error { return m.Shutdown(context.Background()) }

// Shutdown is Close with a deadline: when ctx ends, the workers that are left
// are killed, and the context's error is returned.
func (m *Master) Shutdown(ctx context.Context) error {
	ended, err := m.shutdown(GracefulShutdown)
	if err != nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		m.Destroy()
		return ctx.Err()
	}
}

// Destroy shuts down hard: it kills all workers with SIGKILL. It returns when
// they are gone.
func (m *Master) Destroy() error {
	ended, err := m.shutdown(HardShutdown)
	if err != nil {
		return err
	}
	<-ended
	return nil
}

// shutdown begins to shut down. The channel is closed when that is done.
func (m *Master) shutdown(state State) (<-chan struct{}, error) {
	m.mu.Lock()
	s, local := m.sup, m.local
	m.mu.Unlock()
	switch {
	case s != nil:
		err := s.do(func() error {
			s.shutdown(state)
			return nil
		})
		if errors.Is(err, ErrNotRunning) {
			err = nil // it has ended
		}
		return s.ended, err
	case local != nil && !self.worker:
		m.state.CompareAndSwap(int32(Active), int32(state))
		if state == HardShutdown {
			m.state.Store(int32(state))
		}
		local.end(state)
		return local.over, nil
	}
	return nil, ErrNotRunning
}

// State returns the state of the master.
func (m *Master) State() State { return State(m.state.Load()) }

// Children returns the worker processes that there are now, those that drain
// included, ordered by id.
func (m *Master) Children() []*Worker {
	s, err := m.supervisor()
	if err != nil {
		return nil
	}
	list := s.snapshot.Load()
	if list == nil {
		return nil
	}
	return slices.Clone(*list)
}

// Predecessor returns the process id that the master which this one replaces
// had, or 0: in the master that was started first, and in workers.
func (m *Master) Predecessor() int { return self.old }

// Conns returns how many connections this worker serves now, and how many it
// has accepted since it was started, those handed over to it included. With
// Inline it counts those of the calling process. In a master it returns 0, 0.
func (m *Master) Conns() (active, total int64) {
	m.mu.Lock()
	sv := m.local
	m.mu.Unlock()
	if sv == nil {
		return 0, 0
	}
	return sv.conns.open.Load(), sv.conns.total.Load()
}

// Send sends v, as JSON, from a worker to the master, which gets it as
// Hooks.Message. It doesn't wait. It returns an error if v can't be encoded,
// its encoding is longer than a mebibyte, the master is gone, or this is no
// worker. With Inline the message goes to the calling process itself, with a
// nil *Worker.
func (m *Master) Send(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return errorf("cluster: message %q: %w", name, err)
	}
	switch {
	case self.worker:
		return self.message(name, data)
	case m.inline():
		m.hooks.fire(func(h *Hooks) {
			if h.Message != nil {
				h.Message(nil, name, data)
			}
		})
		return nil
	}
	return errorf("cluster: Send is for workers; the master has Worker.Send")
}

// Add adds a listener with its own server, beside what ListenAndServe gets:
// a ":80" that redirects beside ":443", say. l is as for ListenAndServe, but
// must not be nil. A plugin may call it. Mistakes are reported by
// ListenAndServe; after the start it does nothing but say so in ErrorLog.
func (m *Master) Add(l net.Listener, s Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.started():
		m.logf("cluster: Add after the start does nothing")
	case l == nil || isNil(l):
		m.errs = append(m.errs, errorf("cluster: Add: the listener is nil"))
	case s == nil || isNil(s):
		m.errs = append(m.errs, errorf("cluster: Add: the server is nil"))
	default:
		m.extra = append(m.extra, pair{l: l, s: s})
	}
}

// Use appends to Plugins, and returns m.
func (m *Master) Use(p ...Plugin) *Master {
	m.Plugins = append(m.Plugins, p...)
	return m
}

// Do calls f with m, and returns m.
func (m *Master) Do(f func(*Master)) *Master {
	f(m)
	return m
}

// On registers hooks. It may be called any number of times, at any time.
func (m *Master) On(h Hooks) { m.hooks.add(h) }

func (m *Master) logf(format string, args ...any) {
	if m.ErrorLog != nil {
		m.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

//go:noinline
func (m *Master) timeout() time.Duration { return cmp.Or(m.Timeout, time.Minute) }

//go:noinline
func (m *Master) restartTimeout() time.Duration { return cmp.Or(m.RestartTimeout, time.Minute) }

//go:noinline
func (m *Master) heartbeat() time.Duration { return cmp.Or(m.Heartbeat, 30*time.Second) }

// first returns the optional argument, or its default.
func first(sig []os.Signal, def os.Signal) os.Signal {
	if len(sig) > 0 {
		return sig[0]
	}
	return def
}

// defaultWorkers is the number of CPUs that the process may use. GOMAXPROCS
// from the environment is meant for each worker, and says nothing about it.
func defaultWorkers() int {
	n := runtime.GOMAXPROCS(0)
	if os.Getenv("GOMAXPROCS") != "" {
		runtime.SetDefaultGOMAXPROCS()
		n = runtime.GOMAXPROCS(n) // which returns what it was
	}
	return n
}

// A State is the state of a master.
type State int32

const (
	// Active: the cluster serves, or has not begun to. Every state may
	// follow.
	Active State = iota

	// HardShutdown: the workers have been killed. Final.
	HardShutdown

	// GracefulShutdown: the workers have been told to finish. HardShutdown
	// may follow.
	GracefulShutdown
)

// String returns "active", "hard shutdown" or "graceful shutdown".
func (s State) String() string {
	switch s {
	case Active:
		return "active"
	case HardShutdown:
		return "hard shutdown"
	case GracefulShutdown:
		return "graceful shutdown"
	}
	return fmt.Sprintf("State(%d)", int32(s))
}

// An Action is what a master does on a signal: see Master.Signals.
type Action int

const (
	ActionIgnore         Action = iota // nothing
	ActionDestroy                      // Destroy
	ActionClose                        // Close
	ActionRestart                      // Restart
	ActionRestartWorkers               // RestartWorkers
	ActionSpawn                        // Spawn(1)
	ActionRemove                       // Remove(1), but not the last worker
	ActionReopen                       // Hooks.Reopen, in the workers too
)
