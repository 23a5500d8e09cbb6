//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package pidfiles

import (
	"errors"
	"os"
)

// errLocked is never returned: there are no such locks.
var errLocked = errors.New("locked")

func lockDir(dir string, share bool) (*os.File, error) { return nil, errors.ErrUnsupported }
