//go:build unix && !aix && !solaris

package logger

import (
	"errors"
	"os"
)

// reopenFile makes f the file that has its name now. The descriptor stays the
// same, and open: a worker may be started with it at any time.
func reopenFile(f *os.File) error {
	next, err := openFile(f.Name())
	if err != nil {
		return err
	}
	defer next.Close()
	to, err := f.SyscallConn() // Fd would make it blocking
	if err != nil {
		return err
	}
	from, err := next.SyscallConn()
	if err != nil {
		return err
	}
	var dupErr error
	err = to.Control(func(newfd uintptr) {
		err := from.Control(func(oldfd uintptr) { dupErr = dup(int(oldfd), int(newfd)) })
		dupErr = errors.Join(dupErr, err)
	})
	if err := errors.Join(err, dupErr); err != nil {
		return &os.PathError{Op: "dup", Path: f.Name(), Err: err}
	}
	return nil
}
