package repl

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// parseSignal parses a signal: "SIGTERM", "TERM", "term" or "15".
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	if sig, ok := signals[strings.TrimPrefix(strings.ToUpper(s), "SIG")]; ok {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

// signalName is the name of a signal, or its number if it has none.
func signalName(sig syscall.Signal) string {
	for name, other := range signals {
		if other == sig {
			return "SIG" + name
		}
	}
	return "signal " + strconv.Itoa(int(sig))
}
