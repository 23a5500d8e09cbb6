// Package eventlog puts what happens in a master into words, for the plugins
// that write it down.
package eventlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
)

// A Record tells one event.
type Record struct {
	Level   slog.Level // in a log file
	Console slog.Level // for somebody who watches: progress matters more there, and a death less
	Text    string
	Attrs   []slog.Attr // what Text leaves out
}

const (
	debug = slog.LevelDebug
	info  = slog.LevelInfo
	warn  = slog.LevelWarn
	fail  = slog.LevelError
)

// Attach has emit called with a record of everything that happens in the
// master m, by its hooks: in their order, but from several goroutines.
func Attach(m *cluster.Master, emit func(Record)) {
	event := func(level, console slog.Level, text string) {
		emit(Record{Level: level, Console: console, Text: text})
	}
	worker := func(level, console slog.Level, w *cluster.Worker, format string, args ...any) {
		emit(Record{level, console, fmt.Sprintf("worker %d ", w.ID) + fmt.Sprintf(format, args...), attrs(w)})
	}
	lives := make(map[*cluster.Worker]*life)
	closed := false
	m.On(cluster.Hooks{
		Start: func() error {
			r := Record{Level: info, Console: info, Text: "master started"}
			if old := m.Predecessor(); old != 0 {
				r.Attrs = []slog.Attr{slog.Int("predecessor", old)}
			}
			emit(r)
			return nil
		},
		Worker: func(w *cluster.Worker) {
			for other, l := range lives {
				if other.ID == w.ID {
					l.followed = true
				}
			}
			lives[w] = &life{}
			worker(info, info, w, "spawned")
		},
		WorkerConnected: func(w *cluster.Worker) {
			lives[w].connected = true
			worker(debug, info, w, "connected")
		},
		Listening: func() { event(info, info, "listening for connections") },
		Closing:   func() { event(warn, info, "shutting down") },
		Close: func() {
			closed = true
			event(info, info, "shutdown complete")
		},
		WorkerKilled: func(w *cluster.Worker) {
			l := lives[w]
			delete(lives, w)
			if w.ProcessState == nil {
				worker(fail, warn, w, "died")
				return
			}
			level, console := fail, warn
			if l.obeyed(w.ProcessState) {
				level = info
				if w.ProcessState.Success() {
					console = info
				}
			}
			worker(level, console, w, "died: %v", w.ProcessState)
		},
		WorkerException: func(w *cluster.Worker, err error) {
			var e *cluster.Exception
			if !errors.As(err, &e) {
				worker(fail, fail, w, "failed: %v", err)
				return
			}
			emit(Record{fail, fail, fmt.Sprintf("worker %d uncaught exception %v", w.ID, err),
				append(attrs(w), slog.String("stack", string(e.Stack)))})
		},
		WorkerTimeout: func(w *cluster.Worker, after time.Duration) {
			lives[w].late = true
			worker(warn, warn, w, "timed out after %v", after)
		},
		WorkerWaiting: func(w *cluster.Worker, conns int) {
			s := "s"
			if conns == 1 {
				s = ""
			}
			worker(info, warn, w, "waiting on %d connection%s", conns, s)
		},
		WorkerRemoved: func(w *cluster.Worker) {
			lives[w].removed = true
			worker(info, info, w, "removed")
		},
		Kill: func(sig os.Signal) {
			for _, l := range lives {
				l.signals = append(l.signals, sig)
			}
			event(warn, warn, "kill("+signalName(sig)+")")
		},
		Restarting:    func(cluster.Values) { event(info, info, "restart requested") },
		Restart:       func(cluster.Values) { event(info, info, "restart complete") },
		RestartFailed: func(err error) { event(fail, fail, fmt.Sprintf("restart failed: %v", err)) },
		Reopen: func() {
			if !closed { // a stand-in has nothing to open
				event(info, info, "reopen requested")
			}
		},
		Message: func(w *cluster.Worker, name string, data json.RawMessage) {
			if w == nil { // Inline: from the process to itself
				event(debug, debug, fmt.Sprintf("message %q", name))
				return
			}
			worker(debug, debug, w, "message %q", name)
		},
	})
}

func attrs(w *cluster.Worker) []slog.Attr {
	return []slog.Attr{slog.Group("worker", "id", w.ID, "pid", w.Pid)}
}

// A life is what hooks have told about a worker that is not dead. It decides
// whether its death is worth an alarm.
type life struct {
	connected bool
	followed  bool        // another worker was started in its slot: it drains, or is about to
	removed   bool        // there should be one fewer
	late      bool        // it took too long, and is killed
	signals   []os.Signal // sent to all workers
}

// obeyed reports whether a worker has ended as it was told to.
func (l *life) obeyed(state *os.ProcessState) bool {
	if l.late || !l.followed && !l.removed && len(l.signals) == 0 {
		return false
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return state.Success()
	}
	switch sig := ws.Signal(); sig {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP:
		return true
	case syscall.SIGKILL:
		// Only one that has never served, or that was to be removed so, is
		// told by it alone. Others were killed while they drained.
		return !l.connected || l.removed || slices.Contains(l.signals, os.Signal(sig))
	default:
		return slices.Contains(l.signals, os.Signal(sig))
	}
}
