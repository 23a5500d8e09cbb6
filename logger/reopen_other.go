//go:build !unix || aix || solaris

package logger

import (
	"errors"
	"os"
)

// reopenFile can't do it here.
func reopenFile(f *os.File) error {
	return &os.PathError{Op: "reopen", Path: f.Name(), Err: errors.ErrUnsupported}
}
