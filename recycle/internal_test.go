package recycle

import (
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocluster/cluster"
)

// Workers that follow each other have limits that are spread evenly, whatever
// the first one's number is.
func TestLimitsAreSpread(t *testing.T) {
	o := Options{MaxAge: time.Hour, MaxMemory: 1 << 30, MaxConns: 1e6, Jitter: 0.25}
	for _, n := range []int{2, 3, 4, 8, 16, 64} {
		for first := 0; first < 5000; first += 13 {
			var ages []float64
			for i := range n {
				l := o.limits(first + i)
				age := float64(l.MaxAge) / float64(o.MaxAge)
				if age <= 0.75-1e-9 || age > 1 {
					t.Fatalf("worker %d lives %v", first+i, l.MaxAge)
				}
				for _, other := range []float64{float64(l.MaxMemory) / float64(o.MaxMemory), float64(l.MaxConns) / float64(o.MaxConns)} {
					if math.Abs(other-age) > 1e-5 {
						t.Fatalf("worker %d has limits %+v", first+i, l)
					}
				}
				ages = append(ages, age)
			}
			slices.Sort(ages)
			for i := range ages[1:] {
				if gap := (ages[i+1] - ages[i]) / o.Jitter * float64(n); gap < 0.5 {
					t.Fatalf("of %d workers from %d on two are %.2f of an even distance apart", n, first, gap)
				}
			}
		}
	}
	o.Jitter = 0
	if l := o.limits(7); l != o {
		t.Errorf("without jitter: %+v, want %+v", l, o)
	}
	if l := (Options{MaxConns: 1, Jitter: 0.9}).limits(3); l.MaxConns != 1 || l.MaxAge != 0 || l.MaxMemory != 0 {
		t.Errorf("limits %+v", l)
	}
}

func TestOver(t *testing.T) {
	o := Options{MaxMemory: 1000, MaxAge: 1000 * time.Second, MaxConns: 10, Interval: time.Second}
	for _, test := range []struct {
		age    time.Duration
		usage  usage
		factor float64
		why    string
	}{
		{500 * time.Second, usage{}, 0.5, "it is 8m20s old"},
		{1500 * time.Second, usage{}, 1.5, "it is 25m0s old, its limit is 16m40s"},
		{100 * time.Second, usage{Memory: 2000}, 2, "it takes 2000 bytes of memory, its limit is 1000"},
		{100 * time.Second, usage{Memory: 2000, Conns: 30}, 3, "it has accepted 30 connections, its limit is 10"},
		{5000 * time.Second, usage{Memory: 2000, Conns: 30}, 5, "it is "},
		{59 * time.Second, usage{Memory: 2000, Conns: 30}, 0.059, "it is "}, // too early
	} {
		factor, why := o.over(test.age, test.usage)
		if math.Abs(factor-test.factor) > 1e-9 || !strings.HasPrefix(why, test.why) {
			t.Errorf("%v, %+v: %v, %q, want %v, %q", test.age, test.usage, factor, why, test.factor, test.why)
		}
	}
	if factor, why := (Options{}).over(time.Hour, usage{1, 1}); factor != 0 || why != "" {
		t.Errorf("without limits: %v, %q", factor, why)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{MaxAge: -1}, {Interval: -1}, {Jitter: 1}, {Jitter: math.NaN()}} {
		if err := New(&o)(new(cluster.Master)); err == nil || !strings.HasPrefix(err.Error(), "recycle: ") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, test := range []struct {
		o    *Options
		want string
	}{
		{nil, "0.1 1s"},
		{&Options{Jitter: -1, Interval: time.Minute}, "0 1m0s"},
		{&Options{Jitter: 0.5}, "0.5 1s"},
	} {
		r, err := newRecycler(nil, test.o)
		if err != nil {
			t.Error(err)
		} else if got := fmt.Sprint(r.Jitter, " ", r.Interval); got != test.want {
			t.Errorf("%+v: %s, want %s", test.o, got, test.want)
		}
	}
}

func TestTaken(t *testing.T) {
	debug.FreeOSMemory() // what other tests have left, too
	before := taken()
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = 1
	}
	if after := taken(); before < 1<<20 || after < before+32<<20 {
		t.Errorf("%d bytes are %d with 64 MiB more", before, after)
	}
	runtime.KeepAlive(b)
}
