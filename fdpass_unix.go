//go:build unix && !cluster_nofork

package cluster

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The wire. A master and each of its workers hold the two ends of a unix
// stream socket, and speak frames over it:
//
//	byte 0    version of the format, frameVersion
//	byte 1    kind
//	byte 2,3  number of descriptors that come with the frame
//	byte 4-7  length of the payload, big-endian
//	          payload
//
// Descriptors ride as SCM_RIGHTS on the bytes of their own frame. Kinds that
// a reader doesn't know are skipped, so that processes of neighbouring
// versions can talk. Anything else that is odd ends the connection.
const (
	frameVersion = 1
	frameHeader  = 8
	maxPayload   = 1 << 20 // a larger frame is an error on both sides
	maxRights    = 253     // descriptors in one message: the kernel's SCM_MAX_FD
	maxQueue     = 4 << 20 // bytes waiting for a peer that doesn't read
)

// A frameKind says what a frame means. The numbers are the wire's: never
// renumber, only append.
type frameKind byte

const (
	frameSettings frameKind = 1 + iota // master → child: settings; the sockets follow
	frameSockets                       // master → child: descriptors, in the settings' order
	frameServe                         // master → child: accept from now on
	frameDrain                         // master → worker: a drainOrder
	frameMessage                       // both ways: a message
	frameReady                         // child → master: it could accept
	frameFailed                        // child → master: a string, why it gives up
	frameDraining                      // worker → master: it drains of its own accord
	frameBeat                          // worker → master: counts
	frameGone                          // old master → new master: all my workers are gone
	frameMaster                        // new master → stand-in: an int, the pid of who is the master now
	frameOutcome                       // last master → stand-in: a string, its error, or ""
	frameReopen                        // master → worker: standard output and error, if they are files of Master's; new master → old master: do it too
	frameCover                         // master → worker: a coverOrder, with the descriptor of the socket if it is to begin
)

// A payload is a list of fields. Its method visits them in the wire's order,
// to write and to read them alike: never reorder, only append.
type payload interface{ fields(*codec) }

func (s *settings) fields(c *codec) {
	c.string(&s.Title)
	c.int((*int64)(&s.Timeout))
	c.int((*int64)(&s.Heartbeat))
	n := int64(len(s.Sockets))
	c.int(&n)
	for i := int64(0); i < n && !c.bad; i++ {
		if i == int64(len(s.Sockets)) {
			s.Sockets = append(s.Sockets, socketSetting{})
		}
		c.string(&s.Sockets[i].Network)
		c.string(&s.Sockets[i].Address)
		c.bool(&s.Sockets[i].Queue)
		c.int(&s.Sockets[i].Ports)
		if c.reading && (s.Sockets[i].Network == "" || s.Sockets[i].Ports < 0) {
			c.bad = true
		}
	}
	c.bool(&s.Hold)
	s.Values.fields(c)
	(*numbers)(&s.Kept).fields(c)
	for i := range s.Sockets {
		c.string(&s.Sockets[i].File)
	}
}

func (v *Values) fields(c *codec) {
	n := int64(len(*v))
	c.int(&n)
	if !c.reading {
		for key, data := range *v {
			c.string(&key)
			c.bytes((*[]byte)(&data))
		}
		return
	}
	for ; n > 0 && len(c.b) > 0; n-- {
		var key string
		var data []byte
		c.string(&key)
		c.bytes(&data)
		if *v == nil {
			*v = make(Values)
		}
		(*v)[key] = data
	}
}

func (o *drainOrder) fields(c *codec) {
	c.bool(&o.Last)
	(*numbers)(&o.Dropped).fields(c)
}

// A coverOrder makes a worker accept from the socket of a slot that has no
// ready worker, or, without a descriptor, not any more.
type coverOrder struct {
	Socket int64 // its number among those that were inherited
	Slot   int64
}

func (o *coverOrder) fields(c *codec) {
	c.int(&o.Socket)
	c.int(&o.Slot)
}

// numbers is the payload of frameReady from a new master, the sockets that
// it doesn't want, and of frameMaster, a process id.
type numbers []int

func (list *numbers) fields(c *codec) {
	n := int64(len(*list))
	c.int(&n)
	for i := int64(0); i < n && !c.bad; i++ {
		if c.reading {
			if len(c.b) == 0 {
				c.bad = true
				return
			}
			*list = append(*list, 0)
		}
		v := int64((*list)[i])
		c.int(&v)
		(*list)[i] = int(v)
	}
}

// A text is the payload of frameFailed, why a child gives up, and of
// frameOutcome, the last master's error or "".
type text struct{ Text string }

func (t *text) fields(c *codec) { c.string(&t.Text) }

// A message is the payload of frameMessage.
type message struct {
	Name string
	Data json.RawMessage
}

func (m *message) fields(c *codec) {
	c.string(&m.Name)
	c.bytes((*[]byte)(&m.Data))
}

// counts is the payload of frameBeat.
type counts struct {
	Open    int64 // connections held now
	Waiting bool  // the worker drains, and waits for these
}

func (n *counts) fields(c *codec) {
	c.int(&n.Open)
	c.bool(&n.Waiting)
}

// A codec writes fields to b, or reads them from it: numbers are varints, and
// strings have their length before them. A reader takes the fields that an
// older version doesn't know for zero, and leaves what a newer one has added.
//
// There is no encoding/json here: it would be a third of what the package
// adds to a program.
type codec struct {
	b       []byte
	reading bool
	bad     bool // what was read is no list of these fields
}

func (c *codec) int(p *int64) {
	switch {
	case !c.reading:
		c.b = binary.AppendVarint(c.b, *p)
	case len(c.b) == 0:
		*p = 0
	default:
		v, n := binary.Varint(c.b)
		if n <= 0 {
			c.b, c.bad = nil, true
			return
		}
		*p, c.b = v, c.b[n:]
	}
}

//go:noinline
func (c *codec) bool(p *bool) {
	v := int64(0)
	if *p {
		v = 1
	}
	c.int(&v)
	*p = v != 0
}

func (c *codec) bytes(p *[]byte) {
	n := int64(len(*p))
	c.int(&n)
	switch {
	case !c.reading:
		c.b = append(c.b, *p...)
	case n < 0 || n > int64(len(c.b)):
		c.b, c.bad = nil, true
	default:
		*p, c.b = c.b[:n:n], c.b[n:]
	}
}

//go:noinline
func (c *codec) string(p *string) {
	b := []byte(*p)
	c.bytes(&b)
	*p = string(b)
}

// parse reads the fields of p, which is zero, from what newFrame has written.
//
//go:noinline
func parse(b []byte, p payload) error {
	c := codec{b: b, reading: true}
	if p.fields(&c); c.bad {
		return errMalformed
	}
	return nil
}

// A frame is one message on the wire.
type frame struct {
	kind    frameKind
	payload []byte
	fds     []int // sent: borrowed from the caller; received: the handler's to close
}

// newFrame returns a frame of the kind with p as its payload; nil is none.
func newFrame(kind frameKind, p payload) (frame, error) {
	var c codec
	if p != nil {
		p.fields(&c)
	}
	if len(c.b) > maxPayload {
		return frame{}, errorf("cluster: message is %d bytes, the limit is %d", len(c.b), maxPayload)
	}
	return frame{kind: kind, payload: c.b}, nil
}

var errMalformed = errors.New("cluster: malformed frame")

// A link is one end of the connection between a master and a child. Its
// send never blocks; its writer goroutine ends when the link is closed or
// the peer is gone.
type link struct {
	conn    *net.UnixConn
	wake    chan struct{} // capacity 1: the writer has something to do
	flushed chan struct{} // closed when the writer has returned

	mu     mutex // guards the following
	queue  []frame
	size   int
	beat   []byte // the last frameBeat, or nil if it is sent: it goes before the queue, which may be long
	closed bool
	err    error // of the writer; nothing can be sent any more
}

func newLink(conn *net.UnixConn) *link {
	l := &link{conn: conn, wake: make(chan struct{}, 1), flushed: make(chan struct{})}
	go l.write()
	return l
}

// send queues f. The descriptors in it must stay open until the link is
// flushed.
func (l *link) send(f frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case l.closed:
		return net.ErrClosed
	case f.kind == frameBeat:
		l.beat = f.payload
		l.signal()
		return nil
	case l.size+len(f.payload) > maxQueue:
		return errorf("cluster: the other process is not reading its messages")
	}
	l.queue = append(l.queue, f)
	l.size += frameHeader + len(f.payload)
	l.signal()
	return nil
}

// sendValue is send for a payload that is still a value.
func (l *link) sendValue(kind frameKind, p payload) error {
	f, err := newFrame(kind, p)
	if err != nil {
		return err
	}
	return l.send(f)
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// flush sends what is queued, for at most a second. Nothing can be sent
// afterwards.
func (l *link) flush() {
	l.mu.Lock()
	l.closed = true
	l.signal()
	l.mu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	<-l.flushed
}

// close flushes, and closes the connection.
func (l *link) close() {
	l.flush()
	l.conn.Close()
}

// write is the writer goroutine.
func (l *link) write() {
	defer close(l.flushed)
	for range l.wake {
		for {
			l.mu.Lock()
			f := frame{kind: frameBeat, payload: l.beat}
			l.beat = nil
			if f.payload == nil {
				if len(l.queue) == 0 {
					closed := l.closed
					l.mu.Unlock()
					if closed {
						return
					}
					break
				}
				f = l.queue[0]
				l.queue[0] = frame{}
				l.queue = l.queue[1:]
				l.size -= frameHeader + len(f.payload)
			}
			l.mu.Unlock()
			if err := writeFrame(l.conn, f); err != nil {
				l.mu.Lock()
				l.err, l.queue = errorf("cluster: the other process is gone: %w", err), nil
				l.mu.Unlock()
				l.conn.CloseWrite() // if it isn't, it must not wait for more
				return
			}
		}
	}
}

// writeFrame writes one frame, descriptors first.
func writeFrame(c *net.UnixConn, f frame) error {
	if len(f.fds) > maxRights {
		return errorf("cluster: %d descriptors in one frame, the limit is %d", len(f.fds), maxRights)
	}
	b := make([]byte, frameHeader, frameHeader+len(f.payload))
	b[0], b[1] = frameVersion, byte(f.kind)
	binary.BigEndian.PutUint16(b[2:], uint16(len(f.fds)))
	binary.BigEndian.PutUint32(b[4:], uint32(len(f.payload)))
	b = append(b, f.payload...)
	var oob []byte
	if len(f.fds) > 0 {
		oob = unix.UnixRights(f.fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err != nil || n == len(b) {
		return err
	}
	_, err = c.Write(b[n:]) // the rights went with the first byte
	return err
}

// A decoder takes bytes and descriptors as they come off the wire and hands
// out whole frames. It is apart from the socket so that it can be fuzzed.
type decoder struct {
	buf    []byte
	fds    []int
	accept int // descriptors the peer may send with a frame; 0 for a worker
}

// feed adds what one read brought, and calls handle for every frame that is
// complete. The descriptors of the frames that it hands out are the
// handler's; all others are closed. After an error the decoder is useless.
func (d *decoder) feed(b []byte, fds []int, handle func(frame)) (err error) {
	d.buf = append(d.buf, b...)
	d.fds = append(d.fds, fds...)
	defer func() {
		if err != nil {
			closeAll(d.fds)
			d.fds = nil
		}
	}()
	for len(d.buf) >= frameHeader {
		nfds := int(binary.BigEndian.Uint16(d.buf[2:]))
		size := int64(binary.BigEndian.Uint32(d.buf[4:]))
		if d.buf[0] == 0 || nfds > d.accept || size > maxPayload {
			return errMalformed
		}
		end := frameHeader + int(size)
		if len(d.buf) < end {
			break
		}
		if len(d.fds) < nfds { // they come with the frame's first bytes, or never
			return errMalformed
		}
		f := frame{kind: frameKind(d.buf[1]), payload: d.buf[frameHeader:end:end], fds: d.fds[:nfds:nfds]}
		version := d.buf[0]
		d.buf, d.fds = d.buf[end:], d.fds[nfds:]
		if version != frameVersion {
			closeAll(f.fds)
			continue
		}
		handle(f)
	}
	if len(d.buf) == 0 {
		d.buf = nil
		if len(d.fds) > 0 {
			return errMalformed // nobody asked for them
		}
	}
	if len(d.fds) > 2*d.accept {
		return errMalformed
	}
	return nil
}

// read hands out the frames that arrive on c until the peer closes it (nil)
// or says something odd. accept is the number of descriptors that the peer
// may send with a frame; those that come uninvited are closed.
func (l *link) read(accept int, handle func(frame)) error {
	d := decoder{accept: accept}
	defer func() { closeAll(d.fds) }()
	b := make([]byte, 8<<10)
	oob := make([]byte, unix.CmsgSpace(maxRights*4))
	for {
		n, oobn, flags, _, err := l.conn.ReadMsgUnix(b, oob)
		fds, rerr := parseRights(oob[:oobn])
		if n == 0 && err == nil {
			closeAll(fds)
			return nil
		}
		if err != nil || rerr != nil || flags&unix.MSG_CTRUNC != 0 {
			closeAll(fds)
			switch {
			case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
				return nil
			case err != nil:
				return err
			}
			return errMalformed
		}
		if err := d.feed(b[:n], fds, handle); err != nil {
			return err
		}
	}
}

// parseRights returns the descriptors in a control message, close-on-exec.
func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials, say: not ours to use
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

//go:noinline
func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// A masterSocket is the master's listening unix socket. It is for being seen:
// whoever connects is sent away, root included. Workers inherit one end of a
// socketpair, so that it doesn't matter who else can write to the directory
// and put something else in its place. It is nil where it can't be made.
type masterSocket struct {
	path string
	file inode  // what is there
	want string // path, once the old master, which has it, is gone; or ""
	l    *net.UnixListener
}

const defaultSocketFilename = "cluster.{PID}.server.sock"

// maxSocketPath is what fits in a sockaddr_un, less its final zero.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// listenMaster makes the master socket, with mode 0600 from the moment it
// has a name.
func listenMaster(dir, name string, logf func(string, ...any)) (*masterSocket, error) {
	byDefault := dir == ""
	if byDefault {
		dir = "./"
	}
	if name == "" {
		name = defaultSocketFilename
	}
	path := socketPath(dir, name, os.Getpid())
	if len(path) > maxSocketPath {
		return nil, errorf("cluster: master socket path is %d bytes, the system's limit is %d; set SocketPath", len(path), maxSocketPath)
	}
	removeStale(dir, name)
	if runtime.GOOS != "linux" {
		defer syscall.Umask(syscall.Umask(0o177)) // fchmod of a socket does nothing there
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.Fchmod(int(fd), 0o600) })
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && unlinkOurs(path) {
		l, err = lc.Listen(context.Background(), "unix", path)
	}
	want := ""
	if errors.Is(err, syscall.EADDRINUSE) && self.heir {
		want, path = path, socketPath(dir, name+".{PID}", os.Getpid())
		l, err = lc.Listen(context.Background(), "unix", path)
	}
	switch {
	case err == nil:
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		byDefault && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)):
		logf("cluster: no master socket: %v", err)
		return nil, nil
	default:
		return nil, errorf("cluster: master socket: %w; set SocketPath", err)
	}
	s := &masterSocket{path: path, want: want, l: l.(*net.UnixListener)}
	if !foreign(path) {
		s.file = inodeOf(l.Addr())
	}
	s.l.SetUnlinkOnClose(false)
	go s.accept()
	return s, nil
}

func socketPath(dir, name string, pid int) string {
	return filepath.Join(dir, expand(name, "{PID}", pid))
}

// expand returns s with the number n for every key. strings.ReplaceAll is
// ten times as large.
func expand(s, key string, n int) string {
	before, after, ok := strings.Cut(s, key)
	if !ok {
		return s
	}
	return before + strconv.Itoa(n) + expand(after, key, n)
}

// takeOver moves the socket to the path that the old master had.
func (s *masterSocket) takeOver() {
	if s == nil || s.want == "" || !s.file.there() || foreign(s.want) {
		return
	}
	if syscall.Rename(s.path, s.want) == nil {
		s.path, s.file.path, s.want = s.want, s.want, ""
	}
}

// removeStale removes the sockets that masters killed outright have left in
// dir under the same pattern.
func removeStale(dir, name string) {
	prefix, suffix, ok := strings.Cut(name, "{PID}")
	if !ok {
		prefix += "." // as a new master has it until it takes over
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, ok := strings.CutPrefix(e.Name(), prefix)
		pid, ok2 := strings.CutSuffix(pid, suffix)
		if !ok || !ok2 {
			continue
		}
		if _, err := strconv.ParseUint(pid, 10, 31); err == nil {
			unlinkOurs(filepath.Join(dir, e.Name()))
		}
	}
}

// foreign reports whether there is something at path that is no socket of
// this process's user. The master socket may be in a directory that others
// can write to: nothing of theirs is removed there or replaced.
func foreign(path string) bool {
	var st syscall.Stat_t
	return syscall.Lstat(path, &st) == nil && (st.Mode&syscall.S_IFMT != syscall.S_IFSOCK || int(st.Uid) != os.Geteuid())
}

// unlinkOurs is unlinkStale for a master socket.
func unlinkOurs(path string) bool { return !foreign(path) && unlinkStale("unix", path) }

// unlinkStale removes the unix socket at path if no process serves it, and
// reports whether it did. Anything but a socket is left alone.
func unlinkStale(network, path string) bool {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode()&os.ModeSocket == 0 {
		return false
	}
	c, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network}) // Dial would link a resolver
	if err == nil {
		c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) && os.Remove(path) == nil
}

// accept sends everybody away.
func (s *masterSocket) accept() {
	for {
		c, err := s.l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(50 * time.Millisecond) // out of descriptors: others need them more
		default:
			c.Close()
		}
	}
}

func (s *masterSocket) close() {
	if s == nil {
		return
	}
	s.file.remove()
	s.file = inode{} // what is there later is somebody else's
	s.l.Close()
}

// newPair returns the two ends of a connection: the master's, and the raw
// close-on-exec descriptor that a child is to inherit.
func newPair() (*net.UnixConn, int, error) {
	fds, err := socketpair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, -1, err
	}
	c, err := connOf(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return c.(*net.UnixConn), fds[1], nil
}

// dupOf returns a close-on-exec duplicate of c's descriptor, without
// touching its flags as File and Fd would.
func dupOf(c syscall.Conn) (fd int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := rc.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if cerr != nil {
		return -1, cerr
	}
	return fd, os.NewSyscallError("fcntl", err)
}
