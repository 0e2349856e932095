package authn_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

func TestStatuses(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.stop = func(*url.URL) bool { return true }
	tests := []struct {
		name, method, url string
		status            int
		code              string
	}{
		{"ping", "GET", app + "/ping", 200, ""},
		{"health", "HEAD", app + "/healthz", 200, ""},
		{"health at the authenticate host", "GET", auth + "/healthz", 200, ""},
		{"health takes no POST", "POST", app + "/healthz", 405, "method-not-allowed"},
		{"unknown internal page", "GET", app + "/.pomerium/nonsense", 404, "not-found"},
		{"profiling is not here", "GET", auth + "/debug/pprof/", 404, "not-found"},
		{"metrics are not here", "GET", auth + "/metrics", 404, "not-found"},
		{"sign-in is not on a route's host", "GET", app + "/.pomerium/sign_in", 404, "not-found"},
		{"a route's callback is not on the authenticate host", "GET", auth + "/.pomerium/callback/", 404, "not-found"},
		{"callback without a link", "GET", app + "/.pomerium/callback", 400, "hand-off-link"},
		{"a host that is not ours", "GET", "https://evil.example.com/.pomerium/", 404, "not-found"},
		{"user without a session", "GET", app + "/.pomerium/user", 401, "user-unauthenticated"},
		{"login without a target", "GET", app + "/.pomerium/api/v1/login", 404, "not-found"},
		{"login by POST", "POST", app + "/.pomerium/api/v1/login", 405, "method-not-allowed"},
		{"login to a stranger", "GET", app + "/.pomerium/api/v1/login?pomerium_redirect_uri=https://evil.example", 400, "redirect-target"},
		{"sign-out to a stranger", "GET", app + "/.pomerium/sign_out?pomerium_redirect_uri=https://evil.example", 400, "redirect-target"},
		{"an endless address", "GET", app + "/.pomerium/?" + strings.Repeat("x", 64<<10), 414, "url-too-long"},
		{"home", "GET", auth + "/", 302, ""},
		{"robots", "GET", auth + "/robots.txt", 200, ""},
		{"signed out", "GET", auth + "/.pomerium/signed_out", 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, accept := range []string{"text/html,*/*;q=0.8", "application/json", "*/*"} {
				r, err := http.NewRequestWithContext(context.Background(), tt.method, tt.url, nil)
				if err != nil {
					t.Fatal(err)
				}
				p := b.do(r, "Accept", accept)
				if p.StatusCode != tt.status {
					t.Fatalf("Accept %s: got status %d, want %d", accept, p.StatusCode, tt.status)
				}
				if tt.status < 400 || tt.method == "HEAD" {
					continue
				}
				if accept != "application/json" && tt.code != "user-unauthenticated" {
					p.want(t, tt.status, "<h1>", "request-1")
					continue
				}
				var got struct{ Error, RequestID string }
				if err := json.Unmarshal([]byte(p.body), &got); err != nil || got.Error != tt.code {
					t.Errorf("got %s (%v), want error %s", p.body, err, tt.code)
				}
			}
		})
	}
}

func TestBeforePublish(t *testing.T) {
	w := newWorld(t)
	w.server.Store(authn.New(authn.Config{Store: w.store}))
	p := w.browser().get(app + "/ping")
	p.want(t, http.StatusServiceUnavailable)
}

func TestPageHeaders(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	for _, to := range []string{app + "/.pomerium/", app + "/.pomerium/nope", app + "/.pomerium/sign_out", auth + "/.pomerium/"} {
		h := b.get(to).Header
		if csp := h.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: Content-Security-Policy %q", to, csp)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "strict-origin"} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", to, name, got, want)
			}
		}
	}
}

func TestWhoAmI(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) {
		b.Claims["name"] = `Alice <script>"&`
		b.Claims["address"] = map[string]any{"country": "SE"}
	})
	b := w.browser()
	b.get(app+"/.pomerium/").want(t, http.StatusOK, "You are not signed in")
	b.get(auth+"/.pomerium/").want(t, http.StatusOK, "You are not signed in")
	b.get(app + "/")
	for _, to := range []string{app + "/.pomerium/", app + "/.pomerium", auth + "/.pomerium/"} {
		p := b.get(to)
		p.want(t, http.StatusOK, "alice@example.com", "user-alice", "Alice &lt;script&gt;", "eng", "Session ends", "Sign out", "country")
		noSecrets(t, w, p.body)
	}
}

func TestUser(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Assertion.ClaimHeaders = []config.ClaimHeader{{Header: "X-Country", Claim: "address/country"}, {Header: "X-Email", Claim: "email"}, {Header: "X-None", Claim: "none"}, {Header: "X-N", Claim: "n"}}
	})
	w.idp.Change(func(b *idptest.Behaviour) {
		b.Claims["address"] = map[string]any{"country": "SE"}
		b.Claims["n"] = 12345678
	})
	b := w.browser()
	p := b.get(app + "/.pomerium/user")
	p.want(t, http.StatusUnauthorized)
	if p.Header.Get("WWW-Authenticate") == "" || p.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got headers %v", p.Header)
	}
	b.get(app + "/")
	p = b.get(app + "/.pomerium/user")
	p.want(t, http.StatusOK)
	var got map[string]any
	if err := json.Unmarshal([]byte(p.body), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "sid")
	want := map[string]any{"sub": "user-alice", "user": "user-alice", "email": "alice@example.com", "name": "Alice", "groups": []any{"eng", "ops"}, "address/country": "SE", "none": "", "n": "12345678"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}

	token, err := w.keys.MintAccount(signin.AccountToken{AccountID: "sa-1", UserID: "api", IssuedAt: w.now()})
	if err != nil {
		t.Fatal(err)
	}
	script := w.browser()
	script.get(app+"/.pomerium/user", "Authorization", "Bearer Pomerium-"+token).want(t, http.StatusUnauthorized)
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "sa-1", UserID: "api"}); err != nil {
		t.Fatal(err)
	}
	script.get(app+"/.pomerium/user", "Authorization", "Bearer Pomerium-"+token).want(t, http.StatusOK, `"user":"api"`, `"sid":"sa-1"`)
}

func TestWellKnown(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	p := b.get(app + "/.well-known/pomerium")
	p.want(t, http.StatusOK)
	var got map[string]string
	if err := json.Unmarshal([]byte(p.body), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"issuer": app + "/", "authentication_callback_endpoint": auth + "/oauth2/callback",
		"jwks_uri":                app + "/.well-known/pomerium/jwks.json",
		"frontchannel_logout_uri": auth + "/oauth2/frontchannel_logout", "backchannel_logout_uri": auth + "/oauth2/backchannel_logout",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	p = b.get(app + "/.well-known/pomerium/jwks.json")
	p.want(t, http.StatusOK, string(w.ring.JWKS()))
	if p.Header.Get("Access-Control-Allow-Origin") != "*" || p.Header.Get("Cache-Control") != "max-age=60" || p.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got headers %v", p.Header)
	}
	b.get(app+"/.well-known/pomerium/jwks.json", "If-None-Match", `"x", W/`+p.Header.Get("ETag")).want(t, http.StatusNotModified)
	b.get(app+"/.well-known/pomerium/jwks.json", "If-None-Match", `"x"`).want(t, http.StatusOK)
}
