package envoy

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// processAttributes puts Envoy into a group of its own, so that Ctrl-C in a
// terminal reaches only us and we can drain first. If we die, the kernel kills
// it: without its control plane and authorization server it could only answer
// 503.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// inspect reads /proc. A zombie has ended.
func inspect(pid int) (process, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	// The command name, in parentheses, may itself hold spaces and
	// parentheses. After it come field 3, the state, and the others: field 22 is the
	// start in clock ticks since boot.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const state, startTime = 0, 22 - 3
	if len(fields) <= startTime || string(fields[state]) == "Z" {
		return process{}, false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return process{}, false
	}
	return process{
		started: string(fields[startTime]),
		args:    string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})),
	}, true
}
