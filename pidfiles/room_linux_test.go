package pidfiles_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gocluster/cluster/internal/clustertest"
)

// Where nothing can be written any more the cluster runs, and restarts, as
// ever. That is said once by each of the masters, and the files follow when
// they can.
func TestNoRoom(t *testing.T) {
	for name, medium := range map[string]struct {
		fill, empty func(dir string) error
	}{
		"full": {
			func(dir string) error {
				if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20), 0o644); err != nil && !strings.Contains(err.Error(), "no space") {
					return err
				}
				return nil
			},
			func(dir string) error { return os.Remove(filepath.Join(dir, "filler")) },
		},
		"read-only": {
			func(dir string) error {
				return syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
			},
			func(dir string) error { return syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, "") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := command(t)
			if err := os.MkdirAll(s.pids, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount("none", s.pids, "tmpfs", 0, "size=64k"); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(s.pids, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			s.Start()
			pids := s.up()
			must(medium.fill(s.pids))
			for _, id := range []string{"2", "3"} { // it is said once
				s.Signal(syscall.SIGTTIN)
				pids["worker."+id] = s.WaitPid("ready", id)
			}
			s.WaitLog("; trying again")
			dial(t, s).Close()
			must(medium.empty(s.pids))
			s.follows(t, pids)

			must(medium.fill(s.pids))
			s.Signal(syscall.SIGUSR2)
			pids = s.up()
			s.Wait("restarted")
			if !clustertest.Eventually(clustertest.Patience, func() bool { return strings.Count(s.Log(), "; trying again") >= 2 }) {
				t.Error("the new master doesn't say that it can't write")
			}
			must(medium.empty(s.pids))
			s.follows(t, pids)
			s.quit(t)
			for line := range strings.Lines(s.Log()) {
				if !strings.Contains(line, " pidfiles: ") || !strings.HasSuffix(line, "; trying again\n") {
					t.Errorf("standard error has %q", line)
				}
			}
			if n := strings.Count(s.Log(), "; trying again"); n > 3 { // the old master may have to say something, too
				t.Errorf("it was said %d times:\n%s", n, s.Log())
			}
		})
	}
}
