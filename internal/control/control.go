// Package control serves the addresses at which a master can be talked to: a
// unix socket that only the master's user and root can connect to, or a TCP
// port of the loopback interface. A new master takes the address over.
package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
)

// maxConns is how many connections are served at a time. Those beyond it are
// closed: the master's descriptors are for its workers.
const maxConns = 256

// A Server serves one address in a master.
type Server struct {
	// Name is for errors: "repl".
	Name string

	// Addr is "host:port", ":port", "port", or the path of a unix socket,
	// after "unix:" if it looks like one of those. A missing directory is
	// made. No host is the loopback interface, or with Any all of them.
	Addr string

	// Any allows TCP addresses other than those of the loopback interface.
	Any bool

	// Handle serves one connection, and closes it. It is called in a
	// goroutine of its own. The context ends when all workers of this master
	// are gone: then there is a second left to say so.
	Handle func(ctx context.Context, c net.Conn)

	network, address string
	ctx              context.Context
	cancel           context.CancelFunc
	handlers         sync.WaitGroup

	mu     sync.Mutex   // guards the following
	l      net.Listener // nil: not yet, or no more
	file   fs.FileInfo  // of the unix socket
	err    error        // why there is no listener yet
	closed bool
	conns  int
}

// Attach makes the server serve in the master m, from its start until it
// begins to shut down; connections that are there then last until its end. A
// new master serves as soon as the old one has let go of the address. In a
// worker Attach does nothing.
func (s *Server) Attach(m *cluster.Master) error {
	if !m.IsMaster() {
		return nil
	}
	var err error
	if s.network, s.address, err = Resolve(s.Addr, s.Any); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var taken bool // by the old master, as far as one can tell
	m.On(cluster.Hooks{
		Start: func() error {
			err := s.listen()
			if taken = m.Predecessor() != 0 && errors.Is(err, syscall.EADDRINUSE); taken || err == nil {
				return nil
			}
			return fmt.Errorf("%s: %w", s.Name, err)
		},
		Listening: func() {
			if taken {
				go s.takeOver()
			}
		},
		Restart: func(cluster.Values) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.l == nil && !s.closed {
				logf(m, "%s: %v; trying on", s.Name, s.err) // it was not the old master
			}
		},
		Closing: s.close,
		Close: func() {
			s.close()
			s.cancel()
			gone := make(chan struct{})
			go func() {
				s.handlers.Wait()
				close(gone)
			}()
			select {
			case <-gone:
			case <-time.After(time.Second):
			}
		},
	})
	return nil
}

func logf(m *cluster.Master, format string, args ...any) {
	if m.ErrorLog != nil {
		m.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

// Resolve returns the network and the address that addr stands for: see
// Server.Addr.
func Resolve(addr string, any bool) (network, address string, err error) {
	path, isPath := strings.CutPrefix(addr, "unix:")
	if !isPath && (strings.Contains(addr, "/") || addr != "" && !strings.Contains(addr, ":") && !isNumber(addr)) {
		path, isPath = addr, true
	}
	if isPath {
		if path == "" {
			return "", "", errors.New("the path of the unix socket is empty")
		}
		if path, err = filepath.Abs(path); err != nil {
			return "", "", err
		}
		if limit := len(syscall.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
			return "", "", fmt.Errorf("socket path is %d bytes, the system's limit is %d: %s", len(path), limit, path)
		}
		return "unix", path, nil
	}
	if isNumber(addr) {
		addr = ":" + addr
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", fmt.Errorf("%q is neither a path nor host:port: %w", addr, err)
	}
	if any {
		return "tcp", addr, nil
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", "", fmt.Errorf("%s is not an address of the loopback interface: everybody who can connect could control the cluster", addr)
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// listen listens, and serves in a goroutine.
func (s *Server) listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.l, s.err = s.bind(); s.err != nil {
		return s.err
	}
	go s.serve(s.l)
	return nil
}

func (s *Server) bind() (net.Listener, error) {
	if s.network != "unix" {
		return net.Listen(s.network, s.address)
	}
	if err := os.MkdirAll(filepath.Dir(s.address), 0o755); err != nil {
		return nil, err
	}
	l, err := listenUnix(s.address)
	if errors.Is(err, syscall.EADDRINUSE) {
		info, serr := os.Lstat(s.address)
		if serr == nil && info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s is in the way, and no socket: remove it, or choose another path", s.address)
		}
		if serr == nil && removeStale(s.address, info) {
			l, err = listenUnix(s.address)
		}
	}
	if err != nil {
		return nil, err
	}
	err = os.Chmod(s.address, 0o600) // where listenUnix could not
	if err == nil {
		s.file, err = os.Lstat(s.address)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // close does it
	return l, nil
}

// listenUnix listens at a socket which is its owner's alone as soon as it has
// a name, if the system can do that.
func listenUnix(path string) (net.Listener, error) {
	lc := net.ListenConfig{Control: private}
	return lc.Listen(context.Background(), "unix", path)
}

// removeStale removes a socket that nobody listens at.
func removeStale(path string, info fs.FileInfo) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) && remove(path, info)
}

// remove removes the very file that info is about, and no other.
func remove(path string, info fs.FileInfo) bool {
	now, err := os.Lstat(path)
	return err == nil && os.SameFile(now, info) && os.Remove(path) == nil
}

// takeOver listens as soon as the old master doesn't.
func (s *Server) takeOver() {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if err := s.listen(); err == nil || errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Server) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			select { // out of descriptors, say
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		s.mu.Lock()
		ok := !s.closed && s.conns < maxConns
		if ok {
			s.conns++
			s.handlers.Add(1)
		}
		s.mu.Unlock()
		if !ok {
			c.Close()
			continue
		}
		go func() {
			defer func() {
				c.Close()
				s.mu.Lock()
				s.conns--
				s.mu.Unlock()
				s.handlers.Done()
			}()
			s.Handle(s.ctx, c)
		}()
	}
}

// close lets go of the address.
func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.l == nil {
		return
	}
	if s.network == "unix" {
		remove(s.address, s.file) // while the socket is open nobody else's has its inode
	}
	s.l.Close()
	s.l = nil
}
