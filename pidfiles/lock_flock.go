//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package pidfiles

import (
	"errors"
	"os"
	"syscall"
)

// errLocked is the error of lockDir if somebody else has the lock.
var errLocked = syscall.EWOULDBLOCK

// lockDir locks a directory against those that call it without share, until
// the file is closed or this process ends. Without share it fails if anybody
// has locked it. Any other error than errLocked says that it can't be locked.
func lockDir(dir string, share bool) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if !share {
		err = flock(f, syscall.LOCK_EX) // none but a new master of ours may share it
	}
	if err == nil {
		err = flock(f, syscall.LOCK_SH)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
