//go:build unix && !cluster_nofork

package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names of the environment variables that a worker is told by.
// envDescriptors makes it one, and is gone from its environment before main
// begins; the other two are for the program's own use.
const (
	envDescriptors = "CLUSTER_FDS"        // the connection to the master, the crash pipe, and what inherit says
	envWorker      = "CLUSTER_WORKER"     // the worker's id
	envMasterPid   = "CLUSTER_MASTER_PID" // the master's process id
)

// settings is the payload of frameSettings: what the master decides for its
// workers.
type settings struct {
	Title     string
	Timeout   time.Duration
	Heartbeat time.Duration
	Sockets   []socketSetting
	Hold      bool   // accept only after frameServe
	Values    Values // for a new master
	Kept      []int  // numbers of the sockets that outlive the cluster
}

type socketSetting struct {
	Network string
	Address string
	Queue   bool   // two more descriptors come with it: its handoff queue
	Ports   int64  // and so many for the other slots
	File    string // for a new master: of a unix socket, where it was made
}

// files returns the number of descriptors that come with the settings.
//
//go:noinline
func (s *settings) files() (n int) {
	for _, sock := range s.Sockets {
		if n++; sock.Queue {
			n += 2
		}
		n += int(sock.Ports)
	}
	return n
}

// A child is the child's side of a worker, or of a new master: what this
// process knows of the master that has forked it.
type child struct {
	worker  bool
	heir    bool // a new master
	id      int  // of a worker
	old     int  // of a new master: the old one's process id
	link    *link
	standIn *link // of a new master: to the process that was started first, or nil

	got      chan struct{} // closed when these have come:
	settings settings
	awaitErr error          // what was wrong with them
	signals  chan os.Signal // of a worker, registered before main begins
	frames   chan frame     // what came after the settings
	served   chan struct{}  // closed by frameServe: a worker may accept, a new master is the master
	begun    atomic.Bool    // a worker serves, or ends because it was told to before
	ending   atomic.Bool    // main has been told that it failed, and ends the process
	gone     chan struct{}  // closed when the master is gone
}

// lastChance is the time that a new master has to end by itself when its
// predecessor is gone too early.
const lastChance = 10 * time.Second

// self is what this process is.
var self child

// What this process was started with, before main could change it.
var (
	firstArgs   []string
	firstDir, _ = os.Getwd()
)

func init() {
	// The title is written over the memory that the arguments are in.
	args := os.Args
	os.Args = make([]string, len(args))
	for i, arg := range args {
		os.Args[i] = strings.Clone(arg)
	}
	firstArgs = slices.Clone(os.Args)
	titleMemory(args)
	self.inherit()
}

// inherit finds out whether this process is a worker or a new master: whether
// it was given a connection. Everything that tells so is withdrawn, so that
// no child of it takes itself for one.
//
// envDescriptors is "LINK,CRASH,1" in a worker, with nothing for the 1 if
// GOMAXPROCS in its environment is not the master's doing, and
// "LINK,CRASH,heir,STANDIN" in a new master, with nothing for STANDIN if there
// is none.
func (c *child) inherit() {
	fields := strings.Split(os.Getenv(envDescriptors), ",")
	os.Unsetenv(envDescriptors)
	fds := [3]int{-1, -1, -1}
	for i, at := range []int{0, 1, 3} {
		if at < len(fields) {
			if fd, err := strconv.Atoi(fields[at]); err == nil && fd > 2 {
				fds[i] = fd
			}
		}
	}
	id, err := strconv.Atoi(os.Getenv(envWorker))
	worker := len(fields) == 3 && err == nil
	heir := len(fields) == 4 && fields[2] == "heir"
	var conn *net.UnixConn
	if (worker || heir) && fds[1] >= 0 && madeBy(fds[0], os.Getenv(envMasterPid)) {
		conn = adopt(fds[0])
	}
	if heir || conn == nil {
		// If it isn't a new master, somebody has set these by hand, or a
		// worker has started us.
		os.Unsetenv(envWorker)
		os.Unsetenv(envMasterPid)
	}
	if conn == nil {
		return
	}
	c.worker, c.heir = worker, heir
	unix.CloseOnExec(fds[1])
	c.link = newLink(conn)
	c.got = make(chan struct{})
	c.frames = make(chan frame, 16)
	c.served = make(chan struct{})
	c.gone = make(chan struct{})
	unix.SetNonblock(fds[1], false)
	crash := os.NewFile(uintptr(fds[1]), "crash")
	debug.SetCrashOutput(crash, debug.CrashOptions{})
	crash.Close()

	if c.heir {
		c.old = os.Getppid()
		if conn := adopt(fds[2]); conn != nil {
			c.standIn = newLink(conn)
		}
		go c.read() // from the start: wherever main hangs, the end of the master is seen
		return
	}
	c.id = id
	if fields[2] == "1" {
		os.Unsetenv("GOMAXPROCS")
	}
	// From here on no signal can take this process for a plain one.
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU)
	c.signals = make(chan os.Signal, 16)
	signal.Notify(c.signals, syscall.SIGQUIT, syscall.SIGUSR1)
	go c.read()
}

// adopt makes an inherited descriptor a connection. If it is anything but one
// end of a unix stream connection, adopt leaves it as it is and returns nil.
func adopt(fd int) *net.UnixConn {
	peer, _ := syscall.Getpeername(fd)
	if _, ok := peer.(*syscall.SockaddrUnix); !ok {
		return nil
	}
	if typ, _ := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE); typ != syscall.SOCK_STREAM {
		return nil
	}
	c, _ := connOf(fd)
	conn, _ := c.(*net.UnixConn)
	return conn
}

// await waits, in a child, for what the master sends first: the settings and
// the sockets. If the master is gone by then, so is the child.
func (c *child) await() error {
	if c.link == nil {
		return nil
	}
	<-c.got
	return c.awaitErr
}

// read handles what comes from the master. It closes got when the sockets
// are there; the rest is left to whoever obeys.
func (c *child) read() {
	var files []int
	known, complete := false, false
	err := c.link.read(maxRights, func(f frame) {
		if f.kind == frameReopen && len(f.fds) == 2 {
			unix.Dup2(f.fds[0], 1)
			unix.Dup2(f.fds[1], 2)
		}
		sockets, cover := f.kind == frameSockets && !complete, f.kind == frameCover && complete
		if !sockets && !cover {
			closeAll(f.fds) // nobody asked for them
		}
		switch {
		case sockets:
			files = append(files, f.fds...)
		case cover:
			shared.cover(f)
		case f.kind == frameSettings && !known:
			known = parse(f.payload, &c.settings) == nil
		case f.kind == frameServe && complete:
			if !isClosedChan(c.served) {
				close(c.served)
			}
		case f.kind == frameDrain && c.idle():
			os.Exit(0)
		default:
			c.frames <- f
		}
		if known && !complete && len(files) >= c.settings.files() {
			complete = true
			if c.settings.Hold {
				shared.gate = c.served
			}
			c.awaitErr = shared.inherit(&c.settings, files)
			close(c.got)
		}
	})
	// A connection that is out of order is of no more use than a closed one.
	if (c.worker && c.idle() || !complete) && !c.ending.Load() {
		os.Exit(1)
	}
	close(c.gone)
	if c.heir {
		select {
		case <-c.served:
		case <-time.After(lastChance):
			os.Exit(1) // it is stuck in somebody's code
		}
	}
	if c.worker {
		time.Sleep(c.settings.Timeout)
		log.Printf("cluster: worker %d: the master is gone (%v), and %v were not enough to finish", c.id, err, c.settings.Timeout)
		os.Exit(1)
	}
}

// idle reports whether this worker serves nobody, and sees to it that it never
// will.
func (c *child) idle() bool {
	return c.settings.Hold && !isClosedChan(c.served) || !c.begun.Swap(true)
}

// inherit fills the set with the sockets that came from another process.
func (set *socketSet) inherit(from *settings, fds []int) error {
	if from.files() != len(fds) {
		closeAll(fds)
		return errorf("cluster: the master announced %d descriptors and passed %d", from.files(), len(fds))
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	for i, sock := range from.Sockets {
		addr, err := addrOf(fds[0], isPacket(sock.Network))
		if err != nil {
			closeAll(fds)
			return errorf("cluster: inherited socket: %w", err)
		}
		s := &socket{
			network: sock.Network, address: sock.Address, addr: addr, fd: fds[0],
			number: i, inherited: true, kept: slices.Contains(from.Kept, i), inode: inodeAt(sock.File),
		}
		if fds = fds[1:]; sock.Queue {
			s.queue = &queue{fds: [2]int(fds)}
			fds = fds[2:]
		}
		s.ports, fds = fds[:sock.Ports:sock.Ports], fds[sock.Ports:]
		set.list = append(set.list, s)
	}
	return nil
}

// cover does what a coverOrder says.
func (set *socketSet) cover(f frame) {
	var o coverOrder
	list := set.sockets()
	if parse(f.payload, &o) != nil || len(f.fds) > 1 || o.Socket < 0 || o.Socket >= int64(len(list)) {
		closeAll(f.fds)
		return
	}
	l := list[o.Socket].listener()
	if len(f.fds) == 0 {
		l.uncover(int(o.Slot))
	} else {
		l.cover(int(o.Slot), f.fds[0])
	}
}

// failed tells the master why this child gives up.
func (c *child) failed(err error) {
	if c.link != nil {
		c.ending.Store(true)
		c.link.sendValue(frameFailed, &text{err.Error()})
		c.link.close()
	}
}

func (c *child) message(name string, data json.RawMessage) error {
	return c.link.sendValue(frameMessage, &message{name, data})
}

// work is ListenAndServe in a worker.
func (m *Master) work(pairs []pair) error {
	sv := m.newService(pairs)
	sv.ready = func() { m.nowReady(sv) }
	sv.waiting = func(conns int) {
		self.link.sendValue(frameBeat, &counts{int64(conns), true})
	}
	m.settle()
	go m.obey(sv)
	err := sv.run()
	m.hooks.flush(m.timeout()) // for what they send to go before the end
	if err != nil {
		self.failed(errorf("cluster: server: %w", err))
		return err
	}
	self.link.close()
	return nil
}

// workAbstract is Start in a worker.
func (m *Master) workAbstract() error {
	sv := m.newService(nil)
	m.settle()
	sv.ready = func() { m.nowReady(sv) }
	go m.obey(sv)
	go sv.run()
	return nil
}

// settle takes over the settings of the master, and the signals of the user,
// before the master can hear that this worker is ready.
func (m *Master) settle() {
	if self.begun.Swap(true) {
		select {} // too late
	}
	for sig := range m.Signals {
		signal.Notify(self.signals, sig)
	}
	m.Timeout = self.settings.Timeout
	m.Heartbeat = self.settings.Heartbeat
	setTitle(self.settings.Title)
}

// nowReady tells the master, and gives signs of life from now on.
func (m *Master) nowReady(sv *service) {
	self.link.sendValue(frameReady, nil)
	if m.heartbeat() > 0 {
		go m.beat(sv)
	}
}

// beat gives a sign of life three times per Heartbeat. All workers do it at
// the same times, those of the clock on the wall, so that the master is woken
// once for many of them, not by each.
func (m *Master) beat(sv *service) {
	every := m.heartbeat() / 3
	time.Sleep(every - time.Since(time.Unix(1, 0))%every)
	t := time.NewTicker(every)
	defer t.Stop()
	for ; ; <-t.C {
		shared.look()
		if m.Alive != nil {
			ctx, cancel := context.WithTimeout(context.Background(), m.heartbeat())
			err := cmp.Or(m.Alive(ctx), ctx.Err())
			cancel()
			if err != nil {
				m.logf("cluster: worker %d: Alive: %v", self.id, err)
				continue
			}
		}
		// If many messages wait to be sent, there may be no room for this one.
		self.link.sendValue(frameBeat, &counts{Open: sv.conns.open.Load()})
	}
}

// obey does what the master and signals say.
func (m *Master) obey(sv *service) {
	gone := self.gone
	drain := func(o drainOrder) {
		self.link.sendValue(frameDraining, nil)
		sv.order(o)
	}
	for {
		select {
		case f := <-self.frames:
			switch f.kind {
			case frameDrain:
				var o drainOrder
				parse(f.payload, &o)
				drain(o)
			case frameReopen:
				m.hooks.fire(fireReopen)
			case frameMessage:
				var msg message
				if parse(f.payload, &msg) == nil {
					m.hooks.fire(func(h *Hooks) {
						if h.Message != nil {
							h.Message(nil, msg.Name, msg.Data)
						}
					})
				}
			}
		case sig := <-self.signals:
			switch m.workerAction(sig) {
			case ActionClose:
				drain(drainOrder{})
			case ActionDestroy:
				os.Exit(128 + int(sig.(syscall.Signal)))
			case ActionReopen:
				m.hooks.fire(fireReopen)
			}
		case <-gone:
			gone = nil
			drain(drainOrder{Last: true, orphan: true})
		}
	}
}
