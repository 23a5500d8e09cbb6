//go:build unix

package handoff_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
)

// programEnv makes the test binary a cluster: its value is one of the names
// in serve, and options as in a URL.
const programEnv = "HANDOFF_TEST_PROGRAM"

// patience is how long a test waits for what should happen at once.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if spec := os.Getenv(programEnv); spec != "" {
		serve(spec)
		return
	}
	os.Exit(m.Run())
}

// serve is the program under test: a cluster that tells on standard output
// what happens to it.
func serve(spec string) {
	u, err := url.Parse(spec)
	if err != nil {
		log.Fatal(err)
	}
	option := func(name string) string { return u.Query().Get(name) }
	duration := func(name string) time.Duration {
		d, _ := time.ParseDuration(option(name))
		return d
	}
	tell := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	if u.Path == "exit" {
		tell("main")
		return
	}

	network, address := "tcp", "127.0.0.1:0"
	if option("network") == "unix" {
		network, address = "unix", "app.sock"
	}
	l, err := cluster.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	hs := &http.Server{
		Handler:           http.HandlerFunc(answer),
		ReadTimeout:       duration("read"),
		ReadHeaderTimeout: duration("header"),
		WriteTimeout:      duration("write"),
		IdleTimeout:       duration("idle"),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			before, _ := states.Load(c)
			list, _ := before.(string)
			states.Store(c, strings.TrimSpace(list+" "+state.String()))
			if state == http.StateClosed {
				states.Delete(c)
			}
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	m := &cluster.Master{Workers: 2, Timeout: 20 * time.Second, Server: handoff.Server(hs)}
	if n, err := strconv.Atoi(option("workers")); err == nil {
		m.Workers = n
	}
	if d := duration("timeout"); d > 0 {
		m.Timeout = d
	}
	switch u.Path {
	case "handoff":
	case "plain":
		hs.ConnContext, hs.ConnState = nil, nil
		m.Server = hs
	case "h2c":
		hs.Protocols = new(http.Protocols)
		hs.Protocols.SetHTTP1(true)
		hs.Protocols.SetUnencryptedHTTP2(true)
	case "tls":
		ts := httptest.NewTLSServer(nil)
		config := ts.TLS.Clone()
		ts.Close()
		config.NextProtos = []string{"h2", "http/1.1"}
		l = tls.NewListener(l, config)
	case "narrow":
		m.Server = narrow{m.Server}
	default:
		log.Fatalf("no program %q", spec)
	}
	if m.IsMaster() {
		tell("addr %s", l.Addr())
	}
	m.On(cluster.Hooks{
		Listening:       func() { tell("listening %d", os.Getpid()) },
		Restart:         func(cluster.Values) { tell("restarted %d", os.Getpid()) },
		RestartFailed:   func(err error) { tell("failed %v", err) },
		WorkerConnected: func(w *cluster.Worker) { tell("worker %d", w.Pid) },
		WorkerWaiting:   func(w *cluster.Worker, n int) { tell("waiting %d %d", w.Pid, n) },
		WorkerKilled:    func(w *cluster.Worker) { tell("killed %d %v", w.Pid, w.ProcessState) },
		WorkerException: func(w *cluster.Worker, err error) { tell("exception %d %v", w.Pid, err) },
		WorkerTimeout:   func(w *cluster.Worker, d time.Duration) { tell("timeout %d %v", w.Pid, d) },
	})
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

type connKey struct{}

var states sync.Map // by net.Conn

// answer tells how much it has got, and from whom the answer is.
func answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/echo" {
		echo(w)
		return
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("files")); err == nil {
		setFiles(n)
	}
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
		time.Sleep(d)
	}
	w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
	w.Header().Set("Remote", r.RemoteAddr)
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		list, _ := states.Load(c)
		w.Header().Set("States", fmt.Sprint(list))
	}
	fmt.Fprintf(w, "%s %d", r.URL.Query().Get("id"), n)
}

// echo hijacks the connection, and sends all lines back.
func echo(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go func() {
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nPid: %d\r\n\r\n", os.Getpid())
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(c, line)
		}
	}()
}

// A program is a running cluster.
type program struct {
	t             testing.TB
	cmd           *exec.Cmd
	network, addr string
	master        *os.Process

	mu      sync.Mutex // guards the following
	lines   map[string][]string
	changed chan struct{} // closed by the next line
	end     chan struct{} // closed after the last
	stderr  bytes.Buffer
}

// start starts a cluster and waits until it serves.
func start(t testing.TB, spec string) *program {
	t.Helper()
	p := &program{
		t:       t,
		lines:   make(map[string][]string),
		changed: make(chan struct{}),
		end:     make(chan struct{}),
		network: "tcp",
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p.cmd = exec.Command(exe, "-test.run=^$")
	p.cmd.Env = append(os.Environ(), programEnv+"="+spec,
		"GORACE=atexit_sleep_ms=0") // the race detector's is a second for every process
	p.cmd.Dir = dir
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.end)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			word, rest, _ := strings.Cut(sc.Text(), " ")
			switch word {
			case "failed", "exception", "timeout":
				t.Errorf("the cluster says: %s", sc.Text())
			}
			p.mu.Lock()
			p.lines[word] = append(p.lines[word], rest)
			close(p.changed)
			p.changed = make(chan struct{})
			p.mu.Unlock()
		}
	}()
	t.Cleanup(p.stop)
	p.addr = p.wait("addr")
	if strings.Contains(spec, "network=unix") {
		p.network, p.addr = "unix", filepath.Join(dir, p.addr)
	}
	p.listening()
	return p
}

// wait waits for the next line that begins with word, and returns its rest.
func (p *program) wait(word string) string {
	p.t.Helper()
	late := time.After(patience)
	for {
		p.mu.Lock()
		changed := p.changed
		if list := p.lines[word]; len(list) > 0 {
			p.lines[word] = list[1:]
			p.mu.Unlock()
			return list[0]
		}
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.end:
			p.t.Fatalf("the cluster ended while waiting for %q\n%s", word, &p.stderr)
		case <-late:
			p.t.Fatalf("no %q within %v", word, patience)
		}
	}
}

// forget forgets the lines that begin with word.
func (p *program) forget(words ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range words {
		delete(p.lines, w)
	}
}

// upgrade replaces the whole cluster. It returns when the new one serves; the
// old one may still be there.
func (p *program) upgrade() {
	p.t.Helper()
	p.forget("worker", "listening", "killed")
	p.cmd.Process.Signal(syscall.SIGUSR2)
	p.listening()
}

// listening waits for a master that says that it serves.
func (p *program) listening() {
	p.t.Helper()
	pid, err := strconv.Atoi(p.wait("listening"))
	if err == nil {
		p.master, err = os.FindProcess(pid)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// roll replaces the workers. It returns when the last new one is ready.
func (p *program) roll(workers int) {
	p.t.Helper()
	p.forget("worker", "waiting", "killed")
	p.master.Signal(syscall.SIGHUP) // while it takes over, the first process would still send it to the old one
	for range workers {
		p.wait("worker")
	}
}

// stop ends the cluster. Standard output ends when its last process has.
func (p *program) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGQUIT)
	late := time.AfterFunc(patience, func() {
		p.t.Errorf("the cluster does not end")
		p.cmd.Process.Kill()
	})
	defer late.Stop()
	<-p.end
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the cluster ended with %v", err)
	}
	if s := p.stderr.String(); strings.Contains(s, "DATA RACE") || strings.Contains(s, "panic") {
		p.t.Errorf("the cluster has written\n%s", s)
	}
}
