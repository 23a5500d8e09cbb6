// Package stats is a plugin that counts what a cluster does: the workers that
// were spawned and have died, restarts, connections and requests.
//
//	server := &http.Server{Handler: stats.Handler(mux)}
//	m := &cluster.Master{Addr: ":3000", Server: server}
//	m.Use(
//		stats.New(nil),
//		stats.Serve(":9100"),
//		repl.New("/run/app.sock"),
//	)
//
// [Serve] shows it as a page, as JSON and to Prometheus, the command stats of
// package repl shows it in a terminal, and [Read] gives it to the program.
//
// Connections are counted by the cluster itself, those that were handed over
// in each worker that serves them. Requests are counted by [Handler]. A
// worker sends its counts to the master once in an interval, if they have
// changed, and when it has drained. One that is killed or crashes takes those
// of its last interval with it, and so may one of an abstract cluster.
//
// Totals outlive workers and restarts: they never fall while the cluster
// lives. In a restart the old master tells the new one, by a unix socket
// beside the master socket, what its workers still do, so that nothing they
// count before their end is lost. Where the directory can't be written the
// new master begins at zero, and gets the totals once, when the old one is
// gone, as they were when the restart began. A master that is restarted while its own
// predecessor drains, and ends before that, doesn't hear what the
// predecessor's workers count afterwards. A restart that fails counts as
// none.
package stats

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/resident"
)

// Options are the options of New.
type Options struct {
	// Interval is how often a worker sends its counts at most. 0 is a
	// second.
	Interval time.Duration
}

// New returns a plugin that counts. A nil *Options stands for the defaults.
func New(o *Options) cluster.Plugin {
	return func(m *cluster.Master) error {
		c := of(m)
		if o == nil || o.Interval == 0 {
			return nil
		}
		if o.Interval < 0 {
			return fmt.Errorf("stats: Interval is %v; it can't be negative", o.Interval)
		}
		c.interval = o.Interval
		return nil
	}
}

// requests is the number of requests that Handler has seen in this process.
// One request costs far more than an addition that several CPUs contend for.
var requests atomic.Uint64

// Handler returns a handler that counts requests and has h handle them. A nil
// h is http.DefaultServeMux. The ResponseWriter is passed on as it is.
//
// A request counts when it begins. The count is that of the process: of the
// worker, whatever number of handlers and servers it has.
func Handler(h http.Handler) http.Handler {
	if h == nil {
		h = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		h.ServeHTTP(w, r)
	})
}

// Stats is what is known about a cluster at one time. Totals are those since
// the first master's start. What is about the machine and the memory of
// processes is known on Linux only.
type Stats struct {
	Time    time.Time `json:"time"`    // when this was read
	Started time.Time `json:"started"` // when the first master was
	Uptime  float64   `json:"uptime"`  // seconds since then

	OS             string    `json:"os"` // its name, and on Linux its release
	State          string    `json:"state"`
	Pid            int       `json:"pid"` // of the master
	MasterStarted  time.Time `json:"master_started"`
	MasterResident uint64    `json:"master_resident,omitempty"` // bytes of memory

	Restarts uint64 `json:"restarts"` // of the master; rolling ones of the workers are not among them
	Spawned  uint64 `json:"spawned"`  // workers
	Deaths   uint64 `json:"deaths"`   // of workers, for whatever reason

	CPUs         int       `json:"cpus"`
	Load         []float64 `json:"load,omitempty"` // average of 1, 5 and 15 minutes
	Memory       *Memory   `json:"memory,omitempty"`
	MemoryAtBoot *Memory   `json:"memory_at_boot,omitempty"` // when the first master was started

	Active      uint64 `json:"active"`      // connections that this master's workers serve now
	Connections uint64 `json:"connections"` // total
	Requests    uint64 `json:"requests"`    // total

	Workers []Worker `json:"workers"` // of this master, those that drain included, by id
}

// A Worker is one worker process. Its counts are its own since its start, as
// it has sent them last.
type Worker struct {
	ID          int       `json:"id"`
	Pid         int       `json:"pid"`
	State       string    `json:"state"`
	Started     time.Time `json:"started"`
	Uptime      float64   `json:"uptime"`             // seconds
	Resident    uint64    `json:"resident,omitempty"` // bytes of memory
	Active      uint64    `json:"active"`             // connections now
	Connections uint64    `json:"connections"`        // total
	Requests    uint64    `json:"requests"`           // total
}

// Memory is that of the machine.
type Memory struct {
	Free  uint64 `json:"free"`  // bytes that can be had; what the page cache has counts as free
	Total uint64 `json:"total"` // bytes
}

// processStarted is when this process was, nearly.
var processStarted = time.Now()

// Read returns what is known now in the master m, from any goroutine. Nothing
// has been counted if m doesn't use the plugin New or Serve. With
// Master.Inline the calling process is worker 0.
func Read(m *cluster.Master) Stats {
	s, _ := read(m)
	return s
}

// read returns the totals by slot too.
func read(m *cluster.Master) (Stats, map[int]counts) {
	now := time.Now()
	s := Stats{
		Time:           now,
		OS:             osName(),
		State:          m.State().String(),
		Pid:            os.Getpid(),
		MasterStarted:  processStarted,
		MasterResident: resident.Of(os.Getpid()),
		CPUs:           runtime.NumCPU(),
		Load:           loadAverage(),
		Memory:         memory(),
		Workers:        []Worker{},
	}
	children := m.Children()
	total, live := lookUp(m).now()
	for _, w := range children {
		b := live[w]
		s.Workers = append(s.Workers, Worker{
			ID: w.ID, Pid: w.Pid, State: w.State().String(), Started: w.Started, Resident: resident.Of(w.Pid),
			Active: b.Active, Connections: b.Connections, Requests: b.Requests,
		})
	}
	if inline(m) {
		b := local(m)
		s.Workers = append(s.Workers, Worker{
			Pid: s.Pid, State: cluster.WorkerReady.String(), Started: processStarted, Resident: s.MasterResident,
			Active: b.Active, Connections: b.Connections, Requests: b.Requests,
		})
		total.add(0, b.counts)
	}
	for i := range s.Workers {
		w := &s.Workers[i]
		w.Uptime = now.Sub(w.Started).Seconds()
		s.Active += w.Active
	}
	s.Started = total.Started
	s.Uptime = now.Sub(s.Started).Seconds()
	s.MemoryAtBoot = total.Memory
	s.Restarts, s.Spawned, s.Deaths = total.Restarts, total.Spawned, total.Deaths
	for _, n := range total.Slots {
		s.Connections += n.Connections
		s.Requests += n.Requests
	}
	return s, total.Slots
}

// inline reports whether this process is both master and worker.
func inline(m *cluster.Master) bool { return m.IsMaster() && m.IsWorker() }
