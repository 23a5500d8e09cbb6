package repl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gocluster/cluster"
)

const (
	prompt       = "cluster> "
	maxLine      = 4096            // bytes, with the newline
	writeTimeout = 5 * time.Second // for a client to read what is written
)

// A session is one client. Its commands write to it.
type session struct {
	ctx context.Context
	m   *cluster.Master
	c   net.Conn

	notices chan string   // what is to be told whenever it comes
	done    chan struct{} // closed when no more commands are run

	// asked is set by a command that asks for something and itself tells
	// what becomes of it. Notices are skipped until they tell the same.
	asked atomic.Bool

	mu       sync.Mutex // guards writing, and the following
	prompted bool       // the prompt is the last that was written
}

// Serve serves one session on c in the master m, for a plugin that has a
// connection to offer, and closes c. It returns when the client has ended the
// session, or when ctx ends. That means that m is about to end: the client is
// told so. A command that is being run is waited for.
func Serve(ctx context.Context, m *cluster.Master, c net.Conn) {
	s := &session{
		ctx:     ctx,
		m:       m,
		c:       c,
		notices: make(chan string, 16),
		done:    make(chan struct{}),
	}
	h := hubOf(m)
	h.add(s)
	var notifier sync.WaitGroup
	notifier.Go(s.notify)
	defer func() {
		h.remove(s)
		close(s.done)
		notifier.Wait()
		c.Close()
	}()
	s.commands()
}

// commands reads lines and runs them, until no more may be read.
func (s *session) commands() {
	r := bufio.NewReaderSize(s.c, maxLine)
	for s.prompt() == nil {
		b, err := r.ReadSlice('\n')
		s.mu.Lock()
		s.prompted = false
		s.mu.Unlock()
		if err == bufio.ErrBufferFull {
			fmt.Fprintf(s, "this line is longer than %d bytes\n", maxLine)
			return // what follows is the rest of it
		}
		if err != nil {
			return // a line without its end isn't run: "kill 1" may be one of "kill 12"
		}
		line, err := text(b)
		switch {
		case err == io.EOF || err == errHTTP:
			return
		case err != nil:
			fmt.Fprintln(s, err)
			return
		}
		switch err := s.run(line); {
		case err == errQuit:
			return
		case err != nil:
			fmt.Fprintln(s, err)
		}
	}
}

// run runs one line.
func (s *session) run(line string) (err error) {
	name, args, err := parse(line)
	if err != nil || name == "" {
		return err
	}
	c := lookup(name)
	if c == nil {
		return fmt.Errorf("unknown command %q: help() lists them", name)
	}
	switch {
	case c.most == 0 && len(args) > 0:
		return fmt.Errorf("%s takes no arguments", name)
	case c.most > 0 && len(args) > c.most:
		return fmt.Errorf("%s takes at most %d arguments", name, c.most)
	}
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%s panicked: %v", name, v)
			s.logf("repl: %v\n%s", err, debug.Stack())
		}
	}()
	return c.run(s, args)
}

func (s *session) logf(format string, args ...any) {
	if s.m.ErrorLog != nil {
		s.m.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

// prompt asks for the next line, unless the master is going.
func (s *session) prompt() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prompted = true
	return s.write(prompt)
}

// Write writes what a command says. Any goroutine may call it.
func (s *session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(printable(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// write writes text, with s.mu held. A client that doesn't read it loses the
// connection.
func (s *session) write(text string) error {
	s.c.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := io.WriteString(s.c, text)
	if err != nil {
		s.c.Close()
	}
	return err
}

// notify writes the notices as they come, and last words when the master is
// about to end.
func (s *session) notify() {
	for {
		select {
		case notice := <-s.notices:
			s.interrupt(notice, prompt)
			continue
		case <-s.ctx.Done():
		case <-s.done:
			if s.ctx.Err() == nil {
				return
			}
		}
		for len(s.notices) > 0 {
			s.interrupt(<-s.notices, prompt)
		}
		s.interrupt(fmt.Sprintf("master %d is gone", os.Getpid()), "")
		s.c.Close()
		return
	}
}

// interrupt writes a line of its own, and then the prompt if it was there.
func (s *session) interrupt(line, prompt string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line = printable(line) + "\n"
	if s.prompted {
		line = "\n" + line + prompt
	}
	s.write(line)
}

// A hub has all sessions of a master.
type hub struct {
	mu       sync.Mutex
	sessions map[*session]bool
}

var hubs struct {
	sync.Mutex
	of map[*cluster.Master]*hub
}

// hubOf returns the hub of m. There is one from the first session to the
// master's end.
func hubOf(m *cluster.Master) *hub {
	hubs.Lock()
	defer hubs.Unlock()
	if h := hubs.of[m]; h != nil {
		return h
	}
	h := &hub{sessions: make(map[*session]bool)}
	if hubs.of == nil {
		hubs.of = make(map[*cluster.Master]*hub)
	}
	hubs.of[m] = h
	m.On(cluster.Hooks{
		Restarting:    func(cluster.Values) { h.tell(restarting, false) },
		RestartFailed: func(err error) { h.tell(restartFailed(err).Error(), true) },
		Closing:       func() { h.tell(closing(m.State()), true) },
		Close: func() {
			hubs.Lock()
			defer hubs.Unlock()
			delete(hubs.of, m)
		},
	})
	return h
}

// What clients are told when their master is restarted, can't be, and shuts
// down.

const restarting = "restarting: this connection closes when the new master has taken over"

func restartFailed(err error) error { return fmt.Errorf("restart failed: %w", err) }

func closing(state cluster.State) string {
	return fmt.Sprintf("master %d: %v", os.Getpid(), state)
}

func (h *hub) add(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[s] = true
}

func (h *hub) remove(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, s)
}

// tell has a notice written in all sessions but those that have asked for what
// it is about, and doesn't wait. last says that nothing will follow about that.
func (h *hub) tell(notice string, last bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.sessions {
		if s.asked.Load() {
			if last {
				s.asked.Store(false)
			}
			continue
		}
		select {
		case s.notices <- notice:
		default: // it doesn't read
		}
	}
}

// What ends a session, and isn't told.
var (
	errQuit = errors.New("quit")
	errHTTP = errors.New("HTTP request")
)

// Commands of the telnet protocol, RFC 854, and what a terminal sends for ^D.
const (
	telnetEOF  = 236
	telnetSE   = 240
	telnetSB   = 250
	telnetWILL = 251
	telnetDONT = 254
	telnetIAC  = 255

	endOfTransmission = 4
)

// text returns the line b as text, without commands of the telnet protocol.
// The error is io.EOF if it says that there is no more. Any other error is
// about a client that speaks something else; nothing else may be read from
// it, lest part of that be taken for a command.
func text(b []byte) (string, error) {
	var line []byte
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == endOfTransmission:
			return "", io.EOF
		case b[i] != telnetIAC || i == len(b)-1:
			line = append(line, b[i])
			continue
		}
		i++
		switch c := b[i]; {
		case c == telnetEOF:
			return "", io.EOF
		case c == telnetSB:
			for i < len(b) && b[i] != telnetSE {
				i++
			}
		case c >= telnetWILL && c <= telnetDONT:
			i++ // its option
		}
	}
	s := strings.TrimSpace(string(line))
	if i := strings.LastIndex(s, "HTTP/"); i >= 0 && strings.Trim(s[i:], "HTP/.0123456789") == "" {
		return "", errHTTP
	}
	if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
		return "", errors.New("this is no text")
	}
	return s, nil
}

// printable returns s with quotes for all that could do something to a
// terminal.
func printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\n' || r == '\t' || strconv.IsPrint(r):
			b.WriteString(s[:n])
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}
