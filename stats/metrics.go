package stats

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/gocluster/cluster"
)

// A sample is one line of a metric: its label, as {state="ready"} or "", and
// its value.
type sample struct {
	label string
	value float64
}

// writeMetrics writes the state of m in the text format of Prometheus. What
// the workers of a slot have counted is one series, whatever becomes of them:
// it never falls, and the sum of all slots is the total.
func writeMetrics(w io.Writer, m *cluster.Master) {
	s, slots := read(m)
	metric := func(name, kind, help string, samples ...sample) {
		if len(samples) == 0 {
			return
		}
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, v := range samples {
			fmt.Fprintf(w, "%s%s %s\n", name, v.label, strconv.FormatFloat(v.value, 'f', -1, 64))
		}
	}
	bySlot := func(value func(counts) uint64) (list []sample) {
		for _, id := range slices.Sorted(maps.Keys(slots)) {
			list = append(list, sample{workerLabel(id), float64(value(slots[id]))})
		}
		return list
	}
	// byWorker adds up the values of all processes of a slot: there may be
	// one that drains.
	byWorker := func(value func(Worker) uint64) (list []sample) {
		for i, p := range s.Workers {
			if i == 0 || p.ID != s.Workers[i-1].ID {
				list = append(list, sample{label: workerLabel(p.ID)})
			}
			list[len(list)-1].value += float64(value(p))
		}
		return list
	}
	var states []sample
	for state := cluster.WorkerStarting; state < cluster.WorkerDead; state++ {
		n := 0
		for _, p := range s.Workers {
			if p.State == state.String() {
				n++
			}
		}
		states = append(states, sample{fmt.Sprintf("{state=%q}", state), float64(n)})
	}

	metric("cluster_start_time_seconds", "gauge",
		"When the first master was started, in seconds since the Unix epoch.", sample{"", seconds(s.Started)})
	metric("cluster_restarts_total", "counter",
		"Restarts of the whole cluster, the master included.", sample{"", float64(s.Restarts)})
	metric("cluster_workers", "gauge", "Worker processes.", states...)
	metric("cluster_workers_spawned_total", "counter",
		"Worker processes that have been started.", sample{"", float64(s.Spawned)})
	metric("cluster_worker_deaths_total", "counter",
		"Worker processes that have ended, for whatever reason.", sample{"", float64(s.Deaths)})
	metric("cluster_connections_active", "gauge",
		"Connections that are served.", byWorker(func(p Worker) uint64 { return p.Active })...)
	metric("cluster_connections_total", "counter",
		"Connections that have been accepted or handed over.", bySlot(func(c counts) uint64 { return c.Connections })...)
	metric("cluster_requests_total", "counter",
		"Requests that have been counted.", bySlot(func(c counts) uint64 { return c.Requests })...)
	if s.MasterResident > 0 {
		metric("cluster_worker_resident_memory_bytes", "gauge",
			"Resident memory of worker processes.", byWorker(func(p Worker) uint64 { return p.Resident })...)
		metric("process_resident_memory_bytes", "gauge",
			"Resident memory of the master.", sample{"", float64(s.MasterResident)})
	}
	metric("process_start_time_seconds", "gauge",
		"When this master was started, in seconds since the Unix epoch.", sample{"", seconds(s.MasterStarted)})
}

func workerLabel(id int) string { return fmt.Sprintf(`{worker="%d"}`, id) }

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
