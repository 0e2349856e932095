//go:build linux

package envoy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/envoy"
	"github.com/countersign/countersign/envoy/envoytest"
)

// superviseVar makes the test binary a program that supervises an Envoy in
// the folder it names, so that a test can kill it.
const superviseVar = "COUNTERSIGN_TEST_SUPERVISE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(superviseVar); dir != "" {
		os.Exit(superviseUntilKilled(dir))
	}
	os.Exit(m.Run())
}

func superviseUntilKilled(dir string) int {
	bootstrap, err := os.ReadFile(filepath.Join(dir, "given.json"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, err := envoy.New(envoy.Config{
		Binary: os.Getenv("ENVOY"), Dir: filepath.Join(dir, "run"),
		Bootstrap: bootstrap, AdminSocket: filepath.Join(dir, "admin.sock"), Concurrency: 1,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		if s.Ready(context.Background()) == nil {
			fmt.Println(s.Status().PID)
		}
	}()
	if err := s.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

const patience = 20 * time.Second

// eventually polls until reached says so.
func eventually(t *testing.T, what string, reached func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-end:
			t.Fatalf("after %v still not: %s", patience, what)
		case <-tick.C:
		}
	}
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// fixture is an Envoy with one plain listener in front of upstream.
type fixture struct {
	dir, url string
	cfg      envoy.Config
	log      *logBuffer
}

// newFixture writes a static bootstrap: these tests are about the process,
// not about what it serves.
func newFixture(t *testing.T, upstream http.Handler) *fixture {
	t.Helper()
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	dir := shortDir(t)
	listen := filepath.Join(dir, "in.sock")
	up := server.Listener.Addr().(*net.TCPAddr)
	bootstrap := fmt.Sprintf(`{
	 "admin": {"address": {"pipe": {"path": %q, "mode": 384}}},
	 "static_resources": {
	  "listeners": [{"name": "in", "address": {"pipe": {"path": %q}}, "filter_chains": [{"filters": [{
	    "name": "envoy.filters.network.http_connection_manager",
	    "typed_config": {
	     "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
	     "stat_prefix": "in",
	     "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}]}]},
	     "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
	    }}]}]}],
	  "clusters": [{"name": "up", "type": "STATIC", "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
	    "socket_address": {"address": %q, "port_value": %d}}}}]}]}}]
	 }}`, filepath.Join(dir, "admin.sock"), listen, up.IP.String(), up.Port)
	if err := os.WriteFile(filepath.Join(dir, "given.json"), []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	return &fixture{dir: dir, url: listen, log: log, cfg: envoy.Config{
		Binary:      envoytest.Path(t),
		Dir:         filepath.Join(dir, "run"),
		Bootstrap:   []byte(bootstrap),
		AdminSocket: filepath.Join(dir, "admin.sock"),
		Concurrency: 1,
		Log:         slog.New(slog.NewJSONHandler(log, nil)),
	}}
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// get asks for / through Envoy on a new connection.
func (f *fixture) get(ctx context.Context) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", f.url)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://app/", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

// running is a Supervisor whose Run is under way.
type running struct {
	*envoy.Supervisor
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func run(t *testing.T, cfg envoy.Config) *running {
	t.Helper()
	s, err := envoy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Supervisor: s, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	return r
}

func (r *running) ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// stop ends Run and returns how long that took.
func (r *running) stop(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	r.cancel()
	<-r.done
	if r.err != nil {
		t.Errorf("Run = %v, want nil", r.err)
	}
	return time.Since(began)
}

// logBuffer collects JSON log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) has(t *testing.T, level, message string) bool {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range bytes.Lines(b.buf.Bytes()) {
		var record struct{ Level, Msg string }
		if err := json.Unmarshal(line, &record); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if record.Level == level && strings.Contains(record.Msg, message) {
			return true
		}
	}
	return false
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func startTime(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.Fields(rest)[19]
}

func TestSupervisorServes(t *testing.T) {
	t.Setenv("SHARED_SECRET", "must-not-reach-envoy")
	f := newFixture(t, http.HandlerFunc(ok))
	r := run(t, f.cfg)
	r.ready(t)
	if got, err := f.get(t.Context()); got != "200 ok" || err != nil {
		t.Errorf("through Envoy: %q, %v", got, err)
	}

	pid := r.Status().PID
	if group, err := syscall.Getpgid(pid); err != nil || group != pid {
		t.Errorf("process %d is in group %d (%v), want its own", pid, group, err)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || bytes.Contains(environ, []byte("must-not-reach-envoy")) {
		t.Errorf("Envoy inherited our secret (%v)", err)
	}
	for path, want := range map[string]os.FileMode{
		f.cfg.Dir:         0o700 | os.ModeDir,
		f.cfg.AdminSocket: 0o600 | os.ModeSocket,
		filepath.Join(f.cfg.Dir, "bootstrap.json"): 0o600,
		filepath.Join(f.cfg.Dir, "envoy.pid"):      0o600,
	} {
		if info, err := os.Stat(path); err != nil {
			t.Error(err)
		} else if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}

	if took := r.stop(t); took > 5*time.Second {
		t.Errorf("an idle Envoy took %v to stop", took)
	}
	if alive(pid) || r.Status().PID != 0 {
		t.Errorf("Envoy lives on after Run: status %+v", r.Status())
	}
	if _, err := os.Lstat(f.cfg.AdminSocket); err == nil {
		t.Error("the admin socket is left behind")
	}
}

func TestSupervisorRestartsEnvoy(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	r := run(t, f.cfg)
	r.ready(t)
	first := r.Status().PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another Envoy runs", func() bool {
		pid := r.Status().PID
		return pid != 0 && pid != first
	})
	r.ready(t)
	if got, err := f.get(t.Context()); got != "200 ok" || err != nil {
		t.Errorf("through the second Envoy: %q, %v", got, err)
	}
	if n := r.Status().Restarts; n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
	if !f.log.has(t, "ERROR", "envoy ended on its own") {
		t.Errorf("no error was logged:\n%s", f.log.buf.String())
	}
}

func TestEnvoyEndsWithItsParent(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.CommandContext(t.Context(), self)
	parent.Env = append(os.Environ(), superviseVar+"="+f.dir, "ENVOY="+f.cfg.Binary)
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanln(out, &pid); err != nil {
		t.Fatalf("the parent printed no process id: %v", err)
	}
	if !alive(pid) {
		t.Fatalf("Envoy, process %d, does not live", pid)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	eventually(t, "Envoy has ended with its parent", func() bool { return !alive(pid) })

	// What the killed one left in the folder does not hinder the next.
	r := run(t, f.cfg)
	r.ready(t)
}

func TestSupervisorEndsALeftover(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	if err := os.MkdirAll(f.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	bootstrap := filepath.Join(f.cfg.Dir, "bootstrap.json")
	if err := os.WriteFile(bootstrap, f.cfg.Bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	left := exec.Command(f.cfg.Binary, "--config-path", bootstrap, "--disable-hot-restart", "--concurrency", "1", "--log-level", "off")
	left.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = left.Wait()
	}()
	t.Cleanup(func() { _ = left.Process.Kill() })
	eventually(t, "the leftover is ready", func() bool {
		return envoy.NewAdmin(f.cfg.AdminSocket).Ready(t.Context()) == nil
	})
	record := fmt.Sprintf("%d %s\n", left.Process.Pid, startTime(t, left.Process.Pid))
	if err := os.WriteFile(filepath.Join(f.cfg.Dir, "envoy.pid"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}

	r := run(t, f.cfg)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the leftover was not ended")
	}
	eventually(t, "a new Envoy runs", func() bool { return r.Status().PID != 0 })
	r.ready(t)
	if got, err := f.get(t.Context()); got != "200 ok" || err != nil {
		t.Errorf("through the new Envoy: %q, %v", got, err)
	}
}

// idle starts a process that waits to be killed, in a group of its own, with
// args on its command line.
func idle(t *testing.T, args ...string) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", "read x; :"}, args...)...)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestSupervisorSparesStrangers(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	if err := os.MkdirAll(f.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stranger := idle(t)
	namesake := idle(t, filepath.Join(f.cfg.Dir, "bootstrap.json"))
	tests := []struct{ name, record string }{
		{"a process of another program", fmt.Sprintf("%d %s\n", stranger, startTime(t, stranger))},
		{"a later process with the same id", fmt.Sprintf("%d 1\n", namesake)},
		{"everyone", "-1 1\n"},
		{"our own group", "0 1\n"},
		{"nonsense", "\x00\xff" + strings.Repeat("9", 4096)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(f.cfg.Dir, "envoy.pid"), []byte(tt.record), 0o600); err != nil {
				t.Fatal(err)
			}
			r := run(t, f.cfg)
			r.ready(t)
			if !alive(stranger) || !alive(namesake) {
				t.Error("a stranger was killed")
			}
			r.stop(t)
		})
	}
}

func TestSupervisorsDoNotShareAFolder(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	first := run(t, f.cfg)
	first.ready(t)
	second := run(t, f.cfg)
	<-second.done
	if second.err == nil || !strings.Contains(second.err.Error(), "another Countersign") {
		t.Errorf("second Run = %v, want a refusal", second.err)
	}
	if got, err := f.get(t.Context()); got != "200 ok" || err != nil {
		t.Errorf("the first one suffered: %q, %v", got, err)
	}
}

func TestSupervisorTakesNoSharedAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f := newFixture(t, http.HandlerFunc(ok))
	f.cfg.Addresses = []string{l.Addr().String()}
	r := run(t, f.cfg)
	<-r.done
	if want := "another process listens on " + l.Addr().String(); r.err == nil || !strings.Contains(r.err.Error(), want) {
		t.Errorf("Run = %v, want %q", r.err, want)
	}
}
