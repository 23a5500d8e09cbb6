package cluster_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/gocluster/cluster"
)

// The smallest cluster: a worker per CPU.
func Example() {
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "Hello World")
		}),
	}
	if err := cluster.ListenAndServe(":3000", server); err != nil {
		log.Fatal(err)
	}
}

func ExampleListenAndServe() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello from process %d\n", os.Getpid())
	})
	if err := cluster.ListenAndServe("unix:/run/app.sock", &http.Server{Handler: mux}); err != nil {
		log.Fatal(err)
	}
}

// newServer opens what a server needs, in the workers: the master has no use
// for it.
func newServer() (cluster.Server, error) {
	words, err := os.ReadFile("words.txt")
	if err != nil {
		return nil, err // the worker fails, and ListenAndServe in the master returns this
	}
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write(words)
		}),
	}, nil
}

// A server that is built in workers only.
func ExampleMaster_newServer() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// A master for workers that are a program of their own. Its main calls this
// package too: cluster.ListenAndServe(":3000", server) finds the socket.
func ExampleMaster_path() {
	l, err := cluster.Listen("tcp", ":3000")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Path: "./app", Args: []string{"-v"}}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

// Inline serves in the calling process: for a debugger, and for tests as
// this one.
func ExampleMaster_inline() {
	l, err := cluster.Listen("tcp", "localhost:0")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{
		Inline: true,
		Server: &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, "Hello World")
			}),
		},
	}
	m.On(cluster.Hooks{
		Listening: func() {
			defer m.Close()
			resp, err := http.Get("http://" + l.Addr().String())
			if err != nil {
				log.Print(err)
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			fmt.Printf("%s\n", body)
		},
	})
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
	// Output: Hello World
}

// A server for a protocol of its own: it answers lines.
func ExampleTCPServer() {
	server := &cluster.TCPServer{
		Handler: func(ctx context.Context, c net.Conn) {
			// The worker drains: a client that says nothing must not hold it.
			defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Now()) })()
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				fmt.Fprintln(c, "you said", lines.Text())
			}
		},
	}
	l, err := cluster.Listen("tcp", "localhost:0")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Server: server, Inline: true} // without Inline, in workers
	m.On(cluster.Hooks{
		Listening: func() {
			defer m.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				log.Print(err)
				return
			}
			defer c.Close()
			fmt.Fprintln(c, "hello")
			answer, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Print(answer)
		},
	})
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
	// Output: you said hello
}

// An abstract cluster: workers that serve nobody. Start returns in all
// processes.
func ExampleMaster_Start() {
	m := new(cluster.Master)
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		for working := true; working; {
			select {
			case <-m.Done():
				working = false
			case <-time.After(time.Second):
				// Do things within the worker processes.
			}
		}
	} else {
		// Do something within the master.
	}
	if err := m.Wait(); err != nil {
		log.Fatal(err)
	}
}

// What differs between master and workers goes before ListenAndServe, which
// doesn't return while they run.
func ExampleMaster_IsWorker() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	if m.IsWorker() {
		log.SetPrefix("worker " + os.Getenv("CLUSTER_WORKER") + ": ")
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

func ExampleMaster_IsMaster() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	if m.IsMaster() {
		log.Printf("process %d is the master", os.Getpid())
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// announce returns a plugin that tells when the cluster begins to serve, and
// when it has shut down.
func announce(to *log.Logger) cluster.Plugin {
	return func(m *cluster.Master) error {
		m.On(cluster.Hooks{
			Listening: func() { to.Print("serving") },
			Close:     func() { to.Print("closed") },
		})
		return nil
	}
}

// A plugin with an option is a function that returns a Plugin, which is a
// function too:
//
//	func announce(to *log.Logger) cluster.Plugin {
//		return func(m *cluster.Master) error {
//			m.On(cluster.Hooks{
//				Listening: func() { to.Print("serving") },
//				Close:     func() { to.Print("closed") },
//			})
//			return nil
//		}
//	}
func ExamplePlugin() {
	m := &cluster.Master{Inline: true}
	m.Use(announce(log.New(os.Stdout, "", 0)))
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	m.Close()
	m.Wait() // until all hooks have been called
	// Output:
	// serving
	// closed
}

func ExampleMaster_Use() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	if err := m.Use(announce(log.Default())).ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// Settings by name. Each could be a field as well, here Dir and Workers.
func ExampleMaster_Set() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	err := m.
		Set("working directory", "/").
		Set("workers", 5).
		Set("timeout", "30s").
		ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
}

// All mistakes are reported together.
func ExampleMaster_Set_mistakes() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	err := m.Set("workers", "many").Set("timeout", 60).ListenAndServe(nil)
	fmt.Println(err)
	// Output:
	// cluster: Set: option "workers" is "many" (string); it must be a number
	// cluster: Set: option "timeout" is 60 (int); it must be a time.Duration or a string with a unit, as "60s"
}

// trace returns a plugin that logs what the workers do.
func trace(l *log.Logger) cluster.Plugin {
	return func(m *cluster.Master) error {
		m.On(cluster.Hooks{
			Worker:       func(w *cluster.Worker) { l.Printf("worker %d is process %d", w.ID, w.Pid) },
			WorkerKilled: func(w *cluster.Worker) { l.Printf("worker %d: %v", w.ID, w.ProcessState) },
		})
		return nil
	}
}

// The environment is $CLUSTER_ENV, or "development" if that is not set.
func ExampleMaster_In() {
	m := &cluster.Master{NewServer: newServer}
	err := m.
		In("development").Use(trace(log.Default())).
		In("development").Set("addr", ":3000").
		In("production").Set("addr", ":80").
		In("all").ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
}

// One In holds for all calls up to the next one. Here each environment
// listens by itself; in all others ListenAndServe does nothing.
func ExampleMaster_In_several() {
	m := &cluster.Master{NewServer: newServer}
	m.Set("working directory", "/")
	err := m.In("development").
		Set("workers", 1).
		Set("addr", ":3000").
		Use(trace(log.Default())).
		ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
	err = m.In("production").
		Set("workers", 4).
		Set("addr", ":80").
		Use(announce(log.Default())).
		ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
}

// What is the same for all environments comes before the first In, or after
// In("all").
func ExampleMaster_In_all() {
	os.Setenv("CLUSTER_ENV", "production")
	defer os.Unsetenv("CLUSTER_ENV")

	m := &cluster.Master{NewServer: newServer}
	m.
		Set("working directory", "/").
		Do(func(*cluster.Master) { fmt.Println("some arbitrary action") }).
		In("development").
		Set("workers", 1).
		Use(trace(log.Default())).
		In("production").
		Set("workers", 4).
		Use(announce(log.Default())).
		In("all").
		Set("addr", ":80").
		Do(func(m *cluster.Master) { fmt.Println(m.Workers, "workers on", m.Addr) })
	// and then ListenAndServe(nil)

	// Output:
	// some arbitrary action
	// 4 workers on :80
}

func ExampleMaster_Do() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	err := m.
		Do(func(m *cluster.Master) {
			if m.IsMaster() {
				fmt.Println("starting")
			}
		}).
		ListenAndServe(nil)
	if err != nil {
		log.Fatal(err)
	}
}

// Hooks are told what happens.
func ExampleMaster_On() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	m.On(cluster.Hooks{
		Listening: func() { log.Print("listening") },
		WorkerKilled: func(w *cluster.Worker) {
			log.Printf("worker %d (process %d) died: %v", w.ID, w.Pid, w.ProcessState)
		},
		WorkerException: func(w *cluster.Worker, err error) {
			log.Printf("worker %d: %v", w.ID, err)
			if e, ok := err.(*cluster.Exception); ok {
				os.Stderr.Write(e.Stack)
			}
		},
	})
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// Messages from a worker to the master.
func ExampleMaster_Send() {
	m := &cluster.Master{Inline: true} // without it, worker is not nil
	m.On(cluster.Hooks{
		Message: func(worker *cluster.Worker, name string, data json.RawMessage) {
			fmt.Printf("%s: %s\n", name, data)
		},
	})
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		m.Send("done", map[string]int{"jobs": 3})
	}
	m.Close()
	m.Wait() // until all hooks have been called
	// Output: done: {"jobs":3}
}

// One more listener, with a server of its own: a redirect to https.
func ExampleMaster_Add() {
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	https, err := cluster.Listen("tcp", ":443")
	if err != nil {
		log.Fatal(err)
	}
	http80, err := cluster.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{NewServer: newServer}
	m.Add(http80, &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+r.Host+r.URL.Path, http.StatusMovedPermanently)
		}),
	})
	err = m.ListenAndServe(tls.NewListener(https, &tls.Config{Certificates: []tls.Certificate{cert}}))
	if err != nil {
		log.Fatal(err)
	}
}

// The same call in master and workers. The master binds the socket, and a
// worker gets what the master has bound.
func ExampleListen() {
	l, err := cluster.Listen("unix", "/run/app.sock")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{NewServer: newServer}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

// UDP: every worker reads from the one socket, and each packet reaches one
// of them.
func ExampleListenPacket() {
	conn, err := cluster.ListenPacket("udp", ":3000")
	if err != nil {
		log.Fatal(err)
	}
	m := new(cluster.Master)
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	if m.IsWorker() {
		go func() {
			<-m.Done()
			conn.SetReadDeadline(time.Now())
		}()
		b := make([]byte, 1500)
		for {
			n, addr, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			conn.WriteTo(b[:n], addr)
		}
	}
	if err := m.Wait(); err != nil {
		log.Fatal(err)
	}
}

// A deadline for a graceful shutdown.
func ExampleMaster_Shutdown() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer}
	m.On(cluster.Hooks{
		Listening: func() {
			time.AfterFunc(time.Hour, func() {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if err := m.Shutdown(ctx); err != nil {
					log.Print("some workers had to be killed: ", err)
				}
			})
		},
	})
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// A table of signals that differs from the package's: SIGTERM is graceful,
// as container runtimes send it, and SIGHUP does nothing.
func ExampleMaster_signals() {
	m := &cluster.Master{
		Addr:      ":3000",
		NewServer: newServer,
		Signals: map[os.Signal]cluster.Action{
			syscall.SIGTERM: cluster.ActionClose,
			syscall.SIGHUP:  cluster.ActionIgnore,
		},
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}
