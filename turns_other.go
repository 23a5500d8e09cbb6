//go:build !linux || cluster_nofork

package cluster

import "syscall"

// turns are not to be had here: all who wait are woken for every connection.
type turns struct{}

func turnsFor(syscall.Conn) *turns { return nil }

func (*turns) wait(int) error { return nil }
func (*turns) last() bool     { return false }
