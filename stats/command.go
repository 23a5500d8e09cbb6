package stats

import (
	"fmt"
	"io"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/repl"
)

// command is the REPL's command stats.
func command(m *cluster.Master, w io.Writer, args ...string) error {
	s := Read(m)
	active := 0
	for _, p := range s.Workers {
		if p.State == cluster.WorkerReady.String() {
			active++
		}
	}
	repl.Title(w, "Master")
	repl.Row(w, "os", s.OS)
	repl.Row(w, "state", s.State)
	repl.Row(w, "started", s.Started.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
	repl.Row(w, "uptime", since(s.Uptime))
	repl.Row(w, "restarts", s.Restarts)
	repl.Row(w, "workers", active)
	repl.Row(w, "spawned", s.Spawned)
	repl.Row(w, "deaths", s.Deaths)

	repl.Title(w, "Resources")
	if len(s.Load) == 3 {
		repl.Row(w, "load average", fmt.Sprintf("%.2f %.2f %.2f", s.Load[0], s.Load[1], s.Load[2]))
	}
	repl.Row(w, "cores utilized", fmt.Sprintf("%d / %d", min(active, s.CPUs), s.CPUs))
	if s.MemoryAtBoot != nil {
		repl.Row(w, "memory at boot (free / total)", size(s.MemoryAtBoot.Free)+" / "+size(s.MemoryAtBoot.Total))
	}
	if s.Memory != nil {
		repl.Row(w, "memory now (free / total)", size(s.Memory.Free)+" / "+size(s.Memory.Total))
	}
	if s.MasterResident > 0 {
		var workers uint64
		for _, p := range s.Workers {
			workers += p.Resident
		}
		repl.Row(w, "memory used (master / workers)", size(s.MasterResident)+" / "+size(workers))
	}

	repl.Title(w, "Workers")
	repl.Row(w, "connections total", s.Connections)
	repl.Row(w, "connections active", s.Active)
	repl.Row(w, "requests total", s.Requests)
	for _, p := range s.Workers {
		row := fmt.Sprintf("%s %d|%d|%d", since(p.Uptime), p.Active, p.Connections, p.Requests)
		if p.State != cluster.WorkerReady.String() {
			row += " " + p.State
		}
		repl.Row(w, fmt.Sprint(p.ID), row)
	}
	fmt.Fprintln(w)
	return nil
}

// size returns n as "2.18gb".
func size(n uint64) string {
	f, unit := float64(n), "b"
	for _, larger := range []string{"kb", "mb", "gb", "tb"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, larger
	}
	if unit == "b" {
		return fmt.Sprintf("%db", n)
	}
	return fmt.Sprintf("%.2f%s", f, unit)
}

// since returns a time in its largest unit, as "2 minutes".
func since(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	n, unit := d.Milliseconds(), "millisecond"
	switch {
	case d >= 24*time.Hour:
		n, unit = int64(d/(24*time.Hour)), "day"
	case d >= time.Hour:
		n, unit = int64(d/time.Hour), "hour"
	case d >= time.Minute:
		n, unit = int64(d/time.Minute), "minute"
	case d >= time.Second:
		n, unit = int64(d/time.Second), "second"
	}
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}
