// Package repl is a plugin for looking at a running cluster and for running
// commands in its master, with telnet(1) or nc(1):
//
//	m.Use(repl.New("/run/app/repl.sock"))
//
//	$ nc -U /run/app/repl.sock
//	cluster> pids()
//
//	  pids
//	  master: 1799
//	  worker #0: 1801
//	  worker #1: 1802
package repl

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/control"
)

// New returns a plugin that serves addr in the master.
func New(addr string) cluster.Plugin { return plugin(addr, false) }

// Expose is New for any TCP address, not only those of the loopback
// interface: everybody who can connect controls the cluster.
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

// A Func is a command. It is called in the master with the arguments that
// were given, and writes its answer to w.
type Func func(m *cluster.Master, w io.Writer, args ...string) error

// Define defines a command, in place of one that has its name.
func Define(name string, f Func, description string) {}

// Serve serves one session on c, and closes it.
func Serve(ctx context.Context, m *cluster.Master, c net.Conn) { c.Close() }

// Title writes the title of a section as the commands of this package do: an
// empty line, and s.
func Title(w io.Writer, s string) { fmt.Fprintf(w, "\n  %s\n", s) }

// Row writes one line of a section.
func Row(w io.Writer, key string, value any) { fmt.Fprintf(w, "  %s: %v\n", key, value) }
