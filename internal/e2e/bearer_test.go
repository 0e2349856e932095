package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/idp/idptest"
)

// bearerRoutes take tokens of others in every bearer_token_format, and in none.
const bearerRoutes = `
  - from: {{url "plain"}}
    to: {{to "plain"}}
    allow_any_authenticated_user: true
  - from: {{url "api"}}
    to: {{to "api"}}
    bearer_token_format: idp_access_token
    idp_access_token_allowed_audiences: ["https://api.example.com"]
    policy:
      - allow: {and: [domain: example.com]}
  - from: {{url "anyapi"}}
    to: {{to "api"}}
    bearer_token_format: idp_access_token
    policy:
      - allow: {and: [claim/groups: eng]}
  - from: {{url "tools"}}
    to: {{to "tools"}}
    bearer_token_format: idp_identity_token
    policy:
      - allow: {and: [domain: example.com]}
  - from: {{url "deploy"}}
    to: {{to "deploy"}}
    bearer_token_format: jwt
    identity_providers: [ci]
    policy:
      - allow: {and: [user: ci/release-pipeline]}
`

// TestBearerTokens takes tokens of others in each bearer_token_format, through Envoy.
func TestBearerTokens(t *testing.T) {
	provider, builds := idptest.NewProvider(t), idptest.NewProvider(t)
	w := newWorld(t, options{
		NoProvider: true,
		Settings: []string{
			"idp_provider_url: " + provider.URL, "idp_client_id: " + idptest.ClientID, "idp_client_secret: " + idptest.ClientSecret,
			"pass_identity_headers: true",
			`identity_providers: {ci: {issuer: "` + builds.URL + `", audiences: ["https://deploy.example.com"]}}`,
		},
		Routes: bearerRoutes,
	})
	tokens := map[string]string{
		"access":        provider.AccessToken("user-alice", "https://api.example.com"),
		"other access":  provider.AccessToken("user-alice", "https://elsewhere.example.com"),
		"opaque":        provider.OpaqueToken("user-alice"),
		"unknown":       "no-token-of-anybody",
		"identity":      provider.IDToken("user-alice", idptest.ClientID),
		"other's":       provider.IDToken("user-alice", "another-client"),
		"build":         builds.IDToken("release-pipeline", "https://deploy.example.com"),
		"other build":   builds.IDToken("release-pipeline", "https://elsewhere.example.com"),
		"pull request":  builds.IDToken("pull-request", "https://deploy.example.com"),
		"from nobody":   provider.IDToken("release-pipeline", "https://deploy.example.com"),
		"expired build": builds.IDToken("release-pipeline", "https://deploy.example.com", func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
	}
	// What each route answers to each token; 403 to what is not there.
	good := map[string]map[string]string{
		"api":    {"access": "user-alice"},
		"anyapi": {"access": "user-alice", "other access": "user-alice", "opaque": "user-alice"},
		"tools":  {"identity": "user-alice"},
		"deploy": {"build": "ci/release-pipeline"},
	}
	for route, takes := range good {
		for name, token := range tokens {
			a := w.client().fetch(t, w.url(route, "/"), "Authorization", "Bearer "+token)
			user, ok := takes[name]
			switch {
			case !ok && a.StatusCode != http.StatusForbidden:
				t.Errorf("%s: token %q is answered %s, want 403", route, name, a.Status)
			case ok && a.StatusCode != http.StatusOK:
				t.Errorf("%s: token %q is answered %s: %.400s", route, name, a.Status, a.Body)
			case ok:
				got := a.echo(t)
				if sub := got.claims(t)["sub"]; sub != user {
					t.Errorf("%s: token %q is of %v, want %s", route, name, sub, user)
				}
			}
		}
	}
	// Nor is any of them worth anything where tokens of others do not count.
	for name, token := range tokens {
		if a := w.client().fetch(t, w.url("plain", "/"), "Authorization", "Bearer "+token); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("plain: token %q is answered %s, want 401", name, a.Status)
		}
	}

	t.Run("beside a session", func(t *testing.T) { bearerBesideSession(t, w, tokens["build"]) })
	t.Run("refusal", func(t *testing.T) { bearerRefusal(t, w, tokens["other build"]) })
	t.Run("without a token", func(t *testing.T) {
		if a := w.client().navigate(t, w.url("deploy", "/")); a.StatusCode != http.StatusFound {
			t.Errorf("a browser is answered %s, want 302", a.Status)
		}
	})
	t.Run("revocation", func(t *testing.T) {
		api, header := w.url("api", "/"), "Bearer "+tokens["access"]
		w.must(t, "session", "revoke", "--user", "user-alice")
		eventually(t, time.Second, "the access token is refused", func() bool {
			return w.client().fetch(t, api, "Authorization", header).StatusCode == http.StatusForbidden
		})
	})
}

// bearerBesideSession: whose request would it be?
func bearerBesideSession(t *testing.T, w *world, build string) {
	deploy := w.url("deploy", "/")
	c := w.client()
	if a := w.follow(t, c, "", c.navigate(t, deploy)); a.StatusCode != http.StatusForbidden {
		t.Fatalf("alice, who is no pipeline, is answered %s", a.Status)
	}
	if a := c.fetch(t, deploy, "Authorization", "Bearer "+build); a.StatusCode != http.StatusBadRequest {
		t.Errorf("a session and a token are answered %s, want 400: %.300s", a.Status, a.Body)
	}
}

// bearerRefusal says what is wrong with a token, and sends nobody to sign in.
func bearerRefusal(t *testing.T, w *world, token string) {
	a := w.client().fetch(t, w.url("deploy", "/"), "Authorization", "Bearer "+token, "Accept", "application/json")
	var said struct {
		Reasons []string
	}
	if err := json.Unmarshal([]byte(a.Body), &said); err != nil || len(said.Reasons) != 1 || said.Reasons[0] != "invalid-bearer-token" || !strings.Contains(a.Body, "aud") {
		t.Errorf("%s, %v: %s", a.Status, err, a.Body)
	}
	if a.Header.Get("Location") != "" || strings.Contains(a.Body, token) {
		t.Error("it redirects, or repeats the token")
	}
}
