//go:build unix

package handoff_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
	"github.com/gocluster/cluster/internal/clustertest"
)

// patience is how long a test waits for what should happen at once.
const patience = clustertest.Patience

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){
		"cluster": serve,
		"main":    func() { clustertest.Tell("main") },
		"clients": holdConns,
	})
}

// serve is the program under test: a cluster that tells on standard output
// what happens to it. Its argument is one of the names below, and options as
// in a URL.
func serve() {
	u, err := url.Parse(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	option := func(name string) string { return u.Query().Get(name) }
	duration := func(name string) time.Duration {
		d, _ := time.ParseDuration(option(name))
		return d
	}
	tell := clustertest.Tell

	network, address := "tcp", "127.0.0.1:0"
	if option("network") == "unix" {
		network, address = "unix", "app.sock"
	}
	l, err := cluster.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	hs := &http.Server{
		Handler:           http.HandlerFunc(answer),
		ReadTimeout:       duration("read"),
		ReadHeaderTimeout: duration("header"),
		WriteTimeout:      duration("write"),
		IdleTimeout:       duration("idle"),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			before, _ := states.Load(c)
			list, _ := before.(string)
			states.Store(c, strings.TrimSpace(list+" "+state.String()))
			if state == http.StateClosed {
				states.Delete(c)
			}
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	m := &cluster.Master{Workers: 2, Timeout: 20 * time.Second, Server: handoff.Server(hs)}
	if n, err := strconv.Atoi(option("workers")); err == nil {
		m.Workers = n
	}
	if d := duration("timeout"); d > 0 {
		m.Timeout = d
	}
	switch u.Path {
	case "handoff":
	case "plain":
		hs.ConnContext, hs.ConnState = nil, nil
		m.Server = hs
	case "h2c":
		hs.Protocols = new(http.Protocols)
		hs.Protocols.SetHTTP1(true)
		hs.Protocols.SetUnencryptedHTTP2(true)
	case "tls":
		ts := httptest.NewTLSServer(nil)
		config := ts.TLS.Clone()
		ts.Close()
		config.NextProtos = []string{"h2", "http/1.1"}
		l = tls.NewListener(l, config)
	case "narrow":
		m.Server = narrow{m.Server}
	default:
		log.Fatalf("no program %q", os.Args[1])
	}
	if m.IsMaster() {
		tell("addr %s", l.Addr())
	}
	m.On(cluster.Hooks{
		Listening:       func() { tell("listening %d", os.Getpid()) },
		Restart:         func(cluster.Values) { tell("restarted %d", os.Getpid()) },
		RestartFailed:   func(err error) { tell("failed %v", err) },
		WorkerConnected: func(w *cluster.Worker) { tell("worker %d", w.Pid) },
		WorkerWaiting:   func(w *cluster.Worker, n int) { tell("waiting %d %d", w.Pid, n) },
		WorkerKilled:    func(w *cluster.Worker) { tell("killed %d %v", w.Pid, w.ProcessState) },
		WorkerException: func(w *cluster.Worker, err error) { tell("exception %d %v", w.Pid, err) },
		WorkerTimeout:   func(w *cluster.Worker, d time.Duration) { tell("timeout %d %v", w.Pid, d) },
	})
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

type connKey struct{}

var states sync.Map // by net.Conn

// answer tells how much it has got, and from whom the answer is.
func answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/echo" {
		echo(w)
		return
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("files")); err == nil {
		setFiles(n)
	}
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
		time.Sleep(d)
	}
	w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
	w.Header().Set("Remote", r.RemoteAddr)
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		list, _ := states.Load(c)
		w.Header().Set("States", fmt.Sprint(list))
	}
	fmt.Fprintf(w, "%s %d", r.URL.Query().Get("id"), n)
}

// echo hijacks the connection, and sends all lines back.
func echo(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go func() {
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nPid: %d\r\n\r\n", os.Getpid())
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(c, line)
		}
	}()
}

// A program is a running cluster.
type program struct {
	*clustertest.Program
	network, addr string
	master        *os.Process
}

// start starts a cluster and waits until it serves.
func start(t testing.TB, spec string) *program {
	t.Helper()
	p := &program{Program: clustertest.Command(t, "cluster", spec), network: "tcp"}
	p.Forbid("failed", "exception", "timeout")
	p.Start()
	p.addr = p.wait("addr")
	if strings.Contains(spec, "network=unix") {
		p.network, p.addr = "unix", filepath.Join(p.Dir, p.addr)
	}
	p.listening()
	t.Cleanup(p.stop)
	return p
}

// wait waits for the next line that begins with word, and returns its rest.
func (p *program) wait(word string) string {
	p.T.Helper()
	return strings.Join(p.Wait(word), " ")
}

// upgrade replaces the whole cluster. It returns when the new one serves; the
// old one may still be there.
func (p *program) upgrade() {
	p.T.Helper()
	p.Forget("worker", "listening", "killed")
	p.Signal(syscall.SIGUSR2)
	p.listening()
}

// listening waits for a master that says that it serves.
func (p *program) listening() {
	p.T.Helper()
	var err error
	if p.master, err = os.FindProcess(p.WaitPid("listening")); err != nil {
		p.T.Fatal(err)
	}
}

// roll replaces the workers. It returns when the last new one is ready.
func (p *program) roll(workers int) {
	p.T.Helper()
	p.Forget("worker", "waiting", "killed")
	p.master.Signal(syscall.SIGHUP) // while it takes over, the first process would still send it to the old one
	for range workers {
		p.wait("worker")
	}
}

// stop ends the cluster.
func (p *program) stop() {
	if !p.Ended() {
		p.Quit("narrow")
	}
	if strings.Contains(p.Log(), "panic") {
		p.T.Errorf("the cluster has written\n%s", p.Log())
	}
}
