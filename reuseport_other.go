//go:build !linux || cluster_nofork

package cluster

import "syscall"

const canReusePort = false

func setReusePort(int) error { return syscall.ENOSYS }

func bindBeside(int, int) (int, error) { return -1, syscall.ENOSYS }
