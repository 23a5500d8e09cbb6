package stats

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/control"
)

// Serve returns a plugin that serves what Read returns over HTTP, in the
// master: at "/" as a page that keeps itself up to date, at "/stats.json" as
// JSON and at "/metrics" for Prometheus. It counts as New does.
//
// addr is "host:port", ":port", "port", or the path of a unix socket, perhaps
// after "unix:". Without a host it is all interfaces: everybody who can
// connect can read what Stats has, and do no more. A unix socket is for the
// master's user alone. A new master takes the address over.
//
// Another address than one that can be listened on makes the start fail.
// Requests are given ten seconds, and 256 connections are served at a time.
//
// The metrics are
//
//	cluster_workers{state}                          gauge
//	cluster_workers_spawned_total                   counter
//	cluster_worker_deaths_total                     counter
//	cluster_restarts_total                          counter
//	cluster_connections_active{worker}              gauge
//	cluster_connections_total{worker}               counter
//	cluster_requests_total{worker}                  counter
//	cluster_worker_resident_memory_bytes{worker}    gauge
//	cluster_start_time_seconds                      gauge, of the first master
//	process_start_time_seconds                      gauge, of this master
//	process_resident_memory_bytes                   gauge, of this master
//
// where worker is the id. What the workers with one id have counted, one
// after the other, is one counter, which goes on after a restart: the sum of
// all is the total.
func Serve(addr string) cluster.Plugin {
	return func(m *cluster.Master) error {
		of(m)
		if !m.IsMaster() {
			return nil
		}
		hs := &http.Server{
			Handler:           handler(m),
			ReadHeaderTimeout: 3 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      10 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          m.ErrorLog,
		}
		m.On(cluster.Hooks{
			Closing: func() { hs.SetKeepAlivesEnabled(false) }, // who asks again asks the new master
			Close: func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
				defer cancel()
				if hs.Shutdown(ctx) != nil {
					hs.Close()
				}
			},
		})
		s := &control.Server{
			Name:   "stats",
			Addr:   addr,
			Any:    true,
			Handle: func(_ context.Context, c net.Conn) { serve(hs, c) },
		}
		return s.Attach(m)
	}
}

// serve serves one connection, and returns when it is closed.
func serve(hs *http.Server, c net.Conn) {
	conn := &closing{Conn: c, closed: make(chan struct{})}
	l := &single{conn: conn, closed: make(chan struct{})}
	hs.Serve(l)
	if l.taken {
		<-conn.closed // with the server's Shutdown it lasts longer than the listener
	}
}

// A single is a listener with one connection: Accept returns it, and then
// waits until one of both is closed.
type single struct {
	conn   *closing
	taken  bool
	once   sync.Once
	closed chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	select {
	case <-l.closed:
	case <-l.conn.closed:
	}
	return nil, net.ErrClosed
}

func (l *single) Addr() net.Addr { return l.conn.LocalAddr() }

func (l *single) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// A closing is a connection that tells when it is closed.
type closing struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

//go:embed page.html
var page []byte

// handler returns the handler of Serve.
func handler(m *cluster.Master) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy",
			"default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'")
		answer(w, "text/html; charset=utf-8", page)
	})
	mux.HandleFunc("GET /stats.json", func(w http.ResponseWriter, r *http.Request) {
		b, err := json.MarshalIndent(Read(m), "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, "application/json", append(b, '\n'))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		writeMetrics(&b, m)
		answer(w, "text/plain; version=0.0.4; charset=utf-8", b.Bytes())
	})
	return mux
}

func answer(w http.ResponseWriter, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.Write(body)
}
