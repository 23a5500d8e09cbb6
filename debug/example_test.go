package debug_test

import (
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/debug"
)

func hello(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "Hello World") }

// Events are shown while the program is being developed.
func Example() {
	m := &cluster.Master{
		Addr:   ":3000",
		Server: &http.Server{Handler: http.HandlerFunc(hello)},
	}
	m.In("development").Use(debug.New(nil))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// Colours in what a service manager collects, and without messages.
func ExampleNew() {
	m := &cluster.Master{
		Addr:   ":3000",
		Server: &http.Server{Handler: http.HandlerFunc(hello)},
	}
	m.Use(debug.New(&debug.Options{Writer: os.Stdout, Colors: true, Level: slog.LevelInfo}))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
