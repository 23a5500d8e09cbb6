package logger_test

import (
	"fmt"
	"log"
	"log/slog"
	"net/http"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/logger"
)

var server = &http.Server{
	Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.RemoteAddr, r.Method, r.URL) // to workers.access.log
		fmt.Fprintln(w, "Hello World")
	}),
}

// Files in ./logs.
func Example() {
	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(logger.New("", nil))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// More in master.log.
func ExampleNew() {
	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(logger.New("/var/log/app", slog.LevelDebug))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// The level may change while the cluster runs.
func ExampleNew_level() {
	level := new(slog.LevelVar) // info
	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(logger.New("/var/log/app", level))
	m.On(cluster.Hooks{RestartFailed: func(error) { level.Set(slog.LevelDebug) }})
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
