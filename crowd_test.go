//go:build linux && !cluster_nofork

package cluster_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/handoff"
)

// A crowd makes requests, each of which has an answer of its own, and keeps
// account of them. No request is ever made twice.
//
// Which process has a connection is written in the journal, by the workers,
// so that it is known whose end is to blame for a request that has failed.
type crowd struct {
	t         testing.TB
	journal   string
	stop      chan struct{}
	wg        sync.WaitGroup
	customers []*customer
	answered  atomic.Int64

	mu       sync.Mutex // guards the following
	failures []failure
}

// A failure is a request that was not answered as it should have been.
type failure struct {
	id       string
	at       time.Time
	addr     string    // the client's end of the connection
	dialed   time.Time // when that was made
	pid      int       // whose answer had begun to come, or 0
	err      error
	wrong    bool // an answer, but not the right one
	uncalled bool // there was no connection to make it on
}

func (f failure) String() string {
	return fmt.Sprintf("request %s from %s to process %d: %v", f.id, f.addr, f.pid, f.err)
}

// A customer makes one request after the other.
type customer struct {
	*crowd
	name             string
	network, address string
	rng              *rand.Rand
	rounds           atomic.Int64 // requests that are over

	conn   net.Conn // or nil
	r      *bufio.Reader
	addr   string
	dialed time.Time
	n      int
}

// newCrowd returns a crowd for a fleet of the helper "chaos", which listens
// on TCP and on a unix socket. Of its customers so many are loyal to their
// connections.
func newCrowd(f *fleet, rng *rand.Rand, loyal int) *crowd {
	c := &crowd{t: f.t, journal: filepath.Join(f.ctl, "journal"), stop: make(chan struct{})}
	if err := os.WriteFile(c.journal, nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
	add := func(name string, n int, live func(*customer)) {
		network, address := f.addr(n)
		cu := &customer{
			crowd: c, name: fmt.Sprintf("%s%d", name, len(c.customers)), network: network, address: address,
			rng: rand.New(rand.NewPCG(rng.Uint64(), 0)),
		}
		c.customers = append(c.customers, cu)
		c.wg.Go(func() {
			defer cu.hangUp()
			for {
				select {
				case <-c.stop:
					return
				case <-time.After(time.Duration(cu.rng.IntN(4)) * time.Millisecond):
				}
				live(cu)
				cu.rounds.Add(1)
			}
		})
	}
	for i := range loyal {
		add("loyal", i%3/2, func(cu *customer) { cu.request(cu.rng.IntN(20_000), false, cu.rng.IntN(50) == 0) })
	}
	for i := range 3 {
		add("single", i/2, func(cu *customer) { cu.request(cu.rng.IntN(20_000), false, true) })
	}
	for i := range 2 {
		add("slow", 0, func(cu *customer) { cu.request(1<<20, true, i == 0 || loyal == 0) })
	}
	for i := range 2 {
		add("fickle", i, (*customer).vanish)
	}
	f.t.Cleanup(c.end)
	return c
}

// end has all finish what they are doing.
func (c *crowd) end() {
	if !isClosed(c.stop) {
		close(c.stop)
	}
	c.wg.Wait()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// fence waits until all requests are over that have been begun by now.
func (c *crowd) fence() {
	c.t.Helper()
	for _, cu := range c.customers {
		n := cu.rounds.Load()
		if !eventually(patience, func() bool { return cu.rounds.Load() > n || isClosed(c.stop) }) {
			c.t.Fatalf("timeout waiting for a request of %s to %s", cu.name, cu.address)
		}
	}
}

var callers atomic.Int64

// call connects, if there is no connection. The client's end of one to a unix
// socket has a name, too.
func (cu *customer) call() error {
	if cu.conn != nil {
		return nil
	}
	d := net.Dialer{Timeout: patience}
	if cu.network == "unix" {
		d.LocalAddr = &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@chaos.%d.%d", os.Getpid(), callers.Add(1))}
	}
	cu.dialed = time.Now()
	c, err := d.Dial(cu.network, cu.address)
	if err != nil {
		return err
	}
	cu.conn, cu.r, cu.addr = c, bufio.NewReader(c), c.LocalAddr().String()
	return nil
}

func (cu *customer) hangUp() {
	if cu.conn != nil {
		cu.conn.Close()
		cu.conn = nil
	}
}

// request makes a request for that many bytes. With slowly it reads them so
// that their writer has to wait; with last the
// connection is closed afterwards.
func (cu *customer) request(size int, slowly, last bool) {
	cu.n++
	fail := failure{id: fmt.Sprintf("%s.%d", cu.name, cu.n)}
	fail.err = cu.call()
	if fail.dialed = cu.dialed; fail.err != nil {
		fail.uncalled = true
	} else {
		fail.addr = cu.addr
		fail.pid, last, fail.wrong, fail.err = cu.roundTrip(fail.id, size, slowly, last)
	}
	if fail.err == nil {
		cu.answered.Add(1)
	} else {
		fail.at = time.Now()
		cu.mu.Lock()
		cu.failures = append(cu.failures, fail)
		cu.mu.Unlock()
	}
	if last || fail.err != nil {
		cu.hangUp()
	}
}

func (cu *customer) roundTrip(id string, size int, slowly, last bool) (pid int, closed, wrong bool, err error) {
	cu.conn.SetDeadline(time.Now().Add(patience))
	if slowly {
		if c, ok := cu.conn.(*net.TCPConn); ok {
			c.SetReadBuffer(16 << 10)
		}
	}
	if _, err = cu.conn.Write(cu.message(id, size, last)); err != nil {
		return 0, true, false, err
	}
	resp, err := http.ReadResponse(cu.r, nil)
	if err != nil {
		return 0, true, false, err
	}
	pid, _ = strconv.Atoi(resp.Header.Get("Pid"))
	var body bytes.Buffer
	for err == nil {
		_, err = io.CopyN(&body, resp.Body, 64<<10)
		if slowly {
			time.Sleep(10 * time.Millisecond)
		}
	}
	switch {
	case err != io.EOF:
		return pid, true, false, err
	case resp.StatusCode != 200:
		return pid, true, true, fmt.Errorf("%s: %.100s", resp.Status, &body)
	case !bytes.Equal(body.Bytes(), answer(id, size)):
		return pid, true, true, fmt.Errorf("%d bytes that begin with %.20q, want %d", body.Len(), &body, size)
	}
	return pid, last || resp.Close, false, nil
}

// message is a request as it goes over the wire, some with a body.
func (cu *customer) message(id string, size int, last bool) []byte {
	method, header, body := "GET", "", []byte(nil)
	if cu.rng.IntN(4) == 0 {
		body = answer(id, cu.rng.IntN(10_000))
		method, header = "POST", fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	if last {
		header += "Connection: close\r\n"
	}
	return append(fmt.Appendf(nil, "%s /work?id=%s&size=%d&ms=%d HTTP/1.1\r\nHost: cluster\r\n%s\r\n",
		method, id, size, max(0, cu.rng.IntN(40)-20), header), body...)
}

// vanish leaves in the middle of a request, or of its answer.
func (cu *customer) vanish() {
	if cu.call() != nil {
		return
	}
	defer cu.hangUp()
	cu.conn.SetDeadline(time.Now().Add(patience))
	b := cu.message("nobody", 100_000, false)
	if cu.rng.IntN(2) == 0 {
		b = b[:cu.rng.IntN(len(b))]
		cu.conn.Write(b)
	} else if _, err := cu.conn.Write(b); err == nil {
		io.CopyN(io.Discard, cu.conn, cu.rng.Int64N(50_000))
	}
	if c, ok := cu.conn.(*net.TCPConn); ok && cu.rng.IntN(2) == 0 {
		c.SetLinger(0) // a reset
	}
}

// answer is what belongs to the request with the id.
func answer(id string, size int) []byte {
	return bytes.Repeat([]byte(id+" "), size/len(id)+1)[:size]
}

// An entry is a line of the journal: when a process got a connection, or was
// done with it.
type entry struct {
	at    time.Time
	pid   int
	state string
	addr  string
}

// entries returns what the journal says of the connection of a request that
// has failed, or, without an address, of all.
func (c *crowd) entries(f failure) (list []entry) {
	b, err := os.ReadFile(c.journal)
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f.addr != "" && !strings.HasSuffix(line, " "+f.addr+"\n") {
			continue
		}
		var e entry
		var at int64
		if _, err := fmt.Sscan(line, &at, &e.pid, &e.state, &e.addr); err != nil {
			c.t.Fatalf("%v in the journal: %q", err, line)
		}
		if e.at = time.Unix(0, at); !e.at.Before(f.dialed) { // else it was another one of that name
			list = append(list, e)
		}
	}
	return list
}

// owner returns the process that had the connection in the end. It is 0 if
// none had it, as far as they could tell.
func (c *crowd) owner(f failure) int {
	var owners []int
	for _, e := range c.entries(f) {
		if e.state == "new" {
			owners = append(owners, e.pid)
		} else {
			owners = slices.DeleteFunc(owners, func(pid int) bool { return pid == e.pid })
		}
	}
	if len(owners) == 0 {
		return 0
	}
	return owners[len(owners)-1]
}

// take returns the failures up to now, and forgets them.
func (c *crowd) take() []failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.failures
	c.failures = nil
	return list
}

var leaked [][]byte

// The program that a crowd is for.
var _ = helper("chaos", func() {
	mux := fleetHandler()
	mux.HandleFunc("/work", func(w http.ResponseWriter, r *http.Request) {
		id := r.FormValue("id")
		size, _ := strconv.Atoi(r.FormValue("size"))
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if !bytes.Equal(b, answer(id, len(b))) {
			http.Error(w, "not the body of this request", http.StatusBadRequest)
			return
		}
		begin(w, size)
		time.Sleep(time.Duration(ms) * time.Millisecond)
		w.Write(answer(id, size))
	})
	mux.HandleFunc("/leak", func(w http.ResponseWriter, r *http.Request) {
		begin(w, 1)
		var err error
		if group := r.FormValue("group"); group != "" {
			err = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
		} else {
			err = limitMemory(64 << 20)
		}
		if err != nil {
			fatal(err)
		}
		for {
			leaked = append(leaked, bytes.Repeat([]byte("x"), 1<<20))
		}
	})
	server := &http.Server{Handler: mux}
	if cluster.IsWorker() {
		journal, err := os.OpenFile(filepath.Join(os.Getenv(controlEnv), "journal"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			fatal(err)
		}
		server.ConnState = func(c net.Conn, state http.ConnState) {
			if state == http.StateNew || state == http.StateClosed {
				fmt.Fprintf(journal, "%d %d %v %v\n", time.Now().UnixNano(), os.Getpid(), state, c.RemoteAddr())
			}
		}
	}
	runFleet(handoff.Server(server))
})

// begin tells the client who answers.
func begin(w http.ResponseWriter, size int) {
	w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
	w.Header().Set("Content-Length", strconv.Itoa(size))
	w.(http.Flusher).Flush()
}

// limitMemory lets this process have so much more.
func limitMemory(more uint64) error {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	pages, _, _ := strings.Cut(string(b), " ")
	n, err := strconv.ParseUint(pages, 10, 64)
	if err != nil {
		return err
	}
	limit := n*uint64(os.Getpagesize()) + more
	return syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: limit, Max: limit})
}
