// Jobs is an abstract cluster: no worker serves, but each works off jobs and
// tells the master of every one that is done. The jobs are numbers, and the
// work is to find their smallest divisor.
package main

import (
	"encoding/json"
	"log"
	"math/rand/v2"
	"time"

	"github.com/gocluster/cluster"
)

// A result is what a worker tells the master.
type result struct{ Job, Divisor int }

func main() {
	m := &cluster.Master{Workers: 2}
	m.On(cluster.Hooks{
		Message: func(w *cluster.Worker, name string, data json.RawMessage) {
			var r result
			if err := json.Unmarshal(data, &r); err != nil {
				log.Printf("%s: %v", name, err)
				return
			}
			log.Printf("worker %d: the smallest divisor of %d is %d", w.ID, r.Job, r.Divisor)
		},
	})
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		work(m)
	}
	if err := m.Wait(); err != nil {
		log.Fatal(err)
	}
}

// work does one job after another until the worker should finish.
func work(m *cluster.Master) {
	jobs := time.NewTicker(time.Second)
	defer jobs.Stop()
	for {
		select {
		case <-m.Done():
			return
		case <-jobs.C: // a real one would come from a queue
			job := 2 + rand.IntN(1e9)
			if err := m.Send("result", result{job, divisor(job)}); err != nil {
				log.Print(err)
			}
		}
	}
}

// divisor returns the smallest divisor of n, which is at least 2.
func divisor(n int) int {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return d
		}
	}
	return n
}
