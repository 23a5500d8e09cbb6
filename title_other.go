//go:build unix && !linux

package cluster

// Titles are for Linux alone: elsewhere they would need C.
func titleMemory([]string) {}
func setTitle(string)      {}
