// Nethttp is http with the net/http package alone: see TestSize.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	s := &http.Server{Addr: os.Args[1], Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello World from process %d\n", os.Getpid())
	})}
	if err := s.ListenAndServe(); err != nil {
		log.Fatal(err)
	}
}
