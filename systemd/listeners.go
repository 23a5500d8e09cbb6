package systemd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/gocluster/cluster"
)

// What systemd tells the process that it has started.
const (
	envPid   = "LISTEN_PID"
	envFDs   = "LISTEN_FDS"
	envNames = "LISTEN_FDNAMES"
)

// envPassed is what workers and new masters are told: a list of passed, as
// JSON.
const envPassed = "CLUSTER_SYSTEMD_SOCKETS"

const firstFD = 3

// passed is a socket that the first master was given.
type passed struct {
	Name, Network, Address string
}

// A given is such a socket in this process.
type given struct {
	name string
	l    net.Listener   // or
	c    net.PacketConn // one of both
}

// sockets returns what this process was given, always the same.
var sockets = sync.OnceValues(func() ([]given, error) {
	list, err := find()
	if err != nil {
		return nil, fmt.Errorf("systemd: %w", err)
	}
	return list, nil
})

// Listeners returns the listening sockets (ListenStream in a .socket unit)
// that systemd has opened for this service, in the order of the unit; with
// names, those that have one of them: FileDescriptorName, or else the unit's
// own name, "app.socket". Without socket activation there are none.
//
// It is called in all processes alike, and before ListenAndServe; every call
// returns the same listeners:
//
//	listeners, err := systemd.Listeners()
//	if err != nil {
//		log.Fatal(err)
//	}
//	var l net.Listener // nil: Master.Addr
//	if len(listeners) > 0 {
//		l = listeners[0]
//	}
//	err = m.ListenAndServe(l)
//
// Master.Add takes more of them. Workers and new masters have the sockets from
// the first master, which alone looks at $LISTEN_FDS, if $LISTEN_PID is its
// process id, and removes it from the environment.
//
// The sockets stay systemd's. When the cluster has shut down they take
// connections still, for the next start; the file of a unix socket is
// never removed.
//
// A socket that is no stream socket for TCP or a unix path, no UDP and no
// unix datagram socket is an error, and so is the connection that a service is
// given with Accept=yes.
func Listeners(names ...string) ([]net.Listener, error) {
	var list []net.Listener
	all, err := sockets()
	for _, g := range all {
		if g.l != nil && wanted(g.name, names) {
			list = append(list, g.l)
		}
	}
	return list, err
}

// PacketConns is Listeners for datagram sockets (ListenDatagram). As with
// cluster.ListenPacket, workers share them, and the master's own is closed as
// soon as it has workers.
func PacketConns(names ...string) ([]net.PacketConn, error) {
	var list []net.PacketConn
	all, err := sockets()
	for _, g := range all {
		if g.c != nil && wanted(g.name, names) {
			list = append(list, g.c)
		}
	}
	return list, err
}

func wanted(name string, names []string) bool {
	return len(names) == 0 || slices.Contains(names, name)
}

// find finds the sockets of this process.
func find() ([]given, error) {
	text := os.Getenv(envPassed)
	heir := new(cluster.Master).Predecessor() != 0
	if !heir {
		os.Unsetenv(envPassed) // not for those whom a worker starts
	}
	if heir || cluster.IsWorker() {
		return inherited(text)
	}
	list, err := activated()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var tell []passed
	for _, g := range list {
		var addr net.Addr
		if g.l != nil {
			addr = g.l.Addr()
		} else {
			addr = g.c.LocalAddr()
		}
		tell = append(tell, passed{g.name, addr.Network(), addr.String()})
	}
	data, err := json.Marshal(tell)
	if err != nil {
		return nil, err
	}
	os.Setenv(envPassed, string(data))
	return list, nil
}

// inherited returns the sockets that another process was given.
func inherited(text string) (list []given, err error) {
	if text == "" {
		return nil, nil
	}
	var told []passed
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		return nil, fmt.Errorf("%s: %w", envPassed, err)
	}
	for _, p := range told {
		g := given{name: p.Name}
		switch p.Network {
		case "tcp", "unix":
			g.l, err = cluster.Listen(p.Network, p.Address)
		default:
			g.c, err = cluster.ListenPacket(p.Network, p.Address)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, nil
}

// activated returns the sockets that systemd has given to this process.
func activated() (list []given, err error) {
	if os.Getenv(envPid) != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	fds, names := os.Getenv(envFDs), os.Getenv(envNames)
	for _, name := range []string{envPid, envFDs, envNames} {
		os.Unsetenv(name)
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%s is %q", envFDs, fds)
	}
	named := strings.Split(names, ":")
	for i := range n {
		g := given{name: "unknown"} // as sd_listen_fds_with_names has it
		if names != "" && i < len(named) {
			g.name = named[i]
		}
		f := os.NewFile(uintptr(firstFD+i), g.name)
		if err := g.open(f); err != nil {
			return nil, fmt.Errorf("socket %d, %q: %w", i, g.name, err)
		}
		list = append(list, g)
	}
	return list, nil
}

// open opens the socket that f is, and closes f.
func (g *given) open(f *os.File) error {
	if f == nil {
		return os.ErrInvalid
	}
	defer f.Close()
	var err error
	if g.l, err = cluster.FileListener(f); err == nil {
		return nil
	}
	var perr error
	if g.c, perr = cluster.FilePacketConn(f); perr != nil {
		return errors.Join(err, perr)
	}
	return nil
}
