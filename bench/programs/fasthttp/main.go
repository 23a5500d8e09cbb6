// Fasthttp runs a fasthttp.Server, on port 3000 or at the address given as its
// argument.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/valyala/fasthttp"

	"github.com/gocluster/cluster"
)

// A server is a cluster.Server: it has the Serve of fasthttp.Server.
type server struct{ *fasthttp.Server }

func (s server) Shutdown(ctx context.Context) error { return s.ShutdownWithContext(ctx) }

// Close does nothing: the worker exits, and its connections with it.
func (s server) Close() error { return nil }

func main() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer, Workers: 2}
	if len(os.Args) > 1 {
		m.Addr = os.Args[1]
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

func newServer() (cluster.Server, error) {
	return server{&fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			fmt.Fprintf(ctx, "%d", os.Getpid())
		},
		CloseOnShutdown: true, // tell clients which response is the last
	}}, nil
}
