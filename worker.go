package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// A WorkerState is where a worker process stands. It only moves forward.
type WorkerState int32

const (
	// WorkerStarting: the process has been forked, and has not told yet that
	// it could accept. It becomes ready, drains, or dies.
	WorkerStarting WorkerState = iota

	// WorkerReady: the process has told that it could accept. It serves
	// until it drains or dies.
	WorkerReady

	// WorkerDraining: the process has been told to finish, or has told that
	// it does. It no longer counts as one of the workers: its slot may have
	// a successor. It dies.
	WorkerDraining

	// WorkerDead: the process has been reaped. Final.
	WorkerDead
)

// String returns the state in lower case: "starting", "ready", "draining" or
// "dead".
func (s WorkerState) String() string {
	switch s {
	case WorkerStarting:
		return "starting"
	case WorkerReady:
		return "ready"
	case WorkerDraining:
		return "draining"
	case WorkerDead:
		return "dead"
	}
	return fmt.Sprintf("WorkerState(%d)", int32(s))
}

// A Worker is one worker process, as the master sees it. Its methods may be
// called from any goroutine of the master.
type Worker struct {
	ID      int       // of its slot: 0 to Workers-1 at first, and its successors have it too
	Pid     int       // process id
	Started time.Time // when it was forked

	// ProcessState tells how the process has died. It is set before
	// Hooks.WorkerKilled is called, and must not be read earlier.
	ProcessState *os.ProcessState

	state atomic.Int32
	proc  process

	// The following belong to the supervisor.
	slot    *slot       // nil once it drains: the slot has no part in it any more
	roll    *roll       // the rolling restart that has started it, or nil
	ready   time.Time   // when it became so
	timer   *time.Timer // of its present state, or nil
	due     time.Time   // when the timer ends
	silent  int         // ticks since its last sign of life
	failure error       // what it has told before giving up
}

// State returns the worker's state.
//
//go:noinline
func (w *Worker) State() WorkerState { return WorkerState(w.state.Load()) }

// Kill sends sig to the worker's process. It returns os.ErrProcessDone if
// there is no such process any more.
//
// The master replaces a worker that dies or drains of it; Master.Remove is
// for having one fewer.
func (w *Worker) Kill(sig os.Signal) error {
	if w.State() == WorkerDead {
		return os.ErrProcessDone
	}
	return w.proc.signal(sig)
}

// Send sends v, as JSON, to the worker, which gets it as Hooks.Message. It
// doesn't wait. It returns an error if v can't be encoded, its encoding is
// longer than a mebibyte, or the worker is gone or reads no messages.
func (w *Worker) Send(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return errorf("cluster: message %q: %w", name, err)
	}
	return w.proc.message(name, data)
}

// A process is what the supervisor can do to a worker process. None of the
// methods waits. What becomes of the process is told as events.
type process interface {
	pid() int
	signal(os.Signal) error
	serve() error          // accept from now on, if it was told to wait
	drain(last bool) error // finish what is in flight, with last also what the kernel has queued
	message(name string, data json.RawMessage) error
	cover(slot int, begin bool) // accept from the socket of that slot, too
	reopen()                    // give it the files that its output goes to again, and call its hooks
	abort()                     // it hangs: have it dump its goroutines, then kill it
}
