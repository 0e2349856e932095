package authn_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

// sessionsOf are the sessions of a user, "" for all.
func (w *world) sessionsOf(userID string) []*databroker.Session {
	w.t.Helper()
	sessions, err := w.store.Sessions(context.Background(), userID)
	if err != nil {
		w.t.Fatal(err)
	}
	return sessions
}

// provider is where a page of a sign-out sends the browser on to.
func (b *browser) provider(p page) string {
	b.w.t.Helper()
	if !strings.HasPrefix(p.next(), "/.pomerium/signed_out?") {
		b.w.t.Fatalf("leads to %q\n%s", p.next(), p.body)
	}
	return b.until("/logout", auth+p.next())
}

func (w *world) revokedAt(userID string) time.Time {
	w.t.Helper()
	u, err := w.store.User(context.Background(), userID)
	if err != nil {
		w.t.Fatal(err)
	}
	return u.RevokedAt
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
	p.want(t, http.StatusOK, "You are signed out")
	noSecrets(t, w, p.body)
	// By way of the provider, which gets its ID token back.
	there := mustURL(t, b.provider(p))
	if hint := there.Query().Get("id_token_hint"); hint == "" || there.Query().Get("post_logout_redirect_uri") != auth+"/.pomerium/signed_out" {
		t.Errorf("leads to %s", there)
	}
	p = b.get(there.String())
	p.want(t, http.StatusOK, "and at the identity provider", `content="0;url=`+other+`/bye"`)
	if got := w.idp.Count("logout"); got != 1 {
		t.Errorf("signed out %d times at the provider, want 1", got)
	}
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
	p = b.get(b.provider(p))
	p.want(t, http.StatusOK, "and at the identity provider")
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

func TestSignOutEverywhere(t *testing.T) {
	// At a route's host a script of the application could ask for it: there this
	// browser is signed out, and the page leads on.
	for at, left := range map[string]int{app: 1, auth: 0} {
		w := newWorld(t)
		phone, laptop := w.browser(), w.browser()
		phone.get(app+"/").want(t, http.StatusOK, welcome)
		laptop.get(app+"/").want(t, http.StatusOK, welcome)
		w.idp.Change(func(b *idptest.Behaviour) { b.Subject = "user-bob" })
		bob := w.browser()
		bob.get(app+"/").want(t, http.StatusOK, welcome)

		everywhere := url.Values{"everywhere": {"true"}}
		phone.get(at+"/.pomerium/sign_out").want(t, http.StatusOK, "Sign out everywhere")
		phone.post(at+"/.pomerium/sign_out", everywhere, "Sec-Fetch-Site", "cross-site").want(t, http.StatusForbidden)
		// An answer by GET asks, whatever it says.
		phone.get(at+"/.pomerium/sign_out?everywhere=true").want(t, http.StatusOK, "Sign out?")
		if n := len(w.sessionsOf("user-alice")); n != 2 {
			t.Fatalf("%s: %d sessions before the sign-out, want 2", at, n)
		}
		phone.post(at+"/.pomerium/sign_out", everywhere, "Origin", at).want(t, http.StatusOK, "You are signed out")
		if n := len(w.sessionsOf("user-alice")); n != left {
			t.Errorf("%s: %d sessions of alice are left, want %d", at, n, left)
		}
		if w.revokedAt("user-alice").IsZero() {
			t.Errorf("%s: the time was not recorded", at)
		}
		if n := len(w.sessionsOf("user-bob")); n != 1 {
			t.Errorf("%s: bob has %d sessions, want 1", at, n)
		}
	}
}

func TestSignOutRecordsTheTime(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	if at := w.revokedAt("user-alice"); !at.IsZero() {
		t.Fatalf("revoked at %s before anything was", at)
	}
	b.post(app+"/.pomerium/sign_out", nil, "Origin", app).want(t, http.StatusOK)
	if w.revokedAt("user-alice").IsZero() {
		t.Error("the time was not recorded")
	}
}

// A sign-out ends the sessions with all providers.
func TestSignOutOfSeveralProviders(t *testing.T) {
	for _, at := range []string{app, auth} {
		w, second := withChoice(t)
		b := w.browser()
		b.choose(app+"/", "First").want(t, http.StatusOK, welcome)
		w.idpID = w.cfg.IDPs[1].ID()
		b.get(app+"/").want(t, http.StatusOK, welcome)
		if n := len(w.sessionsOf("")); n != 2 {
			t.Fatalf("%d sessions, want 2", n)
		}
		p := b.post(at+"/.pomerium/sign_out", nil, "Origin", at)
		p.want(t, http.StatusOK, "You are signed out")
		if to := b.provider(p); !strings.HasPrefix(to, second.URL+"/logout?") {
			t.Errorf("from %s: leads to %s", at, to)
		}
		if n := len(w.sessionsOf("")); n != 0 {
			t.Errorf("from %s: %d sessions are left", at, n)
		}
	}
}

func TestSignOutWhileTheProviderIsDown(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 })
	w.restart()
	p := b.post(app+"/.pomerium/sign_out", url.Values{"pomerium_redirect_uri": {other + "/bye"}}, "Origin", app)
	p.want(t, http.StatusOK, "You are signed out", "sign out of your identity provider too", `content="0;url=`+other+`/bye"`)
	if n := len(w.sessionsOf("")); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

func TestSignOutWhereTheProviderHasNoPage(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.Discovery = map[string]any{"end_session_endpoint": nil} })
	b := w.browser()
	b.get(app + "/")
	p := b.post(app+"/.pomerium/sign_out", nil, "Origin", app)
	p.want(t, http.StatusOK, "You are signed out", "sign out of your identity provider too")
	if got := p.Request.URL.String(); got != auth+"/.pomerium/signed_out" {
		t.Errorf("ended at %s", got)
	}
}

// A hint that does not fit into a URL is left out.
func TestSignOutWithALargeIDToken(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.Claims["groups"] = idptest.Groups(2000) })
	for _, at := range []string{app, auth} {
		b := w.browser()
		b.get(app+"/").want(t, http.StatusOK, welcome)
		p := b.post(at+"/.pomerium/sign_out", nil, "Origin", at)
		p.want(t, http.StatusOK, "You are signed out")
		there := mustURL(t, b.provider(p))
		if there.Query().Has("id_token_hint") || len(p.Request.URL.String()) > 2<<10 {
			t.Errorf("from %s: the hint is in a URL", at)
		}
		b.get(there.String()).want(t, http.StatusOK, "and at the identity provider")
	}
}

func TestSignOutOfNobody(t *testing.T) {
	w := newWorld(t)
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "sa-1", UserID: "api"}); err != nil {
		t.Fatal(err)
	}
	token, err := w.keys.MintAccount(signin.AccountToken{AccountID: "sa-1", UserID: "api", IssuedAt: w.now()})
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{app, auth} {
		b := w.browser()
		b.post(at+"/.pomerium/sign_out", url.Values{"everywhere": {"true"}}, "Origin", at, "X-Pomerium-Authorization", token).want(t, http.StatusOK, "You are signed out")
		if _, err := w.store.ServiceAccount(context.Background(), "sa-1"); err != nil {
			t.Errorf("from %s: the account: %v", at, err)
		}
		if got := w.idp.Count("logout"); got != 0 {
			t.Errorf("from %s: a stranger was signed out at the provider", at)
		}
	}
}

// Where a sign-out leads that names nothing, and to which other hosts one may lead.
func TestSignOutTargets(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.SignOutRedirectURL = mustURL(t, "https://www.example.net/bye?x=1")
		c.SignOutRedirectDomains = []string{"www.example.net", "home.example.org"}
	})
	for _, tt := range []struct {
		named, want string
		status      int
	}{
		{"", "https://www.example.net/bye?x=1", 200},
		{"https://home.example.org/a", "https://home.example.org/a", 200},
		{"https://HOME.example.org:8443/", "https://home.example.org:8443/", 200},
		{"https://www.example.net/other", "https://www.example.net/other", 200},
		{app + "/z", app + "/z", 200},
		{auth + "/.pomerium/", auth + "/.pomerium/", 200},
		{"http://home.example.org/", "", 400},
		{"https://sub.home.example.org/", "", 400},
		{"https://home.example.org.evil.example/", "", 400},
		{"https://home.example.org@evil.example/", "", 400},
		{"https://evil.example/", "", 400},
	} {
		t.Run(tt.named, func(t *testing.T) {
			b := w.browser()
			b.get(app + "/")
			form := url.Values{}
			if tt.named != "" {
				form.Set("pomerium_redirect_uri", tt.named)
			}
			p := b.post(app+"/.pomerium/sign_out", form, "Origin", app)
			p.want(t, tt.status)
			if tt.status != 200 {
				return
			}
			if p = b.get(b.provider(p)); p.next() != tt.want {
				t.Errorf("leads to %q, want %q", p.next(), tt.want)
			}
			// Without the provider, too.
			if p = b.post(auth+"/.pomerium/sign_out", form, "Origin", auth); p.next() != tt.want {
				t.Errorf("without a session: leads to %q, want %q", p.next(), tt.want)
			}
		})
	}
}

// The state is ours alone: what else comes with a visit leads nowhere.
func TestSignedOutState(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	p := b.post(app+"/.pomerium/sign_out", url.Values{"pomerium_redirect_uri": {other + "/bye"}}, "Origin", app)
	state := mustURL(t, b.provider(p)).Query().Get("state")
	parting := p.Request.URL.Query().Get("pomerium_parting")
	if state == "" || parting == "" {
		t.Fatalf("no state in %s", p.next())
	}
	at := []byte("/.pomerium/signed_out")
	for name, v := range map[string]string{
		"none": "", "changed": damaged(state), "of another place": parting,
		"a form's":      w.keys.Seal(signin.PurposeForm, []byte(`{"t":"https://app.example.com","e":9999999999}`), at),
		"to a stranger": w.keys.Seal(signin.PurposeSignOut, []byte(`{"t":"https://evil.example","e":9999999999}`), at),
		"endless":       strings.Repeat("A", 30<<10),
	} {
		if got := b.get(auth + "/.pomerium/signed_out?state=" + v); got.StatusCode != 200 || got.next() != "" {
			t.Errorf("state %s: got status %d, leads to %q", name, got.StatusCode, got.next())
		}
	}
	// Nor does what was sealed for the way here lead to the provider.
	for _, sealed := range []string{state, parting, "x", w.keys.Seal(signin.PurposeSignOut, []byte(`{"p":"unknown","t":"https://evil.example","e":9999999999}`), []byte("pomerium_parting"))} {
		if got := b.get(auth + "/.pomerium/signed_out?pomerium_parting=" + sealed); got.next() != "" || got.Request.URL.Path != "/.pomerium/signed_out" {
			t.Errorf("parting %s: leads to %s %q", sealed, got.Request.URL, got.next())
		}
	}
	if got := b.get(auth + "/.pomerium/signed_out?state=" + state); got.next() != other+"/bye" {
		t.Errorf("leads to %q", got.next())
	}
	w.offset.Store(int64(2 * time.Hour))
	if got := b.get(auth + "/.pomerium/signed_out?state=" + state); got.next() != "" {
		t.Errorf("two hours later: leads to %q", got.next())
	}
}

// A link from somebody else's sign-out does not bring a person to the provider
// with the other's ID token.
func TestSignOutLinkOfAnotherHasNoHint(t *testing.T) {
	w := newWorld(t)
	mallory, alice := w.browser(), w.browser()
	mallory.get(app + "/")
	mallory.stop = func(*url.URL) bool { return true }
	link := mallory.post(app+"/.pomerium/sign_out", nil, "Origin", app).Header.Get("Location")
	p := alice.get(link)
	p.want(t, http.StatusOK, "You are signed out")
	if p.next() != "" || w.idp.Count("logout") != 0 {
		t.Errorf("leads to %q", p.next())
	}
}

func TestSignOutStoreFails(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	w.store.Break(errFault)
	for _, at := range []string{app, auth} {
		p := b.post(at+"/.pomerium/sign_out", url.Values{"everywhere": {"true"}}, "Origin", at)
		p.want(t, http.StatusServiceUnavailable)
		if c := p.Header["Set-Cookie"]; len(c) > 0 {
			t.Errorf("%s: cookies were touched: %v", at, c)
		}
	}
	w.store.Heal()
	b.get(app+"/").want(t, http.StatusOK, welcome)
}
