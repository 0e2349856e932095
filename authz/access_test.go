package authz

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

// routeNamed is a route of a configuration, to be changed.
func routeNamed(c *config.Config, id string) *config.Route {
	return c.Routes[slices.IndexFunc(c.Routes, func(r *config.Route) bool { return r.ID == id })]
}

func (w *world) put(s *databroker.Session) {
	w.t.Helper()
	if err := w.store.PutSession(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

// sessionOf stores a session of a provider and returns its token.
func (w *world) sessionOf(idpID, id, email string) string {
	w.t.Helper()
	w.put(&databroker.Session{
		ID: id, UserID: "user-" + id, IDPID: idpID, Claims: map[string]any{"email": email},
		CreatedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(14 * time.Hour),
	})
	return w.tokenOf(idpID, id)
}

func (w *world) tokenOf(idpID, id string) string {
	w.t.Helper()
	token, err := w.keys.MintSession(signin.SessionToken{
		SessionID: id, IDPID: idpID, IssuedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(24 * time.Hour),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// link is the sign-in link that a navigation is sent to.
func (w *world) link(r reply) url.Values {
	w.t.Helper()
	if r.status != 302 {
		w.t.Fatalf("status %d, want a redirect", r.status)
	}
	u, err := url.Parse(r.header("location"))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.keys.VerifyLink(u, w.clock.Now()); err != nil {
		w.t.Fatalf("sign-in link: %v", err)
	}
	return u.Query()
}

func TestProviders(t *testing.T) {
	acme := &config.IdentityProvider{Name: "acme", Offered: true, Provider: "oidc", URL: "https://acme.example.com", ClientID: "countersign"}
	staff := &config.IdentityProvider{Name: "staff", Offered: true, Provider: "oidc", URL: "https://staff.example.com", ClientID: "countersign"}
	own := &config.IdentityProvider{Provider: "oidc", URL: "https://acme.example.com", ClientID: "a-route-of-its-own"}
	gone := &config.IdentityProvider{Name: "gone", Offered: true, Provider: "oidc", URL: "https://gone.example.com", ClientID: "countersign"}
	w := newWorld(t, func(c *config.Config) {
		c.IDPs = []*config.IdentityProvider{acme, staff, own}
		routeNamed(c, "staff").IDP = staff.ID()
		routeNamed(c, "own").IDP = own.ID()
	}, map[string]routeDef{"any": {appPolicy, true}, "staff": {appPolicy, true}, "own": {appPolicy, true}, "public": {anyPolicy, true}})
	tokens := map[string]string{}
	for _, p := range []*config.IdentityProvider{acme, staff, own, gone} {
		tokens[p.ID()] = w.sessionOf(p.ID(), "session-"+p.ClientID+p.Name, "alice@example.com")
	}
	tests := []struct {
		route   string
		session *config.IdentityProvider
		allowed bool
		// asks is the provider that the link names, if any.
		asks string
	}{
		{"any", acme, true, ""},
		{"any", staff, true, ""},
		{"any", own, false, ""},
		{"any", gone, false, ""},
		{"staff", acme, false, staff.ID()},
		{"staff", staff, true, ""},
		{"staff", own, false, staff.ID()},
		{"own", acme, false, own.ID()},
		{"own", staff, false, own.ID()},
		{"own", own, true, ""},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s with a session of %s%s", tt.route, tt.session.Name, tt.session.ClientID), func(t *testing.T) {
			r := w.check(call(tt.route, "GET", "/", "cookie: _pomerium="+tokens[tt.session.ID()]))
			if r.allowed != tt.allowed {
				t.Fatalf("status %d", r.status)
			}
			if !r.allowed {
				if q := w.link(r); q.Get(signin.ParamIDPID) != tt.asks || q.Has(signin.ParamIDPID) != (tt.asks != "") {
					t.Errorf("the link asks for %q, want %q", q.Get(signin.ParamIDPID), tt.asks)
				}
			}
		})
	}
	t.Run("two cookies, of which the route takes one", func(t *testing.T) {
		both := "cookie: _pomerium=" + tokens[acme.ID()] + "; _pomerium=" + tokens[staff.ID()]
		if r := w.check(call("staff", "GET", "/", both)); !r.allowed || w.claims(r.header("x-pomerium-jwt-assertion")).SessionID != "session-countersignstaff" {
			t.Errorf("the route of one provider: status %d", r.status)
		}
		if r := w.check(call("any", "GET", "/", both)); r.status != 302 {
			t.Errorf("the route of both: status %d", r.status)
		}
	})
	t.Run("a public route knows nobody of another provider", func(t *testing.T) {
		r := w.check(call("public", "GET", "/", "cookie: _pomerium="+tokens[own.ID()]))
		if !r.allowed || w.claims(r.header("x-pomerium-jwt-assertion")).Subject != "" {
			t.Errorf("status %d, %v", r.status, r.set)
		}
	})
	t.Run("the token and the record must agree", func(t *testing.T) {
		forged := w.tokenOf(staff.ID(), "session-countersignacme")
		if r := w.check(call("staff", "GET", "/", "cookie: _pomerium="+forged)); r.allowed {
			t.Error("a session of one provider was taken for one of another")
		}
	})
	t.Run("an account is of no provider", func(t *testing.T) {
		api := w.account("acct", "api-access", time.Time{})
		routeNamed(w.config, "api").IDP = own.ID()
		w.publish()
		if r := w.check(call("api", "GET", "/", "authorization: Bearer "+api)); !r.allowed {
			t.Errorf("status %d", r.status)
		}
	})
	t.Run("the only provider that is offered is asked for", func(t *testing.T) {
		w.config.IDPs = []*config.IdentityProvider{own, staff}
		w.publish()
		if q := w.link(w.check(call("any", "GET", "/"))); q.Get(signin.ParamIDPID) != staff.ID() {
			t.Errorf("the link asks for %q", q.Get(signin.ParamIDPID))
		}
		if r := w.check(call("any", "GET", "/", "cookie: _pomerium="+tokens[acme.ID()])); r.allowed {
			t.Error("a session of a provider that is gone counts")
		}
	})
	t.Run("without a provider nobody gets in, and the link names none", func(t *testing.T) {
		w.config.IDPs = nil
		w.publish()
		r := w.check(call("any", "GET", "/", "cookie: _pomerium="+tokens[acme.ID()]))
		if q := w.link(r); q.Has(signin.ParamIDPID) {
			t.Errorf("the link asks for %q", q.Get(signin.ParamIDPID))
		}
	})
}

func TestLinksNameTheHostsThatARouteDependsOn(t *testing.T) {
	hosts := []string{"api.example.com", "files.example.com:8443"}
	w := newWorld(t, func(c *config.Config) { routeNamed(c, "app").DependsOn = hosts }, nil)
	got, err := signin.AdditionalHosts(w.link(w.check(call("app", "GET", "/"))))
	if err != nil || !slices.Equal(got, hosts) {
		t.Errorf("got %q, %v, want %q", got, err, hosts)
	}
	if q := w.link(w.check(call("api", "GET", "/"))); q.Has(signin.ParamAdditionalHosts) {
		t.Errorf("a route that depends on none: %v", q)
	}
}

func TestLinksCountRounds(t *testing.T) {
	w := newWorld(t, nil, nil)
	cookie := func(n int) string {
		c := signin.RoundCookie("_pomerium", n, w.clock.Now())
		return "cookie: a=b; " + c.Name + "=" + c.Value
	}
	for n := range 4 {
		if got, err := signin.Round(w.link(w.check(call("app", "GET", "/", cookie(n))))); got != n || err != nil {
			t.Errorf("after %d rounds the link says %d, %v", n, got, err)
		}
	}
	if got, err := signin.Round(w.link(w.check(call("app", "GET", "/")))); got != 0 || err != nil {
		t.Errorf("without the cookie the link says %d, %v", got, err)
	}
	stale := cookie(3)
	w.clock.Advance(signin.RoundLife)
	if got, err := signin.Round(w.link(w.check(call("app", "GET", "/", stale)))); got != 0 || err != nil {
		t.Errorf("a minute later the link says %d, %v", got, err)
	}
	form := w.check(call("app", "POST", "/", cookie(3), "sec-fetch-mode: navigate", "accept: text/html"))
	if form.status != 401 || !strings.Contains(form.body, signin.SignInPath) || strings.Contains(form.body, signin.ParamRound) {
		t.Errorf("a form is sent nowhere, so its link counts nothing: status %d\n%s", form.status, form.body)
	}
	alice := w.session("alice", "alice@example.com", nil)
	in := w.check(call("app", "GET", "/", cookie(2)+"; _pomerium="+alice))
	if !in.allowed || in.header("cookie") != "a=b" {
		t.Errorf("status %d; the upstream gets the cookies %q", in.status, in.set["cookie"])
	}
}

// TestLapse is about the age of a session on a route that takes none older than 8
// hours, and none that was not used for 15 minutes.
func TestLapse(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		for _, id := range []string{"short", "strict", "public", "either", "guarded", "api"} {
			r := routeNamed(c, id)
			r.SessionLifetime, r.SessionIdleTimeout = 8*time.Hour, 15*time.Minute
		}
	}, map[string]routeDef{
		"short": {appPolicy, true}, "strict": {appPolicy, false}, "public": {anyPolicy, true},
		"either":  {"allow: {or: [{domain: example.com}, {http_method: HEAD}]}", true},
		"guarded": {"[{allow: {or: [{accept: true}]}}, {deny: {or: [{http_path: /secret}]}}]", true},
	})
	ctx := context.Background()
	put := func(id string, age, unused time.Duration) string {
		now := w.clock.Now()
		w.put(&databroker.Session{
			ID: id, UserID: "user-" + id, IDPID: w.config.IDPs[0].ID(), Claims: map[string]any{"email": id + "@example.com"},
			CreatedAt: now.Add(-age), ExpiresAt: now.Add(14 * time.Hour),
		})
		if unused < age {
			if err := w.store.TouchSessions(ctx, map[string]databroker.Access{id: {At: now.Add(-unused), Gap: time.Minute}}); err != nil {
				t.Fatal(err)
			}
		}
		return "cookie: _pomerium=" + w.sessionToken(id)
	}
	const h, m, s = time.Hour, time.Minute, time.Second
	tests := []struct {
		name        string
		age, unused time.Duration
		code        string
		maxAge      time.Duration
	}{
		{"a new one", 0, 0, "", 0},
		{"unused since it was made, 15 minutes ago", 15 * m, 15 * m, "", 0},
		{"unused since it was made, a second longer", 15*m + s, 15*m + s, "session-idle", 15 * m},
		{"used 15 minutes ago", 2 * h, 15 * m, "", 0},
		{"used more than 15 minutes ago", 2 * h, 15*m + s, "session-idle", 15 * m},
		{"8 hours old and in use", 8 * h, 0, "", 0},
		{"older than 8 hours and in use", 8*h + s, 0, "session-too-old", 8 * h},
		{"too old and unused", 9 * h, 1 * h, "session-too-old", 8 * h},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cookie := put(fmt.Sprintf("s%d", i), tt.age, tt.unused)
			for _, route := range []string{"strict", "short", "either"} {
				r := w.check(call(route, "GET", "/", cookie))
				if r.allowed != (tt.code == "") {
					t.Fatalf("%s: status %d", route, r.status)
				}
				if r.allowed {
					continue
				}
				if got, err := signin.MaxAge(w.link(r)); got != tt.maxAge || err != nil {
					t.Errorf("%s: the link asks for an age of %s, %v, want %s", route, got, err, tt.maxAge)
				}
				r = w.check(call(route, "GET", "/", cookie, "accept: application/json", "sec-fetch-mode: cors"))
				if r.status != 401 || !strings.Contains(r.body, `"reasons":["`+tt.code+`"]`) || !strings.Contains(r.header("www-authenticate"), "max_age=") {
					t.Errorf("%s: a program gets %d, %v\n%s", route, r.status, r.set, r.body)
				}
			}
		})
	}
	t.Run("where nobody may enter, so may somebody who was away, as nobody", func(t *testing.T) {
		cookie := put("away", h, h)
		for _, m := range []struct{ route, method string }{{"public", "GET"}, {"either", "HEAD"}} {
			r := w.check(call(m.route, m.method, "/", cookie))
			if !r.allowed || w.claims(r.header("x-pomerium-jwt-assertion")).Subject != "" {
				t.Errorf("%s: status %d, %v", m.route, r.status, r.set)
			}
		}
	})
	t.Run("what signing in does not change is refused as ever", func(t *testing.T) {
		if r := w.check(call("guarded", "GET", "/secret", put("away2", h, h))); r.status != 403 {
			t.Errorf("status %d", r.status)
		}
	})
	t.Run("other routes know the session", func(t *testing.T) {
		if r := w.check(call("app", "GET", "/", put("elsewhere", 13*h, 13*h))); !r.allowed {
			t.Errorf("status %d", r.status)
		}
	})
	t.Run("accounts have an end of their own", func(t *testing.T) {
		api := w.account("acct", "api-access", time.Time{})
		w.clock.Advance(24 * h)
		defer w.clock.Advance(-24 * h)
		if r := w.check(call("api", "GET", "/", "authorization: Bearer Pomerium-"+api)); !r.allowed {
			t.Errorf("status %d", r.status)
		}
	})
	t.Run("the log says why", func(t *testing.T) {
		if log := w.log.String(); !strings.Contains(log, `"lapse":"session-idle"`) || !strings.Contains(log, `"lapse":"session-too-old"`) {
			t.Error("it does not")
		}
	})
}

func TestUsesKeepASessionFromBecomingIdle(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { routeNamed(c, "app").SessionIdleTimeout = 15 * time.Minute }, map[string]routeDef{"other": {appPolicy, false}})
	w.follow()
	alice := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	in := func(what, route string) {
		t.Helper()
		if r := w.check(call(route, "GET", "/", alice)); !r.allowed {
			t.Fatalf("%s: status %d", what, r.status)
		}
	}
	w.clock.Advance(14 * time.Minute)
	in("after 14 minutes", "app")
	w.clock.Advance(14 * time.Minute)
	in("after 14 more", "app")
	w.clock.Advance(14 * time.Minute)
	in("after 14 more, on another route", "other")
	w.clock.Advance(14 * time.Minute)
	in("after 14 more", "app")

	// The identity is replaced, as it is when the session is refreshed.
	s, err := w.store.Session(context.Background(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	w.put(s)
	w.until("the session is read again", func() bool {
		_, ok := w.server.identities.known.get("salice")
		return !ok
	})
	w.clock.Advance(14 * time.Minute)
	in("after a refresh", "app")

	t.Run("another replica's use counts", func(t *testing.T) {
		w.clock.Advance(10 * time.Minute)
		if err := w.store.TouchSessions(context.Background(), map[string]databroker.Access{"alice": {At: w.clock.Now(), Gap: 14 * time.Minute}}); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(10 * time.Minute)
		// What is remembered of the session is good, and knows nothing of that use.
		w.server.identities.contact.Store(w.clock.Now().UnixNano())
		in("used elsewhere ten minutes ago", "app")
	})
	t.Run("while it is in use, the store need not be asked", func(t *testing.T) {
		w.server.identities.contact.Store(w.clock.Now().UnixNano())
		in("before an outage", "app")
		w.store.Break(errDown)
		defer w.store.Heal()
		for range 3 {
			w.clock.Advance(20 * time.Second)
			in("during an outage", "app")
		}
	})
	t.Run("a store that cannot be asked is no reason to sign anybody out", func(t *testing.T) {
		w.clock.Advance(16 * time.Minute)
		w.server.identities.contact.Store(w.clock.Now().UnixNano())
		w.store.Break(errDown)
		defer w.store.Heal()
		unavailable(t, "looks idle, and nobody knows", w.check(call("app", "GET", "/", alice)))
	})
	for range 3 {
		if r := w.check(call("app", "GET", "/", alice)); r.status != 302 {
			t.Fatalf("after more than 15 minutes: status %d", r.status)
		}
	}
}

// newIdle has the route "app", which minds 15 minutes unused, "patient", which minds
// 2 hours, and two that do not mind, one of them for everybody.
func newIdle(t *testing.T) *world {
	return newWorld(t, func(c *config.Config) {
		routeNamed(c, "app").SessionIdleTimeout, routeNamed(c, "patient").SessionIdleTimeout = 15*time.Minute, 2*time.Hour
	}, map[string]routeDef{"patient": {appPolicy, true}, "other": {appPolicy, true}, "public": {anyPolicy, true}})
}

// asksCurrent is asks where what is remembered of sessions is good.
func (w *world) asksCurrent(route, token string) int {
	w.t.Helper()
	w.server.identities.contact.Store(w.clock.Now().UnixNano())
	return w.asks(route, token)
}

func TestNoOtherRouteMakesAnIdleSessionFresh(t *testing.T) {
	for _, other := range []string{"other", "public", "patient"} {
		t.Run(other, func(t *testing.T) {
			w := newIdle(t)
			ctx := context.Background()
			w.server.identities.records.settle(t)
			alice := w.session("alice", "alice@example.com", nil)
			w.clock.Advance(10 * time.Minute)
			if got := w.asksCurrent("app", alice); got != 200 {
				t.Fatalf("at first: status %d", got)
			}
			w.clock.Advance(time.Hour)
			if got := w.asksCurrent(other, alice); got != 200 {
				t.Fatalf("another route, which does not mind: status %d", got)
			}
			idle := func(when string) {
				t.Helper()
				if got := w.asksCurrent("app", alice); got != 302 {
					t.Errorf("%s: status %d", when, got)
				}
				if got := w.asksCurrent("patient", alice); got != 200 {
					t.Errorf("%s, on the patient route: status %d", when, got)
				}
			}
			idle("before the store is told")
			w.clock.Advance(time.Minute)
			idle("a minute later")
			if err := w.server.identities.uses.flush(ctx, w.clock.Now(), 0); err != nil {
				t.Fatal(err)
			}
			idle("when the store is told")
			w.server.identities.forget()
			idle("when the session is read again")
			again := New(Config{Store: w.store, Now: w.clock.Now})
			again.Publish(w.server.published.Load().Generation)
			w.server = again
			idle("after a restart")
			if got := w.asksCurrent("app", w.session("alice2", "alice@example.com", nil)); got != 200 {
				t.Errorf("signed in again: status %d", got)
			}
		})
	}
}

// TestWhoeverIsActiveIsNotIdle: each of two servers sees one session in turn, and now
// and then the store is away.
func TestWhoeverIsActiveIsNotIdle(t *testing.T) {
	w := newIdle(t)
	alice := w.session("alice", "alice@example.com", nil)
	second := New(Config{Store: w.store, Now: w.clock.Now})
	second.Publish(w.server.published.Load().Generation)
	first, servers := w.server, []*Server{w.server, second}
	tell := func() {
		for _, s := range servers {
			_ = s.identities.uses.flush(context.Background(), w.clock.Now(), touchEvery) // it may be away
		}
	}
	use := func(s *Server, route string) {
		t.Helper()
		w.server = s
		defer func() { w.server = first }()
		if got := w.asksCurrent(route, alice); got != 200 {
			t.Fatalf("%s, on %s: status %d", w.clock.Now(), route, got)
		}
	}
	for range 8 {
		for _, s := range servers {
			for range 3 {
				w.clock.Advance(4 * time.Minute)
				use(s, "other")
				w.clock.Advance(touchEvery + flushEvery)
				tell()
			}
			// 25 minutes have passed on the other server.
		}
	}
	for _, s := range servers {
		use(s, "app")
	}
	for range 12 {
		w.store.Break(errDown)
		for range 4 {
			w.clock.Advance(5 * time.Minute)
			use(first, "other")
			tell()
		}
		w.store.Heal()
		tell()
	}
	for _, s := range servers {
		use(s, "app")
		s.identities.forget()
		use(s, "app")
	}
	if s, err := w.store.Session(t.Context(), "alice"); err != nil || s.LongestGap > 15*time.Minute || s.LongestGap < 5*time.Minute {
		t.Errorf("the store says %s, %v", s.LongestGap, err)
	}
}
