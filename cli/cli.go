/*
Package cli is a plugin that makes a server program its own control tool:

	func main() {
		m := &cluster.Master{Addr: ":3000", NewServer: newServer}
		m.Use(pidfiles.New(""), cli.New(nil))
		if err := m.ListenAndServe(nil); err != nil {
			log.Fatal(err)
		}
	}

	$ ./app &
	$ ./app status
	process   pid   status  state   uptime  memory    connections
	master    3281  alive   active  2m3s    9.1 MiB   -
	worker 0  3287  alive   ready   2m3s    14.8 MiB  3/1207
	worker 1  3288  alive   ready   2m3s    14.6 MiB  1/1198
	$ ./app restart
	2/2 workers ready, old master 3281 gone, 84 ms

These are the commands:

	-s, --status, status       show the processes, and connections now and in all
	-r, --restart, restart     replace everything by a new version
	reload                     replace the workers, one after the other
	-g, --shutdown, shutdown   end when the workers have finished what they do
	-S, --stop, stop           end at once
	spawn N                    start N more workers; -N ends as many
	repl                       attach this terminal to the running cluster
	-h, --help, help           list the commands
	-v, --version, version     print the program's version

[Define] adds to them. A command runs in place of a start, where the plugins
run: before Addr is bound, but after what main has done before ListenAndServe.
A program that binds a socket there calls [Main] first.

A command is the first argument or none: with any other, or with none, the
program starts as if it did not use this package. A program with a flag of its
own that is called like a command can take that name back:

	cli.Define("-v", nil, "")

# Outcomes

A command waits for its outcome. restart ends when the new master serves, and
the old one is gone with all its workers; shutdown and stop when every process
of the cluster is gone; reload when the last of the old workers has been told
to finish; spawn when the new workers are ready, or the removed ones gone. To
interrupt a command leaves to the cluster what it has begun. A restart that
finds another one under way waits for it, and then asks the new master for one
more, so that what runs in the end is what was there when it was asked for.

The reason of a failure goes to standard error. The exit status is

	0  done
	1  failed; for status: the master hangs, or is dead and has left workers
	   (one that is there but takes no commands, as it shuts down, is 0, and
	   standard error says so)
	2  wrong usage
	3  there is no master; for status, shutdown and stop: nothing runs

With --json after the command, standard output is one JSON object, and nothing
else, with "ok", "code" (the exit status), "command", "error" if there is one,
and more: what the command's line says, and "ms", the time it has taken. For
status it has "processes", with "name", "pid", "alive", "state", "uptime" in
seconds, "memory" in bytes, "active" and "total" connections; null is what is
not known.

# How it works

The master listens at a unix socket, cli.sock, that its own user and root can
connect to and nobody else. It lies in the directory of the pidfiles, and that
is how a command finds its cluster: it must be run where the paths of the
program lead to the same directory as they do for the server.

A master that shuts down is not at its socket any more, one that was killed
leaves workers behind which finish what they are doing, and one that is stopped
does not answer within Options.Timeout. Then status reads the pidfiles, restart
sends SIGUSR2 to the master, shutdown SIGQUIT and stop SIGTERM, and after that
time SIGKILL, to the master or, if that is gone, to its workers. This needs
package pidfiles. As the id of a dead process may be another's now, only
those are signalled that run a program of the same name, or that have the
cluster's title; on systems other than Linux this can't be told.

Where a process can't fork, and with Master.Inline, there is no cluster to
control.
*/
package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/pidfiles"
)

// Options are the options of the plugin. The zero value of each is a good
// one.
type Options struct {
	// Dir is the directory of the control socket; the master makes it if
	// need be. "" is that of the pidfiles plugin if there is one, else
	// "pids". It is relative to Master.Dir, and for Main to the current
	// directory.
	Dir string

	// Version is what the version command prints. "" is the version of the
	// main module, as the go command has put it into the program.
	Version string

	// Timeout is how long a command waits for a master to answer before it
	// goes by the pidfiles, and for a process to end by the signal that stop
	// sends it. 0 is five seconds.
	Timeout time.Duration
}

// New returns a plugin that runs a command and exits if the program's first
// argument is one, and serves commands in the master if not. In workers it
// counts connections for the status command when it is asked. A nil o is one
// without any option set.
//
// The plugin does its work after all other plugins, wherever it stands among
// them.
func New(o *Options) cluster.Plugin {
	if o == nil {
		o = new(Options)
	}
	return func(m *cluster.Master) error { return (&plugin{o: *o}).later(m) }
}

// Main runs a command and exits if the program's first argument is one, and
// returns if not. It is for programs that do before ListenAndServe what a
// command should not, and goes first in main. New must be used all the same,
// with the same options: the pidfiles plugin is not known here, nor is
// Master.Dir.
func Main(o *Options) {
	if o == nil {
		o = new(Options)
	}
	if !cluster.IsWorker() {
		o.run(nil)
	}
}

// A plugin is what New returns, in one Master.
type plugin struct {
	o      Options
	rounds int
	last   int // so many plugins there were when this one was put at their end
}

// later puts the plugin behind all others, also those that they use.
func (p *plugin) later(m *cluster.Master) error {
	if len(m.Plugins) != p.last && p.rounds < 4 { // two of this kind would go on for ever
		p.rounds++
		m.Use(p.later)
		p.last = len(m.Plugins)
		return nil
	}
	if !cluster.IsWorker() && m.Predecessor() == 0 {
		p.o.run(m)
	}
	dir, err := p.o.dir()
	if err != nil {
		return fmt.Errorf("cli: %w", err)
	}
	return attach(m, dir)
}

// dir returns the directory of the control socket.
func (o *Options) dir() (string, error) {
	return filepath.Abs(cmp.Or(o.Dir, string(pidfiles.InUse()), "pids"))
}

// The exit status of a command.
const (
	exitFailed     = 1
	exitUsage      = 2
	exitNotRunning = 3
)

// An exitError is an error with an exit status other than exitFailed.
type exitError struct {
	code int
	error
}

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// A command is what the program's first argument may name.
type command struct {
	names       []string
	argument    string // that it needs, for help
	description string
	builtin     string // what it is called here, whatever names it has lost
	f           func(args []string) error
}

var (
	mu       sync.Mutex // guards commands
	commands []*command
)

func init() {
	for _, c := range []command{
		{builtin: "status", names: []string{"-s", "--status"}, description: "show the processes, and connections now and in all"},
		{builtin: "restart", names: []string{"-r", "--restart"}, description: "replace everything by a new version"},
		{builtin: "reload", description: "replace the workers, one after the other"},
		{builtin: "shutdown", names: []string{"-g", "--shutdown"}, description: "end when the workers have finished what they do"},
		{builtin: "stop", names: []string{"-S", "--stop"}, description: "end at once"},
		{builtin: "spawn", argument: "N", description: "start N more workers; -N ends as many"},
		{builtin: "repl", description: "attach this terminal to the running cluster"},
		{builtin: "help", names: []string{"-h", "--help"}, description: "list the commands"},
		{builtin: "version", names: []string{"-v", "--version"}, description: "print the program's version"},
	} {
		c.names = append(c.names, c.builtin)
		commands = append(commands, &c)
	}
}

func split(names string) []string {
	return strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' })
}

// Define defines a command that goes by any of the names, given as
// "-x, --example, example". f is called in the calling process, which then
// exits, with the arguments that follow the command; its error is printed,
// and makes the exit status 1. The names are taken away from commands that
// had them. A nil f leaves them to the program.
//
// Define is to be called before ListenAndServe, Start or Main.
func Define(name string, f func(args []string) error, description string) {
	mu.Lock()
	defer mu.Unlock()
	names := split(name)
	for _, c := range commands {
		c.names = slices.DeleteFunc(c.names, func(s string) bool { return slices.Contains(names, s) })
	}
	commands = slices.DeleteFunc(commands, func(c *command) bool { return len(c.names) == 0 })
	if f != nil && len(names) > 0 {
		commands = append(commands, &command{names: names, description: description, f: f})
	}
}

// lookup returns the command of that name, or nil.
func lookup(name string) *command {
	mu.Lock()
	defer mu.Unlock()
	for _, c := range commands {
		if slices.Contains(c.names, name) {
			return c
		}
	}
	return nil
}

// silence is how long either side waits for what the other one should say at
// once.
const silence = 5 * time.Second

// A call is one run of a command.
type call struct {
	name    string // of a built-in command, the last of its names
	n       int    // spawn's argument
	version string
	timeout time.Duration
	dir     string       // of the control socket
	path    string       // the control socket's
	pids    pidfiles.Dir // to fall back to
	titles  []string     // that the processes may have
	begun   time.Time
	result  map[string]any // what --json prints

	mu    sync.Mutex // guards the following, and what is printed
	json  bool
	tty   bool
	shown string // the last line of progress
}

// run runs the command that the program's first argument names, if it does,
// and exits. m may be nil.
func (o *Options) run(m *cluster.Master) {
	if len(os.Args) < 2 {
		return
	}
	if cmd := lookup(os.Args[1]); cmd != nil {
		os.Exit(o.exec(m, cmd, os.Args[2:]))
	}
}

// exec runs a command, and returns its exit status.
func (o *Options) exec(m *cluster.Master, cmd *command, args []string) int {
	if cmd.f != nil {
		if err := cmd.f(args); err != nil {
			complain(err)
			return exitFailed
		}
		return 0
	}
	c := &call{
		version: o.Version,
		timeout: cmp.Or(o.Timeout, silence),
		titles:  []string{"cluster"},
		begun:   time.Now(),
	}
	c.name = cmd.builtin
	c.result = map[string]any{"command": c.name}
	if m != nil {
		worker, _, _ := strings.Cut(m.WorkerTitle, "{n}")
		c.titles = append(c.titles, m.Title, worker)
	}
	if info, err := os.Stdout.Stat(); err == nil {
		c.tty = info.Mode()&os.ModeCharDevice != 0
	}
	var err error
	c.json, args = takeJSON(args)
	if c.n, err = arguments(cmd, args); err == nil {
		if c.dir, err = o.dir(); err == nil {
			c.pids = cmp.Or(pidfiles.InUse(), pidfiles.Dir(c.dir))
			err = c.do()
		}
	}
	return c.finish(err)
}

func (c *call) do() error {
	switch c.name {
	case "help":
		return c.help()
	case "version":
		return c.printVersion()
	}
	return c.control()
}

// takeJSON takes --json out of the arguments.
func takeJSON(args []string) (bool, []string) {
	i := slices.Index(args, "--json")
	if i < 0 {
		return false, args
	}
	return true, slices.Concat(args[:i], args[i+1:])
}

// arguments checks what follows a built-in command, and returns the number.
func arguments(cmd *command, args []string) (n int, err error) {
	name := cmd.builtin
	if cmd.argument != "" && len(args) > 0 {
		if n, err = strconv.Atoi(args[0]); err != nil || n == 0 {
			return 0, usage("%s: %q is no number of workers", name, args[0])
		}
		args = args[1:]
	} else if cmd.argument != "" {
		return 0, usage("%s: say how many workers, as in %q", name, program()+" "+name+" 2")
	}
	if len(args) > 0 {
		return 0, usage("%s: unexpected argument %q", name, args[0])
	}
	return n, nil
}

func program() string { return filepath.Base(os.Args[0]) }

func complain(err error) { fmt.Fprintf(os.Stderr, "%s: %v\n", program(), err) }

// finish tells the outcome, and returns the exit status.
func (c *call) finish(err error) int {
	c.clear()
	c.mu.Lock()
	defer c.mu.Unlock()
	code := 0
	if err != nil {
		code = exitFailed
		if e := (*exitError)(nil); errors.As(err, &e) {
			code = e.code
		}
		complain(err)
		c.result["error"] = err.Error()
	}
	if c.json {
		c.result["ok"], c.result["code"], c.result["ms"] = err == nil, code, time.Since(c.begun).Milliseconds()
		json.NewEncoder(os.Stdout).Encode(c.result)
	}
	return code
}

// printf prints a line that is the outcome, or a part of it.
func (c *call) printf(format string, args ...any) {
	c.clear()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.json {
		fmt.Printf(format+"\n", args...)
	}
}

// progress prints how far things are: on a terminal over what was there.
func (c *call) progress(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.json || line == c.shown:
		return
	case c.tty:
		fmt.Printf("\r%-*s", len(c.shown), line)
	default:
		fmt.Println(line)
	}
	c.shown = line
}

// clear removes what progress has printed on a terminal.
func (c *call) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tty && c.shown != "" {
		fmt.Printf("\r%*s\r", len(c.shown), "")
	}
	c.shown = ""
}

// took returns how long the command has taken.
func (c *call) took() string {
	d := time.Since(c.begun)
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func (c *call) help() error {
	mu.Lock()
	defer mu.Unlock()
	type entry struct {
		Names       []string `json:"names"`
		Argument    string   `json:"argument,omitempty"`
		Description string   `json:"description"`
	}
	var list []entry
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	for _, cmd := range commands {
		list = append(list, entry{cmd.names, cmd.argument, cmd.description})
		fmt.Fprintf(w, "  %s\t%s\n", strings.TrimSpace(strings.Join(cmd.names, ", ")+" "+cmd.argument), cmd.description)
	}
	w.Flush()
	c.result["commands"] = list
	c.printf("Usage: %s [command [--json]]\n\nWithout a command it starts. These are for the cluster that runs:\n\n%s", program(), text.String())
	return nil
}

func (c *call) printVersion() error {
	v := c.version
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	v = cmp.Or(v, "unknown")
	c.result["version"] = v
	c.printf("%s", v)
	return nil
}

// A process is a line of status. Nil is what isn't known.
type process struct {
	Name   string   `json:"name"`
	Pid    int      `json:"pid"`
	Alive  bool     `json:"alive"`
	State  *string  `json:"state"`
	Uptime *float64 `json:"uptime"` // seconds
	Memory *int64   `json:"memory"` // resident set size, bytes
	Active *int64   `json:"active"` // connections now
	Total  *int64   `json:"total"`  // connections since its start
}

// writeTable writes processes as a table.
func writeTable(w io.Writer, list []process) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "process\tpid\tstatus\tstate\tuptime\tmemory\tconnections")
	for _, p := range list {
		status, state, uptime, memory, conns := "dead", "-", "-", "-", "-"
		if p.Alive {
			status = "alive"
		}
		if p.State != nil {
			state = *p.State
		}
		if p.Uptime != nil {
			uptime = time.Duration(*p.Uptime * float64(time.Second)).Truncate(time.Second).String()
		}
		if p.Memory != nil {
			memory = fmt.Sprintf("%.1f MiB", float64(*p.Memory)/(1<<20))
		}
		if p.Active != nil && p.Total != nil {
			conns = fmt.Sprintf("%d/%d", *p.Active, *p.Total)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", p.Name, p.Pid, status, state, uptime, memory, conns)
	}
	t.Flush()
}
