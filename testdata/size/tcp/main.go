// Tcp is a TCP server built on the package: see TestSize.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/gocluster/cluster"
)

func main() {
	s := &cluster.TCPServer{Handler: func(_ context.Context, c net.Conn) {
		fmt.Fprintf(c, "Hello World from process %d\n", os.Getpid())
	}}
	if err := cluster.ListenAndServe(os.Args[1], s); err != nil {
		log.Fatal(err)
	}
}
