package repl_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/repl"
)

// A command of the program's own, for
//
//	cluster> echo("test")
//	test
func Example() {
	repl.Define("echo(msg)", func(m *cluster.Master, w io.Writer, args ...string) error {
		_, err := fmt.Fprintln(w, strings.Join(args, " "))
		return err
	}, "Echo the given message")

	m := &cluster.Master{
		Addr:   ":3000",
		Server: &http.Server{Handler: http.NotFoundHandler()},
	}
	m.Use(repl.New("/run/app/repl.sock"))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

func ExampleTitle() {
	repl.Title(os.Stdout, "pids")
	repl.Row(os.Stdout, "master", 1799)
	repl.Row(os.Stdout, "worker #0", 1801)
	// Output:
	//
	//   pids
	//   master: 1799
	//   worker #0: 1801
}
