//go:build unix && !cluster_nofork

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
		&settings{Sockets: []socketSetting{{"tcp", ":0", true, 3, ""}, {"unix", "/run/app.sock", false, 0, "/run/app.sock"}}},
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
		&settings{Title: "t", Sockets: []socketSetting{{"tcp", ":0", true, 0, ""}}},
		&message{Name: "m", Data: json.RawMessage("1")},
		&counts{Open: -1},
	} {
		fr, _ := newFrame(frameMessage, p)
		f.Add(fr.payload)
	}
	f.Add([]byte{0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fresh := range []func() payload{
			func() payload { return new(settings) },
			func() payload { return new(drainOrder) },
			func() payload { return new(text) },
			func() payload { return new(numbers) },
			func() payload { return new(message) },
			func() payload { return new(counts) },
		} {
			p, q := fresh(), fresh()
			if parse(b, p) != nil {
				continue
			}
			if set, ok := p.(*settings); ok && len(set.Values) > 1 {
				continue // they have no order
			}
			// What was understood is told and understood again.
			once := encoded(p)
			if err := parse([]byte(once), q); err != nil || encoded(q) != once {
				t.Fatalf("%#v came back as %#v, %v", p, q, err)
			}
			if len(once) > 20*len(b)+20 {
				t.Fatalf("%d bytes have become %#v", len(b), p)
			}
		}
	})
}
