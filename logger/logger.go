/*
Package logger writes what happens in a cluster, and what its workers print,
to files:

	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(logger.New("/var/log/app", nil))

makes, in a directory that it makes too if there is none,

	master.log            the events of the master, as log/slog's text
	workers.access.log    the workers' standard output
	workers.error.log     the workers' standard error

All are opened to append, with mode 0644. A worker is given its two files by
the master, even if it runs as a user who could not open them, and writes
them itself: that costs the master nothing, and what a worker says after its
master has died is not lost.

# master.log

A record of master.log has the master's process id as pid: in a restart there
are two of them. Those about a worker have its id and process id:

	time=… level=INFO msg="worker 0 spawned" pid=4711 worker.id=0 worker.pid=4716

Shutdowns, signals to the workers and timeouts are warnings. Exceptions, with
the stack, failed restarts and deaths are errors; but the death of a worker
that was told to end and did is not. That workers are ready and send messages
is for slog.LevelDebug.

What nobody can be told as an error goes to the log package's standard logger,
and to master.log as an error: New's plugin sets Master.ErrorLog so. An
ErrorLog that is already set stays as it is.

# Rotation

On SIGUSR1 all files are opened anew under their names, and all workers that
run get the new ones, also those of an old master that drain. No line is lost
if the old files were renamed before, as logrotate does:

	/var/log/app/*.log {
		daily
		rotate 7
		missingok
		compress
		delaycompress
		sharedscripts
		postrotate
			kill -USR1 $(cat /run/app/master.pid)
		endscript
	}

The signal doesn't wait for the workers, hence delaycompress. A file that
can't be opened is reported to ErrorLog; the old one is then kept, until the
next SIGUSR1.

A full disk stops nobody: records are lost, and ErrorLog is told so once.
*/
package logger

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/eventlog"
)

// New returns a plugin that writes log files in dir, "" being "logs"; a
// relative dir is one of Master.Dir. Records of master.log below level are
// left out; nil is slog.LevelInfo. level is asked in the master, every time.
//
// The files are opened in the Start hook. If one can't be, the start fails.
// They are closed when the master has shut down.
//
// Where Master.Stdout or Master.Stderr is set, the workers' output goes there,
// and the file for it isn't made. With Master.Inline, and on systems without
// workers, the process keeps its output too, and there is master.log alone;
// where there are no signals it isn't opened anew.
func New(dir string, level slog.Leveler) cluster.Plugin {
	if dir == "" {
		dir = "logs"
	}
	return func(m *cluster.Master) error {
		if !m.IsMaster() {
			return nil
		}
		path, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("logger: %s: %w; set an absolute path", dir, err)
		}
		l := &logger{m: m, dir: path, fallback: m.ErrorLog}
		l.log = slog.New(slog.NewTextHandler(&l.master, &slog.HandlerOptions{Level: level})).With("pid", os.Getpid())
		if m.ErrorLog == nil {
			l.fallback = log.Default()
			m.ErrorLog = log.New((*errorLog)(l), "", 0)
		}
		l.errors = m.ErrorLog
		l.master.failed = func(err error) {
			l.fallback.Printf("logger: %v; records are lost until it can be written again", err)
		}
		m.On(cluster.Hooks{Start: l.open, Reopen: l.reopen}) // before they are told
		eventlog.Attach(m, func(r eventlog.Record) {
			l.log.LogAttrs(context.Background(), r.Level, r.Text, r.Attrs...)
		})
		m.On(cluster.Hooks{Close: l.close})
		return nil
	}
}

// A logger is the plugin in one master.
type logger struct {
	m        *cluster.Master
	dir      string
	log      *slog.Logger // to master
	master   masterLog
	errors   *log.Logger // Master.ErrorLog
	fallback *log.Logger // the same, but never master
	files    []*os.File  // that are open
}

// open is the Start hook.
func (l *logger) open() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return openError(err)
	}
	f, err := l.add("master.log")
	if err != nil {
		return err
	}
	l.master.file.Store(f)
	if l.m.IsWorker() { // Inline
		return nil
	}
	if l.m.Stdout == nil {
		if l.m.Stdout, err = l.add("workers.access.log"); err != nil {
			return err
		}
	}
	if l.m.Stderr == nil {
		if l.m.Stderr, err = l.add("workers.error.log"); err != nil {
			return err
		}
	}
	return nil
}

func (l *logger) add(name string) (*os.File, error) {
	f, err := openFile(filepath.Join(l.dir, name))
	if err != nil {
		return nil, openError(err)
	}
	l.files = append(l.files, f)
	return f, nil
}

func openError(err error) error {
	return fmt.Errorf("logger: %w; set a directory that the master can write", err)
}

func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
}

// reopen is the Reopen hook.
func (l *logger) reopen() {
	for _, f := range l.files {
		if err := reopenFile(f); err != nil {
			l.errors.Printf("logger: %v; going on with the old file", err)
		}
	}
}

// close is the Close hook. A stand-in has no use for the files, and would keep
// them on the disk when they have been removed.
func (l *logger) close() {
	l.master.file.Store(nil)
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
}

// An errorLog is what Master.ErrorLog writes to.
type errorLog logger

func (l *errorLog) Write(p []byte) (int, error) {
	text := strings.TrimSuffix(string(p), "\n")
	l.fallback.Print(text)
	l.log.Error(text)
	return len(p), nil
}

// A masterLog is master.log while it is open. It is written to by one record
// at a time.
type masterLog struct {
	file    atomic.Pointer[os.File]
	failing bool
	failed  func(error) // called with the first of a row of errors
}

func (w *masterLog) Write(p []byte) (int, error) {
	f := w.file.Load()
	if f == nil {
		return len(p), nil
	}
	n, err := f.Write(p)
	if errors.Is(err, os.ErrClosed) {
		return n, err
	}
	if err != nil && !w.failing {
		w.failed(err)
	}
	w.failing = err != nil
	return n, err
}
