package cluster

import (
	"errors"
	"net"
)

// ErrNoSuccessor is returned by Handoff where nobody would take the
// connection: the worker doesn't drain, or nobody serves its listener after
// it.
var ErrNoSuccessor = errors.New("cluster: there is nobody to hand the connection to")

// maxUnread is how many bytes a connection can take along.
const maxUnread = 64 << 10

// Handoff gives c to a worker of the next generation, or to another one of
// this: its listener's Accept returns c there, as if the client had just
// connected; HandedOver tells the difference. What is read from it begins with unread, which this process has
// already read and not used, at most 64 KiB. c is what Accept of one of our
// listeners has returned.
//
// Handoff may be called only in a worker that drains, from any goroutine, when
// nothing else is using c. After it has returned nil the connection is no
// longer this process's, and c is closed. After an error it is as it was:
// the caller should end it as the protocol has it. The error wraps
// ErrNoSuccessor where there will be no such worker. Handoff waits while too
// many connections are on their way, for no longer than the worker has left
// to drain.
func Handoff(c net.Conn, unread []byte) error {
	var a *accepted
	switch c := c.(type) {
	case *tcpConn:
		a = &c.accepted
	case *unixConn:
		a = &c.accepted
	default:
		return errorf("cluster: Handoff: a %T does not come from a listener of ours", c)
	}
	unread = append(unread[:len(unread):len(unread)], a.unread...)
	if len(unread) > maxUnread {
		return errorf("cluster: Handoff: %d unread bytes, the limit is %d", len(unread), maxUnread)
	}
	if a.gone.Load() {
		return errorf("cluster: Handoff: %w", net.ErrClosed)
	}
	q, err := a.l.handoffQueue()
	if err != nil {
		return err
	}
	if err := q.send(c, unread); err != nil {
		return errorf("cluster: Handoff: %w", err)
	}
	return c.Close()
}

// HandedOver reports whether c, which Accept of one of our listeners has
// returned, has come by Handoff. It is not new to its client, who expects no
// greeting, say.
func HandedOver(c net.Conn) bool {
	switch c := c.(type) {
	case *tcpConn:
		return c.handed
	case *unixConn:
		return c.handed
	}
	return false
}

// handoffQueue returns the queue that the listener's connections can go to
// now.
func (l *listener) handoffQueue() (*queue, error) {
	select {
	case <-l.halt:
	default:
		return nil, errorf("%w: this worker does not drain", ErrNoSuccessor)
	}
	l.socket.mu.Lock()
	defer l.socket.mu.Unlock()
	if l.final.Load() || l.socket.queue == nil {
		return nil, ErrNoSuccessor
	}
	return l.socket.queue, nil
}
