//go:build unix && !cluster_nofork

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
)

// A worker of this helper hangs on request, or, if it is the one whose
// process id the file "sick" has, its Alive does.
var _ = helper("hung", func() {
	m := newMaster()
	m.On(cluster.Hooks{WorkerException: func(w *cluster.Worker, err error) {
		var e *cluster.Exception
		if errors.As(err, &e) {
			report("stack", w, fmt.Sprintf("%d bytes, %d goroutines", len(e.Stack), strings.Count(string(e.Stack), "\ngoroutine ")))
		}
	}})
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("/spin", func(w http.ResponseWriter, r *http.Request) {
		report("spinning", nil, "")
		for n := 0; ; n++ {
		}
	})
	mux.HandleFunc("/park", func(w http.ResponseWriter, r *http.Request) {
		for range 3000 {
			go func() { select {} }()
		}
	})
	mux.HandleFunc("/collect", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.FormValue("for"))
		type node struct{ next *node }
		root := new(node)
		for range 3_000_000 { // for the collector to follow
			root = &node{root}
		}
		for end := time.Now().Add(d); time.Now().Before(end); {
			runtime.GC()
		}
		fmt.Fprint(w, root != nil)
	})
	mux.HandleFunc("/deaf", func(w http.ResponseWriter, r *http.Request) { signal.Ignore(syscall.SIGABRT) })
	mux.HandleFunc("/flood", func(w http.ResponseWriter, r *http.Request) {
		for size := 64 << 10; size > 0; size /= 2 { // until there is no room at all
			for m.Send("flood", strings.Repeat("x", size)) == nil {
			}
		}
	})
	m.Alive = func(ctx context.Context) error {
		b, _ := os.ReadFile("sick")
		switch string(b) {
		case fmt.Sprint(os.Getpid(), " fails"):
			return errors.New("not well")
		case fmt.Sprint(os.Getpid(), " never answers"):
			select {}
		case fmt.Sprint(os.Getpid(), " answers late"):
			<-ctx.Done()
		}
		return nil
	}
	m.Server = &http.Server{Handler: mux}
	finish(m.ListenAndServe(listen(0)))
})

// A worker that hangs is aborted, so that its goroutines are seen, and is
// replaced.
func TestHungWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	sick := func(how string) func(*proc, int) {
		return func(p *proc, pid int) {
			if err := os.WriteFile(filepath.Join(p.dir, "sick"), fmt.Append(nil, pid, how), 0o600); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name string
		hang func(p *proc, pid int)
		dump string // what its Stack is, if there is one
		end  string
	}{
		{"stopped", func(p *proc, pid int) { suspend(p.t, pid) }, "bytes", "exit status 2"},
		{"stopped with many goroutines", func(p *proc, pid int) {
			p.get("/park")
			suspend(p.t, pid)
		}, "65536 bytes", "exit status 2"},
		{"spinning", func(p *proc, pid int) {
			fmt.Fprint(p.dial(), "GET /spin HTTP/1.1\r\nHost: cluster\r\n\r\n")
			p.wait("spinning")
		}, "bytes", "exit status 2"},
		{"Alive fails", sick(" fails"), "bytes", "exit status 2"},
		{"Alive never answers", sick(" never answers"), "bytes", "exit status 2"},
		{"Alive answers late", sick(" answers late"), "bytes", "exit status 2"},
		{"deaf to SIGABRT", func(p *proc, pid int) {
			p.get("/deaf")
			suspend(p.t, pid)
		}, "", "signal: killed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := command(t, "hung", "workers=1", "heartbeat=600ms")
			if test.name == "spinning" { // nothing else can run in a process like that
				p.cmd.Env = append(p.cmd.Env, "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
			}
			p.start().wait("listening")
			pid := p.workers()[0]
			test.hang(p, pid)
			if e := p.wait("timeout"); e.Pid != pid || e.Text != "600ms" {
				t.Errorf("timeout event: %+v", e)
			}
			if test.dump != "" {
				if e := p.wait("exception"); e.Pid != pid || !strings.Contains(e.Text, "SIGABRT") {
					t.Errorf("exception event: %+v", e)
				}
				if e := p.wait("stack"); !strings.Contains(e.Text, test.dump) || strings.Contains(e.Text, " 0 goroutines") {
					t.Errorf("the stack: %s, want %s", e.Text, test.dump)
				}
			}
			if e := p.wait("killed"); e.Pid != pid || e.Text != test.end {
				t.Errorf("killed event: %+v, want %s", e, test.end)
			}
			if w := waitWorkers(p, 1); w[0] == pid {
				t.Error("the worker was not replaced")
			}
			p.get("/")
			p.quit("sick")
		})
	}
}

// A worker of this helper tells how late its signs of life are.
var _ = helper("beats", func() {
	m := newMaster()
	m.Alive = func(context.Context) error {
		now := time.Now()
		report("alive", nil, fmt.Sprint(os.Getpid(), " ", int64(now.Sub(now.Truncate(beatsEvery)))))
		return nil
	}
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

const beatsEvery = 200 * time.Millisecond

// Workers give their signs of life at the same times, whenever they were
// started, so that the master sleeps in between.
func TestSignsOfLifeCoincide(t *testing.T) {
	t.Parallel()
	p := start(t, "beats", "workers=2", "heartbeat="+(3*beatsEvery).String())
	least := make(map[int]time.Duration)
	for range 3 {
		for _, e := range p.waitN(12, "alive") {
			var pid int
			var late time.Duration
			if _, err := fmt.Sscan(e.Text, &pid, (*int64)(&late)); err != nil {
				t.Fatal(e, err)
			}
			if d, ok := least[pid]; !ok || late < d {
				least[pid] = late
			}
		}
		p.signal(syscall.SIGHUP)
	}
	for pid, d := range least {
		if d > beatsEvery/8 {
			t.Errorf("worker %d: %v late at least; all: %v", pid, d, least)
		}
	}
	p.quit()
}

// A pause has time pass for some, or for all, of the processes of a cluster.
type pause struct {
	name  string
	pause func(p *proc, workers map[int]int)
}

// pauses are those that a system has beside the usual ones.
var pauses []pause

const heartbeat = 800 * time.Millisecond

// Time that passes for all, or for the master alone, or for a worker but not
// long enough, is no silence. Workers get by the master's being away even if
// they have more to tell than there is room for.
func TestPausedProcessesAreNotHung(t *testing.T) {
	t.Parallel()
	for _, test := range slices.Concat([]pause{
		{"master and workers", func(p *proc, workers map[int]int) {
			for range 2 {
				suspend(p.t, p.pid())
				for _, pid := range workers {
					suspend(p.t, pid)
				}
				time.Sleep(2 * heartbeat)
				p.signal(syscall.SIGCONT)
				for _, pid := range workers {
					kill(p.t, pid, syscall.SIGCONT)
				}
			}
		}},
		{"master", func(p *proc, workers map[int]int) {
			suspend(p.t, p.pid())
			time.Sleep(3 * heartbeat)
			p.signal(syscall.SIGCONT)
		}},
		{"master, with talkative workers", func(p *proc, workers map[int]int) {
			suspend(p.t, p.pid())
			for range 4 {
				p.get("/flood")
			}
			time.Sleep(2 * heartbeat) // there is no room for signs of life
			p.signal(syscall.SIGCONT)
		}},
		{"workers, collecting garbage", func(p *proc, workers map[int]int) {
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { p.get("/collect?for=" + (2 * heartbeat).String()) })
			}
			wg.Wait()
		}},
		{"worker, for a moment", func(p *proc, workers map[int]int) {
			for range 4 {
				suspend(p.t, workers[0])
				time.Sleep(heartbeat / 2)
				kill(p.t, workers[0], syscall.SIGCONT)
				time.Sleep(heartbeat / 2)
			}
		}},
	}, pauses) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := serve(t, "hung", "workers=2", "heartbeat="+heartbeat.String())
			before := p.workers()
			test.pause(p, before)
			time.Sleep(2 * heartbeat) // the last sign of life may have been long ago: some must follow
			for _, e := range p.history("timeout", "killed", "exception") {
				t.Errorf("%+v", e)
			}
			p.get("/")
			p.quit()
		})
	}
}
