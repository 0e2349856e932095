package e2e

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/countersign/countersign/idp/idptest"
)

// testFrontchannel signs out by a frame in the provider's page (OpenID Connect
// Front-Channel Logout 1.0), which the browser shows without our cookies.
func testFrontchannel(t *testing.T, c *chromium) {
	provider := idptest.NewProvider(t)
	provider.Change(func(b *idptest.Behaviour) { b.SessionID = "sid-of-the-desk" })
	w := newWorld(t, options{
		NoProvider: true,
		Settings:   []string{"idp_provider_url: " + provider.URL, "idp_client_id: " + idptest.ClientID, "idp_client_secret: " + idptest.ClientSecret},
		Upstreams:  pages(),
		Routes: `
  - from: {{url "app"}}
    to: {{to "pages"}}
    allow_any_authenticated_user: true
`})
	framed := w.authenticateURL("/oauth2/frontchannel_logout?") + url.Values{"iss": {provider.URL}, "sid": {"sid-of-the-desk"}}.Encode()
	next := provider.Config.Handler
	provider.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/signed-out-everywhere" {
			next.ServeHTTP(rw, r)
			return
		}
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(rw, `<!doctype html><title>bye</title><link rel="icon" href="data:,"><h1>Signed out everywhere</h1><iframe src="%s"></iframe>`, html.EscapeString(framed))
	})
	b := c.profile(t, w)
	target := w.url("app", "/x")
	if v := b.open(target, target); v.status != 200 {
		t.Fatalf("sign-in ends with status %d", v.status)
	}
	if n := len(w.list(t, "session", "list")); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	b.open(provider.URL+"/signed-out-everywhere", provider.URL)
	eventually(t, 10*time.Second, "the session has ended", func() bool { return len(w.list(t, "session", "list")) == 0 })
	logins := provider.Count("authorize")
	b.open(target, target)
	if provider.Count("authorize") != logins+1 {
		t.Error("the browser is still signed in")
	}
}
