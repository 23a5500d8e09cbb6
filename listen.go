package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrNotInherited is wrapped by the error of Listen and ListenPacket in a
// worker, for an address that the master doesn't listen on.
var ErrNotInherited = errors.New("not inherited from the master")

// Listen announces on the local network address, as net.Listen does. The
// network must be "tcp", "tcp4", "tcp6" or "unix".
//
// In the master it binds the socket. In a worker, which runs the same code,
// it returns the socket that it inherited from the master, known by the very
// same network and address; one that the master never bound is an error that
// wraps ErrNotInherited. In a new master it returns the old master's socket
// if there is one, and binds otherwise. In a process that belongs to no
// cluster the listener is one like any other.
//
// Calls with equal arguments give different sockets, in the same order in
// every process: this is how two listeners on port 0 are told apart. The
// socket file of a unix listener is replaced if nobody serves it any more,
// and removed when the last master shuts down.
//
// An address that is in use is tried again for two seconds: workers whose
// master was killed outright let go of theirs in that time.
func Listen(network, address string) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	return listen(network, address, false)
}

// listen is Listen; with apart every slot gets a socket of its own.
func listen(network, address string, apart bool) (net.Listener, error) {
	s, err := shared.get(network, address, func() (any, error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false) // it has no way to be emptied before it is closed
		if apart {
			lc.Control = func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { setReusePort(int(fd)) })
			}
		}
		return lc.Listen(context.Background(), network, address)
	})
	if err != nil {
		return nil, err
	}
	s.apart = apart
	return s.listener(), nil
}

// ListenPacket is Listen for the networks "udp", "udp4", "udp6" and
// "unixgram". The net.PacketConn is a *net.UDPConn or a *net.UnixConn.
//
// Workers read from the same socket, and each packet reaches one of them.
// The master's own connection is closed as soon as it has workers.
func ListenPacket(network, address string) (net.PacketConn, error) {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
	default:
		return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	s, err := shared.get(network, address, func() (any, error) {
		return new(net.ListenConfig).ListenPacket(context.Background(), network, address)
	})
	if err != nil {
		return nil, err
	}
	conn, err := s.open()
	if err != nil {
		return nil, err
	}
	return conn.(net.PacketConn), nil
}

// FileListener is net.FileListener for a socket that listens already, and that
// this process was given by whoever has started it, as by systemd's socket
// activation. In its workers, and in new masters, Listen returns it for the
// network and the address that the listener's Addr has, and FileListener
// returns an error.
//
// The socket stays whose it is: it takes connections when the cluster has shut
// down, for the next process that is given it, and the file of a unix socket
// is never removed. The caller may close f.
func FileListener(f *os.File) (net.Listener, error) {
	conn, err := given(f, false)
	if err != nil {
		return nil, err
	}
	l := conn.(net.Listener)
	if network := l.Addr().Network(); network != "tcp" && network != "unix" {
		l.Close()
		return nil, &net.OpError{Op: "file", Net: network, Addr: l.Addr(), Err: net.UnknownNetworkError(network)}
	}
	return shared.keep(l.Addr(), l).listener(), nil
}

// FilePacketConn is FileListener for a datagram socket, which ListenPacket
// then returns in workers and new masters.
func FilePacketConn(f *os.File) (net.PacketConn, error) {
	conn, err := given(f, true)
	if err != nil {
		return nil, err
	}
	c := conn.(net.PacketConn)
	if network := c.LocalAddr().Network(); !isPacket(network) {
		c.Close()
		return nil, &net.OpError{Op: "file", Net: network, Addr: c.LocalAddr(), Err: net.UnknownNetworkError(network)}
	}
	shared.keep(c.LocalAddr(), c)
	return c, nil
}

// given opens a socket that this process was given.
func given(f *os.File, packet bool) (conn any, err error) {
	if self.worker || self.old != 0 {
		return nil, errorf("cluster: the process that was started first is given files; use Listen or ListenPacket")
	}
	return fileConn(f, packet)
}

// splitAddr parses a Master's Addr into what Listen takes.
func splitAddr(addr string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return "", "", errorf("cluster: Addr %q has no path; write unix:/run/app.sock", addr)
		}
		return "unix", path, nil
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", "", errorf("cluster: Addr %q: %w; write host:port, :port or unix:/path", addr, err)
	}
	return "tcp", addr, nil
}

// A socket is one that the processes of a cluster share. It is in one of two
// forms. Parked, it is a bare descriptor that the runtime doesn't poll: the
// master keeps it so, not to be woken by every connection. Open, it is a
// net.Listener or net.PacketConn.
type socket struct {
	network, address string // as they were asked for
	addr             net.Addr
	inode            inode // of a unix socket's file that is ours to remove
	number           int   // among those that were inherited
	apart            bool  // a worker's slot has one of its own: this is slot 0's
	ports            []int // those of the other slots, parked
	inherited        bool  // and still somebody else's
	kept             bool  // it was given to the first master, and outlives the cluster

	mu      mutex
	claimed bool      // by a caller of Listen or ListenPacket, or by serve
	fd      int       // parked, or -1
	conn    any       // open, or nil
	l       *listener // what Listen returned for it, or nil
	queue   *queue    // beside a listening socket of a cluster's process
}

func (s *socket) String() string { return s.network + " " + s.address }

// quiesce lets no new connection into the socket's queue, in any process. It
// leaves one that outlives the cluster alone: its queue is for whoever comes.
func (s *socket) quiesce() {
	if isPacket(s.network) || s.kept {
		return
	}
	s.control(func(fd int) { stopArrivals(s.network, fd) })
}

// port returns the descriptor for a slot, parked. One that is made for it
// listens, unless backlog is 0.
func (s *socket) port(slot, backlog int) (fd int, err error) {
	if slot == 0 {
		return s.park()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.ports) < slot {
		if fd, err = bindBeside(s.fd, backlog); err != nil {
			return -1, err
		}
		s.ports = append(s.ports, fd)
	}
	return s.ports[slot-1], nil
}

// others returns the descriptors of all slots but the first.
func (s *socket) others() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ports)
}

// control calls f with the socket's descriptor, in either form, and with
// those of its ports.
func (s *socket) control(f func(fd int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		f(s.fd)
	} else if conn, ok := s.conn.(syscall.Conn); ok {
		if rc, err := conn.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
	for _, fd := range s.ports {
		f(fd)
	}
}

// open returns the socket's open form.
func (s *socket) open() (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return s.conn, nil
	}
	if s.fd < 0 {
		return nil, net.ErrClosed
	}
	conn, err := unpark(s.fd, isPacket(s.network))
	if err != nil {
		return nil, err
	}
	closeFD(s.fd)
	s.fd, s.conn = -1, conn
	return conn, nil
}

// park makes the socket a bare descriptor, which it returns.
func (s *socket) park() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		return s.fd, nil
	}
	if s.conn == nil {
		return -1, net.ErrClosed
	}
	fd, err := park(s.conn)
	if err != nil {
		return -1, err
	}
	s.fd, s.conn = fd, nil
	return fd, nil
}

// close closes this process's part of the socket.
func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.(interface{ Close() error }).Close()
	}
	if s.fd >= 0 {
		closeFD(s.fd)
	}
	for _, fd := range s.ports {
		closeFD(fd)
	}
	s.fd, s.conn, s.ports = -1, nil, nil
}

// closeQueue closes this process's part of the handoff queue.
func (s *socket) closeQueue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue != nil {
		s.queue.close()
		s.queue = nil
	}
}

// listener returns the socket as the net.Listener that users see.
func (s *socket) listener() *listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l == nil {
		s.l = &listener{
			socket:  s,
			gate:    shared.gate,
			conns:   &shared.conns,
			first:   make(chan struct{}),
			halt:    make(chan struct{}),
			stopped: make(chan struct{}),
		}
	}
	return s.l
}

//go:noinline
func isPacket(network string) bool {
	return strings.HasPrefix(network, "udp") || network == "unixgram"
}

// A socketSet is all the sockets of a process that its cluster shares, in
// the order they were made in the first master.
type socketSet struct {
	conns counter         // of the connections accepted outside of a service
	gate  <-chan struct{} // accept only when it is closed; nil: at once

	mu   mutex
	list []*socket
}

// shared is this process's set.
var shared socketSet

// bindPatience is how long an address may be in use before that is an error.
// It is a variable for the sake of tests.
var bindPatience = 2 * orphanSweep

// get claims the first socket for network and address that nobody has
// claimed, or makes one with bind.
func (set *socketSet) get(network, address string, bind func() (any, error)) (*socket, error) {
	if err := self.await(); err != nil {
		return nil, err
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.list {
		if s.network == network && s.address == address && s.claim() {
			return s, nil
		}
	}
	if IsWorker() {
		return nil, errorf("cluster: listen %s %s: %w, which passed %s", network, address, ErrNotInherited, set.describe())
	}
	for end := time.Now().Add(bindPatience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := bind()
		if err != nil && strings.HasPrefix(network, "unix") && unlinkStale(network, address) {
			conn, err = bind()
		}
		if err == nil {
			return set.add(network, address, conn), nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			return nil, err
		}
	}
}

// add puts conn, open in this process, into the set. set.mu is held.
func (set *socketSet) add(network, address string, conn any) *socket {
	s := &socket{network: network, address: address, fd: -1, conn: conn, claimed: true}
	switch conn := conn.(type) {
	case *net.UnixListener:
		conn.SetUnlinkOnClose(false)
		s.addr, s.inode = conn.Addr(), inodeOf(conn.Addr())
	case net.Listener:
		s.addr = conn.Addr()
	case net.PacketConn:
		s.addr, s.inode = conn.LocalAddr(), inodeOf(conn.LocalAddr())
	}
	set.list = append(set.list, s)
	return s
}

// keep is add for a socket that is somebody else's.
func (set *socketSet) keep(addr net.Addr, conn any) *socket {
	set.mu.Lock()
	defer set.mu.Unlock()
	s := set.add(addr.Network(), addr.String(), conn)
	s.kept, s.inode = true, inode{}
	return s
}

func (s *socket) claim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.claimed
	s.claimed = true
	return first
}

// describe lists the sockets for an error message. set.mu is held.
func (set *socketSet) describe() string {
	if len(set.list) == 0 {
		return "none"
	}
	var names []string
	for _, s := range set.list {
		names = append(names, s.String())
	}
	return strings.Join(names, ", ")
}

// unclaimed claims the listeners that are left.
func (set *socketSet) unclaimed() (left []*listener) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.list {
		if !isPacket(s.network) && s.claim() {
			left = append(left, s.listener())
		}
	}
	return left
}

// find returns the listener of ours that l is, or has inside: tls.NewListener
// and its like pass on the address of what they wrap, and an address is
// never shared by two sockets. A plain listener joins the set.
func (set *socketSet) find(l net.Listener) (*listener, error) {
	if ours, ok := l.(*listener); ok {
		return ours, nil
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.list {
		if s.addr == l.Addr() && !isPacket(s.network) {
			return s.listener(), nil
		}
	}
	switch l.(type) {
	case *net.TCPListener, *net.UnixListener:
		if !IsWorker() {
			return set.add(l.Addr().Network(), l.Addr().String(), l).listener(), nil
		}
	}
	return nil, errorf("cluster: a %T on %v has no listener of cluster.Listen inside", l, l.Addr())
}

// sockets returns a snapshot of the set.
func (set *socketSet) sockets() []*socket {
	set.mu.Lock()
	defer set.mu.Unlock()
	return slices.Clone(set.list)
}

// look has every Accept look again for a connection.
func (set *socketSet) look() {
	for _, s := range set.sockets() {
		if !isPacket(s.network) {
			s.listener().turns.Load().wait(0)
		}
	}
}

// close closes all sockets and empties the set. With remove, the files of
// unix sockets go too, but for those that are still somebody else's: nobody
// serves them any more.
func (set *socketSet) close(remove bool) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.list {
		if remove && !s.inherited {
			s.inode.remove()
		}
		s.close()
		s.closeQueue()
	}
	set.list = nil
}

// dropped returns the sockets that nobody in this process has asked for.
func (set *socketSet) dropped() (list []*socket) {
	for _, s := range set.sockets() {
		s.mu.Lock()
		if !s.claimed {
			list = append(list, s)
		}
		s.mu.Unlock()
	}
	return list
}

// disown leaves these sockets to another process, or makes them this
// process's own.
func (set *socketSet) disown(list []*socket, yes bool) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range list {
		s.inherited = yes
	}
}

// drop closes those of the sockets that nobody in this process has asked for.
func (set *socketSet) drop() {
	dropped := set.dropped()
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range dropped {
		s.inode.remove()
		s.close()
		s.closeQueue()
	}
	set.list = slices.DeleteFunc(set.list, func(s *socket) bool { return slices.Contains(dropped, s) })
}

// A counter counts connections.
type counter struct {
	open, total atomic.Int64

	mu   mutex
	zero chan struct{} // closed when open becomes 0; nil if nobody waits for it
}

func (c *counter) add() {
	c.open.Add(1)
	c.total.Add(1)
}

func (c *counter) done() {
	if c.open.Add(-1) > 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.zero != nil {
		close(c.zero)
		c.zero = nil
	}
}

// empty waits until no connection is open, or stop is closed. It calls
// report at first, and every second.
func (c *counter) empty(stop <-chan struct{}, report func(open int)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		c.mu.Lock()
		n := c.open.Load()
		if n > 0 && c.zero == nil {
			c.zero = make(chan struct{})
		}
		zero := c.zero
		c.mu.Unlock()
		if n == 0 {
			return
		}
		report(int(n))
		select {
		case <-zero:
		case <-t.C:
		case <-stop:
			return
		}
	}
}

// A listener is the net.Listener for a shared socket.
type listener struct {
	socket *socket
	gate   <-chan struct{}
	conns  *counter

	first     chan struct{} // closed by the first Accept: somebody would serve
	firstOnce sync.Once

	halt     chan struct{} // closed by stop and Close: accept no more
	haltOnce sync.Once
	sweep    time.Time     // but until then, take what the kernel has queued; read it after halt
	final    atomic.Bool   // nobody serves it after us; read it after halt
	stopped  chan struct{} // closed when no Accept will succeed any more
	stopOnce sync.Once

	begin    sync.Once                // what the first Accept does, here:
	turns    atomic.Pointer[turns]    // with other processes that accept from the socket; nil: all are woken
	received chan struct{}            // closed when that has ended; nil if there is no queue
	mu       mutex                    // guards handed and covered
	handed   []net.Conn               // from the queue, or from a socket that is covered, for Accept
	any      atomic.Bool              // there are some
	covered  map[int]deadlineListener // the sockets of other slots, which have nobody
	covering sync.WaitGroup           // those who accept from them
}

// Accept waits for the next connection. The net.Conn is a *net.TCPConn or a
// *net.UnixConn with a counter around it.
func (l *listener) Accept() (net.Conn, error) {
	l.firstOnce.Do(func() { close(l.first) })
	if l.gate != nil {
		select {
		case <-l.gate:
		case <-l.halt:
		}
	}
	conn, err := l.socket.open()
	if errors.Is(err, net.ErrClosed) {
		l.closed()
		return nil, l.error(err)
	}
	if err != nil {
		return nil, err
	}
	inner := conn.(deadlineListener)
	l.begin.Do(func() {
		if IsWorker() && !l.socket.apart {
			l.turns.Store(turnsFor(inner))
		}
		l.startReceiving(inner)
	})
	for {
		if c := l.takeHanded(inner); c != nil {
			return c, nil
		}
		select {
		case <-l.halt:
			return l.last(inner)
		default:
		}
		turns := l.turns.Load()
		if err := turns.wait(1); err != nil {
			return nil, l.error(shortage{err})
		}
		c, err := inner.Accept()
		turns.wait(-1)
		if err == nil {
			return l.count(c, nil, false), nil
		}
		if l.any.Load() {
			continue // that is why it was woken
		}
		select {
		case <-l.halt:
			return l.last(inner)
		default:
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if scarce(err) {
				err = l.error(shortage{err.(*net.OpError).Err})
			}
			return nil, err
		}
		l.mu.Lock()
		if len(l.handed) == 0 { // another Accept has taken what it was woken for
			inner.SetDeadline(time.Time{})
		}
		l.mu.Unlock()
	}
}

// cover makes Accept also return connections from fd, the socket of another
// slot.
func (l *listener) cover(slot, fd int) {
	defer closeFD(fd)
	conn, err := l.socket.open()
	if err != nil {
		return
	}
	inner := conn.(deadlineListener)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.covered[slot]; ok || isClosedChan(l.halt) {
		return
	}
	if conn, err = unpark(fd, false); err != nil {
		return
	}
	other := conn.(deadlineListener)
	if l.covered == nil {
		l.covered = make(map[int]deadlineListener)
	}
	l.covered[slot] = other
	l.covering.Go(func() {
		for {
			c, err := other.Accept()
			switch {
			case err == nil:
				l.hand(l.count(c, nil, false), inner)
			case scarce(err):
				time.Sleep(100 * time.Millisecond)
			default:
				return
			}
		}
	})
}

// uncover ends that: the slot has a worker again.
func (l *listener) uncover(slot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.covered[slot]; other != nil && !isClosedChan(l.halt) {
		delete(l.covered, slot)
		other.Close()
	}
}

// hand makes Accept return c.
func (l *listener) hand(c net.Conn, inner deadlineListener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handed = append(l.handed, c); len(l.handed) == 1 {
		l.any.Store(true)
		inner.SetDeadline(time.Unix(1, 0))
	}
}

// takeHanded returns a connection that hand was given, or nil.
func (l *listener) takeHanded(inner deadlineListener) net.Conn {
	if !l.any.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.handed) == 0 {
		return nil
	}
	c := l.handed[0]
	l.handed = l.handed[1:]
	if len(l.handed) == 0 {
		l.handed = nil
		l.any.Store(false)
		select {
		case <-l.halt:
		default:
			inner.SetDeadline(time.Time{})
		}
	}
	return c
}

// A deadlineListener is a *net.TCPListener or a *net.UnixListener.
type deadlineListener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// last is Accept after stop: it empties the queue and then says no. That of a
// socket which outlives the cluster it leaves to the next, which comes at once
// if we are restarted: clients that never end would keep us from ending.
func (l *listener) last(inner deadlineListener) (net.Conn, error) {
	if l.received != nil {
		<-l.received
	}
	l.mu.Lock() // cover may be at it
	from := []net.Listener{inner}
	for _, other := range l.covered {
		from = append(from, other)
	}
	l.mu.Unlock()
	l.covering.Wait()
	if c := l.takeHanded(inner); c != nil {
		return c, nil
	}
	if l.final.Load() && l.socket.kept {
		from = nil // the queue is for whoever is given the socket next
	}
	for _, queued := range from {
		for time.Now().Before(l.sweep) || queued == inner && l.turns.Load().last() {
			c, err := acceptQueued(queued)
			switch {
			case err == nil:
				return l.count(c, nil, false), nil
			case scarce(err):
				return nil, l.error(shortage{err})
			case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ECONNABORTED):
				continue
			}
			break // the queue is empty
		}
	}
	l.closed()
	return nil, l.error(net.ErrClosed)
}

//go:noinline
func (l *listener) error(err error) error {
	return &net.OpError{Op: "accept", Net: l.socket.network, Addr: l.socket.addr, Err: err}
}

// A shortage is an error of Accept after which a server tries again. The net
// package says so of descriptors alone, and memory comes back, too.
type shortage struct{ error }

func (shortage) Temporary() bool { return true }
func (s shortage) Unwrap() error { return s.error }

// scarce reports whether err is for the lack of something.
//
//go:noinline
func scarce(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOBUFS)
}

// closed closes this process's part of the socket.
func (l *listener) closed() {
	l.stopOnce.Do(func() {
		l.socket.close()
		l.mu.Lock()
		for _, other := range l.covered {
			other.Close()
		}
		l.mu.Unlock()
		close(l.stopped)
	})
}

// stop makes Accept fail, but only after it has returned what the kernel has
// queued, if it can so within the time given by sweep: that is for a listener
// that nobody serves afterwards. Of so much time connections have three
// quarters to be handed over; those that can't be need the rest to end. It
// doesn't wait.
func (l *listener) stop(sweep, timeout time.Duration) {
	l.haltOnce.Do(func() {
		l.sweep = time.Now().Add(sweep)
		if sweep > 0 {
			l.final.Store(true)
		}
		close(l.halt)
		l.mu.Lock()
		for _, other := range l.covered {
			other.SetDeadline(time.Unix(1, 0))
		}
		l.mu.Unlock()
		l.socket.mu.Lock()
		defer l.socket.mu.Unlock()
		if inner, ok := l.socket.conn.(deadlineListener); ok {
			inner.SetDeadline(time.Unix(1, 0))
		}
		if l.socket.queue != nil {
			l.socket.queue.stop(timeout - timeout/4)
		}
	})
}

// Close ends accepting in this process. What the kernel has queued is left
// to the others.
func (l *listener) Close() error {
	l.stop(0, 0)
	l.closed()
	return nil
}

func (l *listener) Addr() net.Addr { return l.socket.addr }

// count returns c with a counter around it. What it returns when it is read
// begins with unread; handed is whether it was handed over.
func (l *listener) count(c net.Conn, unread []byte, handed bool) net.Conn {
	l.conns.add()
	switch c := c.(type) {
	case *net.TCPConn:
		return &tcpConn{TCPConn: *c, accepted: accepted{l: l, unread: unread, handed: handed}}
	case *net.UnixConn:
		return &unixConn{UnixConn: *c, accepted: accepted{l: l, unread: unread, handed: handed}}
	}
	panic("cluster: accepted a " + c.RemoteAddr().Network() + " connection")
}

// tcpConn and unixConn keep all that the net package's connections can do,
// ReadFrom and WriteTo (sendfile, splice) included.
type tcpConn struct {
	net.TCPConn
	accepted
}

type unixConn struct {
	net.UnixConn
	accepted
}

// accepted is what a connection from one of our listeners has in addition.
type accepted struct {
	l      *listener
	unread []byte // has come with it from the process that had it before
	handed bool   // so it has come, even if there was nothing
	gone   atomic.Bool
}

func (c *tcpConn) Close() error  { c.done(); return c.TCPConn.Close() }
func (c *unixConn) Close() error { c.done(); return c.UnixConn.Close() }

func (c *tcpConn) Read(b []byte) (int, error) {
	if len(c.unread) > 0 {
		return c.readUnread(b), nil
	}
	return c.TCPConn.Read(b)
}

func (c *unixConn) Read(b []byte) (int, error) {
	if len(c.unread) > 0 {
		return c.readUnread(b), nil
	}
	return c.UnixConn.Read(b)
}

// WriteTo is io.Copy's way to splice.
func (c *tcpConn) WriteTo(w io.Writer) (int64, error) {
	if len(c.unread) == 0 {
		return c.TCPConn.WriteTo(w)
	}
	n, err := w.Write(c.unread)
	if c.unread = c.unread[n:]; err != nil {
		return int64(n), err
	}
	more, err := c.TCPConn.WriteTo(w)
	return int64(n) + more, err
}

//go:noinline
func (c *accepted) readUnread(b []byte) int {
	n := copy(b, c.unread)
	if c.unread = c.unread[n:]; len(c.unread) == 0 {
		c.unread = nil
	}
	return n
}

// done takes the connection off its counter, once.
func (c *accepted) done() {
	if !c.gone.Swap(true) {
		c.l.conns.done()
	}
}

//go:noinline
func isClosedChan(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
