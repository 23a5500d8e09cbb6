package cluster

import (
	"context"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// A drainOrder tells a service to finish.
type drainOrder struct {
	// Last: no other process will accept what the kernel has queued, and
	// nothing new is queued any more.
	Last bool

	// Dropped has the numbers of the sockets for which the same holds: the
	// new master doesn't want them.
	Dropped []int

	// orphan: the master is gone, so that new connections may still arrive
	// at sockets which somebody else may have, or not.
	orphan bool
}

// orphanSweep is how long a worker without a master goes on accepting what
// is queued.
const orphanSweep = time.Second

// A service is what a process serves: a worker, or with Inline the calling
// process. It ends by an order to drain, or because a server has failed.
type service struct {
	m     *Master
	pairs []pair
	conns counter // of the connections that are served

	ready   func()          // called when all servers could accept
	waiting func(conns int) // called while draining waits for connections; nil: nobody cares

	orders chan drainOrder
	hard   chan struct{} // closed to end at once
	once   sync.Once
	over   chan struct{} // closed when a process without a master serves no more
	ended  chan struct{} // closed after that, when hooks have been called
	err    error         // read it after ended
}

func (m *Master) newService(pairs []pair) *service {
	sv := &service{
		m: m, pairs: pairs,
		ready:   func() {},
		waiting: func(int) {},
		orders:  make(chan drainOrder, 1),
		hard:    make(chan struct{}),
		over:    make(chan struct{}),
		ended:   make(chan struct{}),
	}
	for _, p := range pairs {
		p.ours.conns = &sv.conns
	}
	m.mu.Lock()
	m.local = sv
	m.mu.Unlock()
	return sv
}

// order makes the service drain. The first order counts, but for what a later
// one says of what comes after: nobody.
//
//go:noinline
func (sv *service) order(o drainOrder) {
	if o.Last {
		for _, p := range sv.pairs {
			p.ours.final.Store(true)
		}
	}
	select {
	case sv.orders <- o:
	default:
	}
}

// end ends the service of a process without a master.
func (sv *service) end(state State) {
	if state == HardShutdown {
		sv.once.Do(func() { close(sv.hard) })
		return
	}
	for _, p := range sv.pairs {
		p.ours.socket.quiesce()
	}
	sv.order(drainOrder{Last: true})
}

// run serves until the service has drained. Every server's Serve runs in a
// goroutine of its own.
func (sv *service) run() error {
	defer sv.m.hooks.fire(fireDrained)
	failures := make(chan error, len(sv.pairs))
	var serving sync.WaitGroup
	for _, p := range sv.pairs {
		serving.Go(func() {
			err := p.s.Serve(p.l)
			if err == nil {
				err = errorf("cluster: the server's Serve returned before it was told to")
			}
			failures <- err
		})
	}
	all := make(chan struct{})
	go func() {
		for _, p := range sv.pairs {
			<-p.ours.first
		}
		close(all)
	}()
	var order drainOrder
wait:
	for {
		select {
		case <-all:
			all = nil
			sv.m.hooks.fire(func(h *Hooks) {
				if h.Serving != nil {
					h.Serving()
				}
			})
			sv.ready()
		case order = <-sv.orders:
			break wait
		case <-sv.hard:
			break wait
		case err := <-failures:
			close(sv.m.doneChan())
			sv.close()
			return err
		}
	}
	close(sv.m.doneChan())
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		sv.drain(order)
	}()
	select {
	case <-drained:
		serving.Wait()
	case <-sv.hard:
		sv.close()
	}
	return nil
}

// newGrace is how long a connection may be without its first request before
// it is taken for one that never has any. It is net/http's own.
const newGrace = 5 * time.Second

// drain stops accepting and lets all connections finish. It returns when
// none is left, or Timeout is over.
func (sv *service) drain(o drainOrder) {
	ctx, cancel := context.WithTimeout(context.Background(), sv.m.timeout())
	defer cancel()
	for _, p := range sv.pairs {
		sweep := time.Duration(0)
		switch {
		case o.orphan:
			sweep = orphanSweep
		case o.Last, slices.Contains(o.Dropped, p.ours.socket.number):
			sweep = sv.m.timeout()
		}
		p.ours.stop(sweep, sv.m.timeout())
	}
	var wg sync.WaitGroup
	for _, s := range sv.servers() {
		wg.Go(func() {
			grace, cancel := context.WithTimeout(ctx, newGrace)
			defer cancel()
			if k, ok := s.(interface{ SetKeepAlivesEnabled(bool) }); ok {
				k.SetKeepAlivesEnabled(false)
				sv.empty(grace, func(int) {})
			} else {
				sv.accepted(grace) // Shutdown closes the listener, and what is queued with it
			}
			s.Shutdown(ctx)
		})
	}
	sv.empty(ctx, sv.waiting)
	wg.Wait()
	if sv.empty(ctx, sv.waiting); ctx.Err() != nil {
		sv.close()
	}
}

// empty waits until nothing accepts and no connection is open, or ctx ends.
func (sv *service) empty(ctx context.Context, report func(int)) {
	if sv.accepted(ctx) {
		sv.conns.empty(ctx.Done(), report)
	}
}

// accepted waits until nothing accepts, or ctx ends: then it returns false.
func (sv *service) accepted(ctx context.Context) bool {
	for _, p := range sv.pairs {
		select {
		case <-p.ours.stopped:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// servers returns every server once.
//
//go:noinline
func (sv *service) servers() (list []Server) {
	seen := make(map[Server]bool)
	for _, p := range sv.pairs {
		if !seen[p.s] {
			seen[p.s] = true
			list = append(list, p.s)
		}
	}
	return list
}

// close ends all servers at once.
func (sv *service) close() {
	for _, p := range sv.pairs {
		p.ours.Close()
	}
	for _, s := range sv.servers() {
		s.Close()
	}
}

// serveInline is ListenAndServe without workers.
func (m *Master) serveInline(pairs []pair) error {
	sv := m.newService(pairs)
	sv.ready = func() { m.hooks.fire(fireListening) }
	m.runInline(sv)
	return sv.err
}

// startInline is Start without workers.
func (m *Master) startInline() error {
	sv := m.newService(nil)
	ready := make(chan struct{})
	sv.ready = func() {
		m.hooks.fire(fireListening)
		close(ready)
	}
	go m.runInline(sv)
	select {
	case <-ready:
		return nil
	case <-sv.ended:
		return sv.err
	}
}

// runInline runs sv in this process, with what a master does around it.
func (m *Master) runInline(sv *service) {
	if sv.err = m.fireStart(); sv.err == nil {
		stop := m.watchSignals(nil)
		sv.err = sv.run()
		stop()
		m.state.CompareAndSwap(int32(Active), int32(GracefulShutdown))
	}
	m.hooks.fire(fireClose)
	shared.close(true)
	close(sv.over)
	m.hooks.flush(m.timeout())
	close(sv.ended)
}

// fireStart calls Hooks.Start.
func (m *Master) fireStart() error {
	return m.bounded("Start", nil, func(h *Hooks) error {
		if h.Start == nil {
			return nil
		}
		return h.Start()
	})
}

// bounded calls f with all hooks, for those that somebody waits for: it
// returns the first error, a panic being one, and waits for RestartTimeout
// at most, and not when closing is closed. None is called after that.
func (m *Master) bounded(name string, closing <-chan struct{}, f func(*Hooks) error) error {
	done, over := make(chan error, 1), make(chan struct{})
	defer close(over)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				m.logf("cluster: a %s hook panicked: %v\n%s", name, v, debug.Stack())
				done <- errorf("cluster: a %s hook panicked: %v", name, v)
			}
		}()
		for _, h := range m.hooks.all() {
			if isClosedChan(over) {
				return
			}
			if err := f(h); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	late := time.NewTimer(m.restartTimeout())
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-closing:
		return ErrNotRunning
	case <-late.C:
		return errorf("cluster: the %s hooks took longer than %v", name, m.restartTimeout())
	}
}
