//go:build (amd64 || arm64) && !cluster_nofork

package cluster_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A refusal has system calls of a cluster's processes fail, with an error of
// its choice and for as long as it likes: what the whole machine would have to
// be short of otherwise. It is a filter that asks us (seccomp_unotify(2)).
type refusal struct {
	t testing.TB

	mu     sync.Mutex                                // guards the following
	rule   func(pid int, call uintptr) syscall.Errno // 0 lets the call pass; nil is for all
	denied int
}

// refusable are the calls that it is asked about: those that make a
// descriptor without having one, and fork. A new thread is none of them: a Go
// program that can't have one dies.
var refusable = []uintptr{
	unix.SYS_ACCEPT4, unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_PIPE2, unix.SYS_OPENAT,
	unix.SYS_PIDFD_OPEN, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2, unix.SYS_CLONE,
}

const filteredEnv = "CLUSTER_TEST_FILTERED" // the helper that the filter is for

// refusing has p, which is yet to be started, run under a refusal.
func refusing(p *proc) *refusal {
	p.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socketpair")
	for i, kv := range p.cmd.Env {
		if name, ok := strings.CutPrefix(kv, helperEnv+"="); ok {
			p.cmd.Env[i] = filteredEnv + "=" + name
		}
	}
	helpersUsed.Store("filtered", true)
	p.cmd.Env = append(p.cmd.Env, helperEnv+"=filtered")
	p.cmd.ExtraFiles = []*os.File{theirs}
	r, listener, done := &refusal{t: p.t}, -1, make(chan struct{})
	p.t.Cleanup(func() { // after the cluster's own
		if listener >= 0 {
			<-done
			unix.Close(listener)
		}
	})
	p.start()
	theirs.Close()
	defer unix.Close(pair[0])
	b, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(pair[0], b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		p.t.Fatal(err)
	}
	if oobn == 0 {
		p.over()
		p.t.Skipf("no filter: %s", b[:n])
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		p.t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		p.t.Fatal(err)
	}
	listener = fds[0]
	go func() { defer close(done); r.answer(listener) }()
	return r
}

// filtered puts itself under a filter and becomes the helper.
var _ = helper("filtered", func() {
	runtime.LockOSThread()
	var program []unix.SockFilter
	program = append(program, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}) // the call
	for i, call := range refusable {
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(refusable) - i), K: uint32(call)})
	}
	program = append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		unix.Sendmsg(3, fmt.Append(nil, err, ", ", errno), nil, nil, 0)
		return
	}
	unix.CloseOnExec(3)
	if err := unix.Sendmsg(3, []byte("listener"), unix.UnixRights(int(fd)), nil, 0); err != nil {
		fatal(err)
	}
	os.Setenv(helperEnv, os.Getenv(filteredEnv))
	fatal(syscall.Exec(os.Args[0], os.Args, os.Environ())) // the other threads, which have no filter, end
})

// answer answers the kernel's questions until no process is left.
func (r *refusal) answer(listener int) {
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return
		}
		var question struct {
			id        uint64
			tid, _    uint32
			call      int32
			_         uint32
			_         uint64
			arguments [6]uint64
		}
		if !ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&question)) {
			continue // it has been killed meanwhile
		}
		answer := struct {
			id    uint64
			_     int64
			err   int32
			flags uint32
		}{id: question.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if question.call != unix.SYS_CLONE || question.arguments[0]&unix.CLONE_THREAD == 0 {
			if errno := r.ask(int(question.tid), uintptr(question.call)); errno != 0 {
				answer.err, answer.flags = -int32(errno), 0
			}
		}
		ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer))
	}
}

func ioctl(fd int, request uintptr, p unsafe.Pointer) bool {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(p))
		if errno != unix.EINTR {
			return errno == 0
		}
	}
}

func (r *refusal) ask(tid int, call uintptr) syscall.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rule == nil {
		return 0
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	_, status, _ = bytes.Cut(status, []byte("\nTgid:\t"))
	status, _, _ = bytes.Cut(status, []byte("\n"))
	pid, _ := strconv.Atoi(string(status))
	errno := r.rule(pid, call)
	if errno != 0 {
		r.denied++
	}
	return errno
}

// set has the rule decide from now on. It returns how many calls the one
// before has refused.
func (r *refusal) set(rule func(pid int, call uintptr) syscall.Errno) (denied int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rule, denied, r.denied = rule, r.denied, 0
	return denied
}

// calm checks that the process whose calls are refused doesn't try all the
// time.
func (r *refusal) calm(pid int) {
	r.t.Helper()
	r.set(r.rule)
	d := busy(r.t, pid)
	if n := r.set(r.rule); n == 0 || n > 200 || d > maxBusy {
		r.t.Errorf("within a second process %d takes %v, and %d of its calls are refused", pid, d, n)
	}
}

// short are ways to be short of something.
var short = map[string]struct {
	errno syscall.Errno
	calls func(call uintptr) bool // that need it
}{
	"ENFILE": {syscall.ENFILE, func(call uintptr) bool { return call != unix.SYS_CLONE }},
	"ENOMEM": {syscall.ENOMEM, func(uintptr) bool { return true }},
	"EAGAIN": {syscall.EAGAIN, func(call uintptr) bool { return call == unix.SYS_CLONE }},
}

// Whatever a master is short of, it goes on, says so once, and replaces its
// workers when it may.
func TestMasterIsRefused(t *testing.T) {
	t.Parallel()
	for name, short := range short {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := command(t, "http", "workers=2")
			r := refusing(p)
			p.wait("listening")
			before := p.masterInfo()
			r.set(func(pid int, call uintptr) syscall.Errno {
				if pid == p.pid() && short.calls(call) {
					return short.errno
				}
				return 0
			})
			kill(t, p.workers()[0], syscall.SIGKILL)
			p.wait("killed")
			p.waitLog(cannot)
			p.mustCall("spawn 1")
			if got := p.call("replace 1"); !strings.Contains(got, short.errno.Error()) {
				t.Errorf("replace: %q", got)
			}
			c, err := net.Dial("unix", filepath.Join(p.dir, fmt.Sprintf("cluster.%d.server.sock", p.pid())))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() // a stranger, who waits
			r.calm(p.pid())
			p.get("/")
			p.said(1, cannot)
			p.said(1, short.errno.Error())
			p.said(0, canNow)
			r.set(nil)
			waitWorkers(p, 3)
			p.waitLog(canNow)
			if _, err := io.ReadAll(c); err != nil {
				t.Error(err)
			}

			// Whichever call is the one that fails, nothing is lost.
			for n := range 12 {
				r.set(func(pid int, call uintptr) syscall.Errno {
					if pid != p.pid() || !short.calls(call) {
						return 0
					}
					if n--; n != -1 {
						return 0
					}
					return short.errno
				})
				kill(t, p.workers()[0], syscall.SIGKILL)
				p.wait("killed")
				p.get("/")
				waitWorkers(p, 3)
			}
			r.set(nil)
			p.said(strings.Count(p.log(), canNow), cannot)
			p.mustCall("remove 1")
			waitWorkers(p, 2)
			p.noMoreFiles(before)
			p.quit()
		})
	}
}

// A restart changes nothing if the old master, or the new one, can't have what
// it needs for it.
func TestRestartIsRefused(t *testing.T) {
	t.Parallel()
	for name, short := range short {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "v1", "workers=1")
			r := refusing(f.proc)
			f.master = f.wait("listening").Pid
			load := f.load()
			load.more(5)
			processes := f.processes(2)
			open := len(f.masterInfo(f.master).Files)
			fails := func(who string) {
				t.Helper()
				f.signal(syscall.SIGUSR2) // it can't be told in another way: it may not be able to accept
				f.wait("restart failed")
				if r.set(nil) == 0 {
					t.Errorf("nothing was refused to %s", who)
				}
				load.more(5)
				f.settled(processes)
			}
			f.flip("v2")
			r.set(func(pid int, call uintptr) syscall.Errno {
				if pid == f.master && short.calls(call) {
					return short.errno
				}
				return 0
			})
			fails("the old master")
			// A program that can't open a file from the start may not even
			// get as far as the package: it can when it forks.
			forking := false
			r.set(func(pid int, call uintptr) syscall.Errno {
				if slices.Contains(processes, pid) {
					return 0
				}
				if forking = forking || call == unix.SYS_SOCKETPAIR || call == unix.SYS_CLONE; forking && short.calls(call) {
					return short.errno
				}
				return 0
			})
			fails("the new master")
			load.only("v1")
			var now int
			if !eventually(patience, func() bool { now = len(f.masterInfo(f.master).Files); return now <= open }) {
				t.Errorf("%d open files in the master, before %d", now, open)
			}
			f.upgrade("v2")
			load.end()
			f.wantVersion("v2")
			f.quit()
		})
	}
}

// A worker that can't accept serves the connections that it has, and accepts
// others when it can again.
func TestWorkerIsRefused(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS} {
		for _, server := range []string{"http", "tcp"} {
			t.Run(fmt.Sprint(server, " ", errno), func(t *testing.T) {
				t.Parallel()
				p := command(t, server, "workers=1", "heartbeat=1s")
				r := refusing(p)
				p.wait("listening")
				first := p.dial()
				talk(p, server, first)
				r.set(func(pid int, call uintptr) syscall.Errno {
					if pid == p.workers()[0] && call == unix.SYS_ACCEPT4 {
						return errno
					}
					return 0
				})
				later := p.dial()
				p.waitLog(errno.Error())
				r.calm(p.workers()[0])
				talk(p, server, first)
				if server == "tcp" { // net/http has words of its own
					p.said(1, errno.Error())
				}
				r.set(nil)
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
}

// A worker that can't have what it needs to begin with is tried again, less
// and less often, while others serve.
func TestNewWorkerIsRefused(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.ENFILE, syscall.ENOMEM} {
		t.Run(errno.Error(), func(t *testing.T) {
			t.Parallel()
			p := command(t, "http", "workers=2")
			r := refusing(p)
			p.wait("listening")
			workers := waitWorkers(p, 2)
			started := len(p.history("worker"))
			r.set(func(pid int, call uintptr) syscall.Errno {
				if pid != p.pid() && pid != workers[0] && pid != workers[1] && call == unix.SYS_EPOLL_CREATE1 { // Go's runtime
					return errno
				}
				return 0
			})
			kill(t, workers[1], syscall.SIGKILL)
			p.waitN(5, "killed")
			p.get("/")
			if d := busy(t, p.pid()); d > maxBusy {
				t.Errorf("the master takes %v in a second", d)
			}
			if n := len(p.history("worker")) - started; n > 8 {
				t.Errorf("%d workers have been started", n)
			}
			if r.set(nil) < 4 {
				t.Error("nothing was refused")
			}
			waitWorkers(p, 2)
			if p.workers()[0] != workers[0] {
				t.Error("the other worker was replaced")
			}
			p.quit()
		})
	}
}
