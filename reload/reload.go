/*
Package reload is a plugin that restarts a cluster when its files change. It is
for development, and for servers whose templates or configuration are deployed
by copying them:

	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(reload.New(nil, "templates", "config.json"))

A change of the paths restarts the workers, one after the other: each
successor is ready before its predecessor drains. With a server of package
handoff no request fails; with a plain http.Server one may that meets its idle
connection being closed.

A change of the program's own file restarts the whole cluster, as
Master.Restart does, so that go build is enough to see a new version. The file
is found as Restart finds it: by the name that the program was started under,
through symbolic links. A new version that doesn't become ready changes
nothing; the next change of the file tries again.

What can't be restarted or looked at is said in the master's ErrorLog.
*/
package reload

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
)

// Options say what is watched, and what is done.
type Options struct {
	// Interval is the time between two looks at the files. 0 is 100
	// milliseconds, or, if that is more, a millisecond for each file and
	// directory, so that looking takes less than 1% of a CPU.
	Interval time.Duration

	// Delay is the time for which nothing may change before a change is
	// acted upon, so that many together, and a file that is being written,
	// make one restart. 0 is 200 milliseconds.
	Delay time.Duration

	// Extensions are the endings of the files that count in a directory:
	// ".html". nil is all files.
	Extensions []string

	// IgnoreDirs are the names of directories that are not looked into,
	// wherever they are in a path that is watched. They are patterns as for
	// filepath.Match. nil is ".*", "node_modules", "vendor", "testdata",
	// "logs" and "pids".
	IgnoreDirs []string

	// Signal is what the old workers are sent, when their successors are
	// ready. nil is SIGQUIT, so that they drain.
	Signal os.Signal

	// NoProgram turns the watch of the program's own file off.
	NoProgram bool
}

// New returns a plugin that restarts the cluster when a file at the given
// paths changes, appears or disappears. A path is a file, or a directory with
// everything below it; relative ones are in the master's working directory.
// Without any, the program's own file alone is watched. A path that doesn't
// exist when the cluster starts is an error.
//
// Symbolic links to files are followed, those to directories only if they
// are one of the paths. What is no regular file doesn't count.
//
// The files are watched by a goroutine of the master. It ends when the master
// begins to shut down. With Inline there is nothing to be restarted.
func New(o *Options, paths ...string) cluster.Plugin {
	return func(m *cluster.Master) error {
		w, err := newWatcher(m, o, paths)
		if err != nil {
			return fmt.Errorf("reload: %w", err)
		}
		m.On(cluster.Hooks{
			Start:     w.start,
			Listening: func() { go w.run() },
			Closing:   w.stop,
			Close:     w.stop, // there is no Closing with Inline
		})
		return nil
	}
}

// A watcher watches the files of one master.
type watcher struct {
	Options
	m     *cluster.Master
	paths []string        // absolute
	ctx   context.Context // ends when the master begins to shut down
	stop  context.CancelFunc

	program, files subject
	entries        int    // of all directories, at the last look
	complaint      string // the error of the last look, to be logged once
}

func newWatcher(m *cluster.Master, o *Options, paths []string) (*watcher, error) {
	w := &watcher{m: m}
	w.ctx, w.stop = context.WithCancel(context.Background())
	if o != nil {
		w.Options = *o
	}
	switch {
	case w.Interval < 0:
		return nil, fmt.Errorf("the Interval is %v; it can't be negative", w.Interval)
	case w.Delay < 0:
		return nil, fmt.Errorf("the Delay is %v; it can't be negative", w.Delay)
	case w.Delay == 0:
		w.Delay = 200 * time.Millisecond
	}
	for _, ext := range w.Extensions {
		if !strings.HasPrefix(ext, ".") {
			return nil, fmt.Errorf("extension %q has no dot; write %q", ext, "."+ext)
		}
	}
	if w.IgnoreDirs == nil {
		w.IgnoreDirs = []string{".*", "node_modules", "vendor", "testdata", "logs", "pids"}
	}
	for _, pattern := range w.IgnoreDirs {
		if _, err := filepath.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("IgnoreDirs: %q: %w", pattern, err)
		}
	}
	if w.Signal == nil {
		w.Signal = syscall.SIGQUIT
	}
	for _, path := range paths {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		w.paths = append(w.paths, abs)
	}
	return w, nil
}

// start notes what the first workers, which are yet to be forked, will find.
// The program is as this process has found it.
func (w *watcher) start() error {
	for _, path := range w.paths {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("reload: %w; it is to be watched", err)
		}
	}
	files, err := w.look()
	if err != nil {
		return fmt.Errorf("reload: %w; keep it out with IgnoreDirs", err)
	}
	w.files.seen, w.files.done = files, files
	w.program.seen, w.program.done = firstProgram, firstProgram
	return nil
}

// run looks at the files until the master begins to shut down.
func (w *watcher) run() {
	timer := time.NewTimer(w.pause())
	defer timer.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-timer.C:
		}
		w.check()
		timer.Reset(w.pause())
	}
}

// pause returns the time until the next look.
func (w *watcher) pause() time.Duration {
	d := w.Interval
	if d == 0 {
		d = max(100*time.Millisecond, time.Duration(w.entries)*time.Millisecond)
	}
	if w.program.changed() || w.files.changed() {
		d = min(d, w.Delay)
	}
	return d
}

// check looks at everything once, and does what changes call for.
func (w *watcher) check() {
	began := time.Now()
	files, err := w.look()
	if err == nil {
		w.files.see(files)
		w.complaint = ""
	} else {
		w.files.since = time.Now() // who knows
		if w.complaint != err.Error() {
			w.complaint = err.Error()
			w.logf("reload: %v", err)
		}
	}
	if !w.NoProgram {
		w.program.see(findProgram())
	}
	since := began.Add(-w.Delay)
	err = nil
	switch {
	case w.program.changed():
		if !w.program.quiet(since) {
			return // changed files wait too
		}
		w.program.done, w.files.done = w.program.seen, w.files.seen
		err = w.m.Restart()
	case w.files.changed() && w.files.quiet(since):
		w.files.done = w.files.seen
		err = w.m.RestartWorkers(w.Signal)
	}
	if err != nil && !errors.Is(err, cluster.ErrNotRunning) {
		w.logf("reload: %v", err)
	}
}

func (w *watcher) logf(format string, args ...any) {
	if w.m.ErrorLog != nil {
		w.m.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

// A subject is what a restart is done for. A state of it is a number that is
// another when anything has changed, and 0 while there is none.
type subject struct {
	done  uint64    // the state that the cluster has, or that has failed
	seen  uint64    // at the last look
	since time.Time // when seen was first seen
}

func (s *subject) see(state uint64) {
	if state != s.seen {
		s.seen, s.since = state, time.Now()
	}
}

func (s *subject) changed() bool { return s.seen != 0 && s.seen != s.done }

// quiet reports whether nothing has changed since then.
func (s *subject) quiet(since time.Time) bool { return !s.since.After(since) }
