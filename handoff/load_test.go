package handoff_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
)

var (
	restarts = flag.Int("load.restarts", 6, "restarts of each kind under load")
	every    = flag.Duration("load.every", 400*time.Millisecond, "time between them")
	clients  = flag.Int("load.clients", 64, "connections")
)

func TestMain(m *testing.M) {
	if kind := os.Getenv("HANDOFF_TEST_SERVER"); kind != "" {
		serve(kind)
		return
	}
	os.Exit(m.Run())
}

// serve is the program under load: a cluster that tells on standard output
// what happens to it.
func serve(kind string) {
	hs := &http.Server{Handler: http.HandlerFunc(answer)}
	var s cluster.Server = hs
	if kind == "handoff" {
		s = handoff.Server(hs)
	}
	m := &cluster.Master{
		Addr:    os.Getenv("HANDOFF_TEST_ADDR"),
		Server:  s,
		Workers: 2,
		Timeout: 20 * time.Second,
	}
	tell := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	m.On(cluster.Hooks{
		Listening:       func() { tell("listening %d", os.Getpid()) },
		Restart:         func(cluster.Values) { tell("restarted %d", os.Getpid()) },
		RestartFailed:   func(err error) { tell("failed %v", err) },
		WorkerKilled:    func(w *cluster.Worker) { tell("killed %d %v", w.Pid, w.ProcessState) },
		WorkerException: func(w *cluster.Worker, err error) { tell("exception %d %v", w.Pid, err) },
		WorkerTimeout:   func(w *cluster.Worker, d time.Duration) { tell("timeout %d %v", w.Pid, d) },
	})
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// answer tells how much it has got, and from whom the answer is.
func answer(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
		time.Sleep(d)
	}
	w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
	fmt.Fprintf(w, "%s %d", r.URL.Query().Get("id"), n)
}

// A program is a running cluster.
type program struct {
	t     testing.TB
	cmd   *exec.Cmd
	addr  string
	lines chan string
}

func start(t testing.TB, kind, network string) *program {
	t.Helper()
	p := &program{t: t, lines: make(chan string, 1000)}
	dir := t.TempDir()
	addr := "127.0.0.1:0"
	if network == "unix" {
		p.addr = dir + "/app.sock"
		addr = "unix:" + p.addr
	} else {
		l, err := net.Listen("tcp", addr) // a port that is free for the whole test
		if err != nil {
			t.Fatal(err)
		}
		p.addr = l.Addr().String()
		addr = p.addr
		l.Close()
	}
	p.cmd = exec.Command(os.Args[0], "-test.run=^$")
	p.cmd.Env = append(os.Environ(), "HANDOFF_TEST_SERVER="+kind, "HANDOFF_TEST_ADDR="+addr)
	p.cmd.Dir = dir
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- sc.Text()
		}
		close(p.lines)
	}()
	t.Cleanup(p.stop)
	p.wait("listening")
	return p
}

// wait waits for a line that begins with word, and returns it.
func (p *program) wait(word string) string {
	p.t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("the cluster ended while waiting for %q", word)
			}
			if strings.HasPrefix(line, "failed") || strings.HasPrefix(line, "exception") || strings.HasPrefix(line, "timeout") {
				p.t.Errorf("the cluster says: %s", line)
			}
			if strings.HasPrefix(line, word) {
				return line
			}
		case <-late:
			p.t.Fatalf("no %q within 30 s", word)
		}
	}
}

// stop ends the cluster. Standard output ends when its last process has.
func (p *program) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGQUIT)
	late := time.AfterFunc(30*time.Second, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	for range p.lines {
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the cluster ended with %v", err)
	}
}

// A client sends requests over one connection and never tries anything
// twice.
type client struct {
	network, addr string
	c             net.Conn
	r             *bufio.Reader
	closed        *atomic.Int64 // connections that the server has closed
	n             int
}

func (cl *client) connect() error {
	if cl.c != nil {
		return nil
	}
	c, err := net.Dial(cl.network, cl.addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	cl.c, cl.r = c, bufio.NewReader(c)
	return nil
}

func (cl *client) close() {
	if cl.c != nil {
		cl.c.Close()
		cl.c = nil
	}
}

// request sends count requests at once and reads as many responses.
func (cl *client) request(count int, method, query, headers string, body []byte, size int) error {
	if err := cl.connect(); err != nil {
		return err
	}
	var b bytes.Buffer
	for i := range count {
		fmt.Fprintf(&b, "%s /?id=%d%s HTTP/1.1\r\nHost: test\r\n%s\r\n%s", method, cl.n+i, query, headers, body)
	}
	cl.c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := cl.c.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	last := false
	for i := range count {
		resp, err := http.ReadResponse(cl.r, nil)
		if err != nil {
			return fmt.Errorf("read response %d of %d: %w", i+1, count, err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			return fmt.Errorf("read body: %w", err)
		}
		if want := fmt.Sprintf("%d %d", cl.n+i, size); resp.StatusCode != 200 || string(got) != want {
			return fmt.Errorf("answer is %s %q, want %q", resp.Status, got, want)
		}
		last = resp.Close
	}
	cl.n += count
	if last && !strings.Contains(headers, "Connection: close") {
		cl.closed.Add(1)
	}
	if last {
		cl.close()
	}
	return nil
}

var body16K = bytes.Repeat([]byte("x"), 16<<10)

func chunked() []byte {
	var b bytes.Buffer
	for i := 0; i < len(body16K); i += 4 << 10 {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", 4<<10, body16K[i:i+4<<10])
	}
	b.WriteString("0\r\n\r\n")
	return b.Bytes()
}

var chunks = chunked()

// mixed sends one of several kinds of requests.
func (cl *client) mixed(headers string) error {
	switch n := rand.IntN(100); {
	case n < 50:
		return cl.request(1, "GET", "", headers, nil, 0)
	case n < 70:
		return cl.request(1, "POST", "", headers+fmt.Sprintf("Content-Length: %d\r\n", len(body16K)), body16K, len(body16K))
	case n < 85:
		return cl.request(1, "POST", "", headers+"Transfer-Encoding: chunked\r\n", chunks, len(body16K))
	case n < 98 && headers == "":
		return cl.request(2, "GET", "", headers, nil, 0)
	default:
		return cl.request(1, "GET", "&sleep=300ms", headers, nil, 0)
	}
}

// load puts the cluster under load while f runs.
func (p *program) load(network, headers string, f func()) (requests, closed int64) {
	p.t.Helper()
	var wg sync.WaitGroup
	var total, closes atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	for range *clients {
		wg.Go(func() {
			cl := &client{network: network, addr: p.addr, closed: &closes}
			defer cl.close()
			for ctx.Err() == nil {
				if err := cl.mixed(headers); err != nil {
					p.t.Errorf("request %d of a client failed: %v", cl.n, err)
					cl.close()
				}
				total.Add(1)
			}
		})
	}
	f()
	cancel()
	wg.Wait()
	return total.Load(), closes.Load()
}

// restart restarts the cluster over and over: both kinds, in turn.
func (p *program) restart() {
	t := time.NewTicker(*every)
	defer t.Stop()
	for i := range 2 * *restarts {
		<-t.C
		if i%2 == 0 {
			p.cmd.Process.Signal(syscall.SIGUSR2)
			p.wait("listening")
		} else {
			p.cmd.Process.Signal(syscall.SIGHUP)
			p.wait("killed")
		}
	}
}

func TestLoadKeepAlive(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			p := start(t, "handoff", network)
			n, closed := p.load(network, "", p.restart)
			t.Logf("%d requests, %d restarts of each kind, %d connections closed by the server", n, *restarts, closed)
			if closed > 0 {
				t.Errorf("%d connections were closed by the server", closed)
			}
		})
	}
}

func TestLoadConnectionPerRequest(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			p := start(t, "plain", network)
			n, _ := p.load(network, "Connection: close\r\n", p.restart)
			t.Logf("%d requests, %d restarts of each kind", n, *restarts)
		})
	}
}

// Thousands of idle connections answer from the new generation.
func TestIdleConnectionsMove(t *testing.T) {
	const idle = 5000
	p := start(t, "handoff", "tcp")
	var closes atomic.Int64
	list := make([]*client, idle)
	old := make(map[string]bool)
	for i := range list {
		list[i] = &client{network: "tcp", addr: p.addr, closed: &closes}
		defer list[i].close()
		pid, err := list[i].pid()
		if err != nil {
			t.Fatal(err)
		}
		old[pid] = true
	}
	p.cmd.Process.Signal(syscall.SIGUSR2)
	p.wait("listening")
	begun := time.Now()
	p.wait("restarted")
	took := time.Since(begun)
	t.Logf("old generation gone after %v", took)
	if took > time.Second && !testing.Short() {
		t.Errorf("the old generation took %v to go, with %d idle connections", took, idle)
	}
	var failed int
	for _, cl := range list {
		pid, err := cl.pid()
		if err != nil || old[pid] {
			if failed++; failed < 10 {
				t.Errorf("answer from %q: %v", pid, err)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d connections failed", failed, idle)
	}
}

// pid asks who answers.
func (cl *client) pid() (string, error) {
	if cl.c == nil && cl.n > 0 {
		return "", errors.New("the connection has been closed")
	}
	if err := cl.connect(); err != nil {
		return "", err
	}
	cl.n++
	cl.c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(cl.c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(cl.r, nil)
	if err != nil {
		return "", err
	}
	io.Copy(io.Discard, resp.Body)
	if resp.Close {
		cl.close()
	}
	return resp.Header.Get("Pid"), nil
}
