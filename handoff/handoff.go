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
	"net"
	"net/http"
	"os"
	"sync"
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
func Server(hs *http.Server) cluster.Server {
	return &server{http: hs, conns: make(map[*conn]struct{})}
}

type server struct {
	http *http.Server
	once sync.Once

	mu       sync.Mutex // guards the following
	draining bool       // hand over what is idle
	polite   bool       // ask for no more requests on what can't be
	conns    map[*conn]struct{}
	open     int           // connections that net/http serves, these and others
	empty    chan struct{} // closed when open becomes 0; nil if nobody waits
}

// Serve serves the connections of l, as http.Server.Serve does.
func (s *server) Serve(l net.Listener) error {
	s.once.Do(func() {
		next := s.http.Handler
		if next == nil {
			next = http.DefaultServeMux
		}
		s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.last(r) {
				w.Header().Set("Connection", "close") // HTTP/2 makes it a GOAWAY
			}
			next.ServeHTTP(w, r)
		})
		changed := s.http.ConnState
		s.http.ConnState = func(c net.Conn, state http.ConnState) {
			s.connState(c, state)
			if changed != nil {
				changed(c, state)
			}
		}
	})
	return s.http.Serve(&listener{l, s})
}

// last reports whether the connection of r should have no request after it.
func (s *server) last(r *http.Request) bool {
	if r.TLS == nil && r.ProtoMajor == 1 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.polite
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func (s *server) connState(nc net.Conn, state http.ConnState) {
	if c := unwrap(nc); c != nil {
		c.setState(state)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.open++
	case http.StateHijacked, http.StateClosed:
		if s.open--; s.open == 0 && s.empty != nil {
			close(s.empty)
			s.empty = nil
		}
	}
}

// Shutdown hands over what is idle, waits for the rest to finish and to be
// handed over, and shuts down what can't be.
func (s *server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	var conns []*conn
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.wake()
	}
	graceful, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	s.wait(graceful)
	if s.movable() {
		s.wait(ctx) // busy ones follow when they are done
	}
	// Requests that were read and not begun would be lost here, if there were
	// any after that time.
	return s.http.Shutdown(ctx)
}

// movable reports whether connections are left that can be handed over.
func (s *server) movable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) > 0 && !s.polite
}

// wait waits until no connection is left, or ctx ends.
func (s *server) wait(ctx context.Context) {
	s.mu.Lock()
	if s.open == 0 {
		s.mu.Unlock()
		return
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// Close closes all connections at once.
func (s *server) Close() error { return s.http.Close() }

// stay is called when a connection could not be handed over: there is no
// next generation. From here on it goes as it does for any server.
func (s *server) stay() {
	s.mu.Lock()
	first := !s.polite
	s.polite = true
	s.mu.Unlock()
	if first {
		go s.http.SetKeepAlivesEnabled(false)
	}
}

type listener struct {
	net.Listener
	s *server
}

// Accept wraps the connections that can be handed over.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if _, ok := nc.(syscall.Conn); !ok {
		return nc, nil // TLS
	}
	if rf, ok := nc.(io.ReaderFrom); ok {
		c := &tcpConn{conn{Conn: nc, s: l.s}, rf}
		l.s.add(&c.conn)
		return c, nil
	}
	c := &conn{Conn: nc, s: l.s}
	l.s.add(c)
	return c, nil
}

func (s *server) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	c.draining = s.draining
}

func (s *server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func unwrap(nc net.Conn) *conn {
	switch c := nc.(type) {
	case *tcpConn:
		return &c.conn
	case *conn:
		return c
	}
	return nil
}

// bufferSize is that of net/http's reader: a Read for so much means that it
// has nothing buffered.
const bufferSize = 4096

// A conn is a connection that can be handed over when it is between two
// requests, or before the first: when net/http waits for a request and has
// none of its bytes. That is so if it reads for its whole buffer, and
//
//   - has never been given a byte, or
//   - has told that the connection is idle, and set a deadline once since:
//     it does so again when the first bytes of a request have come.
//
// Its other reads are for what is missing of a request or, a single byte in
// the background of a handler, for the client's leaving.
type conn struct {
	net.Conn
	s *server

	mu        sync.Mutex // guards the following
	state     http.ConnState
	used      bool // a byte has been read
	deadlines int  // how often net/http has set a read deadline since it was idle
	deadline  time.Time
	waiting   bool // in a Read between two requests
	draining  bool // hand it over
	woken     bool // the deadline that is set now is ours
	fixed     bool // it speaks something else, or somebody else has it
}

func (c *conn) setState(state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	c.deadlines = 0
	if state == http.StateHijacked {
		c.fixed = true
		c.s.remove(c)
	}
}

// between reports whether a Read for n bytes waits for a new request. c.mu
// is held.
func (c *conn) between(n int) bool {
	if n != bufferSize || c.fixed {
		return false
	}
	return !c.used || c.state == http.StateIdle && c.deadlines == 1
}

// wake has the connection handed over as soon as it is between two requests.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.waiting {
		c.woken = true
		c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// errMoved ends a Read of a connection that has been handed over. net/http
// takes it as it takes the end of any idle connection.
var errMoved = errors.New("handoff: connection handed over")

func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	for c.between(len(b)) {
		if c.draining {
			if cluster.Handoff(c.Conn, nil) == nil {
				c.mu.Unlock()
				return 0, errMoved
			}
			c.fixed = true
			c.s.stay()
			break
		}
		c.waiting = true
		c.mu.Unlock()
		n, err := c.Conn.Read(b)
		c.mu.Lock()
		c.waiting = false
		if c.woken {
			c.woken = false
			c.Conn.SetReadDeadline(c.deadline)
			if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
		}
		c.got(b, n)
		c.mu.Unlock()
		return n, err
	}
	c.mu.Unlock()
	n, err := c.Conn.Read(b)
	if !c.used && n > 0 {
		c.mu.Lock()
		c.got(b, n)
		c.mu.Unlock()
	}
	return n, err
}

// got notes what has been read. c.mu is held.
func (c *conn) got(b []byte, n int) {
	if n > 0 && !c.used {
		c.used = true
		c.fixed = c.fixed || b[0] == 'P' && n > 2 && string(b[:3]) == "PRI" // HTTP/2 in clear text
	}
}

// SetReadDeadline and SetDeadline keep net/http's deadline in mind while
// ours is set.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadlines++
	c.deadline = t
	if c.woken {
		return nil // Read sets it
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// Close closes the connection, if it has not been handed over.
func (c *conn) Close() error {
	c.s.remove(c)
	return c.Conn.Close()
}

// CloseWrite shuts down the writing side.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn gives access to the socket.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	return c.Conn.(syscall.Conn).SyscallConn()
}

// A tcpConn can send files, too.
type tcpConn struct {
	conn
	rf io.ReaderFrom
}

func (c *tcpConn) ReadFrom(r io.Reader) (int64, error) { return c.rf.ReadFrom(r) }
