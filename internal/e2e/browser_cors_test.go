package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// corsRoutes: pages on app, an API on hosts of its own, and below /api of app.
const corsRoutes = `
  - name: same domain
    from: {{url "app"}}
    prefix: /api
    to: {{to "api"}}
    allowed_domains: [companydomain.com]
  - name: App
    from: {{url "app"}}
    to: {{to "pages"}}
    allowed_domains: [companydomain.com]
  - name: API with preflight
    from: {{url "api"}}
    to: {{to "api"}}
    cors_allow_preflight: true
    allowed_domains: [companydomain.com]
  - name: API without preflight
    from: {{url "closed"}}
    to: {{to "api"}}
    allowed_domains: [companydomain.com]
  - name: API of a public page
    from: {{url "public"}}
    prefix: /api
    to: {{to "api"}}
    allowed_domains: [companydomain.com]
  - name: public page
    from: {{url "public"}}
    to: {{to "pages"}}
    allow_public_unauthenticated_access: true
`

// corsAPI answers as an API does that knows of pages elsewhere, and counts the
// preflight requests that reach it.
type corsAPI struct{ preflights, requests atomic.Int64 }

func (a *corsAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if origin := r.Header.Get("Origin"); origin != "" {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Credentials", "true")
		h.Set("Access-Control-Allow-Headers", "X-Custom, X-Pomerium-Authorization")
		h.Set("Vary", "Origin")
	}
	if r.Method == http.MethodOptions {
		a.preflights.Add(1)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	a.requests.Add(1)
	leaked := r.Header.Get("X-Pomerium-Authorization") + r.Header.Get("Cookie")
	_, _ = fmt.Fprintf(w, "api:%s:%s:%s", r.URL.Path, r.Header.Get("X-Custom"), leaked)
}

// fetch calls as a script of the page does, and returns status, whether there
// was a redirect, and the body; or that the browser did not let it.
func (b *tab) fetch(address, options string) string {
	b.t.Helper()
	return evaluate[string](b, `fetch(`+quote(address)+`, `+options+`).then(
		async r => r.status + " " + (r.redirected ? "redirected " : "") + await r.text(), e => e.name)`)
}

func testCORS(t *testing.T, c *chromium) {
	start := func(t *testing.T, settings ...string) (*world, *corsAPI, *tab) {
		t.Helper()
		api := &corsAPI{}
		upstreams := pages()
		upstreams["api"] = api
		w := newWorld(t, options{Routes: corsRoutes, Upstreams: upstreams, Settings: settings})
		b := c.profile(t, w)
		b.open(w.url("app", "/"), w.provider.issuer)
		b.signIn("ana", w.url("app", "/"))
		return w, api, b
	}
	expect := func(t *testing.T, what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}

	w, api, b := start(t, "cookie_http_only: false")
	t.Run("one domain with a prefix route", func(t *testing.T) {
		b.on(t)
		expect(t, "fetch below /api", b.fetch("/api/a", `{headers: {"X-Custom": "1"}}`), "200 api:/api/a:1:")
	})
	t.Run("the cookie's value in a header, after a preflight", func(t *testing.T) {
		b.on(t)
		withHeader := `{headers: {"X-Custom": "2", "X-Pomerium-Authorization": document.cookie.match(/(?:^|; )_pomerium=([^;]+)/)[1]}}`
		expect(t, "fetch with the header", b.fetch(w.url("api", "/b"), withHeader), "200 api:/b:2:")
		if api.preflights.Load() == 0 {
			t.Error("no preflight request has reached the API")
		}
		before := api.preflights.Load()
		expect(t, "fetch from a route without cors_allow_preflight", b.fetch(w.url("closed", "/b"), withHeader), "TypeError")
		if api.preflights.Load() != before {
			t.Error("a preflight request has reached the API through a route that does not allow it")
		}
	})
	t.Run("without a session there is no redirect", func(t *testing.T) {
		b.on(t)
		before := api.requests.Load()
		expect(t, "fetch with neither cookie nor header", b.fetch(w.url("api", "/c"), `{headers: {"X-Custom": "3"}}`), "TypeError")
		expect(t, "the same with cookies, of which the API's host has none", b.fetch(w.url("api", "/c"), `{credentials: "include"}`), "TypeError")
		if got := b.statuses(w.url("api", "/c")); !slices.Equal(got, []int64{401, 401}) {
			t.Errorf("the two were answered with %v, want 401 each", got)
		}
		b.open(w.url("public", "/"), w.url("public", "/"))
		if got := b.fetch("/api/c", `{}`); !strings.HasPrefix(got, "401 ") || strings.Contains(got, "redirected") {
			t.Errorf("fetch without a session: %q, want 401 without a redirect", got)
		}
		if api.requests.Load() != before {
			t.Error("a request without a session has reached the API")
		}
	})

	t.Run("a shared cookie domain, with credentials", func(t *testing.T) {
		w, api, b := start(t, "cookie_domain: demo.localhost")
		withCookies := `{credentials: "include", headers: {"X-Custom": "4"}}`
		expect(t, "fetch with the shared cookie", b.fetch(w.url("api", "/d"), withCookies), "200 api:/d:4:")
		expect(t, "fetch without it", b.fetch(w.url("api", "/d"), `{credentials: "omit"}`), "TypeError")
		expect(t, "fetch from a route without cors_allow_preflight", b.fetch(w.url("closed", "/d"), withCookies), "TypeError")
		if n := api.requests.Load(); n != 1 {
			t.Errorf("%d requests have reached the API, want 1", n)
		}
	})
}
