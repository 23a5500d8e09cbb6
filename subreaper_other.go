//go:build unix && !linux

package cluster

func becomeSubreaper() {}
