package stats

import (
	"os"
	"strconv"
	"strings"
)

// osName returns the name of the system and its release.
func osName() string {
	name := "Linux"
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		name += " " + strings.TrimSpace(string(release))
	}
	return name
}

// loadAverage returns the system's load averages, or nil.
func loadAverage() []float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil
	}
	return parseLoad(string(b))
}

func parseLoad(s string) []float64 {
	fields := strings.Fields(s)
	if len(fields) < 3 {
		return nil
	}
	load := make([]float64, 3)
	for i := range load {
		var err error
		if load[i], err = strconv.ParseFloat(fields[i], 64); err != nil {
			return nil
		}
	}
	return load
}

// memory returns the machine's memory, or nil.
func memory() *Memory {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	return parseMemory(string(b))
}

func parseMemory(s string) *Memory {
	values := make(map[string]uint64)
	for line := range strings.Lines(s) {
		name, rest, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
		if err == nil {
			values[name] = n << 10
		}
	}
	total, ok := values["MemTotal"]
	if !ok {
		return nil
	}
	free, ok := values["MemAvailable"]
	if !ok {
		free = values["MemFree"] // a kernel before 3.14
	}
	return &Memory{Free: free, Total: total}
}
