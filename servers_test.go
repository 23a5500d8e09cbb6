//go:build unix && !cluster_nofork

package cluster_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocluster/cluster"
)

// echo is a TCPServer's handler: it answers every line with its process id
// and the line, until the client or the worker finishes.
func echo(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	sc := bufio.NewScanner(c)
	for sc.Scan() {
		switch sc.Text() {
		case "stuck":
			report("stuck", nil, "")
			select {}
		case "info":
			fmt.Fprintln(c, infoText())
			continue
		}
		fmt.Fprintf(c, "%d %s\n", os.Getpid(), sc.Text())
	}
	if ctx.Err() != nil {
		io.WriteString(c, "bye\n")
	}
}

var _ = helper("tcp", func() {
	m := newMaster()
	m.Server = &cluster.TCPServer{Handler: echo}
	finish(m.ListenAndServe(listen(0)))
})

// ask sends a line and returns the one that is the answer.
func ask(t testing.TB, c net.Conn, line string) string {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(answer, "\n")
}

// A drain ends the context of TCPServer's handlers, and waits for them.
func TestTCPServer(t *testing.T) {
	t.Parallel()
	p := serve(t, "tcp", "workers=1")
	c := p.dial()
	if got, want := ask(t, c, "hello"), fmt.Sprintf("%d hello", p.workers()[0]); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p.signal(syscall.SIGQUIT)
	if rest, err := io.ReadAll(c); string(rest) != "bye\n" || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
	p.end(0)
}

var _ = helper("newserver", func() {
	m := newMaster()
	m.NewServer = func() (cluster.Server, error) {
		report("database opened", nil, "")
		if mode() == "fail" {
			return nil, errors.New("no database")
		}
		return &http.Server{Handler: handler}, nil
	}
	finish(m.ListenAndServe(listen(0)))
})

func TestNewServer(t *testing.T) {
	t.Parallel()
	p := serve(t, "newserver", "workers=2")
	p.get("/")
	opened := p.history("database opened")
	if len(opened) != 2 || opened[0].ID < 0 || opened[1].ID < 0 || opened[0].ID == opened[1].ID {
		t.Errorf("database opened by %v, want both workers and nobody else", opened)
	}
	p.quit()
}

// A server that never starts makes ListenAndServe return its reason.
func TestNewServerFails(t *testing.T) {
	t.Parallel()
	p := start(t, "newserver", "mode=fail", "workers=2")
	failed := p.waitFor("the master's error", func(e event) bool { return e.Name == "failed" && e.ID < 0 })
	if !strings.Contains(failed.Text, "no database") || !strings.Contains(failed.Text, "exit status 1") {
		t.Errorf("error %q, want the reason and the exit status", failed.Text)
	}
	p.end(1)
}

var _ = helper("path", func() {
	if !cluster.IsWorker() {
		os.Setenv(helperEnv, "pathworker")
	}
	m := newMaster()
	m.Path = "./program"
	m.Args = []string{"one", "two words"}
	finish(m.ListenAndServe(listen(0)))
})

var _ = helper("pathworker", func() {
	finish((&cluster.Master{Server: &http.Server{Handler: handler}}).ListenAndServe(nil))
})

// Path and Args: the workers are a program of their own, which the master
// knows nothing of. It is found from where Dir is.
func TestPath(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{".", "sub"} {
		t.Run(dir, func(t *testing.T) { testPath(t, dir) })
	}
}

func testPath(t *testing.T, dir string) {
	p := command(t, "path", "workers=1", "dir="+dir)
	helpersUsed.Store("pathworker", true)
	exe, _ := os.Executable()
	program := filepath.Join(p.dir, dir, "program")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Link(exe, program) != nil {
		b, err := os.ReadFile(exe)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.start().wait("listening")
	i := p.info()
	if want := []string{"./program", "one", "two words"}; !i.Worker || !slices.Equal(i.Args, want) {
		t.Errorf("worker %v, arguments %q, want %q", i.Worker, i.Args, want)
	}
	if runtime.GOOS == "linux" {
		got, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", i.Pid))
		if want, _ := filepath.EvalSymlinks(program); got != want {
			t.Errorf("the worker runs %s", got)
		}
	}
	p.quit("program", "sub")
}

var _ = helper("add", func() {
	m := newMaster()
	text := func(s string) cluster.Server {
		return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })}
	}
	m.Server = text("main")
	l := listen(0)
	m.Add(listen(1), text("redirect"))
	third := listen(2)
	m.Use(func(m *cluster.Master) error {
		m.Add(third, &cluster.TCPServer{Handler: echo})
		return nil
	})
	finish(m.ListenAndServe(l))
})

// Add, in a plugin too: several listeners, each with a server of its own, two
// of them on port 0.
func TestAdd(t *testing.T) {
	t.Parallel()
	p := serve(t, "add", "workers=2", "listen=tcp 127.0.0.1:0", "listen=tcp 127.0.0.1:0", "listen=unix app.sock")
	for range 4 {
		if got := p.get("/", 0); got != "main" {
			t.Errorf("first listener: %q", got)
		}
		if got := p.get("/", 1); got != "redirect" {
			t.Errorf("second listener: %q", got)
		}
		c := p.dial(2)
		if got := ask(t, c, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("third listener: %q", got)
		}
		c.Close()
	}
	p.quit()
}

var _ = helper("abstract", func() {
	m := newMaster()
	if err := m.Start(); err != nil {
		fatal(err)
	}
	if m.IsWorker() == m.IsMaster() || m.IsWorker() != cluster.IsWorker() {
		fatal(errors.New("neither worker nor master, or both"))
	}
	if m.IsWorker() {
		report("working", nil, "")
		<-m.Done()
		report("done", nil, "")
		return
	}
	report("supervising", nil, "")
	finish(m.Wait())
})

func TestAbstractClusters(t *testing.T) {
	t.Parallel()
	p := start(t, "abstract", "workers=2")
	p.waitN(2, "working")
	p.wait("supervising")
	p.wait("listening")
	p.signal(syscall.SIGQUIT)
	p.waitN(2, "done")
	p.wait("returned")
	p.end(0)
}

// Every network, with all workers on one socket.
func TestListen(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"tcp4 127.0.0.1:0", "tcp6 [::1]:0", "unix app.sock", "unix @" + t.Name() + strconv.Itoa(os.Getpid())} {
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			if strings.Contains(spec, "@") && runtime.GOOS != "linux" {
				t.Skip("abstract sockets are Linux's")
			}
			if strings.HasPrefix(spec, "tcp6") {
				l, err := net.Listen("tcp6", "[::1]:0")
				if err != nil {
					t.Skip(err)
				}
				l.Close()
			}
			p := serve(t, "http", "workers=2", "listen="+spec)
			everyWorkerAnswers(p)
			p.quit()
		})
	}
}

// everyWorkerAnswers makes requests, with the others suspended, to each.
func everyWorkerAnswers(p *proc) {
	p.t.Helper()
	workers := p.workers()
	for id, pid := range workers {
		for _, other := range workers {
			if other != pid {
				suspend(p.t, other)
			}
		}
		if got := p.get("/"); got != strconv.Itoa(pid) {
			p.t.Errorf("worker %d has pid %d, %s answered", id, pid, got)
		}
		for _, other := range workers {
			if other != pid {
				kill(p.t, other, syscall.SIGCONT)
			}
		}
	}
}

var _ = helper("addr", func() {
	m := newMaster() // addr=
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(nil))
})

// Addr is used where there is no listener.
func TestAddr(t *testing.T) {
	t.Parallel()
	p := serve(t, "addr", "workers=2", "addr=unix:app.sock")
	c, err := net.Dial("unix", filepath.Join(p.dir, "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := roundTrip(c, "/"); err != nil {
		t.Error(err)
	}
	p.quit()
}

var _ = helper("packet", func() {
	m := newMaster()
	spec, _ := argument("listen", 0)
	network, address, _ := strings.Cut(spec, " ")
	c, err := cluster.ListenPacket(network, address)
	if err != nil {
		fatal(err)
	}
	reportAddr(c.LocalAddr())
	if err := m.Start(); err != nil {
		fatal(err)
	}
	if m.IsMaster() {
		finish(m.Wait())
		return
	}
	go func() {
		<-m.Done()
		c.Close()
	}()
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), b[:n]), from)
	}
})

func TestListenPacket(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"udp 127.0.0.1:0", "unixgram app.sock"} {
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			p := serve(t, "packet", "workers=2", "listen="+spec)
			network, address := p.addr()
			var c net.Conn
			var err error
			if network == "unixgram" {
				local := &net.UnixAddr{Net: network, Name: filepath.Join(tempDir(t), "client.sock")}
				c, err = net.DialUnix(network, local, &net.UnixAddr{Net: network, Name: address})
			} else {
				c, err = net.Dial(network, address)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			for range 3 {
				b := make([]byte, 100)
				io.WriteString(c, "hello")
				n, err := c.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				pid, text, _ := strings.Cut(string(b[:n]), " ")
				if w := p.workers(); text != "hello" || pid != strconv.Itoa(w[0]) && pid != strconv.Itoa(w[1]) {
					t.Errorf("got %q, workers are %v", b[:n], w)
				}
			}
			p.quit()
		})
	}
}

var _ = helper("plain", func() {
	m := newMaster()
	m.Server = &http.Server{Handler: handler}
	if m.IsWorker() {
		finish(m.ListenAndServe(nil))
		return
	}
	spec, _ := argument("listen", 0)
	network, address, _ := strings.Cut(spec, " ")
	l, err := net.Listen(network, address)
	if err != nil {
		fatal(err)
	}
	reportAddr(l.Addr())
	finish(m.ListenAndServe(l))
})

// A listener of net.Listen in the master, nil in the workers.
func TestPlainListener(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"tcp 127.0.0.1:0", "unix app.sock"} {
		p := serve(t, "plain", "workers=2", "listen="+spec)
		everyWorkerAnswers(p)
		p.quit()
	}
}

var _ = helper("tls", func() {
	m := newMaster()
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		fatal(err)
	}
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(tls.NewListener(listen(0), &tls.Config{Certificates: []tls.Certificate{cert}})))
})

func TestTLS(t *testing.T) {
	t.Parallel()
	p := command(t, "tls", "workers=2")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"cluster"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	os.WriteFile(filepath.Join(p.dir, "cert.pem"), certPEM, 0o600)
	os.WriteFile(filepath.Join(p.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)
	p.start().wait("listening")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	c := tls.Client(p.dial(), &tls.Config{RootCAs: pool, ServerName: "cluster"})
	defer c.Close()
	if _, err := roundTrip(c, "/"); err != nil {
		t.Error(err)
	}
	p.quit("cert.pem", "key.pem")
}

var _ = helper("inline", func() {
	m := newMaster()
	m.Inline = true
	m.Server = &http.Server{Handler: handler}
	finish(m.ListenAndServe(listen(0)))
})

// Inline serves in the calling process, and a signal ends it as a master.
func TestInline(t *testing.T) {
	t.Parallel()
	p := serve(t, "inline")
	if got := p.get("/"); got != strconv.Itoa(p.pid()) {
		t.Errorf("process %s answered, want %d", got, p.pid())
	}
	if w := p.workers(); len(w) > 0 {
		t.Errorf("there are workers: %v", w)
	}
	h := p.hold()
	p.signal(syscall.SIGQUIT)
	h.finish()
	p.wait("close")
	p.end(0)
}
