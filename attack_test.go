//go:build linux && !cluster_nofork

package cluster_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
)

// A hostile worker does over its connection to the master what it is asked
// for, behind the package's back. The master's Message hook waits until it is
// told to go on if it was told to wait.
var _ = helper("hostile", func() {
	var messages atomic.Int64
	pause := make(chan chan struct{}, 1)
	commands["pause"] = func(*cluster.Master, []string) string { pause <- make(chan struct{}); return "" }
	commands["resume"] = func(*cluster.Master, []string) string { close(<-pause); return "" }
	commands["messages"] = func(*cluster.Master, []string) string { return fmt.Sprint(messages.Load()) }
	reportHooks.Message = nil // there are too many
	m := newMaster()
	m.On(cluster.Hooks{Message: func(w *cluster.Worker, name string, data json.RawMessage) {
		messages.Add(1)
		select {
		case c := <-pause:
			pause <- c
			<-c
		default:
		}
	}})
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("/tell/{kind}/{payload}/{n}", func(w http.ResponseWriter, r *http.Request) {
		kind, _ := strconv.Atoi(r.PathValue("kind"))
		size, _ := strconv.Atoi(r.PathValue("payload"))
		n, _ := strconv.Atoi(r.PathValue("n"))
		b := make([]byte, 8+size)
		b[0], b[1] = 1, byte(kind)
		binary.BigEndian.PutUint32(b[4:], uint32(size))
		most := max(1, 64<<10/len(b)) // at a time
		many := bytes.Repeat(b, most)
		for ; n > 0; n -= most {
			tell(many[:min(n, most)*len(b)])
		}
		io.WriteString(w, "told")
	})
	mux.HandleFunc("/send/{size}/{n}", func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.PathValue("size"))
		n, _ := strconv.Atoi(r.PathValue("n"))
		text := strings.Repeat("x", size)
		for n > 0 {
			if err := m.Send("flood", text); err == nil {
				n--
			} else if strings.Contains(err.Error(), "not reading") {
				time.Sleep(time.Millisecond)
			} else {
				report("send", nil, err.Error())
				return
			}
		}
		io.WriteString(w, "told")
	})
	mux.HandleFunc("/rights/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		for ; n > 0; n -= 253 {
			fds := make([]int, min(n, 253)) // all of them standard input
			b := []byte{1, 2, 0, byte(len(fds)), 0, 0, 0, 0}
			if err := unix.Sendmsg(masterFd(), b, unix.UnixRights(fds...), nil, 0); err != nil {
				report("rights", nil, err.Error())
			}
		}
		io.WriteString(w, "told")
	})
	mux.HandleFunc("/garbage", func(w http.ResponseWriter, r *http.Request) {
		tell([]byte("\xff\xff\xff\xff\xff\xff\xff\xff and more"))
		io.WriteString(w, "told")
	})
	mux.HandleFunc("/half", func(w http.ResponseWriter, r *http.Request) {
		tell([]byte{1, 5, 0, 0, 0, 0x10, 0, 0, 'x'}) // of a mebibyte
		io.WriteString(w, "told")
	})
	mux.HandleFunc("/again", func(w http.ResponseWriter, r *http.Request) {
		path := fmt.Sprintf("cluster.%d.server.sock", os.Getppid())
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			io.WriteString(w, err.Error())
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.WriteMsgUnix([]byte{1, 6, 0, 1, 0, 0, 0, 0}, unix.UnixRights(0), nil) // ready, and a descriptor
		oob := make([]byte, 1024)
		n, oobn, _, _, err := c.ReadMsgUnix(make([]byte, 1024), oob)
		if os.IsTimeout(err) {
			io.WriteString(w, "is kept")
		} else {
			fmt.Fprintf(w, "gets %d bytes and %d of rights", max(0, n), oobn) // -1 with an error
		}
	})
	mux.HandleFunc("/powers", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, powers()) })
	m.Server = &http.Server{Handler: mux}
	finish(m.ListenAndServe(listen(0)))
})

// masterFd returns the descriptor of a worker's connection to its master.
func masterFd() int {
	for fd := 3; fd < 100; fd++ {
		peer, err := unix.Getpeername(fd)
		if _, ok := peer.(*unix.SockaddrUnix); err != nil || !ok {
			continue
		}
		if typ, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); typ == unix.SOCK_STREAM {
			return fd
		}
	}
	return -1
}

// tell writes b to the master.
func tell(b []byte) {
	fd := masterFd()
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch err {
		case nil:
			b = b[n:]
		case unix.EAGAIN:
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		case unix.EINTR:
		default:
			report("tell", nil, err.Error())
			return
		}
	}
}

// raced reports whether the race detector is on, with which a process is
// slow and large.
func raced() bool {
	b, _ := debug.ReadBuildInfo()
	return b != nil && slices.Contains(b.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// memory returns how much memory a process has, and how much it has had at
// most since forgetMemory, in bytes.
func memory(t testing.TB, pid int) (now, most int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "VmRSS":
			now = kib << 10
		case "VmHWM":
			most = kib << 10
		}
	}
	return now, most
}

func forgetMemory(t testing.TB, pid int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Skip(err)
	}
}

// harmless checks that f costs the master no more than so much memory, and
// nothing that lasts, and that requests are answered meanwhile.
func (p *proc) harmless(what string, mebibytes int, f func()) {
	p.t.Helper()
	info := p.masterInfo()
	before, _ := memory(p.t, p.pid())
	forgetMemory(p.t, p.pid())
	network, address := p.addr()
	stop, served := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { served <- n }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if _, err := request(network, address, "/"); err != nil {
				p.t.Errorf("%s: a request failed: %v", what, err)
				return
			}
			n++
		}
	}()
	f()
	p.call("children") // the supervisor answers
	close(stop)
	n := <-served
	_, most := memory(p.t, p.pid())
	p.t.Logf("%s: %.1f MiB, and %.1f at most; %d requests meanwhile", what, float64(before)/(1<<20), float64(most)/(1<<20), n)
	if raced() {
		mebibytes *= 4
	}
	if most-before > mebibytes<<20 {
		p.t.Errorf("%s: the master grew from %d to %d bytes", what, before, most)
	}
	after := info
	if !eventually(5*time.Second, func() bool {
		after = p.masterInfo()
		return len(after.Files) <= len(info.Files) && after.Goroutines <= info.Goroutines
	}) {
		p.t.Errorf("%s: %d goroutines and files %q, before %d and %q", what, after.Goroutines, after.Files, info.Goroutines, info.Files)
	}
}

// Strangers get nothing out of the master socket, and cost next to nothing.
func TestStrangers(t *testing.T) {
	t.Parallel()
	p := serve(t, "hostile", "workers=2", "heartbeat=1s")
	path := filepath.Join(p.dir, fmt.Sprintf("cluster.%d.server.sock", p.pid()))
	dial := func() *net.UnixConn {
		t.Helper()
		for {
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
			if errors.Is(err, syscall.EAGAIN) { // too many wait already
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			return c
		}
	}
	// nothing checks that there is nothing to be had, and no descriptor.
	nothing := func(c *net.UnixConn) {
		t.Helper()
		defer c.Close()
		oob := make([]byte, 1024)
		n, oobn, _, _, err := c.ReadMsgUnix(make([]byte, 1024), oob)
		if n > 0 || oobn > 0 || os.IsTimeout(err) {
			t.Errorf("a stranger got %d bytes and %d of rights, %v", n, oobn, err)
		}
	}
	settings := []byte{1, 1, 0, 0, 0, 0, 0, 0}
	p.harmless("one after the other", 16, func() {
		for _, hello := range [][]byte{nil, settings, settings[:3], []byte("\x00\xff garbage"), make([]byte, 64<<10)} {
			for range 100 {
				c := dial()
				c.Write(hello)
				nothing(c)
			}
		}
	})
	p.harmless("half a frame and silence", 16, func() {
		for range 100 {
			c := dial()
			c.Write(settings[:3])
			defer nothing(c)
		}
	})
	p.harmless("300 descriptors", 16, func() {
		for range 20 {
			c := dial()
			for _, n := range []int{253, 47} {
				c.WriteMsgUnix(settings, unix.UnixRights(make([]int, n)...), nil)
			}
			nothing(c)
		}
	})
	p.harmless("own workers", 16, func() {
		for range 100 {
			if got := p.get("/again"); got != "gets 0 bytes and 0 of rights" {
				t.Errorf("a worker that connects a second time %s", got)
			}
		}
	})
	p.harmless("10,000 connections", 16, func() {
		var open []*net.UnixConn
		for n := range 10_000 {
			open = append(open, dial())
			if len(open) == 1000 { // as many descriptors as we may have
				for _, c := range open {
					nothing(c)
				}
				open = nil
			}
			if n%1000 == 0 { // workers come up meanwhile
				p.mustCall("spawn 1")
			}
		}
		waitWorkers(p, 12)
		p.mustCall("remove 10")
		waitWorkers(p, 2)
	})
	if len(p.workers()) != 2 {
		t.Errorf("workers are %v", p.workers())
	}
	p.quit()
}

// Neither root nor another user gets anything either.
func TestStrangersOfAllKinds(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	p := command(t, "hostile", "workers=2", "user=1234")
	if err := os.Chmod(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.start().wait("listening")
	path := filepath.Join(p.dir, fmt.Sprintf("cluster.%d.server.sock", p.pid()))
	for _, uid := range []uint32{0, 1234, 54321} {
		cmd := exec.Command("/proc/self/exe", path)
		cmd.Env = append(os.Environ(), helperEnv+"=visitor")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		want := "permission denied"
		if uid == 0 {
			want = "got nothing"
		}
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("user %d: %s, %v, want %s", uid, out, err, want)
		}
	}
	helpersUsed.Store("visitor", true)
	p.quit()
}

var _ = helper("visitor", func() {
	c, err := net.Dial("unix", os.Args[1])
	if err != nil {
		fmt.Println(err)
		return
	}
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte{1, 6, 0, 0, 0, 0, 0, 0}) // ready
	b, err := io.ReadAll(c)
	if len(b) > 0 || os.IsTimeout(err) {
		fmt.Printf("got %q, %v\n", b, err)
		return
	}
	fmt.Println("got nothing")
})

// A worker that turns against its master can say what workers say, and
// nothing else, as fast as the master listens.
func TestHostileWorker(t *testing.T) {
	t.Parallel()
	const (
		message, beat, unknown = 5, 9, 77
	)
	p := serve(t, "hostile", "workers=2", "heartbeat=-1s") // signs of life would get in between
	for _, tt := range []struct {
		what          string
		kind, size, n int
	}{
		{"a million signs of life", beat, 0, 1_000_000},
		{"a million frames of the future", unknown, 0, 1_000_000},
		{"a hundred thousand messages", message, 2, 100_000},
		{"a hundred large messages", message, 1 << 20, 100},
		{"large frames of the future", unknown, 1 << 20, 100},
	} {
		if raced() {
			tt.n /= 10
		}
		p.harmless(tt.what, 48, func() {
			if got := p.get(fmt.Sprintf("/tell/%d/%d/%d", tt.kind, tt.size, tt.n)); got != "told" {
				t.Error(got)
			}
		})
	}
	if n := len(p.history("connected")); n != 2 {
		t.Errorf("%d workers have been started", n)
	}
	p.quit()

	// The connection ends at the first thing that is odd.
	p = serve(t, "hostile", "workers=2", "heartbeat=1s")
	for _, path := range []string{"/rights/1", "/rights/300", "/garbage"} {
		p.harmless(path, 16, func() {
			p.get(path)
			p.wait("killed")
			waitWorkers(p, 2)
		})
	}
	before := p.workers()
	p.get("/half") // and then it is silent: see Heartbeat
	p.wait("timeout")
	p.wait("killed")
	if w := waitWorkers(p, 2); w[0] == before[0] == (w[1] == before[1]) {
		t.Errorf("workers were %v, are %v", before, w)
	}
	p.quit()
}

// Messages that nobody takes wait in the worker, and not in the master. The
// worker isn't held to be silent meanwhile.
func TestMessagesWaitInTheWorker(t *testing.T) {
	t.Parallel()
	p := serve(t, "hostile", "workers=2", "heartbeat=1s")
	total := 0
	for _, tt := range []struct{ size, n int }{{100, 100_000}, {1 << 19, 50}} {
		p.harmless(fmt.Sprintf("%d messages of %d bytes", tt.n, tt.size), 48, func() {
			p.mustCall("pause")
			c := p.dial()
			defer c.Close()
			fmt.Fprintf(c, "GET /send/%d/%d HTTP/1.1\r\nHost: cluster\r\n\r\n", tt.size, tt.n)
			c.SetReadDeadline(time.Now().Add(3 * time.Second)) // as many heartbeats
			if n, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
				t.Errorf("the master listens: %d, %v", n, err)
			}
			p.mustCall("resume")
			c.SetReadDeadline(time.Now().Add(2 * patience))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			total += tt.n
			if !eventually(patience, func() bool { return p.call("messages") == fmt.Sprint(total) }) {
				t.Errorf("%s messages have arrived", p.call("messages"))
			}
		})
	}
	if n := len(p.history("connected")); n != 2 {
		t.Errorf("%d workers have been started", n)
	}
	p.quit()
}

// A worker that runs as somebody else has nothing left of what root can do,
// and gets nothing back.
func TestDroppedPrivilegesStayDropped(t *testing.T) {
	t.Parallel()
	rootOnly(t)
	_, slave := openTerminal(t)
	p := command(t, "hostile", "workers=2", "user=1234")
	p.cmd.Stdin = slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Setctty: true,
		Credential: &syscall.Credential{Groups: []uint32{0, 7, 8}},
	}
	if err := os.Chmod(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.start().wait("listening")
	for range 2 { // the first ones, and those that replace them
		if can := p.get("/powers"); can != "" {
			t.Errorf("a worker can %s", can)
		}
		for _, pid := range p.workers() {
			// Besides the standard streams: the crash pipe, the connection to
			// the master, the listening socket and the handoff queue.
			var kinds map[string]int
			if !eventually(5*time.Second, func() bool { // its client is gone soon
				kinds = make(map[string]int)
				for _, f := range passed(descriptors(pid)) {
					_, target, _ := strings.Cut(f, " ")
					kind, _, _ := strings.Cut(target, ":")
					kinds[kind]++
				}
				return kinds["pipe"] == 1 && kinds["socket"] == 4 && len(kinds) == 2
			}) {
				t.Errorf("a worker has %q", descriptors(pid))
			}
			kill(t, pid, syscall.SIGKILL)
			p.wait("killed")
		}
		waitWorkers(p, 2)
	}
	slave.Close()
	p.quit()
}

// powers lists what a worker can do that it should not.
func powers() string {
	var can []string
	try := func(what string, err error) {
		if err == nil {
			can = append(can, what)
		}
	}
	uid, master := os.Getuid(), os.Getppid()
	proc := fmt.Sprintf("/proc/%d/", master)
	var ids [6]int
	ids[0], ids[1], ids[2] = unix.Getresuid()
	ids[3], ids[4], ids[5] = unix.Getresgid()
	for _, id := range ids {
		if id != uid {
			can = append(can, fmt.Sprintf("be %v", ids))
			break
		}
	}
	if groups, err := os.Getgroups(); err != nil || len(groups) > 0 && !slices.Equal(groups, []int{uid}) {
		can = append(can, fmt.Sprintf("be in the groups %v, %v", groups, err))
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		can = append(can, err.Error())
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "CapInh", "CapPrm", "CapEff", "CapAmb":
			if strings.Trim(value, "0 \t") != "" {
				can = append(can, "have "+line)
			}
		}
	}
	try("become root", syscall.Setuid(0))
	try("become root's group", syscall.Setgid(0))
	try("take groups", syscall.Setgroups([]int{0}))
	try("become root by setresuid", unix.Setresuid(-1, 0, -1))
	try("leave its root", unix.Chroot("/"))
	try("signal the master", syscall.Kill(master, 0))
	try("trace the master", unix.PtraceAttach(master))
	for _, name := range []string{"mem", "environ", "maps", "fd/0", "fd/3", "exe", "cwd", "root"} {
		f, err := os.Open(proc + name)
		if err == nil {
			_, err = f.Read(make([]byte, 1))
			f.Close()
		}
		try("read the master's "+name, err)
	}
	_, err = os.ReadDir(proc + "fd")
	try("list the master's descriptors", err)
	if fd, err := unix.PidfdOpen(master, 0); err == nil {
		_, err = unix.PidfdGetfd(fd, 3, 0)
		try("take a descriptor of the master", err)
		try("signal the master by pidfd", unix.PidfdSendSignal(fd, 0, nil, 0))
		unix.Close(fd)
	}
	try("limit the master", unix.Prlimit(master, unix.RLIMIT_NOFILE, &unix.Rlimit{}, nil))
	sid, _ := unix.Getsid(0)
	masterSid, _ := unix.Getsid(master)
	if sid == masterSid {
		can = append(can, "share the master's session")
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	try("open the terminal", err)
	if err == nil {
		tty.Close()
	}
	for fd := range 3 {
		b := byte('\n')
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, uintptr(unsafe.Pointer(&b)))
		if errno == 0 {
			can = append(can, "type into the terminal")
		}
	}
	sockets, _ := filepath.Glob("cluster.*.sock")
	for _, path := range sockets {
		c, err := net.Dial("unix", path)
		try("connect to "+path, err)
		if err == nil {
			c.Close()
		}
		try("remove "+path, os.Remove(path))
		try("open "+path, os.Chmod(path, 0o777))
	}
	if len(sockets) == 0 {
		can = append(can, "not find the master socket")
	}
	return strings.Join(can, ", ")
}
