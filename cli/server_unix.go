//go:build unix

package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/control"
	"github.com/gocluster/cluster/repl"
)

// On a connection the master speaks first, a reply of the event hello. The
// client then sends a request, and gets replies until the last one's event
// says so or the connection ends. Each is a line of JSON.

const (
	socketName = "cli.sock"
	protocol   = 1        // its version
	maxRequest = 64 << 10 // the longest request, in bytes
)

// A request is what a client wants.
type request struct {
	Version int    `json:"version"`
	Command string `json:"command"`     // a command's name, or heir
	N       int    `json:"n,omitempty"` // of spawn
}

// A reply is one line of an answer.
type reply struct {
	Event       string    `json:"event"`
	Version     int       `json:"version,omitempty"`
	Pid         int       `json:"pid,omitempty"`         // hello: the master's
	Predecessor int       `json:"predecessor,omitempty"` // hello: the master's that was before it
	Error       string    `json:"error,omitempty"`       // failed
	Ready       int       `json:"ready,omitempty"`       // workers
	Workers     int       `json:"workers,omitempty"`     // that there should be
	Left        int       `json:"left,omitempty"`        // old workers that have not ended
	Pids        []int     `json:"pids,omitempty"`        // closing: the processes that will end
	Processes   []process `json:"processes,omitempty"`   // status
}

// Events. After done, failed and moved the client has nothing to wait for but
// the end of the connection, which is that of all workers of this master.
const (
	hello    = "hello"    // Version, Pid, Predecessor
	waiting  = "waiting"  // for a restart that somebody else has asked for
	progress = "progress" // Ready, Workers
	draining = "draining" // Left
	closing  = "closing"  // Pids
	done     = "done"     // Ready, Workers, Left, Processes
	failed   = "failed"   // Error
	moved    = "moved"    // this is not the master any more: ask the next one, if there is one
)

// messageName is the name of the messages between master and workers.
const messageName = "cli"

// counts asks a worker for its connections, with no more than the number of
// the question, and is the answer.
type counts struct {
	Question      int64
	Active, Total int64
}

// answerTime is how long workers have to answer.
const answerTime = 200 * time.Millisecond

// A server answers commands in a master.
type server struct {
	m     *cluster.Master
	path  string // of the socket
	began time.Time
	turn  chan struct{} // held by the handler that restarts
	link  net.Conn      // of a new master that starts: to the old one, or nil

	sizing sync.Mutex // held while the number of workers is being changed

	mu         sync.Mutex              // guards the following
	changed    chan struct{}           // closed when they, or the workers, have changed
	started    bool                    // there are workers: methods of m can be called
	size       int                     // how many workers there should be
	slots      map[int]*cluster.Worker // by id: the last one
	reasons    map[int]string          // by id: why the last one has died
	exceptions map[*cluster.Worker]string
	restarting bool  // on whoever's behalf
	closing    bool  // shutting down, or replaced
	moved      bool  // replaced
	alone      bool  // the old master is gone
	standIn    int   // pid, 0 if there is none
	heir       reply // what the new master has told of itself
	question   int64
	answers    map[int64]chan answer // by question
}

type answer struct {
	pid int
	counts
}

// attach has m answer commands.
func attach(m *cluster.Master, dir string) error {
	if cluster.IsWorker() {
		m.On(cluster.Hooks{Message: func(_ *cluster.Worker, name string, data json.RawMessage) {
			var q counts
			if name == messageName && json.Unmarshal(data, &q) == nil {
				q.Active, q.Total = m.Conns()
				m.Send(messageName, q)
			}
		}})
		return nil
	}
	if m.IsWorker() {
		return nil // Inline
	}
	s := &server{
		m:          m,
		path:       filepath.Join(dir, socketName),
		began:      time.Now(),
		turn:       make(chan struct{}, 1),
		changed:    make(chan struct{}),
		size:       workers(m),
		slots:      make(map[int]*cluster.Worker),
		reasons:    make(map[int]string),
		exceptions: make(map[*cluster.Worker]string),
		alone:      m.Predecessor() == 0,
		answers:    make(map[int64]chan answer),
	}
	m.On(cluster.Hooks{
		Start: func() error {
			if m.Predecessor() != 0 {
				s.announce()
			}
			return nil
		},
		Worker: func(w *cluster.Worker) {
			s.note(func() {
				s.started = true
				s.size = max(s.size, w.ID+1)
				s.slots[w.ID] = w
				delete(s.reasons, w.ID)
			})
		},
		WorkerConnected: func(*cluster.Worker) {
			s.note(func() {})
			s.report()
		},
		WorkerException: func(w *cluster.Worker, err error) {
			s.note(func() { s.exceptions[w] = ": " + err.Error() })
		},
		WorkerKilled: func(w *cluster.Worker) {
			s.note(func() {
				if s.slots[w.ID] == w {
					s.reasons[w.ID] = w.ProcessState.String() + s.exceptions[w]
				}
				delete(s.exceptions, w)
			})
		},
		WorkerRemoved: func(w *cluster.Worker) { // the one with the highest id
			s.note(func() { s.resize(w.ID) })
		},
		Listening:     func() { s.hangUp() },
		Restarting:    func(cluster.Values) { s.note(func() { s.restarting = true }) },
		RestartFailed: func(error) { s.note(func() { s.restarting = false }) },
		Restart:       func(cluster.Values) { s.note(func() { s.alone = true }) },
		Closing:       func() { s.note(func() { s.closing = true }) },
		Close:         func() { s.hangUp() },
		Message: func(w *cluster.Worker, name string, data json.RawMessage) {
			a := answer{pid: w.Pid}
			if name != messageName || json.Unmarshal(data, &a.counts) != nil {
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			select {
			case s.answers[a.Question] <- a:
			default: // too late
			}
		},
	})
	return (&control.Server{Name: "cli", Addr: "unix:" + s.path, Handle: s.handle}).Attach(m)
}

// workers returns how many workers a master starts.
func workers(m *cluster.Master) int {
	switch {
	case m.Workers > 0:
		return m.Workers
	case os.Getenv("GOMAXPROCS") != "":
		return runtime.NumCPU()
	}
	return runtime.GOMAXPROCS(0)
}

// note makes a change, and tells those who wait for one.
func (s *server) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// resize notes how many slots there are. s.mu is held.
func (s *server) resize(n int) {
	s.size = n
	for id := range s.slots {
		if id >= n {
			delete(s.slots, id)
		}
	}
}

// change returns a channel that the next change closes.
func (s *server) change() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// await calls cond, at first and after every change, until it is true. It
// returns false if the context ends first.
func (s *server) await(ctx context.Context, cond func() bool) bool {
	for {
		changed := s.change()
		if cond() {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// is returns what f does, called with s.mu held.
func (s *server) is(f func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

// announce connects a new master that starts with the old one, to tell it
// how many of its workers are ready. The old one tells who its stand-in is.
// Without this all but the progress of a restart goes on as well.
func (s *server) announce() {
	cn, err := dial(s.path, silence)
	if err != nil {
		return
	}
	if cn.hello.Pid != s.m.Predecessor() || cn.send(request{Command: "heir"}) != nil {
		cn.Close()
		return
	}
	cn.SetReadDeadline(time.Now().Add(silence))
	if r, err := cn.read(); err == nil {
		s.note(func() { s.standIn = r.Pid })
	}
	s.link = cn
}

// report tells the old master how many workers are ready.
func (s *server) report() {
	if s.link != nil {
		ready, _, size := s.count()
		s.link.SetWriteDeadline(time.Now().Add(time.Second))
		send(s.link, reply{Event: progress, Ready: ready, Workers: size})
	}
}

func (s *server) hangUp() {
	if s.link != nil {
		s.link.Close()
		s.link = nil
	}
}

// count returns how many workers are ready, how many drain, and how many there
// should be.
func (s *server) count() (ready, draining, size int) {
	for _, w := range s.m.Children() {
		switch w.State() {
		case cluster.WorkerReady:
			ready++
		case cluster.WorkerDraining:
			draining++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return ready, draining, s.size
}

// A session is one connection. A client that is gone, or doesn't read, is
// told no more; what it has asked for goes on.
type session struct {
	*server
	ctx  context.Context // ends with the workers of this master
	c    net.Conn
	last []byte // what was sent last
	err  error
}

func (s *session) send(r reply) {
	data, err := json.Marshal(r)
	if err != nil || s.err != nil || string(data) == string(s.last) {
		return
	}
	s.c.SetWriteDeadline(time.Now().Add(silence))
	_, s.err = s.c.Write(append(data, '\n'))
	s.last = data
}

func send(c net.Conn, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = c.Write(append(data, '\n'))
	}
	return err
}

// handle serves one connection.
func (s *server) handle(ctx context.Context, c net.Conn) {
	ss := &session{server: s, ctx: ctx, c: c}
	ss.send(reply{Event: hello, Version: protocol, Pid: os.Getpid(), Predecessor: s.m.Predecessor()})
	c.SetReadDeadline(time.Now().Add(silence))
	in := bufio.NewReaderSize(c, maxRequest)
	line, err := in.ReadSlice('\n')
	var req request
	if err != nil || json.Unmarshal(line, &req) != nil {
		return
	}
	c.SetDeadline(time.Time{})
	if req.Version != protocol {
		ss.send(reply{Event: failed, Error: fmt.Sprintf("this is version %d of the protocol, and the master has %d", req.Version, protocol)})
		return
	}
	switch req.Command {
	case "status":
		ss.status()
		return
	case "heir":
		ss.listen(in)
		return
	}
	if !s.await(ctx, func() bool { return s.is(func() bool { return s.started || s.closing }) }) {
		return
	}
	switch req.Command {
	case "restart":
		ss.restart()
	case "reload":
		ss.reload()
	case "shutdown":
		ss.end(s.m.Close, false)
	case "stop":
		ss.end(s.m.Destroy, true)
	case "spawn":
		ss.spawn(req.N)
	case "repl":
		ss.send(reply{Event: done})
		c.SetDeadline(time.Time{})
		repl.Serve(ctx, s.m, &buffered{c, in})
	default:
		ss.send(reply{Event: failed, Error: fmt.Sprintf("the master doesn't know %q", req.Command)})
	}
}

// A buffered is a connection that was read from.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// status tells what processes there are.
func (s *session) status() {
	workers := s.m.Children()
	s.mu.Lock()
	for id, w := range s.slots { // dead, and to be started again
		if w.State() == cluster.WorkerDead && !slices.ContainsFunc(workers, func(other *cluster.Worker) bool { return other.ID == id }) {
			workers = append(workers, w)
		}
	}
	others := s.others()
	s.mu.Unlock()
	slices.SortStableFunc(workers, func(a, b *cluster.Worker) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), a.Started.Compare(b.Started))
	})
	list := []process{{
		Name:   "master",
		Pid:    os.Getpid(),
		Alive:  true,
		State:  ptr(s.m.State().String()),
		Uptime: ptr(time.Since(s.began).Seconds()),
		Memory: memory(os.Getpid()),
	}}
	for _, o := range others {
		o.Memory = memory(o.Pid)
		list = append(list, o)
	}
	conns := s.ask(workers)
	for _, w := range workers {
		state := w.State()
		p := process{
			Name:   fmt.Sprintf("worker %d", w.ID),
			Pid:    w.Pid,
			Alive:  state != cluster.WorkerDead,
			State:  ptr(state.String()),
			Uptime: ptr(time.Since(w.Started).Seconds()),
			Memory: memory(w.Pid),
		}
		if !p.Alive {
			p.Uptime, p.Memory = nil, nil
		}
		if c, ok := conns[w.Pid]; ok {
			p.Active, p.Total = &c.Active, &c.Total
		}
		list = append(list, p)
	}
	ready, left, size := s.count()
	s.send(reply{Event: done, Ready: ready, Workers: size, Left: left, Processes: list})
}

func ptr[T any](v T) *T { return &v }

// others returns the processes that will end with this master, or before it,
// but are not its children. s.mu is held.
func (s *server) others() (list []process) {
	if !s.alone {
		list = append(list, process{Name: "old master", Pid: s.m.Predecessor(), Alive: true, State: ptr("draining")})
	}
	if s.standIn != 0 && (s.alone || s.standIn != s.m.Predecessor()) {
		list = append(list, process{Name: "stand-in", Pid: s.standIn, Alive: true})
	}
	return list
}

// ask asks workers for their connections. Those that are busy, or other
// programs, are missing in the answer.
func (s *server) ask(workers []*cluster.Worker) map[int]counts {
	all := make(map[int]counts)
	c := make(chan answer, len(workers))
	s.mu.Lock()
	s.question++
	q := s.question
	s.answers[q] = c
	s.mu.Unlock()
	asked := 0
	for _, w := range workers {
		if state := w.State(); state == cluster.WorkerReady || state == cluster.WorkerDraining {
			if w.Send(messageName, counts{Question: q}) == nil {
				asked++
			}
		}
	}
	late := time.After(answerTime)
	for len(all) < asked {
		select {
		case a := <-c:
			all[a.pid] = a.counts
			continue
		case <-late:
		}
		break
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.answers, q)
	return all
}

// listen notes what a new master that starts tells.
func (s *session) listen(in *bufio.Reader) {
	s.mu.Lock()
	standIn := s.standIn
	s.mu.Unlock()
	if standIn == 0 && !s.m.Detach {
		standIn = os.Getpid()
	}
	s.send(reply{Event: done, Pid: standIn})
	for {
		line, err := in.ReadSlice('\n')
		var r reply
		if err != nil || json.Unmarshal(line, &r) != nil {
			return
		}
		s.note(func() { s.heir = r })
	}
}

// restart restarts. Only one at a time does so on behalf of a client, and none
// while the master is being restarted for another reason: it would get the
// new master restarted without learning how that went.
func (s *session) restart() {
	select {
	case s.turn <- struct{}{}:
	default:
		s.send(reply{Event: waiting})
		select {
		case s.turn <- struct{}{}:
		case <-s.ctx.Done():
			s.send(reply{Event: moved})
			return
		}
	}
	ok := s.restartNow()
	<-s.turn
	if ok {
		s.drain()
	}
}

// restartNow reports whether this master is one no more.
func (s *session) restartNow() bool {
	limit := 2*s.restartTimeout() + 10*time.Second // hooks have as long as the new master
	late, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	s.await(late, func() bool {
		idle := s.is(func() bool { return !s.restarting || s.closing })
		if !idle {
			s.send(reply{Event: waiting})
		}
		return idle
	})
	if s.is(func() bool { s.heir = reply{}; return s.closing || s.moved }) {
		s.send(reply{Event: moved})
		return true
	}
	err := s.during(func() error { return s.m.Restart() }, func() {
		s.mu.Lock()
		heir := s.heir
		s.mu.Unlock()
		if heir.Event == progress {
			s.send(heir)
		}
	})
	if err == nil {
		s.note(func() { s.moved = true })
	}
	return s.outcome(err, reply{Event: done})
}

func (s *server) restartTimeout() time.Duration { return cmp.Or(s.m.RestartTimeout, time.Minute) }

// during calls f and returns what it does. Meanwhile it calls tell, at first
// and after every change.
func (s *session) during(f func() error, tell func()) error {
	outcome := make(chan error, 1)
	go func() { outcome <- f() }()
	for {
		changed := s.change()
		tell()
		select {
		case err := <-outcome:
			return err
		case <-changed:
		}
	}
}

// outcome sends r if err is nil, and what became of it if not. It returns
// false if the command has failed, and this is still the master.
func (s *session) outcome(err error, r reply) bool {
	switch {
	case errors.Is(err, cluster.ErrNotRunning):
		r = reply{Event: moved}
	case err != nil:
		s.send(reply{Event: failed, Error: strings.TrimPrefix(err.Error(), "cluster: ")})
		return false
	}
	s.send(r)
	return true
}

// drain waits for the end of this master's workers.
func (s *session) drain() {
	s.await(s.ctx, func() bool {
		s.send(reply{Event: draining, Left: len(s.m.Children())})
		return false
	})
}

// reload replaces the workers.
func (s *session) reload() {
	before := s.m.Children()
	now := func(event string) reply {
		r := reply{Event: event}
		_, r.Left, r.Workers = s.count()
		for _, w := range s.m.Children() {
			if w.State() == cluster.WorkerReady && !slices.Contains(before, w) {
				r.Ready++
			}
		}
		return r
	}
	err := s.during(func() error { return s.m.RestartWorkers() }, func() { s.send(now(progress)) })
	s.outcome(err, now(done))
}

// spawn starts n workers, or ends -n.
func (s *session) spawn(n int) {
	s.sizing.Lock()
	s.mu.Lock()
	from, to := s.size, s.size+n
	s.mu.Unlock()
	var err error
	var leaving []*cluster.Worker
	if n < 0 {
		leaving = slices.DeleteFunc(s.m.Children(), func(w *cluster.Worker) bool { return w.ID < to })
		err = s.m.Remove(-n)
	} else {
		err = s.m.Spawn(n)
	}
	if err == nil {
		s.note(func() { s.resize(to) })
	}
	s.sizing.Unlock()
	switch {
	case err != nil:
	case n < 0:
		s.leave(leaving)
	default:
		err = s.join(from, to)
	}
	s.outcome(err, reply{Event: done, Workers: to})
}

// leave waits until these workers are dead.
func (s *session) leave(workers []*cluster.Worker) {
	s.await(s.ctx, func() bool {
		left := 0
		for _, w := range workers {
			if w.State() != cluster.WorkerDead {
				left++
			}
		}
		s.send(reply{Event: draining, Left: left})
		return left == 0
	})
}

// join waits until the workers of the slots from and up, but not to, are
// ready.
func (s *session) join(from, to int) (err error) {
	rounds := 2 + (to-from)/runtime.GOMAXPROCS(0) // so many are started at once
	late, cancel := context.WithTimeout(s.ctx, time.Duration(rounds)*s.restartTimeout())
	defer cancel()
	started := make(map[int]bool)
	ok := s.await(late, func() bool {
		ready := 0
		s.mu.Lock()
		for id := from; id < to; id++ {
			w, reason := s.slots[id], s.reasons[id]
			switch {
			case s.closing:
				err = cluster.ErrNotRunning
			case w == nil && started[id]:
				err = fmt.Errorf("worker %d has been removed meanwhile", id)
			case reason != "":
				err = fmt.Errorf("worker %d died before it was ready: %s; the master goes on trying", id, reason)
			case w != nil && w.State() == cluster.WorkerStarting:
				started[id] = true
			case w != nil && w.State() == cluster.WorkerReady:
				started[id] = true
				ready++
			}
		}
		s.mu.Unlock()
		s.send(reply{Event: progress, Ready: ready, Workers: to - from})
		return err != nil || ready == to-from
	})
	if !ok {
		err = errors.New("the new workers have not been started: see the master's log")
	}
	return err
}

// end ends the cluster by f.
func (s *session) end(f func() error, hard bool) {
	s.mu.Lock()
	others := s.others()
	s.mu.Unlock()
	pids := []int{os.Getpid()}
	for _, p := range others {
		pids = append(pids, p.Pid)
	}
	workers := s.m.Children()
	for _, w := range workers {
		pids = append(pids, w.Pid)
	}
	s.send(reply{Event: closing, Pids: pids, Workers: len(workers)})
	if hard && !s.is(func() bool { return s.alone }) {
		syscall.Kill(s.m.Predecessor(), syscall.SIGTERM) // which drains
	}
	go f()
	s.drain()
}
