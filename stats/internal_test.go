package stats

import (
	"slices"
	"testing"
)

func TestSince(t *testing.T) {
	for _, test := range []struct {
		seconds float64
		want    string
	}{
		{0, "0 milliseconds"},
		{0.001, "1 millisecond"},
		{0.9994, "999 milliseconds"},
		{1, "1 second"},
		{59.99, "59 seconds"},
		{60, "1 minute"},
		{150, "2 minutes"},
		{3600, "1 hour"},
		{86399, "23 hours"},
		{86400, "1 day"},
		{200 * 86400, "200 days"},
	} {
		if got := since(test.seconds); got != test.want {
			t.Errorf("since(%v) = %q, want %q", test.seconds, got, test.want)
		}
	}
}

func TestSize(t *testing.T) {
	for _, test := range []struct {
		n    uint64
		want string
	}{
		{0, "0b"},
		{1023, "1023b"},
		{1024, "1.00kb"},
		{1536, "1.50kb"},
		{5 << 20, "5.00mb"},
		{2340757176, "2.18gb"},
		{4 << 30, "4.00gb"},
		{3 << 50, "3072.00tb"},
	} {
		if got := size(test.n); got != test.want {
			t.Errorf("size(%d) = %q, want %q", test.n, got, test.want)
		}
	}
}

// Totals are the sum of what earlier masters, dead workers and living ones
// have counted; the time of the start is the first master's.
func TestTotal(t *testing.T) {
	c := &collector{own: totals{Slots: map[int]counts{0: {1, 10}, 2: {2, 20}}}}
	c.base.Slots = map[int]counts{0: {100, 1000}, 7: {3, 30}}
	want := map[int]counts{0: {101, 1010}, 2: {2, 20}, 7: {3, 30}}
	for range 2 { // adding up changes nothing
		got := c.total().Slots
		for id := range 8 {
			if got[id] != want[id] {
				t.Errorf("slot %d: %v, want %v", id, got[id], want[id])
			}
		}
	}
	if ids := len(c.total().Slots); ids != 3 {
		t.Errorf("%d slots, want 3", ids)
	}
	if slices.Contains([]uint64{c.total().Restarts, c.total().Spawned}, 1) {
		t.Error("there were no restarts and no workers")
	}
}
