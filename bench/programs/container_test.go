//go:build linux

package programs

import (
	"debug/elf"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
	"golang.org/x/sys/unix"

	"github.com/gocluster/cluster/internal/clustertest"
)

const example = "../../examples/container/"

// instruction returns the arguments of the last instruction of the Dockerfile
// that begins so.
func instruction(t *testing.T, begin string) string {
	t.Helper()
	b, err := os.ReadFile(example + "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^`+begin+`(.*)$`).FindAllStringSubmatch(string(b), -1)
	if len(all) == 0 {
		t.Fatalf("the Dockerfile has no %s", begin)
	}
	return strings.TrimSpace(all[len(all)-1][1])
}

// The Dockerfile's program runs as its image would: built by the command that
// is there, as process 1, with nothing but itself and /proc in a file system
// that is read-only, as a user that is not root.
func TestContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces")
	}
	exe := filepath.Join(t.TempDir(), "container")
	build := exec.Command("sh", "-c", strings.Replace(instruction(t, "RUN"), "/container", exe, 1))
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build.Args[2], err, out)
	}
	f, err := elf.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}

	const script = `mount -t tmpfs root . && cd "$PWD" && mkdir proc && cp "$0" container &&
mount -t proc proc proc && mount -o remount,ro . && exec chroot --userspec="$1" . /container "$2"`
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	p := run(t, unshare, "-pmf", "sh", "-c", script, exe, instruction(t, "USER"), "127.0.0.1:0")
	if !clustertest.Eventually(clustertest.Patience, func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Pid()))
		p.first, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return p.first != 0
	}) {
		t.Fatal("no process 1")
	}
	base := "http://" + p.address("tcp")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.first))
	for _, want := range []string{`(?m)^NSpid:.*\t1$`, `(?m)^Uid:\t65532\t65532\t65532\t65532$`, `(?m)^CapEff:\t0+$`} {
		if !regexp.MustCompile(want).Match(status) {
			t.Errorf("%s doesn't match process 1, %v\n%s", want, err, status)
		}
	}
	if ok, err := get(http.DefaultClient, base+"/healthz"); err != nil || ok != "ok\n" {
		t.Errorf("/healthz: %q, %v", ok, err)
	}
	http.DefaultClient.CloseIdleConnections()
	connect := httpClient(base, once)
	l := p.load("container", 8, func() (func() (string, error), func()) {
		ask, close := connect()
		return func() (string, error) {
			answer, err := ask()
			return strings.TrimSpace(strings.TrimPrefix(answer, "Hello World from process ")), err
		}, close
	})
	p.restarts(l)
	l.end()
	p.Kill(p.first, unix.SignalNum(instruction(t, "STOPSIGNAL")))
	p.End(0)
}

// The manifest gives the cluster the time that the program may take, and
// probes what it answers.
func TestKubernetes(t *testing.T) {
	b, err := os.ReadFile(example + "kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(example + "main.go")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`Timeout: +(\d+) \* time.Second`).FindSubmatch(program)
	if m == nil {
		t.Fatal("the program has no Timeout")
	}
	timeout, _ := strconv.Atoi(string(m[1]))
	type probe struct {
		HTTPGet struct {
			Path string
			Port any
		} `yaml:"httpGet"`
		Period   int `yaml:"periodSeconds"`
		Failures int `yaml:"failureThreshold"`
	}
	var deployment struct {
		Kind string
		Spec struct {
			Template struct {
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						Ports []struct {
							Name          string
							ContainerPort int `yaml:"containerPort"`
						}
						Readiness probe `yaml:"readinessProbe"`
						Liveness  probe `yaml:"livenessProbe"`
						Lifecycle struct {
							PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
						}
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(b, &deployment); err != nil {
		t.Fatal(err)
	}
	spec := deployment.Spec.Template.Spec
	if deployment.Kind != "Deployment" || len(spec.Containers) != 1 || len(spec.Containers[0].Ports) != 1 {
		t.Fatalf("%+v", deployment)
	}
	c := spec.Containers[0]
	if sleep := c.Lifecycle.PreStop.Sleep.Seconds; sleep <= 0 || spec.Grace < sleep+timeout+5 {
		t.Errorf("%d s to end in, with preStop's %d s and a Timeout of %d s", spec.Grace, sleep, timeout)
	}
	if port := c.Ports[0].ContainerPort; !strings.Contains(string(program), fmt.Sprintf(`":%d"`, port)) || instruction(t, "EXPOSE") != strconv.Itoa(port) {
		t.Errorf("port %d", port)
	}
	for name, p := range map[string]probe{"readiness": c.Readiness, "liveness": c.Liveness} {
		if p.HTTPGet.Port != c.Ports[0].Name || !strings.Contains(string(program), `"GET `+p.HTTPGet.Path+`"`) {
			t.Errorf("%s: %+v", name, p)
		}
	}
	const heartbeat = 30 // Master.Heartbeat's default
	if d := c.Liveness.Period * c.Liveness.Failures; d <= heartbeat {
		t.Errorf("killed after %d s, before the master can have replaced a hung worker", d)
	}
}
