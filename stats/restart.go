package stats

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/gocluster/cluster"
)

// The values that a restart carries are put together before the new master
// is started, and the old workers go on counting until they have drained. So
// the old master tells the new one its totals as they change, one after the
// other as JSON, until its last worker is dead. The new one has the first
// before it takes over: whoever reads from one and then the other sees no
// total fall.

// patience is how long masters wait for each other.
const patience = time.Second

// socketPath returns the path of a directory for the master's user alone, in
// which there is a socket during a restart. It is the one that the successor
// of the master expects: beside the master socket.
func socketPath(m *cluster.Master) string {
	path, err := filepath.Abs(pathOf(m, os.Getpid()))
	if err != nil {
		return pathOf(m, os.Getpid())
	}
	return path
}

func pathOf(m *cluster.Master, pid int) string {
	return filepath.Join(m.SocketPath, fmt.Sprintf("cluster.%d.stats", pid))
}

const socketName = "socket"

func removeSocket(path string) {
	os.Remove(filepath.Join(path, socketName))
	os.Remove(path)
}

// restarting is called in the old master.
func (c *collector) restarting(v cluster.Values) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v.Set(key, c.total())
	c.restarts++
	c.forget() // those that have failed
	if c.l == nil {
		c.listen()
	}
}

// listen listens for the new master. Without the socket it has to make do
// with the values.
func (c *collector) listen() {
	removeSocket(c.path) // of a process that had this one's id
	if os.Mkdir(c.path, 0o700) != nil {
		return
	}
	l, err := net.Listen("unix", filepath.Join(c.path, socketName))
	if err != nil {
		removeSocket(c.path)
		return
	}
	c.l = l
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.change(func() {
				if c.l == l {
					c.followers = append(c.followers, conn)
				} else {
					conn.Close()
				}
			})
		}
	}()
}

// tell sends the totals to the followers. c.mu is held.
func (c *collector) tell() {
	if len(c.followers) == 0 {
		return
	}
	line, err := json.Marshal(c.total())
	if err != nil {
		return
	}
	kept := c.followers[:0]
	for _, conn := range c.followers {
		conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := conn.Write(line); err != nil {
			conn.Close() // it has failed, or hangs
			continue
		}
		kept = append(kept, conn)
	}
	c.followers = kept
}

// forget is called with c.mu held.
func (c *collector) forget() {
	for _, conn := range c.followers {
		conn.Close()
	}
	c.followers = nil
}

// restartFailed is called in the old master, perhaps when the next restart
// has already begun.
func (c *collector) restartFailed(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.restarts = max(c.restarts-1, 0); c.restarts == 0 {
		c.stop()
	}
}

// close is called in the old master when its workers are dead: the followers
// have been told all.
func (c *collector) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop()
}

// stop is called with c.mu held.
func (c *collector) stop() {
	c.forget()
	if c.l != nil {
		c.l.Close()
		c.l = nil
		removeSocket(c.path)
	}
}

// follow is called in the new master before it takes over.
func (c *collector) follow() {
	old := c.m.Predecessor()
	if old == 0 {
		return
	}
	conn, err := net.DialTimeout("unix", filepath.Join(pathOf(c.m, old), socketName), patience)
	if err != nil {
		return
	}
	dec := json.NewDecoder(conn)
	next := func() bool {
		var t totals
		if dec.Decode(&t) != nil {
			conn.Close()
			return false
		}
		c.change(func() { c.base, c.told = t, true })
		return true
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	if !next() {
		return
	}
	conn.SetReadDeadline(time.Time{})
	go func() {
		for next() {
		}
	}()
}

// restarted is called in the new master when the old one is gone.
func (c *collector) restarted(v cluster.Values) {
	removeSocket(pathOf(c.m, c.m.Predecessor())) // if it was killed
	var t totals
	if v.Get(key, &t) != nil {
		return
	}
	c.change(func() {
		if !c.told {
			c.base = t
		}
	})
}
