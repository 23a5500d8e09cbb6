//go:build !cluster_nofork

package cluster

import (
	"errors"
	"net"
	"testing"
	"time"
)

// inTurns returns a listener as a worker has it, and the descriptor of its
// socket.
func inTurns(t *testing.T, network string) (*listener, int) {
	t.Helper()
	cleanUp(t)
	address := "127.0.0.1:0"
	if network == "unix" {
		address = t.TempDir() + "/socket"
	}
	l := mustListen(t, network, address)
	conn, err := l.socket.open()
	if err != nil {
		t.Fatal(err)
	}
	l.begin.Do(func() { l.turns.Store(turnsFor(conn.(deadlineListener))) })
	if l.turns.Load() == nil {
		t.Fatal("the registration of the socket was not found")
	}
	fd := -1
	l.turns.Load().conn.Control(func(n uintptr) { fd = int(n) })
	return l, fd
}

// Who is not in Accept is not woken: the connection is for somebody else.
func TestOnlyAcceptTakesATurn(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		l, fd := inTurns(t, network)
		registered := func() bool {
			poller, _, _ := registration(fd)
			return poller >= 0
		}
		for range 3 {
			if registered() {
				t.Errorf("%s: registered outside of Accept", network)
			}
			accepted := make(chan error)
			for range 2 {
				go func() {
					c, err := l.Accept()
					if err == nil {
						c.Close()
					}
					accepted <- err
				}()
			}
			for range 2 {
				for end := time.Now().Add(10 * time.Second); !registered(); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%s: not registered while there is an Accept", network)
					}
				}
				mustDial(t, l.Addr())
				if err := <-accepted; err != nil {
					t.Errorf("%s: %v", network, err)
				}
			}
		}
	}
}

// A process that accepts no more may have been woken, and nobody else.
func TestLastTurnIsTaken(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		l, _ := inTurns(t, network)
		mustDial(t, l.Addr())
		l.stop(0, time.Second)
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		c.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v, want net.ErrClosed", network, err)
		}
	}
}

// A connection that nobody was woken for, as who was has died, is found when
// somebody looks again.
func TestLookFindsAConnection(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		l, fd := inTurns(t, network)
		accepted := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.Close()
			}
			accepted <- err
		}()
		for poller := -1; poller < 0; time.Sleep(time.Millisecond) {
			poller, _, _ = registration(fd)
		}
		turns := l.turns.Load()
		turns.mu.Lock()
		turns.conn.Control(turns.leave) // who is not registered is not woken
		turns.mu.Unlock()
		mustDial(t, l.Addr())
		select {
		case err := <-accepted:
			t.Errorf("%s: accepted: %v", network, err)
		case <-time.After(20 * time.Millisecond):
			shared.look()
			if err := <-accepted; err != nil {
				t.Errorf("%s: %v", network, err)
			}
		}
	}
}
