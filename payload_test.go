//go:build unix

package cluster

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestPayloads(t *testing.T) {
	for _, p := range []payload{
		&settings{},
		&settings{Title: "worker 1", Timeout: time.Minute, Heartbeat: -1},
		&settings{Sockets: []socketSetting{{"tcp", ":0", true, 3}, {"unix", "/run/app.sock", false, 0}}},
		&drainOrder{},
		&drainOrder{Last: true, Dropped: []int{0, 3}},
		&settings{Hold: true, Values: Values{"a": json.RawMessage("1"), "b": json.RawMessage("{}")}},
		&numbers{7, -1},
		&text{"no such table"},
		&message{Name: "stats", Data: json.RawMessage(`{"n":1}`)},
		&message{Data: json.RawMessage{}},
		&counts{Open: 1 << 40, Waiting: true},
	} {
		f, err := newFrame(frameMessage, p)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(p).Elem()).Interface().(payload)
		if err := parse(f.payload, got); err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%#v came back as %#v, %v", p, got, err)
		}
		if err := parse(append(f.payload, 1, 2, 3), reflect.New(reflect.TypeOf(p).Elem()).Interface().(payload)); err != nil {
			t.Errorf("%#v with fields of a newer version: %v", p, err)
		}
		if err := parse(nil, reflect.New(reflect.TypeOf(p).Elem()).Interface().(payload)); err != nil {
			t.Errorf("%T with no fields at all: %v", p, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range []payload{
		&settings{Title: "t", Sockets: []socketSetting{{"tcp", ":0", true, 0}}},
		&message{Name: "m", Data: json.RawMessage("1")},
		&counts{Open: -1},
	} {
		fr, _ := newFrame(frameMessage, p)
		f.Add(fr.payload)
	}
	f.Add([]byte{0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []payload{&settings{}, &drainOrder{}, &text{}, &numbers{}, &message{}, &counts{}} {
			parse(b, p) // it must come to an end, without a panic
		}
	})
}
