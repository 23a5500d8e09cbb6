// Package handoff keeps HTTP/1.1 connections open while a cluster restarts.
//
// When a worker drains, net/http's Shutdown closes the connections that are
// between two requests, and a client that was about to send one sees it
// fail. The server of this package gives such connections to the workers
// that come after, by cluster.Handoff: their clients notice nothing. One
// that is busy follows when its response is done.
//
//	server := &http.Server{Handler: handler}
//	err := cluster.ListenAndServe(":3000", handoff.Server(server))
//
// What can't move is drained politely: TLS connections, be they HTTP/1.1 or
// HTTP/2, are told with their next response that it was the last one, and
// those that stay idle are then closed. Hijacked connections are left to
// whoever has hijacked them.
package handoff

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
)

// grace is how long connections that can't be handed over have, to get a
// last response or to send their first request, before idle ones are closed.
// It is net/http's own measure for the latter.
const grace = 5 * time.Second

// Server returns a server that serves as hs does, and hands its idle
// connections over when the worker that it runs in drains. hs's Handler and
// ConnState are wrapped when it begins to serve, and must be set by then;
// hs must not be used by anything else.
//
// A connection that has been handed over is new to the hs of its new worker:
// ConnContext is called and ConnState tells StateNew there, and StateClosed
// here. Until its next request it is subject to IdleTimeout, as before.
func Server(hs *http.Server) cluster.Server {
	s := &server{http: hs, conns: make(map[*conn]struct{})}
	s.changed.L = &s.mu
	return s
}

type server struct {
	http     *http.Server
	once     sync.Once
	draining atomic.Bool // hand over what is idle
	last     atomic.Bool // nobody takes it: ask for no more requests

	mu      sync.Mutex // guards the following
	changed sync.Cond
	open    int                // connections that net/http serves
	conns   map[*conn]struct{} // those of them that can be handed over
}

// Serve serves the connections of l, as http.Server.Serve does.
func (s *server) Serve(l net.Listener) error {
	s.once.Do(func() {
		handler, connState := s.http.Handler, s.http.ConnState
		if handler == nil {
			handler = http.DefaultServeMux
		}
		s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.last.Load() || s.draining.Load() && (r.TLS != nil || r.ProtoMajor != 1) {
				w.Header().Set("Connection", "close") // HTTP/2 makes it a GOAWAY
			}
			handler.ServeHTTP(w, r)
		})
		s.http.ConnState = func(c net.Conn, state http.ConnState) {
			if connState != nil {
				connState(c, state)
			}
			s.connState(c, state)
		}
	})
	return s.http.Serve(&listener{l, s})
}

func (s *server) connState(nc net.Conn, state http.ConnState) {
	c, ours := nc.(*conn)
	if ours {
		c.setState(state)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.open++
		if ours {
			s.conns[c] = struct{}{}
		}
	case http.StateHijacked, http.StateClosed:
		s.open--
		delete(s.conns, c)
		s.changed.Broadcast()
	}
}

// Shutdown hands over what is idle, waits for the rest to finish and to be
// handed over, and shuts down what can't be.
func (s *server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.wake()
	}

	soon, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	defer context.AfterFunc(soon, s.broadcast)()
	defer context.AfterFunc(ctx, s.broadcast)()
	s.mu.Lock()
	for s.open > 0 && (soon.Err() == nil || len(s.conns) > 0 && !s.last.Load() && ctx.Err() == nil) {
		s.changed.Wait()
	}
	s.mu.Unlock()
	// Requests that were read and not begun would be lost here, if there were
	// any after that time.
	return s.http.Shutdown(ctx)
}

func (s *server) broadcast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

// Close closes all connections at once.
func (s *server) Close() error { return s.http.Close() }

// stay is called when a connection could not be handed over: there is no
// next generation. From here on it goes as it does for any server.
func (s *server) stay() {
	if !s.last.Swap(true) {
		s.http.SetKeepAlivesEnabled(false)
		s.broadcast()
	}
}

// forget gives up handing c over: it is not HTTP/1.
func (s *server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.changed.Broadcast()
}

type listener struct {
	net.Listener
	s *server
}

// A socket is a connection over TCP or a unix socket, and not TLS.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// Accept wraps the connections that can be handed over.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	sock, ok := nc.(socket)
	if !ok {
		return nc, nil
	}
	c := &conn{socket: sock, s: l.s, preface: clientPreface}
	if cluster.HandedOver(nc) {
		c.came = time.Now()
		idle := l.s.http.IdleTimeout
		if idle == 0 {
			idle = l.s.http.ReadTimeout
		}
		if idle > 0 {
			nc.SetReadDeadline(c.came.Add(idle))
		}
	}
	return c, nil
}

// bufferSize is that of net/http's reader: a Read for so much means that it
// has nothing buffered.
const bufferSize = 4096

// clientPreface is how a client begins that speaks HTTP/2 in clear text.
const clientPreface = "PRI * HTTP/2.0"

// A phase is what net/http waits for when it reads.
type phase int

const (
	fresh  phase = iota // the first byte ever
	busy                // more of a request, the client's leaving, or whatever
	told                // nothing yet: it has told that the connection is idle
	idle                // the next request
	beyond              // what we don't understand: HTTP/2
)

// A conn is a connection that can be handed over when it is between two
// requests, or before the first: when net/http waits for a request and has
// none of its bytes. That is so if it
//
//   - has never been given a byte, or
//   - reads for its whole buffer, after it has told that the connection is
//     idle, and set a deadline once since: it does so again when the first
//     bytes of a request have come.
//
// Its other reads are for what is missing of a request or, a single byte in
// the background of a handler, for the client's leaving.
type conn struct {
	socket
	s *server

	mu       sync.Mutex // guards the following
	phase    phase
	waiting  bool          // in a Read that can be interrupted
	woken    bool          // it has been
	deadline time.Time     // net/http's, which is not set while woken, or
	came     time.Time     // while it is fresh here but was handed over then
	late     time.Duration // from then to its first byte: deadlines of that request are so much later

	preface string // what is missing of HTTP/2's, as long as all bytes are part of it; the reader's
}

// setState follows what net/http tells of the connection.
func (c *conn) setState(state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == beyond || state == http.StateNew:
	case state == http.StateIdle:
		c.phase, c.late = told, 0
	default:
		c.phase = busy
	}
}

// wake ends a Read that waits for a request, to have the connection handed
// over.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		c.woken = true
		c.socket.SetReadDeadline(time.Unix(1, 0))
	}
}

// Read reads from the connection. When that has been handed over, or should
// have been, Read returns io.EOF, by which net/http closes an idle one.
func (c *conn) Read(b []byte) (int, error) {
	for {
		c.mu.Lock()
		between := c.phase == fresh || c.phase == idle && len(b) == bufferSize
		if between && c.s.draining.Load() {
			used := c.phase == idle || !c.came.IsZero()
			c.mu.Unlock()
			if cluster.Handoff(c.socket, nil) == nil {
				return 0, io.EOF
			}
			c.s.stay()
			if used {
				return 0, io.EOF
			}
			c.mu.Lock()
		}
		c.waiting = between
		c.mu.Unlock()

		n, err := c.socket.Read(b)

		c.mu.Lock()
		reset := c.woken
		again := c.woken && n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
		c.waiting, c.woken = false, false
		if c.phase == fresh && n > 0 {
			c.phase = busy
			if !c.came.IsZero() {
				c.late = time.Since(c.came)
				c.deadline = later(c.deadline, c.late)
				reset = true
			}
		}
		if reset {
			c.socket.SetReadDeadline(c.deadline)
		}
		c.mu.Unlock()
		if !again {
			c.checkPreface(b[:n])
			return n, err
		}
	}
}

// checkPreface looks whether the client begins to speak HTTP/2 in clear text.
func (c *conn) checkPreface(b []byte) {
	if c.preface == "" || len(b) == 0 {
		return
	}
	rest, ok := strings.CutPrefix(c.preface, string(b[:min(len(b), len(c.preface))]))
	if !ok {
		rest = ""
	}
	if c.preface = rest; ok && rest == "" {
		c.mu.Lock()
		c.phase = beyond
		c.mu.Unlock()
		c.s.forget(c)
	}
}

// SetReadDeadline sets net/http's deadline, now or when ours is over.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.phase {
	case told:
		c.phase = idle
	case idle:
		c.phase = busy
	}
	c.deadline = later(t, c.late)
	if c.woken || c.phase == fresh && !c.came.IsZero() {
		return nil // Read does
	}
	return c.socket.SetReadDeadline(c.deadline)
}

// later returns the deadline t put off by d.
func later(t time.Time, d time.Duration) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(d)
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.socket.SetWriteDeadline(t))
}

// ReadFrom sends files as fast as the connection can.
func (c *conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.socket, r) }
