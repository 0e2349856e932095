package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	minBackoff = 200 * time.Millisecond
	maxBackoff = 10 * time.Second
	// healthyAfter is how long an Envoy must have lived for its death to count
	// as the first one.
	healthyAfter = 30 * time.Second

	defaultDrainTimeout = 4 * time.Second
	// listenerDrain is how long connections go on that were made under TLS
	// settings or on an address that the configuration no longer has.
	listenerDrain = time.Minute
)

// Config is what a Supervisor runs and how.
type Config struct {
	// Binary is the path of Envoy, from Find.
	Binary string
	// Dir is an existing or new folder for the files of this one Envoy: its
	// bootstrap and its process id. Two supervisors cannot share it.
	Dir string
	// Bootstrap is what the function Bootstrap returned.
	Bootstrap []byte
	// AdminSocket is the one that is named in Bootstrap.
	AdminSocket string
	// Addresses are the host:port that Envoy will be told to listen on. Run
	// does not start while another process has one of them: Envoy would share
	// the port with it, and each would get a part of the connections.
	Addresses []string
	// Concurrency is the number of worker threads; by default GOMAXPROCS,
	// which, unlike Envoy's own default, respects the limits of a container.
	Concurrency int
	// DrainTimeout bounds the time from the end of Run's context to the end of
	// Envoy; 4 s by default. Run never takes noticeably longer, and it takes
	// less if no request is under way.
	DrainTimeout time.Duration
	// LogLevel is Envoy's own: "info", "warning" (the default), "error",
	// "critical" or "off". Finer levels write request headers, that is
	// people's credentials, to the log and are refused.
	LogLevel string
	// Log receives Envoy's records and ours. Nil discards them.
	Log *slog.Logger
}

// Status is what a Supervisor is doing.
type Status struct {
	// PID is zero while no Envoy runs.
	PID int
	// Since is when that Envoy was started.
	Since time.Time
	// Restarts counts the times that Envoy ended on its own.
	Restarts int
}

// Supervisor keeps one Envoy running as a child process.
type Supervisor struct {
	cfg       Config
	bootstrap string
	admin     *Admin
	status    atomic.Pointer[Status]
}

// New checks cfg and returns a Supervisor that has not started anything.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Binary == "" || cfg.Dir == "" || len(cfg.Bootstrap) == 0 {
		return nil, errors.New("envoy: Binary, Dir and Bootstrap must be set")
	}
	if err := checkSocketPath(cfg.AdminSocket); err != nil {
		return nil, fmt.Errorf("envoy: admin socket: %w", err)
	}
	if cfg.LogLevel == "" {
		cfg.LogLevel = "warning"
	}
	if !slices.Contains([]string{"info", "warning", "error", "critical", "off"}, cfg.LogLevel) {
		return nil, fmt.Errorf("envoy: log level %q is none of info, warning, error, critical, off", cfg.LogLevel)
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = runtime.GOMAXPROCS(0)
	}
	if cfg.DrainTimeout <= 0 {
		cfg.DrainTimeout = defaultDrainTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// Envoy runs in Dir, so every path it is given must be absolute.
	for _, path := range []*string{&cfg.Binary, &cfg.Dir} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("envoy: %w", err)
		}
		*path = abs
	}
	s := &Supervisor{
		cfg:       cfg,
		bootstrap: filepath.Join(cfg.Dir, "bootstrap.json"),
		admin:     NewAdmin(cfg.AdminSocket),
	}
	s.status.Store(&Status{})
	return s, nil
}

// Admin returns a client for the administration interface.
func (s *Supervisor) Admin() *Admin { return s.admin }

// Ready waits until Envoy serves, or returns why it does not when ctx is
// done.
func (s *Supervisor) Ready(ctx context.Context) error { return s.admin.WaitReady(ctx) }

// Status returns the state of this moment.
func (s *Supervisor) Status() Status { return *s.status.Load() }

// Run ends an Envoy that an earlier Supervisor left in Dir, starts one, and
// starts another whenever it dies. When ctx ends, it lets requests finish
// within DrainTimeout, ends Envoy and returns nil. It returns an error only if
// it could not start at all.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	pid, err := openPIDFile(filepath.Join(s.cfg.Dir, "envoy.pid"))
	if err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	defer pid.close()
	if err := s.endLeftover(pid); err != nil {
		return fmt.Errorf("envoy: end the one that was left over: %w", err)
	}
	if err := s.checkAddresses(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(s.bootstrap, s.cfg.Bootstrap, 0o600); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	defer func() {
		_ = os.Remove(s.bootstrap)
		_ = removeSocket(s.cfg.AdminSocket)
	}()

	var delay time.Duration
	for attempt := 0; ctx.Err() == nil; attempt++ {
		started := time.Now()
		ended, err := s.runOnce(ctx, pid, attempt)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && attempt == 0 {
			return fmt.Errorf("envoy: %w", err)
		}
		uptime := time.Since(started)
		delay = backoff(delay, uptime)
		s.cfg.Log.Error("envoy ended on its own", "error", errors.Join(ended, err),
			"uptime", uptime.Round(time.Millisecond), "restart_in", delay)
		s.status.Store(&Status{Restarts: attempt + 1})
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
	return nil
}

// checkAddresses finds out whether our addresses are to be had, by having each
// for a moment.
func (s *Supervisor) checkAddresses(ctx context.Context) error {
	for _, address := range s.cfg.Addresses {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("another process listens on %s: stop it, or choose another address", address)
		}
		if err != nil {
			return fmt.Errorf("listen on %s: %w", address, err)
		}
		_ = l.Close()
	}
	return nil
}

// backoff returns how long to wait after an Envoy that lived for uptime, when
// the wait before it was last.
func backoff(last, uptime time.Duration) time.Duration {
	if uptime >= healthyAfter {
		return minBackoff
	}
	return min(max(2*last, minBackoff), maxBackoff)
}

// runOnce starts one Envoy and returns when it has ended: ended is how, err is
// why there was none.
func (s *Supervisor) runOnce(ctx context.Context, pid *pidFile, restarts int) (ended, err error) {
	if err := removeSocket(s.cfg.AdminSocket); err != nil {
		return nil, err
	}
	out := &logWriter{log: s.cfg.Log}
	cmd := s.command(out)
	c, err := startChild(cmd)
	if err != nil {
		return nil, err
	}
	if err := pid.write(c.pid()); err != nil {
		// The only loss is that a leftover could not be found by its id.
		s.cfg.Log.Warn("envoy process id not recorded", "error", err)
	}
	s.status.Store(&Status{PID: c.pid(), Since: time.Now(), Restarts: restarts})
	s.cfg.Log.Info("envoy started", "pid", c.pid(), "binary", s.cfg.Binary)

	select {
	case <-c.done:
	case <-ctx.Done():
		s.stop(c, out)
	}
	c.sweep()
	out.flush()
	pid.clear()
	s.status.Store(&Status{Restarts: restarts})
	return c.err, nil
}

func (s *Supervisor) command(out *logWriter) *exec.Cmd {
	cmd := exec.Command(s.cfg.Binary,
		"--config-path", s.bootstrap,
		"--disable-hot-restart",
		"--concurrency", strconv.Itoa(s.cfg.Concurrency),
		"--drain-time-s", strconv.Itoa(int(listenerDrain/time.Second)),
		"--log-level", s.cfg.LogLevel,
		"--log-format", logFormat,
	)
	cmd.Dir = s.cfg.Dir
	cmd.Env = childEnv()
	cmd.Stdout, cmd.Stderr = out, out
	// If something that Envoy started holds on to its standard error, we do
	// not wait for that.
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = processAttributes()
	return cmd
}

// childEnv is what of our environment Envoy gets: the rest may hold our
// secrets.
func childEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// stop lets requests finish, then ends Envoy: politely, and after that for
// certain.
func (s *Supervisor) stop(c *child, out *logWriter) {
	total := s.cfg.DrainTimeout
	// Run's context has ended; from here on only the clock counts.
	deadline, cancel := context.WithTimeout(context.Background(), total)
	defer cancel()
	drain, cancel := context.WithTimeout(deadline, total-min(time.Second, total/4))
	defer cancel()

	began := time.Now()
	if err := s.drain(drain, c); err != nil {
		s.cfg.Log.Warn("envoy drain cut short", "error", err)
	}
	out.ending.Store(true)
	c.terminate()
	select {
	case <-c.done:
	case <-deadline.Done():
		s.cfg.Log.Warn("envoy did not end when asked, ending it", "pid", c.pid())
		c.kill()
		<-c.done
	}
	s.cfg.Log.Info("envoy stopped", "pid", c.pid(), "took", time.Since(began).Round(time.Millisecond))
}

// drain returns when no request is under way. For the first half of its time
// Envoy still accepts connections, so that whoever sends traffic can notice
// and go elsewhere; then it only finishes what it has.
func (s *Supervisor) drain(ctx context.Context, c *child) error {
	if err := s.admin.failHealthCheck(ctx); err != nil {
		return fmt.Errorf("fail health check: %w", err)
	}
	if err := s.admin.drainListeners(ctx, true); err != nil {
		return fmt.Errorf("drain listeners: %w", err)
	}
	end, _ := ctx.Deadline()
	accepting, cancel := context.WithTimeout(ctx, time.Until(end)/2)
	defer cancel()
	// Busy for all that time is no error: the second half is for that.
	_ = s.waitQuiet(accepting, c)
	if err := s.admin.drainListeners(ctx, false); err != nil {
		return fmt.Errorf("close listeners: %w", err)
	}
	return s.waitQuiet(ctx, c)
}

// waitQuiet returns when Envoy was seen without a request a few times in a
// row: between two requests on one connection there is a moment without one.
func (s *Supervisor) waitQuiet(ctx context.Context, c *child) error {
	const interval, looks = 20 * time.Millisecond, 3
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for quiet := 0; ; {
		active, err := s.admin.ActiveRequests(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("requests still under way: %w", ctx.Err())
		case err != nil:
			return err
		case active > 0:
			quiet = 0
		default:
			quiet++
		}
		if quiet == looks {
			return nil
		}
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// removeSocket removes a socket that nobody listens on any more, and nothing
// else: a path that holds another kind of file is a mistake to report.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("admin socket %s exists and is not a socket", path)
	}
	return os.Remove(path)
}
