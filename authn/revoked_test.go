package authn_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

// TestRevokedWhileSigningIn: whoever is signed out everywhere while their sign-in
// waits for the provider has no session afterwards.
func TestRevokedWhileSigningIn(t *testing.T) {
	w := newWorld(t)
	w.browser().get(app+"/").want(t, http.StatusOK, welcome)
	w.idp.Change(func(b *idptest.Behaviour) {
		b.OnRequest = func(endpoint string, _ *http.Request) {
			if endpoint != "userinfo" {
				return
			}
			if _, err := w.store.Store.RevokeUser(context.Background(), "user-alice", ""); err != nil {
				t.Error(err)
			}
		}
	})
	b := w.browser()
	b.get(app+"/").want(t, http.StatusBadRequest, "Your sessions were ended while you signed in", "Start over")
	if left := w.sessions(); len(left) != 0 {
		t.Errorf("%d sessions are left", len(left))
	}
	w.idp.Change(func(b *idptest.Behaviour) { b.OnRequest = nil })
	b.get(app+"/").want(t, http.StatusOK, welcome)
}

// TestTwoProvidersOnOneHost: going to and fro between pages that ask for different
// providers is no loop.
func TestTwoProvidersOnOneHost(t *testing.T) {
	w, _ := withChoice(t)
	b := w.browser()
	for i := range 4 {
		w.idpID = w.cfg.IDPs[i%2].ID()
		b.get(app+"/").want(t, http.StatusOK, welcome)
	}
	// Unless the browser does not take the new session.
	w.offset.Add(int64(2 * time.Minute))
	b.refuse(func(_ *url.URL, c *http.Cookie) bool { return c.Name == "_pomerium" })
	w.idpID = w.cfg.IDPs[0].ID()
	b.get(app+"/").want(t, http.StatusBadRequest, "You are signed in, but app.example.com does not take it")
}

// TestTabsShareOneSession: sign-ins of one browser that were under way at once leave
// nothing behind that its sign-out does not end.
func TestTabsShareOneSession(t *testing.T) {
	for _, second := range []string{"user-alice", "user-bob"} {
		w := newWorld(t)
		b := w.browser()
		one := b.until("/oauth2/callback", app+"/one")
		w.idp.Change(func(b *idptest.Behaviour) { b.Subject = second })
		two := b.until("/oauth2/callback", other+"/two")
		b.get(one).want(t, http.StatusOK, welcome)
		b.get(two).want(t, http.StatusOK, welcome)
		if n := len(w.sessions()); n != 1 {
			t.Errorf("then %s: %d sessions", second, n)
		}
		b.post(other+"/.pomerium/sign_out", nil, "Origin", other).want(t, http.StatusOK, "in every application of this site")
		if n := len(w.sessions()); n != 0 || w.in(b) {
			t.Errorf("then %s: %d sessions after the sign-out, at the other host still in: %v", second, n, w.in(b))
		}
	}
}

// TestAddressOfAnothersSignIn: where a sign-in ends in a browser that did not begin
// it, the address that stays holds nothing of whoever is signed in there.
func TestAddressOfAnothersSignIn(t *testing.T) {
	w := newWorld(t)
	mallory, victim := w.browser(), w.browser()
	victim.get(other+"/x").want(t, http.StatusOK, welcome)
	p := victim.get(mallory.until(signin.SignInPath, app+"/x"))
	p.want(t, http.StatusBadRequest, "began in another browser", app+"/x")
	mallory.get(p.Request.URL.String()).want(t, http.StatusBadRequest, "began in another browser")
	if mallory.cookie(app, "_pomerium") != nil {
		t.Error("the address signs somebody in")
	}
	for _, to := range []string{"https://evil.example/", "//evil.example", `/\\evil.example`, "javascript:alert(1)"} {
		p := victim.get(app + signin.CallbackPath + "?pomerium_mismatch=" + url.QueryEscape(to))
		p.want(t, http.StatusBadRequest, `href="`+app+`/"`)
		if strings.Contains(p.body, "evil") {
			t.Errorf("%s is on the page", to)
		}
	}
}

// TestLogoutBeforeExchange: a provider tells that its session has ended before
// anything was bought with it.
func TestLogoutBeforeExchange(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken(func(c map[string]any) { c["sid"] = "sid-9" })
	w.tells(w.idp.LogoutToken("", "sid-9")).want(t, http.StatusOK)
	w.call("/api/v1/token", url.Values{"id_token": {raw}}).want(t, http.StatusBadRequest, "signed out")
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions", n)
	}
	// A sign-in that has begun since is a new one, whatever the provider calls it.
	w.offset.Add(int64(time.Second))
	w.idp.Change(func(b *idptest.Behaviour) { b.SessionID = "sid-9" })
	w.browser().get(app+"/").want(t, http.StatusOK, welcome)
}

// TestOneTokenIsOneSession, however it is spelt.
func TestOneTokenIsOneSession(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
	raw := w.idToken()
	spellings := []string{raw, raw + "\n", raw[:9] + "\r\n" + raw[9:], raw + "=", " " + raw}
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		spellings = append(spellings, raw[:len(raw)-1]+string(c))
	}
	good := 0
	for _, spelling := range spellings {
		if w.call("/api/v1/token", url.Values{"id_token": {spelling}}).StatusCode == http.StatusOK {
			good++
		}
		if _, err := w.bearer(strings.Clone(spelling)); err == nil {
			good++
		}
	}
	// Once by each way.
	if n := len(w.sessions()); n != 2 || good != 4 {
		t.Errorf("one ID token in %d spellings bought %d sessions, and was good %d times", len(spellings), n, good)
	}
}
