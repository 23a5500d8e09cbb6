//go:build unix

package handoff_test

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
)

// A narrow server runs in a worker that has few descriptors to spare, if its
// directory has a file "narrow".
type narrow struct{ cluster.Server }

func (s narrow) Serve(l net.Listener) error {
	if _, err := os.Stat("narrow"); err == nil {
		entries, err := os.ReadDir("/dev/fd")
		if err != nil {
			return err
		}
		setFiles(len(entries) + 6)
	}
	return s.Server.Serve(l)
}

// setFiles limits the number of descriptors of this process.
func setFiles(n int) {
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	limit.Cur = uint64(n)
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}
