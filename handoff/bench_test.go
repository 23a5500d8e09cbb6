//go:build unix

package handoff_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
	"github.com/gocluster/cluster/internal/clustertest"
)

// A side is one of two servers that are compared, turn by turn.
type side struct {
	addr     string
	conns    []net.Conn
	took     []time.Duration
	mallocs  uint64
	requests int
}

const response = "HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Length: 5\r\n\r\nhello"

func newSide(b *testing.B, wrap func(*http.Server) cluster.Server) *side {
	hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header()["Content-Length"] = length
		w.Write(hello)
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := wrap(hs)
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	b.Cleanup(func() {
		s.Close()
		<-done
	})
	return &side{addr: l.Addr().String()}
}

var (
	length = []string{"5"}
	hello  = []byte("hello")
)

// compare lets both servers do rounds of requests in turn, reports how fast
// the second is compared with the first (the median of all rounds), and how
// many more allocations a request takes.
func compare(b *testing.B, round func(s *side) (requests int)) {
	plain := newSide(b, func(hs *http.Server) cluster.Server { return hs })
	ours := newSide(b, handoff.Server)
	sides := []*side{plain, ours}
	for _, s := range sides {
		round(s)
	}
	for b.Loop() {
		for _, s := range sides {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begun := time.Now()
			s.requests += round(s)
			s.took = append(s.took, time.Since(begun))
			runtime.ReadMemStats(&after)
			s.mallocs += after.Mallocs - before.Mallocs
		}
		slices.Reverse(sides)
	}
	var ratios []float64
	for i := range plain.took {
		ratios = append(ratios, float64(plain.took[i])/float64(ours.took[i]))
	}
	slices.Sort(ratios)
	more := float64(ours.mallocs)/float64(ours.requests) - float64(plain.mallocs)/float64(plain.requests)
	b.ReportMetric(ratios[len(ratios)/2], "throughput/plain")
	b.ReportMetric(more, "more-allocs/request")
	b.ReportMetric(float64(slices.Min(ours.took).Nanoseconds())/float64(ours.requests/len(ours.took)), "ns/request")
}

// Requests over connections that are kept open.
func BenchmarkKeepAlive(b *testing.B) {
	const clients, requests = 8, 250
	compare(b, func(s *side) int {
		for len(s.conns) < clients {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { c.Close() })
			s.conns = append(s.conns, c)
		}
		done := make(chan error, clients)
		for _, c := range s.conns {
			go func() {
				buf := make([]byte, len(response))
				req := []byte(request)
				var err error
				for i := 0; i < requests && err == nil; i++ {
					if _, err = c.Write(req); err == nil {
						_, err = io.ReadFull(c, buf)
					}
				}
				done <- err
			}()
		}
		for range clients {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		return clients * requests
	})
}

// A connection for every request.
func BenchmarkAccept(b *testing.B) {
	compare(b, func(s *side) int {
		const requests = 200
		for range requests {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				b.Fatal(err)
			}
			io.WriteString(c, request)
			if _, err := io.CopyN(io.Discard, c, int64(len(response))); err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
		return requests
	})
}

// How long it takes from the order until the new generation serves, compared
// with twice the time that the program takes to reach its main.
func BenchmarkRestart(b *testing.B) {
	p := start(b, "handoff")
	var main, ready []time.Duration
	for b.Loop() {
		cmd := clustertest.Command(b, "main").Cmd
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		io.ReadFull(out, make([]byte, 1))
		main = append(main, time.Since(begun))
		cmd.Wait()

		begun = time.Now()
		p.upgrade()
		ready = append(ready, time.Since(begun))
		p.wait("restarted")
	}
	b.ReportMetric(float64(median(main).Microseconds())/1000, "main-ms")
	b.ReportMetric(float64(median(ready).Microseconds())/1000, "ready-ms")
	b.ReportMetric(float64(median(ready))/float64(2*median(main)), "ready/2main")
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// The 99th percentile of quick requests while restarts are under way, every
// 400 ms by default, compared with that without them. One round is ten
// seconds of each.
func BenchmarkLoad(b *testing.B) {
	p := start(b, "handoff")
	var steady, restarting []time.Duration
	l := p.load("", func(l *load) {
		for b.Loop() {
			for range 5 {
				l.p99()
				time.Sleep(2 * time.Second)
				steady = append(steady, l.p99())
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				for t := time.NewTicker(*every * 2); ctx.Err() == nil; <-t.C {
					p.upgrade()
				}
				cancel()
				restarting = append(restarting, l.p99())
			}
		}
	})
	b.ReportMetric(float64(median(steady).Microseconds())/1000, "p99-steady-ms")
	b.ReportMetric(float64(median(restarting).Microseconds())/1000, "p99-restarting-ms")
	b.ReportMetric(float64(median(restarting))/float64(median(steady)), "restarting/steady")
	if n := l.closed.Load(); n > 0 {
		b.Errorf("%d connections were closed by the server", n)
	}
}
