//go:build unix && !cluster_nofork

package cluster

import (
	"cmp"
	"errors"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A restart goes like this. The old master forks the new one, which gets the
// sockets, starts its workers, and has them wait. When they are all ready it
// says so. The old master, which may still say no, then tells it to serve,
// and closes; the new one tells its workers to accept. Whatever goes wrong
// before that word ends the new master alone.

// A generation is what a Master has for restarts.
type generation struct {
	current, queued *restart // under way, and to come; Master.mu guards them

	// Set before the first worker is forked.
	forker      *forker
	stopSignals func()
	established chan struct{} // closed when this is the master, and its workers serve
	restarted   chan struct{} // closed when the last Restart or RestartFailed hooks have been called
	tellRestart sync.Once

	heir   atomic.Pointer[heir] // of a master that has been replaced
	missed atomic.Int32         // signal to reopen files that a new master which is starting has not had, or 0
}

// A restart is one call of Restart, or several that share it.
type restart struct {
	sig  os.Signal
	done chan struct{}
	err  error // read it after done
}

// Restart replaces the whole cluster, the master included, by a new one of
// the program that is now found under this program's name, with the same
// arguments, environment and first working directory. It returns nil when
// the new workers are all ready and the new master has taken over. This one
// then shuts down as the package's table has it for sig: gracefully with
// SIGQUIT, the default, and hard with SIGINT, SIGTERM or SIGKILL. If the new
// master can't be started, or ends or is not ready within RestartTimeout, it
// is killed, Restart returns the reason, and nothing has changed.
//
// Calls while a restart is under way share one more, afterwards: it is then
// the new master that is asked for it, gracefully, and they don't wait for its
// outcome.
//
// The process that was started first is known to somebody: a shell, systemd,
// a container. Once replaced it therefore stays behind, without any socket,
// until the last master has ended: it passes on the signals that it gets, and
// calls of Restart, and its ListenAndServe returns what the last master's does.
// The other methods are for the cluster that it had, and do nothing more. With
// Detach it ends instead.
func (m *Master) Restart(sig ...os.Signal) error {
	if _, err := m.supervisor(); err != nil {
		return err
	}
	r := &restart{sig: first(sig, syscall.SIGQUIT), done: make(chan struct{})}
	m.mu.Lock()
	switch {
	case m.current == nil:
		m.current = r
		go m.runRestarts()
	case m.queued == nil:
		m.queued = r
	default:
		r = m.queued
	}
	m.mu.Unlock()
	<-r.done
	return r.err
}

// Successor returns the process id of the master that this one has handed over
// to, or 0. Where a master closes because it was replaced, it is known when
// Hooks.Closing is called.
func (m *Master) Successor() int {
	if h := m.heir.Load(); h != nil {
		return h.id
	}
	return 0
}

// restarting reports whether a restart is under way.
//
//go:noinline
func (m *Master) restarting() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current != nil
}

// runRestarts does the restarts that are asked for, one after the other.
func (m *Master) runRestarts() {
	for {
		m.mu.Lock()
		r := m.current
		m.mu.Unlock()
		if r == nil {
			return
		}
		if h := m.heir.Load(); h != nil {
			if a, ok := m.Signals[syscall.SIGUSR2]; ok && a != ActionRestart {
				r.err = errorf("cluster: this master has been replaced: restart its successor")
			} else {
				h.forward(syscall.SIGUSR2)
			}
		} else if r.err = m.restart(r.sig); r.err != nil && !errors.Is(r.err, ErrNotRunning) {
			err := r.err
			m.restarted = make(chan struct{})
			m.fireRestarted(func(h *Hooks) {
				if h.RestartFailed != nil {
					h.RestartFailed(err)
				}
			})
		}
		close(r.done)
		m.mu.Lock()
		m.current, m.queued = m.queued, nil
		m.mu.Unlock()
	}
}

// restart does one restart.
func (m *Master) restart(sig os.Signal) error {
	s := m.sup
	if err := m.do(func(*supervisor) error { return nil }); err != nil {
		return err
	}
	select {
	case <-m.established:
	case <-s.closing:
		return ErrNotRunning
	}
	m.fireRestart() // what this master was told it may have to pass on, however long its predecessor drains
	select {
	case <-m.restarted:
	case <-time.After(time.Second): // a hook is restarting us, or slow
	}
	values := make(Values)
	err := m.bounded("Restarting", s.closing, func(h *Hooks) error {
		if h.Restarting != nil {
			h.Restarting(values)
		}
		return nil
	})
	if err != nil {
		return err
	}
	late := time.NewTimer(m.restartTimeout())
	defer late.Stop()
	m.missed.Store(0)
	h, err := m.forker.startHeir(values)
	if err != nil {
		return errorf("cluster: restart: %w", err)
	}
	select {
	case <-h.ready:
	case <-h.failed:
		err = errorf("cluster: the new master failed: %s", h.reason)
	case <-h.reaped:
		if err = h.died("ended before it was ready"); isClosedChan(h.failed) {
			err = errorf("cluster: the new master failed: %s", h.reason)
		}
	case <-late.C:
		err = errorf("cluster: the new master was not ready after %v", m.restartTimeout())
	case <-s.closing:
		err = ErrNotRunning
	}
	if err == nil {
		err = m.do(func(s *supervisor) error {
			if isClosedChan(h.reaped) {
				return h.died("ended as soon as it was ready")
			}
			m.heir.Store(h)                           // signals go there
			h.signal(syscall.Signal(m.missed.Load())) // 0 does nothing
			m.forker.dropped = h.dropped
			for i, sock := range m.forker.sockets {
				if slices.Contains(h.dropped, i) {
					sock.quiesce()
				}
			}
			shared.disown(m.forker.sockets, true)
			s.replaced = true
			h.serve()
			if sig == syscall.SIGKILL || defaultSignals[sig] == ActionDestroy {
				s.shutdown(HardShutdown)
			} else {
				s.shutdown(GracefulShutdown)
			}
			return nil
		})
	}
	if err != nil {
		h.abandon(m)
	}
	return err
}

// An heir is the new master, as the old one sees it.
type heir struct {
	*childProcess
	ready     chan struct{} // closed when its workers are
	dropped   []int         // read it after ready
	failed    chan struct{} // closed when it has told that it gives up
	reason    string        // read it after failed
	reaped    chan struct{} // closed when it has died
	state     *os.ProcessState
	exception error

	// For the stand-in that this process may become.
	life    *net.UnixConn // every master after it has the other end; nil if it won't
	outcome *string       // what the last one has told; read it after over
	over    chan struct{} // closed when the last one is gone
	master  atomic.Pointer[os.Process]
	retired []*os.Process // masters before it that may not have been reaped
	mu      mutex         // guards retired
}

// startHeir starts a new master.
func (f *forker) startHeir(values Values) (*heir, error) {
	path, err := lookPath(firstDir, firstArgs[0])
	if err != nil && !strings.Contains(firstArgs[0], "/") {
		// It was started under another name than its file's.
		if exe, eerr := os.Executable(); eerr == nil {
			path, err = lookPath("/", exe)
		}
	}
	if err != nil {
		return nil, err
	}
	prog := &program{
		path:  path,
		args:  firstArgs,
		dir:   firstDir,
		files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		attr:  &syscall.SysProcAttr{Setpgid: true}, // Ctrl-C reaches the stand-in, and that passes it on
	}
	h := &heir{
		ready:  make(chan struct{}),
		failed: make(chan struct{}),
		reaped: make(chan struct{}),
		over:   make(chan struct{}),
	}
	role := "3,4,heir,"
	switch {
	case self.standIn != nil:
		fd, err := dupOf(self.standIn.conn)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		prog.extra = []int{fd}
	case !f.m.Detach:
		becomeSubreaper()
		conn, fd, err := newPair()
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		h.life = conn
		prog.extra = []int{fd}
	}
	if len(prog.extra) > 0 {
		role += "5"
	}
	prog.env = append(cleanEnv(), envDescriptors+"="+role, envMasterPid+"="+strconv.Itoa(os.Getpid()))
	if h.childProcess, err = f.start(prog, &settings{Values: values}, -1); err != nil {
		if h.life != nil {
			h.life.Close()
		}
		return nil, err
	}
	h.master.Store(h.proc)
	go h.serveLink(func(fr frame) { h.heard(f.m, fr) })
	go func() {
		h.state, h.exception = h.wait()
		close(h.reaped)
	}()
	if h.life != nil {
		go h.follow()
	}
	return h, nil
}

// heard handles what the new master tells the old one.
func (h *heir) heard(m *Master, f frame) {
	var err error
	switch f.kind {
	case frameReady:
		if !isClosedChan(h.ready) {
			err = parse(f.payload, (*numbers)(&h.dropped))
			close(h.ready)
		}
	case frameFailed:
		if !isClosedChan(h.failed) {
			var reason text
			err = parse(f.payload, &reason)
			h.reason = reason.Text
			close(h.failed)
		}
	case frameReopen:
		m.act(ActionReopen)
	}
	if err != nil {
		h.link.conn.Close()
	}
}

// died returns the error for a master that is dead.
func (h *heir) died(when string) error {
	err := errorf("cluster: the new master %s: %v", when, h.state)
	if h.exception != nil {
		err = errorf("%w: %w", err, h.exception)
	}
	return err
}

// abandon ends a new master that has not taken over. It is given a moment to
// end its workers and to clean up, as it does when we close the connection.
func (h *heir) abandon(m *Master) {
	h.link.close()
	select {
	case <-h.reaped:
	case <-time.After(time.Second):
		h.signal(syscall.SIGKILL)
		<-h.reaped
	}
	name := cmp.Or(m.SocketFilename, defaultSocketFilename)
	if !strings.Contains(name, "{PID}") {
		name += ".{PID}"
	}
	unlinkOurs(socketPath(m.SocketPath, name, h.id)) // if it was killed
	if h.life != nil {
		h.life.Close()
		<-h.over
	}
}

// forward sends sig to the current master, and reports whether it could.
func (h *heir) forward(sig os.Signal) bool {
	return h.master.Load().Signal(sig) == nil
}

// follow keeps track of who is the master, until there is none.
func (h *heir) follow() {
	defer close(h.over)
	(&link{conn: h.life}).read(0, func(f frame) {
		switch f.kind {
		case frameMaster:
			var pid numbers
			if parse(f.payload, &pid) != nil || len(pid) != 1 || pid[0] == h.master.Load().Pid {
				return
			}
			if next, err := os.FindProcess(pid[0]); err == nil {
				h.mu.Lock()
				h.retired = append(h.retired, h.master.Swap(next))
				h.mu.Unlock()
			}
		case frameOutcome:
			var outcome text
			if parse(f.payload, &outcome) == nil {
				h.outcome = &outcome.Text
			}
		}
	})
}

// leave is the end of a master whose workers are gone. It returns the
// outcome of the cluster as this process knows it.
func (m *Master) leave(s *supervisor, err error) error {
	defer m.stopSignals()
	m.mu.Lock()
	r := m.current
	m.mu.Unlock()
	if r != nil {
		<-r.done // a new master that is not to be goes first
	}
	m.mu.Lock()
	if !m.forker.done {
		m.forker.close(true)
	}
	m.mu.Unlock()
	h := m.heir.Load()
	if h == nil {
		if self.heir && err != nil && !isClosedChan(self.served) {
			self.failed(err)
		}
		if self.standIn != nil && isClosedChan(self.served) {
			var outcome text
			if err != nil {
				outcome.Text = err.Error()
			}
			self.standIn.sendValue(frameOutcome, &outcome)
			self.standIn.flush()
		}
		return err
	}
	if h.life == nil {
		return err // the end of this process ends the connection, which tells
	}
	h.link.sendValue(frameGone, nil)
	h.link.close()
	m.hooks.flush(m.timeout())
	return h.standIn()
}

// standIn waits for the last master to end, and returns its outcome.
func (h *heir) standIn() error {
	debug.FreeOSMemory()
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	for over := false; !over; {
		select {
		case <-children:
		case <-h.over:
			over = true
		}
		h.reap()
	}
	last := h.master.Load()
	var state *os.ProcessState
	if last.Pid == h.id {
		<-h.reaped
		state = h.state
	} else {
		state, _ = last.Wait() // it is ours since its parent ended, if the system does that
	}
	switch {
	case h.outcome != nil && *h.outcome != "":
		return errors.New(*h.outcome)
	case state != nil && !state.Success():
		waitForOrphans() // it may have left its workers to us
		return errorf("cluster: master %d: %v", last.Pid, state)
	case state == nil && h.outcome == nil:
		waitForOrphans()
		return errorf("cluster: master %d died", last.Pid)
	}
	return nil
}

// reap reaps the masters that have been replaced and are dead. They become
// this process's children when their own parents end.
func (h *heir) reap() {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.retired[:0]
	for _, p := range h.retired {
		if p.Pid == h.id {
			continue // wait does
		}
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(p.Pid, &ws, syscall.WNOHANG, nil)
		if pid == p.Pid || err != nil && p.Signal(syscall.Signal(0)) != nil {
			p.Release()
			continue
		}
		kept = append(kept, p)
	}
	h.retired = kept
}

// watchPredecessor ends a new master whose predecessor is gone too early.
func (m *Master) watchPredecessor(s *supervisor) {
	select {
	case <-self.gone:
	case <-self.served:
		return
	case <-s.ended:
		return
	}
	if isClosedChan(self.served) {
		return
	}
	s.do(func() error {
		if s.err == nil {
			s.err = ErrOldMasterGone
		}
		s.shutdown(HardShutdown)
		return nil
	})
}

// takeOver makes a new master the master, when its workers are ready.
func (m *Master) takeOver(s *supervisor, f *forker) {
	if !self.heir {
		close(m.restarted)
		close(m.established)
		return
	}
	m.hooks.flush(m.restartTimeout()) // pidfiles and the like come before the old master is told
	var dropped numbers
	for _, sock := range shared.dropped() {
		if sock.inherited {
			dropped = append(dropped, sock.number)
		}
	}
	self.link.sendValue(frameReady, &dropped)
	select {
	case <-self.served: // perhaps while it closes, because it was told to as soon as it was known
	case <-s.ended:
		return
	}
	shared.disown(shared.sockets(), false)
	debug.SetCrashOutput(nil, debug.CrashOptions{})
	s.do(func() error {
		f.hold.Store(false)
		s.waiting = false
		f.socket.takeOver()
		if err := f.setBacklogs(); err != nil {
			m.logf("%v", err)
		}
		for _, w := range s.workers {
			w.proc.serve()
		}
		m.hooks.fire(func(h *Hooks) { // before Closing, if that comes
			if h.Established != nil {
				h.Established()
			}
		})
		return nil
	})
	close(m.established)
	if self.standIn != nil {
		self.standIn.sendValue(frameMaster, &numbers{os.Getpid()})
		go func() {
			self.standIn.read(0, func(frame) {})
			m.Close() // whoever has started us has killed what it knew of us
		}()
	}
	for gone := false; !gone; {
		select {
		case f := <-self.frames:
			gone = f.kind == frameGone
		case <-self.gone:
			gone = true
		}
	}
	shared.drop()
	self.link.close()
	m.fireRestart()
}

// fireRestart calls the Restart hooks of a new master, once.
func (m *Master) fireRestart() {
	if !self.heir {
		return
	}
	m.tellRestart.Do(func() {
		m.fireRestarted(func(h *Hooks) {
			if h.Restart != nil {
				h.Restart(self.settings.Values)
			}
		})
	})
}

// fireRestarted is fire for hooks that come before the next Restarting.
func (m *Master) fireRestarted(f func(*Hooks)) {
	restarted := m.restarted
	m.hooks.fire(f)
	m.hooks.fire(func(*Hooks) {
		if !isClosedChan(restarted) {
			close(restarted)
		}
	})
}

// waitForOrphans waits until this process has no children, for those of a
// master that was killed finish what they are doing.
func waitForOrphans() {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.ECHILD {
			return
		}
		if pid <= 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
}
