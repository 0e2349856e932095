package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign/idp/idptest"
)

// TestLargeIdentity: somebody with 1,000 groups, an ID token of 40 KB and long names
// gets in with a small cookie, is told of whole to the application, sees their own
// pages and signs out.
func TestLargeIdentity(t *testing.T) {
	provider := idptest.NewProvider(t)
	provider.Change(func(b *idptest.Behaviour) {
		b.Subject = strings.Repeat("s", 220)
		b.Claims = map[string]any{"email": "alice@example.com", "groups": idptest.Groups(1000), "x": strings.Repeat("x", 20<<10)}
	})
	domain := strings.Repeat("d", 40) + "." + strings.Repeat("e", 60) + "." + strings.Repeat("f", 60) + ".localhost"
	w := newWorld(t, options{
		Domain: domain, NoProvider: true,
		Settings: []string{
			"idps: [{name: " + strings.Repeat("n", 30) + ", provider_url: \"" + provider.URL + "\", client_id: " + idptest.ClientID + ", client_secret: " + idptest.ClientSecret + "}]",
			"cookie_domain: " + domain, "cookie_name: " + strings.Repeat("c", 64), "jwt_claims_headers: {X-Groups: groups}",
		},
		Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    pass_identity_headers: true
    policy:
      - allow: {and: [{claim/groups: group-0999}]}
`})
	app := w.url("app", "/")
	c := w.client()
	got := w.follow(t, c, "", c.navigate(t, app)).echo(t)
	if groups, _ := got.claims(t)["groups"].([]any); len(groups) != 1000 || strings.Count(got.value("X-Groups"), ",") != 999 {
		t.Errorf("the application is told of %d groups", len(groups))
	}
	name := strings.Repeat("c", 64)
	if cookie := name + "=" + c.cookie(t, app, name); len(cookie) >= 400 || strings.HasSuffix(cookie, "=") {
		t.Errorf("the session cookie has %d bytes", len(cookie))
	}
	for _, path := range []string{"/.pomerium/", "/.pomerium/user", "/.pomerium/routes", "/.pomerium/api/v1/routes"} {
		if a := c.fetch(t, w.url("app", path)); a.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, a.Status)
		}
	}
	a := w.follow(t, c, "", c.submit(t, w.url("app", "/.pomerium/sign_out"), url.Values{}))
	if a.StatusCode != http.StatusOK || provider.Count("logout") != 1 || c.status(t, app) != http.StatusUnauthorized {
		t.Errorf("the sign-out ends at %s with %s", a.Request.URL.Path, a.Status)
	}
}
