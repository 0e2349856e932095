package authn_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp/idptest"
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
	for i := range 6 {
		w.idpID = w.cfg.IDPs[i%2].ID()
		b.get(app+"/").want(t, http.StatusOK, welcome)
	}
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
