// Systemd is a service: it tells systemd what it does, and takes its socket
// from it. app.service and app.socket beside this file are its units.
//
//	$ go build -o /usr/local/bin/app ./examples/systemd
//	$ cp examples/systemd/app.* /etc/systemd/system
//	$ systemctl daemon-reload
//	$ systemctl enable --now app.socket
//	$ curl localhost:3000
//	$ systemctl status app
//
// To deploy a new version, replace the program's file by it, with mv or
// install, and then
//
//	$ systemctl reload app
//
// Started by hand it listens on port 3000, too.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
	"github.com/gocluster/cluster/systemd"
)

func main() {
	m := &cluster.Master{
		Addr: ":3000", // without socket activation
		Server: handoff.Server(&http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "Hello World from process %d\n", os.Getpid())
			}),
		}),
	}
	m.Use(systemd.New())
	listeners, err := systemd.Listeners()
	if err != nil {
		log.Fatal(err)
	}
	var l net.Listener
	if len(listeners) > 0 {
		l = listeners[0]
	}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}
