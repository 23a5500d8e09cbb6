//go:build linux

package programs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	_ "modernc.org/sqlite"

	"github.com/gocluster/cluster/internal/clustertest"
)

// Every client keeps its connection until the server says GOAWAY.
func TestGRPC(t *testing.T) {
	p := start(t, "grpc", "127.0.0.1:0")
	addr := p.address("tcp")
	l := p.load("gRPC", 8, func() (func() (string, error), func()) {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			panic(err)
		}
		health := healthpb.NewHealthClient(conn)
		return func() (string, error) {
			ctx, cancel := context.WithTimeout(context.Background(), clustertest.Patience)
			defer cancel()
			var header metadata.MD
			r, err := health.Check(ctx, new(healthpb.HealthCheckRequest), grpc.Header(&header))
			if err != nil {
				return "", err
			}
			if r.Status != healthpb.HealthCheckResponse_SERVING {
				return "", fmt.Errorf("status %v", r.Status)
			}
			return strings.Join(header["pid"], ""), nil
		}, func() { conn.Close() }
	})
	p.restarts(l)
	l.end()
	p.Quit()
}

func TestFasthttp(t *testing.T) {
	p := start(t, "fasthttp", "127.0.0.1:0")
	url := "http://" + p.address("tcp")
	single := p.load("fasthttp", 8, httpClient(url, once))
	// net/http's client repeats a GET when the server has closed an idle
	// connection meanwhile.
	kept := p.load("fasthttp, kept connections", 8, httpClient(url, func() *http.Transport { return new(http.Transport) }))
	p.restarts(single, kept)
	single.end()
	kept.end()
	p.Quit()
}

// A message without an answer on a connection that is closed with
// StatusServiceRestart was not taken, and is sent again.
func TestWebsocket(t *testing.T) {
	p := start(t, "websocket", "127.0.0.1:0")
	addr := p.address("tcp")
	var again atomic.Int64
	l := p.load("websocket", 8, func() (func() (string, error), func()) {
		var c *websocket.Conn
		ask := func() (pid string, err error) {
			ctx, cancel := context.WithTimeout(context.Background(), clustertest.Patience)
			defer cancel()
			for {
				if c == nil {
					if c, _, err = websocket.Dial(ctx, "ws://"+addr, nil); err != nil {
						return "", err
					}
				}
				if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
					return "", err
				}
				_, b, err := c.Read(ctx)
				if websocket.CloseStatus(err) == websocket.StatusServiceRestart {
					again.Add(1)
					c = nil
					continue
				}
				pid, text, _ := strings.Cut(string(b), " ")
				if err == nil && text != "hello" {
					err = fmt.Errorf("the echo is %q", b)
				}
				return pid, err
			}
		}
		return ask, func() { c.CloseNow() }
	})
	p.restarts(l)
	l.end()
	t.Logf("%d connections made anew", again.Load())
	p.Quit()
}

// The certificate is in the cache, so that no authority is asked.
func TestAutocert(t *testing.T) {
	const domain = "cluster.example"
	cache := t.TempDir()
	roots := x509.NewCertPool()
	roots.AddCert(certificate(t, filepath.Join(cache, domain), domain))
	p := start(t, "autocert", "127.0.0.1:0", cache, domain)
	_, port, _ := net.SplitHostPort(p.address("tcp"))
	transport := func(http2 bool) func() *http.Transport {
		return func() *http.Transport {
			return &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+port)
				},
				TLSClientConfig:   &tls.Config{RootCAs: roots},
				DisableKeepAlives: !http2,
				ForceAttemptHTTP2: http2,
			}
		}
	}
	single := p.load("autocert", 8, httpClient("https://"+domain, transport(false)))
	http2 := p.load("autocert, HTTP/2", 8, httpClient("https://"+domain, transport(true)))
	p.restarts(single, http2)
	single.end()
	http2.end()
	p.Quit()
}

// certificate writes a key and a certificate, signed by itself, as autocert
// keeps them.
func certificate(t *testing.T, path, domain string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: domain},
		DNSNames:     []string{domain},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(0, 0, 90), // too early to renew it
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// No packet is sent twice, and each must be answered.
func TestUDP(t *testing.T) {
	p := start(t, "udp", "127.0.0.1:0")
	addr := p.address("udp")
	l := p.load("UDP", 8, func() (func() (string, error), func()) {
		c, err := net.Dial("udp", addr)
		if err != nil {
			panic(err)
		}
		n, b := 0, make([]byte, 1500)
		return func() (string, error) {
			n++
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := fmt.Fprint(c, n); err != nil {
				return "", err
			}
			k, err := c.Read(b)
			if err != nil {
				return "", err
			}
			pid, text, _ := strings.Cut(string(b[:k]), " ")
			if text != fmt.Sprint(n) {
				return "", fmt.Errorf("the answer to packet %d is %q", n, b[:k])
			}
			return pid, nil
		}, func() { c.Close() }
	})
	p.restarts(l)
	l.end()
	p.Quit()
}

// Every job is done, by one worker.
func TestJobs(t *testing.T) {
	queue := t.TempDir()
	for _, name := range []string{"making", "new", "taken", "done"} {
		if err := os.Mkdir(filepath.Join(queue, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, "jobs", queue)
	var jobs atomic.Int64
	l := p.load("jobs", 8, func() (func() (string, error), func()) {
		return func() (string, error) {
			name := fmt.Sprint(jobs.Add(1))
			path := filepath.Join(queue, "making", name)
			if err := os.WriteFile(path, []byte("5ms"), 0o600); err != nil {
				return "", err
			}
			if err := os.Rename(path, filepath.Join(queue, "new", name)); err != nil {
				return "", err
			}
			var done []string
			if !clustertest.Eventually(clustertest.Patience, func() bool {
				done, _ = filepath.Glob(filepath.Join(queue, "done", name+".*"))
				return len(done) > 0
			}) {
				return "", errors.New("a job is not done")
			}
			return strings.TrimPrefix(filepath.Ext(done[0]), "."), nil
		}, func() {}
	})
	p.restarts(l)
	n := l.end()
	p.Quit()
	for name, want := range map[string]int{"new": 0, "taken": 0, "done": n} {
		if entries, err := os.ReadDir(filepath.Join(queue, name)); err != nil || len(entries) != want {
			t.Errorf("%d jobs in %q, want %d, %v", len(entries), name, want, err)
		}
	}
}

// Workers have the database open and no master ever has, and every request is
// counted in it.
func TestDatabase(t *testing.T) {
	file := filepath.Join(t.TempDir(), "counts.db")
	p := start(t, "database", "127.0.0.1:0", file)
	check := func() {
		t.Helper()
		masters, workers := p.processes()
		for _, pid := range append(masters, workers...) {
			open := slices.Contains(p.files(pid), file)
			if worker := slices.Contains(workers, pid); open != worker {
				t.Errorf("process %d of masters %v, workers %v: has the database open is %v", pid, masters, workers, open)
			}
		}
	}
	l := p.load("database", 8, httpClient("http://"+p.address("tcp"), once))
	for range 2 {
		p.restarts(l)
		check()
	}
	n := l.end()
	p.Quit()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var counted int
	if err := db.QueryRow(`SELECT sum(n) FROM requests`).Scan(&counted); err != nil || counted != n {
		t.Errorf("%d requests in the database, want %d, %v", counted, n, err)
	}
}
