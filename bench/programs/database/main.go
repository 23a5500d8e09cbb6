// Database counts requests in a database, on port 3000 or at the address given
// as its first argument; the second is the database's file. It is opened by
// NewServer, and so in workers alone.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"net/http"
	"os"

	_ "modernc.org/sqlite"

	"github.com/gocluster/cluster"
)

func main() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer, Workers: 2}
	if len(os.Args) > 1 {
		m.Addr = os.Args[1]
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

// newServer opens the database. It says how long to wait for the locks of
// other workers. An error keeps the worker from becoming ready, and a new
// version from replacing the old one.
func newServer() (cluster.Server, error) {
	name := "counts.db"
	if len(os.Args) > 2 {
		name = os.Args[2]
	}
	db, err := sql.Open("sqlite", "file:"+name+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)")
	if err != nil {
		return nil, err
	}
	if _, err := db.Exec(`CREATE TABLE IF NOT EXISTS requests (pid INTEGER PRIMARY KEY, n INTEGER)`); err != nil {
		return nil, err
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := count(r.Context(), db); err != nil {
			log.Print(err)
			http.Error(w, "no database", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, os.Getpid())
	})}
	return s, nil
}

// count counts a request of this worker.
func count(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, `INSERT INTO requests VALUES (?, 1) ON CONFLICT DO UPDATE SET n = n + 1`, os.Getpid())
	return err
}
