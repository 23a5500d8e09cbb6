//go:build unix

package handoff_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"

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
		used := make(map[string]bool)
		for _, e := range entries {
			used[e.Name()] = true
		}
		n := 0
		for free := 1; free < 3; n++ { // the one that has read the directory is free again
			if !used[strconv.Itoa(n)] {
				free++
			}
		}
		setFiles(n)
	}
	return s.Server.Serve(l)
}

// narrow has all workers be so from now on.
func (p *program) narrow() {
	if err := os.WriteFile(filepath.Join(p.Dir, "narrow"), nil, 0o666); err != nil {
		p.T.Fatal(err)
	}
}

// setFiles limits the number of descriptors of this process.
func setFiles(n int) {
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	set(&limit.Cur, n)
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

// set is for a field that is signed on some systems.
func set[T int64 | uint64](field *T, n int) { *field = T(n) }
