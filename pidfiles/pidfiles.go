// Package pidfiles is a plugin that writes the process ids of a cluster's
// master and workers to files.
package pidfiles

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/gocluster/cluster"
)

// ErrRunning is wrapped by the error of a start in a directory whose
// master.pid belongs to a running cluster.
var ErrRunning = errors.New("is running")

// inUse is what InUse returns.
var inUse atomic.Value

// New returns a plugin that writes pidfiles to dir, "pids" if it is "".
func New(dir string) cluster.Plugin {
	return func(m *cluster.Master) error {
		if dir == "" {
			dir = "pids"
		}
		abs, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("pidfiles: %w", err)
		}
		inUse.Store(Dir(abs))
		return nil
	}
}

// InUse returns the absolute path of the directory that this process's
// plugin uses, or "" if none has been run.
func InUse() Dir {
	d, _ := inUse.Load().(Dir)
	return d
}

// PidOf is the method of the directory that this process's plugin uses.
func PidOf(name string) (int, error) {
	d, err := current()
	if err != nil {
		return 0, err
	}
	return d.PidOf(name)
}

// WorkerPids is the method of the directory that this process's plugin uses.
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
	return "", errors.New("pidfiles: the plugin has not been run in this process; use a Dir")
}
