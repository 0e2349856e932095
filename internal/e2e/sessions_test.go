package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/internal/demo"
)

// TestSessions goes through a session's life with the demo's provider, whose refresh
// tokens are good once.
func TestSessions(t *testing.T) {
	// Renewed as soon as anything may be: ten seconds after the last time.
	w := newWorld(t, options{AccessLife: 65 * time.Second, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
    pass_identity_headers: true
  - from: {{url "eng"}}
    to: {{to "eng"}}
    policy:
      - allow: {and: [{claim/groups: engineering}]}
`})
	app := w.url("app", "/")
	t.Run("groups change at the provider", func(t *testing.T) { groupsChange(t, w) })
	t.Run("token exchange", func(t *testing.T) { exchanges(t, w, app) })
	t.Run("a sign-out here is one there", func(t *testing.T) { signsOutThere(t, w, app) })
	t.Run("a sign-out there is one here", func(t *testing.T) { signedOutThere(t, w, app) })
	t.Run("a sign-out everywhere", func(t *testing.T) { signsOutEverywhere(t, w, app) })
	t.Run("a terminal without a browser", func(t *testing.T) { headless(t, w, app) })
	t.Run("a provider that is down signs nobody out", func(t *testing.T) { outage(t, w, app) })
}

// atProvider sends a form of the provider's own page.
func (w *world) atProvider(t testing.TB, path string, form url.Values) {
	t.Helper()
	r := request(t, http.MethodPost, w.provider.issuer+path, "Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "same-origin")
	r.Body = io.NopCloser(strings.NewReader(form.Encode()))
	if a := w.client().send(t, r); a.StatusCode != http.StatusSeeOther {
		t.Fatalf("%s at the provider: %s: %.300s", path, a.Status, a.Body)
	}
}

func groupsChange(t *testing.T, w *world) {
	eng := w.url("eng", "/")
	c := w.session(t, "ana", eng)
	if got := c.status(t, eng); got != http.StatusOK {
		t.Fatalf("ana is answered %d", got)
	}
	w.atProvider(t, "/groups", url.Values{"person": {"ana"}, "groups": {"staff"}})
	eventually(t, 30*time.Second, "ana has left engineering", func() bool { return c.status(t, eng) == http.StatusForbidden })
	// The first refresh has rotated the token: only a second one shows that.
	w.atProvider(t, "/groups", url.Values{"person": {"ana"}, "groups": {"staff, engineering"}})
	eventually(t, 30*time.Second, "ana is in engineering again", func() bool { return c.status(t, eng) == http.StatusOK })
}

func signsOutThere(t *testing.T, w *world, app string) {
	c := w.session(t, "ana", app)
	stolen := c.cookie(t, app, "_pomerium")
	a := w.follow(t, c, "", c.submit(t, w.url("app", "/.pomerium/sign_out"), url.Values{}))
	if a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Request.URL.String(), w.authenticateURL("/.pomerium/signed_out")) || !strings.Contains(a.Body, "You are signed out") {
		t.Errorf("the sign-out ends at %s with %d: %.600s", a.Request.URL, a.StatusCode, a.Body)
	}
	if got := c.status(t, app); got != http.StatusUnauthorized {
		t.Errorf("afterwards the application answers %d", got)
	}
	if got := w.client().fetch(t, app, "Cookie", "_pomerium="+stolen).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("the old cookie is answered %d", got)
	}
}

func signedOutThere(t *testing.T, w *world, app string) {
	ana, other, ben := w.session(t, "ana", app), w.session(t, "ana", app), w.session(t, "ben", app)
	w.atProvider(t, "/sign-out", url.Values{"person": {"ana"}})
	eventually(t, time.Second, "ana is signed out", func() bool {
		return ana.status(t, app) == http.StatusUnauthorized && other.status(t, app) == http.StatusUnauthorized
	})
	if got := ben.status(t, app); got != http.StatusOK {
		t.Errorf("ben is answered %d", got)
	}
	a := w.client().send(t, request(t, http.MethodPost, w.authenticateURL("/oauth2/backchannel_logout"), "Content-Type", "application/x-www-form-urlencoded"))
	if a.StatusCode != http.StatusBadRequest {
		t.Errorf("a back-channel logout without a token is answered %d", a.StatusCode)
	}
}

func signsOutEverywhere(t *testing.T, w *world, app string) {
	phone, laptop, ben := w.session(t, "ana", app), w.session(t, "ana", app), w.session(t, "ben", app)
	phone.submit(t, w.authenticateURL("/.pomerium/sign_out"), url.Values{"everywhere": {"true"}})
	eventually(t, time.Second, "ana is signed out everywhere", func() bool {
		return phone.status(t, app) == http.StatusUnauthorized && laptop.status(t, app) == http.StatusUnauthorized
	})
	if got := ben.status(t, app); got != http.StatusOK {
		t.Errorf("ben is answered %d", got)
	}
}

// publicIDToken signs a person in as a program with a client of its own does.
func (w *world) publicIDToken(t testing.TB, person string) string {
	t.Helper()
	const redirect, verifier = "http://127.0.0.1:1/callback", "a-verifier-of-more-than-forty-three-characters"
	challenge := sha256.Sum256([]byte(verifier))
	c := w.client()
	a := c.navigate(t, w.provider.issuer+"/authorize?"+url.Values{
		"response_type": {"code"}, "client_id": {demo.PublicClientID}, "redirect_uri": {redirect}, "scope": {"openid email groups offline_access"},
		"state": {"s"}, "code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}.Encode())
	for range 10 {
		if to, err := a.Location(); err == nil && to.Host == "127.0.0.1:1" {
			form := url.Values{
				"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {redirect},
				"client_id": {demo.PublicClientID}, "code_verifier": {verifier},
			}
			r := request(t, http.MethodPost, w.provider.issuer+"/oauth/token", "Content-Type", "application/x-www-form-urlencoded")
			r.Body = io.NopCloser(strings.NewReader(form.Encode()))
			raw, _ := c.send(t, r).object(t, http.StatusOK)["id_token"].(string)
			return raw
		}
		if a = c.next(t, person, a); a == nil {
			break
		}
	}
	t.Fatal("the provider gives no code")
	return ""
}

func exchanges(t *testing.T, w *world, app string) {
	raw := w.publicIDToken(t, "ana")
	token := w.exchange(t, raw)
	for _, header := range []string{"Bearer " + token, "Bearer Pomerium-" + token} {
		for _, target := range []string{app, w.url("eng", "/")} {
			if got := w.client().fetch(t, target, "Authorization", header).echo(t).values("Authorization"); len(got) != 0 {
				t.Errorf("%s: the upstream got our token", target)
			}
		}
	}
	w.must(t, "session", "revoke", "--user", "ana")
	eventually(t, time.Second, "the token is refused", func() bool {
		return w.client().fetch(t, app, "Authorization", "Bearer "+token).StatusCode == http.StatusUnauthorized
	})
	refused := w.postForm(t, "/api/v1/token", url.Values{"id_token": {raw}}).object(t, http.StatusBadRequest)
	if refused["error"] != "invalid_grant" || refused["error_description"] == "" {
		t.Errorf("an ID token from before the revocation: %v", refused)
	}
}

func headless(t *testing.T, w *world, app string) {
	c := w.client()
	granted := w.deviceFlow(t, func(verification string) {
		a := w.agree(t, c, verification, func(a *answer) *answer { return c.next(t, "ben", a) })
		if a.StatusCode != http.StatusOK {
			t.Errorf("the page of codes ends with %d: %.600s", a.StatusCode, a.Body)
		}
	})
	token, _ := granted["access_token"].(string)
	if got := w.client().fetch(t, app, "Authorization", "Bearer "+token).echo(t).claims(t)["email"]; got != "ben@companydomain.com" {
		t.Errorf("the upstream sees %v", got)
	}
	renewed := w.postForm(t, "/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {granted["refresh_token"].(string)}, "client_id": {"a terminal"}}).object(t, http.StatusOK)
	token, _ = renewed["access_token"].(string)
	again, _ := renewed["refresh_token"].(string)
	w.secret(token, again)
	w.client().fetch(t, app, "Authorization", "Bearer "+token).echo(t)
	who := w.client().fetch(t, w.authenticateURL("/.pomerium/user"), "Authorization", "Bearer "+token)
	if got := who.object(t, http.StatusOK)["email"]; got != "ben@companydomain.com" {
		t.Errorf("where people sign in the token is that of %v", got)
	}
	w.postForm(t, "/oauth2/revoke", url.Values{"token": {again}})
	eventually(t, time.Second, "the terminal is signed out", func() bool {
		return w.client().fetch(t, app, "Authorization", "Bearer "+token).StatusCode == http.StatusUnauthorized
	})
	if got := w.client().fetch(t, w.authenticateURL("/.pomerium/user"), "Authorization", "Bearer "+token).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("where people sign in the ended token is answered %d", got)
	}
}

// outage comes last: it ends the provider. Everything is due while nothing answers.
func outage(t *testing.T, w *world, app string) {
	c := w.session(t, "ana", app)
	w.provider.close()
	const down = "the identity provider does not answer; its sessions stay as they are"
	eventually(t, 30*time.Second, "a refresh has failed", func() bool { return w.log.count(down) > 0 })
	if got := c.status(t, app); got != http.StatusOK {
		t.Errorf("while the provider is down the application answers %d", got)
	}
}
