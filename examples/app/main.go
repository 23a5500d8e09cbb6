// App is a larger program: its server is built in the workers only, its
// settings depend on the environment, and a plugin logs what happens.
//
//	$ go run ./examples/app
//	$ CLUSTER_ENV=production go run ./examples/app
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gocluster/cluster"
)

func main() {
	m := &cluster.Master{NewServer: newServer}
	err := m.
		Set("working directory", os.TempDir()).
		Set("worker title", "app worker {n}").
		Do(func(m *cluster.Master) {
			if m.IsMaster() {
				log.Printf("master %d", os.Getpid())
			}
		}).
		In("development").
		Set("workers", 1).
		Set("addr", "localhost:3000").
		Use(events(true)).
		In("production").
		Set("workers", 4).
		Set("timeout", "30s").
		Set("addr", ":8080").
		Use(events(false)).
		In("all").
		ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
}

// newServer would open the database here.
func newServer() (cluster.Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello from worker %s, process %d\n", os.Getenv("CLUSTER_WORKER"), os.Getpid())
	})
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Second) // SIGQUIT or SIGHUP meanwhile: it is still answered
		fmt.Fprintln(w, "done")
	})
	mux.HandleFunc("GET /crash", func(w http.ResponseWriter, r *http.Request) {
		go panic("a panic in a goroutine that nobody recovers")
	})
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, nil
}

// events returns a plugin that logs the life of workers: all of it, or only
// what goes wrong.
func events(all bool) cluster.Plugin {
	return func(m *cluster.Master) error {
		if all {
			m.On(cluster.Hooks{
				Listening:       func() { log.Print("listening") },
				WorkerConnected: func(w *cluster.Worker) { log.Printf("worker %d is ready, process %d", w.ID, w.Pid) },
				WorkerKilled:    func(w *cluster.Worker) { log.Printf("worker %d has ended: %v", w.ID, w.ProcessState) },
				Closing:         func() { log.Print("closing") },
			})
		}
		m.On(cluster.Hooks{
			WorkerException: func(w *cluster.Worker, err error) { log.Printf("worker %d: %v", w.ID, err) },
			WorkerTimeout: func(w *cluster.Worker, after time.Duration) {
				log.Printf("worker %d is killed after %v", w.ID, after)
			},
		})
		return nil
	}
}
