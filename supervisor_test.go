//go:build unix && !cluster_nofork

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A lab is a master with its real supervisor and its real hooks, but with
// fake processes. It lives in a synctest bubble.
type lab struct {
	*Master
	t *testing.T
	s *supervisor

	mu       sync.Mutex // guards the following
	life     func(*fake)
	forkErr  error // for slot 0
	forkAll  bool  // and for all others
	fakes    []*fake
	forks    map[int]int // how many for each slot
	deeds    []string    // what was done to processes, in order
	calls    []string    // hooks that were called, in order
	starting int         // processes that are neither ready nor dead
	most     int         // the highest number of those, ever
}

// newLab returns a lab that has not begun.
func newLab(t *testing.T, workers int) *lab {
	b := &lab{t: t, Master: &Master{ErrorLog: log.New(io.Discard, "", 0)}, life: (*fake).ready, forks: make(map[int]int)}
	b.hooks.logf = b.logf
	b.s = &supervisor{
		launch:         b.launch,
		fire:           b.hooks.fire,
		logf:           b.logf,
		setState:       func(s State) { b.state.Store(int32(s)) },
		quiesce:        func() { b.did("quiesce") },
		release:        func() {},
		settled:        func() {},
		closing:        make(chan struct{}),
		size:           workers,
		limit:          100,
		timeout:        time.Minute,
		restartTimeout: time.Minute,
		heartbeat:      -1,
		events:         make(chan event),
		ended:          make(chan struct{}),
		ready:          make(chan struct{}),
	}
	b.On(b.recorder())
	return b
}

// run starts the supervisor, and ends it with the test.
func (b *lab) run() *lab {
	b.sup = b.s
	go func() { b.finish(b.s.run()) }()
	b.t.Cleanup(func() {
		b.Destroy()
		b.Wait()
		time.Sleep(48 * time.Hour) // lives end
	})
	b.wait()
	return b
}

func (b *lab) did(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deeds = append(b.deeds, fmt.Sprintf(format, args...))
}

func (b *lab) recorder() Hooks {
	call := func(format string, args ...any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calls = append(b.calls, fmt.Sprintf(format, args...))
	}
	return Hooks{
		Worker:          func(w *Worker) { call("worker %d", w.ID) },
		WorkerConnected: func(w *Worker) { call("connected %d", w.ID) },
		Listening:       func() { call("listening") },
		Closing:         func() { call("closing") },
		Close:           func() { call("close") },
		WorkerKilled:    func(w *Worker) { call("killed %d", w.ID) },
		WorkerException: func(w *Worker, err error) { call("exception %d %v", w.ID, err) },
		WorkerTimeout:   func(w *Worker, after time.Duration) { call("timeout %d %v", w.ID, after) },
		WorkerWaiting:   func(w *Worker, conns int) { call("waiting %d %d", w.ID, conns) },
		WorkerRemoved:   func(w *Worker) { call("removed %d", w.ID) },
		Kill:            func(sig os.Signal) { call("kill %v", sig) },
		Message:         func(w *Worker, name string, data json.RawMessage) { call("message %d %s %s", w.ID, name, data) },

		RestartingWorkers: func() { call("restarting workers") },
		WorkersRestarted:  func(err error) { call("workers restarted %t", err == nil) },
	}
}

func (b *lab) launch(w *Worker, post func(event)) (process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.forkErr != nil && (w.ID == 0 || b.forkAll) {
		b.deeds = append(b.deeds, fmt.Sprintf("no fork %d", w.ID))
		return nil, b.forkErr
	}
	p := &fake{b: b, w: w, id: 100 + len(b.fakes), born: time.Now(), starting: true}
	b.forks[w.ID]++
	p.name = fmt.Sprintf("%d.%d", w.ID, b.forks[w.ID])
	b.fakes = append(b.fakes, p)
	b.starting++
	b.most = max(b.most, b.starting)
	b.deeds = append(b.deeds, "fork "+p.name)
	if b.life != nil {
		go b.life(p)
	}
	return p, nil
}

// lives has all processes to come live so.
func (b *lab) lives(life func(*fake)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.life = life
}

// wait waits until nothing more happens without time passing. What processes
// do at once takes them some nanoseconds, more for those with higher ids, so
// that it always happens in the same order.
func (b *lab) wait() { time.Sleep(time.Microsecond); synctest.Wait() }

// moment is the time that p takes to do something at once.
func (p *fake) moment() { time.Sleep(time.Duration(1 + p.w.ID)) }

// process returns the process by its name: "0.2" is the second in slot 0.
func (b *lab) process(name string) *fake {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.fakes {
		if p.name == name {
			return p
		}
	}
	b.t.Fatalf("no process %s has been forked", name)
	return nil
}

// expect waits, and compares what was done to processes since the last time.
func (b *lab) expect(want ...string) {
	b.t.Helper()
	b.wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := strings.Join(b.deeds, ", "); got != strings.Join(want, ", ") {
		b.t.Errorf("done: %s\nwant: %s", got, strings.Join(want, ", "))
	}
	b.deeds = nil
}

// called is expect for hooks.
func (b *lab) called(want ...string) {
	b.t.Helper()
	b.wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := strings.Join(b.calls, ", "); got != strings.Join(want, ", ") {
		b.t.Errorf("hooks: %s\n want: %s", got, strings.Join(want, ", "))
	}
	b.calls = nil
}

// forget empties both records.
func (b *lab) forget() {
	b.wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deeds, b.calls = nil, nil
}

// serving returns the names of the processes that are ready.
func (b *lab) serving() string {
	b.wait()
	var names []string
	for _, w := range b.Children() {
		if w.State() == WorkerReady {
			names = append(names, w.proc.(*fake).name)
		}
	}
	return strings.Join(names, " ")
}

func (b *lab) serves(want string) {
	b.t.Helper()
	if got := b.serving(); got != want {
		b.t.Errorf("processes %q serve, want %q", got, want)
	}
}

// begin calls a method that waits, and returns where its result will be.
func begin(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	time.Sleep(time.Microsecond)
	synctest.Wait()
	return c
}

// since is time.Since without the moments.
func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

func waits(t *testing.T, c <-chan error) {
	t.Helper()
	time.Sleep(time.Microsecond)
	synctest.Wait()
	select {
	case err := <-c:
		t.Errorf("returned too early: %v", err)
	default:
	}
}

func returned(t *testing.T, c <-chan error) error {
	t.Helper()
	time.Sleep(time.Microsecond)
	synctest.Wait()
	select {
	case err := <-c:
		return err
	default:
		t.Fatal("has not returned")
		return nil
	}
}

// A fake is a process that isn't one. SIGKILL ends it, and so do SIGTERM and
// the order to drain if it is not deaf.
type fake struct {
	b    *lab
	w    *Worker
	id   int
	name string // "0.2" is the second in slot 0
	born time.Time

	// b.mu guards the following.
	starting bool
	dead     bool
	deaf     bool
	draining time.Duration // how long it takes to drain
}

func (p *fake) pid() int { return p.id }

func (p *fake) signal(sig os.Signal) error {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if p.dead {
		return os.ErrProcessDone
	}
	p.b.deeds = append(p.b.deeds, fmt.Sprintf("%v %s", sig, p.name))
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM && !p.deaf {
		go p.die(killed, nil)
	}
	return nil
}

func (p *fake) serve() error { return nil }

func (p *fake) drain(last bool) error {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if p.dead {
		return os.ErrProcessDone
	}
	s := "drain "
	if last {
		s = "drain last "
	}
	p.b.deeds = append(p.b.deeds, s+p.name)
	if !p.deaf {
		go p.leave(p.draining)
	}
	return nil
}

func (p *fake) message(name string, data json.RawMessage) error {
	p.b.did("message %s", p.name)
	return nil
}

func (p *fake) cover(slot int, begin bool) { p.b.did("cover %s %d %v", p.name, slot, begin) }

func (p *fake) reopen() { p.b.did("reopen %s", p.name) }

func (p *fake) abort() {
	p.b.did("abort %s", p.name)
	go func() {
		time.Sleep(100 * time.Nanosecond) // it has more to tell
		p.die(exited, &Exception{Message: "SIGABRT"})
	}()
}

// tell posts what a worker says.
func (p *fake) tell(kind eventKind) {
	p.moment()
	p.b.s.post(event{kind: kind, w: p.w})
}

// ready is the life of a good worker: ready at once, until told otherwise.
func (p *fake) ready() {
	p.begun()
	p.tell(workerReady)
}

func (p *fake) begun() {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if p.starting {
		p.starting = false
		p.b.starting--
	}
}

func (p *fake) leave(d time.Duration) {
	p.tell(workerDraining)
	time.Sleep(d)
	p.die(exited, nil)
}

func (p *fake) die(state *os.ProcessState, err error) {
	p.moment()
	p.begun()
	p.b.mu.Lock()
	dead := p.dead
	p.dead = true
	p.b.mu.Unlock()
	if !dead {
		p.b.s.post(event{kind: workerDead, w: p.w, state: state, err: err})
	}
}

func (p *fake) setDeaf() {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	p.deaf = true
}

// Lives of workers.

func never(*fake) {}

func after(d time.Duration) func(*fake) {
	return func(p *fake) {
		time.Sleep(d)
		p.ready()
	}
}

func crashing(p *fake) { p.die(failed, nil) }

// Real process states: there is no other way to make one.
var (
	exited = &os.ProcessState{} // status 0
	failed = processState("exit 1")
	killed = processState("kill -KILL $$")
)

func processState(script string) *os.ProcessState {
	if os.Getenv("CLUSTER_TEST_HELPER") != "" {
		return nil // this process runs no tests
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Run()
	return cmd.ProcessState
}

// Every event in every state: what becomes of the worker, what is done, and
// which hooks are called.
func TestEveryEventHasItsEffectInEveryState(t *testing.T) {
	const (
		nothing = ""
		replace = "fork 0.2, [worker 0]"
	)
	kinds := map[eventKind]string{
		workerReady: "ready", workerFailed: "failed", workerDraining: "draining", workerBeat: "beat",
		workerMessage: "message", workerDead: "dead", workerLate: "late", slotDue: "due", tick: "tick", called: "called",
	}
	for kind := range called + 1 {
		if kinds[kind] == "" {
			t.Fatalf("event kind %d is not in this test", kind)
		}
	}
	tests := []struct {
		state WorkerState
		kind  eventKind
		want  string // the deeds, and in brackets the hooks
		then  WorkerState
	}{
		{WorkerStarting, workerReady, "[connected 0], [listening]", WorkerReady},
		{WorkerStarting, workerFailed, "[exception 0 oops]", WorkerStarting},
		{WorkerStarting, workerDraining, replace, WorkerDraining},
		{WorkerStarting, workerBeat, "[waiting 0 7]", WorkerStarting},
		{WorkerStarting, workerMessage, "[message 0 hello 1]", WorkerStarting},
		{WorkerStarting, workerDead, "[exception 0 oops], [killed 0], " + replace, WorkerDead},
		{WorkerStarting, workerLate, "[timeout 0 1m0s], killed 0.1", WorkerStarting},
		{WorkerStarting, slotDue, nothing, WorkerStarting},
		{WorkerStarting, tick, nothing, WorkerStarting},
		{WorkerStarting, called, "called", WorkerStarting},

		{WorkerReady, workerReady, nothing, WorkerReady},
		{WorkerReady, workerFailed, "[exception 0 oops]", WorkerReady},
		{WorkerReady, workerDraining, replace, WorkerDraining},
		{WorkerReady, workerBeat, "[waiting 0 7]", WorkerReady},
		{WorkerReady, workerMessage, "[message 0 hello 1]", WorkerReady},
		{WorkerReady, workerDead, "[exception 0 oops], [killed 0], " + replace, WorkerDead},
		{WorkerReady, workerLate, nothing, WorkerReady}, // too late: it became ready while the event was on its way
		{WorkerReady, slotDue, nothing, WorkerReady},
		{WorkerReady, tick, "[timeout 0 30s], abort 0.1, " + replace, WorkerDraining},
		{WorkerReady, called, "called", WorkerReady},

		{WorkerDraining, workerReady, nothing, WorkerDraining},
		{WorkerDraining, workerFailed, "[exception 0 oops]", WorkerDraining},
		{WorkerDraining, workerDraining, nothing, WorkerDraining},
		{WorkerDraining, workerBeat, "[waiting 0 7]", WorkerDraining},
		{WorkerDraining, workerMessage, "[message 0 hello 1]", WorkerDraining},
		{WorkerDraining, workerDead, "[exception 0 oops], [killed 0]", WorkerDead}, // its successor is there
		{WorkerDraining, workerLate, "[timeout 0 1m0s], killed 0.1", WorkerDraining},
		{WorkerDraining, slotDue, nothing, WorkerDraining},
		{WorkerDraining, tick, nothing, WorkerDraining}, // it has Timeout, however silent it is
		{WorkerDraining, called, "called", WorkerDraining},

		{WorkerDead, workerReady, nothing, WorkerDead},
		{WorkerDead, workerFailed, nothing, WorkerDead},
		{WorkerDead, workerDraining, nothing, WorkerDead},
		{WorkerDead, workerBeat, nothing, WorkerDead},
		{WorkerDead, workerMessage, nothing, WorkerDead},
		{WorkerDead, workerDead, nothing, WorkerDead},
		{WorkerDead, workerLate, nothing, WorkerDead},
		{WorkerDead, slotDue, nothing, WorkerDead},
		{WorkerDead, tick, nothing, WorkerDead},
		{WorkerDead, called, "called", WorkerDead},
	}
	seen := make(map[string]bool)
	for _, tt := range tests {
		name := tt.state.String() + "/" + kinds[tt.kind]
		if seen[name] {
			t.Errorf("%s is twice in the table", name)
		}
		seen[name] = true
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The supervisor doesn't run: the test hands it its events.
				b := newLab(t, 1)
				defer b.wait()
				defer close(b.s.ended)
				b.life = nil
				b.s.heartbeat = 30 * time.Second
				b.s.fire = func(f func(*Hooks)) {
					f(b.hooks.hooks[0])
					b.deeds = append(b.deeds, bracketed(b.calls)...)
					b.calls = nil
				}
				b.s.grow(1)
				w := b.fakes[0].w
				sl := w.slot
				if tt.state >= WorkerReady {
					b.s.handle(event{kind: workerReady, w: w})
				}
				if tt.state >= WorkerDraining {
					b.s.handle(event{kind: workerDraining, w: w})
				}
				if tt.state >= WorkerDead {
					b.s.handle(event{kind: workerDead, w: w, state: exited})
				}
				if w.State() != tt.state {
					t.Fatalf("the worker is %v, want %v", w.State(), tt.state)
				}
				b.deeds = nil

				e := event{kind: tt.kind, w: w, conns: 7, waiting: true, name: "hello", data: json.RawMessage("1"), state: failed, err: errors.New("oops")}
				e.call = func() { b.did("called") }
				times := 1
				switch tt.kind {
				case tick:
					e.w = nil
					times = 4
				case slotDue:
					e.w, e.slot = nil, sl
				case called:
					e.w = nil
				case workerLate:
					time.Sleep(time.Minute)
				}
				for range times {
					b.s.handle(e)
				}
				if got := strings.Join(b.deeds, ", "); got != tt.want {
					t.Errorf("done: %s\nwant: %s", got, tt.want)
				}
				if w.State() != tt.then {
					t.Errorf("the worker is then %v, want %v", w.State(), tt.then)
				}
			})
		})
	}
	if n := int(WorkerDead+1) * int(called+1); len(tests) != n {
		t.Errorf("the table has %d lines, want %d", len(tests), n)
	}
}

func bracketed(list []string) []string {
	list = slices.Clone(list)
	for i, s := range list {
		list[i] = "[" + s + "]"
	}
	return list
}

// inLab runs f with a lab in a bubble.
func inLab(t *testing.T, workers int, f func(*testing.T, *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newLab(t, workers)) })
}

func TestFirstWorkersAreStartedAndStopped(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.lives(after(time.Second))
		b.run()
		b.expect("fork 0.1", "fork 1.1")
		b.called("worker 0", "worker 1")
		<-b.s.ready
		b.called("connected 0", "connected 1", "listening")
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Wait(); err != nil {
			t.Error(err)
		}
		b.expect("quiesce", "drain last 0.1", "drain last 1.1")
		b.called("closing", "kill quit", "killed 0", "killed 1", "close")
		if b.State() != GracefulShutdown || len(b.Children()) > 0 {
			t.Errorf("State is %v with %d workers", b.State(), len(b.Children()))
		}
		for name, err := range map[string]error{
			"Close": b.Close(), "Destroy": b.Destroy(), // these have been done already
		} {
			if err != nil {
				t.Errorf("%s after the end: %v", name, err)
			}
		}
		for name, err := range map[string]error{
			"Spawn": b.Spawn(1), "Remove": b.Remove(1), "Kill": b.Kill(), "RestartWorkers": b.RestartWorkers(), "Replace": b.Replace(0),
		} {
			if !errors.Is(err, ErrNotRunning) {
				t.Errorf("%s after the end: %v, want ErrNotRunning", name, err)
			}
		}
	})
}

func TestWorkerIsReplacedInItsSlotWhateverKilledIt(t *testing.T) {
	signaled := processState("kill -SEGV $$")
	tests := []struct {
		name  string
		state *os.ProcessState
		err   error
	}{
		{"it returned", exited, nil},
		{"it failed", failed, nil},
		{"it was killed", killed, nil},
		{"it crashed", signaled, nil},
		{"it panicked", failed, &Exception{Message: "panic: oops"}},
		{"it can't be known", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, 3, func(t *testing.T, b *lab) {
				b.run()
				time.Sleep(time.Hour)
				b.forget()
				go b.process("1.1").die(tt.state, tt.err)
				b.expect("fork 1.2")
				b.serves("0.1 1.2 2.1")
				if got := b.process("1.1").w.ProcessState; got != tt.state {
					t.Errorf("ProcessState is %v, want %v", got, tt.state)
				}
				if err := b.process("1.1").w.Kill(syscall.SIGTERM); err != os.ErrProcessDone {
					t.Errorf("Kill of the dead worker: %v", err)
				}
			})
		})
	}
}

func TestDeadWorkerIsReplacedWhileItsNeighbourHangsAtStart(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.run()
		b.s.do(func() error { b.s.limit = 1; return nil })
		b.lives(never)
		go b.process("0.1").die(failed, nil)
		b.wait()
		b.lives((*fake).ready)
		go b.process("1.1").die(failed, nil)
		b.serves("1.2")
	})
}

func TestWaitsBetweenQuickDeathsGrowAreCappedAndReset(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		b.lives(crashing)
		go b.process("0.1").die(failed, nil)
		time.Sleep(5 * time.Minute)
		b.lives(func(p *fake) { // it lives a little, once
			p.ready()
			time.Sleep(livedLong)
			p.b.lives(crashing)
			p.die(failed, nil)
		})
		time.Sleep(maxBackoff)
		b.wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		var waits []string
		for i, p := range b.fakes[1:] {
			waits = append(waits, p.born.Sub(b.fakes[i].born).Round(time.Millisecond).String())
		}
		got := strings.Join(waits, " ")
		const grown = "0s 100ms 200ms 400ms 800ms 1.6s 3.2s 6.4s 12.8s 25.6s 30s 30s 30s 30s 30s 30s 30s 30s 30s"
		if want := grown + " 1s 0s 100ms 200ms 400ms 800ms 1.6s 3.2s"; got != want {
			t.Errorf("waited %s\n  want %s", got, want)
		}
	})
}

func TestWorkerKilledFromOutsideIsNoCrashLoop(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		for i := range 100 {
			go b.process(fmt.Sprintf("0.%d", i+1)).die(killed, nil)
			b.serves(fmt.Sprintf("0.%d", i+2))
		}
	})
}

func TestForkThatFailsIsTriedAgainLater(t *testing.T) {
	for _, err := range []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		inLab(t, 1, func(t *testing.T, b *lab) {
			b.run()
			b.forkFails(err)
			b.forget()
			go b.process("0.1").die(failed, nil)
			time.Sleep(250 * time.Millisecond)
			b.expect("no fork 0", "no fork 0")
			b.forkFails(nil)
			time.Sleep(time.Second)
			b.serves("0.2")
		})
	}
}

// forkFails has forks for slot 0 fail with err.
func (b *lab) forkFails(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forkErr = err
}

// However long it lasts, however many workers are missing and however often
// they are tried, there is one line when it begins, and one when it is over.
func TestForksThatFailAreToldOnce(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		var text bytes.Buffer
		b.ErrorLog = log.New(&text, "", 0)
		said := func(want string) {
			t.Helper()
			b.wait()
			if got := text.String(); got != want {
				t.Errorf("the log has %q, want %q", got, want)
			}
			text.Reset()
		}
		b.run()
		b.forkAll = true
		b.forkFails(syscall.EAGAIN)
		go b.process("0.1").die(failed, nil)
		b.wait()
		b.Spawn(1000)
		time.Sleep(time.Hour)
		said("cluster: starting worker 0: resource temporarily unavailable; trying again\n")
		b.mu.Lock()
		if n := len(b.deeds); n < 100 || n > 150 { // one in 30s for all of them
			t.Errorf("%d attempts in an hour", n)
		}
		b.mu.Unlock()
		if err := b.RestartWorkers(); !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("RestartWorkers: %v", err)
		}
		b.Remove(900)
		said("")
		b.forkFails(nil)
		time.Sleep(time.Minute)
		said("cluster: no worker waits to be started any more\n")
		if n := len(strings.Fields(b.serving())); n != 101 {
			t.Errorf("%d workers serve", n)
		}
		b.forkFails(syscall.EMFILE)
		if err := b.RestartWorkers(); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("RestartWorkers: %v", err)
		}
		b.Spawn(1)
		b.wait()
		b.Remove(1)
		said("cluster: starting worker 101: too many open files; trying again\ncluster: no worker waits to be started any more\n")
	})
}

func TestShutdownDoesNotWaitForBackOff(t *testing.T) {
	for _, shutdown := range []func(*lab) error{
		func(b *lab) error { return b.Close() },
		func(b *lab) error { return b.Destroy() },
	} {
		inLab(t, 1, func(t *testing.T, b *lab) {
			b.run()
			b.lives(crashing)
			go b.process("0.1").die(failed, nil)
			time.Sleep(5 * time.Minute)
			b.wait()
			if n := len(b.Children()); n != 0 {
				t.Fatalf("%d workers, want to be in a wait", n)
			}
			began := time.Now()
			if err := shutdown(b); err != nil {
				t.Error(err)
			}
			b.Wait()
			if d := since(began); d > 0 {
				t.Errorf("it took %v", d)
			}
			b.forget()
			time.Sleep(time.Hour)
			b.expect()
		})
	}
}

func TestManySpacedCrashesNeverStopTheMaster(t *testing.T) {
	const crashes = 10_000
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.lives(func(p *fake) {
			p.ready()
			time.Sleep(time.Hour)
			p.die(failed, nil)
		})
		b.run()
		time.Sleep(crashes*time.Hour + time.Minute)
		b.wait()
		b.mu.Lock()
		n := len(b.fakes)
		b.mu.Unlock()
		if n != crashes+1 || b.State() != Active {
			t.Errorf("%d workers in %d hours, and State %v", n, crashes, b.State())
		}
	})
}

func TestFirstStartThatFailsIsAnError(t *testing.T) {
	oops := errors.New("oops")
	tests := []struct {
		name  string
		life  func(*fake)
		fork  error
		takes time.Duration
		forks int
		want  StartError
	}{
		{"three deaths in a slot", crashing, nil, 100 * time.Millisecond, 2 + 3, StartError{ProcessState: failed}},
		{"three exceptions in a slot", func(p *fake) { p.die(failed, oops) }, nil, 100 * time.Millisecond, 2 + 3, StartError{ProcessState: failed, Err: oops}},
		{"no fork", nil, syscall.EAGAIN, 110 * time.Millisecond, 0, StartError{Err: syscall.EAGAIN}},
		{"it tells why", func(p *fake) {
			p.b.s.post(event{kind: workerFailed, w: p.w, err: oops})
			p.die(failed, nil)
		}, nil, 0, 2, StartError{ProcessState: failed, Err: oops}},
		{"it tells why, and hangs", func(p *fake) {
			p.b.s.post(event{kind: workerFailed, w: p.w, err: oops})
		}, nil, time.Second, 2, StartError{ProcessState: killed, Err: oops}},
		{"never ready", never, nil, time.Minute, 2, StartError{ProcessState: killed, Err: errors.New("not ready after 1m0s")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inLab(t, 2, func(t *testing.T, b *lab) {
				good := (*fake).ready
				b.lives(func(p *fake) { // slot 1 does well
					if life := tt.life; p.w.ID == 0 {
						life(p)
					} else {
						good(p)
					}
				})
				b.forkErr = tt.fork
				began := time.Now()
				b.run()
				err := b.Wait()
				var se *StartError
				if !errors.As(err, &se) {
					t.Fatalf("the outcome is %v, want a *StartError", err)
				}
				if se.ID != 0 || se.ProcessState != tt.want.ProcessState || fmt.Sprint(se.Err) != fmt.Sprint(tt.want.Err) {
					t.Errorf("the outcome is %+v, want %+v", se, tt.want)
				}
				if d := since(began); d > tt.takes {
					t.Errorf("it took %v, want %v", d, tt.takes)
				}
				if tt.forks > 0 && len(b.fakes) > tt.forks {
					t.Errorf("%d workers were forked, want at most %d", len(b.fakes), tt.forks)
				}
				if len(b.Children()) > 0 {
					t.Error("workers are left behind")
				}
			})
		})
	}
}

func TestStartErrorTellsStatusAndReason(t *testing.T) {
	for _, tt := range []struct {
		err  StartError
		want string
	}{
		{StartError{ID: 3}, "cluster: worker 3 did not become ready"},
		{StartError{ProcessState: failed}, "cluster: worker 0 did not become ready: exit status 1"},
		{StartError{ProcessState: killed, Err: errors.New("oops")}, "cluster: worker 0 did not become ready: signal: killed: oops"},
		{StartError{Err: syscall.EAGAIN}, "cluster: worker 0 did not become ready: " + syscall.EAGAIN.Error()},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if tt.err.Unwrap() != tt.err.Err {
			t.Errorf("%q doesn't unwrap", tt.want)
		}
	}
}

func TestWorkerThatStumblesAtFirstStartIsGivenAnotherChance(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		n := 0
		b.lives(func(p *fake) {
			if n++; n < giveUp {
				p.die(failed, nil)
			} else {
				p.ready()
			}
		})
		b.run()
		<-b.s.ready
		b.serves("0.3")
	})
}

func TestWorkerThatDoesNotBecomeReadyInTimeIsKilledAndReplaced(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		b.s.do(func() error { b.s.restartTimeout = 10 * time.Second; return nil })
		b.lives(never)
		go b.process("0.1").die(failed, nil)
		b.forget()
		time.Sleep(9 * time.Second)
		b.expect()
		b.lives((*fake).ready)
		time.Sleep(1100 * time.Millisecond)
		b.expect("killed 0.2", "fork 0.3")
		b.called("timeout 0 10s", "killed 0", "worker 0", "connected 0")
	})
}

func TestWorkerThatDoesNotDrainInTimeIsKilled(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.run()
		b.process("1.1").setDeaf()
		b.forget()
		if err := b.Remove(1); err != nil {
			t.Fatal(err)
		}
		b.called("removed 1")
		time.Sleep(59 * time.Second)
		b.expect("drain 1.1")
		time.Sleep(time.Second)
		b.expect("killed 1.1")
		b.called("timeout 1 1m0s", "killed 1")
		b.serves("0.1")
	})
}

func TestSpawnTakesTheLowestFreeIdsAndRemoveTheHighest(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.run()
		b.forget()
		b.Spawn(2)
		b.expect("fork 2.1", "fork 3.1")
		b.Remove(3)
		b.expect("drain 3.1", "drain 2.1", "drain 1.1")
		b.Spawn(1)
		b.expect("fork 1.2")
		b.Spawn(0)
		b.Remove(0)
		b.expect()
		b.serves("0.1 1.2")

		b.called("worker 2", "worker 3", "connected 2", "connected 3", "removed 3", "removed 2", "removed 1",
			"killed 1", "killed 2", "killed 3", "worker 1", "connected 1")
		for _, err := range []error{b.Remove(3), b.Remove(-1), b.Spawn(-1)} {
			if err == nil {
				t.Error("a number of workers that can't be is no error")
			}
		}
		b.expect()
		b.serves("0.1 1.2")

		b.Remove(2, syscall.SIGTERM)
		b.expect("terminated 1.2", "terminated 0.1")
		if b.State() != Active {
			t.Errorf("without workers the State is %v", b.State())
		}
		if err := b.RestartWorkers(); err != nil {
			t.Errorf("RestartWorkers of none: %v", err)
		}
		b.Spawn(1)
		b.serves("0.2")
	})
}

func TestRemovedWorkersStayRemoved(t *testing.T) {
	inLab(t, 3, func(t *testing.T, b *lab) {
		b.run()
		b.lives(crashing)
		go b.process("1.1").die(failed, nil) // waits to try again
		go b.process("2.1").die(failed, nil)
		time.Sleep(time.Minute)
		b.lives((*fake).ready)
		b.Remove(2)
		b.forget()
		time.Sleep(time.Hour)
		b.expect()
		b.serves("0.1")
	})
}

func TestRemoveOfAWorkerThatKeepsOthersWaitingMakesTheClusterReady(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.lives(func(p *fake) {
			if p.w.ID == 0 {
				p.ready()
			}
		})
		b.run()
		b.Remove(1)
		b.expect("fork 0.1", "fork 1.1", "drain 1.1")
		select {
		case <-b.s.ready:
		default:
			t.Error("all workers there are serve, but the cluster isn't ready")
		}
	})
}

func TestNoMoreWorkersThanTheLimitStartAtOnce(t *testing.T) {
	check := func(t *testing.T, b *lab, limit int) {
		t.Helper()
		b.wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.most != limit {
			t.Errorf("%d workers were starting at once, want %d", b.most, limit)
		}
		b.most = b.starting
	}
	inLab(t, 9, func(t *testing.T, b *lab) {
		b.s.limit = 2
		b.lives(after(time.Second))
		b.run()
		<-b.s.ready
		check(t, b, 2)
		if n := len(b.fakes); n != 9 {
			t.Errorf("%d workers, want 9", n)
		}
		b.Spawn(4)
		time.Sleep(time.Minute)
		check(t, b, 2)
		if err := b.RestartWorkers(); err != nil {
			t.Error(err)
		}
		check(t, b, 2)
		b.serves("0.2 1.2 2.2 3.2 4.2 5.2 6.2 7.2 8.2 9.2 10.2 11.2 12.2")
	})
	t.Run("nor those that are tried again", func(t *testing.T) {
		inLab(t, 3, func(t *testing.T, b *lab) {
			b.s.limit = 1
			b.lives(func(p *fake) {
				time.Sleep(time.Second)
				if p.name == "0.1" || p.name == "0.2" {
					p.die(failed, nil)
				} else {
					p.ready()
				}
			})
			b.run()
			<-b.s.ready
			check(t, b, 1)
			b.expect("fork 0.1", "fork 0.2", "fork 1.1", "fork 2.1", "fork 0.3")
		})
	})
	t.Run("and one removed before its turn keeps none waiting", func(t *testing.T) {
		inLab(t, 2, func(t *testing.T, b *lab) {
			b.s.limit = 1
			b.lives(after(time.Second))
			b.run()
			b.Remove(1)
			b.Spawn(1)
			time.Sleep(time.Minute)
			b.serves("0.1 1.1")
			check(t, b, 1)
		})
	})
}

func TestRollingRestart(t *testing.T) {
	roll := func(name string, workers int, f func(*testing.T, *lab)) {
		t.Run(name, func(t *testing.T) {
			inLab(t, workers, func(t *testing.T, b *lab) {
				b.run()
				b.s.do(func() error { b.s.limit = 2; return nil })
				b.forget()
				f(t, b)
			})
		})
	}

	roll("tells a worker to drain when its successor is ready", 3, func(t *testing.T, b *lab) {
		b.lives(after(time.Second))
		err := begin(func() error { return b.RestartWorkers() })
		b.expect("fork 0.2", "fork 1.2")
		b.serves("0.1 1.1 2.1")
		time.Sleep(time.Second)
		b.expect("drain 0.1", "fork 2.2", "drain 1.1")
		b.serves("0.2 1.2 2.1")
		waits(t, err)
		time.Sleep(time.Second)
		b.expect("drain 2.1")
		b.serves("0.2 1.2 2.2")
		if err := returned(t, err); err != nil {
			t.Error(err)
		}
	})

	roll("sends the signal that it was given", 2, func(t *testing.T, b *lab) {
		if err := b.RestartWorkers(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		b.expect("fork 0.2", "fork 1.2", "terminated 0.1", "terminated 1.1")
	})

	roll("does not wait for the old workers to drain", 1, func(t *testing.T, b *lab) {
		b.process("0.1").setDeaf()
		for range 3 {
			if err := b.RestartWorkers(); err != nil {
				t.Error(err)
			}
		}
		b.serves("0.4")
		if n := len(b.Children()); n != 2 {
			t.Errorf("%d workers are left, want the one that drains and the last", n)
		}
		time.Sleep(time.Minute)
		b.expect("fork 0.2", "drain 0.1", "fork 0.3", "drain 0.2", "fork 0.4", "drain 0.3", "killed 0.1")
	})

	roll("stops at the first failure and leaves the others alone", 5, func(t *testing.T, b *lab) {
		b.lives(func(p *fake) {
			switch p.name {
			case "1.2":
				time.Sleep(3 * time.Second)
				p.die(failed, errors.New("oops"))
			case "0.2":
				after(time.Second)(p)
			case "2.2":
				// still starting when 1.2 fails
			}
		})
		err := begin(func() error { return b.RestartWorkers() })
		time.Sleep(5 * time.Second)
		b.expect("fork 0.2", "fork 1.2", "drain 0.1", "fork 2.2", "drain 2.2")
		b.serves("0.2 1.1 2.1 3.1 4.1")
		var se *StartError
		if err := returned(t, err); !errors.As(err, &se) || se.ID != 1 || se.ProcessState != failed {
			t.Errorf("it returned %v", err)
		}
		time.Sleep(time.Hour)
		b.expect()
		b.lives((*fake).ready)
		if err := b.RestartWorkers(); err != nil {
			t.Errorf("the next one: %v", err)
		}
		b.serves("0.3 1.3 2.3 3.2 4.2")
	})

	roll("fails if a successor is never ready", 1, func(t *testing.T, b *lab) {
		b.lives(never)
		err := begin(func() error { return b.RestartWorkers() })
		time.Sleep(time.Minute)
		b.expect("fork 0.2", "killed 0.2")
		b.serves("0.1")
		if err := returned(t, err); err == nil {
			t.Error("no error")
		}
	})

	roll("fails if there is no fork", 2, func(t *testing.T, b *lab) {
		b.mu.Lock()
		b.forkErr = syscall.EAGAIN
		b.mu.Unlock()
		if err := b.RestartWorkers(); !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("it returned %v", err)
		}
		b.expect("no fork 0")
		b.serves("0.1 1.1")
	})

	roll("needs no predecessor", 2, func(t *testing.T, b *lab) {
		b.lives(after(time.Second))
		err := begin(func() error { return b.RestartWorkers() })
		go b.process("0.1").die(killed, nil)
		b.expect("fork 0.2", "fork 1.2") // 0.2 takes its place
		time.Sleep(time.Second)
		b.expect("drain 1.1")
		b.serves("0.2 1.2")
		if err := returned(t, err); err != nil {
			t.Error(err)
		}
	})

	roll("replaces a worker that waits to try again", 2, func(t *testing.T, b *lab) {
		b.lives(crashing)
		go b.process("0.1").die(failed, nil)
		time.Sleep(time.Minute)
		b.lives((*fake).ready)
		b.forget()
		if err := b.RestartWorkers(); err != nil {
			t.Error(err)
		}
		b.wait()
		if got := len(strings.Fields(b.serving())); got != 2 {
			t.Errorf("%d workers serve, want 2", got)
		}
		b.forget()
		time.Sleep(time.Hour)
		b.expect()
	})

	roll("replaces a worker whose predecessor and successor both die", 1, func(t *testing.T, b *lab) {
		b.lives(never)
		err := begin(func() error { return b.RestartWorkers() })
		go b.process("0.1").die(killed, nil)
		b.wait()
		b.lives((*fake).ready)
		go b.process("0.2").die(failed, nil)
		if err := returned(t, err); err == nil {
			t.Error("no error")
		}
		b.expect("fork 0.2", "fork 0.3")
		b.serves("0.3")
	})

	roll("goes on without workers that are removed", 4, func(t *testing.T, b *lab) {
		b.lives(after(time.Second))
		err := begin(func() error { return b.RestartWorkers() })
		b.Remove(1) // not begun
		b.expect("fork 0.2", "fork 1.2", "drain 3.1")
		b.Remove(2) // one not begun, one under way
		b.expect("drain 2.1", "drain 1.2", "drain 1.1")
		time.Sleep(time.Second)
		b.expect("drain 0.1")
		if err := returned(t, err); err != nil {
			t.Error(err)
		}
		b.serves("0.2")
	})

	roll("is told to hooks when it is one of all workers", 2, func(t *testing.T, b *lab) {
		told := func(want ...string) {
			t.Helper()
			b.wait()
			b.mu.Lock()
			b.calls = slices.DeleteFunc(b.calls, func(call string) bool { return !strings.Contains(call, "restart") })
			b.mu.Unlock()
			b.called(want...)
		}
		b.lives(after(time.Second))
		begin(func() error { return b.RestartWorkers() })
		told("restarting workers")
		begin(func() error { return b.RestartWorkers() })
		told()
		time.Sleep(time.Second)
		told("workers restarted true", "restarting workers")
		time.Sleep(time.Second)
		told("workers restarted true")
		replaced := begin(func() error { return b.Replace(1) })
		time.Sleep(time.Second)
		returned(t, replaced)
		told()
		b.lives(never)
		begin(func() error { return b.RestartWorkers() })
		told("restarting workers")
		go b.process("0.4").die(failed, nil)
		told("workers restarted false")
	})

	roll("is ended by a graceful shutdown", 3, func(t *testing.T, b *lab) {
		b.lives(never)
		first := begin(func() error { return b.RestartWorkers() })
		second := begin(func() error { return b.RestartWorkers() })
		closed := begin(func() error { return b.Close() })
		b.expect("fork 0.2", "fork 1.2", "quiesce", "drain last 0.1", "drain last 1.1", "drain last 2.1", "drain last 0.2", "drain last 1.2")
		for _, c := range []<-chan error{first, second} {
			if err := returned(t, c); !errors.Is(err, ErrNotRunning) {
				t.Errorf("it returned %v, want ErrNotRunning", err)
			}
		}
		if err := returned(t, closed); err != nil {
			t.Error(err)
		}
	})

	roll("is ended by a hard shutdown", 2, func(t *testing.T, b *lab) {
		b.lives(never)
		first := begin(func() error { return b.RestartWorkers() })
		second := begin(func() error { return b.Replace(1) })
		b.Destroy()
		for _, c := range []<-chan error{first, second} {
			if err := returned(t, c); !errors.Is(err, ErrNotRunning) {
				t.Errorf("it returned %v, want ErrNotRunning", err)
			}
		}
		b.expect("fork 0.2", "fork 1.2", "killed 0.1", "killed 1.1", "killed 0.2", "killed 1.2")
	})

	roll("is one more for all that ask meanwhile", 2, func(t *testing.T, b *lab) {
		b.lives(after(time.Second))
		var all []<-chan error
		for range 5 {
			all = append(all, begin(func() error { return b.RestartWorkers() }))
		}
		all = append(all, begin(func() error { return b.Replace(1) }))
		time.Sleep(time.Second)
		if err := returned(t, all[0]); err != nil {
			t.Error(err)
		}
		for _, c := range all[1:] {
			waits(t, c)
		}
		time.Sleep(time.Second)
		for _, c := range all[1:] {
			if err := returned(t, c); err != nil {
				t.Error(err)
			}
		}
		b.serves("0.3 1.3")
	})

	roll("that has failed hands over to the next one", 1, func(t *testing.T, b *lab) {
		b.lives(never)
		first := begin(func() error { return b.RestartWorkers() })
		b.lives(after(time.Second))
		second := begin(func() error { return b.RestartWorkers() })
		go b.process("0.2").die(failed, nil)
		if err := returned(t, first); err == nil {
			t.Error("the first is no error")
		}
		b.expect("fork 0.2", "fork 0.3")
		b.serves("0.1")
		time.Sleep(time.Second)
		b.expect("drain 0.1")
		if err := returned(t, second); err != nil {
			t.Errorf("the second: %v", err)
		}
		b.serves("0.3")
		if n := len(b.Children()); n != 1 {
			t.Errorf("%d workers are left, want 1", n)
		}
	})

	roll("that has failed in one of many hands over to the next one", 3, func(t *testing.T, b *lab) {
		b.lives(never)
		first := begin(func() error { return b.RestartWorkers() })
		b.lives(after(time.Second))
		second := begin(func() error { return b.RestartWorkers() })
		go b.process("0.2").die(failed, nil)
		if err := returned(t, first); err == nil {
			t.Error("the first is no error")
		}
		time.Sleep(3 * time.Second)
		if err := returned(t, second); err != nil {
			t.Errorf("the second: %v", err)
		}
		b.serves("0.3 1.3 2.2")
		if n := len(b.Children()); n != 3 {
			t.Errorf("%d workers are left, want 3", n)
		}
	})

	roll("of one worker replaces that", 3, func(t *testing.T, b *lab) {
		if err := b.Replace(1); err != nil {
			t.Error(err)
		}
		b.expect("fork 1.2", "drain 1.1")
		if err := b.Replace(3); err == nil {
			t.Error("Replace of a worker that isn't there is no error")
		}
		b.expect()
	})

	roll("survives a hung predecessor", 1, func(t *testing.T, b *lab) {
		b.lives(after(time.Second))
		err := begin(func() error { return b.RestartWorkers() })
		b.s.do(func() error {
			for range 4 {
				b.s.handle(event{kind: tick})
			}
			return nil
		})
		b.expect("fork 0.2", "abort 0.1")
		time.Sleep(time.Second)
		b.serves("0.2")
		if err := returned(t, err); err != nil {
			t.Error(err)
		}
	})
}

func TestSilentWorkerIsAbortedAndReplacedAtOnce(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		beating := func(p *fake) {
			p.ready()
			for !p.isDead() {
				time.Sleep(9 * time.Second)
				p.tell(workerBeat)
			}
		}
		b.lives(func(p *fake) {
			if p.name == "1.1" {
				p.ready()
			} else {
				beating(p)
			}
		})
		b.s.heartbeat = 30 * time.Second
		b.run()
		b.forget()
		time.Sleep(31 * time.Second)
		b.expect()
		time.Sleep(10 * time.Second)
		b.expect("abort 1.1", "fork 1.2")
		b.called("timeout 1 30s", "worker 1", "connected 1", "exception 1 SIGABRT", "killed 1")
		time.Sleep(time.Hour)
		b.expect()
		b.serves("0.1 1.2")
	})
}

func (p *fake) isDead() bool {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	return p.dead
}

func TestNobodyIsHungWhenTheMasterWasSuspendedToo(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run() // the test ticks, in place of a ticker
		b.forget()
		for range 10 {
			for range 2 {
				b.s.post(event{kind: tick})
			}
			time.Sleep(24 * time.Hour) // suspended: no ticks, no beats
			b.s.post(event{kind: tick})
			b.process("0.1").tell(workerBeat)
		}
		b.expect()
		for range 4 {
			b.s.post(event{kind: tick})
		}
		b.expect("abort 0.1", "fork 0.2")
	})
}

func TestHeartbeatCanBeOff(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		b.forget()
		time.Sleep(24 * time.Hour)
		b.expect()
	})
}

func TestGracefulShutdownCanBecomeHard(t *testing.T) {
	tests := map[string]func(*lab) error{
		"by Destroy": func(b *lab) error {
			closed := begin(b.Close)
			if err := b.Destroy(); err != nil {
				return err
			}
			return returned(b.t, closed)
		},
		"by the end of a context": func(b *lab) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := b.Shutdown(ctx); err != context.DeadlineExceeded {
				return fmt.Errorf("Shutdown: %v", err)
			}
			return nil
		},
	}
	for name, shutdown := range tests {
		t.Run(name, func(t *testing.T) {
			inLab(t, 2, func(t *testing.T, b *lab) {
				b.run()
				b.process("0.1").setDeaf()
				b.forget()
				if err := shutdown(b); err != nil {
					t.Error(err)
				}
				if err := b.Wait(); err != nil {
					t.Error(err)
				}
				b.expect("quiesce", "drain last 0.1", "drain last 1.1", "killed 0.1")
				b.called("closing", "kill quit", "killed 1", "kill killed", "killed 0", "close")
				if b.State() != HardShutdown {
					t.Errorf("State is %v", b.State())
				}
			})
		})
	}
}

func TestHardShutdownStaysHard(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		b.s.do(func() error {
			b.s.shutdown(HardShutdown)
			b.s.shutdown(GracefulShutdown)
			return nil
		})
		b.expect("fork 0.1", "killed 0.1")
		if b.State() != HardShutdown {
			t.Errorf("State is %v", b.State())
		}
	})
}

func TestGracefulShutdownEndsWithTimeout(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.run()
		b.process("0.1").setDeaf()
		began := time.Now()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if d := since(began); d != time.Minute {
			t.Errorf("it took %v, want Timeout", d)
		}
		b.expect("fork 0.1", "fork 1.1", "quiesce", "drain last 0.1", "drain last 1.1", "killed 0.1")
	})
}

func TestShutdownWaitsForWorkersThatDrainAlready(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.run()
		p := b.process("1.1")
		p.setDeaf()
		b.Remove(1)
		b.forget()
		closed := begin(b.Close)
		waits(t, closed)
		b.expect("quiesce", "drain last 0.1", "drain last 1.1") // it must not hand over to 0.1 any more
		go p.die(exited, nil)
		if err := returned(t, closed); err != nil {
			t.Error(err)
		}
	})
}

func TestKillWithSIGQUITDrainsAndReplaces(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.lives(func(p *fake) { p.draining = 5 * time.Second; p.ready() })
		b.run()
		b.forget()
		if err := b.Kill(syscall.SIGQUIT); err != nil {
			t.Error(err)
		}
		b.wait()
		b.serves("0.2 1.2")
		if n := len(b.Children()); n != 4 {
			t.Errorf("%d workers, want 2 that drain and 2 that serve", n)
		}
		time.Sleep(10 * time.Second)
		b.serves("0.2 1.2")
		if n := len(b.Children()); n != 2 {
			t.Errorf("%d workers, want 2", n)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		slices.Sort(b.deeds)
		if got := strings.Join(b.deeds, ", "); got != "drain 0.1, drain 1.1, fork 0.2, fork 1.2" {
			t.Errorf("done: %s", got)
		}
	})
}

func TestKillSendsSIGTERMByDefault(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		b.forget()
		if err := b.Kill(); err != nil {
			t.Error(err)
		}
		b.expect("terminated 0.1", "fork 0.2")
		b.called("kill terminated", "killed 0", "worker 0", "connected 0")
	})
}

func TestMessagesReachTheWorkerAndTheHook(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.run()
		w := b.Children()[0]
		b.forget()
		if err := w.Send("hello", 1); err != nil {
			t.Error(err)
		}
		if err := w.Send("hello", func() {}); err == nil {
			t.Error("a function can be sent")
		}
		b.expect("message 0.1")
		b.s.post(event{kind: workerMessage, w: w, name: "ahoy", data: json.RawMessage(`"x"`)})
		b.called(`message 0 ahoy "x"`)
		if err := b.Send("hello", 1); err == nil {
			t.Error("Master.Send in the master is no error")
		}
	})
}

func TestChildrenIsASnapshotOrderedById(t *testing.T) {
	inLab(t, 3, func(t *testing.T, b *lab) {
		if b.Children() != nil {
			t.Error("there are workers before the start")
		}
		b.run()
		go b.process("0.1").die(killed, nil)
		b.wait()
		before := b.Children()
		b.Remove(2)
		b.wait()
		for i, w := range before {
			if w == nil || w.ID != i || w.Pid == 0 || w.Started.IsZero() {
				t.Errorf("worker %d is %+v", i, w)
			}
		}
		before[0] = nil
		if now := b.Children(); len(now) != 1 || now[0] == nil {
			t.Error("a change of the slice has changed the next")
		}
	})
}

func TestSlowHookDelaysNoMethod(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		release := make(chan struct{})
		b.On(Hooks{WorkerConnected: func(*Worker) { <-release }})
		b.run()
		began := time.Now()
		for _, f := range []func() error{
			func() error { return b.Spawn(1) },
			func() error { return b.Remove(1) },
			func() error { return b.RestartWorkers() },
			func() error { return b.Replace(0) },
			func() error { return b.Kill() },
			func() error { return b.Close() },
		} {
			if err := f(); err != nil {
				t.Error(err)
			}
			b.wait()
		}
		if d := since(began); d > 0 {
			t.Errorf("methods took %v", d)
		}
		b.called("worker 0", "worker 1", "connected 0")
		close(release)
		b.Wait()
		b.wait()
		if n := len(b.calls); b.calls[n-1] != "close" {
			t.Errorf("hooks were lost: %v", b.calls)
		}
	})
}

func TestHookMayCallAnyMethod(t *testing.T) {
	inLab(t, 1, func(t *testing.T, b *lab) {
		b.On(Hooks{Listening: func() {
			for _, err := range []error{b.Spawn(1), b.RestartWorkers(), b.Replace(0), b.Remove(1), b.Kill(), b.Close()} {
				if err != nil {
					t.Error(err)
				}
			}
			b.On(Hooks{Close: func() { b.did("late hook") }})
		}})
		b.run()
		if err := b.Wait(); err != nil {
			t.Error(err)
		}
		if n := len(b.deeds); b.deeds[n-1] != "late hook" {
			t.Errorf("done: %v", b.deeds)
		}
	})
}

func TestHooksAreCalledInOrderAndPanicsSurvived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		var got []string
		q := hookQueue{logf: func(format string, args ...any) { fmt.Fprintf(&logged, format, args...) }}
		q.add(Hooks{Closing: func() { got = append(got, "a") }})
		q.add(Hooks{Closing: func() { panic("this hook is broken") }})
		q.add(Hooks{})
		q.add(Hooks{Closing: func() { got = append(got, "b") }})
		for range 2 {
			q.fire(func(h *Hooks) {
				if h.Closing != nil {
					h.Closing()
				}
			})
		}
		q.flush(time.Minute)
		if s := strings.Join(got, " "); s != "a b a b" {
			t.Errorf("called %s", s)
		}
		if s := logged.String(); !strings.Contains(s, "this hook is broken") || !strings.Contains(s, "supervisor_test.go") {
			t.Errorf("the log has no panic or no stack: %s", s)
		}
	})
}

func TestFlushWaitsForHooksButNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q hookQueue
		q.flush(time.Hour) // there are none
		took := func(d time.Duration) time.Duration {
			began := time.Now()
			q.flush(d)
			return time.Since(began)
		}
		q.fire(func(*Hooks) { time.Sleep(time.Second) })
		q.fire(func(*Hooks) { time.Sleep(time.Second) })
		if d := took(time.Minute); d != 2*time.Second {
			t.Errorf("flush took %v, want 2s", d)
		}
		release := make(chan struct{})
		q.fire(func(*Hooks) { <-release })
		if d := took(time.Minute); d != time.Minute {
			t.Errorf("flush took %v, want 1m", d)
		}
		close(release)
		if d := took(time.Minute); d != 0 {
			t.Errorf("flush took %v, want 0", d)
		}
	})
}

// Whoever gave up waiting has told of it, and what a later hook did then would
// never be undone.
func TestNoHookIsCalledWhenNobodyWaitsAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Master{RestartTimeout: time.Minute}
		release, called := make(chan struct{}), false
		m.On(Hooks{Restarting: func(Values) { <-release }})
		m.On(Hooks{Restarting: func(Values) { called = true }})
		if err := m.bounded("Restarting", nil, func(h *Hooks) error { h.Restarting(nil); return nil }); err == nil {
			t.Error("no error after a minute")
		}
		close(release)
		synctest.Wait()
		if called {
			t.Error("a hook was called after that")
		}
	})
}

func TestSlotsWithoutAReadyWorkerAreCovered(t *testing.T) {
	inLab(t, 3, func(t *testing.T, b *lab) {
		b.s.apart, b.s.covers = true, make([]*Worker, 1)
		b.lives(after(time.Second))
		b.run()
		<-b.s.ready
		time.Sleep(time.Hour)
		// Until the first of them is ready there is nobody.
		b.expect("fork 0.1", "fork 1.1", "fork 2.1", "cover 0.1 1 true", "cover 0.1 2 true",
			"cover 0.1 1 false", "cover 0.1 2 false")
		go b.process("1.1").die(killed, nil)
		b.expect("fork 1.2", "cover 2.1 1 true")
		go b.process("2.1").die(killed, nil)
		b.expect("fork 2.2", "cover 0.1 1 true", "cover 0.1 2 true")
		time.Sleep(time.Hour)
		b.expect("cover 0.1 1 false", "cover 0.1 2 false")

		b.Remove(1)
		b.expect("drain 2.2", "cover 0.1 2 true")
		go b.RestartWorkers() // the slot that is gone is passed on
		b.expect("fork 0.2", "fork 1.3")
		time.Sleep(time.Hour)
		b.expect("drain 0.1", "cover 1.2 2 true", "drain 1.2", "cover 0.2 2 true")
		b.Spawn(1)
		b.expect("fork 2.3")
		time.Sleep(time.Hour)
		b.expect("cover 0.2 2 false")
	})
}

// Sockets that an older version had made for its slots.
func TestSocketsOfNoSlotAreCovered(t *testing.T) {
	inLab(t, 2, func(t *testing.T, b *lab) {
		b.s.covers, b.s.waiting = make([]*Worker, 3), true
		b.run()
		b.expect("fork 0.1", "fork 1.1")
		b.s.do(func() error {
			b.s.waiting = false
			return nil
		})
		b.expect("cover 1.1 1 true", "cover 0.1 2 true")
		go b.process("0.1").die(killed, nil)
		b.expect("fork 0.2", "cover 1.1 2 true")
	})
}
