package cluster

import "golang.org/x/sys/unix"

// becomeSubreaper makes this process the parent of descendants whose own
// parents end.
func becomeSubreaper() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }
