//go:build unix && !linux && !cluster_nofork

package cluster

func waitable(int) {}
