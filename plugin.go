package cluster

import (
	"encoding/json"
	"os"
	"time"
)

// A Plugin adds to a Master before it starts: it sets fields, and registers
// Hooks with On. It runs in every process, master and workers; what must
// happen in the master alone goes in Hooks.Start. An error stops the start.
//
// A plugin with options is a function that returns a Plugin.
type Plugin func(*Master) error

// Hooks are functions that a Master calls when something happens. Any of
// them may be nil. Master.On registers Hooks, any number of times.
//
// Start and Restarting are called on the path of the caller that starts or
// restarts, with Master.RestartTimeout for all of them. They must not call
// Restart or Wait.
//
// All others are called one at a time, in the order in which things happened
// and for each event in the order of registration, in a goroutine of their
// own. The cluster doesn't wait for them: they may call any method of the
// Master but Wait. Only a new master hands over when its hooks up to Listening
// have returned, and a process ends when all have, or after Master.Timeout. A
// hook that takes long should start a goroutine.
//
// A hook that panics is logged, with its stack, and survived.
//
// The comments say in which process a hook is called. With Master.Inline the
// calling process is both.
type Hooks struct {
	// Start is called in the master when its sockets listen, before the
	// first worker is forked. An error stops the start.
	Start func() error

	// Worker is called in the master when a worker has been spawned.
	Worker func(w *Worker)

	// WorkerConnected is called in the master when a worker is ready.
	WorkerConnected func(w *Worker)

	// Listening is called in the master when the first workers are all
	// ready, and connections are served.
	Listening func()

	// Closing is called in the master when it starts to shut down, Close
	// when it has: no worker is left. Close is also called, and alone, when
	// a start has failed after Start hooks were called. ListenAndServe and
	// Wait return after Close, but wait for a stuck hook no longer than
	// Master.Timeout.
	//
	// Both are also called in a master that has been replaced by a restart,
	// where Master.Successor is not 0 and the cluster goes on, and Close in a
	// new master whose restart has failed, where it went on.
	Closing func()
	Close   func()

	// WorkerKilled is called in the master when a worker has died, for
	// whatever reason; w.ProcessState has it.
	WorkerKilled func(w *Worker)

	// WorkerException is called in the master, before WorkerKilled, when a
	// worker has died of a panic in any of its goroutines or of a fatal
	// error of the runtime; err is then an *Exception. It is also called
	// with the error that a worker's server has failed with.
	WorkerException func(w *Worker, err error)

	// WorkerTimeout is called in the master when a worker is about to be
	// killed for not having, after the given time, finished to drain
	// (Master.Timeout), become ready (Master.RestartTimeout) or given a
	// sign of life (Master.Heartbeat).
	WorkerTimeout func(w *Worker, after time.Duration)

	// WorkerWaiting is called in the master when a worker that drains waits
	// for connections to finish: at first, and every second.
	WorkerWaiting func(w *Worker, conns int)

	// WorkerRemoved is called in the master when a worker has been told to
	// drain because there should be one fewer.
	WorkerRemoved func(w *Worker)

	// Kill is called in the master when sig is sent to all workers. When
	// the master closes, that is SIGQUIT, and SIGKILL when it is destroyed.
	Kill func(sig os.Signal)

	// Restarting is called in the old master, on the path of whoever
	// restarts, before the new one is started. It puts into v what the new
	// master should know. It is given RestartTimeout.
	Restarting func(v Values)

	// Established is called in the new master when the old one has handed
	// over and begins to drain: from here on it is the master. In one that
	// has taken over from nobody it is not called: Listening is all.
	Established func()

	// Restart is called in the new master with those values when it is
	// established and the old one is gone, with all its workers; or, if it
	// is restarted itself before that, ahead of its own Restarting.
	Restart func(v Values)

	// RestartFailed is called in the old master when the new one has not
	// become ready, with the reason. Nothing has changed then.
	RestartFailed func(err error)

	// RestartingWorkers is called in the master when a rolling restart of
	// all workers begins, and WorkersRestarted when it has ended, with what
	// RestartWorkers returns. A call of Replace is none of them.
	RestartingWorkers func()
	WorkersRestarted  func(err error)

	// Reopen is called in master and workers on SIGUSR1: open log files anew.
	Reopen func()

	// Message is called in the master with what a worker has sent with
	// Master.Send, and in a worker, where w is nil, with what the master
	// has sent with Worker.Send.
	Message func(w *Worker, name string, data json.RawMessage)

	// Serving is called in a worker that is about to accept.
	Serving func()

	// Drained is called in a worker that serves no more. What it sends with
	// Master.Send still reaches the master. A worker of an abstract cluster
	// sees to its own end, and may be gone before that.
	Drained func()
}

// An Exception is the panic or the fatal error of the runtime that a worker
// has died of.
type Exception struct {
	Message string // first line or lines, as "panic: assignment to entry in nil map"; "fatal error in" a function
	Stack   []byte // all that the runtime has printed, the first 64 KiB of it
}

// Error returns the message.
func (e *Exception) Error() string { return e.Message }

// Values is a plugin's state on its way from one master to the next. All values
// of a restart may take up to a mebibyte, as JSON; with more it fails.
type Values map[string]json.RawMessage

// Set stores v, as JSON, under key.
func (v Values) Set(key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return errorf("cluster: value %q: %w", key, err)
	}
	v[key] = data
	return nil
}

// Get stores what is under key in the value that ptr points to. A key that
// is missing leaves it as it is.
func (v Values) Get(key string, ptr any) error {
	data, ok := v[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(data, ptr); err != nil {
		return errorf("cluster: value %q: %w", key, err)
	}
	return nil
}
