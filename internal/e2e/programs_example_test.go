package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/countersign/countersign/internal/demo"
)

func examplePath(name string) string {
	return filepath.Join(moduleRoot(), "examples", "programmatic", name)
}

// programmer is a terminal whose scripts know a world.
type programmer struct {
	*terminal
	// kept is the file where a script keeps what it gets.
	kept string
}

func (w *world) programmer(t testing.TB) *programmer {
	t.Helper()
	m := &programmer{terminal: w.terminal(t)}
	m.kept = filepath.Join(m.home, "kept")
	m.env = append(m.env, "AUTHENTICATE="+w.authenticateURL(""), "KEPT="+m.kept, "PYTHONDONTWRITEBYTECODE=1")
	if w.provider != nil {
		m.env = append(m.env, "ISSUER="+w.provider.issuer, "CLIENT_ID="+demo.PublicClientID)
	}
	return m
}

// example runs a script.
func (m *programmer) example(t testing.TB, name string, args ...string) *command {
	t.Helper()
	interpreter := "bash"
	if strings.HasSuffix(name, ".py") {
		interpreter = "python3"
	}
	return m.start(t, interpreter, append([]string{examplePath(name)}, args...)...)
}

// called waits for a script that is to call the application as this person.
func (c *command) called(t testing.TB, person string) result {
	t.Helper()
	r := c.end(t)
	var got received
	if r.code != 0 || json.Unmarshal([]byte(r.stdout), &got) != nil || got.Upstream != "app" || got.claims(t)["email"] != person {
		t.Fatalf("%s: exit code %d\n%s%s", c.Args, r.code, r.stdout, r.stderr)
	}
	return r
}

// keycloakCalls is a script at Keycloak: a sign-in, and a renewal with a refresh token
// that is good once.
func keycloakCalls(t *testing.T, w *world, k *keycloak, app string) {
	for _, name := range []string{"call.py", "call.sh"} {
		m := w.programmer(t)
		m.env = append(m.env, "ISSUER="+keycloakIssuer(k.port), "CLIENT_ID=build-tool", "SCOPE=openid email profile")
		first := m.example(t, name, app)
		c := w.client()
		a, _ := w.keycloakSignIn(t, c, "ben", first.asks(t, addressToOpen))
		if a.StatusCode != http.StatusOK || !strings.Contains(a.Body, "Go back to the terminal.") {
			t.Errorf("the program's page: %s %s", a.Status, a.Body)
		}
		first.called(t, ben)
		for range 2 {
			m.spoil(t)
			if r := m.example(t, name, app).called(t, ben); r.stderr != "" {
				t.Errorf("the renewal says %s", r.stderr)
			}
		}
	}
}

// back walks the address that a script shows, and brings it what the provider has for
// it.
func (w *world) back(t testing.TB, person string, script *command) {
	t.Helper()
	c, open := w.person(t, person)
	to, err := open(script.asks(t, addressToOpen)).Location()
	if err != nil {
		t.Fatal(err)
	}
	forged := *to
	forged.RawQuery = "code=x&state=x"
	if a := c.navigate(t, forged.String()); a.StatusCode != http.StatusBadRequest {
		t.Errorf("somebody else's answer: %s", a.Status)
	}
	if a := c.navigate(t, to.String()); a.StatusCode != http.StatusOK || !strings.Contains(a.Body, "Go back to the terminal.") {
		t.Errorf("the program's page: %s %s", a.Status, a.Body)
	}
}

// spoil damages the token that a script has kept, so that it is refused as one is
// whose time is up.
func (m *programmer) spoil(t testing.TB) {
	t.Helper()
	raw, err := os.ReadFile(m.kept)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := regexp.MustCompile(`(?m)(^token=|"token": ")([^"\n]+)[^"\n]{8}`).ReplaceAll(raw, []byte("${1}${2}AAAAAAAA"))
	if bytes.Equal(spoilt, raw) {
		t.Fatalf("nothing to spoil in %s", m.kept)
	}
	if err := os.WriteFile(m.kept, spoilt, 0o600); err != nil {
		t.Fatal(err)
	}
}

// revokeAtProvider has the provider end the program's grant.
func (m *programmer) revokeAtProvider(t testing.TB) {
	t.Helper()
	raw, err := os.ReadFile(m.kept)
	found := regexp.MustCompile(`(?m)(?:^refresh=|"refresh_token": ")([^"\n]+)`).FindSubmatch(raw)
	if err != nil || found == nil {
		t.Fatalf("no refresh token in %s: %v", m.kept, err)
	}
	form := url.Values{"token": {string(found[1])}, "client_id": {demo.PublicClientID}}
	r, err := m.world.client().PostForm(m.world.provider.issuer+"/revoke", form)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("revoke at the provider: %v %v", r, err)
	}
	_ = r.Body.Close()
}

// between is an authenticate host in front of the real one: before it hands an exchange
// on, it does what it was last told to do before one.
type between struct {
	url    string
	before atomic.Pointer[func()]
}

func (w *world) between(t testing.TB) *between {
	t.Helper()
	to, err := url.Parse(w.authenticateURL(""))
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: w.client().Transport}
	b := &between{}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if do := b.before.Swap(nil); do != nil && r.URL.Path == "/api/v1/token" {
			(*do)()
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

// examplesWorld has an application for everybody and one for nobody.
func examplesWorld(t *testing.T) *world {
	return newWorld(t, options{
		Settings: []string{"pass_identity_headers: true"}, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
  - from: {{url "closed"}}
    to: {{to "closed"}}
    policy: [{allow: {and: [{user: nobody}]}}]
`})
}

// TestProgramExamples runs the scripts of examples/programmatic that keep what they
// get: the sign-in, a run that asks nobody, an application that is closed, a renewal,
// and what happens when somebody has ended the session.
func TestProgramExamples(t *testing.T) {
	w := examplesWorld(t)
	app, closed := w.url("app", "/"), w.url("closed", "/")
	for _, script := range []string{"call.py", "call.sh", "legacy.sh"} {
		t.Run(script, func(t *testing.T) {
			m, b := w.programmer(t), w.between(t)
			m.env = append(m.env, "AUTHENTICATE="+b.url)
			first := m.example(t, script, app)
			w.back(t, "ana", first)
			first.called(t, ana)
			if info, err := os.Stat(m.kept); err != nil || info.Mode() != 0o600 {
				t.Errorf("what it keeps has mode %v, %v", info.Mode(), err)
			}
			if r := m.example(t, script, app).called(t, ana); r.stderr != "" {
				t.Errorf("the second run says %s", r.stderr)
			}
			if r := m.example(t, script, closed).end(t); r.code != 1 || !strings.Contains(r.stderr, "you are signed in, but you may not use "+closed) {
				t.Errorf("where ana may not go: exit code %d, %s", r.code, r.stderr)
			}
			m.spoil(t)
			if r := m.example(t, script, app).called(t, ana); r.stderr != "" {
				t.Errorf("the renewal says %s", r.stderr)
			}
			if script == "legacy.sh" {
				w.must(t, "session", "revoke", "--user", "ana")
				w.signsInAnew(t, m.example(t, script, app), "ben")
				return
			}
			// The exchange refuses what was issued before a revocation.
			m.spoil(t)
			revoke := func() { w.must(t, "session", "revoke", "--user", "ana") }
			b.before.Store(&revoke)
			w.signsInAnew(t, m.example(t, script, app), "ana")
			// The provider refuses the refresh token.
			m.spoil(t)
			m.revokeAtProvider(t)
			w.signsInAnew(t, m.example(t, script, app), "ben")
		})
	}
}

// signsInAnew expects a script to say that the session was ended, and to ask.
func (w *world) signsInAnew(t *testing.T, script *command, person string) {
	t.Helper()
	script.asks(t, `you were signed out \((.+)\), so sign in again\n`)
	second := time.Now().Unix()
	// Tokens say the second alone, and one of that of a revocation counts as older.
	eventually(t, 2*time.Second, "the next second", func() bool { return time.Now().Unix() > second })
	w.back(t, person, script)
	script.called(t, person+"@companydomain.com")
}

// TestProgramExamplesOnce runs the scripts that keep nothing.
func TestProgramExamplesOnce(t *testing.T) {
	w := examplesWorld(t)
	app, closed := w.url("app", "/"), w.url("closed", "/")
	t.Run("device.sh", func(t *testing.T) {
		script := w.programmer(t).example(t, "device.sh", app)
		page, code := script.asks(t, addressToOpen), script.asks(t, `\n +([B-Z]{4}-[B-Z]{4})\n`)
		_, open := w.person(t, "ana")
		open(page + "?user_code=" + code)
		script.called(t, ana)
	})
	t.Run("exchange.sh", func(t *testing.T) {
		m := w.programmer(t)
		token := filepath.Join(m.home, "id-token")
		run := func(content, target string) *command {
			if err := os.WriteFile(token, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			return m.start(t, "bash", "-c", `exec bash "$0" "$1" <"$2"`, examplePath("exchange.sh"), target, token)
		}
		good := w.idToken(t, "ana")
		run(good+"\n", app).called(t, ana)
		run(good, app).called(t, ana)
		if r := run(good, closed).end(t); r.code != 1 || !strings.Contains(r.stderr, "you may not use "+closed) {
			t.Errorf("where ana may not go: exit code %d, %s", r.code, r.stderr)
		}
		if r := run(good[:len(good)-8]+"AAAAAAAA", app).end(t); r.code != 1 || !strings.Contains(r.stderr, "invalid_request: the id_token cannot be used: ") {
			t.Errorf("a damaged ID token: exit code %d, %s", r.code, r.stderr)
		}
		if r := run(good, "https://elsewhere.example/").end(t); r.code != 1 || !strings.Contains(r.stderr, "invalid_target: ") {
			t.Errorf("an address that is not ours: exit code %d, %s", r.code, r.stderr)
		}
	})
	t.Run("a sign-in that is refused", func(t *testing.T) {
		for _, name := range []string{"call.py", "call.sh"} {
			script := w.programmer(t).example(t, name, app)
			u, err := url.Parse(script.asks(t, addressToOpen))
			if err != nil {
				t.Fatal(err)
			}
			back := u.Query().Get("redirect_uri") + "?error=access_denied&state=" + u.Query().Get("state")
			w.client().navigate(t, back)
			if r := script.end(t); r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "access_denied") {
				t.Errorf("%s: exit code %d, %s", name, r.code, r.stderr)
			}
		}
	})
}

// idToken is what the provider gives a program.
func (w *world) idToken(t testing.TB, person string) string {
	t.Helper()
	c := w.client()
	const redirect = "http://127.0.0.1:1/callback"
	verifier := oauth2.GenerateVerifier()
	program := &oauth2.Config{
		ClientID: demo.PublicClientID, RedirectURL: redirect, Scopes: []string{"openid", "email", "profile"},
		Endpoint: oauth2.Endpoint{AuthURL: w.provider.issuer + "/authorize", TokenURL: w.provider.issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	_, open := w.person(t, person)
	to, err := open(program.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier))).Location()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, c.Client)
	token, err := program.Exchange(ctx, to.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := token.Extra("id_token").(string)
	w.secret(raw)
	return raw
}
