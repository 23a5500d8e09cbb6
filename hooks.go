package cluster

import (
	"runtime/debug"
	"sync"
	"time"
)

// A hookQueue calls hooks one at a time, in order, in a goroutine that lives
// while there are any to be called.
type hookQueue struct {
	logf func(format string, args ...any)

	mu      mutex // guards the following
	hooks   []*Hooks
	queue   []func(*Hooks)
	running bool
	idle    sync.Cond // L is &mu; tells that running has become false
}

func (q *hookQueue) add(h Hooks) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hooks = append(q.hooks, &h)
}

// all returns the hooks that are registered now.
func (q *hookQueue) all() []*Hooks {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hooks[:len(q.hooks):len(q.hooks)]
}

// fire has f called with every one of the hooks, later.
func (q *hookQueue) fire(f func(*Hooks)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, f)
	if !q.running {
		q.running = true
		go q.run()
	}
}

func (q *hookQueue) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue) > 0 {
		f := q.queue[0]
		q.queue = q.queue[1:]
		hooks := q.hooks
		q.mu.Unlock()
		if len(hooks) == 0 {
			hooks = []*Hooks{{}} // f may have more to do than to call one
		}
		for _, h := range hooks {
			q.call(f, h)
		}
		q.mu.Lock()
	}
	q.queue = nil
	q.running = false
	if q.idle.L != nil {
		q.idle.Broadcast()
	}
}

func (q *hookQueue) call(f func(*Hooks), h *Hooks) {
	defer func() {
		if v := recover(); v != nil {
			q.logf("cluster: a hook panicked: %v\n%s", v, debug.Stack())
		}
	}()
	f(h)
}

func fireListening(h *Hooks) {
	if h.Listening != nil {
		h.Listening()
	}
}

func fireClose(h *Hooks) {
	if h.Close != nil {
		h.Close()
	}
}

func fireDrained(h *Hooks) {
	if h.Drained != nil {
		h.Drained()
	}
}

func fireReopen(h *Hooks) {
	if h.Reopen != nil {
		h.Reopen()
	}
}

// flush waits until all hooks have been called, but no longer than d.
func (q *hookQueue) flush(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.idle.L = &q.mu
	late := false
	t := time.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		late = true
		q.idle.Broadcast()
	})
	defer t.Stop()
	for q.running && !late {
		q.idle.Wait()
	}
}
