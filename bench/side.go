//go:build linux

package main

import (
	"embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gocluster/cluster/bench/servers/hello"
)

// A side is one of those that are compared: a server program.
type side struct {
	name    string
	program string   // in servers, or nginx, node, gunicorn
	args    []string // of a program in servers, besides -addr and -workers
	workers int      // processes that serve; 0: as many as CPUs, or one where there is but one
	single  bool     // there is but one process
	restart syscall.Signal
}

// files are the servers that are not in Go.
//
//go:embed servers/node.js servers/app.py servers/nginx.conf
var files embed.FS

// A server is a side that runs.
type server struct {
	side
	addr string
	cmd  *exec.Cmd
	dir  string
}

// installed reports whether the side's program is one that somebody has to
// install.
func (s side) installed() bool {
	return s.program == "nginx" || s.program == "node" || s.program == "gunicorn"
}

// missing tells why a side can't run here, or "".
func (s side) missing() string {
	if _, err := exec.LookPath(s.program); err != nil && s.installed() {
		return s.program + " is not installed"
	}
	return ""
}

// processes is how many processes of it serve.
func (s side) processes() int {
	switch {
	case s.single:
		return 1
	case s.workers > 0:
		return s.workers
	}
	return workers
}

// start starts the side, and returns when it answers and has all its processes.
func (b *bench) start(s side, args ...string) (*server, error) {
	srv, err := b.launch(s, args...)
	if err != nil {
		return nil, err
	}
	if err := srv.await(20 * time.Second); err != nil {
		srv.stop()
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return srv, nil
}

// launch starts the side.
func (b *bench) launch(s side, args ...string) (*server, error) {
	dir, err := os.MkdirTemp(b.dir, "run")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // for its port
	if err != nil {
		return nil, err
	}
	srv := &server{side: s, addr: l.Addr().String(), dir: dir}
	l.Close()
	srv.cmd, err = b.command(s, srv.addr, dir, args)
	if err != nil {
		return nil, err
	}
	srv.cmd.Dir = dir
	srv.cmd.Stderr = b.stderr
	srv.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return srv, srv.cmd.Start()
}

func (b *bench) command(s side, addr, dir string, args []string) (*exec.Cmd, error) {
	n := strconv.Itoa(s.processes())
	host, port, _ := net.SplitHostPort(addr)
	switch s.program {
	case "nginx":
		conf := filepath.Join(dir, "nginx.conf")
		if err := unpack("nginx.conf", conf, "{workers}", n, "{addr}", addr); err != nil {
			return nil, err
		}
		return exec.Command("nginx", "-p", dir, "-e", "stderr", "-c", conf), nil
	case "node":
		script := filepath.Join(dir, "node.js")
		if err := unpack("node.js", script); err != nil {
			return nil, err
		}
		return exec.Command("node", script, host, port, n), nil
	case "gunicorn":
		if err := unpack("app.py", filepath.Join(dir, "app.py")); err != nil {
			return nil, err
		}
		return exec.Command("gunicorn", "--chdir", dir, "--log-level", "critical", "-b", addr, "-w", n,
			"-k", "gthread", "--threads", "4", "--keep-alive", "60", "app:app"), nil
	}
	args = append([]string{"-addr", addr, "-workers", n}, args...)
	return exec.Command(filepath.Join(b.dir, s.program), append(args, s.args...)...), nil
}

// unpack writes one of the files, with replacements.
func unpack(name, to string, replacements ...string) error {
	text, err := files.ReadFile("servers/" + name)
	if err != nil {
		return err
	}
	return os.WriteFile(to, []byte(strings.NewReplacer(replacements...).Replace(string(text))), 0o644)
}

// await waits until the server answers and has all its processes.
func (s *server) await(patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		_, err := s.ask()
		if err == nil && (s.single || len(s.children()) >= s.processes()) {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(errors.New("it doesn't start"), err)
		}
	}
}

// ask asks once, with a connection of its own, and returns the process that
// has answered.
func (s *server) ask() (pid int, err error) {
	c, err := net.DialTimeout("tcp", s.addr, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: " + s.addr + "\r\nConnection: close\r\n\r\n")); err != nil {
		return 0, err
	}
	buf := make([]byte, 1024)
	for n := 0; ; {
		k, err := c.Read(buf[n:])
		if err != nil {
			return 0, err
		}
		n += k
		a, err := parse(buf[:n])
		if err == errMore {
			continue
		}
		if err == nil && string(a.body) != hello.Body {
			err = errors.New("the wrong body")
		}
		return a.pid, err
	}
}

// children returns the processes under the one that was started.
func (s *server) children() []int { return children(s.cmd.Process.Pid) }

// cpu returns the CPU time of all its processes.
func (s *server) cpu() (d time.Duration) {
	for _, pid := range append(s.children(), s.cmd.Process.Pid) {
		d += cpu(pid)
	}
	return d
}

// stop ends it, with all its processes.
func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(5*time.Second, func() { s.cmd.Process.Kill() })
	s.cmd.Wait()
	late.Stop()
	syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // prefork's children, if they are left
	os.RemoveAll(s.dir)
}
