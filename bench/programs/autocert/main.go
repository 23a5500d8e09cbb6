// Autocert serves HTTPS with certificates that golang.org/x/crypto's autocert
// gets from Let's Encrypt:
//
//	autocert address directory domain
//
// The directory is shared by all workers, of all generations: it keeps the
// certificates, and what one worker has begun to prove to the authority
// another one can answer.
package main

import (
	"crypto/tls"
	"fmt"
	"log"
	"net/http"
	"os"

	"golang.org/x/crypto/acme/autocert"

	"github.com/gocluster/cluster"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: autocert address directory domain")
	}
	l, err := cluster.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	certs := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(os.Args[2]),
		HostPolicy: autocert.HostWhitelist(os.Args[3]),
	}
	m := &cluster.Master{Workers: 2, Server: &http.Server{Handler: http.HandlerFunc(answer)}}
	if err := m.ListenAndServe(tls.NewListener(l, certs.TLSConfig())); err != nil {
		log.Fatal(err)
	}
}

func answer(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getpid()) }
