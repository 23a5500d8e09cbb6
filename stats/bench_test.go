//go:build unix

package stats_test

import (
	"io"
	"net"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster/stats"
)

// What counting a request costs by itself, with all CPUs at it.
func BenchmarkHandler(b *testing.B) {
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, bench := range []struct {
		name string
		h    http.Handler
	}{
		{"plain", nothing},
		{"counted", stats.Handler(nothing)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					bench.h.ServeHTTP(nil, nil)
				}
			})
		})
	}
}

// How fast a server that counts is compared with one that doesn't, for quick
// requests over connections that are kept open. Both take turns. The ratios are
// the medians of all rounds: throughput by the clock, and the time that the
// CPUs take for server and clients, which others on the machine disturb less.
func BenchmarkKeepAlive(b *testing.B) {
	const clients, requests = 8, 50
	hello, length := []byte("hello"), []string{"5"}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header()["Content-Length"] = length
		w.Write(hello)
	})
	type cost struct{ clock, cpu time.Duration }
	round := func(h http.Handler) func() cost {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		hs := &http.Server{Handler: h}
		served := make(chan error)
		go func() { served <- hs.Serve(l) }()
		var conns []net.Conn
		for range clients {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, c)
		}
		b.Cleanup(func() {
			for _, c := range conns {
				c.Close()
			}
			hs.Close()
			<-served
		})
		return func() cost {
			begun, used := time.Now(), cpuTime(b)
			done := make(chan error, clients)
			for _, c := range conns {
				go func() {
					request := []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					response := make([]byte, len("HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Length: 5\r\n\r\nhello"))
					var err error
					for i := 0; i < requests && err == nil; i++ {
						if _, err = c.Write(request); err == nil {
							_, err = io.ReadFull(c, response)
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
			return cost{time.Since(begun), cpuTime(b) - used}
		}
	}
	plain, counted := round(handler), round(stats.Handler(handler))
	plain()
	counted()
	var clock, cpu, took []float64
	for i := 0; b.Loop(); i++ {
		var p, c cost
		if i%2 == 0 {
			p, c = plain(), counted()
		} else {
			c, p = counted(), plain()
		}
		clock = append(clock, float64(p.clock)/float64(c.clock))
		cpu = append(cpu, float64(c.cpu)/float64(p.cpu))
		took = append(took, float64(c.clock)/(clients*requests))
	}
	b.ReportMetric(median(clock), "throughput/plain")
	b.ReportMetric(median(cpu), "cpu/plain")
	b.ReportMetric(slices.Min(took), "ns/request")
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// cpuTime returns the time that the CPUs have spent on this process.
func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
