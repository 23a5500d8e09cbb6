// Classic has all the classic plugins, and is its own control tool:
//
//	$ go build ./examples/classic
//	$ ./classic &
//	$ curl localhost:3000
//	$ ./classic status
//	$ ./classic restart
//	$ ./classic shutdown
//
// ./classic help lists the commands. Its logs, pidfiles and sockets are in the
// directory "classic.d" of the system's temporary files; the statistics are at
// http://localhost:3001.
package main

import (
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/cli"
	"github.com/gocluster/cluster/debug"
	"github.com/gocluster/cluster/handoff"
	"github.com/gocluster/cluster/logger"
	"github.com/gocluster/cluster/pidfiles"
	"github.com/gocluster/cluster/reload"
	"github.com/gocluster/cluster/repl"
	"github.com/gocluster/cluster/stats"
)

func main() {
	dir := filepath.Join(os.TempDir(), "classic.d")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Addr: "localhost:3000", NewServer: newServer}
	err := m.
		Set("working directory", dir).
		Use(
			pidfiles.New("pids"),
			repl.New("pids/repl.sock"),
			stats.New(nil),
			stats.Serve("localhost:3001"),
			cli.New(nil),
		).
		In("development").
		Set("workers", 2).
		Use(logger.New("logs", slog.LevelDebug), debug.New(nil)).
		Use(reload.New(nil)).
		In("production").
		Use(logger.New("logs", nil)).
		In("all").
		ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
}

// newServer is called in the workers.
func newServer() (cluster.Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s %s\n", r.RemoteAddr, r.Method, r.URL) // workers.access.log
		fmt.Fprintf(w, "Hello from worker %s, process %d\n", os.Getenv("CLUSTER_WORKER"), os.Getpid())
	})
	return handoff.Server(&http.Server{Handler: stats.Handler(mux)}), nil
}
