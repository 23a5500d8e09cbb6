//go:build unix

package debug_test

import (
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/debug"
	"github.com/gocluster/cluster/internal/clustertest"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"server": serve})
}

// pidWriter puts the master's process id before every Write.
type pidWriter struct{}

func (pidWriter) Write(p []byte) (int, error) {
	fmt.Fprintf(os.Stderr, "%d:%s", os.Getpid(), p)
	return len(p), nil
}

// serve is a cluster with this plugin. Arguments of the form option=value are
// Set, but for those of the switch.
func serve() {
	m := &cluster.Master{Workers: 1}
	o := new(debug.Options)
	for _, arg := range os.Args[1:] {
		switch k, v, _ := strings.Cut(arg, "="); k {
		case "default":
			o = nil
		case "writer":
			o.Writer = pidWriter{}
		case "colors":
			o.Colors = true
		case "level":
			var l slog.Level
			must(l.UnmarshalText([]byte(v)))
			o.Level = l
		case "stderr": // of this process
			f, err := os.OpenFile(v, os.O_WRONLY|syscall.O_NOCTTY, 0)
			must(err)
			os.Stderr = f
		default:
			m.Set(k, v)
		}
	}
	var err error
	m.Stderr, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a panic's stack is not the plugin's
	must(err)
	m.ErrorLog = log.New(m.Stderr, "", 0)
	if _, err := os.Stat("fail"); err == nil && m.Predecessor() != 0 {
		os.Exit(7)
	}
	m.Use(debug.New(o), clustertest.Events) // what is told has been shown
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	must(err)
	m.On(cluster.Hooks{
		Listening: func() { clustertest.Tell("addr %v", l.Addr()) },
		Message:   func(w *cluster.Worker, name string, data json.RawMessage) { clustertest.Tell("message") },
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) {
		go panic("boom\x1b[31m\nsecond line")
	})
	mux.HandleFunc("/send", func(w http.ResponseWriter, r *http.Request) { must(m.Send("hello", 1)) })
	m.Server = &http.Server{Handler: mux}
	must(m.ListenAndServe(l))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// get requests path, and ignores what becomes of it.
func get(addr, path string) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: clustertest.Patience}
	if r, err := c.Get("http://" + addr + path); err == nil {
		r.Body.Close()
	}
}

func compare(t *testing.T, what, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func TestStartAndStop(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"default", "level=debug"} {
		p := clustertest.Start(t, "server", arg)
		p.Wait("listening")
		p.Signal(syscall.SIGINT)
		p.End(0)
		compare(t, arg, p.Log(), `
   info - master started
   info - worker 0 spawned
   info - worker 0 connected
   info - listening for connections
   info - shutting down
warning - kill(SIGKILL)
warning - worker 0 died: signal: killed
   info - shutdown complete
`)
	}
}

// A crash, a restart that fails, and one that doesn't.
func TestEvents(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "server", "writer")
	addr := p.Wait("addr")[0]
	get(addr, "/send")
	p.Wait("message")
	get(addr, "/panic")
	p.Wait("ready")
	p.Wait("ready")
	fail := p.Dir + "/fail"
	if err := os.WriteFile(fail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGUSR2)
	p.Wait("failed")
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGUSR2)
	next := p.WaitPid("restarted")
	p.Signal(syscall.SIGUSR1)
	p.WaitLog(fmt.Sprintf("%d:   info - reopen requested\n", next))
	p.Quit()
	of := func(pid int) string {
		var b strings.Builder
		for line := range strings.Lines(p.Log()) {
			if line, ok := strings.CutPrefix(line, fmt.Sprintf("%d:", pid)); ok {
				b.WriteString(line)
			}
		}
		return b.String()
	}
	compare(t, "the first master", of(p.Pid()), `
   info - master started
   info - worker 0 spawned
   info - worker 0 connected
   info - listening for connections
  debug - worker 0 message "hello"
  error - worker 0 uncaught exception panic: boom [31m  second line
warning - worker 0 died: exit status 2
   info - worker 0 spawned
   info - worker 0 connected
   info - restart requested
  error - restart failed: cluster: the new master ended before it was ready: exit status 7
   info - restart requested
   info - shutting down
warning - kill(SIGQUIT)
   info - worker 0 died: exit status 0
   info - shutdown complete
`)
	compare(t, "the second master", of(next), `
   info - master started
   info - worker 0 spawned
   info - worker 0 connected
   info - listening for connections
   info - restart complete
   info - reopen requested
   info - shutting down
warning - kill(SIGQUIT)
   info - worker 0 died: exit status 0
   info - shutdown complete
`)
}

func TestLevel(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "server", "level=warn")
	p.Wait("listening")
	p.Signal(syscall.SIGINT)
	p.End(0)
	compare(t, "level=warn", p.Log(), `
warning - kill(SIGKILL)
warning - worker 0 died: signal: killed
`)
}

func TestInline(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "server", "inline=true")
	p.Wait("listening")
	p.Signal(syscall.SIGINT)
	p.End(0)
	compare(t, "inline", p.Log(), `
   info - master started
   info - listening for connections
   info - shutdown complete
`)
}
