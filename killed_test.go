//go:build linux && !cluster_nofork

package cluster_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// By default some masters are killed. For more:
//
//	go test -run AnyMoment -v -chaos.kills 50
var chaosKills = flag.Int("chaos.kills", 10, "how many masters TestMasterKilledAtAnyMoment kills")

// A master may be killed outright at any moment: what its workers are busy
// with is finished, they are gone when Timeout is over, and a new cluster on
// the same addresses and with the same files starts at once.
func TestMasterKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	rng := newChance(t, fmt.Sprint("-run AnyMoment -chaos.kills ", *chaosKills))
	const timeout = 2 * time.Second
	f := fixedFleet(t, rng, "timeout="+timeout.String())
	f.start()
	f.addr(1)
	crowd := newCrowd(f, rng, 0)
	var bound time.Time // the present cluster has been there since
	var starts, ends []time.Duration
	late, inFlight := 0, 0
	for i := range *chaosKills {
		moment := []string{"starting", "serving", "restarting", "taking over", "draining"}[i%5]
		delay := time.Duration(rng.IntN(150)) * time.Millisecond
		victim := f.pid()
		var requests []*held
		if moment != "starting" {
			f.master = f.wait("listening").Pid
			requests = []*held{f.hold(), f.hold(1)}
			if rng.IntN(3) == 0 {
				fmt.Fprint(f.dial(), "GET /stuck HTTP/1.1\r\nHost: cluster\r\n\r\n")
				f.wait("stuck")
			}
			f.flip(fmt.Sprint("v", i))
		}
		down := time.Now() // from here on connections may be refused
		var answer <-chan string
		switch moment {
		case "restarting":
			answer = f.told(f.master, "restart")
		case "taking over":
			answer = f.told(f.master, "restart")
			victim = f.heir()
		case "draining":
			f.signal(syscall.SIGQUIT)
			f.wait("closing")
			delay /= 4
		}
		time.Sleep(delay)
		kill(t, victim, syscall.SIGKILL)
		if moment == "taking over" && <-answer != "" { // it had not yet
			time.Sleep(delay)
			f.signal(syscall.SIGKILL)
		}
		killed := time.Now()

		next := f.again()
		next.start()
		next.addr(1)
		starts = append(starts, time.Since(killed))
		there := time.Now()
		for n := range requests {
			if got := requests[n].finish(); got != strconv.Itoa(requests[n].Pid) {
				t.Errorf("a request in flight was answered by %s, want %d", got, requests[n].Pid)
			}
			inFlight++
		}
		f.over()
		ends = append(ends, time.Since(killed))
		if d := time.Since(killed); d > timeout+2*time.Second {
			t.Errorf("the last process was gone after %v, Timeout is %v", d, timeout)
		}
		for _, fail := range crowd.take() {
			excused := fail.dialed.Before(bound) || fail.at.After(down)
			switch {
			case excused && fail.uncalled && (errors.Is(fail.err, syscall.ECONNREFUSED) || errors.Is(fail.err, fs.ErrNotExist)):
			case excused && fail.uncalled && errors.Is(fail.err, syscall.ECONNRESET):
				late++
			case excused && !fail.uncalled && !fail.wrong && fail.pid == 0 && len(crowd.entries(fail)) == 0:
				late++ // nobody has accepted it
			case fail.uncalled:
				t.Error(fail)
			default:
				t.Errorf("%v: %v", fail, crowd.entries(fail))
			}
		}
		if t.Failed() {
			t.Fatalf("master %d, killed while %s, %v after it had begun to", i, moment, delay)
		}
		f, bound = next, there
	}
	f.wait("listening")
	crowd.end()
	f.quit()
	slices.Sort(starts)
	slices.Sort(ends)
	t.Logf("%d masters killed; %d requests answered and %d that were in flight, %d connections came too late to be accepted; the next cluster served after %v, %v at most; all was over after %v at most",
		*chaosKills, crowd.answered.Load(), inFlight, late, starts[len(starts)/2], starts[len(starts)-1], ends[len(ends)-1])
}

// A new cluster can have the addresses of one that ends before that has
// finished what it is doing.
func TestAddressesAreFreeWhenAClusterBeginsToEnd(t *testing.T) {
	t.Parallel()
	rng := newChance(t, "-run AddressesAreFree")
	for _, test := range []struct {
		name string
		end  func(*fleet)
	}{
		{"SIGQUIT", func(f *fleet) { f.signal(syscall.SIGQUIT) }},
		{"SIGKILL", func(f *fleet) { f.signal(syscall.SIGKILL) }},
		{"SIGKILL to its successor", func(f *fleet) {
			f.mustTell(f.master, "restart")
			kill(t, f.heir(), syscall.SIGKILL)
		}},
		{"SIGKILL after a restart", func(f *fleet) {
			f.mustTell(f.master, "restart")
			f.signal(syscall.SIGKILL)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := fixedFleet(t, rng, "timeout=1m")
			f.launch()
			requests := []*held{f.hold(), f.hold(1)}
			test.end(f)
			next := f.again().launch()
			for n, h := range requests {
				if pid := next.get("/", n); pid == strconv.Itoa(h.Pid) {
					t.Errorf("process %s of the old cluster answers", pid)
				}
				if got := h.finish(); got != strconv.Itoa(h.Pid) {
					t.Errorf("a request in flight was answered by %s, want %d", got, h.Pid)
				}
			}
			f.over()
			next.quit()
		})
	}
}

// fixedFleet returns a fleet that has the same addresses and files when it is
// started again.
func fixedFleet(t *testing.T, rng *rand.Rand, args ...string) *fleet {
	t.Helper()
	host := fmt.Sprintf("127.%d.%d.%d", 1+rng.IntN(200), rng.IntN(256), 1+rng.IntN(254)) // nobody else's
	return fleetOf(t, "chaos", "v1", append(args, "workers=2", "socket filename=master.sock", "listen=tcp "+host+":3000", "listen=unix app.sock")...)
}

// again returns another fleet at the same place, yet to be started.
func (f *fleet) again() *fleet {
	g := &fleet{proc: command(f.t, "chaos", f.cmd.Args[1:]...), bin: f.bin, path: f.path, ctl: f.ctl}
	g.dir = f.dir
	g.cmd.Path, g.cmd.Args[0], g.cmd.Dir = f.path, f.path, f.dir
	g.cmd.Env = append(g.cmd.Env, controlEnv+"="+f.ctl)
	return g
}
