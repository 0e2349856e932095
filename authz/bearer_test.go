package authz

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

// issuer knows bearer tokens: of the settings with an ID, those that begin with that
// ID stand for whom they name behind it. A token is good for an hour. Sessions that
// were revoked are not made again.
type issuer struct {
	store databroker.Store
	clock *clock

	mu    sync.Mutex
	asked int
	// made are the sessions by token.
	made map[string]string
	err  error
	// hold, if set, is waited for.
	hold chan struct{}
	// as replaces the settings' ID in the sessions, if set.
	as string
}

func (i *issuer) BearerSession(ctx context.Context, b *config.Bearer, token string) (string, error) {
	i.mu.Lock()
	i.asked++
	hold, err := i.hold, i.err
	i.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if err != nil {
		return "", err
	}
	name, ok := strings.CutPrefix(token, b.ID+".")
	if !ok {
		return "", fmt.Errorf("%w: nobody has signed it", ErrBearer)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if id, ok := i.made[token]; ok {
		if _, err := i.store.Session(ctx, id); err != nil {
			return "", fmt.Errorf("%w: revoked", ErrBearer)
		}
		return id, nil
	}
	id, idpID := fmt.Sprintf("bearer-%s-%s", b.ID, name), b.ID
	if i.as != "" {
		idpID = i.as
	}
	i.made[token] = id
	email := name + "@example.com"
	if name == "mallory" {
		email = "mallory@elsewhere.org"
	}
	return id, i.store.PutSession(ctx, &databroker.Session{
		ID: id, UserID: name, IDPID: idpID, Claims: map[string]any{"email": email},
		CreatedAt: i.clock.Now(), ExpiresAt: i.clock.Now().Add(time.Hour),
	})
}

func (i *issuer) calls() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// newBearerWorld has the routes "access" and "other", which take access tokens of two
// settings, and "jwt".
func newBearerWorld(t testing.TB) (*world, *issuer) {
	w := newWorld(t, func(c *config.Config) {
		for id, format := range map[string]config.BearerFormat{
			"access": config.BearerAccessToken, "other": config.BearerAccessToken, "jwt": config.BearerJWT, "fresh": config.BearerAccessToken, "public": config.BearerAccessToken,
		} {
			routeNamed(c, id).Bearer = &config.Bearer{Format: format, ID: id}
		}
	}, map[string]routeDef{
		"access": {appPolicy, true}, "other": {appPolicy, true}, "jwt": {appPolicy, true},
		"fresh": {"allow: {and: [{domain: example.com}, {auth_time: {max_age: 5m}}]}", true}, "public": {anyPolicy, false},
	})
	i := &issuer{store: w.store, clock: w.clock, made: map[string]string{}}
	w.server.bearers.judge = i
	return w, i
}

func bearer(token string) string { return "authorization: Bearer " + token }

func TestBearerTokens(t *testing.T) {
	w, i := newBearerWorld(t)
	alice := w.session("alice", "alice@example.com", nil)
	cookie := "cookie: _pomerium=" + alice
	api := w.account("acct", "api-access", time.Time{})
	page := []string{"sec-fetch-mode: navigate", "accept: text/html"}
	tests := []struct {
		name    string
		route   string
		headers []string
		status  int
		// user is whom the upstream hears of, reason what a program is told.
		user, reason string
	}{
		{"a good token", "access", []string{bearer("access.bob")}, 200, "bob", ""},
		{"a scheme in small letters", "access", []string{"authorization: bearer access.bob"}, 200, "bob", ""},
		{"a random token", "access", []string{bearer("random")}, 403, "", "invalid-bearer-token"},
		{"a random token of a browser", "access", append(page, bearer("random")), 403, "", ""},
		{"no token", "access", []string{"authorization: Bearer"}, 403, "", "invalid-bearer-token"},
		{"two tokens", "access", []string{bearer("access.bob access.bob")}, 403, "", "invalid-bearer-token"},
		{"one that the policy refuses", "access", []string{bearer("access.mallory")}, 403, "", "domain-unauthorized"},
		{"before a cookie", "access", []string{cookie, bearer("access.bob")}, 200, "bob", ""},
		{"a bad one before a cookie", "access", []string{cookie, bearer("random")}, 403, "", "invalid-bearer-token"},
		{"a cookie alone", "access", []string{cookie}, 200, "user-alice", ""},
		{"another scheme and a cookie", "access", []string{cookie, "authorization: Basic YTpi"}, 200, "user-alice", ""},
		{"nothing, in a browser", "access", page, 302, "", ""},
		{"nothing, in a program", "access", nil, 401, "", "user-unauthenticated"},
		{"a token of ours", "access", []string{bearer(alice)}, 200, "user-alice", ""},
		{"an account's token", "api", []string{bearer(api)}, 200, "api-access", ""},
		{"a bad token of ours", "access", []string{bearer(alice + "x")}, 401, "", "user-unauthenticated"},
		{"of two Authorization headers none counts", "access", []string{bearer("access.bob"), bearer("access.bob")}, 401, "", "user-unauthenticated"},
		{"too old for the policy, even in a browser", "fresh", append(page, bearer("fresh.bob")), 401, "", ""},
		{"a JWT", "jwt", []string{bearer("jwt.bob")}, 200, "bob", ""},
		{"a JWT and a cookie", "jwt", []string{bearer("jwt.bob"), cookie}, 400, "", "ambiguous-credentials"},
		{"a JWT and a cookie of a browser", "jwt", append(page, bearer("jwt.bob"), cookie), 400, "", ""},
		{"a JWT and a forged cookie", "jwt", []string{bearer("jwt.bob"), cookie + "x"}, 200, "bob", ""},
		{"a JWT and a token in another header", "jwt", []string{bearer("jwt.bob"), "x-pomerium-authorization: " + alice}, 400, "", "ambiguous-credentials"},
		{"a cookie without a JWT", "jwt", []string{cookie}, 200, "user-alice", ""},
		{"on a route that takes none", "app", []string{bearer("access.bob")}, 401, "", "user-unauthenticated"},
		{"where nobody is asked who they are", "public", []string{bearer("random")}, 200, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			headers := tt.headers
			if tt.reason != "" || tt.status == 200 {
				headers = append([]string{"accept: application/json", "sec-fetch-mode: cors"}, headers...)
			}
			m := call(tt.route, "GET", "/", headers...)
			r := w.check(m)
			if r.status != tt.status {
				t.Fatalf("status %d, want %d\n%s", r.status, tt.status, r.body)
			}
			if tt.user != "" && w.claims(r.header("x-pomerium-jwt-assertion")).Subject != tt.user {
				t.Errorf("the upstream hears of %v", w.claims(r.header("x-pomerium-jwt-assertion")))
			}
			if tt.reason != "" && !strings.Contains(r.body, `"`+tt.reason+`"`) {
				t.Errorf("the reasons are not %s:\n%s", tt.reason, r.body)
			}
			if challenge := r.header("www-authenticate"); strings.Contains(challenge, "invalid_token") != (tt.reason == "invalid-bearer-token") && tt.reason != "" && tt.status == 403 {
				t.Errorf("the challenge is %q", challenge)
			}
			for _, v := range upstreamHeaders(m, r)["authorization"] {
				if r.allowed && strings.Contains(v, alice) {
					t.Error("the upstream gets our token")
				}
			}
		})
	}
	m := call("access", "GET", "/", bearer("access.bob"))
	if got := upstreamHeaders(m, w.check(m))["authorization"]; len(got) != 1 || got[0] != "Bearer access.bob" {
		t.Errorf("the upstream gets the provider's token as %q", got)
	}
	w.server.bearers.judge = nil
	if r := w.check(m); r.status != 403 {
		t.Errorf("without anybody who knows tokens: status %d", r.status)
	}
	w.server.bearers.judge = i
}

// TestWhatContradictsAJWT: a good credential of ours does, and nothing else that
// anybody can plant in a browser.
func TestWhatContradictsAJWT(t *testing.T) {
	w, _ := newBearerWorld(t)
	alice := w.session("alice", "alice@example.com", nil)
	elsewhere, err := w.keys.MintSession(signin.SessionToken{
		SessionID: "alice", IDPID: w.config.IDPs[0].ID(), Host: "other.example.com", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	expired, err := w.keys.MintSession(signin.SessionToken{
		SessionID: "alice", IDPID: w.config.IDPs[0].ID(), IssuedAt: noon.Add(-2 * time.Hour), ExpiresAt: noon.Add(-time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	gone := w.session("gone", "gone@example.com", nil)
	if err := w.store.RevokeSession(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	header := alice[:strings.IndexByte(alice, '.')+1]
	tests := []struct {
		name, path, header string
		status             int
	}{
		{"a session in the query", "/?pomerium_session=" + alice, "x: y", 400},
		{"an account", "/", "x-pomerium-authorization: " + w.account("acct", "api-access", time.Time{}), 400},
		{"a session that is over", "/", "cookie: _pomerium=" + gone, 400},
		{"two cookies, one of them good", "/", "cookie: _pomerium=" + header + "x.y; _pomerium=" + alice, 400},
		{"a cookie that looks like ours", "/", "cookie: _pomerium=" + header + "x.y", 200},
		{"a session of another host", "/", "cookie: _pomerium=" + elsewhere, 200},
		{"a token that has expired", "/", "cookie: _pomerium=" + expired, 200},
		{"junk in the query", "/?pomerium_session=x", "x: y", 200},
		{"junk in a header", "/", "x-pomerium-authorization: x", 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r := w.check(call("jwt", "GET", tt.path, bearer("jwt.bob"), tt.header)); r.status != tt.status {
				t.Errorf("status %d, want %d\n%s", r.status, tt.status, r.body)
			}
		})
	}
}

func TestABearerTokenIsWorthNothingElsewhere(t *testing.T) {
	w, i := newBearerWorld(t)
	w.follow()
	token := bearer("access.bob")
	for range 3 {
		if r := w.check(call("access", "GET", "/", token)); !r.allowed {
			t.Fatalf("status %d", r.status)
		}
	}
	if i.calls() != 1 {
		t.Errorf("asked %d times for one token", i.calls())
	}
	for _, route := range []string{"other", "jwt"} {
		if r := w.check(call(route, "GET", "/", token)); r.status != 403 {
			t.Errorf("route %s, with what was remembered for another: status %d", route, r.status)
		}
	}
	if r := w.check(call("access", "GET", "/", token)); !r.allowed || i.calls() != 3 {
		t.Errorf("where it is good, after it was refused elsewhere: status %d, asked %d times", r.status, i.calls())
	}
	// Nor does its session open anything by one of our tokens.
	for _, idpID := range []string{"access", w.config.IDPs[0].ID(), ""} {
		ours := w.tokenOf(idpID, "bearer-access-bob")
		for _, route := range []string{"access", "other", "app"} {
			if r := w.check(call(route, "GET", "/", "cookie: _pomerium="+ours)); r.allowed {
				t.Errorf("route %s takes a session token for the session of a bearer token (idp %q)", route, idpID)
			}
		}
	}
	i.as = "other"
	if r := w.check(call("access", "GET", "/", bearer("access.eve"))); r.status != 403 {
		t.Errorf("a session that was made for other settings: status %d", r.status)
	}
}

func TestBearerTokensEnd(t *testing.T) {
	w, i := newBearerWorld(t)
	w.follow()
	m := call("access", "GET", "/", bearer("access.bob"))
	if r := w.check(m); !r.allowed {
		t.Fatalf("status %d", r.status)
	}
	if err := w.store.DeleteSession(context.Background(), "bearer-access-bob"); err != nil {
		t.Fatal(err)
	}
	w.until("the revocation is felt", func() bool { return !w.check(m).allowed })
	if r := w.check(m); r.status != 403 || i.calls() != 2 {
		t.Errorf("status %d, asked %d times", r.status, i.calls())
	}

	m = call("access", "GET", "/", bearer("access.carol"))
	if r := w.check(m); !r.allowed {
		t.Fatalf("status %d", r.status)
	}
	w.clock.Advance(time.Hour)
	if r := w.check(m); r.status != 403 {
		t.Errorf("after its expiry: status %d", r.status)
	}
}

func TestBearerTokensAreRememberedFor(t *testing.T) {
	w, i := newBearerWorld(t)
	bad := call("access", "GET", "/", bearer("random"))
	for range 5 {
		if r := w.check(bad); r.status != 403 || !strings.Contains(r.body, "nobody has signed it") {
			t.Fatalf("status %d\n%s", r.status, r.body)
		}
	}
	if i.calls() != 1 {
		t.Errorf("asked %d times for a bad token", i.calls())
	}
	w.clock.Advance(badBearerFor)
	if w.check(bad); i.calls() != 2 {
		t.Errorf("asked %d times after %s", i.calls(), badBearerFor)
	}

	i.err = errors.New("the provider is down")
	for n := range 3 {
		unavailable(t, "nobody knows", w.check(call("access", "GET", "/", bearer("access.bob"))))
		if i.calls() != 3+n {
			t.Errorf("asked %d times: not to know was remembered", i.calls())
		}
	}
	i.err = nil
	if r := w.check(call("access", "GET", "/", bearer("access.bob"))); !r.allowed {
		t.Errorf("when it is known again: status %d", r.status)
	}

	for n := range maxBadBearers + 10 {
		w.check(call("access", "GET", "/", bearer(fmt.Sprintf("random%d", n))))
	}
	if got := w.server.bearers.bad.len(); got != maxBadBearers {
		t.Errorf("%d bad tokens are remembered", got)
	}
	if got := w.server.bearers.good.len(); got != 1 {
		t.Errorf("%d good tokens are remembered", got)
	}
}

func TestABearerTokenIsAskedForOnce(t *testing.T) {
	w, i := newBearerWorld(t)
	i.hold = make(chan struct{})
	m := call("access", "GET", "/", bearer("access.bob"))
	const many = 50
	statuses := make(chan int, many)
	for range many {
		go func() {
			resp, err := w.server.Check(context.Background(), m)
			if err != nil || resp.GetOkResponse() == nil {
				statuses <- int(resp.GetDeniedResponse().GetStatus().GetCode())
				return
			}
			statuses <- 200
		}()
	}
	w.until("somebody has asked", func() bool { return i.calls() > 0 })
	close(i.hold)
	for range many {
		if status := <-statuses; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if i.calls() != 1 {
		t.Errorf("asked %d times", i.calls())
	}
}

func TestABearerSessionThatWasMissingAMomentAgo(t *testing.T) {
	w, _ := newBearerWorld(t)
	w.server.identities.contact.Store(noon.UnixNano())
	w.server.identities.records.settle(t)
	missing, err := w.server.identities.lookup(context.Background(), signin.KindSession, "bearer-access-bob", time.Minute)
	if err != nil || !missing.missing {
		t.Fatal(missing, err)
	}
	if r := w.check(call("access", "GET", "/", bearer("access.bob"))); !r.allowed {
		t.Errorf("status %d", r.status)
	}
}

func TestBearerTokensHaveNoIdleTimeout(t *testing.T) {
	w, _ := newBearerWorld(t)
	r := routeNamed(w.config, "access")
	r.SessionLifetime, r.SessionIdleTimeout = time.Minute, time.Minute
	w.publish()
	m := call("access", "GET", "/", bearer("access.bob"))
	for range 3 {
		if r := w.check(m); !r.allowed {
			t.Fatalf("status %d", r.status)
		}
		w.clock.Advance(10 * time.Minute)
	}
}

func TestARefusedTokenIsNoDecisionOfAShadow(t *testing.T) {
	w, _ := newBearerWorld(t)
	routeNamed(w.config, "access").ShadowPolicy = parsePolicy(t, anyPolicy)
	w.publish()
	w.check(call("access", "GET", "/", bearer("random")))
	if st := w.server.Stats().Shadows[0]; st.Evaluated+st.Failed != 0 {
		t.Errorf("%+v", st)
	}
	if log := w.log.String(); strings.Contains(log, "anonymous") || !strings.Contains(log, `"deny":"invalid-bearer-token"`) {
		t.Errorf("the log says %s", log)
	}
}
