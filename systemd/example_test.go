package systemd_test

import (
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/systemd"
)

var server = &http.Server{
	Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "Hello World")
	}),
}

// A service of Type=notify.
func Example() {
	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(systemd.New())
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// The socket of a unit "app.socket", or port 3000 where there is none.
func ExampleListeners() {
	m := &cluster.Master{Addr: ":3000", Server: server}
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

// Sockets with FileDescriptorName=web and FileDescriptorName=admin. More than
// one socket may have the same name.
func ExampleListeners_names() {
	m := &cluster.Master{Server: server}
	web, err := systemd.Listeners("web")
	if err != nil {
		log.Fatal(err)
	}
	admin, err := systemd.Listeners("admin")
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range web {
		m.Add(l, server)
	}
	if len(admin) == 0 {
		log.Fatal("app.service needs app-admin.socket")
	}
	if err := m.ListenAndServe(admin[0]); err != nil {
		log.Fatal(err)
	}
}

// Lines of a syslog-like protocol, read in the workers.
func ExamplePacketConns() {
	m := new(cluster.Master)
	m.Use(systemd.New())
	conns, err := systemd.PacketConns()
	if err != nil {
		log.Fatal(err)
	}
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if !m.IsWorker() {
		if err := m.Wait(); err != nil {
			log.Fatal(err)
		}
		return
	}
	for _, c := range conns {
		go func() {
			b := make([]byte, 64<<10)
			for {
				n, _, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				fmt.Printf("%s\n", b[:n])
			}
		}()
	}
	<-m.Done()
}
