package handoff_test

import (
	"crypto/tls"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
)

func Example() {
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "Hello World from process %d\n", os.Getpid())
		}),
		IdleTimeout: 5 * time.Minute,
	}
	// After a SIGUSR2 the same connection is answered by another process.
	if err := cluster.ListenAndServe(":3000", handoff.Server(server)); err != nil {
		log.Fatal(err)
	}
}

// TLS connections can't be handed over. They are told to close with their
// next response, before idle ones are closed.
func ExampleServer_tls() {
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	l, err := cluster.Listen("tcp", ":443")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Server: handoff.Server(new(http.Server))}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	if err := m.ListenAndServe(tls.NewListener(l, config)); err != nil {
		log.Fatal(err)
	}
}
