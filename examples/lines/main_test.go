//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const programEnv = "LINES_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Lines that a restart cuts anywhere are answered, in the same connection.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "unix:app.sock")
	cmd.Env = append(os.Environ(), programEnv+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGQUIT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the cluster ended with %v", err)
		}
	})

	deadline := time.Now().Add(30 * time.Second)
	type client struct {
		net.Conn
		r *bufio.Reader
	}
	var clients []client
	for range 20 {
		c, err := net.Dial("unix", filepath.Join(dir, "app.sock"))
		for ; err != nil; c, err = net.Dial("unix", filepath.Join(dir, "app.sock")) {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond) // it has not begun to listen
		}
		defer c.Close()
		c.SetDeadline(deadline)
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); line != "hello\n" {
			t.Fatalf("read %q, %v", line, err)
		}
		clients = append(clients, client{c, r})
	}
	// answer reads an answer, and returns who has sent it.
	answer := func(c client, want string) string {
		t.Helper()
		line, err := c.r.ReadString('\n')
		pid, got, _ := strings.Cut(line, ": ")
		if err != nil || got != want+"\n" {
			t.Fatalf("read %q, %v; want %q", line, err, want)
		}
		return pid
	}
	old := make(map[string]bool)
	const text = "one\ntwo\nthree\nfour"
	for i, c := range clients {
		io.WriteString(c, "zero\n")
		old[answer(c, "zero")] = true
		io.WriteString(c, text[:min(i, len(text))])
	}
	cmd.Process.Signal(syscall.SIGUSR2)
	for i, c := range clients {
		io.WriteString(c, text[min(i, len(text)):]+"\n")
		for line := range strings.SplitSeq(text, "\n") {
			answer(c, line)
		}
	}
	// Sooner or later they all are with new workers, half a line included.
	for i, c := range clients {
		for n := 0; ; n++ {
			line := fmt.Sprintf("line %d of client %d", n, i)
			io.WriteString(c, line[:4])
			time.Sleep(time.Millisecond)
			io.WriteString(c, line[4:]+"\n")
			if !old[answer(c, line)] {
				break
			}
		}
	}
}
