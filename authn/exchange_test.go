package authn_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
)

// idToken is one that a program got at the provider for alice.
func (w *world) idToken(change ...func(map[string]any)) string {
	w.t.Helper()
	w.idp.Change(func(b *idptest.Behaviour) { b.Now = w.now })
	return w.idp.IDToken("user-alice", idptest.ClientID, append(change, func(claims map[string]any) {
		claims["jti"] = randomText()
	})...)
}

func exchanging(raw string, change ...string) url.Values {
	form := url.Values{"grant_type": {grantExchange}, "subject_token": {raw}, "subject_token_type": {typeIDToken}}
	for i := 0; i+1 < len(change); i += 2 {
		if form.Set(change[i], change[i+1]); change[i+1] == "" {
			form.Del(change[i])
		}
	}
	return form
}

func TestExchange(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken(func(c map[string]any) { c["sid"] = "sid-1"; c["exp"] = w.now().Add(20 * time.Minute).Unix() })
	got := w.call("/api/v1/token", url.Values{"id_token": {raw}}, "User-Agent", "curl").object(t, http.StatusOK)
	if len(got) != 2 {
		t.Errorf("got %v", got)
	}
	expiry, err := time.Parse(time.RFC3339, text(t, got, "Expiry"))
	if left := expiry.Sub(w.now()); err != nil || left > 20*time.Minute || left < 19*time.Minute {
		t.Errorf("Expiry %v (%v), want that of the id_token", expiry, err)
	}
	token := text(t, got, "Token")
	w.browser().get(app+"/.pomerium/user", "Authorization", "Bearer Pomerium-"+token).want(t, http.StatusOK, "user-alice", "alice@example.com", "eng")
	s := w.sessions()[0]
	if s.Origin.Method != "id_token" || s.Origin.UserAgent != "curl" || s.ProviderSessionID != "sid-1" || s.IDPID != w.idpID || s.Tokens != (databroker.Tokens{}) || s.Claims["iss"] != nil {
		t.Errorf("the session is %+v", s)
	}
	if user, err := w.store.User(context.Background(), "user-alice"); err != nil || user.Email != "alice@example.com" || user.SignedInAt.IsZero() {
		t.Errorf("the user is %+v, %v", user, err)
	}
	// The same token is the same session, by either way.
	w.call("/api/v1/token", url.Values{"id_token": {raw}}).want(t, http.StatusOK)
	other := w.call("/oauth2/token", exchanging(raw)).object(t, http.StatusOK)
	if len(w.sessions()) != 1 || other["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" || other["token_type"] != "Bearer" || other["refresh_token"] != nil {
		t.Errorf("%d sessions, got %v", len(w.sessions()), other)
	}
	if life, _ := other["expires_in"].(float64); life > 1200 || life < 1190 {
		t.Errorf("expires_in %v", life)
	}
	if strings.Contains(w.log.String(), raw) || strings.Contains(w.log.String(), token) {
		t.Error("the log holds a token")
	}
	if w.sessions()[0].ID == raw || strings.Contains(raw, w.sessions()[0].ID) {
		t.Error("the session's id can be guessed")
	}
	w.offset.Store(int64(20*time.Minute + 31*time.Second))
	if w.accepts("Pomerium " + token) {
		t.Error("the token is good after its time")
	}
}

func TestExchangeLastsNoLongerThanACookie(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Cookie.Expire = 5 * time.Minute })
	raw := w.idToken()
	for _, after := range []time.Duration{0, 6 * time.Minute} {
		w.offset.Store(int64(after))
		got := w.call("/api/v1/token", url.Values{"id_token": {raw}}).object(t, http.StatusOK)
		expiry, err := time.Parse(time.RFC3339, text(t, got, "Expiry"))
		if left := expiry.Sub(w.now()); err != nil || left > 5*time.Minute || left < 4*time.Minute {
			t.Errorf("after %v: Expiry in %v (%v), want five minutes", after, left, err)
		}
		if !w.accepts("Pomerium " + text(t, got, "Token")) {
			t.Errorf("after %v: the token is worth nothing", after)
		}
	}
}

func TestExchangeOfBadTokens(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Programs.Audiences = []string{"a-script"} })
	mint := func(f func(*idptest.Behaviour)) string {
		was := idptest.Behaviour{}
		w.idp.Change(func(b *idptest.Behaviour) { was = *b; f(b) })
		defer w.idp.Change(func(b *idptest.Behaviour) { *b = was })
		return w.idToken()
	}
	claim := func(name string, v any) string {
		return w.idToken(func(c map[string]any) {
			if c[name] = v; v == nil {
				delete(c, name)
			}
		})
	}
	good := w.idToken()
	parts := strings.Split(good, ".")
	for _, tt := range []struct{ name, raw string }{
		{"another audience", claim("aud", "somebody-else")},
		{"no audience", claim("aud", nil)},
		{"several audiences without azp", claim("aud", []string{idptest.ClientID, "somebody-else"})},
		{"azp is another", w.idToken(func(c map[string]any) { c["azp"] = "somebody-else" })},
		{"another issuer", claim("iss", "https://evil.example")},
		{"no issuer", claim("iss", nil)},
		{"expired", claim("exp", w.now().Add(-2*time.Minute).Unix())},
		{"expired within the leeway", claim("exp", w.now().Add(-10*time.Second).Unix())},
		{"no expiry", claim("exp", nil)},
		{"not yet valid", claim("nbf", w.now().Add(time.Hour).Unix())},
		{"from the future", claim("iat", w.now().Add(time.Hour).Unix())},
		{"no subject", claim("sub", nil)},
		{"an empty subject", claim("sub", "")},
		{"an endless subject", claim("sub", strings.Repeat("x", 300))},
		{"another key", mint(func(b *idptest.Behaviour) { b.WrongKey = true })},
		{"alg none", mint(func(b *idptest.Behaviour) { b.Algorithm = "none" })},
		{"alg HS256", mint(func(b *idptest.Behaviour) { b.Algorithm = "HS256" })},
		{"signature cut off", parts[0] + "." + parts[1] + "."},
		{"another's signature", parts[0] + "." + parts[1] + "." + strings.Split(w.idToken(), ".")[2]},
		{"changed", parts[0] + "." + strings.Split(w.idToken(), ".")[1] + "." + parts[2]},
		{"an access token", w.idp.AccessToken("user-alice", idptest.ClientID)},
		{"a logout token", w.idp.LogoutToken("user-alice", "sid")},
		{"no token", "x"},
		{"dots", strings.Repeat(".", 50000)},
		{"not JSON", "e30." + base64.RawURLEncoding.EncodeToString([]byte("null x")) + ".x"},
		{"JSON of another kind", "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":1,"aud":{"a":1}}`)) + ".x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.call("/api/v1/token", url.Values{"id_token": {tt.raw}}).refused(t, 400, "invalid_grant")
			w.call("/oauth2/token", exchanging(tt.raw)).refused(t, 400, "invalid_request")
		})
	}
	w.call("/api/v1/token", nil).refused(t, 400, "invalid_request")
	w.call("/api/v1/token", nil).want(t, 400, "missing id token")
	w.call("/api/v1/token", url.Values{"id_token": {good, good}}).refused(t, 400, "invalid_request")
	w.call("/api/v1/token", url.Values{"id_token": {strings.Repeat("x", 64<<10)}}).refused(t, 413, "invalid_request")
	w.call("/api/v1/token", url.Values{"id_token": {good}}, "Content-Type", "text/plain").refused(t, 415, "invalid_request")
	w.browser().get(auth+"/api/v1/token?id_token="+good).want(t, http.StatusMethodNotAllowed)
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions were made", n)
	}
	// The table is about what it changes: the token as it is, one for another
	// program that is allowed, and one as large as they come are good.
	for name, raw := range map[string]string{
		"as it is": good, "for a script": w.idp.IDToken("user-alice", "a-script"),
		"40 KB": claim("groups", idptest.Groups(2500)),
	} {
		if p := w.call("/api/v1/token", url.Values{"id_token": {raw}}); p.StatusCode != http.StatusOK {
			t.Errorf("%s (%d bytes): got %d %s", name, len(raw), p.StatusCode, p.body)
		}
	}
}

func TestExchangeRequests(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken()
	for _, tt := range []struct {
		name   string
		change []string
		status int
		code   string
	}{
		{"as it is", nil, 200, ""},
		{"a JWT", []string{"subject_token_type", "urn:ietf:params:oauth:token-type:jwt"}, 200, ""},
		{"an access token is wanted", []string{"requested_token_type", "urn:ietf:params:oauth:token-type:access_token"}, 200, ""},
		{"a refresh token is wanted", []string{"requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"}, 400, "invalid_request"},
		{"an access token is brought", []string{"subject_token_type", "urn:ietf:params:oauth:token-type:access_token"}, 400, "invalid_request"},
		{"no type", []string{"subject_token_type", ""}, 400, "invalid_request"},
		{"no token", []string{"subject_token", ""}, 400, "invalid_request"},
		{"an actor", []string{"actor_token", raw, "actor_token_type", typeIDToken}, 400, "invalid_request"},
		{"another resource", []string{"resource", "https://evil.example/"}, 400, "invalid_target"},
		{"another audience", []string{"audience", "evil.example"}, 400, "invalid_target"},
		{"the authenticate host", []string{"resource", auth}, 400, "invalid_target"},
		{"a path", []string{"resource", "/x"}, 400, "invalid_target"},
		{"a fragment", []string{"resource", app + "#x"}, 400, "invalid_target"},
		{"plain http", []string{"resource", "http://app.example.com"}, 400, "invalid_target"},
		{"two hosts", []string{"resource", app, "audience", "other.example.com"}, 400, "invalid_target"},
		{"the same host twice", []string{"resource", app + "/x", "audience", "APP.example.com"}, 200, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := w.call("/oauth2/token", exchanging(raw, tt.change...))
			if tt.code != "" {
				p.refused(t, tt.status, tt.code)
			} else {
				p.object(t, tt.status)
			}
		})
	}
	got := w.call("/oauth2/token", exchanging(raw, "resource", other+"/api")).object(t, http.StatusOK)
	token := text(t, got, "access_token")
	w.browser().get(other+"/.pomerium/user", "Authorization", "Pomerium "+token).want(t, http.StatusOK)
	if w.accepts("Pomerium " + token) {
		t.Error("a token for one host is good on another")
	}
}

func TestExchangeForSeveralProviders(t *testing.T) {
	w, second := withChoice(t, func(c *config.Config) { c.Programs.Audiences = []string{"a-script"} })
	for _, tt := range []struct {
		name, raw, user string
		idp             *config.IdentityProvider
	}{
		{"the first", w.idToken(), "user-alice", w.cfg.IDPs[0]},
		{"the second", second.IDToken("bea", idptest.ClientID), "second/bea", w.cfg.IDPs[1]},
		{"a route's own client", w.idp.IDToken("user-alice", "a-route-s-own-client"), "user-alice", w.cfg.IDPs[2]},
		{"a script of the first", w.idp.IDToken("carla", "a-script"), "carla", w.cfg.IDPs[0]},
		{"a script of the second", second.IDToken("carla", "a-script"), "second/carla", w.cfg.IDPs[1]},
	} {
		before := map[string]bool{}
		for _, s := range w.sessions() {
			before[s.ID] = true
		}
		w.call("/api/v1/token", url.Values{"id_token": {tt.raw}}).want(t, http.StatusOK)
		for _, s := range w.sessions() {
			if !before[s.ID] && (s.IDPID != tt.idp.ID() || s.UserID != tt.user) {
				t.Errorf("%s: got a session of %s at %s", tt.name, s.UserID, s.IDPID)
			}
		}
	}
	if n := len(w.sessions()); n != 5 {
		t.Errorf("%d sessions", n)
	}
	// A provider that is offered comes before one that is not, wherever it stands.
	w.cfg.IDPs[0], w.cfg.IDPs[2] = w.cfg.IDPs[2], w.cfg.IDPs[0]
	w.restart()
	w.call("/api/v1/token", url.Values{"id_token": {w.idp.IDToken("dora", "a-script")}}).want(t, http.StatusOK)
	if s, err := w.store.Store.Sessions(context.Background(), "dora"); err != nil || len(s) != 1 || s[0].IDPID != w.cfg.IDPs[2].ID() {
		t.Errorf("a script: got %+v, %v", s, err)
	}
	// One provider signs nothing in the name of another, and only its own trouble counts.
	forged := second.IDToken("user-alice", idptest.ClientID, func(c map[string]any) { c["iss"] = w.idp.URL })
	w.call("/api/v1/token", url.Values{"id_token": {forged}}).refused(t, 400, "invalid_grant")
	second.Close()
	w.offset.Store(int64(3 * time.Hour))
	w.call("/api/v1/token", url.Values{"id_token": {w.idToken(func(c map[string]any) { c["azp"] = "x" })}}).refused(t, 400, "invalid_grant")
}

func TestExchangeAfterARevocation(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	start := w.now().Truncate(time.Second)
	at := func(d time.Duration) { w.offset.Store(int64(time.Until(start.Add(d)))) }
	at(100 * time.Millisecond)
	old := w.idToken()
	first := text(t, w.call("/api/v1/token", url.Values{"id_token": {old}}).object(t, http.StatusOK), "Token")
	at(10 * time.Second)
	if _, err := w.store.RevokeUser(ctx, "user-alice", ""); err != nil {
		t.Fatal(err)
	}
	same := w.idToken()
	if w.accepts("Pomerium " + first) {
		t.Error("the token has outlived the revocation")
	}
	for _, raw := range []string{old, same} {
		p := w.call("/api/v1/token", url.Values{"id_token": {raw}})
		p.refused(t, 400, "invalid_grant")
		p.want(t, 400, "sign in at the identity provider again")
		w.call("/oauth2/token", exchanging(raw)).refused(t, 400, "invalid_request")
	}
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions have come back", n)
	}
	at(12 * time.Second)
	w.call("/api/v1/token", url.Values{"id_token": {w.idToken()}}).want(t, http.StatusOK)
}

// A session that is still there does not bring back an ID token from before: it is
// the revocation that counts.
func TestExchangeAfterAnotherSessionsRevocation(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken()
	token := text(t, w.call("/api/v1/token", url.Values{"id_token": {raw}}).object(t, http.StatusOK), "Token")
	access, _ := w.byCode()
	w.call("/oauth2/revoke", url.Values{"token": {access}}).want(t, http.StatusOK)
	w.call("/api/v1/token", url.Values{"id_token": {raw}}).refused(t, 400, "invalid_grant")
	if !w.accepts("Pomerium " + token) {
		t.Error("ending one session has ended another")
	}
}

// revoker is a store in which somebody revokes the user while a session is written.
type revoker struct{ databroker.Store }

func (r revoker) PutSession(ctx context.Context, s *databroker.Session) error {
	if _, err := r.RevokeUser(ctx, s.UserID, ""); err != nil {
		return err
	}
	return r.Store.PutSession(ctx, s)
}

func TestRevocationWhileASessionIsMade(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken()
	w.store.Store = revoker{w.store.Store}
	w.call("/api/v1/token", url.Values{"id_token": {raw}}).refused(t, 400, "invalid_grant")
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions have outlived the revocation", n)
	}
}

func TestExchangeAtOnce(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken()
	var group errgroup.Group
	for range 20 {
		group.Go(func() error {
			w.call("/api/v1/token", url.Values{"id_token": {raw}}).want(t, http.StatusOK)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := len(w.sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestExchangeUnderAnAccountsID(t *testing.T) {
	w := newWorld(t)
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "1", UserID: "user-alice"}); err != nil {
		t.Fatal(err)
	}
	p := w.call("/api/v1/token", url.Values{"id_token": {w.idToken()}})
	p.refused(t, 400, "invalid_grant")
	p.want(t, 400, "service account")
	if len(w.sessions()) != 0 {
		t.Error("a session was made")
	}
}

func TestExchangeWithoutTheProvider(t *testing.T) {
	w := newWorld(t)
	raw := w.idToken()
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 })
	p := w.call("/api/v1/token", url.Values{"id_token": {raw}})
	p.refused(t, 503, "temporarily_unavailable")
	if p.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus, b.KeysStatus = 0, 500 })
	w.offset.Store(int64(time.Minute))
	w.call("/oauth2/token", exchanging(raw)).refused(t, 503, "temporarily_unavailable")
}

func TestMetadata(t *testing.T) {
	w := newWorld(t)
	p := w.browser().get(auth + "/.well-known/oauth-authorization-server")
	got := p.object(t, http.StatusOK)
	for name, want := range map[string]any{
		"issuer": auth, "authorization_endpoint": auth + "/oauth2/authorize", "token_endpoint": auth + "/oauth2/token",
		"device_authorization_endpoint": auth + "/oauth2/device_authorization", "revocation_endpoint": auth + "/oauth2/revoke",
		"authorization_response_iss_parameter_supported": true,
	} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	p.want(t, 200, `"code_challenge_methods_supported":["S256"]`, `"token_endpoint_auth_methods_supported":["none"]`,
		`"authorization_code"`, `"refresh_token"`, grantDevice, grantExchange)
	if p.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("a page elsewhere cannot read it")
	}
	w.browser().get(app+"/.well-known/oauth-authorization-server").want(t, http.StatusOK) // which is the application's
}
