/*
Package recycle is a plugin that replaces workers before they have grown too
old or too large: a remedy against leaks that nobody has found yet.

	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(recycle.New(&recycle.Options{
		MaxMemory: 512 << 20,
		MaxAge:    24 * time.Hour,
	}))

A worker that exceeds a limit is replaced as Master.Replace does it: its
successor is ready before it drains. With a server of package handoff no request
fails; with a plain http.Server one may that meets its idle connection being
closed. One is replaced at a time, the one that is furthest over a limit first,
and the next one when that has drained and is gone: there is never more than one
process more than there are workers.

Workers that were started together would reach their limits together. So each
has limits of its own, somewhat lower than those that are set: see
Options.Jitter.

If a successor does not become ready, the worker stays. It is tried again, but
after pauses that grow from ten seconds to five minutes. While the cluster or
all its workers are being restarted nothing is replaced; a new master counts
anew, for workers that are new too.

Every replacement is said in the master's ErrorLog, with its reason.
*/
package recycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/resident"
)

// Options say when a worker is replaced. A limit that is 0 is none.
type Options struct {
	// MaxMemory is how much memory a worker may take, in bytes: its resident
	// set, as ps(1) shows it. Where there is no /proc it is what the
	// worker's Go runtime has got from the system and not given back.
	MaxMemory uint64

	// MaxAge is how long ago a worker may have been started.
	MaxAge time.Duration

	// MaxConns is how many connections a worker may have accepted, those
	// that were handed over to it included.
	MaxConns uint64

	// Jitter is by which part of itself, at most, a worker's limit is lower
	// than the one that is set: with 0.1, MaxAge of an hour is between 54 and
	// 60 minutes, different for each worker, and evenly spread. 0 is 0.1; a
	// negative value turns this off.
	Jitter float64

	// Interval is the time between two looks at the workers. 0 is a second.
	//
	// The pause after a successor has not become ready is ten Intervals at
	// first. No worker is replaced for its memory or its connections before
	// it is sixty Intervals old: with a limit that all workers exceed from
	// the start they would do nothing else.
	Interval time.Duration
}

// The times in Options.Interval's comment, in Intervals; and the longest pause.
const (
	firstPause   = 10
	leastAge     = 60
	longestPause = 5 * time.Minute
)

// New returns a plugin that replaces workers which exceed the limits of o. It
// does nothing if there are none, or if o is nil.
//
// Workers count their connections, and, where there is no /proc, their memory,
// and tell the master; those of another program (Master.Path) do so only if
// that has the plugin too. With Inline there is nothing to be replaced.
func New(o *Options) cluster.Plugin {
	return func(m *cluster.Master) error {
		r, err := newRecycler(m, o)
		if err != nil {
			return fmt.Errorf("recycle: %w", err)
		}
		switch {
		case r.MaxMemory == 0 && r.MaxAge == 0 && r.MaxConns == 0:
		case m.IsWorker() && m.IsMaster(): // Inline
		case m.IsWorker():
			m.On(cluster.Hooks{Serving: func() { go r.tellAlways() }})
		default:
			m.On(cluster.Hooks{
				Worker:            r.spawned,
				WorkerKilled:      r.killed,
				Message:           r.message,
				Listening:         r.listening,
				Established:       func() { go r.run() },
				Restarting:        func(cluster.Values) { r.set(&r.restarting, true) },
				RestartFailed:     func(error) { r.set(&r.restarting, false) },
				RestartingWorkers: func() { r.set(&r.rolling, true) },
				WorkersRestarted:  func(error) { r.set(&r.rolling, false) },
				Closing:           func() { close(r.stop) },
			})
		}
		return nil
	}
}

// A recycler is the plugin in one process.
type recycler struct {
	Options
	m    *cluster.Master
	stop chan struct{} // closed when the master begins to shut down

	mu         sync.Mutex // guards the following
	workers    map[*cluster.Worker]*worker
	spawns     int  // how many workers there have been
	restarting bool // the cluster
	rolling    bool // all its workers
}

// A worker is what the master knows of one.
type worker struct {
	limits Options // its own
	told   usage
}

// A usage is what a worker tells.
type usage struct {
	Conns  uint64 `json:"conns"`
	Memory uint64 `json:"memory,omitempty"` // where the master can't see it
}

// key names what workers send.
const key = "cluster.recycle"

func newRecycler(m *cluster.Master, o *Options) (*recycler, error) {
	r := &recycler{m: m, stop: make(chan struct{}), workers: make(map[*cluster.Worker]*worker)}
	if o != nil {
		r.Options = *o
	}
	switch {
	case r.MaxAge < 0:
		return nil, fmt.Errorf("the MaxAge is %v; it can't be negative", r.MaxAge)
	case r.Interval < 0:
		return nil, fmt.Errorf("the Interval is %v; it can't be negative", r.Interval)
	case r.Jitter >= 1 || math.IsNaN(r.Jitter):
		return nil, fmt.Errorf("the Jitter is %v; it is a part of the limits, less than 1", r.Jitter)
	case r.Jitter == 0:
		r.Jitter = 0.1
	case r.Jitter < 0:
		r.Jitter = 0
	}
	if r.Interval == 0 {
		r.Interval = time.Second
	}
	return r, nil
}

// limits returns the limits of the nth worker.
func (o Options) limits(n int) Options {
	// Multiples of the golden ratio, less their integer parts, lie as far
	// apart as they can, however many there are.
	_, part := math.Modf(float64(n) * math.Phi)
	f := 1 - o.Jitter*part
	o.MaxMemory = uint64(math.Ceil(f * float64(o.MaxMemory)))
	o.MaxAge = time.Duration(math.Ceil(f * float64(o.MaxAge)))
	o.MaxConns = uint64(math.Ceil(f * float64(o.MaxConns)))
	return o
}

// over returns by what factor a worker exceeds the limit that it exceeds most,
// and which one that is; less than 1 is none.
func (o Options) over(age time.Duration, u usage) (factor float64, why string) {
	exceeds := func(value, limit float64, format string, args ...any) {
		if limit > 0 && value/limit > factor {
			factor, why = value/limit, fmt.Sprintf(format, args...)
		}
	}
	exceeds(float64(age), float64(o.MaxAge), "it is %v old, its limit is %v", age.Round(time.Millisecond), o.MaxAge.Round(time.Millisecond))
	if age >= leastAge*o.Interval {
		exceeds(float64(u.Memory), float64(o.MaxMemory), "it takes %d bytes of memory, its limit is %d", u.Memory, o.MaxMemory)
		exceeds(float64(u.Conns), float64(o.MaxConns), "it has accepted %d connections, its limit is %d", u.Conns, o.MaxConns)
	}
	return factor, why
}

func (r *recycler) spawned(w *cluster.Worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers[w] = &worker{limits: r.limits(r.spawns)}
	r.spawns++
}

func (r *recycler) killed(w *cluster.Worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.workers, w)
}

func (r *recycler) message(w *cluster.Worker, name string, data json.RawMessage) {
	var u usage
	if w == nil || name != key || json.Unmarshal(data, &u) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.workers[w]; known != nil {
		known.told = u
	}
}

// listening is where the first master begins. A new one does so when it is
// established.
func (r *recycler) listening() {
	if r.m.Predecessor() == 0 {
		go r.run()
	}
}

func (r *recycler) set(flag *bool, value bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*flag = value
}

// run replaces workers, one at a time, until the master begins to shut down.
func (r *recycler) run() {
	t := time.NewTicker(r.Interval)
	defer t.Stop()
	var before *cluster.Worker // the last that was replaced
	var pause time.Duration
	var later time.Time // the end of a pause
	for {
		select {
		case <-r.stop:
			return
		case now := <-t.C:
			if now.Before(later) || before != nil && before.State() != cluster.WorkerDead {
				continue
			}
		}
		w, why := r.worst()
		if w == nil {
			continue
		}
		r.logf("recycle: replacing worker %d (pid %d): %s", w.ID, w.Pid, why)
		switch err := r.m.Replace(w.ID); {
		case err == nil:
			before, pause = w, 0
		case errors.Is(err, cluster.ErrNotRunning): // it is closing
		default:
			pause = min(max(2*pause, firstPause*r.Interval), longestPause)
			later = time.Now().Add(pause)
			r.logf("recycle: worker %d stays: %v; next try in %v", w.ID, err, pause)
		}
	}
}

// worst returns the worker that exceeds a limit most, or nil if none does or
// something else is going on.
func (r *recycler) worst() (worst *cluster.Worker, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.restarting || r.rolling {
		return nil, ""
	}
	most := 1.0
	for _, w := range r.m.Children() {
		known := r.workers[w]
		if known == nil || w.State() != cluster.WorkerReady {
			continue
		}
		u := known.told
		if r.MaxMemory > 0 {
			if n := resident.Of(w.Pid); n > 0 {
				u.Memory = n
			}
		}
		if factor, reason := known.limits.over(time.Since(w.Started), u); factor >= most {
			worst, most, why = w, factor, reason
		}
	}
	return worst, why
}

// tellAlways has a worker tell what the master can't see, whenever that has
// changed.
func (r *recycler) tellAlways() {
	var before usage
	for range time.Tick(r.Interval) {
		var now usage
		if r.MaxConns > 0 {
			_, total := r.m.Conns()
			now.Conns = uint64(total)
		}
		if r.MaxMemory > 0 && resident.Of(os.Getpid()) == 0 {
			now.Memory = taken()
		}
		if now != before && r.m.Send(key, now) == nil {
			before = now
		}
	}
}

// taken returns how much memory the Go runtime has from the system.
func taken() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

func (r *recycler) logf(format string, args ...any) {
	if r.m.ErrorLog != nil {
		r.m.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}
