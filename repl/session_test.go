package repl

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gocluster/cluster"
)

func TestText(t *testing.T) {
	binary := errors.New("this is no text")
	for _, test := range []struct {
		line string
		want string
		err  error
	}{
		{line: "\n", want: ""},
		{line: "pids()\n", want: "pids()"},
		{line: " pids()\r\n", want: "pids()"},
		{line: "echo héllo\t日本\n", want: "echo héllo\t日本"},
		{line: "pids\x1b[A\n", want: "pids\x1b[A"}, // parse doesn't like it

		{line: "\xff\xfd\x03\xff\xfb\x18pids\r\n", want: "pids"},      // DO, WILL
		{line: "pi\xff\xf4\xff\xfd\x06ds\r\n", want: "pids"},          // IP, DO TIMING-MARK
		{line: "\xff\xfa\x18\x00xterm\xff\xf0pids\r\n", want: "pids"}, // SB TERMINAL-TYPE
		{line: "\xff\xfb\x03\xff\xfa\x1f\x00P\x00\x18\xff\xf0\n"},     // SB NAWS
		{line: "\xff\xfa\x18pids\n"},                                  // SB without SE
		{line: "pids\xff\n", want: "pids"},                            // IAC without a command
		{line: "pids\xff", err: binary},
		{line: "pids\xff\xec\r\n", err: io.EOF}, // EOF
		{line: "pids\x04\n", err: io.EOF},       // ^D

		{line: "GET / HTTP/1.1\r\n", err: errHTTP},
		{line: "POST /stop() HTTP/1.0\n", err: errHTTP},
		{line: "PRI * HTTP/2.0\r\n", err: errHTTP},
		{line: "stop() HTTP/1.1 \r\n", err: errHTTP},
		{line: "echo HTTP/1.1\n", err: errHTTP},
		{line: "GET / \xff\xf0HTTP/1.1\r\n", err: errHTTP},
		{line: "echo(\"HTTP/1.1\")\n", want: "echo(\"HTTP/1.1\")"},
		{line: "echo HTTP/1.1 it is\n", want: "echo HTTP/1.1 it is"},

		{line: "pids\x00\n", err: binary},
		{line: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", err: binary}, // TLS
		{line: "\xc3\x28\n", err: binary},
	} {
		got, err := text([]byte(test.line))
		if got != test.want || !errors.Is(err, test.err) && (err == nil || err.Error() != test.err.Error()) {
			t.Errorf("text(%q) = %q, %v, want %q, %v", test.line, got, err, test.want, test.err)
		}
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"":                        "",
		"one\ttwo\n日本 é ☃ \ufffd": "one\ttwo\n日本 é ☃ \ufffd",
		"\x1b]0;title\a\x1b[2J":   `\x1b]0;title\a\x1b[2J`,
		"a\rb\bc\x00d\x7f":        `a\rb\bc\x00d\x7f`,
		"\u009b2J":                `\u009b2J`, // CSI in one
		"\u202egnp.exe":           `\u202egnp.exe`,
		"\xffé\xc3(":              `\xffé\xc3(`,
	} {
		if got := printable(s); got != want {
			t.Errorf("printable(%q) = %q, want %q", s, got, want)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, line := range []string{"", "pids\n", "\xff", "\xff\xfa", "\xff\xfa\x18\xff\xf0a\x00\n", "\x1b[2J\xc3é"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		s, err := text(line)
		if err != nil && s != "" || !utf8.ValidString(s) || strings.Contains(s, "\x00") {
			t.Errorf("text(%q) = %q, %v", line, s, err)
		}
		for _, r := range printable(string(line)) {
			if !strconv.IsPrint(r) && r != '\n' && r != '\t' {
				t.Errorf("printable(%q) has %q", line, r)
			}
		}
	})
}

func TestSignals(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"SIGTERM": syscall.SIGTERM,
		"TERM":    syscall.SIGTERM,
		"sigterm": syscall.SIGTERM,
		"quit":    syscall.SIGQUIT,
		"9":       syscall.SIGKILL,
		"":        0,
		"0":       0,
		"-9":      0,
		"65":      0,
		"SIGNO":   0,
		"SIG":     0,
	} {
		if sig, err := parseSignal(s); sig != want || (err == nil) != (want != 0) {
			t.Errorf("parseSignal(%q) = %v, %v, want %v", s, sig, err, want)
		}
	}
	for sig, want := range map[syscall.Signal]string{syscall.SIGQUIT: "SIGQUIT", 64: "signal 64"} {
		if name := signalName(sig); name != want {
			t.Errorf("signalName(%d) = %q, want %q", int(sig), name, want)
		}
	}
}

// A client that reads nothing doesn't hold up who has something to tell, and
// is got rid of.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	m := new(cluster.Master)
	c, server := net.Pipe() // nothing is buffered: the prompt is too much already
	defer c.Close()
	over := make(chan struct{})
	go func() {
		Serve(context.Background(), m, server)
		close(over)
	}()
	h := hubOf(m)
	for joined := false; !joined; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		joined = len(h.sessions) == 1
		h.mu.Unlock()
	}
	begun := time.Now()
	for range 1000 {
		h.tell("something", false)
	}
	if d := time.Since(begun); d > writeTimeout/2 {
		t.Errorf("it took %v", d)
	}
	select {
	case <-over:
	case <-time.After(3 * writeTimeout):
		t.Error("the session goes on")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sessions) != 0 {
		t.Error("the session is still told things")
	}
}

// A session that has asked for what can't be had is told what happens later.
func TestNoticeAfterRefusal(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"restart", "shutdown", "stop"} {
		m := new(cluster.Master) // which doesn't run
		c, server := net.Pipe()
		go Serve(t.Context(), m, server)
		c.SetDeadline(time.Now().Add(writeTimeout))
		r := bufio.NewReader(c)
		if _, err := io.ReadFull(r, make([]byte, len(prompt))); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, command+"\n"); err != nil {
			t.Fatal(err)
		}
		for line := ""; !strings.Contains(line, "not running"); {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatalf("%s: %v", command, err)
			}
		}
		hubOf(m).tell("something", false)
		if b, err := r.ReadString('g'); !strings.HasSuffix(b, "something") {
			t.Errorf("%s: got %q, %v", command, b, err)
		}
		c.Close()
	}
}
