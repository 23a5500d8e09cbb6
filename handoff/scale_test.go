//go:build unix

package handoff_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster/internal/clustertest"
)

var (
	scale      = flag.Bool("scale", false, "TestScale with up to 256 workers and 15,000 connections, which takes minutes")
	scaleSizes = flag.String("scale.workers", "4,16,64,256", "the numbers of workers of TestScale with -scale")
)

// clientConns is how many connections one client process holds: there is a
// limit to the descriptors of a process.
const clientConns = 5000

// A cluster of many workers and open connections starts, serves, restarts and
// stops; what it takes is logged.
func TestScale(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	sizes, conns := []int{16}, 500
	if *scale {
		sizes, conns = nil, 15000
		for _, size := range strings.Split(*scaleSizes, ",") {
			n, err := strconv.Atoi(size)
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, n)
		}
	}
	t.Logf("%d connections; memory (resident) and processor time (of one core) are the master's", conns)
	t.Logf("%7s | %9s %9s %9s %9s | %9s %9s %9s %9s | %7s %7s", "workers", "start", "restart", "old gone", "stop",
		"start CPU", "rest. CPU", "old's CPU", "idle CPU", "MiB", "new MiB")
	for _, n := range sizes {
		begun := time.Now()
		p := start(t, fmt.Sprintf("handoff?workers=%d&timeout=1m", n))
		started := time.Since(begun)
		startCPU := cpu(t, p.Pid())
		cs := hold(t, p, conns)
		before, since := cpu(t, p.Pid()), time.Now()
		time.Sleep(2 * time.Second) // to see what it does when nothing happens
		idle := float64(cpu(t, p.Pid())-before) / float64(time.Since(since))
		rss := residentMiB(t, p.Pid())

		old := cpu(t, p.Pid())
		begun = time.Now()
		p.upgrade()
		restarted := time.Since(begun)
		p.wait("restarted")
		gone := time.Since(begun)
		old, restartCPU := cpu(t, p.Pid())-old, cpu(t, p.master.Pid) // the first master stands in
		newRSS := residentMiB(t, p.master.Pid)
		for _, c := range cs {
			c.ask(t)
		}
		begun = time.Now()
		p.Quit()
		stopped := time.Since(begun)
		for _, c := range cs {
			c.stdin.Close()
			c.End(0)
		}
		ms := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
		t.Logf("%7d | %9s %9s %9s %9s | %9s %9s %9s %8.2f%% | %7.1f %7.1f", n, ms(started), ms(restarted), ms(gone), ms(stopped),
			ms(startCPU), ms(restartCPU), ms(old), 100*idle, rss, newRSS)
	}
}

// A crowd is a process that holds connections.
type crowd struct {
	*clustertest.Program
	stdin io.WriteCloser
	n     int
}

// hold opens n connections from other processes, with a request each.
func hold(t *testing.T, p *program, n int) (list []*crowd) {
	t.Helper()
	for ; n > 0; n -= clientConns {
		c := &crowd{n: min(n, clientConns)}
		c.Program = clustertest.Command(t, "clients", p.network, p.addr, strconv.Itoa(c.n))
		var err error
		if c.stdin, err = c.Cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		c.Start()
		list = append(list, c)
	}
	for _, c := range list {
		c.answered(t)
	}
	return list
}

// ask sends a request on every connection.
func (c *crowd) ask(t *testing.T) {
	t.Helper()
	fmt.Fprintln(c.stdin)
	c.answered(t)
}

func (c *crowd) answered(t *testing.T) {
	t.Helper()
	if got := c.Wait("answered")[0]; got != strconv.Itoa(c.n) {
		t.Errorf("%s of %d connections were answered", got, c.n)
	}
}

// holdConns is the program of such a process: it opens connections, and sends
// a request on each for every line of standard input, and one at first.
func holdConns() {
	network, addr := os.Args[1], os.Args[2]
	n, _ := strconv.Atoi(os.Args[3])
	conns, readers := make([]net.Conn, n), make([]*bufio.Reader, n)
	ask := func(i int) (err error) {
		if conns[i] == nil {
			if conns[i], err = net.Dial(network, addr); err != nil {
				return err
			}
			readers[i] = bufio.NewReaderSize(conns[i], 512)
		}
		conns[i].SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conns[i], request); err != nil {
			return err
		}
		resp, err := http.ReadResponse(readers[i], nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.Close {
			return errors.New("the connection is closed")
		}
		return nil
	}
	for in := bufio.NewScanner(os.Stdin); ; {
		var next, answered atomic.Int64
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
					if err := ask(i); err != nil {
						log.Printf("connection %d: %v", i, err)
						continue
					}
					answered.Add(1)
				}
			})
		}
		wg.Wait()
		clustertest.Tell("answered %d", answered.Load())
		if !in.Scan() {
			return
		}
	}
}

// cpu returns the time that a process has had.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // a tick is that everywhere
}

// residentMiB returns how much memory a process has.
func residentMiB(t *testing.T, pid int) float64 {
	t.Helper()
	statm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "statm"))
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(statm))[1])
	return float64(pages*syscall.Getpagesize()) / (1 << 20)
}
