package stats_test

import (
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/stats"
)

// A cluster that counts, and shows it at http://localhost:9100/ and to
// Prometheus.
func Example() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "Hello World")
	})
	m := &cluster.Master{
		Addr:   ":3000",
		Server: &http.Server{Handler: stats.Handler(mux)},
	}
	m.Use(
		stats.New(nil),
		stats.Serve("localhost:9100"),
	)
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// The program itself looks at what its workers do.
func ExampleRead() {
	m := &cluster.Master{Addr: ":3000", Server: &http.Server{Handler: stats.Handler(nil)}}
	m.Use(stats.New(&stats.Options{Interval: 100 * time.Millisecond}))
	if m.IsMaster() {
		go func() {
			for {
				select {
				case <-time.After(time.Minute):
					s := stats.Read(m)
					log.Printf("%d requests, %d connections now", s.Requests, s.Active)
				case <-m.Done():
					return
				}
			}
		}()
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
