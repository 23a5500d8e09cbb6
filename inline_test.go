package cluster

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// cleanUp closes what a test has left in this process's set of sockets.
func cleanUp(t testing.TB) {
	shared.close(true)
	patience := bindPatience
	bindPatience = 0
	t.Cleanup(func() {
		shared.close(true)
		bindPatience = patience
	})
}

func mustListen(t testing.TB, network, address string) *listener {
	t.Helper()
	l, err := Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*listener)
}

func TestInlineServesUntilItIsClosed(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			cleanUp(t)
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			l := mustListen(t, network, address)
			var hooks []string
			listening := make(chan struct{})
			m := &Master{Inline: true, Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "hello")
			})}}
			m.On(Hooks{
				Start:     func() error { hooks = append(hooks, "start"); return nil },
				Serving:   func() { hooks = append(hooks, "serving") },
				Listening: func() { hooks = append(hooks, "listening"); close(listening) },
				Drained:   func() { hooks = append(hooks, "drained") },
				Close:     func() { hooks = append(hooks, "close") },
			})
			served := make(chan error)
			go func() { served <- m.ListenAndServe(l) }()
			<-listening
			client := &http.Client{Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					return net.Dial(l.Addr().Network(), l.Addr().String())
				},
			}}
			resp, err := client.Get("http://localhost/")
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(b) != "hello" {
				t.Errorf("got %q, %v", b, err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Errorf("ListenAndServe: %v", err)
			}
			if err := m.Wait(); err != nil {
				t.Errorf("Wait: %v", err)
			}
			if got := strings.Join(hooks, " "); got != "start serving listening drained close" {
				t.Errorf("hooks: %s", got)
			}
			if m.State() != GracefulShutdown {
				t.Errorf("State is %v", m.State())
			}
		})
	}
}

func TestInlineStartReturnsEvenIfItIsClosedMeanwhile(t *testing.T) {
	for range 50 { // either may be first
		m := &Master{Inline: true}
		m.On(Hooks{Start: func() error {
			_, err := m.shutdown(GracefulShutdown)
			return err
		}})
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}
