// Package hello is what all the servers in Go answer, and the flags that
// they have in common.
package hello

import (
	"context"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
)

// Body is the answer to every request.
const Body = "Hello World\n"

// Pid names the process that answers, in the header X-Pid.
var Pid = strconv.Itoa(os.Getpid())

// The flags.
var (
	Addr      string // to listen on
	Workers   int    // processes
	ReusePort bool   // a socket for each of them
	spin      int    // work for each request, in rounds of Spin
)

// Parse parses the flags. With -main it ends the program, having told by a
// byte on standard output that main has been reached.
func Parse() {
	flag.StringVar(&Addr, "addr", "127.0.0.1:3000", "address to listen on")
	flag.IntVar(&Workers, "workers", 0, "number of worker processes")
	flag.BoolVar(&ReusePort, "reuseport", false, "a socket for each worker")
	flag.IntVar(&spin, "spin", 0, "work for each request")
	main := flag.Bool("main", false, "exit at once")
	flag.Parse()
	if *main {
		os.Stdout.Write([]byte{'\n'})
		os.Exit(0)
	}
}

// Spin keeps a CPU busy for n rounds.
func Spin(n int) uint64 {
	x := uint64(n) | 1
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// Work is done for every request.
func Work() {
	if spin > 0 && Spin(spin) == 0 { // never 0: it must not be optimised away
		panic("spin")
	}
}

// Handler answers with Body.
func Handler(w http.ResponseWriter, r *http.Request) {
	Work()
	h := w.Header()
	h["X-Pid"] = []string{Pid}
	h["Content-Type"] = []string{"text/plain"}
	w.Write([]byte(Body))
}

// Conn answers one request with Body, whatever it is.
func Conn(_ context.Context, c net.Conn) {
	if _, err := c.Read(make([]byte, 1024)); err == nil {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX-Pid: "+Pid+"\r\n\r\n"+Body)
	}
}
