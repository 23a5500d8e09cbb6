package systemd_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/systemd"
)

// activated is the program: every worker answers on all sockets with the
// socket's number and its names, and what was said.
func activated() {
	first := !cluster.IsWorker() && new(cluster.Master).Predecessor() == 0
	if first && os.Getenv("LISTEN_PID") == "self" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	listeners, err := systemd.Listeners()
	if err != nil {
		log.Fatal(err)
	}
	conns, err := systemd.PacketConns()
	if err != nil {
		log.Fatal(err)
	}
	web, err := systemd.Listeners("web")
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if value, ok := os.LookupEnv(name); ok && !first {
			clustertest.Tell("environment %s=%s", name, value)
		}
	}
	clustertest.Tell("has %d %d %d %d", os.Getpid(), len(listeners), len(conns), len(web))
	if len(listeners)+len(conns) == 0 {
		clustertest.Tell("none %s", os.Getenv("LISTEN_PID"))
		return
	}
	if _, ok := os.LookupEnv("CLUSTER_SYSTEMD_SOCKETS"); ok && cluster.IsWorker() {
		clustertest.Tell("environment of the sockets")
	}
	m := &cluster.Master{Workers: 2, Server: answer("0")}
	m.Use(systemd.New(), clustertest.Events)
	for i, l := range listeners[1:] {
		m.Add(l, answer(strconv.Itoa(i+1)))
	}
	if cluster.IsWorker() {
		for i, c := range conns {
			go answerPackets(c, strconv.Itoa(i))
		}
	}
	if err := m.ListenAndServe(listeners[0]); err != nil {
		log.Fatal(err)
	}
}

func answer(name string) cluster.Server {
	return &cluster.TCPServer{Handler: func(ctx context.Context, c net.Conn) {
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err == nil {
			fmt.Fprintf(c, "%s: %s", name, b[:n])
		}
	}}
}

func answerPackets(c net.PacketConn, name string) {
	b := make([]byte, 100)
	for {
		n, addr, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo([]byte(name+": "+string(b[:n])), addr)
	}
}

// ask checks the answer of a socket.
func ask(t *testing.T, addr net.Addr, want string) {
	t.Helper()
	var conn net.Conn
	var err error
	if addr.Network() == "unixgram" {
		local := filepath.Join(t.TempDir(), "s")
		conn, err = net.DialUnix("unixgram", &net.UnixAddr{Name: local, Net: "unixgram"}, addr.(*net.UnixAddr))
	} else {
		conn, err = net.Dial(addr.Network(), addr.String())
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(clustertest.Patience))
	b := make([]byte, 100)
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Error(err)
		return
	}
	n, err := conn.Read(b)
	if got := string(b[:n]); err != nil && err != io.EOF || got != want+": hello" {
		t.Errorf("%v answers %q, %v, want that of %s", addr, got, err, want)
	}
}

// A parent is what systemd is to its services: it holds sockets.
type parent struct {
	t      *testing.T
	dir    string
	files  []*os.File
	addrs  []net.Addr
	listen []net.Listener
}

func newParent(t *testing.T) *parent {
	t.Helper()
	dir, err := os.MkdirTemp("", "sockets")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &parent{t: t, dir: dir}
}

// hold takes what net.Listen or net.ListenPacket has returned.
func (p *parent) hold(conn any, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.(io.Closer).Close() })
	f, err := conn.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	p.files = append(p.files, f)
	switch conn := conn.(type) {
	case net.Listener:
		p.addrs = append(p.addrs, conn.Addr())
		p.listen = append(p.listen, conn)
	case net.PacketConn:
		p.addrs = append(p.addrs, conn.LocalAddr())
	}
}

// program returns the program, with the parent's sockets.
func (p *parent) program(names string) *clustertest.Program {
	prog := clustertest.Command(p.t, "activated")
	prog.Forbid("environment")
	prog.Cmd.ExtraFiles = p.files
	prog.Cmd.Env = append(prog.Cmd.Env, "LISTEN_PID=self", "LISTEN_FDS="+strconv.Itoa(len(p.files)), "LISTEN_FDNAMES="+names)
	return prog
}

// The sockets are in every worker of every master, in the same order, and
// outlive them all.
func TestListeners(t *testing.T) {
	t.Parallel()
	p := newParent(t)
	p.hold(net.Listen("tcp", "127.0.0.1:0"))
	p.hold(net.ListenPacket("udp", "127.0.0.1:0"))
	p.hold(net.Listen("unix", filepath.Join(p.dir, "stream")))
	p.hold(net.Listen("unix", "@"+filepath.Base(p.dir)))
	p.hold(net.ListenPacket("unixgram", filepath.Join(p.dir, "gram")))
	p.hold(net.Listen("tcp", "127.0.0.1:0"))
	prog := p.program("web:dns::admin:log:web").Start()
	check := func() {
		t.Helper()
		for i, want := range []string{"0", "0", "1", "2", "1", "3"} {
			ask(t, p.addrs[i], want)
		}
	}
	master := prog.WaitPid("listening")
	check()
	for range 2 {
		if got := prog.Wait("has", strconv.Itoa(master)); strings.Join(got, " ") != "4 2 2" {
			t.Errorf("the master has %v", got)
		}
		for _, id := range []string{"0", "1"} {
			pid := prog.WaitPid("ready", id)
			if got := prog.Wait("has", strconv.Itoa(pid)); strings.Join(got, " ") != "4 2 2" {
				t.Errorf("worker %s has %v", id, got)
			}
			if id == "0" {
				prog.Kill(pid, syscall.SIGKILL)
				prog.WaitPid("ready", id)
			}
		}
		check()
		prog.Kill(master, syscall.SIGUSR2)
		master = prog.WaitPid("listening")
		prog.Wait("restarted", strconv.Itoa(master))
		check()
	}
	prog.Quit()

	// And in the next start, which finds what has come meanwhile.
	late := make(chan struct{})
	for i, want := range map[int]string{0: "0", 2: "1", 3: "2"} {
		go func() {
			ask(t, p.addrs[i], want)
			late <- struct{}{}
		}()
	}
	again := p.program("")
	again.Start().Wait("listening")
	for range 3 {
		<-late
	}
	check()
	again.Quit()
	for _, name := range []string{"stream", "gram"} {
		if _, err := os.Lstat(filepath.Join(p.dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// What isn't for this process is left alone.
func TestNoListeners(t *testing.T) {
	t.Parallel()
	p := newParent(t)
	p.hold(net.Listen("tcp", "127.0.0.1:0"))
	for _, env := range []string{"LISTEN_PID=1", "LISTEN_PID="} {
		prog := p.program("")
		prog.Cmd.Env = append(prog.Cmd.Env, env)
		prog.Start()
		prog.Wait("none")
		prog.End(0)
	}
	prog := p.program("")
	prog.Cmd.Env = append(prog.Cmd.Env, "LISTEN_PID=", `CLUSTER_SYSTEMD_SOCKETS=[{"Network":"tcp","Address":"127.0.0.1:1"}]`)
	prog.Start()
	prog.Wait("none")
	prog.End(0)
}

func TestBadListeners(t *testing.T) {
	t.Parallel()
	p := newParent(t)
	p.hold(net.Listen("tcp", "127.0.0.1:0"))
	fails := func(p *parent, why string, env ...string) {
		t.Helper()
		prog := p.program("web:other")
		prog.Cmd.Env = append(prog.Cmd.Env, env...)
		prog.Start()
		prog.WaitLog(why)
		prog.End(1)
	}
	fails(p, `systemd: LISTEN_FDS is "many"`, "LISTEN_FDS=many")
	fails(p, `systemd: LISTEN_FDS is "-1"`, "LISTEN_FDS=-1")
	fails(p, `systemd: socket 1, "other": `, "LISTEN_FDS=2") // there is one

	connected := newParent(t) // Accept=yes
	connected.hold(net.Dial("tcp", p.addrs[0].String()))
	fails(connected, `systemd: socket 0, "web": file: not a listening socket`)
	packets := newParent(t)
	packets.hold(net.Listen("unixpacket", filepath.Join(packets.dir, "s")))
	fails(packets, `systemd: socket 0, "web": file unixpacket `)
}

// With the real thing.
func TestSocketActivate(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("there is no systemd-socket-activate")
	}
	p := newParent(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, path := l.Addr(), &net.UnixAddr{Name: filepath.Join(p.dir, "s"), Net: "unix"}
	l.Close()
	prog := clustertest.Command(t, "activated")
	args := []string{tool, "--listen=" + tcp.String(), "--listen=" + path.Name, "--fdname=web:local"}
	for _, env := range prog.Cmd.Env {
		if strings.HasPrefix(env, "CLUSTERTEST_") || strings.HasPrefix(env, "GORACE") {
			args = append(args, "--setenv="+env)
		}
	}
	prog.Cmd.Path, prog.Cmd.Args = tool, append(args, prog.Cmd.Path)
	prog.Start()
	prog.WaitLog("Listening on " + path.Name)
	ask(t, path, "1") // this connection starts the cluster
	master := prog.WaitPid("listening")
	if master != prog.Pid() {
		t.Errorf("the master is %d, and %d was started", master, prog.Pid())
	}
	if got := prog.Wait("has", strconv.Itoa(master)); strings.Join(got, " ") != "2 0 1" {
		t.Errorf("the master has %v", got)
	}
	ask(t, tcp, "0")
	prog.Signal(syscall.SIGUSR2)
	prog.Wait("restarted")
	ask(t, tcp, "0")
	ask(t, path, "1")
	prog.Quit()
	if _, err := os.Lstat(path.Name); err != nil {
		t.Error(err)
	}
}
