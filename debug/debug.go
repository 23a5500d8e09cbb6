/*
Package debug shows what happens in a cluster, on standard error:

	m := &cluster.Master{Addr: ":3000", Server: server, Workers: 2}
	m.Use(debug.New(nil))

prints, until it is stopped with Ctrl-C,

	   info - master started
	   info - worker 0 spawned
	   info - worker 1 spawned
	   info - worker 1 connected
	   info - worker 0 connected
	   info - listening for connections
	   info - shutting down
	warning - kill(SIGKILL)
	warning - worker 0 died: signal: killed
	warning - worker 1 died: signal: killed
	   info - shutdown complete

It is for somebody who watches. Package logger writes the same to a file, with
time and process ids.
*/
package debug

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"unicode"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/eventlog"
)

// Options are what can be set. The zero value has the defaults.
type Options struct {
	// Writer is what is written to, one line with each Write, and one Write
	// at a time. nil is os.Stderr. Errors are ignored.
	Writer io.Writer

	// Colors has colours written in any case. Otherwise there are some if
	// Writer is a terminal, and the environment has no NO_COLOR (see
	// https://no-color.org) that isn't empty, and no TERM=dumb. On Windows
	// there are none unless they are asked for.
	Colors bool

	// Level is the least level that is shown; nil shows everything. Messages
	// from workers are slog.LevelDebug. It is asked for every event.
	Level slog.Leveler
}

// New returns a plugin that shows the events of the master. nil is the same as
// &Options{}.
func New(o *Options) cluster.Plugin {
	if o == nil {
		o = new(Options)
	}
	return func(m *cluster.Master) error {
		if !m.IsMaster() {
			return nil
		}
		w := o.Writer
		if w == nil {
			w = os.Stderr
		}
		colors := o.Colors || wantsColors(w)
		var mu sync.Mutex // Restarting comes at any time
		eventlog.Attach(m, func(r eventlog.Record) {
			if o.Level != nil && r.Console < o.Level.Level() {
				return
			}
			line := []byte(format(r, colors))
			mu.Lock()
			defer mu.Unlock()
			w.Write(line)
		})
		return nil
	}
}

// The colours, as escape sequences.
const (
	grey   = "\033[90m"
	yellow = "\033[33m"
	red    = "\033[31m"
	reset  = "\033[0m"
)

// format returns the line for r.
func format(r eventlog.Record, colors bool) string {
	level, color := "info", ""
	switch {
	case r.Console >= slog.LevelError:
		level, color = "error", red
	case r.Console >= slog.LevelWarn:
		level, color = "warning", yellow
	case r.Console < slog.LevelInfo:
		level, color = "debug", grey
	}
	level = fmt.Sprintf("%7s", level)
	text := strings.Map(func(c rune) rune {
		if unicode.IsControl(c) { // a worker's last words are anything
			return ' '
		}
		return c
	}, r.Text)
	if !colors {
		return level + " - " + text + "\n"
	}
	if color != "" {
		level = color + level + reset
	}
	return level + grey + " - " + text + reset + "\n"
}

// wantsColors reports whether w is a terminal whose user has not said no.
func wantsColors(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && runtime.GOOS != "windows" && isTerminal(w)
}

// isTerminal takes every character device for a terminal: the others, like the
// null device, don't mind.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
