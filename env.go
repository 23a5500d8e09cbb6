package cluster

import (
	"cmp"
	"context"
	"log"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An option is one that Set knows. It stores value, or tells what it should
// have been.
type option func(m *Master, value any) (want string)

// options returns the names of the reference, and of all other fields their
// words in lower case. As a variable they would be part of every program.
func options() map[string]option {
	return map[string]option{
		"addr":              stringOption(func(m *Master) *string { return &m.Addr }),
		"server":            valueOption("a cluster.Server", func(m *Master) *Server { return &m.Server }),
		"new server":        valueOption("a func() (cluster.Server, error)", func(m *Master) *func() (Server, error) { return &m.NewServer }),
		"path":              stringOption(func(m *Master) *string { return &m.Path }),
		"args":              valueOption("a []string", func(m *Master) *[]string { return &m.Args }),
		"working directory": stringOption(func(m *Master) *string { return &m.Dir }),
		"dir":               stringOption(func(m *Master) *string { return &m.Dir }),
		"workers":           intOption(func(m *Master) *int { return &m.Workers }),
		"backlog":           intOption(func(m *Master) *int { return &m.Backlog }),
		"timeout":           durationOption(func(m *Master) *time.Duration { return &m.Timeout }),
		"restart timeout":   durationOption(func(m *Master) *time.Duration { return &m.RestartTimeout }),
		"heartbeat":         durationOption(func(m *Master) *time.Duration { return &m.Heartbeat }),
		"alive":             valueOption("a func(context.Context) error", func(m *Master) *func(context.Context) error { return &m.Alive }),
		"socket path":       stringOption(func(m *Master) *string { return &m.SocketPath }),
		"socket filename":   stringOption(func(m *Master) *string { return &m.SocketFilename }),
		"title":             stringOption(func(m *Master) *string { return &m.Title }),
		"worker title":      stringOption(func(m *Master) *string { return &m.WorkerTitle }),
		"user":              idOption(func(m *Master) *string { return &m.User }),
		"group":             idOption(func(m *Master) *string { return &m.Group }),
		"reuse port":        boolOption(func(m *Master) *bool { return &m.ReusePort }),
		"stdout":            valueOption("an *os.File", func(m *Master) **os.File { return &m.Stdout }),
		"stderr":            valueOption("an *os.File", func(m *Master) **os.File { return &m.Stderr }),
		"sys proc attr":     valueOption("a *syscall.SysProcAttr", func(m *Master) **syscall.SysProcAttr { return &m.SysProcAttr }),
		"detach":            boolOption(func(m *Master) *bool { return &m.Detach }),
		"inline":            boolOption(func(m *Master) *bool { return &m.Inline }),
		"plugins":           valueOption("a []cluster.Plugin", func(m *Master) *[]Plugin { return &m.Plugins }),
		"signals":           valueOption("a map[os.Signal]cluster.Action", func(m *Master) *map[os.Signal]Action { return &m.Signals }),
		"error log":         valueOption("a *log.Logger", func(m *Master) **log.Logger { return &m.ErrorLog }),
	}
}

func valueOption[T any](want string, field func(*Master) *T) option {
	return func(m *Master, value any) string {
		v, ok := value.(T)
		if !ok {
			return want
		}
		*field(m) = v
		return ""
	}
}

func stringOption(field func(*Master) *string) option { return valueOption("a string", field) }

func intOption(field func(*Master) *int) option {
	return func(m *Master, value any) string {
		switch v := value.(type) {
		case int:
			*field(m) = v
			return ""
		case string:
			if n, err := strconv.Atoi(v); err == nil {
				*field(m) = n
				return ""
			}
		}
		return "a number"
	}
}

func boolOption(field func(*Master) *bool) option {
	return func(m *Master, value any) string {
		switch v := value.(type) {
		case bool:
			*field(m) = v
			return ""
		case string:
			if b, err := strconv.ParseBool(v); err == nil {
				*field(m) = b
				return ""
			}
		}
		return "true or false"
	}
}

func durationOption(field func(*Master) *time.Duration) option {
	return func(m *Master, value any) string {
		switch v := value.(type) {
		case time.Duration:
			*field(m) = v
			return ""
		case string:
			if _, err := strconv.ParseFloat(v, 64); err == nil {
				break // "0" is a duration to the time package, and "60" isn't
			}
			if d, err := time.ParseDuration(v); err == nil {
				*field(m) = d
				return ""
			}
		}
		return `a time.Duration or a string with a unit, as "60s"`
	}
}

// idOption takes a name, or a numeric id as a string or an int.
func idOption(field func(*Master) *string) option {
	return func(m *Master, value any) string {
		switch v := value.(type) {
		case string:
			*field(m) = v
			return ""
		case int:
			*field(m) = strconv.Itoa(v)
			return ""
		}
		return "a name or a numeric id"
	}
}

// Set sets an option to a value, and returns m. An option is a field of
// Master, in lower case words, as "restart timeout"; for Dir it is also
// "working directory". Value is what the field holds; for a number, a
// boolean or a duration it may also be a string, which is parsed.
//
// A mistake is reported by ListenAndServe or Start.
func (m *Master) Set(name string, value any) *Master {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := options()
	o, ok := known[name]
	switch {
	case m.begun && m.started():
		m.logf("cluster: Set(%q) after the start does nothing", name)
	case !ok:
		m.errs = append(m.errs, errorf("cluster: Set: unknown option %q; there are %s", name,
			strings.Join(slices.Sorted(maps.Keys(known)), ", ")))
	default:
		if want := o(m, value); want != "" {
			m.errs = append(m.errs, errorf("cluster: Set: option %q is %#v (%T); it must be %s", name, value, value, want))
		}
	}
	return m
}

// started reports whether settings have been read for the last time. m.mu is
// held.
func (m *Master) started() bool { return m.sup != nil || m.local != nil }

// An Env is a Master in one environment: its methods do something only if
// that is the environment which the process runs in.
type Env struct {
	m     *Master
	match bool
}

// In returns m as it is in the environment env: what is then called on it
// has an effect only if env is $CLUSTER_ENV, or "development" where that is
// not set. "all" matches in every environment.
//
//	m.In("development").Set("workers", 1).Set("addr", ":3000").
//		In("production").Set("workers", 4).Set("addr", ":80").
//		In("all").ListenAndServe(nil)
func (m *Master) In(env string) *Env {
	return &Env{m, env == "all" || env == cmp.Or(os.Getenv("CLUSTER_ENV"), "development")}
}

// Set is Master.Set in this environment.
func (e *Env) Set(name string, value any) *Env {
	if e.match {
		e.m.Set(name, value)
	}
	return e
}

// Use is Master.Use in this environment.
func (e *Env) Use(p ...Plugin) *Env {
	if e.match {
		e.m.Use(p...)
	}
	return e
}

// Do calls f with the Master in this environment.
func (e *Env) Do(f func(*Master)) *Env {
	if e.match {
		f(e.m)
	}
	return e
}

// In is Master.In: e itself has no part in it.
func (e *Env) In(env string) *Env { return e.m.In(env) }

// ListenAndServe is Master.ListenAndServe in this environment. In others it
// returns nil at once.
func (e *Env) ListenAndServe(l net.Listener) error {
	if !e.match {
		return nil
	}
	return e.m.ListenAndServe(l)
}
