//go:build !cluster_nofork

package cluster

import (
	"os"
	"strconv"
	"strings"
	"unsafe"
)

// title is the memory that ps reads a process's arguments from. Behind them
// lies the environment, which Go has copied: the kernel reads on into it if
// the arguments' last byte isn't zero.
var title struct {
	mu   mutex
	mem  []byte
	args int // so much of it is the arguments'
}

// titleMemory finds that memory. args is os.Args as the runtime has made it:
// strings that lie there.
func titleMemory(args []string) {
	if len(args) == 0 || args[0] == "" {
		return
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// Fields as proc(5) counts them, from the third: the second, a name in
	// parentheses, may contain anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var addr [52]uint64
	for i := 48; i <= 51; i++ { // arg_start, arg_end, env_start, env_end
		if i-3 < len(fields) {
			addr[i], _ = strconv.ParseUint(fields[i-3], 10, 64)
		}
	}
	base := unsafe.StringData(args[0])
	if uint64(uintptr(unsafe.Pointer(base))) != addr[48] || addr[49] <= addr[48] || addr[50] != addr[49] || addr[51] < addr[50] {
		return
	}
	title.mem = unsafe.Slice(base, addr[51]-addr[48])
	title.args = int(addr[49] - addr[48])
}

// setTitle shows s as this process's title in ps and top.
func setTitle(s string) {
	s, _, _ = strings.Cut(s, "\x00")
	os.WriteFile("/proc/self/comm", []byte(s[:min(len(s), 15)]), 0)
	title.mu.Lock()
	defer title.mu.Unlock()
	if len(title.mem) == 0 {
		return
	}
	n := copy(title.mem[:len(title.mem)-1], s)
	title.mem[n] = 0
	clear(title.mem[min(n, title.args):title.args])
}
