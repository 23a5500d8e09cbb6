//go:build unix

package reload_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/reload"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"server": server})
}

const trailer = "\nversion of the program: "

// version returns what is written after the trailer of the running program's
// file, or "v0".
func version() string {
	path := "/proc/self/exe"
	if _, err := os.Stat(path); err != nil {
		path, _ = os.Executable()
	}
	f, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	info, _ := f.Stat()
	b := make([]byte, 64)
	f.ReadAt(b, info.Size()-int64(len(b)))
	if _, v, ok := bytes.Cut(b, []byte(trailer)); ok {
		return string(v)
	}
	return "v0"
}

// server is the program: its workers answer with their version and the
// file data/page.html, as it was when they started.
func server() {
	version, heir := version(), new(cluster.Master).Predecessor() != 0
	switch {
	case version == "bad":
		log.Fatal("bad version")
	case version == "slow" && heir && !cluster.IsWorker():
		clustertest.Tell("waiting")
		clustertest.Eventually(clustertest.Patience, func() bool {
			_, err := os.Stat("gate")
			return err == nil
		})
	}
	o := &reload.Options{Interval: 20 * time.Millisecond}
	m := new(cluster.Master)
	var ext, ignore string
	var plain, terminate bool
	flag.StringVar(&ext, "ext", "", "Extensions")
	flag.StringVar(&ignore, "ignore", "", "IgnoreDirs")
	flag.BoolVar(&o.NoProgram, "noprogram", false, "NoProgram")
	flag.BoolVar(&terminate, "terminate", false, "Signal is SIGTERM")
	flag.BoolVar(&plain, "plain", false, "no Options")
	flag.DurationVar(&o.Delay, "delay", 200*time.Millisecond, "Delay")
	flag.IntVar(&m.Workers, "workers", 1, "Workers")
	flag.StringVar(&m.Dir, "dir", "", "Dir")
	flag.BoolVar(&m.Inline, "inline", false, "Inline")
	flag.Parse()
	if ext != "" {
		o.Extensions = strings.Split(ext, ",")
	}
	if ignore != "" {
		o.IgnoreDirs = strings.Split(ignore, ",")
	}
	if terminate {
		o.Signal = syscall.SIGTERM
	}
	if plain {
		o = nil
	}
	m.NewServer = func() (cluster.Server, error) {
		page, err := os.ReadFile("data/page.html")
		if errors.Is(err, fs.ErrNotExist) {
			page, err = []byte("none"), nil
		}
		if string(page) == "bad" {
			err = errors.New("bad page")
		}
		clustertest.Tell("loaded %s %s", version, page)
		return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", version, page)
		})}, err
	}
	spawned := 0
	m.Use(reload.New(o, flag.Args()...), clustertest.Events, func(m *cluster.Master) error {
		m.On(cluster.Hooks{
			Worker: func(*cluster.Worker) { spawned++ },
			Close: func() {
				clustertest.Tell("spawned %s %d", version, spawned)
				if !clustertest.Eventually(5*time.Second, func() bool { return !watching() }) {
					clustertest.Tell("leak %d", os.Getpid())
				}
			},
		})
		return nil
	})
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if !cluster.IsWorker() && !heir {
		clustertest.Tell("addr %v", l.Addr())
	}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

// watching reports whether a goroutine watches files.
func watching() bool {
	buf := make([]byte, 1<<20)
	return bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("reload.(*watcher).run"))
}

// A site is a cluster whose program is app in its directory.
type site struct {
	*clustertest.Program
	t   *testing.T
	app string
	url string
}

// command returns a cluster that is yet to be started, with the page "one".
func command(t *testing.T, args ...string) *site {
	t.Helper()
	p := clustertest.Command(t, "server", args...)
	p.Forbid("leak")
	s := &site{Program: p, t: t, app: filepath.Join(p.Dir, "app")}
	if err := os.Link(p.Cmd.Path, s.app); err != nil {
		s.build(s.app, "v0")
	}
	p.Cmd.Path, p.Cmd.Args[0] = s.app, s.app
	s.write("data/page.html", "one")
	return s
}

// start starts one that has these arguments.
func start(t *testing.T, args ...string) *site {
	t.Helper()
	s := command(t, args...)
	s.launch()
	return s
}

func (s *site) launch() {
	s.t.Helper()
	s.Start()
	s.url = "http://" + s.Wait("addr")[0]
	s.Wait("listening")
	s.serves("v0 one")
}

// write writes a file, and makes its directory.
func (s *site) write(name, content string) {
	s.t.Helper()
	path := filepath.Join(s.Dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// build makes a version of the program.
func (s *site) build(path, version string) {
	s.t.Helper()
	s.must(os.WriteFile(path, program(s.t, version), 0o755))
}

func program(t *testing.T, version string) []byte {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if version != "v0" {
		data = append(data, trailer+version...)
	}
	return data
}

// replace puts a version in the place of the program.
func (s *site) replace(version string) {
	s.t.Helper()
	s.build(s.app+".new", version)
	s.must(os.Rename(s.app+".new", s.app))
}

var client = &http.Client{
	Transport: &http.Transport{DisableKeepAlives: true},
	Timeout:   clustertest.Patience,
}

func get(url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// serves waits until that is the answer. The old workers may still give some.
func (s *site) serves(want string) {
	s.t.Helper()
	var got string
	var err error
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		got, err = get(s.url)
		return err != nil || got == want
	}) || err != nil {
		s.t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

// loaded waits until a worker has loaded the version and the page, and all
// that answer have.
func (s *site) loaded(version, page string) {
	s.t.Helper()
	s.Wait("loaded", version, page)
	s.serves(version + " " + page)
}

// nothing gives the cluster the time for what it must not do.
func nothing() { time.Sleep(time.Second) }

// quit shuts down, and checks how many workers the last master has started.
func (s *site) quit(version string, spawned int) {
	s.t.Helper()
	s.Signal(syscall.SIGQUIT)
	s.ended(version, spawned)
	files := []string{"app", "app1", "app2", "data", "else", "gate"}
	s.End(0, files...)
}

// ended waits for the end of a master of that version.
func (s *site) ended(version string, spawned int) {
	s.t.Helper()
	if got := s.Wait("spawned", version)[0]; got != fmt.Sprint(spawned) {
		s.t.Errorf("the master of %s has started %s workers, want %d", version, got, spawned)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := command(t, "-delay=400ms", "data")
	s.write("else/target", "1")
	s.must(os.Symlink("../else/target", filepath.Join(s.Dir, "data/link")))
	s.must(os.Symlink(".", filepath.Join(s.Dir, "data/loop")))
	s.must(os.Symlink("self", filepath.Join(s.Dir, "data/self")))
	s.write("data/deep/deeper/file", "1")
	s.write("data/node_modules/file", "1")
	s.launch()
	s.Forget("loaded")

	s.write("data/page.html", "two")
	s.loaded("v0", "two")
	s.write("data/page.html", "ten") // the same size
	s.loaded("v0", "ten")
	info, err := os.Stat(filepath.Join(s.Dir, "data/page.html"))
	s.must(err)
	s.write("data/page.html", "nine") // of the same time
	s.must(os.Chtimes(filepath.Join(s.Dir, "data/page.html"), time.Time{}, info.ModTime()))
	s.loaded("v0", "nine")
	for _, change := range []func(){
		func() { s.write("data/new", "1") },
		func() { s.write("data/deep/deeper/file", "22") },
		func() { s.must(os.RemoveAll(filepath.Join(s.Dir, "data/deep"))) },
		func() { s.must(os.Remove(filepath.Join(s.Dir, "data/new"))) },
		func() { s.write("else/target", "22") },
	} {
		change()
		s.loaded("v0", "nine")
	}
	spawned := 1 + 8

	s.must(unix.Mkfifo(filepath.Join(s.Dir, "data/pipe"), 0o644))
	s.must(os.Mkdir(filepath.Join(s.Dir, "data/empty"), 0o755))
	for _, dir := range []string{"node_modules", ".git", "vendor", "testdata", "logs", "pids"} {
		s.write("data/"+dir+"/file", "22")
	}
	nothing()

	for i := range 100 { // a burst
		s.write(fmt.Sprintf("data/many/%d", i), "1")
		s.write("data/page.html", fmt.Sprint(i))
		time.Sleep(time.Millisecond)
	}
	s.loaded("v0", "99")

	s.must(os.RemoveAll(filepath.Join(s.Dir, "data"))) // all of it
	s.loaded("v0", "none")
	s.write("data/page.html", "again")
	s.loaded("v0", "again")
	s.quit("v0", spawned+3)
	if got := s.Log(); strings.Contains(got, "reload:") {
		t.Errorf("log: %s", got)
	}
}

func TestNothing(t *testing.T) {
	t.Parallel()
	s := start(t, "data")
	nothing()
	s.quit("v0", 1)
}

func TestOptions(t *testing.T) {
	t.Parallel()
	s := command(t, "-ext=.html,.tar.gz", "-ignore=build,tmp*", "-noprogram", "data", "else/config")
	s.write("else/config", "1")
	s.launch()
	s.Forget("loaded")
	for _, name := range []string{
		"data/app.log", "data/html", "data/file.gz", "data/build/page.html", "data/deep/tmp1/page.html", "else/other.html",
	} {
		s.write(name, "1")
	}
	s.replace("v1")
	nothing()
	s.Forget("loaded") // none, or the next is taken for it
	for _, name := range []string{"data/page2.html", "data/file.tar.gz", "data/node_modules/page.html", "else/config"} {
		s.write(name, "22")
		s.loaded("v0", "one")
	}
	s.write("data/page.html", "last")
	s.loaded("v0", "last")
	s.quit("v0", 1+5)
}

// An old worker that is sent SIGTERM doesn't drain.
func TestSignal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ arg, state string }{
		{"-terminate", "signal: terminated"},
		{"-terminate=false", "exit status 0"},
	} {
		s := start(t, test.arg, "data")
		pid := s.Wait("ready", "0")[0]
		s.write("data/page.html", "two")
		if state := strings.Join(s.Wait("killed", "0", pid), " "); state != test.state {
			t.Errorf("%s: the old worker's end is %q, want %q", test.arg, state, test.state)
		}
		s.loaded("v0", "two")
		s.quit("v0", 2)
	}
}

// The defaults.
func TestPlain(t *testing.T) {
	t.Parallel()
	s := start(t, "-plain", "data")
	s.Forget("loaded")
	s.write("data/page.html", "two")
	s.loaded("v0", "two")
	s.replace("v1")
	s.loaded("v1", "two")
	s.ended("v0", 2)
	s.quit("v1", 1)
}

// Pages and the program change under load.
func TestLoad(t *testing.T) {
	t.Parallel()
	s := start(t, "-workers=2", "data")
	s.Forget("loaded")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if body, err := get(s.url); err != nil || !strings.HasPrefix(body, "v") {
					t.Errorf("request failed: %q, %v", body, err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	s.write("data/page.html", "two")
	s.Wait("loaded", "v0", "two")
	s.loaded("v0", "two")
	s.replace("v1")
	s.Wait("loaded", "v1", "two")
	s.loaded("v1", "two")
	s.write("data/page.html", "three")
	s.Wait("loaded", "v1", "three")
	s.loaded("v1", "three")
	close(stop)
	wg.Wait()
	s.ended("v0", 4)
	s.quit("v1", 4)
}

func TestProgram(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]func(s *site){
		"absolute": func(s *site) {},
		"relative": func(s *site) {
			s.Cmd.Args[0] = "./app"
			s.Cmd.Args = append(s.Cmd.Args, "-dir=else")
			s.write("else/data/page.html", "one")
		},
		"in PATH": func(s *site) {
			s.must(errors.Join(os.Rename(s.app, s.app+"1"), os.Symlink("app1", s.app)))
			s.Cmd.Args[0] = "app"
			s.Cmd.Env = append(s.Cmd.Env, "PATH="+s.Dir+":"+os.Getenv("PATH"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := command(t)
			s.Forbid("leak", "failed")
			setup(s)
			s.launch()
			s.replace("v1")
			s.loaded("v1", "one")
			s.quit("v1", 1)
		})
	}
	t.Run("copy", func(t *testing.T) {
		t.Parallel()
		s := command(t, "-delay=1s")
		s.Forbid("leak", "failed")
		s.launch()
		data := program(t, "v1")
		s.must(os.Remove(s.app))                   // a file that runs can't be written
		for n := len(data)/8 + 1; len(data) > 0; { // each part is too little, and none is long in coming
			n = min(n, len(data))
			f, err := os.OpenFile(s.app, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o755)
			s.must(err)
			_, err = f.Write(data[:n])
			s.must(errors.Join(err, f.Close()))
			data = data[n:]
			time.Sleep(50 * time.Millisecond)
		}
		s.loaded("v1", "one")
		s.ended("v0", 1)
		s.quit("v1", 1)
	})
	t.Run("symlink", func(t *testing.T) {
		t.Parallel()
		s := command(t)
		s.must(errors.Join(os.Rename(s.app, s.app+"1"), os.Symlink("app1", s.app)))
		s.build(s.app+"2", "v2")
		s.launch()
		s.must(errors.Join(os.Symlink("app2", s.app+".new"), os.Rename(s.app+".new", s.app)))
		s.loaded("v2", "one")
		s.ended("v0", 1)
		s.quit("v2", 1)
	})
}

func TestBadProgram(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.write("app.new", "no program\n")
	s.must(errors.Join(os.Chmod(s.app+".new", 0o755), os.Rename(s.app+".new", s.app)))
	s.Wait("failed")
	s.WaitLog("reload: cluster: restart: cluster: fork: exec format error")
	s.serves("v0 one")
	s.replace("bad")
	s.Wait("failed")
	s.WaitLog("reload: cluster: the new master ended before it was ready")
	s.serves("v0 one")
	s.must(os.Remove(s.app)) // there is nothing to restart
	nothing()
	if got := s.Log(); strings.Count(got, "reload:") != 2 {
		t.Errorf("without a program there was a restart: %s", got)
	}
	s.replace("v1")
	s.loaded("v1", "one")
	for range 3 {
		s.Wait("restarting")
	}
	s.ended("v0", 1)
	s.quit("v1", 1)
}

// The program is replaced again when its new master has begun, but isn't
// ready.
func TestProgramAgain(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.replace("slow")
	s.Wait("waiting")
	s.replace("v2")
	s.write("gate", "")
	s.loaded("v2", "one")
	s.ended("v0", 1)
	s.ended("slow", 1)
	s.quit("v2", 1)
}

// A page that changes with the program is no restart of the workers, even if
// the program can't be restarted.
func TestBoth(t *testing.T) {
	t.Parallel()
	s := start(t, "data")
	s.build(s.app+"1", "bad")
	s.build(s.app+"2", "v2")
	s.write("data/page.html", "two")
	s.must(os.Rename(s.app+"1", s.app))
	s.Wait("failed")
	nothing()
	s.serves("v0 one")
	s.write("data/page.html", "three")
	s.must(os.Rename(s.app+"2", s.app))
	s.loaded("v2", "three")
	s.ended("v0", 1)
	s.quit("v2", 1)
}

func TestBadPage(t *testing.T) {
	t.Parallel()
	s := start(t, "data")
	s.write("data/page.html", "bad")
	s.WaitLog(" did not become ready: exit status 1: cluster: NewServer: bad page")
	s.serves("v0 one")
	s.write("data/page.html", "good")
	s.loaded("v0", "good")
	s.Quit("app", "data")
}

// What can't be looked at is said, once, and doesn't count as changed.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	s := start(t, "-delay=700ms", "data")
	s.Forget("loaded")
	s.write("data/page.html", "two")
	time.Sleep(200 * time.Millisecond) // to be seen, and not yet acted upon
	data := filepath.Join(s.Dir, "data")
	s.must(errors.Join(os.Rename(data, filepath.Join(s.Dir, "else")), os.Symlink("data", data)))
	const text = "reload: EvalSymlinks: too many links"
	s.WaitLog(text)
	nothing()
	if got := strings.Count(s.Log(), text); got != 1 {
		t.Errorf("said %d times: %s", got, s.Log())
	}
	s.must(errors.Join(os.Remove(data), os.Rename(filepath.Join(s.Dir, "else"), data)))
	s.loaded("v0", "two")
	s.quit("v0", 2)
}

// There is nothing to be restarted.
func TestInline(t *testing.T) {
	t.Parallel()
	for _, change := range []bool{false, true} {
		s := start(t, "-inline", "data")
		if change {
			s.write("data/page.html", "two")
			nothing()
			s.serves("v0 one")
		}
		s.quit("v0", 0)
		if got := s.Log(); got != "" {
			t.Errorf("log: %s", got)
		}
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	s := command(t, "data", "templates")
	s.Start()
	s.WaitLog("reload: stat " + s.Dir + "/templates: no such file or directory; it is to be watched")
	s.End(1, "app", "data")
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		o    reload.Options
		want string
	}{
		{reload.Options{Interval: -1}, "reload: the Interval is -1ns; it can't be negative"},
		{reload.Options{Delay: -1}, "reload: the Delay is -1ns; it can't be negative"},
		{reload.Options{Extensions: []string{".html", "css"}}, `reload: extension "css" has no dot; write ".css"`},
		{reload.Options{IgnoreDirs: []string{"["}}, `reload: IgnoreDirs: "[": syntax error in pattern`},
	} {
		if err := reload.New(&test.o)(new(cluster.Master)); err == nil || err.Error() != test.want {
			t.Errorf("%+v: %v, want %s", test.o, err, test.want)
		}
	}
}
