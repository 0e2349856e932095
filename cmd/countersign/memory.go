package main

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

const (
	// enoughMemory is what the machine or the container must have for us to
	// spend memory on speed.
	enoughMemory = 1 << 30
	// gcPercent lets the heap grow to five times what is in use before it is
	// collected: measured at 9 to 15 % of the authorizer's CPU against Go's
	// 100, for up to twice the memory. 800 measured no better.
	gcPercent = 400
)

// spendMemory lets the garbage collector run less often where there is memory
// for it, within half of what there is. GOGC and GOMEMLIMIT go before.
func spendMemory() {
	memory := availableMemory(os.DirFS("/"))
	if memory < enoughMemory {
		return
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memory / 2)
	}
}

// availableMemory is the memory of the machine or, if that is less, what our
// control group may use. Where the system says neither it is 0.
func availableMemory(root fs.FS) int64 {
	meminfo, _ := fs.ReadFile(root, "proc/meminfo") // none: 0
	_, rest, _ := strings.Cut(string(meminfo), "MemTotal:")
	var total int64
	_, _ = fmt.Sscan(rest, &total)
	least := total << 10

	limits := []string{"sys/fs/cgroup/memory/memory.limit_in_bytes"} // of version 1
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		own, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		// A group is held to the limits of those above it as well.
		for ; unified && strings.HasPrefix(own, "/"); own = path.Dir(own) {
			limits = append(limits, path.Join("sys/fs/cgroup", own, "memory.max"))
			if own == "/" {
				break
			}
		}
	}
	for _, name := range limits {
		content, _ := fs.ReadFile(root, name)
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64); err == nil { // else none, or "max"
			least = min(least, limit)
		}
	}
	return least
}
