// Websocket echoes messages to websocket clients, on port 3000 or at the
// address given as its argument.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/coder/websocket"

	"github.com/gocluster/cluster"
)

func main() {
	m := &cluster.Master{Addr: ":3000", Workers: 2}
	if len(os.Args) > 1 {
		m.Addr = os.Args[1]
	}
	m.Server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return // it has answered
		}
		defer c.CloseNow()
		echo(c, m.Done())
	})}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// echo answers every message with the worker's process id before it. When the
// worker should finish it closes the connection with StatusServiceRestart, for
// the client to connect anew; a message that has no answer yet was not taken.
func echo(c *websocket.Conn, done <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-done:
			c.Close(websocket.StatusServiceRestart, "connect anew")
		case <-ctx.Done():
		}
	}()
	for {
		kind, b, err := c.Read(ctx)
		if err == nil {
			err = c.Write(ctx, kind, fmt.Appendf(nil, "%d %s", os.Getpid(), b))
		}
		if err != nil {
			var ce websocket.CloseError
			if !errors.As(err, &ce) {
				log.Print(err)
			}
			return
		}
	}
}
