//go:build unix && !linux && !cluster_nofork

package cluster

func becomeSubreaper() {}
