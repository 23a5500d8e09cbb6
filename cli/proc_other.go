//go:build unix && !linux

package cli

import "net"

func identify(pid int) identity    { return identity{pid: pid} }
func (id identity) same() bool     { return true }
func plausible(int, []string) bool { return true }
func memory(int) *int64            { return nil }
func peer(net.Conn) int            { return 0 }
