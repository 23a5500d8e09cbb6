package handoff

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocluster/cluster"
)

// A recorder notes what net/http does with its connections.
type recorder struct {
	net.Listener
	reads chan int // the size of each Read, when it begins

	mu     sync.Mutex
	events []string
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

// sinceIdle returns what has happened since the connection was told to be
// idle for the last time.
func (r *recorder) sinceIdle() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range slices.Backward(r.events) {
		if e == "idle" {
			return strings.Join(r.events[i:], ", ")
		}
	}
	return "never idle"
}

func (r *recorder) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recorded{c.(*net.TCPConn), r}, nil
}

type recorded struct {
	*net.TCPConn
	r *recorder
}

func (c *recorded) Read(b []byte) (int, error) {
	c.r.note("read %d", len(b))
	select {
	case c.r.reads <- len(b):
	default: // nobody wants to know
	}
	return c.TCPConn.Read(b)
}

func (c *recorded) SetReadDeadline(t time.Time) error {
	c.r.note("deadline")
	return c.TCPConn.SetReadDeadline(t)
}

// record serves one connection with s, which uses hs, and returns its client.
func record(t *testing.T, hs *http.Server, s cluster.Server) (*recorder, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{Listener: l, reads: make(chan int, 1000)}
	hs.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})
	hs.ConnState = func(_ net.Conn, state http.ConnState) { r.note("%v", state) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(r)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() {
		c.Close()
		hs.Close()
		<-done
	})
	return r, c
}

// nextRead waits for a Read of more than the one byte that is read in the
// background of handlers.
func (r *recorder) nextRead(t *testing.T) int {
	t.Helper()
	for {
		select {
		case n := <-r.reads:
			if n > 1 {
				return n
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no Read within 20 s; %s", r.sinceIdle())
		}
	}
}

// steps is what a client sends, piece by piece, and what net/http does then:
// it reads for so many bytes. A connection can be handed over then if it is
// between two requests.
var steps = []struct {
	send    string
	replies int // to read
	read    int
	between bool
	since   string // if it has been idle
}{
	{"", 0, 4096, true, ""},
	{"G", 0, 4095, false, ""},
	{"ET / HTTP/1.1\r\n", 0, 4096, false, ""}, // the line has been used up
	{"Host: test\r\nA: b\r\n", 0, 4096, false, ""},
	{"\r\n", 1, 4096, true, "idle, deadline, read 4096"},
	{"GET / HTTP/1.1\r\nHost: test\r\n\r\n", 1, 4096, true, "idle, deadline, read 4096"},
	{"GE", 0, 4094, false, "idle, deadline, read 4096, read 4094"},
	{"T / HTTP/1.1", 0, 4082, false, "idle, deadline, read 4096, read 4094, deadline, read 4082"},
	{"\r\n", 0, 4096, false, "idle, deadline, read 4096, read 4094, deadline, read 4082, read 4096"},
	{"Host: test\r\n\r\n", 1, 4096, true, "idle, deadline, read 4096"},
	{"GET / HTTP/1.1\r\n", 0, 4096, false, "idle, deadline, read 4096, deadline, read 4096"},
	{"Host: test\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", 2, 4096, true, "idle, deadline, read 4096"},
	{"GET / HTTP/1.1\r\nHost: test\r\n\r\nGET", 1, 4093, false, "idle, deadline, read 4093"},
	{" / HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\n", 1, 4096, false, "idle, deadline, deadline, read 4096"},
	{"Host: test\r\n\r\n", 1, 4096, true, "idle, deadline, read 4096"},
	{"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbo", 0, 4096, false, ""}, // for the body
	{"dy", 1, 4096, true, "idle, deadline, read 4096"},
	{"\r\n\r\n", 0, 4096, false, "idle, deadline, read 4096, deadline, read 4096"}, // to be ignored after a POST
	{"GET / HTTP/1.1\r\nHost: test\r\n\r\n", 1, 4096, true, "idle, deadline, read 4096"},
}

// servers are servers whose settings could make a difference.
var servers = map[string]func() *http.Server{
	"plain": func() *http.Server { return new(http.Server) },
	"timeouts": func() *http.Server {
		return &http.Server{ReadTimeout: time.Minute, ReadHeaderTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute}
	},
	"read timeout": func() *http.Server { return &http.Server{ReadTimeout: time.Minute} },
	"small header": func() *http.Server { return &http.Server{MaxHeaderBytes: 1} },
	"HTTP/2": func() *http.Server {
		hs := &http.Server{Protocols: new(http.Protocols)}
		hs.Protocols.SetHTTP1(true)
		hs.Protocols.SetUnencryptedHTTP2(true)
		return hs
	},
}

// play does all steps, and calls check after each.
func play(t *testing.T, r *recorder, c net.Conn, check func(step, read int)) {
	t.Helper()
	br := bufio.NewReader(c)
	for i, step := range steps {
		io.WriteString(c, step.send)
		for range step.replies {
			if _, err := http.ReadResponse(br, nil); err != nil {
				t.Fatalf("step %d, %q: %v", i, step.send, err)
			}
		}
		check(i, r.nextRead(t))
	}
}

// What this package relies on in net/http. If a new version of Go fails
// this test, a conn needs another way to know that it is between two
// requests.
func TestNetHTTP(t *testing.T) {
	for _, name := range []string{"plain", "timeouts", "read timeout"} {
		t.Run(name, func(t *testing.T) {
			hs := servers[name]()
			r, c := record(t, hs, hs)
			play(t, r, c, func(i, read int) {
				step := steps[i]
				if read != step.read {
					t.Errorf("step %d, %q: net/http reads for %d bytes, want %d", i, step.send, read, step.read)
				}
				if got := r.sinceIdle(); step.since != "" && got != step.since {
					t.Errorf("step %d, %q: net/http does %s; want %s", i, step.send, got, step.since)
				}
			})
		})
	}
}

// A connection is taken to be between two requests when it is, and not
// otherwise.
func TestBetween(t *testing.T) {
	for name, newServer := range servers {
		t.Run(name, func(t *testing.T) {
			hs := newServer()
			s := Server(hs).(*server)
			r, c := record(t, hs, s)
			play(t, r, c, func(i, _ int) {
				s.mu.Lock()
				conns := slices.Collect(maps.Keys(s.conns))
				s.mu.Unlock()
				if len(conns) != 1 {
					t.Fatalf("step %d: %d connections, want 1", i, len(conns))
				}
				conns[0].mu.Lock()
				defer conns[0].mu.Unlock()
				if got, want := conns[0].waiting, steps[i].between; got != want {
					t.Errorf("step %d, %q: between two requests: %v, want %v", i, steps[i].send, got, want)
				}
			})
		})
	}
}

// A connection that is interrupted while it waits for a request goes on if
// the request has come, with net/http's deadline.
func TestWake(t *testing.T) {
	hs := &http.Server{IdleTimeout: time.Minute}
	s := Server(hs).(*server)
	r, c := record(t, hs, s)
	br := bufio.NewReader(c)
	for range 1000 {
		r.nextRead(t)
		s.mu.Lock()
		conns := slices.Collect(maps.Keys(s.conns))
		s.mu.Unlock()
		if len(conns) != 1 {
			t.Fatalf("%d connections, want 1", len(conns))
		}
		go conns[0].wake()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.Close {
			t.Fatalf("response %v, %v", resp, err)
		}
	}
}

// HTTP/2 in clear text is recognized, however it arrives.
func TestPreface(t *testing.T) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for _, test := range []struct {
		pieces []string
		http2  bool
	}{
		{[]string{preface}, true},
		{strings.SplitAfter(preface[:14], ""), true},
		{[]string{"P", "RI * HTTP/2", ".0"}, true},
		{[]string{"P"}, false},
		{[]string{"PRI * HTTP/1.1"}, false},
		{[]string{"P", "OST / HTTP/1.1"}, false},
		{[]string{"GET / HTTP/1.1", preface}, false},
	} {
		s := Server(new(http.Server)).(*server)
		c := &conn{s: s, preface: clientPreface}
		s.conns[c] = struct{}{}
		for _, p := range test.pieces {
			c.checkPreface([]byte(p))
		}
		if got := c.phase == beyond; got != test.http2 || len(s.conns) == 1 == got {
			t.Errorf("%q is taken for HTTP/2: %v, want %v", test.pieces, got, test.http2)
		}
	}
}
