//go:build unix && !cluster_nofork

package cluster

import (
	"maps"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The table: what signals do in a master. In a worker only those do something
// that workerAction lets through.
var defaultSignals = map[os.Signal]Action{
	syscall.SIGINT:  ActionDestroy,
	syscall.SIGTERM: ActionDestroy,
	syscall.SIGQUIT: ActionClose,
	syscall.SIGUSR2: ActionRestart,
	syscall.SIGHUP:  ActionRestartWorkers,
	syscall.SIGTTIN: ActionSpawn,
	syscall.SIGTTOU: ActionRemove,
	syscall.SIGUSR1: ActionReopen,
}

// watchSignals does what signals call for, until the function it returns is
// called. Those that come before begun is closed wait for that, if it isn't
// nil.
func (m *Master) watchSignals(begun <-chan struct{}) (stop func()) {
	table := maps.Clone(defaultSignals)
	if signal.Ignored(syscall.SIGHUP) {
		delete(table, syscall.SIGHUP) // nohup
	}
	maps.Copy(table, m.Signals)
	c := make(chan os.Signal, 64)
	for sig := range table {
		signal.Notify(c, sig)
	}
	terminal := hasTerminal()
	done := make(chan struct{})
	go func() {
		if begun != nil {
			select {
			case <-begun:
			case <-done:
				return
			}
		}
		for {
			select {
			case sig := <-c:
				action := table[sig]
				if sig == syscall.SIGHUP && terminal && !hasTerminal() {
					action = ActionClose // the terminal has gone, and we with it
				}
				if action == ActionReopen {
					m.missed.Store(int32(sig.(syscall.Signal))) // before the heir is looked for
				}
				if heir := m.heir.Load(); heir != nil && heir.forward(sig) && action != ActionDestroy && action != ActionReopen {
					continue // somebody else is the master now
				}
				m.act(action)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}

// act does one action. It doesn't wait for the outcome.
func (m *Master) act(a Action) {
	log := func(err error) {
		if err != nil {
			m.logf("%v", err)
		}
	}
	switch a {
	case ActionDestroy:
		go m.Destroy()
	case ActionClose:
		go m.Close()
	case ActionRestart:
		go func() { log(m.Restart()) }()
	case ActionRestartWorkers:
		go func() { log(m.RestartWorkers()) }()
	case ActionSpawn:
		log(m.Spawn(1))
	case ActionRemove:
		log(m.do(func(s *supervisor) error {
			if len(s.slots) < 2 {
				return nil
			}
			return s.shrink(1, syscall.SIGQUIT)
		}))
	case ActionReopen:
		m.hooks.fire(fireReopen)
		var once sync.Once
		m.hooks.fire(func(*Hooks) { once.Do(m.reopenWorkers) }) // after the hooks: they may open Stdout anew
	}
}

// reopenWorkers has all workers reopen, those that drain included, and those
// of the old master.
func (m *Master) reopenWorkers() {
	s, err := m.supervisor()
	if err != nil {
		return // Inline
	}
	s.do(func() error {
		for _, w := range s.workers {
			w.proc.reopen()
		}
		return nil
	})
	if self.heir {
		self.link.sendValue(frameReopen, nil)
	}
}

// workerAction returns what sig does in a worker.
func (m *Master) workerAction(sig os.Signal) Action {
	if a, ok := m.Signals[sig]; ok {
		return a
	}
	switch sig {
	case syscall.SIGQUIT:
		return ActionClose
	case syscall.SIGUSR1:
		return ActionReopen
	}
	return ActionIgnore
}

// hasTerminal reports whether this process has a controlling terminal that
// is still there.
func hasTerminal() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
