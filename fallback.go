//go:build !unix || cluster_nofork

package cluster

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Where a process can't fork, every Master serves in the calling process, as
// with Inline.
const canFork = false

var errNoFork = errors.New("cluster: this system has no worker processes")

// A child is what this process knows of its master: it has none.
type child struct {
	worker bool
	old    int
}

var self child

func (c *child) await() error                          { return nil }
func (c *child) failed(error)                          {}
func (c *child) message(string, json.RawMessage) error { return errNoFork }

func (m *Master) checkFork() []error               { return nil }
func (m *Master) fork(*supervisor) (func(), error) { return nil, errNoFork }
func (m *Master) work([]pair) error                { return errNoFork }
func (m *Master) workAbstract() error              { return errNoFork }

func (m *Master) leave(_ *supervisor, err error) error { return err }

type generation struct{}

// Restart is not to be had here: it returns ErrNotRunning.
func (m *Master) Restart(sig ...os.Signal) error { return ErrNotRunning }

// Successor returns 0: no master is replaced.
func (m *Master) Successor() int { return 0 }

func (m *Master) restarting() bool { return false }

// watchSignals does what Signals says, and shuts down hard on os.Interrupt
// and SIGTERM.
func (m *Master) watchSignals(<-chan struct{}) (stop func()) {
	table := map[os.Signal]Action{os.Interrupt: ActionDestroy, syscall.SIGTERM: ActionDestroy}
	var list []os.Signal
	for sig, action := range m.Signals {
		table[sig] = action
	}
	for sig := range table {
		list = append(list, sig)
	}
	c := make(chan os.Signal, 16)
	signal.Notify(c, list...)
	go func() {
		for sig := range c {
			switch table[sig] {
			case ActionDestroy:
				go m.Destroy()
			case ActionClose:
				go m.Close()
			case ActionReopen:
				m.hooks.fire(fireReopen)
			case ActionRestart, ActionRestartWorkers, ActionSpawn, ActionRemove:
				m.logf("%v: %v does nothing", errNoFork, sig)
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
	}
}

// Sockets are never parked, and their queues can't be looked into.
func park(any) (int, error)         { return -1, errNoFork }
func unpark(int, bool) (any, error) { return nil, errNoFork }
func closeFD(int)                   {}
func stopArrivals(string, int)      {}

func acceptQueued(net.Listener) (net.Conn, error) { return nil, errNoFork }

// fileConn returns the net.Listener or net.PacketConn for the socket that f is.
func fileConn(f *os.File, packet bool) (any, error) {
	if packet {
		return net.FilePacketConn(f)
	}
	return net.FileListener(f)
}

// connRefused is that of Windows, which has other numbers than package
// syscall's.
const connRefused = syscall.Errno(10061)

// unlinkStale removes a unix socket that nobody serves.
func unlinkStale(network, path string) bool {
	c, err := net.Dial(network, path)
	if err == nil {
		c.Close()
		return false
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, connRefused) {
		return false
	}
	fi, serr := os.Lstat(path)
	return serr == nil && fi.Mode()&os.ModeSocket != 0 && os.Remove(path) == nil
}

// A queue would be there for handing over connections.
type queue struct{}

func (*queue) close()                               {}
func (*queue) stop(time.Duration)                   {}
func (*queue) send(net.Conn, []byte) error          { return errNoFork }
func (l *listener) startReceiving(deadlineListener) {}

// An inode is the file of a unix socket.
type inode struct{ path string }

func inodeOf(addr net.Addr) inode {
	if a, ok := addr.(*net.UnixAddr); ok && !strings.HasPrefix(a.Name, "@") {
		return inode{a.Name}
	}
	return inode{}
}

func (i inode) remove() {
	if i.path != "" {
		os.Remove(i.path)
	}
}
