//go:build unix

package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// What commands do when no master answers: they go by the pidfiles.

// An identity is a process, and no other that gets its id later.
type identity struct {
	pid   int
	start string // when it was started, where that is known
	gone  bool   // it was gone from the beginning
}

// A named is a worker process that a pidfile names.
type named struct {
	name string
	identity
}

// files returns the processes that the pidfiles name. The master is the zero
// identity if there is no file of it.
func (c *call) files() (master identity, workers []named) {
	names, _ := c.pids.Names()
	for _, name := range names {
		pid, err := c.pids.PidOf(name)
		if err != nil {
			continue
		}
		id := identify(pid)
		if !plausible(pid, c.titles) {
			id.gone = true
		}
		if name == "master" {
			master = id
		} else {
			workers = append(workers, named{strings.Replace(name, ".", " ", 1), id})
		}
	}
	return master, workers
}

// living returns those workers that are alive.
func living(workers []named) (list []identity) {
	for _, w := range workers {
		if w.alive() {
			list = append(list, w.identity)
		}
	}
	return list
}

// fallBack returns what there is when dial has failed. silent is whether
// there is a master that doesn't answer; err is for other failures.
func (c *call) fallBack(cause error) (master identity, workers []named, silent bool, err error) {
	s := (*silentError)(nil)
	silent = errors.As(cause, &s)
	if !silent && cause != errNobody {
		return master, nil, false, cause
	}
	master, workers = c.files()
	if silent && s.pid != 0 {
		master = identify(s.pid)
	}
	return master, workers, silent, nil
}

// without is for a command that nothing but a master can do: it returns the
// error.
func (c *call) without(cause error) error {
	master, workers, silent, err := c.fallBack(cause)
	switch {
	case err != nil:
		return err
	case silent:
		return &silentError{master.pid}
	case master.alive():
		return errors.New(deaf(master))
	}
	return c.notRunning(master, living(workers))
}

// deaf says why a master that lives is not at its socket.
func deaf(master identity) string {
	return fmt.Sprintf("master %d takes no commands: it is shutting down, or does not use this package", master.pid)
}

// notRunning returns the error for there being no master.
func (c *call) notRunning(master identity, workers []identity) error {
	err := fmt.Errorf("nothing runs (%s); %q starts it", c.dir, os.Args[0])
	if len(workers) > 0 {
		err = fmt.Errorf("master %d is dead, but not %s; %q ends what is left, and %q starts anew",
			master.pid, plural(len(workers), "worker"), os.Args[0]+" stop", os.Args[0])
	}
	return &exitError{exitNotRunning, err}
}

// note prints what is worth knowing, and no failure.
func (c *call) note(format string, args ...any) {
	c.clear()
	complain(fmt.Errorf(format, args...))
}

func (c *call) statusOfFiles(cause error) error {
	master, workers, silent, err := c.fallBack(cause)
	if err != nil {
		return err
	}
	list := []process{}
	add := func(name string, id identity) {
		p := process{Name: name, Pid: id.pid, Alive: id.alive()}
		if p.Alive {
			p.Memory = memory(id.pid)
		}
		list = append(list, p)
	}
	if master.pid != 0 {
		add("master", master)
	}
	for _, w := range workers {
		add(w.name, w.identity)
	}
	c.printTable(list)
	alive := living(workers)
	switch {
	case silent:
		return &silentError{master.pid}
	case master.alive():
		c.note("%s", deaf(master))
		return nil
	case len(alive) > 0:
		return fmt.Errorf("master %d is dead, but not %s", master.pid, plural(len(alive), "worker"))
	}
	return c.notRunning(master, nil)
}

// restartBySignal restarts a master that is not at its socket.
func (c *call) restartBySignal(cause error) error {
	old, workers, silent, err := c.fallBack(cause)
	if err != nil {
		return err
	}
	if silent && old.pid == 0 {
		return cause
	}
	if !old.alive() {
		return c.notRunning(old, living(workers))
	}
	if err := old.signal(syscall.SIGUSR2); err != nil {
		return err
	}
	if silent {
		return fmt.Errorf("master %d does not answer; it has been sent SIGUSR2, and restarts if it recovers", old.pid)
	}
	c.goesOn()
	c.progress("master %d takes no commands; it has been sent SIGUSR2", old.pid)
	for late := time.Now().Add(signalTime); time.Now().Before(late); time.Sleep(10 * time.Millisecond) {
		next, _ := c.files() // it is in them when its workers are ready
		if next.pid != old.pid && next.alive() {
			c.result["master"], c.result["old"] = next.pid, old.pid
			c.printf("master %d has replaced master %d, %s", next.pid, old.pid, c.took())
			return nil
		}
		if !old.alive() {
			return fmt.Errorf("master %d has ended", old.pid)
		}
	}
	return fmt.Errorf("master %d has been sent SIGUSR2, and no other has replaced it within %v: see its log", old.pid, signalTime)
}

// signalTime is how long a restart by signal may take.
const signalTime = time.Minute

// endBySignal ends a master that is not at its socket, or its workers if it
// is dead.
func (c *call) endBySignal(cause error) error {
	master, workers, silent, err := c.fallBack(cause)
	if err != nil {
		return err
	}
	if silent && master.pid == 0 {
		return cause
	}
	sig, sigName := syscall.SIGQUIT, "SIGQUIT"
	if c.name == "stop" {
		sig, sigName = syscall.SIGTERM, "SIGTERM"
	}
	all := living(workers)
	n := len(all)
	targets, who := all, plural(n, "worker")
	switch {
	case master.alive():
		all = append(all, master)
		targets = []identity{master}
		why := "takes no commands"
		if silent {
			why = "does not answer"
		}
		c.progress("master %d %s; it has been sent %s", master.pid, why, sigName)
		who = fmt.Sprintf("master %d gone, with %s", master.pid, who)
	case n == 0:
		return c.notRunning(master, nil)
	default:
		c.progress("master %d is dead; %s sent %s", master.pid, who, sigName)
		who += " gone"
	}
	for _, p := range targets {
		if err := p.signal(sig); err != nil {
			return err
		}
	}
	c.goesOn()
	hard := time.Now().Add(c.timeout)
	for begun := time.Now(); len(left(all)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > patience {
			c.progress("waiting for %v to exit", left(all))
		}
		if c.name == "stop" && time.Now().After(hard) {
			for _, p := range all {
				if p.alive() {
					p.signal(syscall.SIGKILL)
				}
			}
		}
	}
	c.result["master"], c.result["workers"] = master.pid, n
	c.printf("%s, %s", who, c.took())
	return nil
}

// signal sends sig, and has a process go on that was stopped.
func (id identity) signal(sig syscall.Signal) error {
	err := syscall.Kill(id.pid, sig)
	if err == nil && sig != syscall.SIGUSR2 {
		err = syscall.Kill(id.pid, syscall.SIGCONT)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process %d can't be sent a signal: %w", id.pid, err)
	}
	return nil
}

// alive reports whether the process is there. One that has ended and waits
// for its parent is not, where that can be told.
func (id identity) alive() bool {
	if id.pid <= 0 || id.gone {
		return false
	}
	err := syscall.Kill(id.pid, 0)
	return (err == nil || errors.Is(err, syscall.EPERM)) && id.same()
}

// left returns the ids of those of the processes that are alive.
func left(processes []identity) (pids []int) {
	for _, p := range processes {
		if p.alive() {
			pids = append(pids, p.pid)
		}
	}
	return pids
}
