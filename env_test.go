package cluster

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
)

func TestSetStoresEveryOption(t *testing.T) {
	var (
		server    Server = &TCPServer{}
		newServer        = func() (Server, error) { return nil, nil }
		alive            = func(context.Context) error { return nil }
		plugins          = []Plugin{func(*Master) error { return nil }}
	)
	tests := []struct {
		option string
		value  any
		field  string
		want   any
	}{
		{"addr", ":80", "Addr", ":80"},
		{"server", server, "Server", server},
		{"new server", newServer, "NewServer", newServer},
		{"path", "/bin/true", "Path", "/bin/true"},
		{"args", []string{"-v"}, "Args", []string{"-v"}},
		{"dir", "/tmp", "Dir", "/tmp"},
		{"working directory", "/tmp", "Dir", "/tmp"},
		{"workers", 4, "Workers", 4},
		{"workers", "4", "Workers", 4},
		{"workers", -4, "Workers", -4}, // the start refuses it
		{"backlog", 128, "Backlog", 128},
		{"backlog", "128", "Backlog", 128},
		{"timeout", time.Second, "Timeout", time.Second},
		{"timeout", "1m30s", "Timeout", 90 * time.Second},
		{"timeout", "0s", "Timeout", time.Duration(0)},
		{"restart timeout", time.Second, "RestartTimeout", time.Second},
		{"restart timeout", "1s", "RestartTimeout", time.Second},
		{"heartbeat", time.Second, "Heartbeat", time.Second},
		{"heartbeat", "-1s", "Heartbeat", -time.Second},
		{"alive", alive, "Alive", alive},
		{"socket path", "/run", "SocketPath", "/run"},
		{"socket filename", "x.sock", "SocketFilename", "x.sock"},
		{"title", "x", "Title", "x"},
		{"worker title", "x {n}", "WorkerTitle", "x {n}"},
		{"user", "nobody", "User", "nobody"},
		{"user", 65534, "User", "65534"},
		{"group", "nogroup", "Group", "nogroup"},
		{"group", 65534, "Group", "65534"},
		{"stdout", os.Stderr, "Stdout", os.Stderr},
		{"stderr", os.Stdout, "Stderr", os.Stdout},
		{"sys proc attr", &syscall.SysProcAttr{}, "SysProcAttr", &syscall.SysProcAttr{}},
		{"reuse port", true, "ReusePort", true},
		{"detach", true, "Detach", true},
		{"inline", true, "Inline", true},
		{"inline", "true", "Inline", true},
		{"plugins", plugins, "Plugins", plugins},
		{"signals", map[os.Signal]Action{os.Interrupt: ActionClose}, "Signals", map[os.Signal]Action{os.Interrupt: ActionClose}},
		{"error log", log.Default(), "ErrorLog", log.Default()},
	}
	seen := make(map[string]bool)
	for _, tt := range tests {
		seen[tt.option] = true
		m := &Master{}
		if m.Set(tt.option, tt.value) != m {
			t.Errorf("Set(%q) doesn't return its Master", tt.option)
		}
		if err := errors.Join(m.errs...); err != nil {
			t.Errorf("Set(%q, %#v): %v", tt.option, tt.value, err)
		}
		got := reflect.ValueOf(m).Elem().FieldByName(tt.field).Interface()
		if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", tt.want) && !reflect.DeepEqual(got, tt.want) {
			t.Errorf("Set(%q, %#v): %s is %#v", tt.option, tt.value, tt.field, got)
		}
	}
	for option := range options() {
		if !seen[option] {
			t.Errorf("option %q is not in this test", option)
		}
	}
}

func TestSetRefusesWhatAnOptionCanNotBe(t *testing.T) {
	for option := range options() {
		m := (&Master{}).Set(option, nil).Set(option, struct{}{})
		if len(m.errs) != 2 {
			t.Errorf("Set(%q) takes anything: %v", option, m.errs)
		}
		for _, err := range m.errs {
			if !strings.Contains(err.Error(), fmt.Sprintf("%q", option)) {
				t.Errorf("Set(%q): the error doesn't name it: %v", option, err)
			}
		}
	}
	tests := []struct {
		option string
		value  any
		want   string // in the error
	}{
		{"addr", 80, "a string"},
		{"args", "-v", "a []string"},
		{"workers", "four", "a number"},
		{"workers", "4.5", "a number"},
		{"workers", 4.0, "a number"},
		{"backlog", int64(1), "a number"},
		{"timeout", 60, `"60s"`},
		{"timeout", "60", `"60s"`},
		{"timeout", "0", `"60s"`},
		{"timeout", "1e3", `"60s"`},
		{"timeout", "", `"60s"`},
		{"restart timeout", 60.0, `"60s"`},
		{"heartbeat", "never", `"60s"`},
		{"inline", 1, "true or false"},
		{"inline", "yes", "true or false"},
		{"server", "x", "a cluster.Server"},
		{"user", 1.5, "a name or a numeric id"},
		{"stdout", "file", "an *os.File"},
		{"no such option", 1, "unknown option"},
		{"Workers", 1, "unknown option"},
	}
	for _, tt := range tests {
		m := (&Master{}).Set(tt.option, tt.value)
		if err := errors.Join(m.errs...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Set(%q, %#v): error %v, want one with %s", tt.option, tt.value, err, tt.want)
		}
		if len(m.Plugins) > 0 || m.Workers != 0 || m.Timeout != 0 {
			t.Errorf("Set(%q, %#v) has set something", tt.option, tt.value)
		}
	}
}

func TestUnknownOptionIsAnsweredWithAllThatThereAre(t *testing.T) {
	m := (&Master{}).Set("wrokers", 1)
	err := errors.Join(m.errs...)
	if err == nil {
		t.Fatal("no error")
	}
	for option := range options() {
		if !strings.Contains(err.Error(), option) {
			t.Errorf("the error doesn't list %q: %v", option, err)
		}
	}
}

func TestEveryFieldHasAnOption(t *testing.T) {
	typ := reflect.TypeFor[Master]()
	for i := range typ.NumField() {
		f := typ.Field(i)
		if !f.IsExported() {
			continue
		}
		var words strings.Builder
		for i, r := range f.Name {
			if i > 0 && unicode.IsUpper(r) {
				words.WriteByte(' ')
			}
			words.WriteRune(unicode.ToLower(r))
		}
		if _, ok := options()[words.String()]; !ok {
			t.Errorf("there is no option %q for %s", words.String(), f.Name)
		}
	}
}

func TestAllMistakesAreReportedAtTheStart(t *testing.T) {
	for _, start := range []func(*Master) error{
		func(m *Master) error { return m.ListenAndServe(nil) },
		func(m *Master) error { return m.Start() },
	} {
		m := (&Master{Addr: "nonsense", Backlog: -1}).
			Set("wrokers", 1).
			Set("timeout", 60).
			Set("workers", "-1")
		m.Add(nil, &TCPServer{})
		m.Use(func(*Master) error { t.Error("a plugin is run all the same"); return nil })
		err := start(m)
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{"wrokers", "timeout", "Workers is -1", "Backlog is -1", "nonsense", "Add"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error has nothing about %s: %v", want, err)
			}
		}
		if err := start(m); !errors.Is(err, ErrStarted) {
			t.Errorf("the second start: %v, want ErrStarted", err)
		}
	}
}

func TestMistakesOfPluginsAreReportedAtTheStart(t *testing.T) {
	oops := errors.New("oops")
	for want, p := range map[string]Plugin{
		"oops":        func(*Master) error { return oops },
		"Plugins[0]":  nil,
		"wrokers":     func(m *Master) error { m.Set("wrokers", 1); return nil },
		"Timeout is ": func(m *Master) error { m.Timeout = -1; return nil },
		"late":        func(m *Master) error { m.Use(func(*Master) error { return errors.New("late") }); return nil },
	} {
		m := &Master{Addr: "127.0.0.1:0", Server: &TCPServer{}, Plugins: []Plugin{p}}
		if err := m.ListenAndServe(nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
}

func TestStartNeedsAServerOrNone(t *testing.T) {
	var nilServer *TCPServer
	for name, err := range map[string]error{
		"ListenAndServe without a server": (&Master{Addr: "127.0.0.1:0"}).ListenAndServe(nil),
		"ListenAndServe on nothing":       (&Master{Server: &TCPServer{}}).ListenAndServe(nil),
		"a nil server":                    (&Master{Addr: "127.0.0.1:0", Server: nilServer}).ListenAndServe(nil),
		"Start with a server":             (&Master{Server: &TCPServer{}}).Start(),
		"a directory that isn't there":    (&Master{Dir: "/no/such/directory"}).Start(),
	} {
		if err == nil || errors.Is(err, ErrStarted) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestEnvironmentsChain(t *testing.T) {
	for _, tt := range []struct{ env, want string }{
		{"", "development"}, // the default
		{"development", "development"},
		{"production", "production"},
		{"staging", ""},
	} {
		t.Setenv("CLUSTER_ENV", tt.env)
		if tt.env == "" {
			os.Unsetenv("CLUSTER_ENV")
		}
		m := &Master{}
		plugins := 0
		plugin := func(*Master) error { plugins++; return nil }
		var did []string
		e := m.In("development").Set("title", "development").Use(plugin).
			In("production").Set("title", "production").Use(plugin, plugin).
			In("development").Do(func(got *Master) {
			if got != m {
				t.Error("Do is given another Master")
			}
			did = append(did, "development")
		}).
			In("production").Do(func(*Master) { did = append(did, "production") }).
			In("all").Set("worker title", "all").Do(func(*Master) { did = append(did, "all") })
		if e == nil || m.WorkerTitle != "all" {
			t.Errorf("CLUSTER_ENV=%q: all doesn't match", tt.env)
		}
		want, n := []string{"all"}, 0
		switch tt.want {
		case "development":
			want, n = []string{"development", "all"}, 1
		case "production":
			want, n = []string{"production", "all"}, 2
		}
		if !slices.Equal(did, want) || len(m.Plugins) != n {
			t.Errorf("CLUSTER_ENV=%q: did %v with %d plugins, want %v with %d", tt.env, did, len(m.Plugins), want, n)
		}
		if got := m.Title; got != tt.want {
			t.Errorf("CLUSTER_ENV=%q: the title is %q, want %q", tt.env, got, tt.want)
		}
		if err := errors.Join(m.errs...); err != nil {
			t.Error(err)
		}
	}
}

func TestListenAndServeDoesNothingInAnotherEnvironment(t *testing.T) {
	t.Setenv("CLUSTER_ENV", "test")
	m := &Master{Addr: "nonsense"}
	if err := m.In("production").ListenAndServe(nil); err != nil {
		t.Errorf("in another: %v", err)
	}
	if err := m.In("test").ListenAndServe(nil); err == nil || errors.Is(err, ErrStarted) {
		t.Errorf("in this one: error %v", err)
	}
}

func TestMasterChains(t *testing.T) {
	m := &Master{}
	plugin := func(*Master) error { return nil }
	if m.Use(plugin).Use(plugin, plugin).Do(func(m *Master) { m.Workers = 3 }) != m || len(m.Plugins) != 3 || m.Workers != 3 {
		t.Errorf("%d plugins, %d workers", len(m.Plugins), m.Workers)
	}
}

var addrs = []struct{ addr, network, address string }{
	{":80", "tcp", ":80"},
	{"127.0.0.1:0", "tcp", "127.0.0.1:0"},
	{"[::1]:http", "tcp", "[::1]:http"},
	{"unix:/run/app.sock", "unix", "/run/app.sock"},
	{"unix:app.sock", "unix", "app.sock"},
	{"unix:@app", "unix", "@app"},
	{"unix:", "", ""},
	{"", "", ""},
	{"80", "", ""},
	{"/run/app.sock", "", ""},
	{"::1:80", "", ""},
	{"http://localhost:80", "", ""},
}

func TestAddr(t *testing.T) {
	for _, tt := range addrs {
		network, address, err := splitAddr(tt.addr)
		if network != tt.network || address != tt.address || (err == nil) != (tt.network != "") {
			t.Errorf("%q is %q %q, %v; want %q %q", tt.addr, network, address, err, tt.network, tt.address)
		}
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", tt.addr)) {
			t.Errorf("%q: the error doesn't name it: %v", tt.addr, err)
		}
	}
}

func FuzzSplitAddr(f *testing.F) {
	for _, tt := range addrs {
		f.Add(tt.addr)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		network, address, err := splitAddr(addr)
		switch {
		case err != nil:
			if network != "" || address != "" {
				t.Errorf("%q is %q %q, and %v", addr, network, address, err)
			}
		case network == "unix":
			if "unix:"+address != addr || address == "" {
				t.Errorf("%q is unix %q", addr, address)
			}
		case network == "tcp":
			if _, _, err := net.SplitHostPort(address); err != nil || address != addr {
				t.Errorf("%q is tcp %q, %v", addr, address, err)
			}
		default:
			t.Errorf("%q is %q %q", addr, network, address)
		}
	})
}

// Set takes what a configuration file may have in it: strings.
func FuzzSet(f *testing.F) {
	for option := range options() {
		f.Add(option, "1")
	}
	for _, s := range []string{"", "0", "60", "60s", "-1s", "1e9", "NaN", "Inf", "0x10", "9999999999h", "true", "T", "no"} {
		f.Add("timeout", s)
		f.Add("workers", s)
		f.Add("inline", s)
	}
	f.Fuzz(func(t *testing.T, option, value string) {
		m := (&Master{}).Set(option, value)
		_, known := options()[option]
		if !known && len(m.errs) == 0 {
			t.Errorf("unknown option %q is no error", option)
		}
		if len(m.errs) > 1 || len(m.errs) == 1 && !strings.Contains(m.errs[0].Error(), fmt.Sprintf("%q", option)) {
			t.Errorf("Set(%q, %q): %v", option, value, m.errs)
		}
		if len(m.errs) == 1 && (m.Timeout != 0 || m.Workers != 0 || m.Inline) {
			t.Errorf("Set(%q, %q) has set something, and says %v", option, value, m.errs[0])
		}
		if m.Timeout != 0 {
			if d, err := time.ParseDuration(value); err != nil || d != m.Timeout {
				t.Errorf("Set(%q, %q): %v", option, value, m.Timeout)
			}
		}
	})
}
