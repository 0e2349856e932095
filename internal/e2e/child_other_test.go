//go:build unix && !linux

package e2e

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// processes are the command lines of those that run and have mark in theirs.
func processes(mark string) map[int]string {
	found := map[int]string{}
	out, err := exec.Command("ps", "-A", "-o", "pid=,args=").Output()
	if err != nil {
		panic(err) // there is no Unix without it
	}
	for line := range strings.Lines(string(out)) {
		pid, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		if id, err := strconv.Atoi(pid); err == nil && strings.Contains(args, mark) {
			found[id] = args
		}
	}
	return found
}
