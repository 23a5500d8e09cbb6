package cluster

import (
	"os/exec"
	"strings"
	"testing"
)

// What a program gets with this package: neither an HTTP server nor
// os/exec, and one module.
func TestImports(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command")
	}
	const format = "{{.ImportPath}}{{with .Module}} {{.Path}}{{end}}"
	for _, goos := range []string{"linux", "darwin", "freebsd", "windows"} {
		cmd := exec.Command("go", "list", "-deps", "-f", format, ".")
		cmd.Env = append(cmd.Environ(), "GOOS="+goos, "CGO_ENABLED=0", "GOFLAGS=")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list for %s: %v", goos, err)
		}
		for line := range strings.Lines(string(out)) {
			path, module, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch path {
			case "net/http", "os/exec", "testing", "C":
				t.Errorf("on %s the package imports %s", goos, path)
			}
			switch module {
			case "", "github.com/gocluster/cluster", "golang.org/x/sys":
			default:
				t.Errorf("on %s the package imports %s of module %s", goos, path, module)
			}
		}
	}
}
