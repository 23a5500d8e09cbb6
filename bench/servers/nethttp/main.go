// Nethttp is a server of net/http alone, in one process.
package main

import (
	"log"
	"net/http"

	"github.com/gocluster/cluster/bench/servers/hello"
)

func main() {
	hello.Parse()
	log.Fatal((&http.Server{Addr: hello.Addr, Handler: http.HandlerFunc(hello.Handler)}).ListenAndServe())
}
