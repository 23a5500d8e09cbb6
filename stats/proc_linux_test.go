package stats

import (
	"slices"
	"testing"
)

func TestParseLoad(t *testing.T) {
	for _, test := range []struct {
		file string
		want []float64
	}{
		{"0.35 0.23 15.10 3/1234 5678\n", []float64{0.35, 0.23, 15.1}},
		{"", nil},
		{"0.35 0.23", nil},
		{"0.35 many 0.15 3/1234 5678\n", nil},
	} {
		if got := parseLoad(test.file); !slices.Equal(got, test.want) {
			t.Errorf("parseLoad(%q) = %v, want %v", test.file, got, test.want)
		}
	}
}

func TestParseMemory(t *testing.T) {
	for _, test := range []struct {
		file string
		want *Memory
	}{
		{"MemTotal:  4096 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\nHugePages_Total:  0\n", &Memory{2 << 20, 4 << 20}},
		{"MemTotal:  4096 kB\nMemFree:  1024 kB\n", &Memory{1 << 20, 4 << 20}},
		{"MemFree:  1024 kB\n", nil},
		{"MemTotal: -4096 kB\n", nil},
		{"", nil},
	} {
		got := parseMemory(test.file)
		if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("parseMemory(%q) = %v, want %v", test.file, got, test.want)
		}
	}
}
