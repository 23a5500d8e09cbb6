package cluster

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

// A step of the system's clock makes nobody late, silent or hung: times come
// from time.Now, and keep their monotonic reading until they are compared.
// The one exception is time.Unix(1, 0), a deadline that has passed for sure.
func TestTimesAreMonotonic(t *testing.T) {
	loses := []string{"Date", "Parse", "ParseInLocation", "Unix", "UnixMilli", "UnixMicro", "UnixNano",
		"Round", "Truncate", "AddDate", "Local", "UTC"}
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal("no files:", err)
	}
	now := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := f.X.(*ast.Ident); ok && pkg.Name == "time" {
				if f.Sel.Name == "Now" {
					now++
				}
				if f.Sel.Name == "Unix" {
					sec, ok := call.Args[0].(*ast.BasicLit)
					if ok && sec.Value == "1" {
						return true
					}
				}
			}
			if slices.Contains(loses, f.Sel.Name) {
				t.Errorf("%v: the result of %s has no monotonic reading", fset.Position(call.Pos()), f.Sel.Name)
			}
			return true
		})
	}
	if now == 0 {
		t.Error("time.Now is called nowhere")
	}
}

// Every promise of SECURITY.md names tests that exist.
func TestPromisesAreTested(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	more, err2 := filepath.Glob("*/*_test.go")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	files = append(files, more...)
	var tests strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(b)
	}
	_, promised, _ := strings.Cut(string(text), "## Promised")
	promised, _, _ = strings.Cut(promised, "## Not promised")
	names := regexp.MustCompile("`((Test|Fuzz)[A-Za-z]+)`")
	list := strings.Split(promised, "\n- ")[1:]
	if len(list) == 0 {
		t.Error("nothing is promised")
	}
	for _, promise := range list {
		found := names.FindAllStringSubmatch(promise, -1)
		if len(found) == 0 {
			t.Errorf("no test is named for: %s", promise)
		}
		for _, name := range found {
			if !strings.Contains(tests.String(), "func "+name[1]+"(") {
				t.Errorf("there is no %s", name[1])
			}
		}
	}
}

// What README.md says that we have and others may not is shown by tests that
// exist.
func TestComparisonIsTested(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Beside others")
	_, table, _ = strings.Cut(table, "|---")
	link := regexp.MustCompile(`\]\(([a-z0-9_/]+_test\.go) "(Test[A-Za-z0-9]+)"\)`)
	rows := 0
	for _, row := range strings.Split(table, "\n|")[1:] {
		rows++
		name, ours, _ := strings.Cut(row, "|")
		ours, _, _ = strings.Cut(ours, "|")
		links := link.FindAllStringSubmatch(ours, -1)
		if len(links) == 0 {
			t.Errorf("no test is linked for%s:%s", name, ours)
		}
		for _, l := range links {
			b, err := os.ReadFile(l[1])
			if err != nil {
				t.Error(err)
			} else if !strings.Contains(string(b), "func "+l[2]+"(") {
				t.Errorf("there is no %s in %s", l[2], l[1])
			}
		}
	}
	if rows == 0 {
		t.Error("there is no table")
	}
}
