package recycle_test

import (
	"log"
	"net/http"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/recycle"
)

func Example() {
	m := &cluster.Master{Addr: ":3000", Server: &http.Server{}}
	m.Use(recycle.New(&recycle.Options{MaxMemory: 512 << 20}))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// A new process for every worker once a day, spread over two hours and a half.
func ExampleNew_jitter() {
	m := &cluster.Master{Addr: ":3000", Server: &http.Server{}}
	m.Use(recycle.New(&recycle.Options{MaxAge: 24 * time.Hour, Jitter: 0.1}))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
