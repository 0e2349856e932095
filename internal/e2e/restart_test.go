package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// envoyPID is that of the world's Envoy, 0 if none runs.
func (w *world) envoyPID() int {
	for pid, line := range processes(w.dir) {
		if !strings.Contains(line, " run --config ") {
			return pid
		}
	}
	return 0
}

// gone waits until no process of the world runs.
func (w *world) gone(t testing.TB) {
	t.Helper()
	eventually(t, 5*time.Second, "every process has ended", func() bool { return len(processes(w.dir)) == 0 })
}

// TestKill ends everything with kill -9 and starts it again: Envoy dies with its
// parent, and a session goes on.
func TestKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{Routes: stableRoutes})
	app := w.url("app", "/")
	ana, token := w.session(t, "ana", app), w.serviceAccount(t, "robot")
	before := ana.cookie(t, app, "_pomerium")
	w.envoyRestarts(t, ana)

	w.kill(t)
	w.gone(t)
	w.restart(t)
	if status := ana.status(t, app); status != http.StatusOK {
		t.Errorf("after kill -9 and a start the cookie is answered %d", status)
	}
	if after := ana.cookie(t, app, "_pomerium"); after != before {
		t.Error("the cookie has changed")
	}
	if a := w.client().fetch(t, app, "Authorization", "Bearer Pomerium-"+token); a.StatusCode != http.StatusForbidden {
		t.Errorf("the service account is answered %s, want 403: known, but not let in", a.Status)
	}
}

// envoyRestarts ends Envoy alone: it is started again.
func (w *world) envoyRestarts(t *testing.T, ana *agent) {
	t.Helper()
	old := w.envoyPID()
	p, err := os.FindProcess(old)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "another Envoy serves", func() bool {
		a, err := ana.try(request(t, "GET", w.url("app", "/"), "Accept", "application/json"))
		return err == nil && a.StatusCode == http.StatusOK && w.envoyPID() != old
	})
}

// TestKillDuringSignIn ends everything while the person is at the provider.
// Coming back ends the sign-in.
func TestKillDuringSignIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{Routes: stableRoutes})
	c := w.client()
	a := c.navigate(t, w.url("app", "/wanted?x=1"))
	for !strings.HasPrefix(a.Header.Get("Location"), w.authenticateURL("/oauth2/callback")) {
		if a = c.next(t, "ana", a); a == nil {
			t.Fatal("the sign-in did not lead back to the callback")
		}
	}
	w.kill(t)
	w.gone(t)
	w.restart(t)
	if got := w.follow(t, c, "ana", a).echo(t); got.Target != "/wanted?x=1" {
		t.Errorf("the sign-in ended at %s", got.Target)
	}
}

// TestInterrupt is Ctrl-C: with clients connected it ends within five seconds
// and leaves nothing but the state folder.
func TestInterrupt(t *testing.T) {
	tmp := t.TempDir()
	w := newWorld(t, options{Routes: stableRoutes, Env: []string{"TMPDIR=" + tmp}})
	app := w.url("app", "/")
	ana := w.session(t, "ana", app)
	socket := w.dialWebSocket(t, "app", ana.cookie(t, app, "_pomerium"))
	socket.say(t, "hello")

	began := time.Now()
	w.stop(t)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if code := w.process.command.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left := processes(w.dir); len(left) != 0 {
		t.Errorf("processes are left: %v", left)
	}
	names := func(dir string) (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if left := names(tmp); len(left) != 0 {
		t.Errorf("files are left: %v", left)
	}
	if left := strings.Join(names(w.dir), " "); left != "config.yaml state" {
		t.Errorf("beside the configuration there is: %s", left)
	}
	for _, name := range names(w.state) {
		info, err := os.Stat(filepath.Join(w.state, name))
		if err != nil || info.Mode()&os.ModeSocket != 0 || info.Mode().Perm()&0o077 != 0 && filepath.Ext(name) != ".pem" {
			t.Errorf("the state folder has %s, %v, %v", name, info.Mode(), err)
		}
	}
	w.restart(t)
	if status := ana.status(t, app); status != http.StatusOK {
		t.Errorf("after a stop and a start the cookie is answered %d", status)
	}
}
