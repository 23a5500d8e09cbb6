/*
Package cluster runs a server as a master process and a number of worker
processes on one machine. The master owns the listening sockets and never
serves; workers serve, and may die: the master replaces them.

The shortest program passes a server to [ListenAndServe] instead of calling
the server's own:

	func main() {
		server := &http.Server{Handler: http.HandlerFunc(hello)}
		if err := cluster.ListenAndServe(":3000", server); err != nil {
			log.Fatal(err)
		}
	}

It forks a worker for every CPU. Each of them runs main again, and in a worker
ListenAndServe serves the socket that the master has bound. Ctrl-C stops it
all. After a shutdown that was asked for ListenAndServe returns nil, so that
the program ends with status 0.

# More control

A [Master] has the settings as fields, and [Master.Set] sets them by name:

	m := &cluster.Master{
		Addr:      ":3000",
		NewServer: newServer,
		Workers:   4,
		Timeout:   30 * time.Second,
	}
	m.On(cluster.Hooks{
		WorkerException: func(w *cluster.Worker, err error) {
			log.Printf("worker %d: %v", w.ID, err)
		},
	})
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}

NewServer is called in workers only. What a server needs, a database for
instance, should be opened there: the master would hold a connection that it
never uses. Code that comes before ListenAndServe runs in every process.

A [Server] is anything that serves a net.Listener and can be told to stop. An
*http.Server is one; [TCPServer] makes one of a function that handles a
connection. [Listen] gives a listener to pass to ListenAndServe, perhaps with
tls.NewListener around it, or to [Master.Add] with a server of its own;
[ListenPacket] is for UDP.

Workers need not be servers. [Master.Start] runs an abstract cluster, of
processes that work off a queue, say. It returns in master and workers, and
[Master.IsWorker] tells which one it is:

	m := new(cluster.Master)
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		work(m.Done()) // until it is closed
	}
	if err := m.Wait(); err != nil {
		log.Fatal(err)
	}

[Hooks] tell what happens, [Master.Send] and [Worker.Send] carry messages
between a worker and the master. A [Plugin] is a function that sets fields and
registers hooks. [Master.In] makes settings depend on the environment that is
named by $CLUSTER_ENV.

While the cluster runs, [Master.Spawn] and [Master.Remove] change the number of
workers, [Master.Restart] replaces everything by a new version,
[Master.RestartWorkers] the workers alone, [Master.Close] and
[Master.Shutdown] let them finish, and [Master.Destroy] doesn't. These are for
the master.

# Signals

	signal             master                           worker
	SIGINT, SIGTERM    hard shutdown                    exits at once
	SIGQUIT            graceful shutdown                drains, then exits
	SIGUSR2            restart                          ignored
	SIGHUP             rolling restart of the workers   ignored
	SIGTTIN, SIGTTOU   one worker more, one fewer       ignored
	SIGUSR1            Hooks.Reopen                     Hooks.Reopen

Workers are in process groups of their own, so that Ctrl-C reaches the master
alone. SIGHUP is a graceful shutdown when the master's terminal has gone, and
stays ignored under nohup(1). SIGTTOU leaves the last worker alone.
Master.Signals overrides the table.

# How it works

A worker is a new process of the master's own program, or of Master.Path, with
one end of a unix socket connection to its master. Having that connection is
what makes a process a worker. Over it come the settings and the sockets, and
go the signs of life and messages; its end tells a worker that the master has
died. The worker then finishes what it is doing and exits, and no orphan stays
behind.

The environment variables CLUSTER_WORKER, the worker's id, and
CLUSTER_MASTER_PID can be read with os.Getenv in workers. They make no process
a worker by themselves: in one that has them but no connection they are
unset when it starts.

The master binds every socket, keeps it open as long as it lives, and accepts
from none. All workers accept from the same socket: whoever is free takes the
next connection, and of those that have nothing to do Linux wakes only the one
that has waited longest. [Listen] in a worker finds the inherited socket by network
and address, so that the same call works in every process. As the socket
outlives each worker, connections wait in the kernel's queue while a worker is
replaced, and are not refused. With Master.ReusePort every worker's slot has a
socket of its own, which the master holds just the same; while a slot has no
worker that is ready, another accepts from its socket.

A worker has a slot, whose number is its id. It is starting until it could
accept, then ready until it drains, and at last dead; see [WorkerState]. When
it dies, whatever of, the next one is started in its slot: at once for the
first time, and after growing pauses if it keeps dying early. If the first
workers can't become ready, ListenAndServe gives up and returns a
[*StartError]. A worker that panics is seen in Hooks.WorkerException, with
its stack; one that gives no sign of life for Master.Heartbeat is replaced, and the stacks
of its goroutines are seen there.

A worker drains when it is to be replaced or the cluster closes: it stops
accepting, lets open connections finish, and exits, all within Master.Timeout.
Keep-alive connections are closed when they are idle; with a server of package
handoff they are given to the workers that come after. When all workers close,
they first take what the kernel has queued.

# Restarts

In a rolling restart each worker's successor is ready before it drains. They
are all of the master's own version, even if its file has been replaced.

[Master.Restart] is for a new version. The old master forks the new one from
what is now found under the program's name, and gives it the sockets. The new
master starts its workers, which wait. When all are ready, the old master is
told; it says the word, and drains, and the new workers accept. Nothing before
that word has changed the old cluster: a new version that doesn't get so far is
killed, and Restart tells why.

The process that was started first is known to somebody: a shell, a service
manager, a container. It stays behind as a stand-in until the last master has
ended, passes on the signals that it gets, and ends as that does. There is one
however many restarts there are; with Master.Detach there is none.

# What it is not

It is no load balancer: one machine, one set of sockets. Workers share no
memory; a cache or a session that all of them need belongs in something that
all of them can reach, or goes by messages if it is small and rare.

It does not replace a service manager. That starts the master, and starts it
again after a reboot or after somebody has killed it outright.

It is not needed for using all CPUs: one Go process does that. Workers are for
living on when a process crashes or hangs, and for replacing one without
refusing anybody.

# Other systems

All this holds on Linux, and is tested there. macOS, the BSDs and illumos
differ in details: ps shows no titles, @abstract addresses don't exist, and a
connection that arrives just as the last workers drain may be reset. For them
the package is built and vetted, but not run.

Where a process can't fork, as on Windows, the calling process serves, just as
with Master.Inline: there are no workers to be replaced, and os.Interrupt and
SIGTERM shut down hard. The build tag cluster_nofork has it so on any system;
AIX needs it. Plan 9 and WebAssembly are not supported.
*/
package cluster
