//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster/bench/servers/hello"
)

// Metrics are what one turn of a side has given, by name.
type metrics map[string]float64

// An experiment does the same to several sides, in turns, and gives figures.
type experiment struct {
	name, about string
	sides       []side
	measure     func(*bench, side) (metrics, error)
	figures     []figure
}

// A figure is one comparison in the table. The others are divided by its first
// line, and goals are for these ratios; with plain, there are no ratios, and
// goals are for the values.
type figure struct {
	name, unit string
	lines      []line
	plain      bool
}

// A line is a metric of a side. The goal is "", "≥ " or "≤ " and a number, or
// "least": of all those without a goal.
type line struct{ side, metric, goal string }

// The sides.
var (
	nethttp = side{name: "net/http, one process", program: "nethttp", single: true}
	shared  = side{name: "cluster", program: "cluster", restart: syscall.SIGUSR2}
	apart   = side{name: "cluster, ReusePort", program: "cluster", args: []string{"-reuseport"}}
	raw     = side{name: "cluster", program: "cluster", args: []string{"-tcp"}}
	rolling = side{name: "cluster, rolling", program: "cluster", restart: syscall.SIGHUP}
	keeping = side{name: "cluster, handoff", program: "cluster", args: []string{"-handoff"}, restart: syscall.SIGUSR2}

	fast        = side{name: "fasthttp, one process", program: "fasthttp", single: true}
	fastShared  = side{name: "fasthttp under Master", program: "fasthttp", args: []string{"-under", "master"}}
	fastApart   = side{name: "fasthttp under Master, ReusePort", program: "fasthttp", args: []string{"-under", "master", "-reuseport"}}
	forkShared  = side{name: "fasthttp prefork", program: "fasthttp", args: []string{"-under", "prefork"}}
	forkApart   = side{name: "fasthttp prefork, ReusePort", program: "fasthttp", args: []string{"-under", "prefork", "-reuseport"}}
	fiber       = side{name: "fiber prefork", program: "fiber"}
	nginx       = side{name: "nginx", program: "nginx", restart: syscall.SIGHUP}
	node        = side{name: "node cluster", program: "node", restart: syscall.SIGHUP}
	gunicorn    = side{name: "gunicorn", program: "gunicorn", restart: syscall.SIGHUP}
	everybody   = []side{nethttp, shared, apart, fast, fastShared, fastApart, forkShared, forkApart, fiber, nginx, node, gunicorn}
	restartable = []side{shared, rolling, keeping, nginx, node, gunicorn}
)

// with returns the sides with a number of workers, and more arguments.
func with(workers int, args []string, sides ...side) []side {
	for i := range sides {
		sides[i].workers = workers
		sides[i].args = slices.Concat(sides[i].args, args)
	}
	return sides
}

// ratios returns a figure of one metric: that of the sides divided by that of the
// first. A goal follows the name of its side.
func ratios(name, unit, metric string, sides ...string) figure {
	f := figure{name: name, unit: unit}
	for _, s := range sides {
		if strings.HasPrefix(s, "≥") || strings.HasPrefix(s, "≤") || s == "least" {
			f.lines[len(f.lines)-1].goal = s
		} else {
			f.lines = append(f.lines, line{side: s, metric: metric})
		}
	}
	return f
}

// values is ratios without dividing.
func values(name, unit, metric string, sides ...string) figure {
	f := ratios(name, unit, metric, sides...)
	f.plain = true
	return f
}

// experiments is the table of all of them.
func experiments() []experiment {
	n := strconv.Itoa(workers) + " workers"
	throughputs := func(load string) []figure {
		return []figure{
			ratios(load+", "+n, "requests/s", "requests/s", nethttp.name, shared.name, "≥ 1.0", apart.name, fast.name, fastShared.name,
				fastApart.name, forkShared.name, forkApart.name, fiber.name, nginx.name, node.name, gunicorn.name),
			ratios(load+", "+n+": CPU time of the server for each request", "µs", "CPU", nethttp.name, shared.name, apart.name, fast.name,
				fastShared.name, fastApart.name, forkShared.name, forkApart.name, fiber.name, nginx.name, node.name, gunicorn.name),
			ratios(load+", "+n+", fasthttp", "requests/s", "requests/s", forkShared.name, fastShared.name, "≥ 1.0"),
			ratios(load+", "+n+", fasthttp, ReusePort", "requests/s", "requests/s", forkApart.name, fastApart.name, "≥ 1.0"),
		}
	}
	many := with(64, nil, shared)[0]
	many.name = "cluster, 64 workers"
	return []experiment{
		{"keep-alive", "throughput of 64 connections that are kept",
			everybody, throughput(load{Conns: 64}), throughputs("keep-alive")},
		{"close", "throughput with a connection for each request, 64 at a time",
			everybody, throughput(load{Conns: 64, Close: true}), throughputs("connection per request")},
		{"many", "connection per request, 32 workers",
			with(32, nil, shared, apart, fastShared, fastApart, forkShared, forkApart), throughput(load{Conns: 64, Close: true}), []figure{
				ratios("connection per request, 32 workers", "requests/s", "requests/s", shared.name, apart.name, "≥ 1.5"),
				ratios("connection per request, 32 workers, fasthttp", "requests/s", "requests/s", forkShared.name, fastShared.name),
				ratios("connection per request, 32 workers, fasthttp, ReusePort", "requests/s", "requests/s", forkApart.name, fastApart.name, "≥ 1.0"),
			}},
		{"wakeups", "what a connection costs 32 workers in wake-ups",
			with(32, nil, shared, apart, forkShared), wasted, []figure{
				values("accept4 in vain (EAGAIN) for each connection, 32 workers", "", "in vain", shared.name, apart.name, forkShared.name),
				values("wake-ups of all workers for each connection, 32 workers", "", "wake-ups", shared.name, apart.name, forkShared.name),
			}},
		{"balance", "4,000 connections that are kept, over 8 workers",
			with(8, nil, shared, apart, forkShared, forkApart, nginx), balance, []figure{
				values("connections of the busiest worker / the least busy, 8 workers, 4,000 connections", "", "connections",
					shared.name, apart.name, "≤ 1.3", forkShared.name, forkApart.name, nginx.name),
			}},
		{"cpu", "2 ms of CPU for each request, 8 workers, half of what the CPUs can do",
			append(with(8, nil, shared, apart), nethttp), busy, []figure{
				ratios("p99, 2 ms of CPU for each request, 8 workers, CPUs half used", "ms", "p99", nethttp.name, shared.name, apart.name),
				ratios("p50, 2 ms of CPU for each request, 8 workers, CPUs half used", "ms", "p50", nethttp.name, shared.name, apart.name),
			}},
		{"death", "a worker dies of SIGKILL",
			with(1, nil, raw), death, []figure{
				{"SIGKILL of the only worker", "ms", []line{
					{raw.name, "fork and exec to main", ""},
					{raw.name, "SIGKILL to the end of the process", ""},
					{raw.name, "SIGKILL to the successor's answer", "≤ 1.3"},
				}, false},
			}},
		restart("restart-keep-alive", "64 connections that are kept", load{Conns: 64}),
		restart("restart-close", "a connection for each request, 64 at a time", load{Conns: 64, Close: true}),
		restart("restart-rate", "2,000 requests/s on 64 connections that are kept", load{Conns: 64, Rate: 2000}),
		{"idle", "memory, CPU and wake-ups of a cluster that has nothing to do",
			[]side{nethttp, shared, many}, idle, []figure{
				ratios("memory of an idle worker, PSS", "KiB", "PSS", nethttp.name, shared.name, "≤ 1.05", many.name),
				ratios("memory of an idle worker, anonymous", "KiB", "anonymous", nethttp.name, shared.name, many.name),
				values("memory of an idle master, RSS", "MiB", "master", shared.name, "≤ 12", many.name, "≤ 12"),
				values("wake-ups of an idle master for each worker and sign of life", "", "wake-ups", many.name, "≤ 1"),
				values("CPU time of an idle master for each sign of life of 64 workers", "ms", "CPU", many.name),
			}},
		{"startup", "from the start to the first answer",
			append(with(4, nil, shared), nethttp), startup, []figure{
				ratios("start to first answer, 4 workers", "ms", "startup", nethttp.name, shared.name, "≤ 2.0"),
			}},
	}
}

// restart returns the experiment of restarts under one load.
func restart(name, about string, l load) experiment {
	// sides are all of them, with a goal for those that claim it: a plain
	// http.Server closes idle connections.
	sides := func(goal string) (list []string) {
		for _, s := range restartable {
			list = append(list, s.name)
			if goal != "" && s.program == "cluster" && (goal == "least" || l.Close || s.name == keeping.name) {
				list = append(list, goal)
			}
		}
		return list
	}
	figures := []figure{
		values("restarts, "+about+": requests failed", "", "failed", sides("≤ 0")...),
		values("restarts, "+about+": connections closed", "", "closed", sides("≤ 0")...),
		values("restarts, "+about+": p99 / p99 without", "", "p99 ratio", sides("≤ 2")...),
		values("restarts, "+about+": p99", "ms", "p99", sides("")...),
		values("restarts, "+about+": signal to first new answer", "ms", "first new answer", sides("least")...),
		values("restarts, "+about+": signal to last old answer", "ms", "last old answer", sides("least")...),
	}
	if l.Close {
		figures = slices.Delete(figures, 1, 2)
	}
	return experiment{name, "restarts under load: " + about, restartable, restarts(name, l), figures}
}

// warm asks the server for a while, so that what happens but once has
// happened.
func (b *bench) warm(s *server, l load) error {
	l.Addr, l.Want, l.Duration = s.addr, hello.Body, b.duration/8+time.Duration(s.processes())*5*time.Millisecond
	_, err := l.run()
	return err
}

// underLoad starts a side, warms it up, and puts it under load.
func (b *bench) underLoad(s side, l load, args []string, f func(*server, *result) (metrics, error)) (metrics, error) {
	srv, err := b.start(s, args...)
	if err != nil {
		return nil, err
	}
	defer srv.stop()
	if err := b.warm(srv, l); err != nil {
		return nil, err
	}
	l.Addr, l.Want, l.Duration = srv.addr, hello.Body, b.duration
	before := srv.cpu()
	r, err := l.run()
	if err != nil {
		return nil, err
	}
	used := srv.cpu() - before
	if r.failed() > 0 {
		return nil, fmt.Errorf("failed requests: %v", r.Failed)
	}
	m, err := f(srv, r)
	if err == nil {
		m["CPU"] = used.Seconds() * 1e6 / float64(len(r.Samples))
	}
	return m, err
}

func throughput(l load) func(*bench, side) (metrics, error) {
	return func(b *bench, s side) (metrics, error) {
		return b.underLoad(s, l, nil, func(_ *server, r *result) (metrics, error) {
			return metrics{"requests/s": float64(len(r.Samples)) / r.Seconds, "p99": percentile(r.Samples, 99)}, nil
		})
	}
}

// wasted counts accept4 calls that found nothing, and waits.
func wasted(b *bench, s side) (metrics, error) {
	srv, err := b.start(s)
	if err != nil {
		return nil, err
	}
	defer srv.stop()
	l := load{Conns: 64, Close: true}
	if err := b.warm(srv, l); err != nil {
		return nil, err
	}
	pids := srv.children()
	l.Addr, l.Want, l.Duration = srv.addr, hello.Body, b.duration
	before := wakeups(pids...)
	r, err := l.run()
	if err != nil {
		return nil, err
	}
	m := metrics{"wake-ups": (wakeups(pids...) - before) / float64(len(r.Samples))}
	if _, err := exec.LookPath("perf"); err != nil {
		b.report.skip("accept4 in vain", "perf is not installed")
		return m, nil
	}
	l.Duration += b.duration / 2 // perf needs a moment to begin
	wait, err := l.start()
	if err != nil {
		return nil, err
	}
	all, vain, err := accepts(pids, b.duration)
	if _, e := wait(); err == nil {
		err = e
	}
	if err != nil {
		b.report.skip("accept4 in vain", err.Error())
	} else if all > vain {
		m["in vain"] = vain / (all - vain)
	}
	return m, nil
}

// balance opens many connections, and looks whose they are.
func balance(b *bench, s side) (metrics, error) {
	return b.underLoad(s, load{Conns: 4000, Ramp: 64}, nil, func(srv *server, r *result) (metrics, error) {
		most, least, sum := 0, 0, 0
		for _, a := range r.Pids {
			most, sum = max(most, a.Conns), sum+a.Conns
			if least == 0 || a.Conns < least {
				least = a.Conns
			}
		}
		if sum < 4000 && !b.short {
			return nil, fmt.Errorf("only %d connections in %v", sum, b.duration)
		}
		if len(r.Pids) < srv.processes() {
			least = 1 // none, really
		}
		return metrics{"connections": float64(most) / float64(max(least, 1))}, nil
	})
}

// spin returns what keeps a CPU of this machine busy for 2 ms.
var spin = sync.OnceValue(func() string {
	best := time.Hour
	const n = 1e6
	for range 20 {
		start := time.Now()
		if hello.Spin(n) > 0 { // always
			best = min(best, time.Since(start))
		}
	}
	return strconv.Itoa(int(n * 2 * float64(time.Millisecond) / float64(best)))
})

// busy asks for half of what the CPUs can do.
func busy(b *bench, s side) (metrics, error) {
	l := load{Conns: 256, Close: true, Rate: 250 * workers}
	return b.underLoad(s, l, []string{"-spin", spin()}, func(_ *server, r *result) (metrics, error) {
		return metrics{"p50": percentile(r.Samples, 50), "p99": percentile(r.Samples, 99)}, nil
	})
}

// death kills the only worker, and asks: the request waits in the socket's
// queue for the successor.
func death(b *bench, s side) (metrics, error) {
	srv, err := b.start(s)
	if err != nil {
		return nil, err
	}
	defer srv.stop()
	var toAnswer, toEnd, toMain []float64
	for range 3 {
		start := time.Now()
		cmd := exec.Command(filepath.Join(b.dir, s.program), "-main")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return nil, err
		}
		io.ReadFull(out, make([]byte, 1))
		toMain = append(toMain, ms(time.Since(start)))
		cmd.Wait()

		time.Sleep(1200 * time.Millisecond) // a worker that dies early is replaced later
		pid, err := srv.ask()
		if err != nil {
			return nil, err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil, err
		}
		ended := make(chan time.Time)
		go func() {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000)
			ended <- time.Now()
		}()
		start = time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return nil, err
		}
		for ; ; time.Sleep(100 * time.Microsecond) { // it may have accepted before it died
			if next, err := srv.ask(); err == nil && next != pid {
				break
			}
			if time.Since(start) > 10*time.Second {
				return nil, errors.New("no successor")
			}
		}
		toAnswer = append(toAnswer, ms(time.Since(start)))
		toEnd = append(toEnd, ms((<-ended).Sub(start)))
		unix.Close(fd)
	}
	return metrics{"SIGKILL to the end of the process": median(toEnd), "SIGKILL to the successor's answer": median(toAnswer), "fork and exec to main": median(toMain)}, nil
}

// restarts restarts a side several times under load.
func restarts(name string, l load) func(*bench, side) (metrics, error) {
	return func(b *bench, s side) (metrics, error) {
		srv, err := b.start(s)
		if err != nil {
			return nil, err
		}
		defer srv.stop()
		if err := b.warm(srv, l); err != nil {
			return nil, err
		}
		steady, gap, times := b.duration, max(b.duration*2/5, 600*time.Millisecond), 5
		if b.short {
			times = 1
		}
		l.Addr, l.Want, l.Duration = srv.addr, hello.Body, steady+gap*time.Duration(times)
		wait, err := l.start()
		if err != nil {
			return nil, err
		}
		time.Sleep(steady)
		var signals []time.Time
		for range times {
			signals = append(signals, time.Now())
			srv.cmd.Process.Signal(s.restart)
			time.Sleep(gap)
		}
		r, err := wait()
		if err != nil {
			return nil, err
		}
		var at []int64 // of the signals, since the start of the load
		for _, t := range signals {
			at = append(at, int64(t.Sub(r.Start)))
		}
		b.report.trace(name, s.name, r, at)
		before := slices.IndexFunc(r.Samples, func(p sample) bool { return p.At > at[0] })
		if before <= 0 {
			return nil, fmt.Errorf("no answers: %v", r.Failed)
		}
		m := metrics{
			"requests":  float64(len(r.Samples)),
			"failed":    float64(r.failed()),
			"closed":    float64(r.Closed),
			"p99":       percentile(r.Samples[before:], 99),
			"p99 ratio": percentile(r.Samples[before:], 99) / percentile(r.Samples[:before], 99),
		}
		var first, last []float64
		for i, t := range at {
			next := int64(l.Duration) // the next signal, or the end
			if i+1 < len(at) {
				next = at[i+1]
			}
			begun, ended := next, t // the new generation, the old one
			for _, a := range r.Pids {
				if a.First > t && a.First < begun {
					begun = a.First
				}
				if a.First <= t && a.Last > ended {
					ended = a.Last
				}
			}
			first, last = append(first, ms(time.Duration(begun-t))), append(last, ms(time.Duration(ended-t)))
		}
		m["first new answer"], m["last old answer"] = median(first), median(last)
		return m, nil
	}
}

// idle looks at a cluster that has nothing to do.
func idle(b *bench, s side) (metrics, error) {
	heartbeat, times := 3*time.Second, 6 // signs of life, three of them in a heartbeat
	if b.short {
		heartbeat, times = time.Second, 3
	}
	var args []string
	if !s.single {
		args = []string{"-heartbeat", heartbeat.String()}
	}
	srv, err := b.start(s, args...)
	if err != nil {
		return nil, err
	}
	defer srv.stop()
	time.Sleep(heartbeat / 3)
	master, pids := srv.cmd.Process.Pid, srv.children()
	m := make(metrics)
	if s.single {
		pids = []int{master}
	} else {
		wakeupsBefore, cpuBefore := wakeups(master), cpu(master)
		time.Sleep(heartbeat / 3 * time.Duration(times))
		m["wake-ups"] = (wakeups(master) - wakeupsBefore) / float64(times*len(pids))
		m["CPU"] = ms(cpu(master)-cpuBefore) / float64(times)
		m["master"] = memory(master, "Rss") / 1024
	}
	var pss, anonymous []float64
	for _, pid := range pids {
		pss = append(pss, memory(pid, "Pss"))
		anonymous = append(anonymous, memory(pid, "Anonymous"))
	}
	m["PSS"], m["anonymous"] = median(pss), median(anonymous)
	return m, nil
}

// startup starts a side, several times.
func startup(b *bench, s side) (metrics, error) {
	var took []float64
	for range 5 {
		start := time.Now()
		srv, err := b.launch(s)
		if err != nil {
			return nil, err
		}
		for {
			if _, err = srv.ask(); err == nil || time.Since(start) > 10*time.Second {
				break
			}
			time.Sleep(200 * time.Microsecond)
		}
		took = append(took, ms(time.Since(start)))
		srv.stop()
		if err != nil {
			return nil, err
		}
	}
	return metrics{"startup": median(took)}, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// percentile returns how long p percent of the answers took at most, in
// milliseconds.
func percentile(samples []sample, p int) float64 {
	if len(samples) == 0 {
		return 0
	}
	took := make([]int64, len(samples))
	for i, s := range samples {
		took[i] = s.Took
	}
	slices.Sort(took)
	return ms(time.Duration(took[min(len(took)-1, len(took)*p/100)]))
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
