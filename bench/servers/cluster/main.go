// Cluster is the same server of net/http under a Master, or one that needs no
// net/http.
package main

import (
	"flag"
	"log"
	"net/http"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/bench/servers/hello"
	"github.com/gocluster/cluster/handoff"
)

func main() {
	keep := flag.Bool("handoff", false, "hand idle connections over")
	tcp := flag.Bool("tcp", false, "answer without net/http")
	heartbeat := flag.Duration("heartbeat", 0, "Master.Heartbeat")
	hello.Parse()
	hs := &http.Server{Handler: http.HandlerFunc(hello.Handler)}
	m := &cluster.Master{
		Addr:      hello.Addr,
		Server:    hs,
		Workers:   hello.Workers,
		ReusePort: hello.ReusePort,
		Heartbeat: *heartbeat,
	}
	if *keep {
		m.Server = handoff.Server(hs)
	}
	if *tcp {
		m.Server = &cluster.TCPServer{Handler: hello.Conn}
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
