// Lines is a server for a line protocol whose clients stay connected while
// the cluster restarts. It listens on port 3002, or at the address given as
// its argument: "host:port", or "unix:" and a path.
//
//	$ go run ./examples/lines &
//	$ nc localhost 3002
//
// Every line is answered with the line and the id of the process. A SIGUSR2
// to the process whose title is "cluster" restarts it all: the connection goes
// on, answered by another process.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/gocluster/cluster"
)

func main() {
	addr := ":3002"
	if len(os.Args) > 1 {
		addr = os.Args[1]
	}
	if err := cluster.ListenAndServe(addr, &cluster.TCPServer{Handler: serve}); err != nil {
		log.Fatal(err)
	}
}

// serve answers lines until the client has no more. When the worker drains,
// it hands the connection over, with what it has read of the next lines.
func serve(ctx context.Context, c net.Conn) {
	if !cluster.HandedOver(c) {
		fmt.Fprintf(c, "hello\n")
	}
	// A client may be silent for ever: a deadline makes the read fail.
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var unread []byte
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadBytes('\n')
		unread = append(unread, line...)
		if err == nil {
			if _, err := fmt.Fprintf(c, "%d: %s", os.Getpid(), unread); err != nil {
				return
			}
			unread = nil
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if ctx.Err() != nil {
			break
		}
	}
	buffered, _ := r.Peek(r.Buffered())
	if err := cluster.Handoff(c, append(unread, buffered...)); err != nil {
		fmt.Fprintf(c, "bye: %v\n", err)
	}
}
