// Container is what the Dockerfile in this directory makes an image of. It
// serves HTTP on port 8080, or at the address given as its argument, and
// answers the probes of kubernetes.yaml at /healthz.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gocluster/cluster"
)

func main() {
	m := &cluster.Master{
		Addr:      ":8080",
		NewServer: newServer,
		Timeout:   30 * time.Second, // kubernetes.yaml allows for it
	}
	if len(os.Args) > 1 {
		m.Addr = os.Args[1]
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

func newServer() (cluster.Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello World from process %d\n", os.Getpid())
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}, nil
}
