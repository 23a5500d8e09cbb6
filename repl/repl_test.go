//go:build unix

package repl_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/repl"
)

func TestMain(m *testing.M) {
	repl.Define("boom(how)", func(m *cluster.Master, w io.Writer, args ...string) error {
		fmt.Fprintln(w, "about to")
		var list []string
		list[len(args)] = "no such place"
		return nil
	}, "Panic")
	repl.Define("goexit", func(m *cluster.Master, w io.Writer, args ...string) error {
		runtime.Goexit()
		return nil
	}, "End the goroutine")
	repl.Define("refuse", func(m *cluster.Master, w io.Writer, args ...string) error {
		return fmt.Errorf("%d arguments are \x1b[31mtoo many", len(args))
	}, "Fail")
	repl.Define("flood", func(m *cluster.Master, w io.Writer, args ...string) error {
		for {
			if _, err := io.WriteString(w, strings.Repeat("more and more\n", 1000)); err != nil {
				clustertest.Tell("flooded %v", errors.Is(err, os.ErrDeadlineExceeded))
				return err
			}
		}
	}, "Write for ever")
	clustertest.Main(m, map[string]func(){"cluster": program})
}

// program is a cluster of two workers with a repl at the address that is its
// argument. Its workers don't become ready while there is a file "slow", and
// don't end while there is one "busy". A new master fails while there is one
// "fail".
func program() {
	if cluster.IsWorker() {
		awaitGone("slow")
	}
	m := (&cluster.Master{Workers: 2}).Use(repl.New(os.Args[1]), clustertest.Events)
	m.On(cluster.Hooks{
		WorkerConnected: func(*cluster.Worker) {
			if _, err := os.Stat("fail"); err == nil {
				os.Exit(3)
			}
		},
	})
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		<-m.Done()
		awaitGone("busy")
	} else if err := m.Wait(); err != nil {
		log.Fatal(err)
	}
}

func awaitGone(file string) {
	clustertest.Eventually(clustertest.Patience, func() bool {
		_, err := os.Stat(file)
		return err != nil
	})
}

const prompt = "cluster> "

// A client is one that expects what it reads.
type client struct {
	net.Conn
	t *testing.T
}

func newClient(t *testing.T, c net.Conn) *client {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(clustertest.Patience))
	return &client{c, t}
}

func dial(t *testing.T, network, addr string) *client {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, c)
}

// attach is dial for a program's socket, and takes the first prompt.
func attach(p *clustertest.Program, t *testing.T) *client {
	t.Helper()
	c := dial(t, "unix", filepath.Join(p.Dir, "s"))
	c.expect(prompt)
	return c
}

// serve starts a session of a master that doesn't run, for what needs none.
func serve(t *testing.T, m *cluster.Master) *client {
	t.Helper()
	c, server := net.Pipe()
	var session sync.WaitGroup
	session.Go(func() { repl.Serve(t.Context(), m, server) })
	t.Cleanup(session.Wait)
	return newClient(t, c)
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// until reads up to and with end.
func (c *client) until(end string) string {
	c.t.Helper()
	var got []byte
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte(end)); got = append(got, b[0]) {
		if _, err := c.Read(b); err != nil {
			c.t.Fatalf("%v after %q, want %q", err, got, end)
		}
	}
	return string(got)
}

func (c *client) expect(want string) {
	c.t.Helper()
	if got := c.until(want); got != want {
		c.t.Fatalf("got %q, want %q", got, want)
	}
}

// expectEnd expects these last words.
func (c *client) expectEnd(want string) {
	c.t.Helper()
	got, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) || string(got) != want {
		c.t.Fatalf("at the end: got %q, %v, want %q", got, err, want)
	}
}

// ask sends a line and returns what is written before the next prompt.
func (c *client) ask(line string) string {
	c.t.Helper()
	c.send(line + "\n")
	return strings.TrimSuffix(c.until(prompt), prompt)
}

func (c *client) expectAnswer(line, want string) {
	c.t.Helper()
	if got := c.ask(line); got != want {
		c.t.Fatalf("%s: got %q, want %q", line, got, want)
	}
}

func touch(t *testing.T, p *clustertest.Program, name string) (remove func()) {
	t.Helper()
	path := filepath.Join(p.Dir, name)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func wantSocket(t *testing.T, p *clustertest.Program) {
	t.Helper()
	info, err := os.Lstat(filepath.Join(p.Dir, "s"))
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	ids := map[string]int{"0": p.WaitPid("ready", "0"), "1": p.WaitPid("ready", "1")}
	master := p.WaitPid("listening")
	wantSocket(t, p)
	c := attach(p, t)
	pids := func(args ...any) string {
		return fmt.Sprintf("\n  pids\n  master: %d\n"+strings.Repeat("  worker #%v: %v\n", len(args)/2)+"\n", append([]any{master}, args...)...)
	}
	for _, line := range []string{"pids()", "pids", " pids ( ) ;\r"} {
		c.expectAnswer(line, pids(0, ids["0"], 1, ids["1"]))
	}
	c.expectAnswer("", "")
	c.expectAnswer("help", `
  Commands
  help(): Display help information
  pids(): Output process ids
  spawn(n): Spawn one or more workers, or remove some: spawn(-1)
  kill(id, signal): Send a signal, SIGTERM if none is given, to a worker
  reload(): Replace all workers, one after the other
  restart(): Replace the master and all workers by a new version
  shutdown(): Shut down gracefully
  stop(): Shut down hard
  echo(msg): Echo the given message
  quit(): End this session
  exit(): End this session
  boom(how): Panic
  goexit(): End the goroutine
  refuse(): Fail
  flood(): Write for ever

`)
	c.expectAnswer(`echo("one, two", three)`, "one, two three\n")
	c.expectAnswer("echo", "\n")

	c.expectAnswer("spawn(2)", "spawning 2 workers\n")
	p.Wait("ready", "2")
	three := p.WaitPid("ready", "3")
	c.expectAnswer("spawn()", "spawning 1 worker\n")
	p.Wait("ready", "4")
	c.expectAnswer("spawn -1", "removing 1 worker with SIGQUIT\n")
	p.Wait("killed", "4")
	c.expectAnswer("spawn(-2, KILL)", "removing 2 workers with SIGKILL\n")
	p.Wait("killed", "2")
	p.Wait("killed", "3", strconv.Itoa(three), "signal:", "killed")
	c.expectAnswer("pids()", pids(0, ids["0"], 1, ids["1"]))

	for _, test := range []struct{ line, answer, state string }{
		{`kill(1, "SIGQUIT")`, "sent SIGQUIT to worker #1\n", "exit"},
		{"kill 1 KILL", "sent SIGKILL to worker #1\n", "signal:"},
		{"kill(1, 9);", "sent SIGKILL to worker #1\n", "signal:"},
		{"kill(1)", "sent SIGTERM to worker #1\n", "signal:"},
	} {
		c.expectAnswer(test.line, test.answer)
		p.Wait("killed", "1", strconv.Itoa(ids["1"]), test.state)
		p.Wait("worker", "1")
		ids["1"] = p.WaitPid("ready", "1")
	}
	c.expectAnswer("pids()", pids(0, ids["0"], 1, ids["1"]))

	for line, want := range map[string]string{
		"nosuch(1)":         `unknown command "nosuch": help() lists them`,
		"spawn(":            "spawn: an argument is missing at the end",
		"spawn(0)":          `spawn: "0" is no number of workers`,
		"spawn(many)":       `spawn: "many" is no number of workers`,
		"spawn(1, TERM)":    "spawn: a signal is for removing workers",
		"spawn(-1, NO)":     `spawn: unknown signal "NO"`,
		"spawn(1, 2, 3)":    "spawn takes at most 2 arguments",
		"kill()":            "kill: the id of a worker is missing: pids() lists them",
		"kill(7)":           `kill: no worker "7": pids() lists them`,
		"kill(\"\x1b\")":    `kill: no worker "\x1b": pids() lists them`,
		"kill(0, SIGNO)":    `kill: unknown signal "SIGNO"`,
		"kill(0, TERM, no)": "kill takes at most 2 arguments",
		"pids(1)":           "pids takes no arguments",
		"stop(now)":         "stop takes no arguments",
		"\x1b[A":            `"\x1b[A" is no command: help() lists them`,
		"refuse 1 2":        `2 arguments are \x1b[31mtoo many`,
	} {
		c.expectAnswer(line, want+"\n")
	}
	if got := c.ask("spawn(-3)"); !strings.HasPrefix(got, "cluster: ") || strings.Count(got, "\n") != 1 {
		t.Errorf("spawn(-3): %q", got)
	}

	c.expectAnswer("reload()", "restarting the workers\nthe new workers are ready\n")
	for id, pid := range ids {
		p.Wait("killed", id, strconv.Itoa(pid))
		ids[id] = p.WaitPid("ready", id)
	}
	c.expectAnswer("pids()", pids(0, ids["0"], 1, ids["1"]))

	for _, line := range []string{"quit()\n", "exit\n", "\x04\n", "pids\xff\xec\n"} {
		c.send(line)
		c.expectEnd("")
		c = attach(p, t)
	}
	p.Quit()
}

func TestKillPrefersTheWorkerThatIsReady(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	old := p.WaitPid("ready", "0")
	p.Wait("ready", "1")
	p.Wait("listening")
	c := attach(p, t)
	remove := touch(t, p, "busy")
	c.ask("reload()")
	successor := p.WaitPid("ready", "0")
	if got, want := c.ask("pids()"), fmt.Sprintf("  worker #0: %d (draining)\n", old); !strings.Contains(got, want) {
		t.Errorf("pids(): %q, want %q", got, want)
	}
	c.expectAnswer("kill(0, KILL)", "sent SIGKILL to worker #0\n")
	p.Wait("killed", "0", strconv.Itoa(successor))
	c.expectAnswer(fmt.Sprintf("kill(%d, KILL)", old), "sent SIGKILL to worker #0\n")
	p.Wait("killed", "0", strconv.Itoa(old))
	remove()
	for range 3 { // the first, its successor, and the one after that
		p.Wait("worker", "0")
	}
	old = p.WaitPid("ready", "0")

	remove = touch(t, p, "slow")
	c.send("reload()\n")
	p.Wait("worker", "0") // it is younger, but starting
	attach(p, t).expectAnswer("kill(0)", "sent SIGTERM to worker #0\n")
	p.Wait("killed", "0", strconv.Itoa(old))
	remove()
	c.until(prompt)
	p.Quit()
}

const restarting = "restarting: this connection closes when the new master has taken over\n"

func TestRestart(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	old := p.WaitPid("listening")
	one, two := attach(p, t), attach(p, t)
	for round := range 2 {
		remove := touch(t, p, "busy")
		words := fmt.Sprintf("master %d: graceful shutdown\n", old)
		last := fmt.Sprintf("master %d is gone\n", old)
		if round == 0 { // asked for by a signal
			p.Signal(syscall.SIGUSR2)
			for _, c := range []*client{one, two} {
				c.expect("\n" + restarting + prompt + "\n" + words + prompt)
			}
		} else {
			one.expectAnswer("restart()", restarting+"the new master has taken over\n")
			two.expect("\n" + restarting + prompt + "\n" + words + prompt)
		}
		next := p.WaitPid("listening")
		var c *client
		if !clustertest.Eventually(clustertest.Patience, func() bool {
			conn, err := net.Dial("unix", filepath.Join(p.Dir, "s"))
			if err != nil {
				return false
			}
			c = newClient(t, conn)
			c.expect(prompt)
			return strings.Contains(c.ask("pids"), fmt.Sprintf("master: %d\n", next))
		}) {
			t.Fatal("the new master isn't there")
		}
		wantSocket(t, p)
		one.expectAnswer("spawn", "cluster: not running\n") // it is the old master still
		remove()
		for _, c := range []*client{one, two} {
			c.expectEnd("\n" + last)
		}
		p.WaitPid("restarted")
		one, two, old = attach(p, t), attach(p, t), next
	}
	p.Quit()
}

func TestFailedRestart(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	p.WaitPid("listening")
	one, two := attach(p, t), attach(p, t)
	remove := touch(t, p, "fail")
	const failed = "restart failed: cluster: the new master ended before it was ready: exit status 3\n"
	one.expectAnswer("restart()", restarting+failed)
	two.expect("\n" + restarting + prompt + "\n" + failed + prompt)
	p.Signal(syscall.SIGUSR2)
	one.expect("\n" + restarting + prompt + "\n" + failed + prompt)
	two.expect("\n" + restarting + prompt + "\n" + failed + prompt)
	remove()
	wantSocket(t, p)
	one.expectAnswer("echo 1", "1\n")
	attach(p, t).expectAnswer("echo 3", "3\n")

	two.expectAnswer("restart()", restarting+"the new master has taken over\n")
	p.WaitPid("restarted")
	p.Quit()
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	pid := p.WaitPid("listening")
	one, two := attach(p, t), attach(p, t)
	remove := touch(t, p, "busy")
	words := fmt.Sprintf("master %d: graceful shutdown\n", pid)
	one.send("shutdown()\n")
	one.expect(words)
	two.expect("\n" + words + prompt)
	var got string
	if !clustertest.Eventually(clustertest.Patience, func() bool { // the workers are told after the sessions
		got = two.ask("pids()")
		return strings.Count(got, "(draining)") == 2
	}) {
		t.Errorf("pids() while draining: %q", got)
	}
	remove()
	one.expectEnd(fmt.Sprintf("master %d is gone\n", pid))
	two.expectEnd(fmt.Sprintf("\nmaster %d is gone\n", pid))
	p.End(0)
}

func TestStop(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	pid := p.WaitPid("listening")
	one, two := attach(p, t), attach(p, t)
	touch(t, p, "busy")
	one.send("shutdown()\n")
	words := fmt.Sprintf("master %d: graceful shutdown\n", pid)
	one.expect(words)
	two.expect("\n" + words + prompt)
	two.send("stop()\n") // it takes too long
	two.expectEnd(fmt.Sprintf("master %d: hard shutdown\nmaster %d is gone\n", pid, pid))
	one.expectEnd(fmt.Sprintf("master %d is gone\n", pid))
	p.End(0, "busy")
}

// A client that has closed its side still reads what becomes of its command.
func TestLastWords(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	pid := p.WaitPid("listening")
	one, two := attach(p, t), attach(p, t)
	one.send("stop()\n")
	if err := one.Conn.(*net.UnixConn).CloseWrite(); err != nil { // as echo "stop()" | nc does
		t.Fatal(err)
	}
	one.expectEnd(fmt.Sprintf("master %d: hard shutdown\nmaster %d is gone\n", pid, pid))
	two.expectEnd(fmt.Sprintf("\nmaster %d: hard shutdown\n%s\nmaster %d is gone\n", pid, prompt, pid))
	p.End(0)
}

func TestKilledMaster(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	pid := p.WaitPid("listening")
	c := attach(p, t)
	p.Signal(syscall.SIGKILL)
	c.expectEnd("")
	p.End(-1, "s", fmt.Sprintf("cluster.%d.server.sock", pid))

	path := filepath.Join(p.Dir, "s")
	p = clustertest.Start(t, "cluster", path)
	pid = p.WaitPid("listening")
	c = dial(t, "unix", path)
	c.expect(prompt)
	if got := c.ask("pids()"); !strings.Contains(got, fmt.Sprintf("master: %d\n", pid)) {
		t.Errorf("pids(): %q", got)
	}
	second := clustertest.Start(t, "cluster", path)
	second.End(1)
	if !strings.Contains(second.Log(), "repl: listen unix "+path+": ") {
		t.Errorf("a second cluster says %q", second.Log())
	}
	p.Quit()
}

// freePort returns a port that nobody listened at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestTCP(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	addr := "127.0.0.1:" + port
	p := clustertest.Start(t, "cluster", ":"+port)
	pid := p.WaitPid("listening")
	master := func(c *client) string {
		c.expect(prompt)
		return regexp.MustCompile(`master: (\d+)\n`).FindStringSubmatch(c.ask("pids()"))[1]
	}
	c := dial(t, "tcp", addr)
	if got := master(c); got != strconv.Itoa(pid) {
		t.Errorf("master %s, want %d", got, pid)
	}

	// A browser that has been talked into it.
	for _, path := range []string{"/", "/stop()", "/" + strings.Repeat("x", 10000)} {
		resp, err := http.Post("http://"+addr+path, "text/plain", strings.NewReader("stop()\nstop()\n"))
		if err == nil {
			resp.Body.Close()
			t.Errorf("a response: %v", resp.Status)
		}
	}
	c.expectAnswer("echo 1", "1\n") // nothing has stopped

	c.send("restart()\n")
	c.expect(restarting + "the new master has taken over\n")
	next := p.WaitPid("listening")
	p.WaitPid("restarted")
	if got := master(dial(t, "tcp", addr)); got != strconv.Itoa(next) {
		t.Errorf("master %s, want %d", got, next)
	}
	p.Quit()
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	run := make(chan string, 10)
	repl.Define("run", func(m *cluster.Master, w io.Writer, args ...string) error {
		run <- strings.Join(args, " ")
		return nil
	}, "")
	const noText = "this is no text\n"
	for name, test := range map[string]struct{ sent, words string }{
		"long line":     {strings.Repeat("x", 5000) + "\nrun\n", "this line is longer than 4096 bytes\n"},
		"just too long": {"run " + strings.Repeat("x", 4096-4) + "\nrun\n", "this line is longer than 4096 bytes\n"},
		"incomplete":    {"run", ""},
		"HTTP":          {"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nrun\n", ""},
		"late HTTP":     {"\r\nPOST / HTTP/1.1\r\nrun\n", prompt},
		"TLS":           {"\x16\x03\x01\x00\xf1\x01\x00\x00\xed\x03\x03\nrun\n", noText},
		"TLS in two":    {"\x16\x03\x01\x02\n\x01\x00\x02\x06\x03\x03\nrun\n", `"\x16\x03\x01\x02" is no command: help() lists them` + "\n" + prompt + noText},
		"NUL":           {"\x00\nrun\n", noText},
		"not UTF-8":     {"\xc3(\nrun\n", noText},
		"end of input":  {"run 1\x04\nrun 2\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, new(cluster.Master))
			c.expect(prompt)
			go io.WriteString(c, test.sent)
			if name == "incomplete" {
				c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				io.Copy(io.Discard, c)
				c.Close()
				return
			}
			c.expectEnd(test.words)
		})
	}
	c := serve(t, new(cluster.Master))
	c.expect(prompt)
	c.expectAnswer("run "+strings.Repeat("x", 4096-5), "")
	c.expectAnswer("echo \x1b]0;owned\a\x1b[2J\u202e", `\x1b]0;owned\a\x1b[2J\u202e`+"\n")
	c.expectAnswer(`echo "\x1b[2J\r\n\u009b"`, `\x1b[2J\r`+"\n"+`\u009b`+"\n")
	c.expectAnswer("\xff\xfb\x03\xff\xfd\x01echo 1\r", "1\n")
	c.Close()
	if got := <-run; !strings.HasPrefix(got, "xxx") || len(run) > 0 {
		t.Errorf("run: %q", got)
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	c := serve(t, &cluster.Master{ErrorLog: log.New(&b, "", 0)})
	c.expect(prompt)
	c.expectAnswer("boom()", "about to\nboom panicked: runtime error: index out of range [0] with length 0\n")
	if s := b.String(); !strings.HasPrefix(s, "repl: boom panicked: ") || !strings.Contains(s, "repl_test.go:") {
		t.Errorf("log: %q", s)
	}
	c.expectAnswer("echo 1", "1\n")
	c.send("goexit()\n")
	c.expectEnd("")
}

// Clients that are slow, or have vanished, and many of them.
func TestClients(t *testing.T) {
	t.Parallel()
	p := clustertest.Start(t, "cluster", "./s")
	p.WaitPid("listening")
	slow := attach(p, t)
	slow.send("flood()\n")
	var clients sync.WaitGroup
	for i := range 50 {
		clients.Go(func() {
			c, err := net.Dial("unix", filepath.Join(p.Dir, "s"))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(clustertest.Patience))
			var want strings.Builder
			for j := range 20 {
				fmt.Fprintf(c, "echo %d %d\n", i, j)
				fmt.Fprintf(&want, "%s%d %d\n", prompt, i, j)
			}
			if i%2 == 0 {
				return // without having read anything
			}
			got := make([]byte, want.Len())
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want.String() {
				t.Errorf("client %d: %q, %v", i, got, err)
			}
		})
	}
	clients.Wait()
	p.Signal(syscall.SIGUSR2) // a client that doesn't read is in nobody's way
	p.WaitPid("restarted")
	p.Wait("flooded")
	p.Quit()
}

// Commands may be defined at any time.
func TestDefine(t *testing.T) {
	t.Parallel()
	answer := func(s string) repl.Func {
		return func(m *cluster.Master, w io.Writer, args ...string) error {
			_, err := fmt.Fprintln(w, s, len(args))
			return err
		}
	}
	repl.Define("twice(a, b)", answer("one"), "First")
	c := serve(t, new(cluster.Master))
	c.expect(prompt)
	c.expectAnswer("twice(1, 2)", "one 2\n")
	repl.Define("twice", answer("two"), "Second")
	c.expectAnswer("twice 1", "two 1\n")
	if got := c.ask("help()"); strings.Count(got, "twice") != 1 || !strings.Contains(got, "\n  twice(): Second\n") {
		t.Errorf("help(): %q", got)
	}
	c.Close()
	for name, f := range map[string]repl.Func{
		"":     answer(""),
		"1":    answer(""),
		"a b(": answer(""),
		"é":    answer(""),
		"fine": nil,
	} {
		func() {
			defer func() {
				if v := recover(); v == nil {
					t.Errorf("Define(%q) doesn't panic", name)
				}
			}()
			repl.Define(name, f, "")
		}()
	}
}

func TestInline(t *testing.T) {
	dir, err := os.MkdirTemp("", "repl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listening := make(chan struct{})
	m := &cluster.Master{Inline: true, Server: new(http.Server), Plugins: []cluster.Plugin{repl.New(path)}}
	m.On(cluster.Hooks{Listening: func() { close(listening) }})
	served := make(chan error)
	go func() { served <- m.ListenAndServe(l) }()
	<-listening
	c := dial(t, "unix", path)
	c.expect(prompt)
	c.expectAnswer("pids()", fmt.Sprintf("\n  pids\n  master: %d\n\n", os.Getpid()))
	c.expectAnswer("spawn()", "cluster: not running\n")
	c.expectAnswer("restart()", restarting+"restart failed: cluster: not running\n")
	c.expectAnswer("reload()", "restarting the workers\ncluster: not running\n")
	c.expectAnswer("kill(0)", `kill: no worker "0": pids() lists them`+"\n")
	c.send("shutdown()\n")
	c.expectEnd(fmt.Sprintf("master %d: graceful shutdown\nmaster %[1]d is gone\n", os.Getpid()))
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestBadAddress(t *testing.T) {
	for _, addr := range []string{"", "0.0.0.0:1", "example.com:1", "unix:"} {
		err := (&cluster.Master{Server: new(http.Server), Addr: "127.0.0.1:0"}).Use(repl.New(addr)).ListenAndServe(nil)
		if err == nil || !strings.Contains(err.Error(), "repl: ") {
			t.Errorf("New(%q): %v", addr, err)
		}
	}
}

// Expose listens anywhere; it is enough here that it gets beyond what New
// refuses.
func TestExpose(t *testing.T) {
	started := errors.New("started")
	m := (&cluster.Master{Server: new(http.Server), Addr: "127.0.0.1:0"}).Use(repl.Expose("0.0.0.0:0"))
	m.On(cluster.Hooks{Start: func() error { return started }})
	if err := m.ListenAndServe(nil); !errors.Is(err, started) {
		t.Error(err)
	}
}

// A context that has ended already leaves time for the last words.
func TestServeAtTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 50 {
		c, server := net.Pipe()
		go repl.Serve(ctx, new(cluster.Master), server)
		newClient(t, c).expectEnd(fmt.Sprintf("master %d is gone\n", os.Getpid()))
	}
}
