package cluster

import (
	"context"
	"log"
	"net"
	"time"
)

// A Server serves a listener until it is told to stop. An *http.Server is
// one.
//
// All methods are called in a worker, or in the calling process if there are
// none (Inline). Serve is called once for every listener, in a goroutine of
// its own; that it returns is an error, unless the worker drains by then.
// A worker that drains stops its listeners first, so that Serve returns, and
// then calls Shutdown.
//
// A server that also has a method SetKeepAlivesEnabled(bool), as an
// *http.Server, gets it called with false first, and Shutdown only when no
// connection is left or five seconds have passed: http.Server.Shutdown
// forgets requests that it has read but not yet given to their handler.
type Server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error // graceful: returns when all is done, or the context's error
	Close() error                   // at once
}

// A TCPServer is the Server for any stream protocol, over TCP or unix
// sockets.
type TCPServer struct {
	// Handler serves one connection. It is called in a goroutine of its
	// own for every connection, which is closed when Handler returns. The
	// context ends when the worker drains: a Handler should then finish
	// what it is doing and return. A panic in it ends the worker.
	Handler func(ctx context.Context, c net.Conn)

	mu        mutex // guards the following
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]struct{}
	idle      chan struct{} // closed when conns is empty, made by Shutdown
	ctx       context.Context
	cancel    context.CancelFunc
}

// Serve accepts connections on l and calls Handler for each, until Accept
// fails. It returns the reason, net.ErrClosed after Shutdown or Close. Where
// there are no descriptors left it says so to log's standard logger, once a
// minute, and tries again.
func (s *TCPServer) Serve(l net.Listener) error {
	defer l.Close()
	if s.Handler == nil {
		return errorf("cluster: TCPServer without a Handler")
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancel(context.Background())
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[net.Conn]struct{})
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()

	var delay time.Duration
	var told time.Time
	for {
		c, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closed := s.closed
			delete(s.listeners, l)
			if te, ok := err.(interface{ Temporary() bool }); ok && te.Temporary() && !closed {
				s.listeners[l] = struct{}{}
				s.mu.Unlock()
				if time.Since(told) > time.Minute {
					told = time.Now()
					log.Printf("cluster: %v; trying again", err)
				}
				delay = min(max(2*delay, 5*time.Millisecond), time.Second)
				time.Sleep(delay) // out of descriptors: as net/http does
				continue
			}
			s.mu.Unlock()
			if closed {
				return net.ErrClosed
			}
			return err
		}
		delay = 0
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		go s.handle(c)
	}
}

func (s *TCPServer) handle(c net.Conn) {
	s.Handler(s.ctx, c)
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Shutdown closes the listeners, ends the handlers' context, and waits until
// all handlers have returned or ctx ends, whose error it then returns.
func (s *TCPServer) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stop()
	if len(s.conns) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close closes the listeners and all connections, without waiting for
// their handlers.
func (s *TCPServer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	for c := range s.conns {
		c.Close()
	}
	return nil
}

// stop closes the listeners and ends the context. s.mu is held.
func (s *TCPServer) stop() {
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	if s.cancel != nil {
		s.cancel()
	}
}
