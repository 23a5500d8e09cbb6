package repl

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		line string
		want string // name, and arguments in brackets
		err  string
	}{
		{line: "", want: ""},
		{line: " \t ", want: ""},
		{line: ";", want: ""},
		{line: "pids", want: "pids"},
		{line: " pids ; ", want: "pids"},
		{line: "pids()", want: "pids"},
		{line: "pids( );", want: "pids"},
		{line: "pids ()", want: "pids"},
		{line: "spawn(2)", want: "spawn[2]"},
		{line: "spawn( 2 )", want: "spawn[2]"},
		{line: "spawn 2", want: "spawn[2]"},
		{line: "spawn -2;", want: "spawn[-2]"},
		{line: "spawn(2,)", want: "spawn[2]"},
		{line: `kill(1, "SIGTERM")`, want: "kill[1][SIGTERM]"},
		{line: `kill(1,'SIGTERM');`, want: "kill[1][SIGTERM]"},
		{line: "kill 1 TERM", want: "kill[1][TERM]"},
		{line: "kill\t1\t9", want: "kill[1][9]"},
		{line: `echo("a, b", "c)")`, want: "echo[a, b][c)]"},
		{line: `echo "a b" 'c;' d,e`, want: "echo[a b][c;][d,e]"},
		{line: `echo("")`, want: "echo[]"},
		{line: `echo("say \"hi\"\t\x41\u00e9\\")`, want: "echo[say \"hi\"\tAé\\]"},
		{line: `echo('it\'s')`, want: "echo[it's]"},
		{line: `echo it's (so)`, want: "echo[it's][(so)]"},
		{line: "echo é 日本", want: "echo[é][日本]"},
		{line: "echo('日本')", want: "echo[日本]"},
		{line: "a-b_3 x", want: "a-b_3[x]"},

		{line: "3", err: `"3" is no command: help() lists them`},
		{line: "(1)", err: `"(1)" is no command: help() lists them`},
		{line: "pids; stop", err: `"pids; stop" is no command: help() lists them`},
		{line: "pids\x1b[A", err: `"pids\x1b[A" is no command: help() lists them`},
		{line: "spawn(", err: "spawn: an argument is missing at the end"},
		{line: "spawn(1", err: "spawn: ) is missing at the end"},
		{line: "spawn(,)", err: `spawn: an argument is missing before ",)"`},
		{line: "spawn(1,,2)", err: `spawn: an argument is missing before ",2)"`},
		{line: "spawn(1))", err: `spawn: ")" is after the closing parenthesis`},
		{line: "spawn(1) 2", err: `spawn: " 2" is after the closing parenthesis`},
		{line: "kill(1 9)", err: `kill: , is missing before "9)"`},
		{line: `kill(1"9")`, err: `kill: , is missing before "\"9\")"`},
		{line: `echo "a"b`, err: `echo: a blank is missing before "b"`},
		{line: `echo("a)`, err: `echo: the closing " is missing`},
		{line: `echo "a`, err: `echo: the closing " is missing`},
		{line: `echo "`, err: `echo: the closing " is missing`},
		{line: `echo("\q")`, err: `echo: bad escape sequence at "\\q\")"`},
	} {
		name, args, err := parse(test.line)
		got := name
		for _, arg := range args {
			got += "[" + arg + "]"
		}
		msg := ""
		if err != nil {
			msg = err.Error()
		}
		if got != test.want || msg != test.err {
			t.Errorf("parse(%q) = %s, %q, want %s, %q", test.line, got, msg, test.want, test.err)
		}
	}
}

// format returns a line that is parsed to this.
func format(name string, args []string) string {
	var quoted []string
	for _, arg := range args {
		quoted = append(quoted, strconv.Quote(arg))
	}
	return name + "(" + strings.Join(quoted, ", ") + ")"
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{
		"", "pids", "spawn(2)", "spawn -1;", `kill(1, "SIGTERM")`, "kill 1 TERM", `echo('a, b', "\x1b\"é")`,
		"echo(", "echo(1", `echo "\`, "echo \xff\x00", "pids; stop", "a(b,)", "POST / HTTP/1.1\r",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		name, args, err := parse(line)
		if err != nil {
			if name != "" || args != nil || err.Error() == "" {
				t.Errorf("parse(%q) = %q, %q, %v", line, name, args, err)
			}
			return
		}
		if name == "" {
			if strings.Trim(line, " \t;") != "" {
				t.Errorf("parse(%q) finds nothing", line)
			}
			return
		}
		if again, args2, err := parse(format(name, args)); again != name || !slices.Equal(args, args2) || err != nil {
			t.Errorf("parse(%q) = %q, %q, but again %q, %q, %v", line, name, args, again, args2, err)
		}
		// What was one of the arguments in the first place stays one.
		if _, args, err := parse(format("echo", []string{line, line})); err != nil || !slices.Equal(args, []string{line, line}) {
			t.Errorf("echo of %q: %q, %v", line, args, err)
		}
	})
}
