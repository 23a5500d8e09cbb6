// Keepalive serves HTTP on port 3003, or at the address given as its argument,
// and keeps its clients' connections open while it restarts.
//
//	$ go run ./examples/keepalive &
//	$ curl localhost:3003 --next localhost:3003 -v   # one connection
//
// A SIGUSR2 to the process whose title is "cluster" restarts it all. What
// handoff.Server can't hand over, a TLS connection say, is told to be closed
// with its next response.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
)

func main() {
	addr := ":3003"
	if len(os.Args) > 1 {
		addr = os.Args[1]
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "Hello %s from process %d\n", r.RemoteAddr, os.Getpid())
		}),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       5 * time.Minute,
	}
	if err := cluster.ListenAndServe(addr, handoff.Server(server)); err != nil {
		log.Fatal(err)
	}
}
