//go:build unix

package main

import (
	"context"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/gocluster/cluster"
	"github.com/gocluster/cluster/internal/clustertest"
	"github.com/gocluster/cluster/stats"
)

func TestMain(m *testing.M) {
	clustertest.Main(m, map[string]func(){"stats": statsProgram})
}

func statsProgram() {
	l, err := cluster.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	m := &cluster.Master{Workers: 2, Server: &http.Server{
		Handler: stats.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})),
	}}
	m.Use(clustertest.Events, stats.New(&stats.Options{Interval: 20 * time.Millisecond}), stats.Serve("stats.sock"))
	if m.IsMaster() && m.Predecessor() == 0 {
		clustertest.Tell("addr %s", l.Addr())
	}
	if err := m.ListenAndServe(l); err != nil {
		log.Fatal(err)
	}
}

// Prometheus's own parser reads what stats.Serve says, before a restart and
// after it.
func TestStatsMetrics(t *testing.T) {
	p := clustertest.Start(t, "stats")
	addr := p.Wait("addr")[0]
	p.Wait("listening")
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(p.Dir, "stats.sock"))
	}}
	client := &http.Client{Transport: transport}
	defer transport.CloseIdleConnections()
	scrape := func() (families map[string]*dto.MetricFamily, err error) {
		resp, err := client.Get("http://stats/metrics")
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if format := expfmt.ResponseFormat(resp.Header); format.FormatType() != expfmt.TypeTextPlain {
			t.Errorf("Content-Type is %q", resp.Header.Get("Content-Type"))
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		return parser.TextToMetricFamilies(resp.Body)
	}
	// await scrapes until f is true.
	await := func(what string, f func(map[string]*dto.MetricFamily) bool) map[string]*dto.MetricFamily {
		t.Helper()
		var families map[string]*dto.MetricFamily
		var err error
		if !clustertest.Eventually(clustertest.Patience, func() bool {
			families, err = scrape()
			return err == nil && f(families)
		}) {
			t.Fatalf("waiting for %s: %v\n%v", what, err, families)
		}
		return families
	}

	for range 10 {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	await("the requests", func(m map[string]*dto.MetricFamily) bool { return sum(m["cluster_requests_total"]) == 10 })
	p.Signal(syscall.SIGUSR2)
	p.Wait("restarted")
	families := await("the old workers' deaths", func(m map[string]*dto.MetricFamily) bool {
		return sum(m["cluster_worker_deaths_total"]) == 2
	})
	p.Quit()

	for name, want := range map[string]struct {
		kind   dto.MetricType
		labels string
		sum    float64 // < 0: any above 0
	}{
		"cluster_start_time_seconds":           {dto.MetricType_GAUGE, "", -1},
		"cluster_restarts_total":               {dto.MetricType_COUNTER, "", 1},
		"cluster_workers":                      {dto.MetricType_GAUGE, "state=starting state=ready state=draining", 2},
		"cluster_workers_spawned_total":        {dto.MetricType_COUNTER, "", 4},
		"cluster_worker_deaths_total":          {dto.MetricType_COUNTER, "", 2},
		"cluster_connections_active":           {dto.MetricType_GAUGE, "worker=0 worker=1", 0},
		"cluster_connections_total":            {dto.MetricType_COUNTER, "worker=0 worker=1", 10},
		"cluster_requests_total":               {dto.MetricType_COUNTER, "worker=0 worker=1", 10},
		"cluster_worker_resident_memory_bytes": {dto.MetricType_GAUGE, "worker=0 worker=1", -1},
		"process_resident_memory_bytes":        {dto.MetricType_GAUGE, "", -1},
		"process_start_time_seconds":           {dto.MetricType_GAUGE, "", -1},
	} {
		f := families[name]
		if f == nil {
			t.Errorf("no %s", name)
			continue
		}
		delete(families, name)
		var labels []string
		for _, m := range f.Metric {
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%s", l.GetName(), l.GetValue()))
			}
		}
		got := sum(f)
		if f.GetType() != want.kind || f.GetHelp() == "" || strings.Join(labels, " ") != want.labels ||
			got != want.sum && (want.sum >= 0 || got <= 0) {
			t.Errorf("got %v, want %v %v", f, name, want)
		}
	}
	if len(families) > 0 {
		t.Errorf("not expected: %q", slices.Collect(maps.Keys(families)))
	}
}

// sum adds up all samples of a metric.
func sum(f *dto.MetricFamily) (n float64) {
	for _, m := range f.GetMetric() {
		n += m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return n
}
