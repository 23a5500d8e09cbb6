// Udp echoes packets, on port 3000 or at the address given as its argument.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/gocluster/cluster"
)

func main() {
	addr := ":3000"
	if len(os.Args) > 1 {
		addr = os.Args[1]
	}
	conn, err := cluster.ListenPacket("udp", addr)
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Workers: 2}
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		echo(conn, m.Done())
		return
	}
	if err := m.Wait(); err != nil {
		log.Fatal(err)
	}
}

// echo answers every packet with the worker's process id before it. When the
// worker should finish it reads no more: what it has not read is read by its
// successor, from the same socket.
func echo(conn net.PacketConn, done <-chan struct{}) {
	go func() {
		<-done
		conn.SetReadDeadline(time.Now())
	}()
	b := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		if _, err := conn.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), b[:n]), from); err != nil {
			log.Print(err)
		}
	}
}
