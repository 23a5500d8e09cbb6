// Http is an HTTP server built on the package: see TestSize.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/gocluster/cluster"
)

func main() {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello World from process %d\n", os.Getpid())
	})}
	if err := cluster.ListenAndServe(os.Args[1], s); err != nil {
		log.Fatal(err)
	}
}
