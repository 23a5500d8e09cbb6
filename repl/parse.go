package repl

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const blanks = " \t"

// parse splits a line into the name of a command and its arguments. These are
// in parentheses and separated by commas, or follow after blanks:
//
//	kill(1, "SIGTERM");
//	kill 1 SIGTERM
//
// An argument in single or double quotes may contain anything, with the
// escape sequences of Go. The name is empty if the line is.
func parse(line string) (name string, args []string, err error) {
	rest := strings.TrimLeft(strings.TrimRight(line, blanks+";"), blanks)
	n := 0
	for n < len(rest) && isName(rest[n], n > 0) {
		n++
	}
	name, rest = rest[:n], rest[n:]
	switch {
	case rest == "":
		return name, nil, nil
	case name == "" || !strings.ContainsAny(rest[:1], blanks+"("):
		return "", nil, fmt.Errorf("%q is no command: help() lists them", line)
	}
	rest = strings.TrimLeft(rest, blanks)
	if rest[0] == '(' {
		args, err = parseList(rest[1:])
	} else {
		args, err = parseWords(rest)
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", name, err)
	}
	return name, args, nil
}

// isName reports whether c may be in a name, as its first byte or later.
func isName(c byte, later bool) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' ||
		later && ('0' <= c && c <= '9' || c == '_' || c == '-')
}

// parseList parses what follows an opening parenthesis.
func parseList(s string) (args []string, err error) {
	for s = strings.TrimLeft(s, blanks); s != ")"; s = strings.TrimLeft(s, blanks) {
		var arg string
		if arg, s, err = parseArg(s, blanks+`,()"'`); err != nil {
			return nil, err
		}
		args = append(args, arg)
		s = strings.TrimLeft(s, blanks)
		if s == ")" {
			break
		}
		switch {
		case s == "":
			return nil, missing(")", s)
		case s[0] == ')':
			return nil, fmt.Errorf("%q is after the closing parenthesis", s[1:])
		case s[0] != ',':
			return nil, missing(",", s)
		}
		s = s[1:]
	}
	return args, nil
}

// parseWords parses arguments that are separated by blanks.
func parseWords(s string) (args []string, err error) {
	for s != "" {
		var arg string
		if arg, s, err = parseArg(s, blanks); err != nil {
			return nil, err
		}
		args = append(args, arg)
		if s != "" && !strings.ContainsAny(s[:1], blanks) {
			return nil, missing("a blank", s)
		}
		s = strings.TrimLeft(s, blanks)
	}
	return args, nil
}

// missing is the error for what should be before s.
func missing(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s is missing at the end", what)
	}
	return fmt.Errorf("%s is missing before %q", what, s)
}

// parseArg parses the argument that s begins with, which without quotes goes
// to the first of the bytes in stop.
func parseArg(s, stop string) (arg, rest string, err error) {
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		return unquote(s[1:], s[0])
	}
	n := strings.IndexAny(s, stop)
	if n < 0 {
		n = len(s)
	}
	if n == 0 {
		return "", "", missing("an argument", s)
	}
	return s[:n], s[n:], nil
}

// unquote parses what follows an opening quote.
func unquote(s string, quote byte) (arg, rest string, err error) {
	var b []byte
	for s != "" {
		if s[0] == quote {
			return string(b), s[1:], nil
		}
		r, multibyte, tail, err := strconv.UnquoteChar(s, quote)
		if err != nil {
			return "", "", fmt.Errorf("bad escape sequence at %q", s)
		}
		if multibyte {
			b = utf8.AppendRune(b, r)
		} else {
			b = append(b, byte(r))
		}
		s = tail
	}
	return "", "", fmt.Errorf("the closing %c is missing", quote)
}
