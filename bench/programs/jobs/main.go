// Jobs works off a queue that is a directory, given as its argument. A job is
// a file in "new". A worker takes one by moving it to "taken", which only one
// of them can, and moves it to "done" with its process id at the end of its
// name.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/gocluster/cluster"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: jobs directory")
	}
	m := &cluster.Master{Workers: 2}
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		work(os.Args[1], m.Done())
		return
	}
	if err := m.Wait(); err != nil {
		log.Fatal(err)
	}
}

// work does one job after another until the worker should finish: it finishes
// the one that it has taken. The jobs of a worker that was killed stay in
// "taken".
func work(dir string, done <-chan struct{}) {
	for {
		entries, err := os.ReadDir(filepath.Join(dir, "new"))
		if err != nil {
			log.Print(err)
		}
		for _, e := range entries {
			select {
			case <-done:
				return
			default:
			}
			job := filepath.Join(dir, "taken", e.Name())
			err := os.Rename(filepath.Join(dir, "new", e.Name()), job)
			if errors.Is(err, fs.ErrNotExist) {
				continue // another worker has taken it
			}
			if err == nil {
				err = do(job)
			}
			if err == nil {
				err = os.Rename(job, filepath.Join(dir, "done", fmt.Sprintf("%s.%d", e.Name(), os.Getpid())))
			}
			if err != nil {
				log.Print(err)
			}
		}
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond): // look again
		}
	}
}

// do does a job, which here is to sleep for as long as the file says.
func do(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	time.Sleep(d)
	return nil
}
