//go:build unix && !linux && !cluster_nofork

package cluster

func slacken() (restore func()) { return func() {} }
