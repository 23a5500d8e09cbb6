package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// The supervisor is the one goroutine that owns the table of workers. All
// that happens reaches it as an event, and supervisor.handle has a case for
// every kind. It makes no system call but through process and launch, so
// that it runs in tests with fakes of both.

// A slot is a worker's permanent place. It decides what comes after a
// worker's death.
type slot struct {
	id       int
	cur      *Worker     // starting or ready; nil while the slot waits to try again
	next     *Worker     // its successor in a rolling restart, starting; or nil
	failures int         // quick deaths in a row
	retry    *time.Timer // the end of a wait, or nil
	removed  bool
}

// A roll is a rolling restart of some workers, or of one.
type roll struct {
	sig     os.Signal
	todo    []*slot // not begun
	busy    int     // successors that are starting
	all     bool    // of all workers: hooks are told
	err     error   // why it stopped early
	waiters []chan error
}

// maxBackoff is the longest wait before a slot tries again.
const maxBackoff = 30 * time.Second

// livedLong is how long a worker must have been ready for its crash not to
// count as one of a loop.
const livedLong = time.Second

// giveUp is how many times in a row a worker may fail to become ready when
// the cluster starts.
const giveUp = 3

// backoff returns how long a slot waits after so many quick deaths in a row.
// The first is replaced at once.
func backoff(failures int) time.Duration {
	if failures < 2 {
		return 0
	}
	return min(100*time.Millisecond<<min(failures-2, 20), maxBackoff)
}

// An eventKind says what has happened.
type eventKind int

const (
	workerReady    eventKind = iota // told by the worker: it could accept
	workerFailed                    // told by the worker: err is why it gives up
	workerDraining                  // told by the worker: it drains of its own accord
	workerBeat                      // told by the worker: a sign of life, with its number of connections
	workerMessage                   // told by the worker: name, data
	workerDead                      // reaped: state, err (an *Exception or nil)
	workerLate                      // its time in its present state is over
	slotDue                         // a slot has waited long enough
	tick                            // a third of Heartbeat has passed
	called                          // a method was called: call does it
)

type event struct {
	kind    eventKind
	w       *Worker
	slot    *slot
	conns   int
	waiting bool
	name    string
	data    json.RawMessage
	state   *os.ProcessState
	err     error
	call    func()
}

type supervisor struct {
	launch   func(w *Worker, post func(event)) (process, error)
	fire     func(func(*Hooks)) // calls hooks, later
	logf     func(format string, args ...any)
	quiesce  func() // lets no new connection into the kernel's queues
	settled  func() // all of the first workers are ready; called in a goroutine of its own
	release  func() // closes what workers are given; called when none will come, and when none is left
	setState func(State)
	state    State

	size           int // workers to begin with
	limit          int // how many may start at once
	timeout        time.Duration
	restartTimeout time.Duration
	heartbeat      time.Duration // <= 0: off

	events  chan event
	begun   chan struct{} // closed when methods reach it: signals wait for that
	ended   chan struct{} // closed when no worker is left and none will come
	ready   chan struct{} // closed when the first workers are all ready
	closing chan struct{} // closed when a shutdown begins
	err     error         // why the cluster could not start; read it after ended

	slots     []*slot   // by id
	workers   []*Worker // every process, oldest first
	queue     []*slot   // to be started when others are done starting
	starved   *slot     // no process could be forked for it: it tries again, and the queue waits; or nil
	hungry    bool      // that has been said, and not yet that it is over
	rolling   *roll
	nextRoll  *roll
	listening bool
	waiting   bool // for an old master: no worker accepts yet
	replaced  bool // by a new master, which has the sockets

	apart  bool      // every slot has a socket of its own
	covers []*Worker // by the number of the slot that a socket is for: who accepts from it in its stead, or nil

	snapshot atomic.Pointer[[]*Worker] // of workers, by id
}

// post delivers an event to the supervisor, from any other goroutine.
//
//go:noinline
func (s *supervisor) post(e event) {
	select {
	case s.events <- e:
	case <-s.ended:
	}
}

// do runs f in the supervisor and waits for it. It is in so many methods that
// it would make a program larger to have copies of it.
//
//go:noinline
func (s *supervisor) do(f func() error) error {
	reply := make(chan error, 1)
	select {
	case s.events <- event{kind: called, call: func() { reply <- f() }}:
		return <-reply
	case <-s.ended:
		return ErrNotRunning
	}
}

// run is the supervisor. It returns when the cluster has been shut down, or
// could not start.
func (s *supervisor) run() error {
	defer close(s.ended)
	if s.heartbeat > 0 {
		t := time.NewTicker(s.heartbeat / 3)
		defer t.Stop()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for {
				select {
				case <-t.C:
					s.post(event{kind: tick})
				case <-stop:
					return
				}
			}
		}()
	}
	s.grow(s.size)
	for !s.over() {
		s.handle(<-s.events)
	}
	s.fire(fireClose)
	s.release()
	return s.err
}

// over reports whether the cluster has ended.
func (s *supervisor) over() bool { return s.state != Active && len(s.workers) == 0 }

// handle does what an event calls for: the whole life of a worker is here.
func (s *supervisor) handle(e event) {
	w := e.w
	if w != nil && w.State() == WorkerDead {
		return
	}
	switch e.kind {
	case workerReady:
		if w.State() == WorkerStarting {
			s.nowReady(w)
		}

	case workerFailed:
		w.failure = e.err
		s.fire(func(h *Hooks) {
			if h.WorkerException != nil {
				h.WorkerException(w, e.err)
			}
		})
		if w.State() == WorkerStarting {
			s.within(w, time.Second) // to exit by itself
		}

	case workerDraining:
		if w.State() < WorkerDraining {
			s.rolled(w, errorf("cluster: worker %d drained before it was ready", w.ID))
			w.set(WorkerDraining)
			s.within(w, s.timeout)
			s.refill(s.leave(w), 0)
		}

	case workerBeat:
		w.silent = 0
		if e.waiting && e.conns > 0 {
			s.fire(func(h *Hooks) {
				if h.WorkerWaiting != nil {
					h.WorkerWaiting(w, e.conns)
				}
			})
		}

	case workerMessage:
		s.fire(func(h *Hooks) {
			if h.Message != nil {
				h.Message(w, e.name, e.data)
			}
		})

	case workerDead:
		s.nowDead(w, e.state, e.err)

	case workerLate:
		// Not if w has moved on while the event was on its way.
		if w.timer != nil && !time.Now().Before(w.due) {
			s.nowLate(w)
		}

	case slotDue:
		if e.slot.retry != nil {
			e.slot.retry = nil
			if e.slot == s.starved {
				s.start(e.slot, nil)
			} else {
				s.queue = append(s.queue, e.slot)
			}
			s.startMore()
		}

	case tick:
		for _, w := range s.everybody() {
			// Ticks, not time: when the master was suspended too, none passed.
			if w.silent++; w.State() == WorkerReady && w.silent > 3 {
				s.nowHung(w)
			}
		}

	case called:
		e.call()
	}
	if e.kind != workerBeat && e.kind != workerMessage {
		s.cover()
	}
}

// cover sees to it that somebody accepts from every slot's socket: if not a
// worker of that slot, another one.
func (s *supervisor) cover() {
	if s.waiting || s.state != Active || len(s.covers) == 0 {
		return
	}
	var ready []*Worker
	for _, w := range s.workers {
		if w.State() == WorkerReady {
			ready = append(ready, w)
		}
	}
	for id, w := range s.covers {
		needed := s.apart || id > 0 // slot 0's is everybody's otherwise
		for _, other := range ready {
			if s.apart && other.ID == id {
				needed = false
			}
		}
		switch {
		case !slices.Contains(ready, w):
			if w = nil; needed && len(ready) > 0 {
				w = ready[id%len(ready)]
				w.proc.cover(id, true)
			}
		case !needed:
			w.proc.cover(id, false)
			w = nil
		}
		s.covers[id] = w
	}
}

func (s *supervisor) nowReady(w *Worker) {
	w.set(WorkerReady)
	w.stopTimer()
	w.ready = time.Now()
	w.silent = 0
	s.fire(func(h *Hooks) {
		if h.WorkerConnected != nil {
			h.WorkerConnected(w)
		}
	})
	if sl := w.slot; sl.next == w {
		s.retire(sl.cur, w.roll.sig, false) // w takes its place
	}
	s.rolled(w, nil)
	s.startMore()
	s.checkListening()
}

// checkListening notes that the first workers are all ready.
func (s *supervisor) checkListening() {
	if !s.listening && !slices.ContainsFunc(s.slots, func(sl *slot) bool {
		return sl.cur == nil || sl.cur.State() != WorkerReady
	}) {
		s.listening = true
		close(s.ready)
		s.fire(fireListening)
		go s.settled()
	}
}

func (s *supervisor) nowDead(w *Worker, state *os.ProcessState, exception error) {
	before := w.State()
	w.set(WorkerDead)
	w.stopTimer()
	s.workers = slices.DeleteFunc(s.workers, func(other *Worker) bool { return other == w })
	s.publish()
	s.fire(func(h *Hooks) {
		if exception != nil && h.WorkerException != nil {
			h.WorkerException(w, exception)
		}
	})
	s.fireKilled(w, state)
	sl := s.leave(w)
	if before == WorkerStarting {
		reason := w.failure
		if reason == nil {
			reason = exception
		}
		err := &StartError{ID: w.ID, ProcessState: state, Err: reason}
		s.rolled(w, err)
		s.startFailed(sl, err, w.failure != nil)
	}
	if sl != nil {
		if before == WorkerStarting || crashed(state) && time.Since(w.ready) < livedLong {
			sl.failures++
		} else {
			sl.failures = 0
		}
		s.refill(sl, backoff(sl.failures))
	}
	s.startMore()
}

// crashed reports whether a process ended by its own doing. One that was
// killed from outside says nothing about a loop.
func crashed(state *os.ProcessState) bool {
	if state == nil {
		return true
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return true
	}
	switch ws.Signal() {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP:
		return false
	}
	return true
}

// nowLate ends a worker that has taken too long to become ready or to drain.
func (s *supervisor) nowLate(w *Worker) {
	after := s.timeout
	if w.State() == WorkerStarting {
		after = s.restartTimeout
		if w.failure == nil {
			w.failure = errorf("not ready after %v", after)
		}
	}
	s.timedOut(w, after)
	w.proc.signal(syscall.SIGKILL)
}

// nowHung replaces a worker that has given no sign of life.
func (s *supervisor) nowHung(w *Worker) {
	s.logf("cluster: worker %d (pid %d) has been silent for %v: replacing it", w.ID, w.Pid, s.heartbeat)
	s.timedOut(w, s.heartbeat)
	w.set(WorkerDraining)
	w.proc.abort()
	s.refill(s.leave(w), 0)
}

//go:noinline
func (s *supervisor) timedOut(w *Worker, after time.Duration) {
	s.fire(func(h *Hooks) {
		if h.WorkerTimeout != nil {
			h.WorkerTimeout(w, after)
		}
	})
}

// fireKilled sets w.ProcessState among the hooks, so that none can read it
// too early.
func (s *supervisor) fireKilled(w *Worker, state *os.ProcessState) {
	first := true
	s.fire(func(h *Hooks) {
		if first {
			w.ProcessState, first = state, false
		}
		if h.WorkerKilled != nil {
			h.WorkerKilled(w)
		}
	})
}

// set moves w forward.
func (w *Worker) set(state WorkerState) { w.state.Store(int32(state)) }

// within gives w so much time in its present state.
func (s *supervisor) within(w *Worker, d time.Duration) {
	w.stopTimer()
	w.due = time.Now().Add(d)
	w.timer = time.AfterFunc(d, func() { s.post(event{kind: workerLate, w: w}) })
}

//go:noinline
func (w *Worker) stopTimer() {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

// leave takes w out of its slot, which it returns if it has one. A
// successor that is already starting takes w's place.
//
//go:noinline
func (s *supervisor) leave(w *Worker) *slot {
	sl := w.slot
	w.slot = nil
	switch {
	case sl == nil:
	case sl.next == w:
		sl.next = nil
	case sl.cur == w:
		sl.cur, sl.next = sl.next, nil
	}
	return sl
}

// refill starts a worker in a slot that has none, after the delay.
func (s *supervisor) refill(sl *slot, delay time.Duration) {
	if sl == nil || sl.cur != nil || sl.removed || s.state != Active {
		return
	}
	if delay > 0 {
		sl.stopRetry()
		sl.retry = time.AfterFunc(delay, func() { s.post(event{kind: slotDue, slot: sl}) })
		return
	}
	s.start(sl, nil)
}

//go:noinline
func (sl *slot) stopRetry() {
	if sl.retry != nil {
		sl.retry.Stop()
		sl.retry = nil
	}
}

// start forks a worker for the slot: its worker, or, if it has one, the
// successor of that.
func (s *supervisor) start(sl *slot, r *roll) {
	sl.stopRetry()
	w := &Worker{ID: sl.id, Started: time.Now(), slot: sl, roll: r}
	proc, err := s.launch(w, s.post)
	if err != nil {
		failed := &StartError{ID: sl.id, Err: err}
		s.rolled(w, failed)
		s.startFailed(sl, failed, false)
		if sl.cur == nil {
			s.starve(sl, err)
		}
		return
	}
	if s.starved == sl {
		s.starved = nil
	}
	w.proc, w.Pid = proc, proc.pid()
	if sl.cur == nil {
		sl.cur = w
	} else {
		sl.next = w
	}
	s.workers = append(s.workers, w)
	for s.apart && len(s.covers) <= sl.id {
		s.covers = append(s.covers, nil)
	}
	s.publish()
	s.within(w, s.restartTimeout)
	s.fire(func(h *Hooks) {
		if h.Worker != nil {
			h.Worker(w)
		}
	})
}

// starve has the slot, for which no process could be forked, wait: the first
// one tries again, less and less often, and the others wait for it in the
// queue.
func (s *supervisor) starve(sl *slot, err error) {
	if !s.hungry {
		s.hungry = true
		s.logf("cluster: starting worker %d: %v; trying again", sl.id, err)
	}
	if s.starved == nil {
		s.starved = sl
	}
	if s.starved == sl {
		sl.failures++
		s.refill(sl, max(backoff(sl.failures), 10*time.Millisecond))
	} else {
		s.queue = append(s.queue, sl)
	}
}

// startFailed ends a cluster whose first workers can't become ready.
func (s *supervisor) startFailed(sl *slot, err error, final bool) {
	if s.listening || s.state != Active || sl == nil {
		return
	}
	if final || sl.failures+1 >= giveUp {
		s.err = err
		s.shutdown(HardShutdown)
	}
}

// startMore starts what waits to be started, not too many at a time: a
// queue of slots, and then of successors.
func (s *supervisor) startMore() {
	for s.state == Active && s.starting() < s.limit {
		if len(s.queue) > 0 && s.starved == nil {
			sl := s.queue[0]
			s.queue = s.queue[1:]
			s.refill(sl, 0)
			continue
		}
		r := s.rolling
		if r == nil || len(r.todo) == 0 {
			break
		}
		sl := r.todo[0]
		r.todo = r.todo[1:]
		if !sl.removed {
			r.busy++
			s.start(sl, r)
		}
	}
	if s.hungry && s.starved == nil && len(s.queue) == 0 && s.state == Active {
		s.hungry = false
		s.logf("cluster: no worker waits to be started any more")
	}
	s.endRoll()
}

// starting returns how many workers are starting.
func (s *supervisor) starting() (n int) {
	for _, w := range s.workers {
		if w.State() == WorkerStarting {
			n++
		}
	}
	return n
}

// grow adds n slots, with the lowest ids that are free.
func (s *supervisor) grow(n int) {
	for range n {
		id := 0
		for id < len(s.slots) && s.slots[id].id == id {
			id++
		}
		sl := &slot{id: id}
		s.slots = append(s.slots, nil)
		copy(s.slots[id+1:], s.slots[id:])
		s.slots[id] = sl
		s.queue = append(s.queue, sl)
	}
	s.startMore()
}

// shrink removes the n slots with the highest ids.
func (s *supervisor) shrink(n int, sig os.Signal) error {
	if n > len(s.slots) {
		return errorf("cluster: Remove(%d): there are only %d workers", n, len(s.slots))
	}
	for range n {
		sl := s.slots[len(s.slots)-1]
		s.slots = s.slots[:len(s.slots)-1]
		sl.removed = true
		sl.stopRetry()
		if s.starved == sl {
			s.starved = nil
		}
		cur, next := sl.cur, sl.next
		for _, w := range []*Worker{cur, next} {
			if w != nil {
				s.rolled(w, nil) // no failure: it need not be restarted any more
			}
		}
		s.retire(next, sig, false)
		s.retire(cur, sig, false)
		if cur != nil {
			s.fire(func(h *Hooks) {
				if h.WorkerRemoved != nil {
					h.WorkerRemoved(cur)
				}
			})
		}
	}
	s.checkListening()
	s.startMore()
	return nil
}

// retire tells w to finish. It is out of its slot from now on. One that is
// still starting may serve already: it knows, and ends at once if it doesn't.
func (s *supervisor) retire(w *Worker, sig os.Signal, last bool) {
	if w == nil || w.State() > WorkerReady {
		return
	}
	s.leave(w)
	w.set(WorkerDraining)
	s.tell(w, sig, last)
	s.within(w, s.timeout)
	s.rolled(w, errorf("cluster: worker %d was stopped before it was ready", w.ID))
}

// tell sends sig to w. SIGQUIT goes as a message, which can't arrive before
// the process has said what the signal means to it.
func (s *supervisor) tell(w *Worker, sig os.Signal, last bool) error {
	if sig == syscall.SIGQUIT && w.proc.drain(last) == nil {
		return nil
	}
	return w.proc.signal(sig)
}

// kill sends sig to every worker.
func (s *supervisor) kill(sig os.Signal) error {
	s.fireKill(sig)
	var errs []error
	for _, w := range s.workers {
		if err := s.tell(w, sig, false); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, errorf("cluster: worker %d: %w", w.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (s *supervisor) fireKill(sig os.Signal) {
	s.fire(func(h *Hooks) {
		if h.Kill != nil {
			h.Kill(sig)
		}
	})
}

// restart begins a rolling restart of the slots with these ids, or of all.
// While one is under way, all that is asked for is one more.
func (s *supervisor) restart(sig os.Signal, ids ...int) (<-chan error, error) {
	if s.state != Active {
		return nil, ErrNotRunning
	}
	var slots []*slot
	for _, sl := range s.slots {
		if len(ids) == 0 || slices.Contains(ids, sl.id) {
			slots = append(slots, sl)
		}
	}
	if len(slots) == 0 && len(ids) > 0 {
		return nil, errorf("cluster: there is no worker %d", ids[0])
	}
	r := s.nextRoll
	if r == nil {
		r = &roll{}
	}
	r.sig = sig
	r.all = r.all || len(ids) == 0
	for _, sl := range slots {
		if !slices.Contains(r.todo, sl) {
			r.todo = append(r.todo, sl)
		}
	}
	done := make(chan error, 1)
	r.waiters = append(r.waiters, done)
	if s.rolling == nil {
		s.roll(r)
	} else {
		s.nextRoll = r
	}
	return done, nil
}

// roll begins a rolling restart.
func (s *supervisor) roll(r *roll) {
	s.rolling = r
	if r.all {
		s.fire(func(h *Hooks) {
			if h.RestartingWorkers != nil {
				h.RestartingWorkers()
			}
		})
	}
	s.startMore()
}

// rolled notes that w, if a rolling restart has started it, is ready, or why
// it won't be. The first failure ends the restart: what it has not begun
// stays as it is.
func (s *supervisor) rolled(w *Worker, err error) {
	r := w.roll
	if r == nil {
		return
	}
	w.roll = nil
	r.busy--
	if err != nil && r.err == nil {
		r.err = err
		r.todo = nil
		for _, sl := range s.slots {
			if sl.next != nil && sl.next.roll == r {
				s.retire(sl.next, syscall.SIGQUIT, false)
			}
		}
	}
	s.endRoll()
}

// endRoll ends the rolling restart that has nothing left to do, and begins
// the next.
func (s *supervisor) endRoll() {
	r := s.rolling
	if r == nil || r.busy > 0 || len(r.todo) > 0 {
		return
	}
	if r.all {
		s.fire(func(h *Hooks) {
			if h.WorkersRestarted != nil {
				h.WorkersRestarted(r.err)
			}
		})
	}
	for _, done := range r.waiters {
		done <- r.err
	}
	next := s.nextRoll
	s.rolling, s.nextRoll = nil, nil
	if next != nil {
		s.roll(next)
	}
}

// shutdown begins to end the cluster, gracefully or hard. It may be called
// again to go from the first to the second.
func (s *supervisor) shutdown(state State) {
	if s.state == HardShutdown || s.state == state {
		return
	}
	first := s.state == Active
	s.state = state
	s.setState(state)
	if first {
		close(s.closing)
		s.fire(func(h *Hooks) {
			if h.Closing != nil {
				h.Closing()
			}
		})
		s.queue = nil
		for _, sl := range s.slots {
			sl.stopRetry()
		}
		for _, r := range []*roll{s.rolling, s.nextRoll} {
			if r != nil {
				r.todo, r.err = nil, ErrNotRunning
			}
		}
	}
	sig := syscall.SIGKILL
	last := !s.replaced && !s.waiting // else the sockets are another master's
	if state == GracefulShutdown {
		sig = syscall.SIGQUIT
		if last {
			s.quiesce()
		}
	}
	if s.starting() == 0 { // else the sockets may still be on their way to one
		s.release()
	}
	s.fireKill(sig)
	for _, w := range s.everybody() {
		if state == GracefulShutdown {
			if last && w.State() == WorkerDraining {
				w.proc.drain(last) // its connections stay: nobody takes them any more
			}
			s.retire(w, sig, last)
			continue
		}
		s.rolled(w, ErrNotRunning)
		s.leave(w)
		w.set(WorkerDraining)
		w.proc.signal(sig)
	}
	s.endRoll()
}

// everybody returns a copy of the table of workers, for loops that change it.
//
//go:noinline
func (s *supervisor) everybody() []*Worker { return slices.Clone(s.workers) }

// publish makes the table of workers known to Children.
func (s *supervisor) publish() {
	list := s.everybody()
	for i := range list { // the order is almost right
		for ; i > 0 && list[i-1].ID > list[i].ID; i-- {
			list[i-1], list[i] = list[i], list[i-1]
		}
	}
	s.snapshot.Store(&list)
}

// A StartError tells why a worker did not become ready.
type StartError struct {
	ID           int              // of the worker
	ProcessState *os.ProcessState // how it has died; nil if it could not be forked
	Err          error            // what it has told, an *Exception, the error of the fork, or nil
}

// Error tells the exit status and the reason, as far as they are known.
func (e *StartError) Error() string {
	s := fmt.Sprintf("cluster: worker %d did not become ready", e.ID)
	if e.ProcessState != nil {
		s += ": " + e.ProcessState.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns e.Err.
func (e *StartError) Unwrap() error { return e.Err }
