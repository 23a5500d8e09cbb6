// Tcp echoes lines on port 3001, or at the address given as its argument:
// "host:port", or "unix:" and a path.
//
//	$ go run ./examples/tcp &
//	$ nc localhost 3001
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/gocluster/cluster"
)

func main() {
	addr := ":3001"
	if len(os.Args) > 1 {
		addr = os.Args[1]
	}
	if err := cluster.ListenAndServe(addr, &cluster.TCPServer{Handler: echo}); err != nil {
		log.Fatal(err)
	}
}

// echo answers every line of a connection with the line and the id of the
// process, until the client has no more or the worker drains.
func echo(ctx context.Context, c net.Conn) {
	// A client may be silent for ever: closing makes the read fail.
	defer context.AfterFunc(ctx, func() { c.Close() })()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if _, err := fmt.Fprintf(c, "%d: %s\n", os.Getpid(), lines.Text()); err != nil {
			return
		}
	}
}
