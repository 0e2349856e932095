package authn_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
)

// bearing gives the application's route settings for bearer tokens.
func bearing(b *config.Bearer) func(*config.Config) {
	return func(c *config.Config) {
		b.ID = "bearer-" + string(b.Format)
		if b.Format != config.BearerJWT {
			b.IDPs = c.IDPs
		}
		for _, i := range b.Issuers {
			i.Issuer = c.IDPs[0].URL
		}
		c.Routes[0].Bearer = b
	}
}

func (w *world) bearer(token string) (*databroker.Session, error) {
	w.t.Helper()
	id, err := w.server.Load().BearerSession(context.Background(), w.cfg.Routes[0].Bearer, token)
	if err != nil {
		if id != "" {
			w.t.Error("a session comes with an error")
		}
		if strings.Contains(err.Error(), token) && len(token) > 3 {
			w.t.Error("the error holds the token")
		}
		return nil, err
	}
	session, err := w.store.Store.Session(context.Background(), id)
	if err != nil {
		w.t.Error(err)
	}
	return session, nil
}

func (w *world) wantBearer(name, token, user string, life time.Duration) {
	w.t.Helper()
	s, err := w.bearer(token)
	if err != nil {
		w.t.Errorf("%s: %v", name, err)
		return
	}
	left := s.ExpiresAt.Sub(w.now())
	if s.UserID != user || s.IDPID != w.cfg.Routes[0].Bearer.ID || s.Origin.Method != "bearer" || s.Tokens != (databroker.Tokens{}) || left > life || left < life-5*time.Second {
		w.t.Errorf("%s: got the session %+v", name, s)
	}
	if again, err := w.bearer(token); err != nil || again.ID != s.ID || again.Version != s.Version {
		w.t.Errorf("%s, again: got %+v, %v", name, again, err)
	}
	if u, err := w.store.User(context.Background(), user); err != nil || u.SignedInAt.IsZero() {
		w.t.Errorf("%s: the user is %+v, %v", name, u, err)
	}
}

func (w *world) wantNoBearer(name, token string) {
	w.t.Helper()
	if s, err := w.bearer(token); !errors.Is(err, authn.ErrBearer) {
		w.t.Errorf("%s: got %+v, %v, want ErrBearer", name, s, err)
	}
}

func TestBearerIdentityToken(t *testing.T) {
	// What the settings of the route were made of counts, not what is allowed now.
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken, Audiences: []string{"a-script"}}), func(c *config.Config) { c.Programs.Audiences = []string{"another"} })
	w.wantBearer("ours", w.idToken(), "user-alice", time.Hour)
	w.wantBearer("a script's", w.idp.IDToken("user-bob", "a-script"), "user-bob", time.Hour)
	for name, token := range map[string]string{
		"another audience": w.idp.IDToken("user-alice", "another"), "no token": "x", "empty": "", "dots": strings.Repeat(".", 1<<20), "long": strings.Repeat("x", 65<<10),
		"expired":         w.idToken(func(c map[string]any) { c["exp"] = w.now().Add(-time.Hour).Unix() }),
		"an access token": w.idp.AccessToken("user-alice", idptest.ClientID), "an opaque token": w.idp.OpaqueToken("user-alice"),
		"a token of ours": func() string { access, _ := w.byCode(); return access }(),
	} {
		w.wantNoBearer(name, token)
	}
}

func TestBearerAccessToken(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerAccessToken}))
	w.wantBearer("a JWT", w.idp.AccessToken("user-alice", "an-api"), "user-alice", time.Hour)
	opaque := w.idp.OpaqueToken("user-alice")
	w.wantBearer("an opaque one", opaque, "user-alice", 10*time.Minute)
	asked := w.idp.Count("userinfo")
	w.wantBearer("an opaque one, known", opaque, "user-alice", 10*time.Minute)
	if got := w.idp.Count("userinfo"); got != asked {
		t.Error("the provider was asked again for a token that is known")
	}
	w.offset.Store(int64(11 * time.Minute))
	w.wantBearer("an opaque one, later", opaque, "user-alice", 10*time.Minute)
	w.idp.Revoke()
	w.offset.Store(int64(22 * time.Minute))
	for name, token := range map[string]string{
		"revoked at the provider": opaque, "made up": "x", "an ID token": w.idToken(func(c map[string]any) { c["nonce"] = "n" }), "one of ours": func() string { access, _ := w.byCode(); return access }(),
	} {
		w.wantNoBearer(name, token)
	}
}

func TestBearerAccessTokenAudience(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerAccessToken, Audiences: []string{"an-api"}}))
	w.wantBearer("for us", w.idp.AccessToken("user-alice", "an-api"), "user-alice", time.Hour)
	w.wantNoBearer("for another", w.idp.AccessToken("user-alice", "another-api"))
	w.wantNoBearer("for nobody knows whom", w.idp.OpaqueToken("user-alice"))
}

func TestBearerOfSeveralProviders(t *testing.T) {
	b := &config.Bearer{Format: config.BearerAccessToken}
	w, _ := withChoice(t, bearing(b))
	asked := w.idp.Count("userinfo")
	w.wantNoBearer("an opaque one", w.idp.OpaqueToken("user-alice"))
	w.wantNoBearer("another issuer's", w.idp.AccessToken("user-alice", "an-api", func(c map[string]any) { c["iss"] = "https://evil.example" }))
	if got := w.idp.Count("userinfo"); got != asked {
		t.Error("a token was shown to a provider that may not be its own")
	}
	w.wantBearer("a JWT", w.idp.AccessToken("user-alice", "an-api"), "user-alice", time.Hour)
}

func TestBearerJWT(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{{Name: "ci", Audiences: []string{"an-api"}}}}))
	w.wantBearer("for us", w.idp.AccessToken("job-1", "an-api"), "ci/job-1", time.Hour)
	w.wantNoBearer("for another", w.idp.AccessToken("job-1", "another-api"))
	w.wantNoBearer("another issuer's", w.idp.AccessToken("job-1", "an-api", func(c map[string]any) { c["iss"] = "https://evil.example" }))
}

func TestBearerLastsNoLongerThanACookie(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}), func(c *config.Config) { c.Cookie.Expire = 5 * time.Minute })
	raw := w.idToken()
	w.wantBearer("ours", raw, "user-alice", 5*time.Minute)
	w.offset.Store(int64(6 * time.Minute))
	w.wantBearer("ours, later", raw, "user-alice", 5*time.Minute)
}

// A session of one route's settings is none of another's.
func TestBearerSessionsAreToldApart(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
	raw := w.idToken()
	first, err := w.bearer(raw)
	if err != nil {
		t.Fatal(err)
	}
	other := *w.cfg.Routes[0].Bearer
	other.ID = "another"
	w.cfg.Routes[0].Bearer = &other
	second, err := w.bearer(raw)
	if err != nil || second.ID == first.ID || second.IDPID != "another" {
		t.Errorf("got %+v, %v", second, err)
	}
	w.call("/api/v1/token", url.Values{"id_token": {raw}}).want(t, http.StatusOK)
	if n := len(w.sessions()); n != 3 {
		t.Errorf("%d sessions", n)
	}
}

func TestBearerAfterARevocation(t *testing.T) {
	for _, format := range []config.BearerFormat{config.BearerIdentityToken, config.BearerAccessToken} {
		t.Run(string(format), func(t *testing.T) {
			w := newWorld(t, bearing(&config.Bearer{Format: format}))
			mint := func() string { return w.idToken() }
			if format == config.BearerAccessToken {
				mint = func() string { return w.idp.OpaqueToken("user-alice") }
			}
			token := mint()
			s, err := w.bearer(token)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.store.RevokeSession(context.Background(), s.ID); err != nil {
				t.Fatal(err)
			}
			w.wantNoBearer("after its session was revoked", token)
			w.offset.Store(int64(30 * time.Minute))
			w.wantNoBearer("half an hour later", token)
			if len(w.sessions()) != 0 {
				t.Error("a session has come back")
			}
			w.offset.Store(int64(61 * time.Minute))
			if _, err := w.bearer(mint()); err != nil {
				t.Errorf("a new token: %v", err)
			}
		})
	}
}

func TestBearerRevocationRace(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
	w.store.Store = revoker{w.store.Store}
	w.wantNoBearer("revoked meanwhile", w.idToken())
	if len(w.sessions()) != 0 {
		t.Error("a session has outlived the revocation")
	}
}

// A logout at the provider ends what its tokens have bought, too.
func TestBearerAfterALogoutAtTheProvider(t *testing.T) {
	for name, logout := range map[string][2]string{"by sid": {"", "sid-1"}, "by sub": {"user-alice", ""}, "by both": {"user-alice", "sid-1"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
			raw := w.idToken(func(c map[string]any) { c["sid"] = "sid-1" })
			if _, err := w.bearer(raw); err != nil {
				t.Fatal(err)
			}
			w.call("/api/v1/token", url.Values{"id_token": {raw}}).want(t, http.StatusOK)
			w.call("/oauth2/backchannel_logout", url.Values{"logout_token": {w.idp.LogoutToken(logout[0], logout[1])}}).want(t, http.StatusOK)
			if n := len(w.sessions()); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
			w.wantNoBearer("after the logout", raw)
			w.call("/api/v1/token", url.Values{"id_token": {raw}}).refused(t, 400, "invalid_grant")
		})
	}
}

func TestBearerAtOnce(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
	raw := w.idToken()
	var group errgroup.Group
	for range 20 {
		group.Go(func() error {
			_, err := w.bearer(raw)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if n := len(w.sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestBearerOutages(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
	raw := w.idToken()
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 })
	if _, err := w.bearer(raw); err == nil || errors.Is(err, authn.ErrBearer) {
		t.Errorf("without the provider: got %v", err)
	}
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 0 })
	w.offset.Store(int64(time.Minute))
	w.store.Break(errFault)
	if _, err := w.bearer(raw); err == nil || errors.Is(err, authn.ErrBearer) {
		t.Errorf("without the store: got %v", err)
	}
	w.store.Heal()
	w.wantBearer("afterwards", raw, "user-alice", 59*time.Minute)
	if _, err := authn.New(authn.Config{Store: w.store}).BearerSession(context.Background(), w.cfg.Routes[0].Bearer, raw); err == nil || errors.Is(err, authn.ErrBearer) {
		t.Errorf("before a configuration: got %v", err)
	}
}

func TestBearerUnderAnAccountsID(t *testing.T) {
	w := newWorld(t, bearing(&config.Bearer{Format: config.BearerIdentityToken}))
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "1", UserID: "user-alice"}); err != nil {
		t.Fatal(err)
	}
	w.wantNoBearer("an account's id", w.idToken())
}
