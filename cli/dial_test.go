//go:build unix

package cli

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocluster/cluster/pidfiles"
)

// While a new master takes the socket over nobody is there. As long as a
// master lives that is no reason to give up.
func TestDialWaitsForTheSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &call{dir: dir, path: filepath.Join(dir, socketName), pids: pidfiles.Dir(dir), timeout: silence}
	if cn, err := c.dial(); err != errNobody {
		t.Fatalf("%v, %v", cn, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "master.pid"), fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(patience/2, func() {
		l, err := net.Listen("unix", c.path)
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		send(nc, reply{Event: hello, Pid: 7})
		nc.Close()
	})
	cn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer cn.Close()
	if cn.hello.Pid != 7 {
		t.Errorf("%+v", cn.hello)
	}
}
