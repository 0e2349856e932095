//go:build unix && !linux

package envoy

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// processAttributes puts Envoy into a group of its own, so that Ctrl-C in a
// terminal reaches only us and we can drain first. No system but Linux can tie
// its life to ours; if we are killed, the next start ends it.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// inspect asks ps, which POSIX promises.
func inspect(pid int) (process, bool) {
	ask := func(field string) string {
		cmd := exec.Command("ps", "-ww", "-o", field+"=", "-p", strconv.Itoa(pid))
		cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
		out, err := cmd.Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	p := process{started: ask("lstart"), args: ask("command")}
	if strings.HasPrefix(ask("state"), "Z") || p.started == "" {
		return process{}, false
	}
	return p, true
}
