//go:build linux

package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// workers is how many processes serve, if an experiment doesn't say.
var workers = max(2, runtime.NumCPU())

// A bench is one run of this program.
type bench struct {
	rounds   int
	duration time.Duration // of a turn
	short    bool
	dir      string // for programs, and all that they write
	stderr   io.Writer
	report   report
}

func main() {
	if setting := os.Getenv(loadEnv); setting != "" {
		generate(setting)
		return
	}
	log.SetFlags(0)
	b := new(bench)
	all := flag.Bool("all", false, "run all experiments")
	run := flag.String("run", "", "run the experiments whose names match the `regexp`")
	list := flag.Bool("list", false, "list the experiments")
	flag.IntVar(&b.rounds, "rounds", 0, "rounds (default 5)")
	flag.DurationVar(&b.duration, "d", 0, "duration of a turn under load (default 2s)")
	flag.BoolVar(&b.short, "short", false, "one short round: do the programs work?")
	verbose := flag.Bool("v", false, "show what the servers say")
	markdown := flag.Bool("markdown", false, "print the table as Markdown")
	jsonFile := flag.String("json", "", "write all that was measured to `file`")
	svgFile := flag.String("svg", "", "plot latency over time, across restarts, to `file`")
	flag.Parse()
	if *list {
		for _, e := range experiments() {
			fmt.Printf("%-20s %s\n", e.name, e.about)
		}
		return
	}
	if flag.NArg() > 0 || *all == (*run != "") {
		fmt.Fprintln(os.Stderr, "usage: bench -all | -run regexp | -list, and other flags")
		flag.PrintDefaults()
		os.Exit(2)
	}
	match, err := regexp.Compile(*run)
	if err != nil {
		log.Fatal(err)
	}
	rounds, duration := 5, 2*time.Second
	if b.short {
		rounds, duration = 1, 200*time.Millisecond
	}
	b.rounds, b.duration = cmp.Or(b.rounds, rounds), cmp.Or(b.duration, duration)
	if *verbose {
		b.stderr = os.Stderr
	}
	if err := b.all(match); err != nil {
		log.Fatal(err)
	}
	if *markdown {
		b.report.markdown(os.Stdout)
	} else {
		b.report.table(os.Stdout)
	}
	if *jsonFile != "" {
		write(*jsonFile, b.report.json)
	}
	if *svgFile != "" {
		write(*svgFile, b.report.plot)
	}
	if b.report.broken {
		os.Exit(1)
	}
}

func write(name string, f func(io.Writer) error) {
	w, err := os.Create(name)
	if err == nil {
		err = f(w)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// all builds the servers and runs the experiments that match.
func (b *bench) all(match *regexp.Regexp) (err error) {
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	os.Chmod(b.dir, 0o755) // nginx's workers are somebody else
	build := exec.Command("go", "build", "-o", b.dir+"/", "./servers/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the same whether there is a C compiler or not
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the servers (in the bench directory?): %w", err)
	}
	b.report.describe(b.dir)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	for _, e := range experiments() {
		if !match.MatchString(e.name) {
			continue
		}
		x := &outcome{experiment: e, values: make(map[string][]metrics)}
		b.report.add(x)
		for round := range b.rounds {
			for i := range e.sides { // each has every place in turn
				s := e.sides[(i+round)%len(e.sides)]
				if why := s.missing(); why != "" {
					b.report.skip(s.name, why)
					continue
				}
				select {
				case <-interrupted:
					return errors.New("interrupted")
				default:
				}
				values, err := e.measure(b, s)
				fmt.Fprintf(os.Stderr, "%s, round %d of %d: %s: %v\n", e.name, round+1, b.rounds, s.name, cmp.Or[any](err, values))
				if err != nil {
					b.report.fail(e.name, s, err)
				}
				x.values[s.name] = append(x.values[s.name], values) // nil if it has failed
			}
		}
	}
	return nil
}
