//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"testing"
)

// The table has medians, ratios of each round, and says whether goals are
// met; a round in which one side has failed gives no ratio.
func TestTable(t *testing.T) {
	rounds := func(values ...float64) (list []metrics) {
		for _, v := range values {
			if v == 0 {
				list = append(list, nil)
			} else {
				list = append(list, metrics{"m": v})
			}
		}
		return list
	}
	r := report{Outcomes: []*outcome{{
		experiment: experiment{name: "x", figures: []figure{
			ratios("speed", "km/h", "m", "car", "bicycle", "≥ 0.3", "foot", "≥ 0.3", "absent"),
			values("wheels", "", "m", "car", "least", "bicycle", "foot", "≤ 5"),
		}},
		values: map[string][]metrics{"car": rounds(50, 0, 100), "bicycle": rounds(20, 21, 30), "foot": rounds(6, 5, 4)},
	}}}
	want := []row{
		{"speed, km/h", "car", "75 (50–100)", "1", ""},
		{"", "bicycle", "21 (20–30)", "0.35 (0.3–0.4)", "≥ 0.3 met"},
		{"", "foot", "5 (4–6)", "0.08 (0.04–0.12)", "≥ 0.3 missed"},
		{"wheels", "car", "75 (50–100)", "", "least missed"},
		{"", "bicycle", "21 (20–30)", "", ""},
		{"", "foot", "5 (4–6)", "", "≤ 5 met"},
	}
	if got := r.rows(); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestNumber(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 0.12345: "0.123", 1: "1", 1.046: "1.05", 12.34: "12.3", 123.4: "123", 45678.9: "45679"} {
		if got := number(f); got != want {
			t.Errorf("number(%v) = %s, want %s", f, got, want)
		}
	}
}

// What goes to files is well-formed, and the plot shows failures.
func TestFiles(t *testing.T) {
	var r report
	r.add(&outcome{experiment{name: "x"}, map[string][]metrics{"a": {{"m": 1}, nil}}})
	r.fail("x", nginx, errors.New("no"))
	res := &result{Samples: []sample{{1e6, 1e5}, {2e6, 3e6}, {5e8, 1e5}}, Failures: []int64{6e8}}
	r.trace("x", "a < b", res, []int64{1e8})
	var b bytes.Buffer
	if err := r.json(&b); err != nil || !json.Valid(b.Bytes()) || r.broken {
		t.Error(err, b.String())
	}
	b.Reset()
	if err := r.plot(&b); err != nil {
		t.Fatal(err)
	}
	marks := 0
	for d := xml.NewDecoder(&b); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && slices.ContainsFunc(e.Attr, func(a xml.Attr) bool { return a.Value == "#d00" }) {
			marks++
		}
	}
	if marks != 1 {
		t.Errorf("%d marks for one failure", marks)
	}
}
