//go:build !cluster_nofork

package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stranger is the user id of somebody else.
const stranger = 54321

// asStranger calls f in a thread whose files are somebody else's. The thread
// is not used again.
func asStranger(t *testing.T, f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		if unix.Setfsgid(stranger); unix.Setfsuid(stranger) != nil {
			t.Error("can't be somebody else")
			return
		}
		f()
	}()
	<-done
}

// openDir returns a directory that everybody can write to, strangers included.
func openDir(t *testing.T, mode os.FileMode) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "cluster") // t.TempDir's name leaves no room for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

// snapshot tells all of a file but its times.
func snapshot(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	target, _ := os.Readlink(path)
	var content []byte
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		content, _ = os.ReadFile(path)
	}
	return fmt.Sprintf("inode %d mode %o owner %d links %d %s%s", st.Ino, st.Mode, st.Uid, st.Nlink, target, content)
}

func mustBind(t *testing.T, path string) *net.UnixListener {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Error(err)
		return nil
	}
	l.SetUnlinkOnClose(false)
	return l
}

// What somebody has put where the master socket should be stays as it is, and
// so does what it points to. The error tells which file it is.
func TestMasterSocketLeavesTheFilesOfOthersAlone(t *testing.T) {
	for _, mode := range []os.FileMode{os.ModeSticky | 0o777, 0o777} {
		for name, plant := range map[string]func(path, precious string) error{
			"link to a file":           func(path, precious string) error { return os.Symlink(precious, path) },
			"link to nothing":          func(path, precious string) error { return os.Symlink(precious+"-not", path) },
			"link to a directory":      func(path, precious string) error { return os.Symlink(filepath.Dir(precious), path) },
			"link to a stale socket":   func(path, precious string) error { return os.Symlink(precious+".stale", path) },
			"file":                     func(path, _ string) error { return os.WriteFile(path, []byte("mine"), 0o644) },
			"named pipe":               func(path, _ string) error { return unix.Mkfifo(path, 0o666) },
			"directory":                func(path, _ string) error { return os.Mkdir(path, 0o755) },
			"socket with a listener":   func(path, _ string) error { l := mustBind(t, path); t.Cleanup(func() { l.Close() }); return nil },
			"socket that nobody holds": func(path, _ string) error { return mustBind(t, path).Close() },
			"datagram socket": func(path, _ string) error {
				c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
				if err == nil {
					t.Cleanup(func() { c.Close() })
				}
				return err
			},
		} {
			t.Run(fmt.Sprintf("%s, %v", name, mode), func(t *testing.T) {
				dir, home := openDir(t, mode), t.TempDir()
				path := filepath.Join(dir, "m.sock")
				precious := filepath.Join(home, "precious")
				if err := os.WriteFile(precious, []byte("precious"), 0o644); err != nil {
					t.Fatal(err)
				}
				staleSocket(t, precious+".stale")
				asStranger(t, func() {
					if err := plant(path, precious); err != nil {
						t.Error(err)
					}
				})
				all := []string{path, precious, precious + ".stale", precious + "-not", home}
				var before, after []string
				for _, file := range all {
					before = append(before, snapshot(file))
				}
				s, err := listenMaster(dir, "m.sock", t.Logf)
				if err == nil {
					s.close()
					t.Fatal("no error")
				}
				for _, want := range []string{path, "SocketPath", "in use"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("the error doesn't say %q: %v", want, err)
					}
				}
				for _, file := range all {
					after = append(after, snapshot(file))
				}
				if !slices.Equal(before, after) {
					t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
				}

				// In the place of the socket of a master that is gone, likewise.
				stale := filepath.Join(dir, "cluster.99999999.server.sock")
				if err := os.Rename(path, stale); err != nil {
					t.Fatal(err)
				}
				want := snapshot(stale)
				s, err = listenMaster(dir, "", t.Logf)
				if err != nil {
					t.Fatal(err)
				}
				s.close()
				if got := snapshot(stale); got != want {
					t.Errorf("before: %s, after: %s", want, got)
				}
			})
		}
	}
}

// In a directory where others can do that, the master socket may be replaced.
// What is in its place is neither removed nor moved.
func TestMasterSocketThatSomebodyReplaces(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"link":           func(path string) error { return os.Symlink("/etc/passwd", path) },
		"link to itself": func(path string) error { return os.Symlink(path, path) },
		"file":           func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"socket":         func(path string) error { return mustBind(t, path).Close() },
		"moved away":     func(path string) error { return os.Symlink(path+"-old", path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := openDir(t, 0o777)
			s, err := listenMaster(dir, "m.sock", t.Logf)
			if err != nil {
				t.Fatal(err)
			}
			asStranger(t, func() {
				if err := errors.Join(os.Rename(s.path, s.path+"-old"), plant(s.path)); err != nil {
					t.Error(err)
				}
			})
			before := snapshot(s.path)
			s.want = filepath.Join(dir, "want")
			s.takeOver()
			s.close()
			if after := snapshot(filepath.Join(dir, "m.sock")); after != before {
				t.Errorf("before: %s, after: %s", before, after)
			}
			if _, err := os.Lstat(s.want); err == nil {
				t.Error("somebody's file has been moved")
			}
		})
	}
	t.Run("in the old master's place", func(t *testing.T) {
		dir := openDir(t, os.ModeSticky|0o777)
		s, err := listenMaster(dir, "m.sock", t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		s.want = filepath.Join(dir, "want")
		asStranger(t, func() {
			if err := os.WriteFile(s.want, []byte("mine"), 0o644); err != nil {
				t.Error(err)
			}
		})
		before := snapshot(s.want)
		s.takeOver()
		s.close()
		if after := snapshot(s.want); after != before {
			t.Errorf("before: %s, after: %s", before, after)
		}
	})
}

// Whatever somebody does in the directory meanwhile, and however quickly,
// nothing that a link points to is touched, and no file of theirs.
func TestRacesInTheSocketsDirectory(t *testing.T) {
	for _, mode := range []os.FileMode{os.ModeSticky | 0o777, 0o777} {
		t.Run(mode.String(), func(t *testing.T) {
			dir, home := openDir(t, mode), t.TempDir()
			precious, stale := filepath.Join(home, "precious"), filepath.Join(home, "stale")
			if err := os.WriteFile(precious, []byte("precious"), 0o644); err != nil {
				t.Fatal(err)
			}
			staleSocket(t, stale)
			before := snapshot(precious) + snapshot(stale) + snapshot(home)
			path := filepath.Join(dir, "m.sock")
			stop, stopped := make(chan struct{}), make(chan int)
			go func() {
				n := 0
				defer func() { stopped <- n }()
				asStranger(t, func() {
					moves := []func() error{
						func() error { return os.Symlink(precious, path) },
						func() error { return os.Symlink(stale, path) },
						func() error { return os.WriteFile(path, []byte("mine"), 0o644) },
						func() error { return unix.Mkfifo(path, 0o666) },
						func() error {
							l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
							if err == nil {
								l.SetUnlinkOnClose(false)
								l.Close()
							}
							return err
						},
					}
					for i := 0; ; i++ {
						select {
						case <-stop:
							os.Remove(path)
							return
						default:
						}
						if moves[i%len(moves)]() == nil {
							n++
						}
						if i%3 == 0 {
							os.Remove(path)
						}
					}
				})
			}()
			won := 0
			for range 2000 {
				s, err := listenMaster(dir, "m.sock", t.Logf)
				if err != nil {
					if !strings.Contains(err.Error(), "SocketPath") || !errors.Is(err, syscall.EADDRINUSE) {
						t.Errorf("an unclear error: %v", err)
					}
					continue
				}
				won++
				s.close()
			}
			close(stop)
			planted := <-stopped
			t.Logf("somebody came first %d times, the socket was made %d times", planted, won)
			if after := snapshot(precious) + snapshot(stale) + snapshot(home); after != before {
				t.Errorf("before: %s, after: %s", before, after)
			}
			if info, err := os.Lstat(path); err == nil && mode&os.ModeSticky != 0 {
				t.Errorf("the last socket is left behind: %v", info.Mode())
			}
		})
	}
}
