// Hello is the smallest cluster: a worker per CPU answers HTTP on port 3000,
// or at the address given as its argument.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/gocluster/cluster"
)

func main() {
	addr := ":3000"
	if len(os.Args) > 1 {
		addr = os.Args[1]
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "Hello World from process %d\n", os.Getpid())
		}),
	}
	if err := cluster.ListenAndServe(addr, server); err != nil {
		log.Fatal(err)
	}
}
