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
)

const (
	backchannel  = auth + "/oauth2/backchannel_logout"
	frontchannel = auth + "/oauth2/frontchannel_logout"
)

// tells sends a logout token as the provider does: without cookies.
func (w *world) tells(token string) page {
	w.t.Helper()
	return w.browser().post(backchannel, url.Values{"logout_token": {token}})
}

// signedIn has a browser with a session that the provider knows by sid.
func (w *world) signedIn(sid string) *browser {
	w.t.Helper()
	w.idp.Change(func(b *idptest.Behaviour) { b.SessionID = sid })
	b := w.browser()
	b.get(app+"/").want(w.t, http.StatusOK, welcome)
	return b
}

// in reports whether a browser still has a session that counts.
func (w *world) in(b *browser) bool {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, app+"/", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range b.Jar.Cookies(r.URL) {
		r.AddCookie(c)
	}
	r.Host = r.URL.Host
	return w.session(r) != nil
}

func TestBackchannelLogout(t *testing.T) {
	tests := []struct {
		name     string
		sub, sid string
		phone    bool
		laptop   bool
	}{
		{"by session", "", "phone", false, true},
		{"by session and person", "user-alice", "phone", false, true},
		{"by person", "user-alice", "", false, false},
		{"by a session of somebody else", "user-bob", "phone", true, true},
		{"by an unknown session", "", "fridge", true, true},
		{"by an unknown session of the person", "user-alice", "fridge", true, true},
		{"by an unknown person", "user-carol", "", true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			phone, laptop := w.signedIn("phone"), w.signedIn("laptop")
			before, err := w.store.Sequence(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p := w.tells(w.idp.LogoutToken(tt.sub, tt.sid))
			p.want(t, http.StatusOK)
			if p.Header.Get("Cache-Control") != "no-store" || p.body != "" || len(p.Header["Set-Cookie"]) > 0 {
				t.Errorf("got %v %q", p.Header, p.body)
			}
			if w.in(phone) != tt.phone || w.in(laptop) != tt.laptop {
				t.Errorf("signed in: phone %t, laptop %t, want %t, %t", w.in(phone), w.in(laptop), tt.phone, tt.laptop)
			}
			alice := tt.sub == "user-alice" || !tt.phone
			if got := !w.revokedAt("user-alice").IsZero(); got != alice {
				t.Errorf("the time was recorded: %t, want %t", got, alice)
			}
			after, err := w.store.Sequence(t.Context())
			if err != nil || (after > before) != alice {
				t.Errorf("the feed went from %d to %d, %v", before, after, err)
			}
		})
	}
}

// Where the provider's ID tokens name no session, a logout that does means theirs.
func TestBackchannelLogoutOfSessionsWithoutSID(t *testing.T) {
	w := newWorld(t)
	nameless, laptop := w.signedIn(""), w.signedIn("laptop")
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusOK)
	if w.in(nameless) || !w.in(laptop) {
		t.Errorf("signed in: without a sid %t, laptop %t", w.in(nameless), w.in(laptop))
	}
}

// A sign-out here tells the provider, which tells us: that ends nothing else.
func TestBackchannelLogoutAfterASignOut(t *testing.T) {
	w := newWorld(t)
	phone, laptop := w.signedIn("phone"), w.signedIn("laptop")
	phone.post(app+"/.pomerium/sign_out", nil, "Origin", app).want(t, http.StatusOK)
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusOK)
	if !w.in(laptop) {
		t.Error("the other browser was signed out")
	}
}

func TestBackchannelLogoutRefuses(t *testing.T) {
	w := newWorld(t)
	b := w.signedIn("phone")
	token := func(change func(claims map[string]any)) string {
		return w.idp.LogoutToken("user-alice", "phone", change)
	}
	idToken := w.sessionsOf("user-alice")[0].Tokens.IDToken
	good := token(func(map[string]any) {})
	tests := map[string]string{
		"nothing":                    "",
		"no token":                   "x",
		"three dots":                 "...",
		"very many dots":             strings.Repeat(".", 60<<10),
		"an ID token":                idToken,
		"another issuer":             token(func(c map[string]any) { c["iss"] = "https://evil.example" }),
		"another audience":           token(func(c map[string]any) { c["aud"] = "somebody-else" }),
		"audience missing":           token(func(c map[string]any) { delete(c, "aud") }),
		"expired":                    token(func(c map[string]any) { c["exp"] = w.now().Add(-2 * time.Minute).Unix() }),
		"eleven minutes old":         token(func(c map[string]any) { c["iat"] = w.now().Add(-11 * time.Minute).Unix() }),
		"from the future":            token(func(c map[string]any) { c["iat"] = w.now().Add(2 * time.Minute).Unix() }),
		"no iat":                     token(func(c map[string]any) { delete(c, "iat") }),
		"no jti":                     token(func(c map[string]any) { delete(c, "jti") }),
		"no event":                   token(func(c map[string]any) { delete(c, "events") }),
		"another event":              token(func(c map[string]any) { c["events"] = map[string]any{"https://example.com/x": map[string]any{}} }),
		"a nonce":                    token(func(c map[string]any) { c["nonce"] = "n" }),
		"neither person nor session": token(func(c map[string]any) { delete(c, "sub"); delete(c, "sid") }),
		"changed":                    damaged(good),
		"signed with the secret": func() string {
			w.idp.Change(func(b *idptest.Behaviour) { b.Algorithm = "HS256" })
			defer w.idp.Change(func(b *idptest.Behaviour) { b.Algorithm = "" })
			return w.idp.LogoutToken("user-alice", "phone")
		}(),
		"not signed": func() string {
			w.idp.Change(func(b *idptest.Behaviour) { b.Algorithm = "none" })
			defer w.idp.Change(func(b *idptest.Behaviour) { b.Algorithm = "" })
			return w.idp.LogoutToken("user-alice", "phone")
		}(),
	}
	for name, token := range tests {
		p := w.tells(token)
		p.want(t, http.StatusBadRequest, `"error":"invalid_request"`)
		if p.Header.Get("Cache-Control") != "no-store" || p.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: got headers %v", name, p.Header)
		}
		if !w.in(b) {
			t.Fatalf("%s signed alice out", name)
		}
	}
	w.browser().post(backchannel, url.Values{"logout_token": {good, good}}).want(t, http.StatusBadRequest)
	w.browser().post(backchannel+"?logout_token="+good, nil).want(t, http.StatusBadRequest)
	w.browser().get(backchannel+"?logout_token="+good).want(t, http.StatusMethodNotAllowed)
	w.browser().post(backchannel, url.Values{"logout_token": {strings.Repeat("x", 70<<10)}}).want(t, http.StatusBadRequest)
	if !w.in(b) {
		t.Fatal("a refused request signed alice out")
	}
	w.tells(good).want(t, http.StatusOK)
	if w.in(b) {
		t.Error("the good one signed nobody out")
	}
	noSecrets(t, w, "")
}

// A token is good for one use: who has seen it cannot sign the person out again.
func TestBackchannelLogoutReplayed(t *testing.T) {
	w := newWorld(t)
	w.signedIn("phone")
	token := w.idp.LogoutToken("user-alice", "", func(c map[string]any) { c["exp"] = w.now().Add(time.Hour).Unix() })
	w.tells(token).want(t, http.StatusOK)
	again := w.signedIn("phone-2")
	for _, later := range []time.Duration{0, 9 * time.Minute, 10*time.Minute + 30*time.Second, 12 * time.Minute, 30 * time.Minute} {
		w.offset.Store(int64(later))
		w.tells(token).want(t, http.StatusBadRequest, "invalid_request")
		if !w.in(again) {
			t.Fatalf("a replay after %s signed alice out", later)
		}
	}
}

// After a failure of ours the provider tries again, and must succeed.
func TestBackchannelLogoutWhileTheStoreIsDown(t *testing.T) {
	w := newWorld(t)
	b := w.signedIn("phone")
	token := w.idp.LogoutToken("user-alice", "phone")
	w.store.Break(errFault)
	p := w.tells(token)
	p.want(t, http.StatusServiceUnavailable, "databroker-unavailable")
	if p.Header.Get("Retry-After") == "" || p.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got headers %v", p.Header)
	}
	w.browser().get(frontchannel+"?sid=phone&iss="+url.QueryEscape(w.idp.URL)).want(t, http.StatusServiceUnavailable)
	w.store.Heal()
	// It fails once the session has ended, before the token is marked.
	w.store.Store = &noTickets{Store: w.store.Store, left: 1}
	w.tells(token).want(t, http.StatusServiceUnavailable)
	w.tells(token).want(t, http.StatusOK)
	if w.in(b) {
		t.Error("alice is still signed in")
	}
	w.tells(token).want(t, http.StatusBadRequest)
}

// Who cannot know whether a token was used does not use it.
func TestBackchannelLogoutWithoutMarks(t *testing.T) {
	w := newWorld(t)
	b := w.signedIn("phone")
	w.store.Store = unreadableTickets{w.store.Store}
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusServiceUnavailable, "databroker-unavailable")
	if !w.in(b) {
		t.Error("alice was signed out")
	}
}

type unreadableTickets struct{ databroker.Store }

func (unreadableTickets) Ticket(context.Context, string) (*databroker.Ticket, error) {
	return nil, errFault
}

// noTickets is a store that fails to keep the first tickets.
type noTickets struct {
	databroker.Store
	left int
}

func (s *noTickets) PutTicket(ctx context.Context, t *databroker.Ticket) error {
	if s.left--; s.left >= 0 {
		return errFault
	}
	return s.Store.PutTicket(ctx, t)
}

// A store with no room for another mark does not keep people signed in.
func TestBackchannelLogoutWhenTicketsAreFull(t *testing.T) {
	w := newWorld(t)
	b := w.signedIn("phone")
	w.store.Store = fullOfTickets{w.store.Store}
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusOK)
	if w.in(b) {
		t.Error("alice is still signed in")
	}
}

type fullOfTickets struct{ databroker.Store }

func (fullOfTickets) PutTicket(context.Context, *databroker.Ticket) error { return databroker.ErrFull }

func TestBackchannelLogoutWhileTheKeysCannotBeHad(t *testing.T) {
	w := newWorld(t)
	b := w.signedIn("phone")
	w.idp.Change(func(b *idptest.Behaviour) { b.KeysStatus, b.DiscoveryStatus = 500, 500 })
	w.restart()
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusServiceUnavailable, "provider-unavailable")
	if !w.in(b) {
		t.Error("a token that nobody could verify signed alice out")
	}
	w.idp.Change(func(b *idptest.Behaviour) { b.KeysStatus, b.DiscoveryStatus = 0, 0 })
	w.offset.Store(int64(time.Minute))
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusOK)
	if w.in(b) {
		t.Error("alice is still signed in")
	}
}

// One client at one provider may be configured under two names: both are meant.
func TestBackchannelLogoutOfAClientConfiguredTwice(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		again := *c.IDPs[0]
		again.Name = "again"
		c.IDPs = append(c.IDPs, &again)
	})
	w.idpID = w.cfg.IDPs[0].ID()
	first := w.signedIn("phone")
	w.idpID = w.cfg.IDPs[1].ID()
	second := w.signedIn("phone")
	w.tells(w.idp.LogoutToken("user-alice", "phone")).want(t, http.StatusOK)
	if w.in(second) || len(w.sessionsOf("")) != 0 {
		t.Errorf("%d sessions are left", len(w.sessionsOf("")))
	}
	w.idpID = w.cfg.IDPs[0].ID()
	if w.in(first) {
		t.Error("the other one's session is left")
	}
}

func TestFrontchannelLogout(t *testing.T) {
	w := newWorld(t)
	phone, laptop := w.signedIn("phone"), w.signedIn("laptop")
	query := func(pairs ...string) string {
		q := url.Values{}
		for i := 0; i+1 < len(pairs); i += 2 {
			q.Add(pairs[i], pairs[i+1])
		}
		return frontchannel + "?" + q.Encode()
	}
	// The provider's page frames this one: no cookies come along, and none of the
	// browser's own would matter.
	for name, to := range map[string]string{
		"nothing":            frontchannel,
		"no session":         query("iss", w.idp.URL),
		"an empty session":   query("iss", w.idp.URL, "sid", ""),
		"no issuer":          query("sid", "phone"),
		"an empty issuer":    query("iss", "", "sid", "phone"),
		"another issuer":     query("iss", "https://evil.example", "sid", "phone"),
		"another path":       query("iss", w.idp.URL+"/x", "sid", "phone"),
		"a user in the URL":  query("iss", strings.Replace(w.idp.URL, "://", "://x@", 1), "sid", "phone"),
		"two sessions":       query("iss", w.idp.URL, "sid", "phone", "sid", "laptop"),
		"two issuers":        query("iss", w.idp.URL, "iss", "https://evil.example", "sid", "phone"),
		"an endless session": query("iss", w.idp.URL, "sid", strings.Repeat("x", 5000)),
		"a broken query":     query("iss", w.idp.URL, "sid", "phone") + "&%zz",
	} {
		phone.get(to).want(t, http.StatusBadRequest)
		if !w.in(phone) || !w.in(laptop) {
			t.Fatalf("%s signed somebody out", name)
		}
	}
	p := w.browser().get(query("iss", w.idp.URL+"/", "sid", "phone"))
	p.want(t, http.StatusOK)
	if csp := p.Header.Get("Content-Security-Policy"); !strings.HasSuffix(csp, "frame-ancestors "+w.idp.URL) || p.Header.Get("X-Frame-Options") != "" || p.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("got headers %v", p.Header)
	}
	if w.in(phone) || !w.in(laptop) {
		t.Errorf("signed in: phone %t, laptop %t", w.in(phone), w.in(laptop))
	}
	if w.revokedAt("user-alice").IsZero() {
		t.Error("the time was not recorded")
	}
	// Whether a session was there is not told.
	w.browser().get(query("iss", w.idp.URL, "sid", "phone")).want(t, http.StatusOK)
}
