package cluster_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What the package adds to a program is limited. The programs are built for
// one platform, whatever the test runs on, so that the figures can be compared.
func TestSize(t *testing.T) {
	if testing.Short() {
		t.Skip("builds four programs")
	}
	dir := t.TempDir()
	size := func(name string) int64 {
		file := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", file, "./testdata/size/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-mod=readonly")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	const mib = 1 << 20
	for _, test := range []struct {
		with, without string
		limit         float64 // MiB
	}{
		{"tcp", "nettcp", 0.9},
		{"http", "nethttp", 0.5},
	} {
		with, without := size(test.with), size(test.without)
		more := float64(with-without) / mib
		t.Logf("%s: %d bytes, %s: %d bytes, %.2f MiB more", test.with, with, test.without, without, more)
		if more > test.limit {
			t.Errorf("%s is %.2f MiB larger than %s; the limit is %v", test.with, more, test.without, test.limit)
		}
	}
}
