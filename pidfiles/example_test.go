package pidfiles_test

import (
	"fmt"
	"log"
	"net/http"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/pidfiles"
)

func Example() {
	m := &cluster.Master{Addr: ":3000", Server: &http.Server{}}
	m.Use(pidfiles.New("")) // "pids"
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// Any process can read pidfiles.
func ExampleDir() {
	pid, err := pidfiles.Dir("/var/run/app").PidOf("master")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pid)
}
