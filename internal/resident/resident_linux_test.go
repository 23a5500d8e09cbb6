package resident

import (
	"os"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		file string
		want uint64
	}{
		{"5000 321 200 1 0 300 0\n", 321},
		{"5000", 0},
		{"", 0},
		{"a b c", 0},
	} {
		if got := parse(test.file); got != test.want {
			t.Errorf("parse(%q) = %d, want %d", test.file, got, test.want)
		}
	}
}

func TestOf(t *testing.T) {
	if n := Of(os.Getpid()); n < 1<<20 {
		t.Errorf("this process has %d bytes", n)
	}
	if n := Of(1 << 30); n != 0 {
		t.Errorf("no process has %d bytes", n)
	}
}
