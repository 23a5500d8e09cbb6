//go:build unix

package handoff_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A peer is a client that writes what it is told.
type peer struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

// dial connects to the cluster.
func (p *program) dial() *peer {
	p.T.Helper()
	c, err := net.Dial(p.network, p.addr)
	if err != nil {
		p.T.Fatal(err)
	}
	p.T.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &peer{c, p.T, bufio.NewReader(c)}
}

func (c *peer) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// response reads a response.
func (c *peer) response() *http.Response {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		c.t.Fatal(err)
	}
	return resp
}

// pid reads a response, which must be good and not the last, and returns the
// process id of the worker that has sent it.
func (c *peer) pid() string {
	c.t.Helper()
	resp := c.response()
	if resp.StatusCode != 200 || resp.Close {
		c.t.Errorf("response %s, Connection: close: %v", resp.Status, resp.Close)
	}
	return resp.Header.Get("Pid")
}

const request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n"

// ask sends a request, and returns the pid of the worker that answers.
func (c *peer) ask() string {
	c.t.Helper()
	c.send(request)
	return c.pid()
}

// ended checks that the server closes the connection.
func (c *peer) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		c.t.Errorf("read %q, %v; want the end", b, err)
	}
}

// leave sends requests until somebody else than these answers. A worker that
// drains keeps a connection for as long as each request comes before it has
// finished with the last one.
func (c *peer) leave(old map[string]bool) {
	c.t.Helper()
	for old[c.ask()] {
		time.Sleep(time.Millisecond)
	}
}

// Requests that are cut anywhere by a restart are all answered, in old and
// fresh connections, single and pipelined.
func TestCutRequests(t *testing.T) {
	const pair = "POST /?id=1 HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc" + request
	p := start(t, "handoff")
	var peers []*peer
	old := make(map[string]bool)
	for i := range len(pair) * 2 {
		c := p.dial()
		if i%2 == 0 {
			old[c.ask()] = true
		}
		c.send(pair[:i/2])
		peers = append(peers, c)
	}
	p.upgrade()
	var late []*peer // they begin while the others wait for the end
	for i := range len(pair) {
		c := p.dial()
		c.send(pair[:i])
		late = append(late, c)
	}
	for i, c := range peers {
		c.send(pair[i/2:])
	}
	for i, c := range peers {
		if pid := c.pid(); !old[pid] && i/2 > 0 && i/2 < len(pair)-len(request) {
			t.Errorf("a request cut after %d bytes was answered by %s, want one of %v", i/2, pid, old)
		}
		c.pid()
		c.leave(old)
	}
	p.roll(2)
	for i, c := range late {
		c.send(pair[i:])
		c.pid()
		c.pid()
		c.ask()
	}
}

// Requests that come at the very moment when their connection moves are
// answered.
func TestMomentOfMove(t *testing.T) {
	p := start(t, "handoff")
	var wg sync.WaitGroup
	var requests atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	for range 200 {
		c := p.dial()
		wg.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(rand.N(10 * time.Millisecond)) // so that many are idle at any time
				c.SetDeadline(time.Now().Add(patience))
				io.WriteString(c, request)
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil || resp.Close {
					t.Errorf("response %v, %v", resp, err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				requests.Add(1)
			}
		})
	}
	for range 4 {
		p.roll(2)
		p.wait("killed")
		p.wait("killed")
	}
	cancel()
	wg.Wait()
	t.Logf("%d requests", requests.Load())
}

// A busy connection follows when its response is done. That delays neither
// the new generation nor the next restart.
func TestSlowRequest(t *testing.T) {
	p := start(t, "handoff")
	c := p.dial()
	old := c.ask()
	c.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1")
	p.upgrade()
	p.upgrade()
	c.send("2") // the end of the request: only now can it be answered
	if pid := c.pid(); pid != old {
		t.Errorf("answer from %s, want %s", pid, old)
	}
	c.leave(map[string]bool{old: true})
}

// What a server sees of a connection that has moved.
func TestMoved(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			p := start(t, "handoff?network="+network)
			c := p.dial()
			for i := range 3 {
				c.send(request)
				resp := c.response()
				if got, want := resp.Header.Get("Remote"), c.LocalAddr().String(); got != want && network == "tcp" {
					t.Errorf("after %d restarts: RemoteAddr %s, want %s", i, got, want)
				}
				if got, want := resp.Header.Get("States"), "new active"; got != want {
					t.Errorf("after %d restarts: states %q, want %q", i, got, want)
				}
				p.roll(2)
				p.wait("killed")
				p.wait("killed")
			}
		})
	}
}

// A connection that was idle when it moved is idle after it: it is closed
// after IdleTimeout, and the timeouts of a request begin with the request.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	p := start(t, "handoff?header=300ms&read=600ms&write=600ms&idle=2s")
	idle, slow, stalled, long, used := p.dial(), p.dial(), p.dial(), p.dial(), p.dial()
	for _, c := range []*peer{idle, slow, stalled, long} {
		c.ask()
	}
	p.upgrade()
	moved := time.Now()
	p.wait("restarted")
	time.Sleep(700*time.Millisecond - time.Since(moved)) // longer than header and read

	stalled.send("GET / HT")
	begun := time.Now()
	slow.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nabc")
	long.send("GET /?sleep=900ms HTTP/1.1\r\nHost: test\r\n\r\n")
	io.Copy(io.Discard, stalled.r) // net/http says 400, and then
	stalled.ended()
	if d := time.Since(begun); d < 250*time.Millisecond {
		t.Errorf("half a request was cut after %v", d)
	}
	slow.send("def")
	slow.pid()
	if _, err := http.ReadResponse(long.r, nil); err == nil {
		t.Error("a response came after WriteTimeout")
	}
	idle.ended()
	if d := time.Since(moved); d < 1500*time.Millisecond {
		t.Errorf("an idle connection was closed after %v, before IdleTimeout", d)
	}
	used.ended() // a new one that sends nothing
}

// A hijacked connection stays with who has it.
func TestHijack(t *testing.T) {
	p := start(t, "handoff")
	hijack := func(c *peer) string {
		c.send("GET /echo HTTP/1.1\r\nHost: test\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("response %v, %v", resp, err)
		}
		return resp.Header.Get("Pid")
	}
	echo := func(c *peer) {
		t.Helper()
		c.send("hello\n")
		if line, err := c.r.ReadString('\n'); line != "hello\n" {
			t.Errorf("read %q, %v", line, err)
		}
	}
	before, after := p.dial(), p.dial()
	old := map[string]bool{hijack(before): true, after.ask(): true}
	echo(before)
	p.upgrade()
	echo(before)
	after.leave(old)
	if pid := hijack(after); old[pid] {
		t.Errorf("connection hijacked in worker %s, an old one", pid)
	}
	echo(after)
	echo(before)
	before.Close()
	after.Close()
	p.wait("restarted")
}

func TestHTTP10(t *testing.T) {
	p := start(t, "handoff")
	c := p.dial()
	ask := func() string {
		t.Helper()
		c.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
		return c.pid()
	}
	old := ask()
	p.upgrade()
	p.wait("restarted")
	if pid := ask(); pid == old {
		t.Errorf("worker %s still answers", pid)
	}
}

// What can't move is asked to go: net/http's own client, with its retries,
// sees no failure.
func TestPolite(t *testing.T) {
	for _, test := range []struct {
		program string
		proto   string
		set     func(*http.Transport)
	}{
		{"tls", "HTTP/1.1", func(tr *http.Transport) {}},
		{"tls", "HTTP/2.0", func(tr *http.Transport) { tr.ForceAttemptHTTP2 = true }},
		{"h2c", "HTTP/2.0", func(tr *http.Transport) {
			tr.Protocols = new(http.Protocols)
			tr.Protocols.SetUnencryptedHTTP2(true)
		}},
	} {
		t.Run(test.program+" "+test.proto, func(t *testing.T) {
			t.Parallel()
			p := start(t, test.program)
			newClient := func() *http.Client {
				tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 8}
				test.set(tr)
				t.Cleanup(tr.CloseIdleConnections)
				return &http.Client{Transport: tr, Timeout: patience}
			}
			url := "https://" + p.addr
			if test.program == "h2c" {
				url = "http://" + p.addr
			}
			get := func(c *http.Client, query string) (pid string, err error) {
				resp, err := c.Get(url + "/" + query)
				if err != nil {
					return "", err
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					return "", err
				}
				if resp.StatusCode != 200 || resp.Proto != test.proto {
					return "", fmt.Errorf("answer is %s %s", resp.Proto, resp.Status)
				}
				return resp.Header.Get("Pid"), nil
			}
			busy, idle := newClient(), newClient()
			var wg sync.WaitGroup
			var requests atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			for i := range 8 {
				wg.Go(func() {
					query := ""
					if i == 0 {
						query = "?sleep=100ms"
					}
					for ctx.Err() == nil {
						if _, err := get(busy, query); err != nil {
							t.Error(err)
						}
						requests.Add(1)
					}
				})
			}
			for range 2 {
				p.upgrade()
				p.roll(2)
			}
			for range 2 {
				p.wait("restarted")
			}
			cancel()
			wg.Wait()
			t.Logf("%d requests", requests.Load())
			if test.program == "tls" && test.proto == "HTTP/2.0" {
				return // the other two are enough to wait for
			}
			old, err := get(idle, "")
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			p.upgrade()
			p.wait("restarted") // the idle connection has been closed by then
			t.Logf("old generation gone after %v", time.Since(begun))
			if pid, err := get(idle, ""); err != nil || pid == old {
				t.Errorf("answer from %s, %v", pid, err)
			}
		})
	}
}

// At the last stop busy connections are told so, and idle ones are closed.
func TestLastStop(t *testing.T) {
	p := start(t, "handoff?workers=1") // one, so that all drain at the same moment
	idle, moved, busy := p.dial(), p.dial(), p.dial()
	moved.ask()
	p.upgrade()
	p.wait("restarted")
	idle.ask()
	busy.send("GET /?sleep=500ms HTTP/1.1\r\nHost: test\r\n\r\n")
	fresh := p.dial()
	time.Sleep(100 * time.Millisecond) // busy's handler has begun
	begun := time.Now()
	p.Signal(syscall.SIGQUIT)
	idle.ended()
	moved.ended()
	fresh.send(request)
	if resp := fresh.response(); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("response %s, Connection: close: %v", resp.Status, resp.Close)
	}
	if resp := busy.response(); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("response %s, Connection: close: %v", resp.Status, resp.Close)
	}
	busy.ended()
	p.stop()
	if d := time.Since(begun); d > 3*time.Second {
		t.Errorf("it took %v to end", d)
	}
}

// A worker that has no descriptors to spare leaves connections in the queue,
// until it has.
func TestNoRoom(t *testing.T) {
	p := start(t, "narrow?workers=1&timeout=3s")
	p.narrow()
	var peers []*peer
	for range 40 {
		c := p.dial()
		c.ask()
		peers = append(peers, c)
	}
	p.roll(1)
	p.wait("waiting")
	// The new worker serves, and takes none of them.
	if pid := p.dial().ask(); pid == "" {
		t.Error("no answer")
	}
	for _, c := range peers {
		c.send(request)
	}
	time.Sleep(100 * time.Millisecond) // nothing should happen
	c := p.dial()
	c.send("GET /?files=1000 HTTP/1.1\r\nHost: test\r\n\r\n")
	pid := c.pid()
	moved := 0
	for _, c := range peers {
		if c.pid() == pid { // else it was asked before it could be moved
			moved++
		}
	}
	if moved < len(peers)/2 {
		t.Errorf("%d of %d connections have moved", moved, len(peers))
	}
	p.wait("killed")
}

// Connections that wait in vain to be handed over are closed when Timeout is
// over.
func TestQueueBlocked(t *testing.T) {
	t.Parallel()
	p := start(t, "narrow?workers=1&timeout=2s")
	p.narrow()
	var peers []*peer
	for range 1000 { // more than fit in the queue
		c := p.dial()
		c.ask()
		peers = append(peers, c)
	}
	begun := time.Now()
	p.roll(1)
	if state := p.wait("killed"); !strings.Contains(state, "exit status 0") {
		t.Errorf("the old worker ended with %s", state)
	}
	if d := time.Since(begun); d > 4*time.Second {
		t.Errorf("the old worker ended after %v", d)
	}
	c := p.dial()
	c.send("GET /?files=1000 HTTP/1.1\r\nHost: test\r\n\r\n")
	c.pid()
	var moved, closed int
	for _, c := range peers {
		io.WriteString(c, request)
		if _, err := http.ReadResponse(c.r, nil); err != nil {
			closed++
		} else {
			moved++
		}
	}
	if closed == 0 || moved == 0 {
		t.Errorf("%d connections moved, and %d were closed; want some of both", moved, closed)
	}
	t.Logf("%d connections moved, %d were closed", moved, closed)
}
