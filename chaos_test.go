//go:build linux && !cluster_nofork

package cluster_test

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// By default TestChaos is short. For long:
//
//	go test -run Chaos -v -chaos 10m -timeout 20m .
var (
	chaosTime   = flag.Duration("chaos", 8*time.Second, "how long TestChaos goes on")
	chaosSeed   = flag.Uint64("chaos.seed", 0, "what the tests with chance do; 0 is something new every time")
	chaosStrict = flag.Bool("chaos.strict", false, "fail if the number of workers is wrong for more than one second, not ten: for a machine that does nothing else")
)

// Whatever is done to a cluster, every request gets the one answer that is
// right, or was in the hands of a process that was killed; soon there are as
// many workers as there should be; and nothing is left behind.
func TestChaos(t *testing.T) {
	t.Parallel()
	rng := newChance(t, fmt.Sprint("-run Chaos -chaos ", *chaosTime))
	f := fleetOf(t, "chaos", "v1", "workers=2", "heartbeat=2s", "timeout=10s", "listen=tcp 127.0.0.1:0", "listen=unix app.sock").launch()
	x := &chaos{fleet: f, t: t, rng: rng, want: 2, version: 1, killed: make(map[int]string), served: make(map[int]bool), hung: make(map[int]bool)}
	x.crowd = newCrowd(f, rng, 6)
	x.group, _ = memoryGroup(t, 64<<20)
	x.step(restart) // a first and a second master hold some things that later ones don't
	x.step(restart)

	for end := time.Now().Add(*chaosTime); time.Now().Before(end) && !t.Failed(); {
		x.step(deeds[rng.IntN(len(deeds))]...)
	}

	x.crowd.end()
	x.judge()
	f.quiet()
	old, oldWorker := f.masterInfo(f.master), f.info()
	x.step(deed{"Restart", func(x *chaos) func() { return x.restart(x.want) }})
	f.quiet()
	f.steady("a master after a while, a new one", old, func() info { return f.masterInfo(f.master) })
	f.steady("a worker after a while, a new one", oldWorker, f.info)
	f.quit()
	t.Logf("%d steps, %d restarts and %d that had to fail; %d requests answered, %d failed with the process that had them, %d more as these were killed; the number of workers was right after %v at most",
		x.steps, x.restarts, x.failed, x.crowd.answered.Load(), x.excused, x.unowned, x.slowest.Round(time.Millisecond))
}

// newChance returns the source of random numbers that the flag asks for. If
// the test fails it tells how to do the same again.
func newChance(t *testing.T, how string) *rand.Rand {
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Logf("to do the same again: go test %s -chaos.seed %d", how, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// chaos is what is done to a cluster, and what is known of it.
type chaos struct {
	*fleet
	t       *testing.T
	crowd   *crowd
	rng     *rand.Rand
	group   string         // limits memory; "" if there is none
	want    int            // workers
	version int            // of the program
	next    int            // restarts that have not been followed yet
	killed  map[int]string // processes that have been, in this step, and how; later there are others with their numbers
	served  map[int]bool   // workers that were ready, in this step
	noted   int            // events that autopsy has seen
	hung    map[int]bool   // those of them that are for the master to find
	workers []event        // before this step
	violent bool           // this step kills
	double  bool           // this step does two things at once

	steps, restarts, failed int
	excused, unowned        int // requests
	slowest                 time.Duration
}

// A deed is something to do to the cluster. What do returns is called to wait
// for its end, and may be nil.
type deed struct {
	name string
	do   func(*chaos) (wait func())
}

// deeds are what a step may be: one of them, or two at once.
var deeds = [][]deed{
	{killWorkers}, {killWorkers}, {abortWorker}, {stopWorker}, {stopWorker}, {hangWorker}, {leakMemory}, {exceedGroup},
	{spawn}, {spawn}, {remove}, {remove}, {replace}, {restartWorkers}, {restart}, {restart},
	{badRestart}, {badRestart},
	{restart, restart}, {restart, killWorkers}, {restart, abortWorker}, {restart, stopWorker}, {restartWorkers, restart}, {replace, restart},
	{badRestart, killWorkers}, {badRestart, stopWorker}, {badRestart, restartWorkers},
	{restartWorkers, restartWorkers}, {restartWorkers, killWorkers}, {restartWorkers, stopWorker},
	{restartWorkers, spawn}, {restartWorkers, remove}, {restartWorkers, replace}, {replace, replace}, {replace, abortWorker},
	{spawn, killWorkers}, {spawn, exceedGroup}, {remove, killWorkers}, {remove, stopWorker}, {stopWorker, killWorkers},
}

var (
	killWorkers = deed{"SIGKILL", func(x *chaos) func() {
		for range 1 + x.rng.IntN(len(x.workers)) {
			x.kill(x.one().Pid, syscall.SIGKILL)
		}
		return nil
	}}
	abortWorker = deed{"SIGABRT", func(x *chaos) func() {
		x.kill(x.one().Pid, syscall.SIGABRT)
		return nil
	}}
	stopWorker = deed{"SIGSTOP", func(x *chaos) func() {
		pid := x.one().Pid
		syscall.Kill(pid, syscall.SIGSTOP)
		return func() {
			time.Sleep(time.Duration(x.rng.IntN(500)) * time.Millisecond)
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}}
	hangWorker = deed{"hang", func(x *chaos) func() {
		pid := x.one().Pid
		x.hung[pid] = true
		x.kill(pid, syscall.SIGSTOP)
		return func() { x.died(pid) }
	}}
	leakMemory  = deed{"leak", func(x *chaos) func() { return x.leak("") }}
	exceedGroup = deed{"leak in a group", func(x *chaos) func() {
		if x.group == "" {
			return leakMemory.do(x)
		}
		return x.leak(x.group)
	}}
	spawn = deed{"Spawn", func(x *chaos) func() {
		n := 1 + x.rng.IntN(2)
		if x.want < 6 {
			x.mustTell(x.master, "spawn %d", n)
			x.want += n
		}
		return nil
	}}
	remove = deed{"Remove", func(x *chaos) func() {
		n := x.rng.IntN(x.want)
		x.mustTell(x.master, "remove %d", n)
		x.want -= n
		return nil
	}}
	restart    = deed{"Restart", func(x *chaos) func() { return x.restart(1 + x.rng.IntN(4)) }}
	badRestart = deed{"Restart to a bad version", func(x *chaos) func() {
		modes := []string{"exit", "take", "panic", "serverpanic", "serverfail", "hang", "serverhang", "half", "exitready"}
		n := x.rng.IntN(len(modes))
		x.flip("bad,workers=2,mode=" + modes[n])
		command := "restart"
		if n >= slices.Index(modes, "hang") {
			command = "restartwithin 700ms"
		}
		answer := x.told(x.master, command)
		return func() {
			if <-answer == "" {
				x.t.Fatalf("Restart to a version that does %q has succeeded", modes[n])
			}
			x.waitFor("restart failed", func(e event) bool { return e.Name == "restart failed" && e.Pid == x.master })
			x.failed++
		}
	}}
	restartWorkers = deed{"RestartWorkers", func(x *chaos) func() { return x.roll("restartworkers") }}
	replace        = deed{"Replace", func(x *chaos) func() { return x.roll(fmt.Sprint("replace ", x.one().ID)) }}
)

// restart begins a restart to a new version with so many workers.
func (x *chaos) restart(workers int) (wait func()) {
	x.version++
	x.flip(fmt.Sprintf("v%d,workers=%d", x.version, workers))
	x.want = workers
	x.next++
	answer := x.told(x.master, "restart")
	return func() {
		if got := <-answer; got != "" {
			x.t.Fatalf("Restart: %s", got)
		}
		x.restarts++
	}
}

// leak has a worker take memory until it dies of it, in the control group if
// there is one: then the kernel kills it.
func (x *chaos) leak(group string) (wait func()) {
	c := x.dial()
	defer c.Close()
	fmt.Fprintf(c, "GET /leak?group=%s HTTP/1.1\r\nHost: cluster\r\n\r\n", group)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		x.t.Fatal(err)
	}
	pid, _ := strconv.Atoi(resp.Header.Get("Pid"))
	x.note(pid, "leak")
	return func() {
		if group == "" {
			x.waitFor("its exception", func(e event) bool { return e.Name == "exception" && e.Pid == pid })
		}
		x.died(pid)
	}
}

// roll begins a rolling restart. It may fail if something else happens
// meanwhile.
func (x *chaos) roll(command string) (wait func()) {
	answer := x.told(x.master, "%s", command)
	return func() {
		if got := <-answer; got != "" && !x.double {
			x.t.Fatalf("%s: %s", command, got)
		}
	}
}

// children returns the current master's workers in that state, or in any. Text
// is their state.
func (x *chaos) children(state string) (list []event) {
	for line := range strings.Lines(x.tell(x.master, "children")) {
		var e event
		if _, err := fmt.Sscan(line, &e.ID, &e.Pid, &e.Text); err != nil {
			x.t.Fatalf("%v: %q", err, line)
		}
		if state == "" || e.Text == state {
			list = append(list, e)
		}
	}
	return list
}

// one returns one of the workers that there were before this step.
func (x *chaos) one() event { return x.workers[x.rng.IntN(len(x.workers))] }

func (x *chaos) kill(pid int, sig syscall.Signal) {
	x.note(pid, sig.String())
	syscall.Kill(pid, sig)
}

// note notes that a process is about to be killed.
func (x *chaos) note(pid int, how string) {
	x.violent, x.killed[pid] = true, how
}

// died waits until the master has noticed.
func (x *chaos) died(pid int) {
	x.waitFor("its death", func(e event) bool { return e.Name == "killed" && e.Pid == pid })
}

// step does one thing, or two at once, and checks that all is well
// afterwards.
func (x *chaos) step(what ...deed) {
	x.t.Helper()
	x.steps++
	clear(x.killed)
	clear(x.hung)
	clear(x.served)
	x.workers, x.violent, x.double = x.children("ready"), false, len(what) > 1
	for _, e := range x.workers {
		x.served[e.Pid] = true
	}
	var names []string
	var waits []func()
	for i, d := range what {
		if i > 0 && d.name != what[0].name {
			time.Sleep(time.Duration(x.rng.IntN(100)) * time.Millisecond)
		}
		names = append(names, d.name)
		if wait := d.do(x); wait != nil {
			waits = append(waits, wait)
		}
	}
	slices.Reverse(waits) // nobody stays suspended while the first ends
	for _, wait := range waits {
		wait()
	}
	done := time.Now()
	for ; x.next > 0; x.next-- {
		x.fleet.next()
	}
	name := strings.Join(names, " and ")
	x.ready(name, done)
	x.crowd.fence()
	x.judge()
	x.settle()
	x.autopsy()
	if x.t.Failed() {
		x.t.Fatalf("step %d: %s", x.steps, name)
	}
}

// ready waits until the number of workers is right.
func (x *chaos) ready(step string, since time.Time) {
	x.t.Helper()
	if !eventually(patience, func() bool {
		ready := 0
		for _, e := range x.children("") {
			if _, killed := x.killed[e.Pid]; killed || e.Text == "starting" {
				return false
			}
			if e.Text == "ready" {
				ready++
				x.served[e.Pid] = true
			}
		}
		return ready == x.want
	}) {
		x.t.Fatalf("step %d, %s: workers %v, want %d", x.steps, step, x.children(""), x.want)
	}
	d := time.Since(since)
	x.slowest = max(x.slowest, d)
	x.t.Logf("step %d, %s: %d workers after %v", x.steps, step, x.want, d.Round(time.Millisecond))
	limit := 10 * time.Second
	if *chaosStrict {
		limit = time.Second
	}
	if d > limit {
		x.t.Errorf("the number of workers was wrong for %v", d)
	}
}

// settle waits until there are no other processes than there should be, and
// no other files.
func (x *chaos) settle() {
	x.t.Helper()
	want := []int{x.pid(), x.master}
	for _, e := range x.children("ready") {
		want = append(want, e.Pid)
	}
	slices.Sort(want)
	x.settled(slices.Compact(want))
	if !eventually(patience, func() bool { return len(x.zombies()) == 0 }) {
		x.t.Errorf("zombies: %q", x.zombies())
	}
	files := []string{"app.sock", fmt.Sprintf("cluster.%d.server.sock", x.master)}
	if !eventually(patience, func() bool { return slices.Equal(x.files(), files) }) {
		x.t.Errorf("files %q, want %q", x.files(), files)
	}
}

// judge looks at what has failed in this step. A request may fail with the
// process that had it, if that was killed. One that no process seems to have
// had may fail if this step kills: it was being accepted.
func (x *chaos) judge() {
	x.t.Helper()
	for _, f := range x.crowd.take() {
		if f.pid == 0 && !f.wrong && !f.uncalled {
			f.pid = x.crowd.owner(f)
		}
		how, killed := x.killed[f.pid]
		switch {
		case !f.wrong && killed:
			x.excused++
		case !f.wrong && !f.uncalled && f.pid == 0 && x.violent:
			x.unowned++
			x.t.Logf("%v: %v", f, x.crowd.entries(f))
		case f.uncalled:
			x.t.Error(f)
		default:
			x.t.Errorf("%v (%s): %v", f, how, x.crowd.entries(f))
		}
	}
}

// autopsy checks that no worker that was ready was ended in this step but by
// this test, and that the master has taken none for hung that wasn't.
func (x *chaos) autopsy() {
	x.t.Helper()
	events := x.history("killed", "timeout", "exception")
	for _, e := range events[x.noted:] {
		switch _, killed := x.killed[e.Pid]; {
		case !x.served[e.Pid] || killed && (x.hung[e.Pid] || e.Name != "timeout"):
		case e.Name == "killed" && e.Text == "exit status 0":
		default:
			x.t.Errorf("%+v", e)
		}
	}
	x.noted = len(events)
}
