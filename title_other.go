//go:build unix && !linux && !cluster_nofork

package cluster

// Titles are for Linux alone: elsewhere they would need C.
func titleMemory([]string) {}
func setTitle(string)      {}
