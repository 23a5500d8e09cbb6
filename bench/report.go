//go:build linux

package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is what a run has found out.
type report struct {
	Date     string
	Command  string
	Machine  string
	Versions string
	Skipped  []string // and why
	Failed   []string // turns that gave nothing, and why
	Outcomes []*outcome
	Traces   []trace // of restarts, in the first round
	broken   bool    // one of Failed is a server of ours
}

// An outcome is that of an experiment.
type outcome struct {
	experiment
	values map[string][]metrics // of each side, by round; nil: failed
}

func (r *report) add(x *outcome) { r.Outcomes = append(r.Outcomes, x) }

func (r *report) skip(what, why string) {
	if s := what + ": " + why; !slices.Contains(r.Skipped, s) {
		r.Skipped = append(r.Skipped, s)
	}
}

func (r *report) fail(experiment string, s side, err error) {
	r.Failed = append(r.Failed, fmt.Sprintf("%s: %s: %v", experiment, s.name, err))
	r.broken = r.broken || !s.installed()
}

// describe fills in where and when this is. The servers are in dir.
func (r *report) describe(dir string) {
	r.Date = time.Now().Format(time.DateOnly)
	r.Command = "go run . " + strings.Join(os.Args[1:], " ")
	first := func(name string, args ...string) string {
		out, _ := exec.Command(name, args...).CombinedOutput()
		line, _, _ := strings.Cut(string(out), "\n")
		return line
	}
	cpu := "unknown CPU"
	if info, _ := os.ReadFile("/proc/cpuinfo"); info != nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.*)`).FindSubmatch(info); m != nil {
			cpu = string(m[1])
		}
	}
	r.Machine = fmt.Sprintf("%d CPUs (%s), %s, client on the same machine", runtime.NumCPU(), cpu, first("uname", "-sr"))
	versions := []string{runtime.Version()}
	if info, err := buildinfo.ReadFile(filepath.Join(dir, "fiber")); err == nil {
		for _, m := range info.Deps {
			if m.Path == "github.com/valyala/fasthttp" || strings.HasPrefix(m.Path, "github.com/gofiber/fiber/") {
				versions = append(versions, strings.TrimPrefix(m.Path, "github.com/")+" "+m.Version)
			}
		}
	}
	for _, program := range [][]string{{"nginx", "-v"}, {"node", "--version"}, {"gunicorn", "--version"}} {
		if _, err := exec.LookPath(program[0]); err == nil {
			v := regexp.MustCompile(`\d+(\.\d+)+`).FindString(first(program[0], program[1:]...))
			versions = append(versions, program[0]+" "+v)
		}
	}
	r.Versions = strings.Join(versions, ", ")
}

// A cell is a median with the least and the greatest of its rounds.
type cell struct{ median, min, max float64 }

func cellOf(list []float64) (c cell, ok bool) {
	if len(list) == 0 {
		return c, false
	}
	return cell{median(list), slices.Min(list), slices.Max(list)}, true
}

func (c cell) String() string {
	if c.min == c.max {
		return number(c.median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(c.median), number(c.min), number(c.max))
}

// number writes three digits, or all that are before the point.
func number(f float64) string {
	if f == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(f)))))
	s := strconv.FormatFloat(f, 'f', min(digits, 3), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// A row is a line of a figure with its numbers.
type row struct {
	figure, side, value, ratio, goal string
}

// rows makes the table. The first line of a figure is what the ratios of the
// others are to.
func (r *report) rows() (rows []row) {
	for _, x := range r.Outcomes {
		for _, f := range x.figures {
			base, best := f.lines[0], math.Inf(1) // the best of those without a goal
			for _, l := range f.lines {
				if value, ok := cellOf(metricOf(x.values[l.side], l.metric)); ok && l.goal == "" {
					best = min(best, value.median)
				}
			}
			name := f.name
			if f.unit != "" {
				name += ", " + f.unit
			}
			for i, l := range f.lines {
				var ratios []float64
				for round, m := range x.values[l.side] {
					of := x.values[base.side]
					if v, ok := m[l.metric]; ok && round < len(of) && of[round][base.metric] > 0 {
						ratios = append(ratios, v/of[round][base.metric])
					}
				}
				value, ok := cellOf(metricOf(x.values[l.side], l.metric))
				if !ok {
					continue
				}
				row := row{figure: name, side: l.side, value: value.String()}
				name = "" // once is enough
				if len(f.lines) > 1 && f.lines[1].side == base.side {
					row.side = l.metric
				}
				decides := value.median
				if ratio, ok := cellOf(ratios); ok && !f.plain {
					decides = ratio.median
					if row.ratio = ratio.String(); i == 0 {
						row.ratio = "1"
					}
				}
				row.goal = judge(l.goal, decides, best)
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// metricOf returns what the rounds have given.
func metricOf(rounds []metrics, name string) (list []float64) {
	for _, m := range rounds {
		if v, ok := m[name]; ok {
			list = append(list, v)
		}
	}
	return list
}

// judge says whether a goal is met. The others have best at best.
func judge(goal string, got, best float64) string {
	op, number, _ := strings.Cut(goal, " ")
	bound, _ := strconv.ParseFloat(number, 64)
	switch goal {
	case "":
		return ""
	case "least":
		op, bound = "≤", best
	}
	// What the table shows decides: two digits after the point.
	got = math.Round(got*100) / 100
	if op == "≥" && got >= bound || op == "≤" && got <= bound {
		return goal + " met"
	}
	return goal + " missed"
}

// heading tells what the table is of.
func (r *report) heading(w io.Writer) {
	fmt.Fprintf(w, "%s, `%s`, on %s; %s.\n", r.Date, r.Command, r.Machine, r.Versions)
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "Skipped: %s.\n", s)
	}
	for _, s := range r.Failed {
		fmt.Fprintf(w, "Failed: %s.\n", s)
	}
	fmt.Fprintln(w)
}

// table prints the table for a terminal.
func (r *report) table(w io.Writer) error {
	r.heading(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range r.rows() {
		if row.figure != "" {
			fmt.Fprintf(t, "%s\tmedian (min–max)\tratio (min–max)\tgoal\n", row.figure)
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", row.side, row.value, row.ratio, row.goal)
	}
	return t.Flush()
}

// markdown prints it for a page.
func (r *report) markdown(w io.Writer) error {
	r.heading(w)
	fmt.Fprintf(w, "| figure | side | median (min–max) | ratio (min–max) | goal |\n|---|---|---|---|---|\n")
	for _, row := range r.rows() {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", row.figure, row.side, row.value, row.ratio, row.goal)
	}
	return nil
}

// json writes everything.
func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(r)
}

// MarshalJSON writes what the sides have done in each round.
func (x *outcome) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"Name": x.name, "About": x.about, "Rounds": x.values})
}

// A trace is what the clients saw of a side over time.
type trace struct {
	Experiment, Side string
	Restarts         []float64 // seconds
	Slices           []slice
}

// A slice is what they saw in a hundredth of a second that had answers or
// failures.
type slice struct {
	At              float64 // seconds
	Answers, Failed int
	P50, P99, Worst float64 // milliseconds
}

const sliceLength = int64(10 * time.Millisecond)

// trace keeps what the plot needs, of the first round.
func (r *report) trace(experiment, side string, res *result, restarts []int64) {
	if slices.ContainsFunc(r.Traces, func(t trace) bool { return t.Experiment == experiment && t.Side == side }) {
		return
	}
	t := trace{Experiment: experiment, Side: side}
	for _, at := range restarts {
		t.Restarts = append(t.Restarts, float64(at)/1e9)
	}
	failed := make(map[int64]int)
	last := int64(0)
	for _, at := range res.Failures {
		failed[at/sliceLength]++
		last = max(last, at/sliceLength)
	}
	answers := make(map[int64][]sample)
	for _, s := range res.Samples {
		answers[s.At/sliceLength] = append(answers[s.At/sliceLength], s)
		last = max(last, s.At/sliceLength)
	}
	for i := int64(0); i <= last; i++ {
		if a := answers[i]; len(a)+failed[i] > 0 {
			t.Slices = append(t.Slices, slice{float64(i*sliceLength) / 1e9, len(a), failed[i],
				percentile(a, 50), percentile(a, 99), percentile(a, 100)})
		}
	}
	r.Traces = append(r.Traces, t)
}

// plot draws the traces as SVG: a panel for each side, with a point for the
// worst answer of each hundredth of a second and a line for the median, on a logarithmic
// scale; a grey line for every restart, and a red mark where requests failed.
func (r *report) plot(w io.Writer) error {
	const (
		width, height, left, top, gap = 900.0, 110.0, 60.0, 50.0, 34.0
		least, greatest               = 0.02, 2000.0 // ms
	)
	var b bytes.Buffer
	n := 0.0
	for _, t := range r.Traces {
		if len(t.Slices) == 0 {
			continue
		}
		end := t.Slices[len(t.Slices)-1].At + 0.01
		y0 := top + n*(height+gap)
		n++
		x := func(at float64) float64 { return left + at/end*width }
		y := func(ms float64) float64 {
			part := math.Log(min(max(ms, least), greatest)/least) / math.Log(greatest/least)
			return y0 + height - part*height
		}
		failed := 0
		fmt.Fprintf(&b, `<rect x="%g" y="%g" width="%g" height="%g" fill="none" stroke="#ccc"/>`+"\n", left, y0, width, height)
		for _, tick := range []float64{0.1, 1, 10, 100, 1000} {
			fmt.Fprintf(&b, `<path d="M%g %.1fh%g" stroke="#eee"/><text x="%g" y="%.1f" text-anchor="end">%g ms</text>`+"\n",
				left, y(tick), width, left-4, y(tick)+4, tick)
		}
		for _, at := range t.Restarts {
			fmt.Fprintf(&b, `<path d="M%.1f %gv%g" stroke="#999" stroke-dasharray="3 2"/>`+"\n", x(at), y0, height)
		}
		var line, dots strings.Builder
		for _, s := range t.Slices {
			if s.Answers > 0 {
				fmt.Fprintf(&dots, "M%.1f %.1fh0", x(s.At), y(s.Worst))
				fmt.Fprintf(&line, " %.1f,%.1f", x(s.At), y(s.P50))
			}
			if failed += s.Failed; s.Failed > 0 {
				fmt.Fprintf(&b, `<path d="M%.1f %gv8" stroke="#d00" stroke-width="2"/>`, x(s.At), y0)
			}
		}
		fmt.Fprintf(&b, `<path d="%s" stroke="#47a" stroke-width="2.4" stroke-linecap="round"/>`+"\n", dots.String())
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="#222" stroke-width="0.7"/>`+"\n", line.String())
		fmt.Fprintf(&b, `<text x="%g" y="%g" font-weight="bold">%s, %s: %d failed</text><text x="%g" y="%g" text-anchor="end">%.1f s</text>`+"\n",
			left, y0-5, t.Experiment, html.EscapeString(t.Side), failed, left+width, y0+height+13, end)
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" font-family="sans-serif" font-size="11">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%g" y="20" font-size="14">Latency over time, across restarts (dashed): worst answer of each 10 ms (dots), median (line), failures (red)</text>
%s</svg>
`, left+width+20, top+n*(height+gap), left, b.String())
	return err
}
