package cli_test

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/cli"
	"github.com/gocluster/cluster/pidfiles"
)

// Started without arguments this program serves. Started with "status",
// "restart" or "shutdown" it controls the one that does.
func Example() {
	m := &cluster.Master{
		Addr:   ":3000",
		Server: &http.Server{Handler: http.FileServer(http.Dir("."))},
	}
	m.Use(pidfiles.New("pids"), cli.New(nil))
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// "app -c" and "app config" print a file, whether the cluster runs or not.
func ExampleDefine() {
	cli.Define("-c, --config, config", func(args []string) error {
		data, err := os.ReadFile("app.conf")
		if err == nil {
			fmt.Printf("%s", data)
		}
		return err
	}, "print the configuration")

	// -v is the program's own flag.
	cli.Define("-v", nil, "")
}

// This program binds its socket before ListenAndServe. Main comes first, so
// that a command finds the port taken and doesn't mind.
func ExampleMain() {
	o := &cli.Options{Dir: "/run/app", Version: "1.2.3"}
	cli.Main(o)

	l, err := cluster.Listen("tcp", ":3000")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Server: &http.Server{Handler: http.FileServer(http.Dir("."))}}
	m.Use(pidfiles.New("/run/app"), cli.New(o))
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}
