//go:build unix && !cluster_nofork

package cluster_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
)

// The events of the reference, in their order.
func TestEvents(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	p.quit()
	var got []string
	for _, e := range p.history() {
		if e.ID < 0 || slices.Contains([]string{"worker", "connected", "killed"}, e.Name) {
			got = append(got, e.Name)
		}
	}
	want := []string{"addr", "start", "worker", "connected", "listening", "closing", "kill", "killed", "close", "returned"}
	if !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

// WorkerException tells of a panic in any goroutine, and of a fatal error of
// the runtime.
func TestWorkerException(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/panic": "panic: here is a panic",
		"/maps":  "fatal error", // golang.org/issue/76859: no more than that, and where
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			p := serve(t, "exception", "workers=1")
			p.racy = path == "/maps"
			before := p.workers()[0]
			if _, err := roundTrip(p.dial(), path); err == nil {
				t.Error("the request was answered")
			}
			e := p.wait("stack", 0)
			if !strings.HasPrefix(e.Text, want) || !strings.Contains(e.Text, "cluster_test.newHandler.func") || e.Pid != before {
				t.Errorf("exception: %+v", e)
			}
			if e := p.wait("killed"); !strings.Contains(e.Text, "exit status 2") {
				t.Errorf("killed: %+v", e)
			}
			p.waitLog(want) // where it always is
			waitWorkers(p, 1)
			p.quit()
		})
	}
}

var _ = helper("exception", func() {
	m := newMaster()
	m.On(cluster.Hooks{WorkerException: func(w *cluster.Worker, err error) {
		e, ok := err.(*cluster.Exception)
		if !ok {
			err = fmt.Errorf("no *Exception: %v", err)
		} else {
			_, stack, _ := strings.Cut(string(e.Stack), "\ngoroutine ")
			err = fmt.Errorf("%s\n%s", e.Message, stack)
		}
		report("stack", w, err.Error())
	}})
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// Messages go both ways, in order.
func TestMessage(t *testing.T) {
	t.Parallel()
	p := serve(t, "message", "workers=2")
	for range 2 {
		e := p.wait("message")
		if e.ID < 0 || e.Text != fmt.Sprintf(`hello {"Pid":%d}`, e.Pid) || p.workers()[e.ID] != e.Pid {
			t.Errorf("message to the master: %+v", e)
		}
	}
	for i := range 100 {
		p.mustCall("send 1 number %d", i)
	}
	for i := range 100 {
		e := p.waitFor("the message back", func(e event) bool { return e.Name == "message" && strings.HasPrefix(e.Text, "echo") })
		if e.ID != 1 || e.Text != fmt.Sprintf(`echo "%d"`, i) {
			t.Fatalf("message %d back: %+v", i, e)
		}
	}
	p.quit()
	last := make(map[int]string)
	for _, e := range p.history("message", "killed") {
		if e.Name == "killed" && last[e.Pid] != "goodbye null" {
			t.Errorf("the last message of worker %d is %q", e.ID, last[e.Pid])
		}
		last[e.Pid] = e.Text
	}
}

var _ = helper("message", func() {
	m := new(cluster.Master)
	m.Workers = 2
	m.On(reportHooks)
	if m.IsMaster() {
		go obey(m)
	} else {
		m.On(cluster.Hooks{
			Serving: func() { m.Send("hello", map[string]int{"Pid": os.Getpid()}) },
			Drained: func() {
				time.Sleep(50 * time.Millisecond)
				m.Send("goodbye", nil)
			},
			Message: func(w *cluster.Worker, name string, data json.RawMessage) {
				if w != nil {
					report("failed", w, "a worker in a worker")
				}
				m.Send("echo", data)
			},
		})
	}
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// A hook that panics is logged and survived; a slow one delays other hooks
// and nothing else.
func TestHooksMisbehave(t *testing.T) {
	t.Parallel()
	p := start(t, "hooks", "workers=2")
	p.wait("slow") // a hook that lasts until its file is there
	p.get("/")     // served meanwhile
	if got := p.call("children"); strings.Count(got, "\n") != 1 {
		t.Errorf("children: %q", got)
	}
	p.mustCall("spawn 1")
	if got := p.call("state"); got != "active" {
		t.Errorf("state: %q", got)
	}
	if len(p.history("listening")) > 0 {
		t.Error("hooks are called two at a time")
	}
	p.mustCall("release")
	p.wait("listening")
	p.waitLog("a hook panicked: on purpose")
	p.waitLog("events_test.go:")
	waitWorkers(p, 3)
	p.quit()
}

var release = make(chan struct{})

var _ = helper("hooks", func() {
	commands["release"] = func(*cluster.Master, []string) string { close(release); return "" }
	m := new(cluster.Master)
	m.Workers = 2
	if m.IsMaster() {
		var first atomic.Bool
		m.On(cluster.Hooks{WorkerConnected: func(w *cluster.Worker) {
			if first.CompareAndSwap(false, true) {
				for len(m.Children()) < 2 || m.Children()[0].State() != cluster.WorkerReady || m.Children()[1].State() != cluster.WorkerReady {
				}
				report("slow", w, "")
				<-release
			}
			panic("on purpose")
		}})
		go obey(m)
	}
	m.On(reportHooks)
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// A hook may call any method.
func TestHooksCallMethods(t *testing.T) {
	t.Parallel()
	p := start(t, "callers", "workers=1")
	p.wait("restarted")
	p.end(0)
	if log := p.log(); log != "" {
		t.Errorf("log: %s", log)
	}
	for _, name := range []string{"listening", "removed", "kill", "killed", "closing", "close"} {
		if len(p.history(name)) == 0 {
			t.Errorf("no %s event", name)
		}
	}
}

var _ = helper("callers", func() {
	m := newMaster()
	must := func(err error) {
		if err != nil {
			fatal(err)
		}
	}
	var deaths, connected int
	m.On(cluster.Hooks{
		WorkerConnected: func(w *cluster.Worker) {
			switch connected++; connected {
			case 1:
				must(m.Spawn(2))
			case 3:
				must(m.Remove(1))
			}
		},
		WorkerRemoved: func(*cluster.Worker) { must(m.Kill(syscall.SIGKILL)) },
		WorkerKilled: func(w *cluster.Worker) {
			if deaths++; deaths == 3 {
				must(m.RestartWorkers())
				report("restarted", nil, "")
				must(m.Close())
			}
		},
		Closing: func() {
			if m.State() != cluster.GracefulShutdown {
				fatal(fmt.Errorf("state %v", m.State()))
			}
			m.Close()
		},
		Close: func() { must(m.Close()); must(m.Destroy()) },
	})
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})
