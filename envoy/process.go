//go:build unix

package envoy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is a started process, the leader of its own group.
type child struct {
	cmd *exec.Cmd
	// done is closed when the process has ended and err is set.
	done chan struct{}
	err  error
}

// startChild starts cmd. The parent-death signal comes when the thread that
// started the child ends, not when the process does, and the Go runtime ends
// threads as it likes. So one goroutine keeps its thread for as long as the
// child lives.
func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// terminate asks the whole group to end: Binary may be a script that started
// the real Envoy.
func (c *child) terminate() { c.signal(syscall.SIGTERM) }

func (c *child) kill() { c.signal(syscall.SIGKILL) }

func (c *child) signal(sig syscall.Signal) {
	select {
	case <-c.done:
	default:
		_ = syscall.Kill(-c.pid(), sig)
	}
}

// sweep ends what the group still holds after its leader has ended.
func (c *child) sweep() { _ = syscall.Kill(-c.pid(), syscall.SIGKILL) }

// pidFile records the running child as "<pid> <start time>\n" and is locked
// for as long as its Supervisor lives: whoever holds the lock knows that
// what is recorded belongs to one that is dead.
type pidFile struct{ file *os.File }

func openPIDFile(path string) (*pidFile, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another Countersign is running an Envoy here: %s is locked", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &pidFile{file}, nil
}

func (f *pidFile) close() { _ = f.file.Close() }

func (f *pidFile) clear() { _ = f.file.Truncate(0) }

func (f *pidFile) write(pid int) error {
	p, ok := inspect(pid)
	if !ok {
		return fmt.Errorf("process %d cannot be inspected", pid)
	}
	f.clear()
	_, err := f.file.WriteAt([]byte(strconv.Itoa(pid)+" "+p.started+"\n"), 0)
	return err
}

// read returns zero for a file that records nothing.
func (f *pidFile) read() (pid int, started string) {
	content, err := io.ReadAll(io.NewSectionReader(f.file, 0, 256))
	if err != nil {
		return 0, ""
	}
	first, rest, _ := strings.Cut(string(bytes.TrimSpace(content)), " ")
	pid, err = strconv.Atoi(first)
	if err != nil || pid <= 1 {
		return 0, ""
	}
	return pid, rest
}

// process is what the system says about a running process.
type process struct {
	// started tells it from a later process with the same id.
	started string
	// args is its command line.
	args string
}

const (
	leftoverPoll = 10 * time.Millisecond
	leftoverTerm = 2 * time.Second
	leftoverKill = 5 * time.Second
)

// endLeftover ends the process that f records, provided that it is the very
// one: same id, same start, and our bootstrap on its command line.
func (s *Supervisor) endLeftover(f *pidFile) error {
	pid, started := f.read()
	if pid == 0 {
		return nil
	}
	ours := func() bool {
		p, ok := inspect(pid)
		return ok && p.started == started && strings.Contains(p.args, s.bootstrap)
	}
	if !ours() {
		f.clear()
		return nil
	}
	s.cfg.Log.Warn("ending an envoy that was left over", "pid", pid)
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, leftoverTerm}, {syscall.SIGKILL, leftoverKill}} {
		if err := syscall.Kill(-pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		if waitUntil(step.wait, func() bool { return !ours() }) {
			f.clear()
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// waitUntil polls, because the process is not our child.
func waitUntil(limit time.Duration, reached func() bool) bool {
	end := time.After(limit)
	tick := time.NewTicker(leftoverPoll)
	defer tick.Stop()
	for !reached() {
		select {
		case <-end:
			return reached()
		case <-tick.C:
		}
	}
	return true
}
