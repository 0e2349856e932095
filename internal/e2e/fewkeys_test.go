package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNoProvider: without an identity provider it starts, says what is missing,
// and so does the sign-in. Machines get in all the same.
func TestNoProvider(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{NoProvider: true, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	missing := []string{"idp_provider_url", "idp_client_id", "idp_client_secret"}
	a := w.follow(t, w.client(), "ana", w.client().navigate(t, w.url("app", "/")))
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" || len(a.Request.URL.Hostname()) == 0 || a.Request.URL.Hostname() != w.options.AuthenticateHost {
		t.Errorf("the sign-in is answered %s at %s", a.Status, a.Request.URL)
	}
	warnings := ""
	for _, line := range w.log.lines("configuration") {
		problem, _ := line["problem"].(string)
		warnings += problem + "\n"
	}
	for _, key := range missing {
		if !strings.Contains(a.Body, key) {
			t.Errorf("the page does not name %s: %s", key, a.Body)
		}
		if !strings.Contains(warnings, key) {
			t.Errorf("no warning names %s: %s", key, warnings)
		}
	}
	for _, vendor := range []string{"pomerium.app", "pomerium.com"} {
		if strings.Contains(a.Body, vendor) {
			t.Errorf("the page points at %s", vendor)
		}
	}
	token := w.serviceAccount(t, "robot")
	w.client().fetch(t, w.url("app", "/"), "Authorization", "Bearer Pomerium-"+token).echo(t)
}

// TestFiveLines: routes alone are a configuration. What else is needed is made
// and kept.
func TestFiveLines(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{NoProvider: true, Config: `routes:
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
    pass_identity_headers: true
`})
	if lines, err := os.ReadFile(w.config); err != nil || strings.Count(string(lines), "\n") != 5 {
		t.Fatalf("%q, %v", lines, err)
	}
	a := w.client().fetch(t, w.url("app", "/"))
	if a.StatusCode != http.StatusUnauthorized {
		t.Errorf("nobody is answered %s", a.Status)
	}
	got := w.client().fetch(t, w.url("app", "/"), "X-Pomerium-Authorization", w.serviceAccount(t, "robot")).echo(t)
	w.verify(t, "app", "app", got.value(headerAssertion))
	a = w.client().navigate(t, w.url("app", "/"))
	if to := a.Header.Get("Location"); !strings.HasPrefix(to, "https://authenticate.") {
		t.Errorf("people sign in at %q", to)
	}
	for _, name := range []string{"secrets.json", "ca-key.pem", "certificate-key.pem"} {
		if info, err := os.Stat(filepath.Join(w.state, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// TestCookieSettings: another name and another lifetime hold from the sign-in
// to the decision.
func TestCookieSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{Settings: []string{"cookie_name: mine", "cookie_expire: 1h"}, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	app := w.url("app", "/")
	c := w.session(t, "ana", app)
	token := c.cookie(t, app, "mine")
	if token == "" || c.cookie(t, app, "_pomerium") != "" {
		t.Fatal("the session cookie is not called mine")
	}
	got := c.fetch(t, app, "Cookie", "theirs=1").echo(t)
	if cookies := strings.Join(got.values("cookie"), ";"); strings.Contains(cookies, "mine") || !strings.Contains(cookies, "theirs=1") {
		t.Errorf("the upstream got the cookies %.20q…", cookies)
	}
	if a := w.client().fetch(t, app, "Cookie", "_pomerium="+token); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("under the default name it is answered %s", a.Status)
	}
	sessions := w.list(t, "session", "list", "--config", w.config)
	if len(sessions) != 1 || sessions[0].ExpiresAt.Sub(sessions[0].CreatedAt) != time.Hour {
		t.Errorf("got %+v, want one session of an hour", sessions)
	}
}
