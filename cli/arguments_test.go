package cli

import (
	"errors"
	"slices"
	"testing"
)

func TestArguments(t *testing.T) {
	for _, test := range []struct {
		command string
		args    []string
		json    bool
		n       int
		ok      bool
	}{
		{"status", nil, false, 0, true},
		{"status", []string{"--json"}, true, 0, true},
		{"status", []string{"more"}, false, 0, false},
		{"restart", []string{"-x", "--json"}, true, 0, false},
		{"help", []string{"me"}, false, 0, false},
		{"spawn", nil, false, 0, false},
		{"spawn", []string{"--json"}, true, 0, false},
		{"spawn", []string{"3"}, false, 3, true},
		{"spawn", []string{"--json", "-3"}, true, -3, true},
		{"spawn", []string{"0"}, false, 0, false},
		{"spawn", []string{"two"}, false, 0, false},
		{"spawn", []string{"2x"}, false, 0, false},
		{"spawn", []string{""}, false, 0, false},
		{"spawn", []string{"99999999999999999999"}, false, 0, false},
		{"spawn", []string{"1", "2"}, false, 0, false},
	} {
		args := slices.Clone(test.args)
		json, rest := takeJSON(args)
		n, err := arguments(lookup(test.command), rest)
		if json != test.json || (err == nil) != test.ok || test.ok && n != test.n {
			t.Errorf("%s %q: %t, %d, %v", test.command, test.args, json, n, err)
		}
		if e := (*exitError)(nil); err != nil && (!errors.As(err, &e) || e.code != exitUsage) {
			t.Errorf("%s %q: no usage error: %v", test.command, test.args, err)
		}
		if !slices.Equal(args, test.args) {
			t.Errorf("%q has become %q", test.args, args)
		}
	}
}
