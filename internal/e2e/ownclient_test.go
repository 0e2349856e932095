package e2e

import (
	"net/http"
	"testing"

	"github.com/countersign/countersign/idp/idptest"
)

// TestRouteWithItsOwnClient: a route that brings its own client of the provider has
// sessions of its own.
func TestRouteWithItsOwnClient(t *testing.T) {
	provider := idptest.NewProvider(t)
	w := newWorld(t, options{
		NoProvider: true,
		Settings:   []string{"idp_provider_url: " + provider.URL, "idp_client_id: " + idptest.PublicClientID, "idp_client_secret: x"},
		Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
  - from: {{url "own"}}
    to: {{to "own"}}
    idp_client_id: ` + idptest.ClientID + `
    idp_client_secret: ` + idptest.ClientSecret + `
    allow_any_authenticated_user: true
`})
	own, app := w.url("own", "/"), w.url("app", "/")
	c := w.client()
	w.follow(t, c, "", c.navigate(t, own)).echo(t)
	stolen := c.cookie(t, own, "_pomerium")
	if got := c.status(t, app); got != http.StatusUnauthorized {
		t.Errorf("app: %d", got)
	}
	if got := w.client().fetch(t, app, "X-Pomerium-Authorization", stolen).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("app with own's token: %d", got)
	}
	// The provider refuses the client of the other routes, so nobody gets in there.
	if a := w.follow(t, c, "", c.navigate(t, app)); a.StatusCode != http.StatusBadGateway {
		t.Errorf("app: the sign-in ends with %s", a.Status)
	}
	if got := c.status(t, own); got != http.StatusOK {
		t.Errorf("own: %d", got)
	}
}
