// Package repl is a plugin for administering a running cluster by hand. It
// serves sessions in the master, at a unix socket or a TCP port:
//
//	m.Use(repl.New("/run/app/repl.sock"))
//
// telnet(1) and nc(1) are clients:
//
//	$ nc -U /run/app/repl.sock
//	cluster> pids()
//
//	  pids
//	  master: 1799
//	  worker #0: 1801
//	  worker #1: 1802
//
//	cluster> spawn(2)
//	spawning 2 workers
//	cluster> kill(1, SIGQUIT)
//	sent SIGQUIT to worker #1
//
// The command help lists the commands; [Define] adds one. Parentheses, commas
// and quotes may be left out: "kill 1 QUIT". A line is run when it is
// complete, each after the one before it. quit or the end of input ends the
// session.
//
// In a restart the new master takes the address over. Sessions stay with the
// old one, which tells them so, until it has ended.
//
// # Security
//
// Whoever can connect controls the cluster. Only the master's user and root
// can connect to a unix socket. A TCP port of the loopback interface is open
// to all users of the machine, and to programs that can be made to connect to
// it: a unix socket is better. A session ends at the first line that is part
// of an HTTP request or no text, so that a browser can't be tricked into
// sending commands.
//
// What commands write is made harmless for a terminal: control characters
// are quoted.
package repl

import (
	"context"
	"net"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/control"
)

// New returns a plugin that serves sessions at addr in the master: the path
// of a unix socket, perhaps after "unix:", or a TCP address of the loopback
// interface, as "host:port", ":port" or "port". Without a host that is
// 127.0.0.1. Another address makes the start fail.
//
// The socket belongs to the master's user alone (mode 0600). A missing
// directory is made. Up to 256 sessions are served at a time.
func New(addr string) cluster.Plugin { return plugin(addr, false) }

// Expose is New for any TCP address, not only those of the loopback
// interface; without a host, it is all interfaces. Everybody who can connect
// controls the cluster: something else must see to who can.
func Expose(addr string) cluster.Plugin { return plugin(addr, true) }

func plugin(addr string, any bool) cluster.Plugin {
	return func(m *cluster.Master) error {
		s := &control.Server{
			Name:   "repl",
			Addr:   addr,
			Any:    any,
			Handle: func(ctx context.Context, c net.Conn) { Serve(ctx, m, c) },
		}
		return s.Attach(m)
	}
}
