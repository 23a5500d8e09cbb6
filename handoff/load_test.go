//go:build unix

package handoff_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// By default the tests under load are short. The full load is
//
//	go test ./handoff -run Load -v -load.restarts 50 -load.every 400ms
var (
	restarts = flag.Int("load.restarts", 2, "restarts of each kind under load")
	every    = flag.Duration("load.every", 200*time.Millisecond, "time between them")
	strict   = flag.Bool("load.strict", false, "fail if the old generation takes more than a second to go: for a machine that does nothing else")
	clients  = flag.Int("load.clients", 64, "connections")
)

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

// mixed sends one of several kinds of requests. It reports whether that is
// one that is quickly answered.
func (cl *client) mixed(headers string) (quick bool, err error) {
	switch n := rand.IntN(100); {
	case n < 50:
		return true, cl.request(1, "GET", "", headers, nil, 0)
	case n < 70:
		return true, cl.request(1, "POST", "", headers+fmt.Sprintf("Content-Length: %d\r\n", len(body16K)), body16K, len(body16K))
	case n < 85:
		return true, cl.request(1, "POST", "", headers+"Transfer-Encoding: chunked\r\n", chunks, len(body16K))
	case n < 98 && headers == "":
		return true, cl.request(2, "GET", "", headers, nil, 0)
	default:
		return false, cl.request(1, "GET", "&sleep=300ms", headers, nil, 0)
	}
}

// load puts the cluster under load while f runs.
func (p *program) load(headers string, f func(*load)) *load {
	p.T.Helper()
	l := new(load)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range *clients {
		wg.Go(func() {
			cl := p.client(&l.closed)
			defer cl.close()
			for ctx.Err() == nil {
				begun := time.Now()
				quick, err := cl.mixed(headers)
				if err != nil {
					p.T.Errorf("request %d of a client failed: %v", cl.n, err)
					cl.close()
				}
				if quick {
					l.took(begun)
				}
			}
		})
	}
	f(l)
	cancel()
	wg.Wait()
	return l
}

// A load is what came of it.
type load struct {
	closed atomic.Int64 // connections that the server has closed

	mu        sync.Mutex
	all       int // requests
	durations []time.Duration
}

func (l *load) took(begun time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all++
	l.durations = append(l.durations, time.Since(begun))
}

// p99 returns the 99th percentile of the durations since it was last called.
func (l *load) p99() time.Duration {
	l.mu.Lock()
	list := l.durations
	l.durations = nil
	l.mu.Unlock()
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)*99/100]
}

// restart restarts the cluster over and over: both kinds, in turn.
func (p *program) restart(*load) {
	t := time.NewTicker(*every)
	defer t.Stop()
	for range *restarts {
		<-t.C
		p.upgrade()
		<-t.C
		p.roll(2)
	}
}

func TestLoadKeepAlive(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			p := start(t, "handoff?network="+network)
			l := p.load("", p.restart)
			t.Logf("%d requests, %d restarts of each kind, %d connections closed by the server", l.all, *restarts, l.closed.Load())
			if n := l.closed.Load(); n > 0 {
				t.Errorf("%d connections were closed by the server", n)
			}
		})
	}
}

func TestLoadConnectionPerRequest(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			p := start(t, "plain?network="+network)
			l := p.load("Connection: close\r\n", p.restart)
			t.Logf("%d requests, %d restarts of each kind", l.all, *restarts)
		})
	}
}

// Thousands of idle connections answer from the new generation.
func TestIdleConnectionsMove(t *testing.T) {
	idle := 5000
	if race {
		idle = 1000
	}
	p := start(t, "handoff")
	list := make([]*client, idle)
	for i := range list {
		list[i] = p.client(nil)
		defer list[i].close()
	}
	old := askAll(t, list)
	p.upgrade()
	begun := time.Now()
	p.wait("restarted")
	took := time.Since(begun)
	t.Logf("old generation gone after %v", took)
	if took > time.Second && *strict {
		t.Errorf("the old generation took %v to go, with %d idle connections", took, idle)
	}
	for pid := range askAll(t, list) {
		if old[pid] {
			t.Errorf("worker %s still answers", pid)
		}
	}
}

// askAll has all clients send a request, and returns who has answered.
func askAll(t *testing.T, list []*client) map[string]bool {
	t.Helper()
	pids := make(map[string]bool)
	var mu sync.Mutex
	var wg sync.WaitGroup
	const groups = 16
	for i := range groups {
		wg.Go(func() {
			for j := i; j < len(list); j += groups {
				pid, err := list[j].pid()
				if err != nil {
					t.Errorf("connection %d: %v", j, err)
				}
				mu.Lock()
				pids[pid] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return pids
}

// client returns a client that is not connected yet.
func (p *program) client(closed *atomic.Int64) *client {
	if closed == nil {
		closed = new(atomic.Int64)
	}
	return &client{network: p.network, addr: p.addr, closed: closed}
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
