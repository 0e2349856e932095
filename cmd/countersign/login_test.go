package main

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"
)

// TestLoginShowsATokenToItsIssuerAlone: the site of --url may be anybody's, and may
// say that people sign in somewhere else.
func TestLoginShowsATokenToItsIssuerAlone(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const token = "the-kept-token"
	var asked atomic.Bool
	var issuer string
	good := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/.pomerium/user" {
			asked.Store(strings.HasSuffix(r.Header.Get("Authorization"), token))
		}
		_ = json.NewEncoder(w).Encode(map[string]string{
			"issuer": issuer, "authorization_endpoint": issuer + "/a", "token_endpoint": issuer + "/t",
			"device_authorization_endpoint": issuer + "/d", "revocation_endpoint": issuer + "/r",
		})
	}))
	defer good.Close()
	issuer = good.URL
	var stolen atomic.Value
	evil := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			stolen.Store(r.URL.Path)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"authentication_callback_endpoint": issuer + "/oauth2/callback"})
	}))
	defer evil.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	store, unlock, err := openTokenFile(t.Context(), os.Stderr, issuer)
	if err == nil {
		err = store.keep(&oauth2.Token{AccessToken: token, RefreshToken: "r", Expiry: time.Now().Add(time.Hour)})
	}
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	var out, errs strings.Builder
	if code := run(t.Context(), []string{"login", "--url", evil.URL, "--ca", ca}, &out, &errs); code != 0 || out.String() != token+"\n" {
		t.Errorf("exit code %d, prints %q\n%s", code, out.String(), errs.String())
	}
	if at := stolen.Load(); at != nil {
		t.Errorf("the other site was shown the token at %s", at)
	}
	if !asked.Load() {
		t.Error("the issuer was not asked whether the token still counts")
	}
}
