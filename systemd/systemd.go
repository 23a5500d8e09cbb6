/*
Package systemd makes a cluster a service of systemd: a plugin tells the
service manager what goes on, and Listeners takes the sockets that it has
opened.

	m := &cluster.Master{Addr: ":3000", Server: server}
	m.Use(systemd.New())

with a unit like this, which examples/systemd has in full:

	[Service]
	Type=notify
	ExecStart=/usr/local/bin/app
	ExecReload=/bin/kill -USR2 $MAINPID
	KillMode=mixed
	KillSignal=SIGQUIT
	WatchdogSec=30
	Restart=on-failure

KillMode=mixed has systemd signal the master alone, which sees to its workers;
with the default each of them would get the signal too, and SIGTERM ends them
at once. KillSignal=SIGQUIT makes systemctl stop a graceful shutdown.

Where no service manager listens, in a shell for instance, the plugin does
nothing.

# What is told

	READY=1                      the first workers are all ready, connections are served
	RELOADING=1, then READY=1    a restart of the cluster, or of all its workers, begins; it is over
	MAINPID                      another master is the main process from now on
	STOPPING=1                   the cluster shuts down
	STATUS="4/4 workers"         how many workers are ready, of how many; and why the last restart has failed
	WATCHDOG=1                   twice per WatchdogSec, while the master's supervisor answers
	EXTEND_TIMEOUT_USEC          during a restart or a shutdown that takes long

A new master becomes the main process when the old one hands over to it: when
all its workers are ready. The old one says so, which the manager takes from
the main process under NotifyAccess=main, the default. It still drains then,
and ends later; the plugin sets Master.Detach, for a stand-in would be in the
way of the manager. A new master that fails has told nothing: the old one is
what it was, is READY again, and its STATUS tells the reason. systemctl stop
while an old master drains waits for it too.

In a container, as process 1, there is no Detach, for the container would end;
MAINPID is not told, and the manager must listen to all processes
(NotifyAccess=all).

Master.Timeout limits how long a shutdown takes, and Master.RestartTimeout a
restart. TimeoutStopSec and TimeoutStartSec need not be as long, but ten
seconds, for both are extended only when they have gone on for some time, and
the first start is not.

The variables $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID are taken from
the master's environment, but for the time of a restart: workers, and other
programs that the master starts, don't have them and can't notify.

# Reload

ExecReload, as above, restarts the cluster: systemctl reload is an upgrade to
the version that is now found under the program's name. With -HUP in place of
-USR2 it replaces the workers, by ones of the version that runs.

Since systemd 253 there is a better way: systemctl reload then waits for the
outcome.

	Type=notify-reload
	ReloadSignal=SIGUSR2

without an ExecReload. ReloadSignal is SIGHUP if it is not set.

# Socket activation

Sockets that systemd has opened are kept over any number of restarts, and are
still there when the service has ended: no connection is refused while it
starts, and none when it crashes. See Listeners.
*/
package systemd

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocluster/cluster"
)

// What the service manager tells by. A new master gets them from the old one,
// whose process id is then in envWatchdogPid.
const (
	envSocket      = "NOTIFY_SOCKET"
	envWatchdog    = "WATCHDOG_USEC"
	envWatchdogPid = "WATCHDOG_PID"
)

// envStays is set for new masters where the first process stays: in a
// container that ends with it.
const envStays = "CLUSTER_SYSTEMD_STAYS"

// How often the manager is asked for more time, and for how much.
const (
	extendEvery = 5 * time.Second
	extendBy    = 15 * time.Second
)

// discretion is how long a new master says nothing that can wait: what it
// says before the old one has told of it the manager complains about.
const discretion = time.Second

// New returns a plugin that notifies the service manager if there is one:
// if $NOTIFY_SOCKET is set. It then also sets Master.Detach, but in process 1. It
// works in the master alone. What can't be sent is logged to ErrorLog, once.
//
// With Inline it tells READY=1, STOPPING=1 and WATCHDOG=1, the latter while
// Master.Alive, if there is one, returns nil.
func New() cluster.Plugin {
	return func(m *cluster.Master) error {
		socket, usec, pid := os.Getenv(envSocket), os.Getenv(envWatchdog), os.Getenv(envWatchdogPid)
		stays := os.Getpid() == 1 || os.Getenv(envStays) != ""
		clearEnv()
		if socket == "" || !m.IsMaster() {
			return nil
		}
		n := &notifier{
			m:     m,
			addr:  &net.UnixAddr{Name: socket, Net: "unixgram"},
			stays: stays,
			slots: make(map[int]bool),
			stop:  make(chan struct{}),
		}
		if n.ours(pid) {
			n.watchdog = watchdog(usec)
		}
		if !n.stays {
			m.Detach = true
		}
		m.On(cluster.Hooks{
			Listening:         n.listening,
			Established:       n.established,
			Restart:           n.restarted,
			Restarting:        n.restart,
			RestartFailed:     n.restartFailed,
			RestartingWorkers: n.rollingBegins,
			WorkersRestarted:  n.rollingEnds,
			Closing:           n.closing,
			Close:             n.close,
			Worker:            func(w *cluster.Worker) { n.worker(w, true) },
			WorkerConnected:   func(*cluster.Worker) { n.workers() },
			WorkerKilled:      func(*cluster.Worker) { n.workers() },
			WorkerRemoved:     func(w *cluster.Worker) { n.worker(w, false) },
		})
		return nil
	}
}

// clearEnv keeps what the manager tells by from whoever is started by this
// process.
func clearEnv() {
	for _, name := range []string{envSocket, envWatchdog, envWatchdogPid, envStays} {
		os.Unsetenv(name)
	}
}

// watchdog parses the time in which the manager wants a sign of life, 0 for
// none.
func watchdog(usec string) time.Duration {
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(1<<63-1)/int64(time.Microsecond) {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// A notifier tells what goes on in one master.
type notifier struct {
	m        *cluster.Master
	addr     *net.UnixAddr
	watchdog time.Duration // 0: off
	stays    bool          // the first process is the manager's main process for ever

	mu         sync.Mutex // guards the following
	main       bool       // this is the manager's main process, or about to be
	discreet   bool       // the manager may not know that yet
	alone      bool       // the old master is gone, or is a stand-in
	restarting bool       // the cluster
	rolling    bool       // the workers
	stopping   bool       // it shuts down, not because it was replaced
	extending  bool       // extend runs
	slots      map[int]bool
	failure    string        // of the last restart
	status     string        // that was sent
	stop       chan struct{} // closed when this master says no more
	stopped    bool
	broken     bool // the last message could not be sent
}

// ours reports whether the watchdog is for the process with this id: for us,
// or for the master before us.
func (n *notifier) ours(pid string) bool {
	return pid == "" || pid == strconv.Itoa(os.Getpid()) || pid == strconv.Itoa(n.m.Predecessor())
}

// send sends assignments as one message, if this is the main process. n.mu is
// held.
func (n *notifier) send(assignments ...string) {
	if !n.main {
		return
	}
	err := n.write(strings.Join(assignments, "\n"))
	if err != nil && !n.broken {
		n.logf("systemd: %s: %v", envSocket, err)
	}
	n.broken = err != nil
}

func (n *notifier) write(message string) error {
	conn, err := net.DialUnix(n.addr.Net, nil, n.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(time.Second)) // it may not be reading
	_, err = conn.Write([]byte(message))
	return err
}

func (n *notifier) logf(format string, args ...any) {
	if n.m.ErrorLog != nil {
		n.m.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

// listening is where the first master is ready. A new one is not the main
// process yet.
func (n *notifier) listening() {
	if n.m.Predecessor() != 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.main = true
	n.send("READY=1", n.newStatus())
	n.begin()
	if n.inline() {
		go func() {
			<-n.m.Done()
			n.closing()
		}()
	}
}

// established is where a new master is the main process, as far as it knows.
// The old one says so, and READY=1.
func (n *notifier) established() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return
	}
	n.main = true
	if n.begin(); n.stopping { // since before that
		n.send("STOPPING=1", n.newStatus())
		n.takesLong()
		return
	}
	n.discreet = true
	time.AfterFunc(discretion, n.speak)
}

// speak ends a new master's discretion.
func (n *notifier) speak() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.discreet {
		n.discreet = false
		n.send(append(n.mainPid(os.Getpid()), n.newStatus())...)
	}
}

// mainPid returns what tells that another process is the main one.
func (n *notifier) mainPid(pid int) []string {
	if n.stays {
		return nil
	}
	return []string{fmt.Sprintf("MAINPID=%d", pid)}
}

// restarted is where the old master has ended.
func (n *notifier) restarted(cluster.Values) {
	n.mu.Lock()
	n.alone = true
	n.mu.Unlock()
	n.speak()
}

// begin begins to give signs of life. n.mu is held.
func (n *notifier) begin() {
	if n.watchdog > 0 {
		go n.every(n.watchdog/2, func() bool {
			if n.answers() {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.send("WATCHDOG=1")
			}
			return true
		})
	}
}

// every calls f at that interval, until it returns false or this master says
// no more.
func (n *notifier) every(d time.Duration, f func() bool) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if !f() {
				return
			}
		case <-n.stop:
			return
		}
	}
}

// answers reports whether the supervisor does. If it hangs, so does answers:
// no sign of life is given then.
func (n *notifier) answers() bool {
	if n.inline() {
		if n.m.Alive == nil {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), n.watchdog/2)
		defer cancel()
		return n.m.Alive(ctx) == nil && ctx.Err() == nil
	}
	n.m.Spawn(0) // it does nothing; that it is refused by a master that closes is an answer too
	return true
}

func (n *notifier) inline() bool { return n.m.IsWorker() }

// restart is the Restarting hook: the new master, which is forked next, gets
// what the manager has given us.
func (n *notifier) restart(cluster.Values) {
	os.Setenv(envSocket, n.addr.Name)
	if n.stays {
		os.Setenv(envStays, "1")
	}
	if n.watchdog > 0 {
		os.Setenv(envWatchdog, strconv.FormatInt(n.watchdog.Microseconds(), 10))
		os.Setenv(envWatchdogPid, strconv.Itoa(os.Getpid()))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.restarting = true
	n.reloading()
}

// restartFailed makes this master what it was.
func (n *notifier) restartFailed(err error) {
	clearEnv()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.restarting { // it has failed in a hook before ours
		n.reloading()
	}
	n.restarting = false
	n.reloaded("restart", err)
}

func (n *notifier) rollingBegins() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rolling = true
	n.reloading()
}

func (n *notifier) rollingEnds(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rolling = false
	n.reloaded("restart of the workers", err)
}

// reloading tells that something is under way. n.mu is held.
func (n *notifier) reloading() {
	n.failure = ""
	if n.stopping {
		return
	}
	message := []string{"RELOADING=1"}
	if usec := monotonic(); usec > 0 {
		message = append(message, fmt.Sprintf("MONOTONIC_USEC=%d", usec))
	}
	n.send(message...)
	n.takesLong()
}

// reloaded tells that something has ended. n.mu is held.
func (n *notifier) reloaded(what string, err error) {
	if err != nil && !errors.Is(err, cluster.ErrNotRunning) {
		n.failure = fmt.Sprintf("; %s failed: %v", what, err)
	}
	if n.restarting || n.rolling || n.stopping {
		return
	}
	n.send("READY=1", n.newStatus())
}

// takesLong asks for more time while something is under way. n.mu is held.
func (n *notifier) takesLong() {
	if n.extending || !n.main {
		return
	}
	n.extending = true
	go n.every(extendEvery, func() bool {
		n.answers()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.extending = n.restarting || n.rolling || n.stopping
		if n.extending {
			n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()))
		}
		return n.extending
	})
}

// closing is where another master becomes the main process, or none.
func (n *notifier) closing() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if pid := n.m.Successor(); pid != 0 {
		// One message, for the manager listens to us no more after it.
		n.send(append(n.mainPid(pid), "READY=1", "WATCHDOG=1")...)
		n.end()
		return
	}
	if n.stopping {
		return
	}
	n.stopping = true
	n.send("STOPPING=1", n.newStatus())
	n.takesLong()
}

// close is where a master ends. A new one that is the main process ends last:
// systemd kills what is left then.
func (n *notifier) close() {
	n.closing() // if the start has failed, or with Inline, that was not called
	if n.last() && n.m.State() == cluster.GracefulShutdown {
		for old := n.m.Predecessor(); os.Getppid() == old; {
			time.Sleep(20 * time.Millisecond)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end()
}

// last reports whether this master must outlive its predecessor, which may be
// there.
func (n *notifier) last() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.main && !n.stays && !n.alone && n.m.Predecessor() != 0
}

// end has this master say no more. n.mu is held.
func (n *notifier) end() {
	n.main = false
	if !n.stopped {
		n.stopped = true
		close(n.stop)
	}
}

// worker notes that w's slot is there, or is not any more.
func (n *notifier) worker(w *cluster.Worker, there bool) {
	n.mu.Lock()
	for id := range n.slots {
		if !there && id >= w.ID { // the highest ids are removed first
			delete(n.slots, id)
		}
	}
	if there {
		n.slots[w.ID] = true
	}
	n.mu.Unlock()
	n.workers()
}

// workers tells how many there are, if that has changed.
func (n *notifier) workers() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if before := n.status; !n.discreet && n.newStatus() != before {
		n.send(n.status)
	}
}

// newStatus returns the present status, which will be sent. n.mu is held.
func (n *notifier) newStatus() string {
	ready, left := make(map[int]bool), 0
	for _, w := range n.m.Children() {
		if w.State() == cluster.WorkerReady {
			ready[w.ID] = true
		}
		left++
	}
	text := fmt.Sprintf("%d/%d workers", len(ready), max(len(ready), len(n.slots)))
	switch {
	case n.inline():
		text = "inline"
	case n.stopping:
		text = fmt.Sprintf("shutting down, workers left: %d", left)
	}
	n.status = "STATUS=" + strings.ReplaceAll(text+n.failure, "\n", " ")
	return n.status
}
