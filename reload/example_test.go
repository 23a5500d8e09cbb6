package reload_test

import (
	"log"
	"net/http"
	"syscall"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/reload"
)

func Example() {
	m := &cluster.Master{Addr: ":3000", Server: &http.Server{}}
	m.In("development").Use(reload.New(nil, "templates"))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// The old workers need not finish what they are doing.
func ExampleNew_options() {
	m := &cluster.Master{Addr: ":3000", Server: &http.Server{}}
	m.Use(reload.New(&reload.Options{
		Extensions: []string{".html", ".css"},
		Signal:     syscall.SIGTERM,
	}, "."))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
