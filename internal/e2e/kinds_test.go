package e2e

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign/countersign/idp/idptest"
)

// hiddenField is one of the form with which a provider sends a browser back.
var hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`)

// TestKinds signs in with every kind of provider, chosen by people from one list,
// each with a parameter of the operator's.
func TestKinds(t *testing.T) {
	kinds := []string{"oidc", "google", "azure", "okta", "auth0", "cognito", "ping", "onelogin", "gitlab", "keycloak", "github", "apple"}
	settings, providers := []string{"idps:"}, map[string]*idptest.Provider{}
	for _, kind := range kinds {
		p := idptest.NewProvider(t)
		providers[kind] = p
		p.Change(func(b *idptest.Behaviour) {
			b.Claims["tid"], b.Claims["oid"] = "3aa4a235-b6e2-48d5-9195-7fcf05b459b0", "user-alice"
		})
		settings = append(settings, fmt.Sprintf("  - {name: %s, label: Account at %s, provider: %s, provider_url: %q, client_id: %s, client_secret: %s, request_params: {hint: of-%s}}",
			kind, kind, kind, p.URL, idptest.ClientID, idptest.ClientSecret, kind))
	}
	w := newWorld(t, options{NoProvider: true, Settings: settings, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    pass_identity_headers: true
    policy:
      - allow: {and: [email: alice@example.com, claim/groups: eng]}
`})
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			hints := make(chan string, 1)
			providers[kind].Change(func(b *idptest.Behaviour) {
				b.OnRequest = func(endpoint string, r *http.Request) {
					if endpoint == "authorize" {
						hints <- r.URL.Query().Get("hint")
					}
				}
			})
			c := w.client()
			page := w.follow(t, c, "", c.navigate(t, w.url("app", "/")))
			a := w.follow(t, c, "", c.navigate(t, linkCalled(t, page, "Account at "+kind)))
			if kind == "apple" {
				a = w.follow(t, c, "", w.postBack(t, a))
			}
			if sub := a.echo(t).claims(t)["sub"]; sub != kind+"/user-alice" {
				t.Errorf("the application sees %v", sub)
			}
			if hint := <-hints; hint != "of-"+kind {
				t.Errorf("the provider got the hint %q", hint)
			}
		})
	}
}

// postBack sends the form of OAuth 2.0 Form Post Response Mode, as a browser does
// from the provider's site: without our cookies.
func (w *world) postBack(t *testing.T, page *answer) *answer {
	t.Helper()
	action := regexp.MustCompile(`action="([^"]*)"`).FindStringSubmatch(page.Body)
	if action == nil {
		t.Fatalf("no form: %s %s", page.Status, page.Body)
	}
	form := url.Values{}
	for _, f := range hiddenField.FindAllStringSubmatch(page.Body, -1) {
		form.Set(f[1], html.UnescapeString(f[2]))
	}
	r := request(t, http.MethodPost, html.UnescapeString(action[1]),
		"Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html", "Origin", "null", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate")
	r.Body = io.NopCloser(strings.NewReader(form.Encode()))
	return w.client().send(t, r)
}
