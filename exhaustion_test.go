//go:build linux && !cluster_nofork

package cluster_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
)

// threads returns how many threads a process has.
func threads(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// limitFiles leaves a process room for n descriptors more, until lift is
// called.
func limitFiles(t testing.TB, pid, n int) (lift func()) {
	t.Helper()
	used := make(map[int]bool)
	for _, f := range descriptors(pid) {
		name, _, _ := strings.Cut(f, " ")
		fd, _ := strconv.Atoi(name)
		used[fd] = true
	}
	fd := 0
	for ; used[fd] || n > 0; fd++ {
		if !used[fd] {
			n--
		}
	}
	var old unix.Rlimit
	err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old)
	if err == nil {
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd), Max: old.Max}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// busy returns how much processor time a process takes within a second.
func busy(t testing.TB, pid int) time.Duration {
	t.Helper()
	ticks := func() (n int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		for _, field := range fields[11:13] { // in user and in system mode
			ticks, _ := strconv.Atoi(field)
			n += ticks
		}
		return n
	}
	before := ticks()
	time.Sleep(time.Second)
	return time.Duration(ticks()-before) * time.Second / 100
}

// maxBusy is what a process may take that has nothing to do but to try again
// now and then.
const maxBusy = 300 * time.Millisecond

// said checks that standard error has so many lines with text.
func (p *proc) said(want int, text string) {
	p.t.Helper()
	if got := strings.Count(p.log(), text); got != want {
		p.t.Errorf("%d lines say %q, want %d:\n%s", got, text, want, p.log())
	}
}

// What is said when workers can't be started, and when they can again.
const (
	cannot = "; trying again\n"
	canNow = "cluster: no worker waits to be started any more\n"
)

// The master needs no thread for each worker: one that it can't have would be
// its end.
func TestMasterNeedsFewThreads(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	before := threads(t, p.pid())
	p.mustCall("spawn 30")
	waitWorkers(p, 32)
	if after := threads(t, p.pid()); after > before+8 {
		t.Errorf("%d threads with 32 workers, %d with 2", after, before)
	}
	p.quit()
}

// A master that has no descriptors left goes on, says so once, and replaces
// its workers when it has some again.
func TestMasterOutOfFiles(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	before := p.masterInfo()
	lift := limitFiles(t, p.pid(), 0)
	kill(t, p.workers()[0], syscall.SIGKILL)
	p.wait("killed")
	p.waitLog(cannot)
	p.mustCall("spawn 1")
	if got := p.call("replace 1"); !strings.Contains(got, "too many open files") {
		t.Errorf("replace: %q", got)
	}
	if d := busy(t, p.pid()); d > maxBusy {
		t.Errorf("the master takes %v in a second", d)
	}
	p.get("/")
	p.said(1, cannot)
	p.said(1, "too many open files")
	p.said(0, canNow)
	lift()
	waitWorkers(p, 3)
	p.waitLog(canNow)

	// Wherever it runs out on the way, nothing is lost.
	for room := range 16 {
		lift := limitFiles(t, p.pid(), room)
		kill(t, p.workers()[0], syscall.SIGKILL)
		p.wait("killed")
		p.get("/")
		p.mustCall("send 1 name text") // the supervisor answers
		lift()
		waitWorkers(p, 3)
	}
	p.said(strings.Count(p.log(), canNow), cannot)
	p.mustCall("remove 1")
	waitWorkers(p, 2)
	p.noMoreFiles(before)
	p.quit()
}

// noMoreFiles waits until the master has no more open files than before.
func (p *proc) noMoreFiles(before info) {
	p.t.Helper()
	var after info
	if !eventually(5*time.Second, func() bool {
		after = p.masterInfo()
		return len(after.Files) <= len(before.Files)
	}) {
		p.t.Errorf("files %q, before %q", after.Files, before.Files)
	}
}

// A restart for which there are no descriptors changes nothing.
func TestRestartOutOfFiles(t *testing.T) {
	t.Parallel()
	f := startFleet(t, "v1", "workers=2")
	load := f.load()
	load.more(5)
	processes, open := f.processes(3), len(f.masterInfo(f.master).Files)
	f.flip("v2")
	for room := range 8 {
		lift := limitFiles(t, f.master, room)
		f.signal(syscall.SIGUSR2)
		if e := f.wait("restart failed"); !strings.Contains(e.Text, "too many open files") {
			t.Errorf("room for %d: %s", room, e.Text)
		}
		load.more(5)
		lift()
		f.settled(processes)
	}
	load.only("v1")
	var now int
	if !eventually(patience, func() bool { now = len(f.masterInfo(f.master).Files); return now <= open }) {
		t.Errorf("%d open files in the master, before %d", now, open)
	}
	f.upgrade("v2")
	load.end()
	f.wantVersion("v2")
	f.quit()
}

// talk makes a request of the helper "http" or "tcp", which has one worker.
func talk(p *proc, server string, c net.Conn) {
	p.t.Helper()
	line, want := "hello\n", "hello"
	if server == "http" {
		line, want = "GET / HTTP/1.1\r\nHost: cluster\r\n\r\n", strconv.Itoa(p.workers()[0])
	}
	io.WriteString(c, line)
	r := bufio.NewReader(c)
	var err error
	got := ""
	if server == "http" {
		got, err = readResponse(r)
	} else {
		got, err = r.ReadString('\n')
	}
	if err != nil || !strings.Contains(got, want) {
		p.t.Errorf("answer %q, %v", got, err)
	}
}

// A worker that has no descriptors left serves the connections that it has,
// and accepts others later.
func TestWorkerOutOfFiles(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"http", "tcp"} {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			p := serve(t, server, "workers=1", "heartbeat=1s")
			first := p.dial()
			talk(p, server, first)
			lift := limitFiles(t, p.workers()[0], 0)
			later := p.dial()
			p.waitLog("too many open files")
			if d := busy(t, p.workers()[0]); d > maxBusy {
				t.Errorf("the worker takes %v in a second", d)
			}
			talk(p, server, first)
			if server == "tcp" { // net/http has words of its own
				p.said(1, "too many open files")
			}
			lift()
			talk(p, server, later)
			first.Close()
			later.Close()
			if n := len(p.history("connected")); n != 1 {
				t.Errorf("%d workers have been started", n)
			}
			p.quit()
		})
	}
}

func init() {
	// limitprocesses has the master limit itself: root may not be allowed to do it to
	// processes of others.
	commands["limitprocesses"] = func(_ *cluster.Master, args []string) string {
		var limit unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_NPROC, &limit)
		if limit.Cur = uint64(number(args)); args[0] == "max" {
			limit.Cur = limit.Max
		}
		return errText(errors.Join(err, unix.Setrlimit(unix.RLIMIT_NPROC, &limit)))
	}
}

var lastUser atomic.Int64

// asUser has p run as a user that has no other processes.
func (p *proc) asUser() (uid int) {
	uid = 1_000_000 + os.Getpid()*100 + int(lastUser.Add(1))
	p.cmd.Path = "/proc/self/exe" // its file may be where nobody can reach it
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if err := errors.Join(os.Chown(p.dir, uid, uid), os.Chmod(p.dir, 0o755)); err != nil {
		p.t.Fatal(err)
	}
	return uid
}

// tasks returns how many threads p's processes have.
func (p *proc) tasks() (n int) {
	for _, pid := range marked(p.mark) {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		n += len(entries)
	}
	return n
}

// Where its user may have no more processes the cluster goes on with those
// that there are, says so once, and starts the others when it may.
func TestOutOfProcesses(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	p := command(t, "http", "workers=2")
	p.asUser()
	p.cmd.Env = append(p.cmd.Env, "GOMAXPROCS=2")
	p.start().wait("listening")
	waitWorkers(p, 2)
	p.mustCall("limitprocesses 1")
	p.mustCall("spawn 1000")
	p.waitLog(cannot)
	if d := busy(t, p.pid()); d > 2*maxBusy { // a thousand, three times
		t.Errorf("the master takes %v in a second", d)
	}
	kill(t, p.workers()[0], syscall.SIGKILL)
	p.wait("killed")
	p.get("/")
	p.mustCall("remove 999")
	if got := p.call("replace 1"); !strings.Contains(got, "resource temporarily unavailable") {
		t.Errorf("replace: %q", got)
	}
	if d := busy(t, p.pid()); d > maxBusy {
		t.Errorf("the master takes %v in a second", d)
	}
	p.said(1, cannot)
	p.said(0, canNow)
	p.mustCall("limitprocesses max")
	waitWorkers(p, 3)
	p.waitLog(canNow)
	p.said(1, cannot)
	p.quit()
}

// A fleet has the same of its restarts.
func TestRestartOutOfProcesses(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	f := newFleet(t, "v1", "workers=1")
	uid := f.asUser()
	f.cmd.Path = f.path
	for _, dir := range []string{f.bin, f.ctl} {
		if err := errors.Join(os.Chown(dir, uid, uid), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	f.launch()
	processes := f.processes(2)
	f.mustTell(f.master, "limitprocesses 1")
	f.flip("v2")
	for range 3 {
		if got := f.tell(f.master, "restart"); !strings.Contains(got, "resource temporarily unavailable") {
			t.Errorf("Restart: %q", got)
		}
		f.wait("restart failed")
		f.settled(processes)
		f.wantVersion("v1")
	}
	f.mustTell(f.master, "limitprocesses max")
	f.upgrade("v2")
	f.wantVersion("v2")
	f.quit()
}

// At the very limit a worker can be forked, and then has no room for its
// threads. That is its end, but not the master's.
func TestFewProcessesLeft(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	p := command(t, "http", "workers=2")
	p.asUser()
	p.cmd.Env = append(p.cmd.Env, "GOMAXPROCS=2")
	p.start().wait("listening")
	p.mustCall("limitprocesses %d", p.tasks()+12)
	p.mustCall("spawn 30")
	p.waitLog(cannot)
	// A request may now and then meet a worker that needs one more thread.
	if d := busy(t, p.pid()); d > 2*maxBusy {
		t.Errorf("the master takes %v in a second", d)
	}
	p.mustCall("remove 28")
	p.mustCall("limitprocesses max")
	if !eventually(2*patience, func() bool { return len(p.workers()) == 4 }) {
		t.Errorf("workers are %v", p.workers())
	}
	p.get("/")
	p.quit()
}

// tinyFS mounts a file system on a directory in p's, until the test ends.
func (p *proc) tinyFS(options string) (dir string) {
	p.t.Helper()
	dir = filepath.Join(p.dir, "run")
	if err := os.Mkdir(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, options); err != nil {
		p.t.Skip(err)
	}
	p.t.Cleanup(func() { // before the directory is removed
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			p.t.Error(err)
		}
	})
	return dir
}

// remount changes the options of a file system.
func remount(t testing.TB, dir string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatal(err)
	}
}

func sockets(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Where the disk is full, or read-only, there is no master socket, and all
// else is as ever. The next master to find room has one.
func TestNoRoomForTheSocket(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	for name, fs := range map[string]struct {
		options    string
		flags      uintptr // to be without room
		room, full string
	}{
		"full":      {options: "size=16k", room: "nr_inodes=100", full: "nr_inodes=1"},
		"read-only": {options: "size=16k", flags: unix.MS_RDONLY},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "v1", "workers=1", "socket path=run")
			dir := f.tinyFS(fs.options)
			remount(t, dir, fs.flags, fs.full)
			f.launch()
			f.waitLog("no master socket")
			f.get("/")
			f.mustTell(f.master, "restartworkers")
			f.upgrade("v2")
			f.said(2, "no master socket") // by each of the masters
			if got := sockets(t, dir); len(got) > 0 {
				t.Errorf("sockets %v", got)
			}
			remount(t, dir, 0, fs.room)
			f.upgrade("v3")
			want := []string{fmt.Sprintf("cluster.%d.server.sock", f.master)}
			if got := sockets(t, dir); !slices.Equal(got, want) {
				t.Errorf("sockets %v, want %v", got, want)
			}
			// It is gone again. A socket can't be removed where nothing can.
			if fs.flags != 0 {
				remount(t, dir, fs.flags, fs.full)
			}
			f.flip("v4")
			f.mustTell(f.master, "restart")
			f.next()
			f.wantVersion("v4")
			remount(t, dir, 0, fs.room)
			f.upgrade("v5") // removes what v3 had to leave behind
			want = []string{fmt.Sprintf("cluster.%d.server.sock", f.master)}
			if got := sockets(t, dir); !slices.Equal(got, want) {
				t.Errorf("sockets %v, want %v", got, want)
			}
			f.quit("run")
		})
	}
}

// memoryGroup makes a control group whose processes may have so much memory,
// until the test ends. The error tells why there is none.
func memoryGroup(t testing.TB, limit int) (dir string, err error) {
	t.Helper()
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	err = errors.New("no control groups")
	for line := range strings.Lines(string(groups)) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(line, ":")
		parents, file := []string(nil), ""
		switch controllers {
		case "memory":
			parents, file = []string{"/sys/fs/cgroup/memory" + path}, "memory.limit_in_bytes"
		case "": // version 2: one that has processes gives its children no controllers
			parents, file = []string{"/sys/fs/cgroup" + path, filepath.Dir("/sys/fs/cgroup" + path)}, "memory.max"
		}
		for _, parent := range parents {
			dir := filepath.Join(parent, fmt.Sprintf("cluster.test.%d.%d", os.Getpid(), lastUser.Add(1)))
			if err = os.Mkdir(dir, 0o755); err != nil {
				continue
			}
			if err = os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0); err != nil {
				os.Remove(dir)
				continue
			}
			os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0)
			t.Cleanup(func() {
				if !eventually(patience, func() bool { return os.Remove(dir) == nil }) {
					t.Errorf("%s is still in use", dir)
				}
			})
			return dir, nil
		}
	}
	return "", err
}

// A worker that takes more memory than its control group may have is killed
// and replaced, and nobody else.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	group, err := memoryGroup(t, 64<<20)
	if err != nil {
		t.Skip(err)
	}
	f := fleetOf(t, "chaos", "v1", "workers=2").launch()
	load := f.load()
	for n := range 3 {
		workers := f.workers()
		c := f.dial()
		fmt.Fprintf(c, "GET /leak?group=%s HTTP/1.1\r\nHost: cluster\r\n\r\n", group)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if e := f.wait("killed"); strconv.Itoa(e.Pid) != resp.Header.Get("Pid") || e.Text != "signal: killed" {
			t.Errorf("process %s leaks, and %d died: %s", resp.Header.Get("Pid"), e.Pid, e.Text)
		} else if w := waitWorkers(f.proc, 2); w[1-e.ID] != workers[1-e.ID] {
			t.Errorf("workers were %v, are %v", workers, w)
		}
		if got := killedIn(group); got != n+1 {
			t.Errorf("the kernel says that it has killed %d, want %d", got, n+1)
		}
		load.more(5)
	}
	load.halt()
	f.quit()
}

// killedIn returns how many processes the kernel has killed for the memory of
// a group.
func killedIn(group string) (n int) {
	for _, file := range []string{"memory.oom_control", "memory.events"} {
		b, _ := os.ReadFile(filepath.Join(group, file))
		for line := range strings.Lines(string(b)) {
			fmt.Sscanf(line, "oom_kill %d", &n)
		}
	}
	return n
}
