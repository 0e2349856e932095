package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
)

// TestSessionAges: where a session has grown too old, or was not used for too long,
// the provider is told to ask its person again, and the application opens with what
// comes of that. Routes without such a limit take the old session.
func TestSessionAges(t *testing.T) {
	provider := idptest.NewProvider(t)
	w := newWorld(t, options{
		NoProvider: true,
		Settings:   []string{"idp_provider_url: " + provider.URL, "idp_client_id: " + idptest.ClientID, "idp_client_secret: " + idptest.ClientSecret},
		Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
  - from: {{url "young"}}
    to: {{to "young"}}
    session_lifetime: 3s
    allow_any_authenticated_user: true
  - from: {{url "busy"}}
    to: {{to "busy"}}
    session_idle_timeout: 1m
    allow_any_authenticated_user: true
`})
	app, young, busy := w.url("app", "/"), w.url("young", "/x?y=z"), w.url("busy", "/x?y=z")
	c := w.client()
	for _, target := range []string{app, young, busy} {
		w.follow(t, c, "", c.navigate(t, target)).echo(t)
	}
	// again signs in where it was refused for the reason, which asks the person.
	again := func(target, reason string) {
		t.Helper()
		a := c.fetch(t, target, "Accept", "application/json")
		if a.StatusCode != http.StatusUnauthorized || !strings.Contains(a.Body, `"reasons":["`+reason+`"]`) {
			t.Errorf("a program is answered %s: %s", a.Status, a.Body)
		}
		logins := provider.Count("login")
		if got := w.follow(t, c, "", c.navigate(t, target)).echo(t); got.Target != "/x?y=z" {
			t.Errorf("signing in again ends at %s", got.Target)
		}
		if got := provider.Count("login") - logins; got != 1 {
			t.Errorf("the provider asked %d times, want once", got)
		}
		c.fetch(t, target).echo(t)
	}
	old := func() bool { return c.status(t, young) == http.StatusUnauthorized }
	eventually(t, 10*time.Second, "the session is too old", old)
	again(young, "session-too-old")

	provider.Change(func(b *idptest.Behaviour) { b.NeverAsksAgain = true })
	eventually(t, 10*time.Second, "the session is too old", old)
	a := w.follow(t, c, "", c.navigate(t, young))
	if a.StatusCode != http.StatusForbidden || !strings.Contains(a.Body, "did not ask you again") {
		t.Errorf("at a provider that asks nobody again it ends with %s: %.600s", a.Status, a.Body)
	}
	provider.Change(func(b *idptest.Behaviour) { b.NeverAsksAgain = false })

	// The new session has taken the place of the old one, also at the other hosts.
	for _, target := range []string{app, busy} {
		w.follow(t, c, "", c.navigate(t, target)).echo(t)
	}
	w.stop(t)
	w.disuseSessions(t, 2*time.Minute)
	w.restart(t)
	again(busy, "session-idle")

}

// disuseSessions has every session be unused for a time, while nothing runs.
func (w *world) disuseSessions(t *testing.T, since time.Duration) {
	t.Helper()
	store, err := databroker.OpenFile(t.Context(), databroker.FileConfig{Dir: w.state, SealKey: w.sharedSecret(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	sessions, err := store.Sessions(t.Context(), "")
	if err != nil || len(sessions) == 0 {
		t.Fatalf("%d sessions, %v", len(sessions), err)
	}
	for _, s := range sessions {
		if err := store.DeleteSession(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		s.Version, s.CreatedAt, s.AccessedAt = 0, s.CreatedAt.Add(-since), time.Now().Add(-since)
		if err := store.PutSession(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}
