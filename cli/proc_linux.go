package cli

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/gocluster/cluster/internal/resident"
)

// stat returns the fields of /proc/PID/stat as proc(5) counts them, less
// three: the first is the state.
func stat(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:])) // what is in parentheses may be anything
}

// identify returns the process that has this id now.
func identify(pid int) identity {
	id := identity{pid: pid}
	if f := stat(pid); len(f) > 19 {
		id.start = f[19]
	}
	return id
}

// same reports whether the process that has the id is the one that had it,
// and no zombie.
func (id identity) same() bool {
	f := stat(id.pid)
	return id.start == "" || len(f) > 19 && f[19] == id.start && f[0] != "Z" && f[0] != "X"
}

// plausible reports whether a process may be one of the cluster's: it runs a
// program of the same name, or has the cluster's title.
func plausible(pid int, titles []string) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	exe, _ := os.Readlink(dir + "/exe")
	own, _ := os.Executable()
	if exe = strings.TrimSuffix(exe, " (deleted)"); exe != "" && filepath.Base(exe) == filepath.Base(own) {
		return true
	}
	comm, _ := os.ReadFile(dir + "/comm")
	for _, title := range titles {
		if title = title[:min(len(title), 15)]; title != "" && strings.HasPrefix(string(comm), title) {
			return true
		}
	}
	return false
}

// memory returns the resident set size of a process in bytes, or nil.
func memory(pid int) *int64 {
	n := int64(resident.Of(pid))
	if n == 0 {
		return nil
	}
	return &n
}

// peer returns the id of the process that listens where c is connected to, or
// 0.
func peer(c net.Conn) (pid int) {
	sc, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	sc.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
