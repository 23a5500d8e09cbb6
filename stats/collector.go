package stats

import (
	"encoding/json"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/repl"
)

// key names what workers send, and what goes to the next master.
const key = "cluster.stats"

// counts never fall.
type counts struct {
	Connections uint64 `json:"connections"`
	Requests    uint64 `json:"requests"`
}

// A batch is what a worker sends: what it has counted since its start.
type batch struct {
	Active uint64 `json:"active"`
	counts
}

// totals are what outlives workers and masters.
type totals struct {
	Started  time.Time      `json:"started"`
	Memory   *Memory        `json:"memory"`
	Restarts uint64         `json:"restarts"`
	Spawned  uint64         `json:"spawned"`
	Deaths   uint64         `json:"deaths"`
	Slots    map[int]counts `json:"slots"` // by the worker's id
}

func (t *totals) add(slot int, c counts) {
	n := t.Slots[slot]
	n.Connections += c.Connections
	n.Requests += c.Requests
	t.Slots[slot] = n
}

// A collector holds the counts of one Master: in the master those of all its
// workers, in a worker what it has sent.
type collector struct {
	m        *cluster.Master
	interval time.Duration
	path     string // of the directory whose socket tells the next master

	mu   sync.Mutex // guards the following
	sent batch      // in a worker

	base totals // what the masters before this one have counted
	own  totals // what this one has, but for workers that live
	live map[*cluster.Worker]batch

	told      bool // base comes from the old master while it lives
	restarts  int  // that are under way, or whose failure has not been told
	l         net.Listener
	followers []net.Conn // new masters; one, but for those that have failed
}

// The collectors of this process. It has few Masters, and mostly one.
var (
	collectorsMu sync.Mutex // guards the following
	collectors   = make(map[*cluster.Master]*collector)
)

// of returns the collector of m, which is made when it is first asked for: by
// the first of this package's plugins.
func of(m *cluster.Master) *collector {
	if c := lookUp(m); c != nil {
		return c
	}
	c := &collector{
		m:        m,
		interval: time.Second,
		path:     socketPath(m),
		own:      totals{Started: processStarted, Slots: make(map[int]counts)},
		live:     make(map[*cluster.Worker]batch),
	}
	collectorsMu.Lock()
	collectors[m] = c
	collectorsMu.Unlock()
	if m.IsMaster() {
		c.own.Memory = memory()
		if m.Predecessor() != 0 {
			c.own.Restarts = 1 // if it comes to nothing, nobody has seen it
		}
		repl.Define("stats", command, "Display server statistics")
		m.On(cluster.Hooks{
			Worker:        c.spawned,
			WorkerKilled:  c.killed,
			Message:       c.message,
			Listening:     c.follow,
			Restarting:    c.restarting,
			RestartFailed: c.restartFailed,
			Restart:       c.restarted,
			Close:         c.close,
		})
		return c
	}
	m.On(cluster.Hooks{
		Serving: func() { go c.sendAlways() },
		Drained: c.send,
	})
	return c
}

// lookUp returns the collector of m, or nil.
func lookUp(m *cluster.Master) *collector {
	collectorsMu.Lock()
	defer collectorsMu.Unlock()
	return collectors[m]
}

// local returns what this process has counted.
func local(m *cluster.Master) batch {
	active, total := m.Conns()
	return batch{uint64(active), counts{uint64(total), requests.Load()}}
}

// sendAlways sends what there is to be sent, for as long as the worker lives.
// When it is idle that is nothing: a look at three numbers.
func (c *collector) sendAlways() {
	for range time.Tick(c.interval) {
		c.send()
	}
}

// send sends what the worker has counted, if that has changed.
func (c *collector) send() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := local(c.m); b != c.sent && c.m.Send(key, b) == nil {
		c.sent = b
	}
}

func (c *collector) spawned(w *cluster.Worker) {
	c.change(func() {
		c.own.Spawned++
		c.live[w] = batch{}
	})
}

func (c *collector) killed(w *cluster.Worker) {
	c.change(func() {
		c.own.Deaths++
		c.own.add(w.ID, c.live[w].counts)
		delete(c.live, w)
	})
}

func (c *collector) message(w *cluster.Worker, name string, data json.RawMessage) {
	if w == nil || name != key {
		return
	}
	var b batch
	if json.Unmarshal(data, &b) != nil {
		return
	}
	c.change(func() {
		if before, ok := c.live[w]; ok && b.Connections >= before.Connections && b.Requests >= before.Requests {
			c.live[w] = b
		}
	})
}

// change changes what is counted, and tells the next master if there is one.
func (c *collector) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.tell()
}

// now returns what has been counted up to now, and what each worker that
// lives has. c may be nil.
func (c *collector) now() (totals, map[*cluster.Worker]batch) {
	if c == nil {
		return totals{Started: processStarted, Slots: make(map[int]counts)}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total(), maps.Clone(c.live)
}

// total is called with c.mu held.
func (c *collector) total() totals {
	t := totals{
		Started:  c.own.Started,
		Memory:   c.own.Memory,
		Restarts: c.base.Restarts + c.own.Restarts,
		Spawned:  c.base.Spawned + c.own.Spawned,
		Deaths:   c.base.Deaths + c.own.Deaths,
		Slots:    make(map[int]counts),
	}
	if !c.base.Started.IsZero() {
		t.Started, t.Memory = c.base.Started, c.base.Memory
	}
	for _, slots := range []map[int]counts{c.base.Slots, c.own.Slots} {
		for id, n := range slots {
			t.add(id, n)
		}
	}
	for w, b := range c.live {
		t.add(w.ID, b.counts)
	}
	return t
}
