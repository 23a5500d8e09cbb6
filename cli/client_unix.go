//go:build unix

package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gocluster/cluster/internal/control"
)

// errNobody is the error of dial if nobody serves the socket.
var errNobody = errors.New("nothing runs")

// A silentError is the error of dial if there is a master that says nothing.
type silentError struct{ pid int } // 0 if that isn't known

func (e *silentError) Error() string {
	if e.pid == 0 {
		return "the master does not answer"
	}
	return fmt.Sprintf("master %d does not answer", e.pid)
}

// A conn is a client's connection to a master, or a new master's to the old
// one.
type conn struct {
	net.Conn
	in      *bufio.Reader
	hello   reply
	replies chan reply // after start
}

// dial connects to a master that answers in time. Nothing has been asked of
// it yet.
func dial(path string, timeout time.Duration) (*conn, error) {
	end := time.Now().Add(timeout)
	d := net.Dialer{Deadline: end}
	nc, err := d.Dial("unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, errNobody
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no access to %s: a cluster is controlled by its own user, or by root", path)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded): // its queue is full
		return nil, &silentError{}
	case err != nil:
		return nil, err
	}
	cn := &conn{Conn: nc, in: bufio.NewReader(nc)}
	cn.SetDeadline(end)
	cn.hello, err = cn.read()
	if err == nil {
		cn.SetDeadline(time.Time{})
		return cn, nil
	}
	defer cn.Close()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &silentError{peer(nc)}
	}
	return nil, errNobody // it is on its way out
}

func (cn *conn) send(req request) error {
	req.Version = protocol
	return send(cn, req)
}

// read reads a reply.
func (cn *conn) read() (r reply, err error) {
	line, err := cn.in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	return r, err
}

// patience is how long a master is waited for that is not at its socket.
const patience = time.Second

// control runs a command for which a cluster is needed.
func (c *call) control() error {
	path := filepath.Join(c.dir, socketName)
	if _, _, err := control.Resolve("unix:"+path, false); err != nil {
		return err
	}
	c.path = path
	switch c.name {
	case "status":
		return c.status()
	case "restart":
		return c.restart()
	case "reload":
		return c.reload()
	case "spawn":
		return c.spawn()
	case "repl":
		return c.attach()
	}
	return c.end()
}

// dial connects to the master. In a restart nobody is at the socket for a
// moment: it is tried again as long as there may be a master.
func (c *call) dial() (*conn, error) {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		cn, err := dial(c.path, c.timeout)
		if err != errNobody {
			return cn, err
		}
		var limit time.Duration
		if master, _ := c.files(); master.alive() {
			limit = patience
		} else if _, err := os.Stat(c.dir); err == nil {
			limit = patience / 4
		}
		if time.Since(begun) >= limit {
			return nil, errNobody
		}
	}
}

// start has the replies delivered to a channel, until the connection ends.
func (cn *conn) start() {
	cn.replies = make(chan reply)
	go func() {
		defer close(cn.replies)
		for {
			r, err := cn.read()
			if err != nil {
				return
			}
			cn.replies <- r
		}
	}()
}

// ask asks for something, if need be of one master after the other. It
// returns the connection to the one that has answered done.
func (c *call) ask(cn *conn, req request) (*conn, reply, error) {
	for {
		if err := cn.send(req); err != nil {
			return nil, reply{}, err
		}
		cn.start()
		for r := range cn.replies {
			switch r.Event {
			case done:
				return cn, r, nil
			case failed:
				return cn, r, errors.New(r.Error)
			case moved:
			default:
				c.show(r)
				continue
			}
			break
		}
		next, err := c.successor(cn)
		if err != nil {
			return nil, reply{}, fmt.Errorf("master %d has ended meanwhile", cn.hello.Pid)
		}
		c.progress("asking the new master %d", next.hello.Pid)
		cn = next
	}
}

// show shows how far things are.
func (c *call) show(r reply) {
	switch r.Event {
	case waiting:
		c.progress("waiting for another restart")
	case progress:
		c.progress("%d/%d workers ready", r.Ready, r.Workers)
	case draining:
		what := "worker"
		if c.name == "restart" {
			what = "old worker"
		}
		if r.Left > 0 {
			c.progress("waiting for %s to finish", plural(r.Left, what))
		}
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// successor connects to the master that has replaced that of cn.
func (c *call) successor(cn *conn) (*conn, error) {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	replies, late := cn.replies, (<-chan time.Time)(nil)
	for {
		select {
		case r, ok := <-replies:
			if ok {
				c.show(r)
			} else {
				replies, late = nil, time.After(max(c.timeout, patience))
			}
		case <-again.C:
			if next := c.dialNext(cn); next != nil {
				return next, nil
			}
		case <-late:
			return nil, errNobody
		}
	}
}

// dialNext is successor without patience: it returns nil if there is none.
func (c *call) dialNext(cn *conn) *conn {
	next, err := dial(c.path, c.timeout)
	if err != nil {
		return nil
	}
	if next.hello.Pid == cn.hello.Pid || next.hello.Predecessor == 0 {
		next.Close()
		return nil
	}
	return next
}

// goesOn has an interrupt tell that the cluster goes on with it.
func (c *call) goesOn() {
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupt
		c.mu.Lock() // for ever: nothing else is printed
		err := fmt.Errorf("interrupted; the %s goes on", c.name)
		if c.tty && c.shown != "" {
			fmt.Println()
		}
		complain(err)
		if c.json {
			json.NewEncoder(os.Stdout).Encode(map[string]any{"command": c.name, "ok": false, "code": exitFailed, "error": err.Error()})
		}
		os.Exit(exitFailed)
	}()
}

func (c *call) status() error {
	cn, err := c.dial()
	if err != nil {
		return c.statusOfFiles(err)
	}
	r, err := cn.status(c.timeout)
	if err != nil {
		return c.statusOfFiles(&silentError{cn.hello.Pid})
	}
	c.result["ready"], c.result["workers"] = r.Ready, r.Workers
	c.printTable(r.Processes)
	return nil
}

func (cn *conn) status(timeout time.Duration) (reply, error) {
	cn.SetDeadline(time.Now().Add(timeout))
	if err := cn.send(request{Command: "status"}); err != nil {
		return reply{}, err
	}
	return cn.read()
}

func (c *call) printTable(list []process) {
	c.result["processes"] = list
	if len(list) > 0 && !c.json {
		writeTable(os.Stdout, list)
	}
}

func (c *call) restart() error {
	cn, err := c.dial()
	if err != nil {
		return c.restartBySignal(err)
	}
	c.goesOn()
	old, r, err := c.ask(cn, request{Command: "restart"})
	if r.Event == failed {
		return fmt.Errorf("%w; the old cluster serves on", err)
	}
	if err != nil {
		return err
	}
	next, err := c.successor(old)
	if err == nil {
		r, err = next.status(c.timeout)
	}
	if err != nil {
		return fmt.Errorf("master %d has been replaced, but the new one does not answer at %s", old.hello.Pid, c.path)
	}
	for r := range old.replies {
		c.show(r)
	}
	c.result["master"], c.result["old"] = next.hello.Pid, old.hello.Pid
	c.result["ready"], c.result["workers"] = r.Ready, r.Workers
	c.printf("%d/%d workers ready, old master %d gone, %s", r.Ready, r.Workers, old.hello.Pid, c.took())
	return nil
}

func (c *call) reload() error {
	cn, err := c.dial()
	if err != nil {
		return c.without(err)
	}
	c.goesOn()
	cn, r, err := c.ask(cn, request{Command: "reload"})
	if r.Event == failed {
		return fmt.Errorf("%w; the workers that were not replaced yet serve on", err)
	}
	if err != nil {
		return err
	}
	c.result["master"], c.result["replaced"], c.result["workers"], c.result["draining"] = cn.hello.Pid, r.Ready, r.Workers, r.Left
	drain := ""
	if r.Left > 0 {
		drain = fmt.Sprintf(", %s still to finish", plural(r.Left, "old worker"))
	}
	c.printf("%d/%d workers replaced%s, %s", r.Ready, r.Workers, drain, c.took())
	return nil
}

func (c *call) spawn() error {
	cn, err := c.dial()
	if err != nil {
		return c.without(err)
	}
	c.goesOn()
	cn, r, err := c.ask(cn, request{Command: "spawn", N: c.n})
	if err != nil {
		return err
	}
	c.result["master"], c.result["workers"] = cn.hello.Pid, r.Workers
	what := "ready"
	n := c.n
	if n < 0 {
		what, n = "gone", -n
	}
	c.printf("%s %s, %d in all, %s", plural(n, "worker"), what, r.Workers, c.took())
	return nil
}

// end does shutdown and stop.
func (c *call) end() error {
	cn, err := c.dial()
	if err != nil {
		return c.endBySignal(err)
	}
	c.goesOn()
	for {
		if err := cn.send(request{Command: c.name}); err != nil {
			return err
		}
		processes := []identity{identify(cn.hello.Pid)}
		workers := 0
		cn.start()
		for r := range cn.replies {
			switch r.Event {
			case closing:
				workers = r.Workers
				for _, pid := range r.Pids {
					processes = append(processes, identify(pid))
				}
			case failed:
				return errors.New(r.Error)
			default:
				c.show(r)
			}
		}
		next := c.dialNext(cn) // it was being restarted
		for closed := time.Now(); next == nil && len(left(processes)) > 0; next = c.dialNext(cn) {
			time.Sleep(10 * time.Millisecond)
			if time.Since(closed) > patience {
				c.progress("waiting for %v to exit", left(processes))
			}
		}
		if next == nil {
			c.result["master"], c.result["workers"] = cn.hello.Pid, workers
			c.printf("master %d gone, with %s, %s", cn.hello.Pid, plural(workers, "worker"), c.took())
			return nil
		}
		cn = next
	}
}

// attach runs a session of package repl at this terminal. It goes on with the
// next master when that of the session has been replaced.
func (c *call) attach() error {
	cn, err := c.dial()
	if err != nil {
		return c.without(err)
	}
	var out io.Writer = os.Stdout
	if c.json {
		b := new(strings.Builder)
		defer func() { c.result["output"] = b.String() }()
		out = b
	}
	input := make(chan []byte)
	go func() {
		defer close(input)
		for {
			b := make([]byte, 4096)
			n, err := os.Stdin.Read(b)
			if n > 0 {
				input <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		cn.SetDeadline(time.Now().Add(c.timeout))
		err := cn.send(request{Command: "repl"})
		if err == nil {
			var r reply
			if r, err = cn.read(); r.Event == failed {
				err = errors.New(r.Error)
			}
		}
		if err != nil {
			return err
		}
		cn.SetDeadline(time.Time{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			io.Copy(out, cn.in)
		}()
		for attached := true; attached; {
			select {
			case b, ok := <-input:
				if !ok {
					cn.Conn.(*net.UnixConn).CloseWrite()
					<-ended
					return nil
				}
				cn.Write(b) // if it fails, the session has ended
			case <-ended:
				attached = false
			}
		}
		next, err := c.dial()
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: master %d has ended\n", program(), cn.hello.Pid)
			return nil
		}
		if next.hello.Pid == cn.hello.Pid {
			return nil // the session was closed on purpose
		}
		fmt.Fprintf(os.Stderr, "%s: master %d has replaced master %d: attached to it\n", program(), next.hello.Pid, cn.hello.Pid)
		cn = next
	}
}
