/*
Package pidfiles is a plugin that writes the process ids of a cluster's
processes to files, for scripts and service managers:

	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(pidfiles.New("pids"))

Its directory then has

	master.pid
	worker.0.pid
	worker.1.pid

with a process id and a newline each. They are written atomically, with mode
0644, and the directory is made if need be. It stays when the cluster ends;
the files don't.

master.pid is there when the first worker is forked, a worker's file when that
is ready. In a rolling restart it changes to that of the successor, when that
is ready. In a restart the files are those of the old master until the new
one's workers are all ready, and those of the new one before the old one is
told to go. If the restart fails then, they become the old one's again.

# Two clusters

A directory is for one cluster at a time. Its masters hold a lock on it, that
of flock(2), so that a start in the directory of a running cluster is an error
and changes nothing. What a cluster has left behind that was killed outright is
replaced, whatever process has been given the same id since. On file systems
without such locks, and on Windows, the process ids alone decide.

# What can't be written

At the start it is an error if master.pid can't be written. Later, when the
disk is full, say, the cluster goes on: the master says so once, and tries
again every second until the files are what they should be.
*/
package pidfiles

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
)

// ErrRunning is wrapped by the error of a start in the directory of a
// cluster that is running.
var ErrRunning = errors.New("is running")

// inUse is what InUse returns.
var inUse atomic.Value

// New returns a plugin that writes pidfiles to dir, "pids" if it is "". The
// master does so, and logs to its ErrorLog what can't be written later than
// at the start. In workers the plugin only remembers the directory.
func New(dir string) cluster.Plugin {
	if dir == "" {
		dir = "pids"
	}
	return func(m *cluster.Master) error {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("pidfiles: %w", err)
		}
		inUse.Store(Dir(abs))
		w := &writer{dir: Dir(abs), m: m, pids: make(map[string]int)}
		m.On(cluster.Hooks{
			Start:           w.start,
			WorkerConnected: w.connected,
			Listening:       w.listening,
			WorkerKilled:    w.killed,
			Restart:         func(cluster.Values) { w.repair() }, // what the old master has removed just as we wrote it
			RestartFailed:   func(error) { w.repair() },
			Close:           w.close,
		})
		return nil
	}
}

// InUse returns the directory that the plugin of this process uses, as an
// absolute path. It is "" before ListenAndServe or Start has run the plugin.
func InUse() Dir {
	d, _ := inUse.Load().(Dir)
	return d
}

// PidOf is InUse().PidOf. It is for master and workers alike.
func PidOf(name string) (int, error) {
	d, err := current()
	if err != nil {
		return 0, err
	}
	return d.PidOf(name)
}

// WorkerPids is InUse().WorkerPids. It is for master and workers alike.
func WorkerPids() ([]int, error) {
	d, err := current()
	if err != nil {
		return nil, err
	}
	return d.WorkerPids()
}

func current() (Dir, error) {
	if d := InUse(); d != "" {
		return d, nil
	}
	return "", errors.New("pidfiles: the plugin has not run in this process; use a Dir")
}

// A writer writes the pidfiles of one master. During a restart two masters
// have one for the same directory. The files are those of the old one until
// the new one, at Listening, overwrites master.pid and then the others; by
// master.pid the old one sees that it must write no more. Each removes only
// what has its own process ids.
type writer struct {
	dir Dir
	m   *cluster.Master

	mu   sync.Mutex     // guards the following
	lock *os.File       // nil if the directory isn't, or can't be, locked
	ours bool           // the files are this master's to write
	late bool           // they are not what they should be: that has been said, and is tried again
	pids map[string]int // what should be in them
}

// start makes the directory ours, and writes the first master's file.
func (w *writer) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := os.MkdirAll(string(w.dir), 0o755); err != nil {
		return fmt.Errorf("pidfiles: %w", err)
	}
	if err := w.acquire(); err != nil {
		return fmt.Errorf("pidfiles: %w", err)
	}
	w.pids[master] = os.Getpid()
	if w.m.Predecessor() != 0 {
		return nil
	}
	w.ours = true
	if err := w.write(master); err != nil {
		return fmt.Errorf("pidfiles: %w", err)
	}
	w.failed(w.clean())
	return nil
}

// acquire makes the directory ours, unless another cluster has it. A new
// master shares it with its predecessor.
func (w *writer) acquire() error {
	path, old := w.dir.path(master), w.m.Predecessor()
	for late := time.Now().Add(time.Second); ; time.Sleep(10 * time.Millisecond) {
		pid, err := read(path)
		other := err == nil && pid != os.Getpid() && pid != old && alive(pid)
		w.lock, err = lockDir(string(w.dir), old != 0 && !other)
		switch {
		case err == nil, !other && !errors.Is(err, errLocked): // it can't be locked
			return nil
		case other:
			return fmt.Errorf("%s: process %d %w; stop it first or use another directory", path, pid, ErrRunning)
		case time.Now().After(late): // not one that is just starting or ending
			return fmt.Errorf("%s: another cluster %w; stop it first or use another directory", w.dir, ErrRunning)
		}
	}
}

// alive reports whether there is a process with this id.
func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer p.Release()
	return !errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone)
}

// connected is for a worker that is ready: from now on it is the one in its
// slot.
func (w *writer) connected(wk *cluster.Worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := workerName(wk)
	w.pids[name] = wk.Pid
	if w.ours && !w.replaced() {
		w.failed(w.write(name))
	}
}

// listening is where a new master's turn begins.
func (w *writer) listening() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ours {
		return
	}
	w.ours = true
	w.failed(w.write(master)) // first: see replaced
	for name := range w.pids {
		if name != master {
			w.failed(w.write(name))
		}
	}
}

func (w *writer) killed(wk *cluster.Worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := workerName(wk)
	if w.pids[name] == wk.Pid {
		delete(w.pids, name)
	}
	w.failed(w.remove(name, wk.Pid))
}

// repair makes the files what they should be, unless it is another master's
// turn. None other is alive that could be writing.
func (w *writer) repair() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed(w.sync())
}

func (w *writer) sync() (err error) {
	if !w.ours || w.replaced() {
		return nil
	}
	for name, pid := range w.pids {
		if got, rerr := read(w.dir.path(name)); rerr != nil || got != pid {
			err = errors.Join(err, w.write(name))
		}
	}
	return errors.Join(err, w.clean())
}

// retry is when what could not be written is tried again.
const retry = time.Second

// failed is for errors that don't keep the cluster from running.
func (w *writer) failed(err error) {
	if err == nil || w.late {
		return
	}
	w.late = true
	logf := log.Printf
	if w.m.ErrorLog != nil {
		logf = w.m.ErrorLog.Printf
	}
	logf("pidfiles: %v; trying again", err)
	time.AfterFunc(retry, w.again)
}

func (w *writer) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.late = w.sync() != nil; w.late {
		time.AfterFunc(retry, w.again)
	}
}

func (w *writer) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, pid := range w.pids {
		w.failed(w.remove(name, pid))
	}
	clear(w.pids)
	w.ours = false
	if w.lock != nil {
		w.lock.Close()
		w.lock = nil
	}
}

// replaced reports whether a new master has written its files.
func (w *writer) replaced() bool {
	pid, err := read(w.dir.path(master))
	return err == nil && pid != os.Getpid() && pid != w.m.Predecessor() && alive(pid)
}

const temporary = ".pidfile-"

// write writes the file of one process.
func (w *writer) write(name string) (err error) {
	f, err := os.CreateTemp(string(w.dir), temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = fmt.Fprintln(f, w.pids[name])
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), w.dir.path(name))
}

// remove removes the file of a process, if that is still what it says.
func (w *writer) remove(name string, pid int) error {
	if got, err := read(w.dir.path(name)); err != nil || got != pid {
		return nil
	}
	return w.unlink(name + suffix)
}

// clean removes the files of processes that are not ours.
func (w *writer) clean() error {
	entries, err := os.ReadDir(string(w.dir))
	for _, e := range entries {
		name, isPid := strings.CutSuffix(e.Name(), suffix)
		_, known := number(name)
		if isPid && known && w.pids[name] == 0 || strings.HasPrefix(e.Name(), temporary) {
			err = errors.Join(err, w.unlink(e.Name()))
		}
	}
	return err
}

func (w *writer) unlink(file string) error {
	err := os.Remove(filepath.Join(string(w.dir), file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func workerName(w *cluster.Worker) string { return fmt.Sprintf("%s%d", worker, w.ID) }
