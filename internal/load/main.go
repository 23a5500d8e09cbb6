// Load asks a web server for one URL over and over, with a connection for
// every request, and counts the answers and the failures.
//
//	load [-c clients] [-d duration] [-answers n] url
//
// Its exit status is 1 if a request has failed, or if there were fewer than n
// different answers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"
)

func main() {
	log.SetFlags(0)
	clients := flag.Int("c", 8, "number of clients")
	duration := flag.Duration("d", 5*time.Second, "how long to ask")
	answers := flag.Int("answers", 1, "least number of different answers")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	defer cancel()
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true},
		Timeout:   30 * time.Second,
	}
	var (
		mu            sync.Mutex
		total, failed int
		seen          = make(map[string]bool)
		wg            sync.WaitGroup
	)
	for range *clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				body, err := get(client, flag.Arg(0))
				mu.Lock()
				total++
				if err != nil {
					if failed++; failed <= 10 {
						log.Print(err)
					}
				} else {
					seen[body] = true
				}
				mu.Unlock()
				time.Sleep(time.Millisecond) // spare the system's port numbers
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d requests, %d failed, %d different answers\n", total, failed, len(seen))
	if failed > 0 || len(seen) < *answers {
		os.Exit(1)
	}
}

func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}
