//go:build unix && !cluster_nofork

package cluster_test

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/gocluster/cluster"
)

// The table of signals.

func TestSignalSpawnRemove(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	p.signal(syscall.SIGTTIN)
	waitWorkers(p, 2)
	p.signal(syscall.SIGTTOU)
	if e := p.wait("removed"); e.ID != 1 {
		t.Errorf("worker %d was removed", e.ID)
	}
	waitWorkers(p, 1)
	for range 3 {
		p.signal(syscall.SIGTTOU) // never the last
	}
	p.get("/")
	p.mustCall("spawn 1")
	for _, e := range append(p.history("removed"), p.history("killed")...) {
		if e.ID == 0 {
			t.Errorf("%+v", e)
		}
	}
	p.quit()
}

// A burst loses none that matters: signals are not counted by the kernel,
// but those of another kind are not lost beside them.
func TestSignalBurst(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	for range 200 {
		syscall.Kill(p.pid(), syscall.SIGWINCH)
		syscall.Kill(p.pid(), syscall.SIGUSR1)
		syscall.Kill(p.pid(), syscall.SIGURG)
	}
	p.signal(syscall.SIGTTIN)
	waitWorkers(p, 2)
	p.quit()
}

func TestSignalRestartWorkers(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	before := p.workers()
	p.signal(syscall.SIGHUP)
	p.waitN(2, "killed")
	after := waitWorkers(p, 2)
	if after[0] == before[0] || after[1] == before[1] {
		t.Errorf("workers were %v, are %v", before, after)
	}
	p.quit()
}

// SIGUSR1 is for master and workers.
func TestSignalReopen(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=2")
	p.signal(syscall.SIGUSR1)
	p.wait("reopen", -1)
	p.wait("reopen", 0)
	p.wait("reopen", 1)
	p.quit()
}

// Workers ignore what is meant for the master.
func TestSignalsIgnoredInWorkers(t *testing.T) {
	t.Parallel()
	p := serve(t, "http", "workers=1")
	pid := p.workers()[0]
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU} {
		kill(t, pid, sig)
	}
	kill(t, pid, syscall.SIGUSR1)
	p.wait("reopen", 0)
	if w := p.workers(); w[0] != pid {
		t.Errorf("worker %d was replaced by %d", pid, w[0])
	}
	p.quit()
}

var _ = helper("signals", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	m.Signals = map[os.Signal]cluster.Action{
		syscall.SIGTERM:  cluster.ActionClose,
		syscall.SIGWINCH: cluster.ActionSpawn,
		syscall.SIGHUP:   cluster.ActionIgnore,
		syscall.SIGUSR1:  cluster.ActionIgnore,
	}
	finish(m.ListenAndServe(listen(0)))
})

// Signals overrides the table, in workers too.
func TestSignalsOverride(t *testing.T) {
	t.Parallel()
	p := serve(t, "signals", "workers=1")
	before := p.workers()[0]
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGUSR1)
	kill(t, before, syscall.SIGUSR1)
	p.signal(syscall.SIGWINCH)
	waitWorkers(p, 2)
	if p.workers()[0] != before || len(p.history("reopen")) > 0 {
		t.Error("a signal to be ignored was not")
	}
	h := p.hold()
	kill(t, h.Pid, syscall.SIGTERM) // drains
	p.waitFor("a successor", func(e event) bool { return e.Name == "connected" && e.ID == h.ID && e.Pid != h.Pid })
	p.signal(syscall.SIGTERM)
	p.wait("closing")
	h.finish()
	p.end(0)
}

var _ = helper("quick", func() {
	if cluster.IsWorker() {
		report("main", nil, "")
	}
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// SIGQUIT finds a worker ready for it as soon as its program's own code runs:
// it never dumps goroutines. What somebody else sends before that meets Go's
// runtime, or not even that, and no program could help it; the worker is
// replaced then.
func TestSignalRightAfterSpawn(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"worker", "main"} {
		t.Run(first, func(t *testing.T) {
			p := serve(t, "quick", "workers=1")
			p.wait(first)
			spawned := p.begin("spawn 3")
			for range 3 {
				e := p.wait(first)
				for range 20 {
					syscall.Kill(e.Pid, syscall.SIGQUIT) // gone perhaps
				}
			}
			spawned()
			waitWorkers(p, 4)
			p.signal(syscall.SIGQUIT)
			p.end(0)
			if first == "worker" {
				return // see above
			}
			for _, e := range p.history("killed") {
				if e.Text != "exit status 0" {
					t.Errorf("%+v", e)
				}
			}
			if s := p.log(); strings.Contains(s, "goroutine ") {
				t.Errorf("a worker dumped its goroutines: %s", s)
			}
		})
	}
}

// SIGQUIT right after the start ends the cluster cleanly as soon as the
// master is there.
func TestSignalAtStart(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGTERM} {
		p := start(t, "http", "workers=4")
		p.wait("start")
		p.signal(sig)
		p.end(0)
		if s := p.log(); strings.Contains(s, "goroutine ") {
			t.Errorf("somebody dumped goroutines: %s", s)
		}
	}
}

// Ctrl-C goes to the foreground process group: to the master alone, so that
// no request is cut before the master says so.
func TestCtrlC(t *testing.T) {
	t.Parallel()
	p := command(t, "ctrlc", "workers=2")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.start().wait("listening")
	h := p.hold()
	if err := syscall.Kill(-p.pid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.wait("waiting", h.ID)
	h.finish()
	p.end(0)
	for _, e := range p.history("killed") {
		if e.Text != "exit status 0" {
			t.Errorf("worker %d: %s", e.ID, e.Text)
		}
	}
}

var _ = helper("ctrlc", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	if m.IsMaster() { // a worker that gets it dies
		m.Signals = map[os.Signal]cluster.Action{syscall.SIGINT: cluster.ActionClose}
	}
	finish(m.ListenAndServe(listen(0)))
})

// nohup's SIGHUP stays ignored.
func TestNohup(t *testing.T) {
	t.Parallel()
	p := command(t, "http", "workers=1")
	p.cmd.Args = append([]string{"nohup", p.cmd.Path}, p.cmd.Args[1:]...)
	p.cmd.Path = program(t, "nohup")
	p.start().wait("listening")
	before := p.workers()[0]
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGTTIN) // comes after it
	waitWorkers(p, 2)
	if p.workers()[0] != before || len(p.history("kill", "closing")) > 0 {
		t.Error("SIGHUP was not ignored")
	}
	p.quit()
}
