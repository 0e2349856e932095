package authn_test

import (
	"context"
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

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
		"jwks_uri": app + "/.well-known/pomerium/jwks.json", "frontchannel_logout_uri": app + "/.pomerium/sign_out",
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

func TestSignOut(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	sessions := func() int {
		t.Helper()
		s, err := w.store.Sessions(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		return len(s)
	}
	// None of these signs anybody out.
	for _, tt := range []struct {
		name   string
		got    page
		status int
	}{
		{"a link", b.get(app + "/.pomerium/sign_out"), 200},
		{"a link at the authenticate host", b.get(auth + "/.pomerium/sign_out"), 200},
		{"a form of another site", b.post(app+"/.pomerium/sign_out", nil, "Sec-Fetch-Site", "cross-site"), 403},
		{"a form of a sibling", b.post(app+"/.pomerium/sign_out", nil, "Sec-Fetch-Site", "same-site"), 403},
		{"an old browser's foreign form", b.post(app+"/.pomerium/sign_out", nil, "Origin", "https://evil.example"), 403},
		{"a form without an origin", b.post(app+"/.pomerium/sign_out", nil, "Origin", "null"), 403},
		{"a form that says nothing", b.post(app+"/.pomerium/sign_out", nil), 403},
		{"a foreign form at the authenticate host", b.post(auth+"/.pomerium/sign_out", nil, "Sec-Fetch-Site", "cross-site"), 403},
	} {
		tt.got.want(t, tt.status, "Sign out")
		if sessions() != 1 || b.cookie(app, "_pomerium") == nil {
			t.Fatalf("%s signed the person out", tt.name)
		}
	}

	p := b.post(app+"/.pomerium/sign_out", url.Values{"pomerium_redirect_uri": {other + "/bye"}}, "Origin", app)
	p.want(t, http.StatusOK, "You are signed out", `content="0;url=`+other+`/bye"`)
	if n := sessions(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	if c := b.cookie(app, "_pomerium"); c != nil {
		t.Error("the session cookie is left")
	}
	if c := b.cookie(auth, "__Host-_pomerium_authenticate"); c != nil {
		t.Error("the authenticate cookie is left")
	}
	// Again, with nothing left to end.
	b.post(app+"/.pomerium/sign_out", nil, "Sec-Fetch-Site", "same-origin").want(t, http.StatusOK, "You are signed out")
}

func TestSignOutAtTheAuthenticateHost(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	p := b.post(auth+"/.pomerium/sign_out", nil, "Sec-Fetch-Site", "same-origin")
	p.want(t, http.StatusOK, "You are signed out")
	if got := p.Request.URL.Path; got != "/.pomerium/signed_out" {
		t.Errorf("ended at %s", got)
	}
	w.idp.Change(func(b *idptest.Behaviour) { b.AuthorizeError = "access_denied" })
	b.get(app+"/").want(t, http.StatusUnauthorized)
}

func TestSignOutLinkOfAnotherBrowser(t *testing.T) {
	w := newWorld(t)
	mallory, alice := w.browser(), w.browser()
	mallory.get(app + "/")
	alice.get(app + "/")
	mallory.stop = func(*url.URL) bool { return true }
	link := mallory.post(app+"/.pomerium/sign_out", nil, "Origin", app).Header.Get("Location")
	alice.get(link).want(t, http.StatusOK, "Sign out?")
	if alice.cookie(auth, "__Host-_pomerium_authenticate") == nil {
		t.Error("another's link signed alice out")
	}
}

func TestSignOutRedirects(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	for _, target := range []string{
		"//evil.example", `/\evil.example`, "https:evil.example", "https://evil.example", "https://app.example.com@evil.example",
		"https://app.example.com\n", "https://app.example.com:444/", "http://app.example.com/", "javascript:alert(1)", "/local",
	} {
		for _, at := range []string{app, auth} {
			q := url.Values{"pomerium_redirect_uri": {target}}.Encode()
			b.get(at+"/.pomerium/sign_out?"+q).want(t, http.StatusBadRequest)
			b.post(at+"/.pomerium/sign_out", url.Values{"pomerium_redirect_uri": {target}}, "Origin", at).want(t, http.StatusBadRequest)
		}
	}
}

func TestProgrammaticSignIn(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	p := b.get(app + "/.pomerium/api/v1/login?pomerium_redirect_uri=" + url.QueryEscape("http://127.0.0.1:5000/done?n=1"))
	p.want(t, http.StatusOK, auth+"/.pomerium/sign_in?")
	if got := p.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
		t.Errorf("Content-Type: got %q", got)
	}
	asked := b.get(p.body)
	asked.want(t, http.StatusOK, "Let a program act as you?", "http://127.0.0.1:5000", "alice@example.com")
	if csp := asked.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' http://127.0.0.1:5000;") {
		t.Errorf("policy %q", csp)
	}
	if c := b.cookie(app, "_pomerium"); c != nil {
		t.Error("a route's cookie was set")
	}
	m := regexp.MustCompile(`name="form" value="([^"]+)"`).FindStringSubmatch(asked.body)
	if m == nil {
		t.Fatal("no form")
	}
	form := url.Values{"form": {html.UnescapeString(m[1])}}
	b.stop = func(*url.URL) bool { return true }
	consent := auth + "/.pomerium/consent"
	b.post(consent, form, "Sec-Fetch-Site", "cross-site").want(t, http.StatusForbidden)
	b.post(consent, url.Values{"form": {"x"}}, "Origin", auth).want(t, http.StatusBadRequest)
	w.browser().post(consent, form, "Origin", auth).want(t, http.StatusBadRequest)
	p = b.post(consent, form, "Origin", auth)
	p.want(t, http.StatusFound)
	to := mustURL(t, p.Header.Get("Location"))
	c, err := w.keys.OpenCredential(to.Query().Get("pomerium_jwt"), w.now())
	if err != nil || c.Kind != signin.KindSession || to.Host != "127.0.0.1:5000" || to.Query().Get("n") != "1" {
		t.Errorf("got %s, %+v, %v", to.Redacted(), c, err)
	}
	w.browser().get(app+"/.pomerium/user", "Authorization", "Pomerium "+to.Query().Get("pomerium_jwt")).want(t, http.StatusOK, "user-alice")
	if strings.Contains(w.log.String(), to.Query().Get("pomerium_jwt")) {
		t.Error("the log holds the token")
	}
	w.offset.Store(int64(11 * time.Minute))
	b.post(consent, form, "Origin", auth).want(t, http.StatusBadRequest)
}

func TestProgrammaticTargets(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Programs.RedirectDomains = []string{"localhost", "tool.example.net"} })
	b := w.browser()
	tests := []struct {
		target string
		status int
	}{
		{"http://localhost:1234/", 200}, {"http://127.0.0.1/", 200}, {"http://[::1]:9/", 200}, {"https://tool.example.net/x", 200}, {"http://127.8.8.8/", 200},
		{"https://sub.tool.example.net/", 400}, {"https://localhost.evil.example/", 400}, {"https://tool.example.net@evil.example/", 400},
		{"//localhost/", 400}, {"/x", 400}, {"javascript:alert(1)", 400}, {"ftp://localhost/", 400}, {"http://localhost\\.evil.example", 400}, {app, 400},
	}
	for _, tt := range tests {
		b.get(app+"/.pomerium/api/v1/login?pomerium_redirect_uri="+url.QueryEscape(tt.target)).want(t, tt.status)
	}
}
