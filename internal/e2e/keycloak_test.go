package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestKeycloak goes through a session's life at a provider as people run it.
func TestKeycloak(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, options{
		Domain: "kc.localhost", NoProvider: true,
		Settings: []string{
			"idp_provider: keycloak", "idp_provider_url: " + keycloakIssuer(port),
			"idp_client_id: countersign", "idp_client_secret: keycloak-client-secret-0123456789",
			"programmatic_allowed_audiences: [build-tool]",
		},
		Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
    pass_identity_headers: true
  - from: {{url "eng"}}
    to: {{to "eng"}}
    policy:
      - allow: {and: [{claim/groups: eng}]}
`})
	// What is in front of people does not wait for the provider to start.
	if got := w.client().navigate(t, w.url("app", "/")).StatusCode; got != http.StatusFound {
		t.Errorf("before Keycloak runs, the application is answered %d, want 302", got)
	}
	k := startKeycloak(t, w, port)
	k.backchannel(w.authenticateURL("/oauth2/backchannel_logout"), true)
	app, eng := w.url("app", "/"), w.url("eng", "/")

	t.Run("sign-in", func(t *testing.T) { keycloakSignsIn(t, w, app, eng) })
	t.Run("refresh", func(t *testing.T) { keycloakRefreshes(t, w, k, eng) })
	t.Run("sign-out here", func(t *testing.T) { keycloakSignsOut(t, w, app) })
	t.Run("sign-out there", func(t *testing.T) { keycloakEndsSessions(t, w, k, app) })
	t.Run("token exchange", func(t *testing.T) { keycloakExchanges(t, w, k, app) })
	t.Run("device", func(t *testing.T) { keycloakDevice(t, w, app) })
	t.Run("scripts", func(t *testing.T) { keycloakCalls(t, w, k, app) })
}

func keycloakSignsIn(t *testing.T, w *world, app, eng string) {
	c := w.client()
	a, asked := w.keycloakSignIn(t, c, "ana", app)
	a.echo(t)
	if !asked {
		t.Error("nobody asked ana for her password")
	}
	if a, asked := w.keycloakSignIn(t, c, "ana", eng); asked || a.StatusCode != http.StatusOK {
		t.Errorf("at the second host ana is answered %d, asked again %v", a.StatusCode, asked)
	}
	ben, _ := w.keycloakSignIn(t, w.client(), "ben", eng)
	if ben.StatusCode != http.StatusForbidden {
		t.Errorf("ben, who is not in eng, is answered %d", ben.StatusCode)
	}
}

// keycloakRefreshes has single-use refresh tokens and tokens so short that there is
// a refresh every ten seconds.
func keycloakRefreshes(t *testing.T, w *world, k *keycloak, eng string) {
	c := w.client()
	a, _ := w.keycloakSignIn(t, c, "ana", eng)
	a.echo(t)
	membership := "/users/" + k.user("ana") + "/groups/" + k.group("eng")
	k.admin(http.MethodDelete, membership, nil, nil)
	eventually(t, 30*time.Second, "ana has left eng", func() bool { return c.status(t, eng) == http.StatusForbidden })
	// The token of the first refresh was rotated: only a second one shows that.
	k.admin(http.MethodPut, membership, map[string]any{}, nil)
	eventually(t, 30*time.Second, "ana is in eng again", func() bool { return c.status(t, eng) == http.StatusOK })
}

func keycloakSignsOut(t *testing.T, w *world, app string) {
	c := w.client()
	a, _ := w.keycloakSignIn(t, c, "ana", app)
	a.echo(t)
	a = c.submit(t, w.url("app", "/.pomerium/sign_out"), url.Values{})
	a = w.follow(t, c, "ana", a)
	if a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Request.URL.String(), w.authenticateURL("/.pomerium/signed_out")) {
		t.Errorf("the sign-out ends at %s with %d: %.600s", a.Request.URL, a.StatusCode, a.Body)
	}
	if a, asked := w.keycloakSignIn(t, c, "ana", app); !asked || a.StatusCode != http.StatusOK {
		t.Errorf("after the sign-out, signing in ends with %d; Keycloak asked: %v, want true", a.StatusCode, asked)
	}
}

// keycloakEndsSessions: an administrator ends one of ana's sessions, which Keycloak
// tells by sid, and then all of them, which it tells by sub.
func keycloakEndsSessions(t *testing.T, w *world, k *keycloak, app string) {
	phone, laptop, ben := w.client(), w.client(), w.client()
	before := k.sessions("ana")
	for _, c := range []*agent{phone, laptop} {
		a, _ := w.keycloakSignIn(t, c, "ana", app)
		a.echo(t)
		if c == phone {
			k.admin(http.MethodDelete, "/sessions/"+k.sessions("ana", before...)[0], nil, nil)
			eventually(t, time.Second, "ana's phone is signed out", func() bool { return phone.status(t, app) == http.StatusUnauthorized })
		}
	}
	a, _ := w.keycloakSignIn(t, ben, "ben", app)
	a.echo(t)
	if got := laptop.status(t, app); got != http.StatusOK {
		t.Errorf("ana's laptop is answered %d", got)
	}
	k.backchannel(w.authenticateURL("/oauth2/backchannel_logout"), false)
	k.admin(http.MethodPost, "/users/"+k.user("ana")+"/logout", nil, nil)
	eventually(t, time.Second, "ana is signed out", func() bool { return laptop.status(t, app) == http.StatusUnauthorized })
	if got := ben.status(t, app); got != http.StatusOK {
		t.Errorf("ben is answered %d", got)
	}
}

func keycloakExchanges(t *testing.T, w *world, k *keycloak, app string) {
	answer := k.post("/realms/"+keycloakRealm+"/protocol/openid-connect/token", url.Values{
		"client_id": {"build-tool"}, "grant_type": {"password"}, "scope": {"openid email profile"},
		"username": {"ben"}, "password": {"ben-has-a-long-password"},
	})
	raw, _ := answer["id_token"].(string)
	token := w.exchange(t, raw)
	for _, form := range []string{"Bearer " + token, "Bearer Pomerium-" + token} {
		got := w.client().fetch(t, app, "Authorization", form).echo(t)
		if user := got.claims(t)["email"]; user != "ben@companydomain.com" {
			t.Errorf("with a token the upstream sees %v", user)
		}
	}
	// Once he is signed out the token ends, and the ID token buys no other.
	w.must(t, "session", "revoke", "--user", k.user("ben"))
	eventually(t, time.Second, "the token is refused", func() bool {
		return w.client().fetch(t, app, "Authorization", "Bearer "+token).StatusCode == http.StatusUnauthorized
	})
	if a := w.postForm(t, "/api/v1/token", url.Values{"id_token": {raw}}); a.StatusCode != http.StatusBadRequest {
		t.Errorf("the ID token of a revoked user is answered %d: %s", a.StatusCode, a.Body)
	}
	// What is issued in the very second of a revocation is from before it.
	second := time.Now().Unix()
	eventually(t, 2*time.Second, "the next second has begun", func() bool { return time.Now().Unix() > second })
}

func keycloakDevice(t *testing.T, w *world, app string) {
	c := w.client()
	granted := w.deviceFlow(t, func(verification string) {
		a := w.agree(t, c, verification, func(a *answer) *answer {
			if action := formAction(a.Body, "kc-form-login"); action != "" {
				return c.submit(t, action, url.Values{"username": {"ben"}, "password": {"ben-has-a-long-password"}})
			}
			return nil
		})
		if a.StatusCode != http.StatusOK {
			t.Errorf("the page of codes ends with %d: %.600s", a.StatusCode, a.Body)
		}
	})
	token, _ := granted["access_token"].(string)
	if got := w.client().fetch(t, app, "Authorization", "Bearer "+token).echo(t).claims(t)["email"]; got != "ben@companydomain.com" {
		t.Errorf("with the terminal's token the upstream sees %v", got)
	}
}
