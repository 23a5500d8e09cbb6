//go:build unix

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names of the environment variables that a worker is told by.
// envDescriptors makes it one, and is gone from its environment before main
// begins; the other two are for the program's own use.
const (
	envDescriptors = "CLUSTER_FDS"        // the connection to the master, the crash pipe, "1" if GOMAXPROCS was added
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
}

type socketSetting struct {
	Network string
	Address string
}

// A child is the worker's side of a worker: what this process knows of its
// master.
type child struct {
	worker bool
	id     int
	link   *link

	once     sync.Once
	awaitErr error
	settings settings
	signals  chan os.Signal // registered before main begins
	frames   chan frame     // what came after the settings
	gone     chan struct{}  // closed when the master is
}

// self is what this process is.
var self child

func init() {
	// The title is written over the memory that the arguments are in.
	args := os.Args
	os.Args = make([]string, len(args))
	for i, arg := range args {
		os.Args[i] = strings.Clone(arg)
	}
	titleMemory(args)
	self.inherit()
}

// inherit finds out whether this process is a worker: whether it was given a
// connection. Everything that tells so is withdrawn, so that no child of it
// takes itself for one.
func (c *child) inherit() {
	value, ok := os.LookupEnv(envDescriptors)
	os.Unsetenv(envDescriptors)
	fields := strings.Split(value, ",")
	var fds [2]int
	if ok = ok && len(fields) == 3; ok {
		for i := range fds {
			fd, err := strconv.Atoi(fields[i])
			ok = ok && err == nil && fd > 2
			fds[i] = fd
		}
	}
	id, err := strconv.Atoi(os.Getenv(envWorker))
	if !ok || err != nil || !isUnixStream(fds[0]) {
		// Somebody has set these by hand, or a worker has started us.
		os.Unsetenv(envWorker)
		os.Unsetenv(envMasterPid)
		return
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	if fields[2] == "1" {
		os.Unsetenv("GOMAXPROCS")
	}
	f := os.NewFile(uintptr(fds[0]), "master")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		os.Exit(1) // no worker of any use, and not anything else either
	}
	unix.SetNonblock(fds[1], false)
	crash := os.NewFile(uintptr(fds[1]), "crash")
	debug.SetCrashOutput(crash, debug.CrashOptions{})
	crash.Close()

	c.worker, c.id = true, id
	c.link = newLink(conn.(*net.UnixConn))
	c.frames = make(chan frame, 16)
	c.gone = make(chan struct{})

	// From here on no signal can take this process for a plain one.
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU)
	c.signals = make(chan os.Signal, 16)
	signal.Notify(c.signals, syscall.SIGQUIT, syscall.SIGUSR1)
}

// isUnixStream reports whether fd is a connected unix stream socket.
func isUnixStream(fd int) bool {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || typ != unix.SOCK_STREAM {
		return false
	}
	sa, err := unix.Getpeername(fd)
	_, ok := sa.(*unix.SockaddrUnix)
	return err == nil && ok
}

// await waits, in a worker, for what the master sends first: the settings
// and the sockets. If the master is gone by then, so is the worker.
func (c *child) await() error {
	if !c.worker {
		return nil
	}
	c.once.Do(func() {
		got := make(chan struct{})
		go c.read(got)
		<-got
	})
	return c.awaitErr
}

// read handles what comes from the master. It closes got when the sockets
// are there; the rest is left to whoever obeys.
func (c *child) read(got chan struct{}) {
	var files []int
	known := false
	err := c.link.read(maxRights, func(f frame) {
		switch f.kind {
		case frameSettings:
			known = parse(f.payload, &c.settings) == nil
		case frameSockets:
			files = append(files, f.fds...)
		default:
			closeAll(f.fds)
			c.frames <- f
			return
		}
		if known && len(files) >= len(c.settings.Sockets) {
			c.awaitErr = shared.inherit(c.settings.Sockets, files)
			close(got)
		}
	})
	select {
	case <-got:
	default:
		os.Exit(1)
	}
	// A connection that is out of order is of no more use than a closed one.
	close(c.gone)
	time.Sleep(c.settings.Timeout)
	log.Printf("cluster: worker %d: the master is gone (%v), and %v were not enough to finish", c.id, err, c.settings.Timeout)
	os.Exit(1)
}

// inherit fills the set with the sockets that came from another process.
func (set *socketSet) inherit(list []socketSetting, fds []int) error {
	if len(list) != len(fds) {
		closeAll(fds)
		return fmt.Errorf("cluster: the master announced %d sockets and passed %d", len(list), len(fds))
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	for i, fd := range fds {
		addr, err := addrOf(fd, isPacket(list[i].Network))
		if err != nil {
			closeAll(fds[i:])
			return fmt.Errorf("cluster: inherited socket: %w", err)
		}
		set.list = append(set.list, &socket{network: list[i].Network, address: list[i].Address, addr: addr, fd: fd})
	}
	return nil
}

// failed tells the master why this worker gives up.
func (c *child) failed(err error) {
	if c.worker {
		c.link.sendValue(frameFailed, &failure{err.Error()})
		c.link.close()
	}
}

func (c *child) message(name string, data json.RawMessage) error {
	return c.link.sendValue(frameMessage, &message{name, data})
}

// work is ListenAndServe in a worker.
func (m *Master) work(pairs []pair) error {
	sv := m.newService(pairs)
	sv.ready = m.nowReady
	sv.waiting = func(conns int) {
		self.link.sendValue(frameBeat, &counts{int64(conns), shared.conns.total.Load(), true})
	}
	m.settle()
	go m.obey(sv)
	err := sv.run()
	if err != nil {
		self.failed(fmt.Errorf("cluster: server: %w", err))
		return err
	}
	self.link.close()
	m.hooks.flush(m.timeout())
	return nil
}

// workAbstract is Start in a worker.
func (m *Master) workAbstract() error {
	sv := m.newService(nil)
	m.settle()
	sv.ready = m.nowReady
	go m.obey(sv)
	go sv.run()
	return nil
}

// settle takes over the settings of the master.
func (m *Master) settle() {
	m.Timeout = self.settings.Timeout
	m.Heartbeat = self.settings.Heartbeat
	setTitle(self.settings.Title)
}

// nowReady tells the master, and gives signs of life from now on.
func (m *Master) nowReady() {
	self.link.sendValue(frameReady, nil)
	if m.heartbeat() > 0 {
		go m.beat()
	}
}

// beat gives a sign of life three times per Heartbeat.
func (m *Master) beat() {
	t := time.NewTicker(m.heartbeat() / 3)
	defer t.Stop()
	for range t.C {
		if m.Alive != nil {
			ctx, cancel := context.WithTimeout(context.Background(), m.heartbeat())
			err := m.Alive(ctx)
			late := ctx.Err()
			cancel()
			if err := errors.Join(err, late); err != nil {
				m.logf("cluster: worker %d: Alive: %v", self.id, err)
				continue
			}
		}
		err := self.link.sendValue(frameBeat, &counts{Open: shared.conns.open.Load(), Total: shared.conns.total.Load()})
		if err != nil {
			return
		}
	}
}

// obey does what the master and signals say.
func (m *Master) obey(sv *service) {
	for sig := range m.Signals {
		signal.Notify(self.signals, sig)
	}
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
				m.fireReopen()
			}
		case <-gone:
			gone = nil
			drain(drainOrder{Last: true, orphan: true})
		}
	}
}

func (m *Master) fireReopen() {
	m.hooks.fire(func(h *Hooks) {
		if h.Reopen != nil {
			h.Reopen()
		}
	})
}
