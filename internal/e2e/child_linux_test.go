package e2e

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes make a child die with the test binary, however that ends.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// processes are the command lines of those that run and have mark in theirs.
func processes(mark string) map[int]string {
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		panic(err) // there is no Linux without it
	}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// What has ended in the meantime, or is a zombie, has no command line.
		raw, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if line := string(bytes.ReplaceAll(raw, []byte{0}, []byte(" "))); strings.Contains(line, mark) {
			found[id] = line
		}
	}
	return found
}
