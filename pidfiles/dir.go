package pidfiles

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	master = "master"
	worker = "worker."
	suffix = ".pid"
)

// A Dir is a directory of pidfiles. Its methods read it, in any process.
type Dir string

// PidOf returns the process id of "master" or "worker.0", as its pidfile has
// it. Without such a file the error wraps fs.ErrNotExist.
func (d Dir) PidOf(name string) (int, error) {
	if _, ok := number(name); !ok {
		return 0, fmt.Errorf("pidfiles: %q names no process; write master or worker.0", name)
	}
	pid, err := read(d.path(name))
	if err != nil {
		return 0, fmt.Errorf("pidfiles: %w", err)
	}
	return pid, nil
}

// WorkerPids returns the process ids of the workers, in the order of the
// workers' ids.
func (d Dir) WorkerPids() ([]int, error) {
	names, err := d.Names()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if name == master {
			continue
		}
		pid, err := d.PidOf(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the worker has just died
		}
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Names returns the names of the processes that have a pidfile: "master"
// first, then "worker.0" and so on, in the order of the workers' ids.
func (d Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("pidfiles: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if _, known := number(name); ok && known {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		m, _ := number(a)
		n, _ := number(b)
		return cmp.Compare(m, n)
	})
	return names, nil
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name+suffix) }

// number returns the worker id in a process's name, and -1 for the master.
func number(name string) (id int, ok bool) {
	if name == master {
		return -1, true
	}
	digits, ok := strings.CutPrefix(name, worker)
	id, err := strconv.Atoi(digits)
	return id, ok && err == nil && id >= 0 && strconv.Itoa(id) == digits
}

// read returns the process id that is in a file.
func read(path string) (int, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() { // a pipe would block
		return 0, fmt.Errorf("%s is no regular file", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := bytes.TrimSpace(data)
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s: %.20q is no process id", path, text)
	}
	return pid, nil
}
