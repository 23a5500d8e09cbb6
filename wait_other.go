//go:build unix && !linux

package cluster

func waitable(int) {}
