// Fasthttp is a server of fasthttp: in one process, under fasthttp's own
// prefork, or under a Master.
package main

import (
	"context"
	"flag"
	"log"
	"runtime"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/prefork"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/bench/servers/hello"
)

// server makes a fasthttp.Server a cluster.Server: it has Serve already.
type server struct{ *fasthttp.Server }

func (s server) Shutdown(ctx context.Context) error { return s.ShutdownWithContext(ctx) }

// Close waits for nobody. The worker exits then, which closes the rest.
func (s server) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.ShutdownWithContext(ctx)
	return nil
}

func main() {
	under := flag.String("under", "", "prefork or master; neither: one process")
	hello.Parse()
	s := &fasthttp.Server{
		CloseOnShutdown: true,
		Handler: func(ctx *fasthttp.RequestCtx) {
			hello.Work()
			ctx.Response.Header.Set("X-Pid", hello.Pid)
			ctx.SetContentType("text/plain")
			ctx.SetBodyString(hello.Body)
		},
	}
	var err error
	switch *under {
	case "prefork":
		p := prefork.New(s)
		p.Reuseport = hello.ReusePort
		if hello.Workers > 0 && !prefork.IsChild() {
			runtime.GOMAXPROCS(hello.Workers) // which is how many children there are
		}
		err = p.ListenAndServe(hello.Addr)
	case "master":
		m := &cluster.Master{
			Addr:      hello.Addr,
			Server:    server{s},
			Workers:   hello.Workers,
			ReusePort: hello.ReusePort,
		}
		err = m.ListenAndServe(nil)
	default:
		err = s.ListenAndServe(hello.Addr)
	}
	if err != nil {
		log.Fatal(err)
	}
}
