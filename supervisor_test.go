//go:build unix

package cluster

import (
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
	forkErr  error
	fakes    []*fake
	deeds    []string // what was done to processes, in order
	calls    []string // hooks that were called, in order
	starting int      // processes that are neither ready nor dead
	most     int      // the highest number of those, ever
}

// newLab returns a lab that has not begun.
func newLab(t *testing.T, workers int) *lab {
	b := &lab{t: t, Master: &Master{ErrorLog: log.New(io.Discard, "", 0)}, life: (*fake).ready}
	b.hooks.logf = b.logf
	b.s = &supervisor{
		launch:         b.launch,
		fire:           b.hooks.fire,
		logf:           b.logf,
		setState:       func(s State) { b.state.Store(int32(s)) },
		quiesce:        func() { b.did("quiesce") },
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
	})
	synctest.Wait()
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
	}
}

func (b *lab) launch(w *Worker, post func(event)) (process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.forkErr != nil {
		b.deeds = append(b.deeds, fmt.Sprintf("no fork %d", w.ID))
		return nil, b.forkErr
	}
	p := &fake{b: b, w: w, id: 100 + len(b.fakes), born: time.Now(), starting: true}
	n := 1
	for _, other := range b.fakes {
		if other.w.ID == w.ID {
			n++
		}
	}
	p.name = fmt.Sprintf("%d.%d", w.ID, n)
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

// wait waits until nothing more happens without time passing.
func (b *lab) wait() { b.t.Helper(); synctest.Wait() }

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
	synctest.Wait()
	return c
}

func waits(t *testing.T, c <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		t.Errorf("returned too early: %v", err)
	default:
	}
}

func returned(t *testing.T, c <-chan error) error {
	t.Helper()
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

func (p *fake) abort() {
	p.b.did("abort %s", p.name)
	go p.die(exited, &Exception{Message: "SIGABRT"})
}

// tell posts what a worker says.
func (p *fake) tell(kind eventKind) { p.b.s.post(event{kind: kind, w: p.w}) }

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
		{WorkerStarting, workerDraining, nothing, WorkerStarting},
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
