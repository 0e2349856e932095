package e2e

import (
	"net/url"
	"testing"

	"github.com/countersign/countersign/idp/idptest"
)

// testFormPost: Apple sends its answer as a form, from its own site. A browser
// withholds the cookies of a sign-in from that, and yet the sign-in succeeds, with
// the strictest session cookie, too.
func testFormPost(t *testing.T, c *chromium) {
	for _, setting := range []string{"cookie_same_site: lax", "cookie_same_site: strict"} {
		t.Run(setting, func(t *testing.T) {
			provider := idptest.NewProvider(t)
			issuer, err := url.Parse(provider.URL)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, options{
				NoProvider: true, AuthenticateHost: "authenticate.other.localhost", Routes: pageRoutes, Upstreams: pages(),
				Settings: []string{
					setting, "idp_provider: apple", "idp_provider_url: http://" + issuer.Host, "idp_client_id: " + idptest.ClientID, "idp_client_secret: " + idptest.ClientSecret,
				},
			})
			provider.Change(func(b *idptest.Behaviour) {
				b.Claims = map[string]any{"email": "alice@companydomain.com", "email_verified": true}
			})
			b, target := c.profile(t, w), w.url("app", "/of/alice?x=1")
			if v := b.open(target, target); v.status != 200 || v.url != target {
				t.Fatalf("the sign-in ends at %s with status %d", v.url, v.status)
			}
			b.has("page /of/alice")
			if got := b.here(); got.url != target {
				t.Errorf("the browser is at %s", got.url)
			}
		})
	}
}
