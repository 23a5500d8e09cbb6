//go:build linux

package main

import (
	"bytes"
	"cmp"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A load is what the load generator does: a process of this program of its
// own, which asks a server over and over for the same and checks every
// answer. It speaks to the kernel without package net, and understands no more HTTP than
// it needs, so that it takes as little as possible of the CPUs that it shares
// with the server.
type load struct {
	Addr     string
	Want     string        // the body of every answer
	Conns    int           // connections at a time
	Close    bool          // one for each request, instead of keeping them
	Rate     int           // requests a second, each at its time; 0: ask again when the answer is there
	Ramp     int           // connections that are opened at first, the others one by one; 0: all
	Duration time.Duration // after that nothing is asked any more
	Patience time.Duration // for an answer; 0: 5s
}

// A result is what became of it.
type result struct {
	Start    time.Time
	Seconds  float64
	Failed   map[string]int // requests without the right answer, by what happened
	Closed   int            // connections that the server did not keep
	Samples  []sample       // of the answers that were right
	Failures []int64        // when, in nanoseconds since Start
	Pids     map[int]*answers
}

// A sample is one answer: when it came, in nanoseconds since Start, and how long
// it took: from the time it was due, if there is a Rate, otherwise from before
// the connection, if there is one for each request, or the request.
type sample struct{ At, Took int64 }

// Answers are those of one process of the server.
type answers struct {
	First, Last     int64 // when, in nanoseconds since Start
	Requests, Conns int
}

// failed returns the number of requests that have failed.
func (r *result) failed() (n int) {
	for _, k := range r.Failed {
		n += k
	}
	return n
}

// loadEnv holds the load in the generator's environment.
const loadEnv = "BENCH_LOAD"

// start starts the generator. The function returns the result when it is
// done.
func (l load) start() (wait func() (*result, error), err error) {
	setting, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), loadEnv+"="+string(setting))
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (*result, error) {
		if err := cmd.Wait(); err != nil {
			return nil, fmt.Errorf("load generator: %w", err)
		}
		r := new(result)
		return r, gob.NewDecoder(&out).Decode(r)
	}, nil
}

// run is start and wait.
func (l load) run() (*result, error) {
	wait, err := l.start()
	if err != nil {
		return nil, err
	}
	return wait()
}

// generate is the generator's main function.
func generate(setting string) {
	var l load
	if err := json.Unmarshal([]byte(setting), &l); err != nil {
		log.Fatal(err)
	}
	debug.SetGCPercent(-1) // it doesn't live for long
	n := max(1, runtime.NumCPU()/2)
	n = min(n, l.Conns)
	runtime.GOMAXPROCS(n + 1)
	clients := make([]*client, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		share := l
		share.Conns = l.Conns*(i+1)/n - l.Conns*i/n
		share.Rate = l.Rate*(i+1)/n - l.Rate*i/n
		if l.Ramp > 0 {
			share.Ramp = max(1, l.Ramp/n)
		}
		c, err := newClient(share, start)
		if err != nil {
			log.Fatal(err)
		}
		clients[i] = c
		wg.Go(c.run)
	}
	wg.Wait()
	sum := &clients[0].result
	for _, c := range clients[1:] {
		sum.add(&c.result)
	}
	slices.SortFunc(sum.Samples, func(a, b sample) int { return cmp.Compare(a.At, b.At) })
	if err := gob.NewEncoder(os.Stdout).Encode(sum); err != nil {
		log.Fatal(err)
	}
}

func (r *result) add(o *result) {
	for what, n := range o.Failed {
		r.Failed[what] += n
	}
	r.Closed += o.Closed
	r.Samples = append(r.Samples, o.Samples...)
	r.Failures = append(r.Failures, o.Failures...)
	for pid, a := range o.Pids {
		if b := r.Pids[pid]; b != nil {
			a.First, a.Last = min(a.First, b.First), max(a.Last, b.Last)
			a.Requests, a.Conns = a.Requests+b.Requests, a.Conns+b.Conns
		}
		r.Pids[pid] = a
	}
}

// A client is one thread of the generator.
type client struct {
	load
	result
	start   time.Time
	addr    unix.SockaddrInet4
	request []byte
	epoll   int
	conns   []conn
	idle    []*conn // those that ask nothing
	busy    int     // those that do
	opened  int     // of conns, how many have begun
	pauses  []*conn // those that failed: they try again in a moment
	sources byte    // the last source address that was used
}

// A conn is one connection, or its successors.
type conn struct {
	fd     int   // -1: not connected
	since  int64 // when it asked, or should have; 0: it doesn't wait for an answer
	asked  int64 // when it really did
	fresh  bool  // nothing has been answered on this connection
	unsent bool  // it has yet to connect
	n      int   // bytes of the answer
	buf    [1024]byte
}

func newClient(l load, start time.Time) (*client, error) {
	addr, err := netip.ParseAddrPort(l.Addr)
	if err != nil {
		return nil, err
	}
	c := &client{load: l, start: start, conns: make([]conn, l.Conns)}
	c.result = result{Start: start, Failed: make(map[string]int), Pids: make(map[int]*answers)}
	c.addr = unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	c.request = []byte("GET / HTTP/1.1\r\nHost: " + l.Addr + "\r\n\r\n")
	if l.Close {
		c.request = []byte("GET / HTTP/1.1\r\nHost: " + l.Addr + "\r\nConnection: close\r\n\r\n")
	}
	if c.Patience == 0 {
		c.Patience = 5 * time.Second
	}
	c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	for i := range c.conns {
		c.conns[i].fd = -1
	}
	return c, err
}

// now returns the nanoseconds since the start.
func (c *client) now() int64 { return int64(time.Since(c.start)) }

// run asks until the time is over, waits for the last answers, and hangs up.
func (c *client) run() {
	runtime.LockOSThread()
	end := int64(c.Duration)
	interval, next := int64(0), int64(0)
	if c.Rate > 0 {
		interval = int64(time.Second) / int64(c.Rate)
	}
	for n := min(len(c.conns), max(c.Ramp, 0)); c.opened < len(c.conns) && (n == 0 || c.opened < n); {
		c.open()
	}
	events := make([]unix.EpollEvent, 256)
	looked := int64(0)
	for {
		now := c.now()
		if now >= end && c.busy == 0 && (interval == 0 || next >= end) {
			break
		}
		if now >= end+int64(c.Patience) && next < end && interval > 0 {
			for ; next < end; next += interval {
				c.Failed["not even asked in time"]++
				c.Failures = append(c.Failures, now)
			}
			c.expire(math.MaxInt64)
			break
		}
		if now-looked > int64(100*time.Millisecond) {
			looked = now
			c.expire(now)
		}
		wait := int64(10 * time.Millisecond)
		if len(c.pauses) > 0 {
			wait = int64(time.Millisecond)
			if now-c.pauses[0].asked >= wait {
				p := c.pauses[0]
				c.pauses = c.pauses[1:]
				c.free(p)
				continue
			}
		}
		if interval > 0 && next < end {
			for ; next <= now && next < end && len(c.idle) > 0; next += interval {
				p := c.idle[0]
				c.idle = c.idle[1:]
				c.ask(p, next)
			}
			if next > now {
				wait = min(wait, next-now)
			}
		}
		n, err := epollWait(c.epoll, events, wait)
		if err != nil && err != unix.EINTR {
			log.Fatal("epoll: ", err)
		}
		for _, e := range events[:max(n, 0)] {
			p := &c.conns[e.Pad]
			if p.fd == int(e.Fd) {
				c.ready(p, e.Events)
			}
		}
	}
	c.Seconds = time.Since(c.start).Seconds()
	for i := range c.conns {
		c.hangUp(&c.conns[i])
	}
	unix.Close(c.epoll)
}

// epollWait is epoll_wait(2) with a finer time.
func epollWait(fd int, events []unix.EpollEvent, wait int64) (int, error) {
	t := unix.NsecToTimespec(wait)
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&t)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// open takes one more of the connections into use.
func (c *client) open() {
	p := &c.conns[c.opened]
	c.opened++
	c.free(p)
}

// free has a connection ask again, now or when a request is due.
func (c *client) free(p *conn) {
	now := c.now()
	if c.Rate > 0 {
		c.idle = append(c.idle, p)
	} else if now < int64(c.Duration) {
		c.ask(p, now)
	}
}

// ask sends a request. It was due at the given time.
func (c *client) ask(p *conn, due int64) {
	p.since, p.asked, p.n = max(due, 1), c.now(), 0
	c.busy++
	if p.fd < 0 {
		if err := c.connect(p); err != nil {
			c.fail(p, "connect", err)
			return
		}
	}
	c.send(p)
}

func (c *client) connect(p *conn) (err error) {
	p.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.fd = -1
		return err
	}
	p.fresh = true
	unix.SetsockoptInt(p.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if c.Close && c.addr.Addr[0] == 127 { // there are only so many ports to an address
		c.sources = c.sources%32 + 1
		unix.SetsockoptInt(p.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(p.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, c.sources}}); err != nil {
			return err
		}
	}
	if err := unix.Connect(p.fd, &c.addr); err != nil && err != unix.EINPROGRESS {
		return err
	}
	// Pad is the other half of the event's data: whose it is.
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.fd), Pad: int32(c.index(p))}
	return unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, p.fd, &e)
}

func (c *client) index(p *conn) int {
	return int((uintptr(unsafe.Pointer(p)) - uintptr(unsafe.Pointer(&c.conns[0]))) / unsafe.Sizeof(*p))
}

func (c *client) send(p *conn) {
	n, err := unix.Write(p.fd, c.request)
	if p.unsent = err == unix.EAGAIN; p.unsent {
		e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT, Fd: int32(p.fd), Pad: int32(c.index(p))}
		err = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_MOD, p.fd, &e)
	} else if err == nil && n < len(c.request) {
		err = errors.New("short write")
	}
	if err != nil {
		c.fail(p, "send", err)
	}
}

// ready handles an event of the connection.
func (c *client) ready(p *conn, events uint32) {
	if p.unsent && events&unix.EPOLLOUT != 0 {
		e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.fd), Pad: int32(c.index(p))}
		unix.EpollCtl(c.epoll, unix.EPOLL_CTL_MOD, p.fd, &e)
		if c.send(p); p.fd < 0 || p.unsent {
			return
		}
	}
	n, err := unix.Read(p.fd, p.buf[p.n:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
	case p.since == 0 && (err != nil || n == 0): // idle
		c.Closed++
		c.hangUp(p)
	case p.since == 0:
		c.busy++
		c.fail(p, "an answer to nothing", nil)
	case err != nil:
		c.fail(p, "read", err)
	case n == 0 && p.n == 0:
		c.fail(p, "closed without an answer", nil)
	case n == 0:
		c.fail(p, "closed within the answer", nil)
	default:
		p.n += n
		c.received(p)
	}
}

// received looks whether the answer is complete, and right.
func (c *client) received(p *conn) {
	a, err := parse(p.buf[:p.n])
	switch {
	case err == errMore && p.n < len(p.buf):
		return
	case err == errMore:
		c.fail(p, "too long an answer", nil)
		return
	case err != nil:
		c.fail(p, err.Error(), nil)
		return
	case string(a.body) != c.Want:
		c.fail(p, "the wrong body", nil)
		return
	}
	now := c.now()
	c.Samples = append(c.Samples, sample{now, now - p.since})
	from := c.Pids[a.pid]
	if from == nil {
		from = &answers{First: now}
		c.Pids[a.pid] = from
	}
	from.Last = now
	from.Requests++
	if p.fresh {
		from.Conns++
	}
	p.fresh = false
	p.since = 0
	c.busy--
	if c.Close {
		c.hangUp(p)
	} else if a.closes {
		c.Closed++
		c.hangUp(p)
	}
	c.free(p)
	if c.opened < len(c.conns) && now < int64(c.Duration) {
		c.open()
	}
}

// fail counts a failure.
func (c *client) fail(p *conn, what string, err error) {
	if err != nil {
		what += ": " + err.Error()
	}
	c.Failed[what]++
	now := c.now()
	c.Failures = append(c.Failures, now)
	if !p.fresh {
		c.Closed++
	}
	c.hangUp(p)
	p.since, p.asked = 0, now
	c.busy--
	c.pauses = append(c.pauses, p)
}

func (c *client) hangUp(p *conn) {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
	p.fd, p.unsent = -1, false
}

// expire fails requests that have waited for too long.
func (c *client) expire(now int64) {
	for i := range c.conns {
		if p := &c.conns[i]; p.since > 0 && now-p.asked > int64(c.Patience) {
			c.fail(p, "no answer in time", nil)
		}
	}
}

// An answer is an HTTP response.
type answer struct {
	body   []byte
	pid    int  // X-Pid
	closes bool // Connection: close
}

var errMore = errors.New("not complete")

// parse parses an answer. It knows bodies with a Content-Length only.
func parse(b []byte) (a answer, err error) {
	head, body, found := bytes.Cut(b, []byte("\r\n\r\n"))
	if !found {
		return a, errMore
	}
	line, head, _ := bytes.Cut(head, []byte("\r\n"))
	if len(line) < 12 || string(line[:7]) != "HTTP/1." {
		return a, errors.New("no HTTP")
	}
	if status := string(line[9:12]); status != "200" {
		return a, errors.New("status " + status)
	}
	length := -1
	for len(head) > 0 {
		line, head, _ = bytes.Cut(head, []byte("\r\n"))
		switch colon := bytes.IndexByte(line, ':'); colon {
		case len("Content-Length"):
			if v, ok := header(line, "content-length"); ok {
				if length, err = strconv.Atoi(v); err != nil || length < 0 {
					return a, errors.New("a bad Content-Length")
				}
			}
		case len("Connection"):
			if v, ok := header(line, "connection"); ok {
				a.closes = v == "close"
			}
		case len("X-Pid"):
			if v, ok := header(line, "x-pid"); ok {
				a.pid, _ = strconv.Atoi(v)
			}
		}
	}
	switch {
	case length < 0:
		return a, errors.New("no Content-Length")
	case len(body) < length:
		return a, errMore
	case len(body) > length:
		return a, errors.New("more than one answer")
	}
	a.body = body
	return a, nil
}

// header returns the value of a line if that is its name, in lower case.
func header(line []byte, name string) (string, bool) {
	for i := range len(name) {
		if c := line[i]; c != name[i] && c|0x20 != name[i] {
			return "", false
		}
	}
	return string(bytes.TrimSpace(line[len(name)+1:])), true
}
