//go:build linux

package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Pid: 7\r\n\r\nok"

// testLoad runs a load in this process, against handle: that gets every
// connection and the number of it.
func testLoad(t *testing.T, l load, handle func(c net.Conn, r *bufio.Reader, n int)) *result {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	defer served.Wait()
	defer ln.Close()
	served.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				handle(c, bufio.NewReader(c), n)
			})
		}
	})
	l.Addr, l.Want = ln.Addr().String(), "ok"
	if l.Duration == 0 {
		l.Duration = 100 * time.Millisecond
	}
	c, err := newClient(l, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c.run()
	return &c.result
}

// serveAll answers each request with text.
func serveAll(c net.Conn, r *bufio.Reader, text string) {
	for {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		if _, err := c.Write([]byte(text)); err != nil {
			return
		}
	}
}

// The generator notices what is wrong with an answer, and goes on.
func TestLoadFailures(t *testing.T) {
	for _, test := range []struct{ answer, want string }{
		{"", "closed without an answer"},
		{"HTTP/1.1 200 OK\r\nContent-Le", "closed within the answer"},
		{good[:len(good)-1], "closed within the answer"},
		{strings.Replace(good, "ok", "no", 1), "the wrong body"},
		{strings.Replace(good, "200", "503", 1), "status 503"},
		{"220 smtp.example.com ESMTP\r\n\r\n", "no HTTP"},
		{strings.Replace(good, "Content-Length: 2\r\n", "", 1), "no Content-Length"},
		{strings.Replace(good, ": 2", ": two", 1), "a bad Content-Length"},
		{good + good, "more than one answer"},
		{strings.Replace(good, ": 2", ": 2000", 1) + strings.Repeat("k", 1998), "too long an answer"},
	} {
		for _, closes := range []bool{false, true} {
			r := testLoad(t, load{Conns: 2, Close: closes}, func(c net.Conn, r *bufio.Reader, n int) {
				if n%2 == 1 { // every other connection: a good one, for once
					http.ReadRequest(r)
					c.Write([]byte(strings.Replace(good, "OK", "OK\r\nConnection: close", 1)))
					return
				}
				http.ReadRequest(r)
				c.Write([]byte(test.answer))
			})
			if len(r.Failed) != 1 || r.Failed[test.want] == 0 || r.failed() != len(r.Failures) || len(r.Samples) == 0 {
				t.Errorf("Close %v: an answer %q: %v, %d times, and %d answers; want %q, and answers",
					closes, test.answer, r.Failed, len(r.Failures), len(r.Samples), test.want)
			}
		}
	}
}

// One that never answers is noticed, too, as is nobody being there.
func TestLoadNoAnswer(t *testing.T) {
	r := testLoad(t, load{Conns: 3, Patience: 100 * time.Millisecond}, func(c net.Conn, r *bufio.Reader, n int) {
		http.ReadRequest(r)
		http.ReadRequest(r) // until the client gives up
	})
	if r.Failed["no answer in time"] < 3 {
		t.Errorf("silence: %v", r.Failed)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	c, err := newClient(load{Addr: ln.Addr().String(), Conns: 1, Duration: 20 * time.Millisecond}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if c.run(); c.failed() == 0 || !strings.Contains(fmt.Sprint(c.Failed), "refused") {
		t.Errorf("nobody there: %v", c.Failed)
	}
}

// Connections are kept, or not, and those that the server ends are counted.
func TestLoadConnections(t *testing.T) {
	r := testLoad(t, load{Conns: 4, Ramp: 1}, func(c net.Conn, r *bufio.Reader, n int) { serveAll(c, r, good) })
	if a := r.Pids[7]; r.failed() > 0 || r.Closed != 0 || a == nil || a.Conns != 4 || a.Requests != len(r.Samples) || a.Requests < 40 {
		t.Errorf("kept: %v failed, %d closed, %+v of %d", r.Failed, r.Closed, a, len(r.Samples))
	}
	r = testLoad(t, load{Conns: 4, Close: true}, func(c net.Conn, r *bufio.Reader, n int) { serveAll(c, r, good) })
	if a := r.Pids[7]; r.failed() > 0 || r.Closed != 0 || a == nil || a.Conns != len(r.Samples) || a.Conns < 40 {
		t.Errorf("one for each request: %v failed, %d closed, %+v of %d", r.Failed, r.Closed, a, len(r.Samples))
	}
	polite := strings.Replace(good, "OK", "OK\r\nconnection: close", 1)
	r = testLoad(t, load{Conns: 4}, func(c net.Conn, r *bufio.Reader, n int) { serveAll(c, r, polite) })
	if r.failed() > 0 || r.Closed != len(r.Samples) || r.Closed == 0 {
		t.Errorf("told to close: %v failed, %d closed of %d", r.Failed, r.Closed, len(r.Samples))
	}
	// At a fixed rate a connection is idle when the server closes it.
	r = testLoad(t, load{Conns: 1, Rate: 20, Duration: 500 * time.Millisecond}, func(c net.Conn, r *bufio.Reader, n int) {
		http.ReadRequest(r)
		c.Write([]byte(good))
	})
	if r.failed() > 0 || r.Closed < 9 || len(r.Samples) != 10 {
		t.Errorf("closed when idle: %v failed, %d closed of %d", r.Failed, r.Closed, len(r.Samples))
	}
}

// At a fixed rate requests are asked whether the server keeps up or not, and
// the time for which they could not be asked counts.
func TestLoadRate(t *testing.T) {
	const stall = 200 * time.Millisecond
	r := testLoad(t, load{Conns: 2, Rate: 500, Duration: 400 * time.Millisecond}, func(c net.Conn, r *bufio.Reader, n int) {
		http.ReadRequest(r)
		time.Sleep(stall)
		c.Write([]byte(good))
		serveAll(c, r, good)
	})
	waited := 0
	for _, s := range r.Samples {
		if s.Took > int64(stall/4) {
			waited++
		}
	}
	if r.failed() > 0 || len(r.Samples) != 200 || waited < 60 {
		t.Errorf("%v failed, %d answers, of which %d had to wait; want 200 and some 75", r.Failed, len(r.Samples), waited)
	}
	// One that can't be asked at all has failed.
	r = testLoad(t, load{Conns: 1, Rate: 100, Patience: 200 * time.Millisecond}, func(c net.Conn, r *bufio.Reader, n int) {
		http.ReadRequest(r)
		http.ReadRequest(r)
	})
	if r.failed() != 10 {
		t.Errorf("%v failed; want all 10", r.Failed)
	}
}
