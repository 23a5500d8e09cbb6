// Package resident tells how much memory a process takes.
package resident

import (
	"os"
	"strconv"
	"strings"
)

// Of returns how many bytes of a process are in memory, or 0 if that can't be
// known.
func Of(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	return parse(string(b)) * uint64(os.Getpagesize())
}

// parse returns pages.
func parse(s string) uint64 {
	fields := strings.Fields(s)
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(fields[1], 10, 64)
	return n
}
