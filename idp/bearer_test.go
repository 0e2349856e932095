package idp_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// set changes a claim of a token before it is signed; nil takes it away.
func set(name string, value any) func(map[string]any) {
	return func(claims map[string]any) {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
}

func later(d time.Duration) int64 { return time.Now().Add(d).Unix() }

func TestVerifyIDToken(t *testing.T) {
	programs := []string{idptest.PublicClientID}
	fake := idptest.NewProvider(t)
	for _, tt := range []struct {
		name      string
		aud       any
		change    func(map[string]any)
		audiences []string
		kind      idp.Kind
		text      string
	}{
		{"our own", idptest.ClientID, nil, nil, fine, ""},
		{"of a listed program", idptest.PublicClientID, nil, programs, fine, ""},
		{"of a program that is not listed", idptest.PublicClientID, nil, nil, idp.Invalid, `its aud is "countersign-test-program", want one of "countersign-test"`},
		{"of nobody", nil, nil, programs, idp.Invalid, "its aud is empty"},
		{"of many", []string{"1", "2", "3", "4", "5"}, set("azp", idptest.ClientID), nil, idp.Invalid, `"4" and more`},
		{"ours among others, and made for us", []string{"x", idptest.ClientID}, set("azp", idptest.ClientID), nil, fine, ""},
		{"ours among others, and made for a listed program", []string{"x", idptest.ClientID}, set("azp", idptest.PublicClientID), programs, fine, ""},
		{"ours among others, but made for another", []string{"x", idptest.ClientID}, set("azp", "x"), nil, idp.Invalid, "azp"},
		{"ours among others, but for nobody says who", []string{"x", idptest.ClientID}, nil, nil, idp.Invalid, "azp"},
		{"ours, but made for another", idptest.ClientID, set("azp", "x"), nil, idp.Invalid, "azp"},
		{"of another issuer", idptest.ClientID, set("iss", "https://evil.example"), nil, idp.Invalid, "its issuer is"},
		{"of no issuer", idptest.ClientID, set("iss", nil), nil, idp.Invalid, "its issuer is"},
		{"expired 50 s ago", idptest.ClientID, set("exp", later(-50*time.Second)), nil, fine, ""},
		{"expired 120 s ago", idptest.ClientID, set("exp", later(-120*time.Second)), nil, idp.Invalid, "by the clock of this host"},
		{"issued in 50 s", idptest.ClientID, set("iat", later(50*time.Second)), nil, fine, ""},
		{"issued in 120 s", idptest.ClientID, set("iat", later(120*time.Second)), nil, idp.Invalid, "clock"},
		{"not before 50 s", idptest.ClientID, set("nbf", later(50*time.Second)), nil, fine, ""},
		{"not before 120 s", idptest.ClientID, set("nbf", later(120*time.Second)), nil, idp.Invalid, "clock"},
		{"never expires", idptest.ClientID, set("exp", nil), nil, idp.Invalid, "lacks"},
		{"expires at nought", idptest.ClientID, set("exp", 0), nil, idp.Invalid, "exp is no time"},
		{"expires after all years", idptest.ClientID, set("exp", 1e30), nil, idp.Invalid, "exp is no time"},
		{"issued at no time", idptest.ClientID, set("iat", nil), nil, idp.Invalid, "lacks"},
		{"about nobody", idptest.ClientID, set("sub", nil), nil, idp.Invalid, "lacks"},
		{"about a number", idptest.ClientID, set("sub", 7), nil, idp.Invalid, "sub is not a text"},
		{"a logout token", idptest.ClientID, set("events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}), nil, idp.Invalid, "event"},
		{"keycloak's access token", idptest.ClientID, set("typ", "Bearer"), nil, idp.Invalid, "typ"},
		{"keycloak's ID token", idptest.ClientID, set("typ", "ID"), nil, fine, ""},
		{"an access token that says what for", idptest.ClientID, set("scope", "read"), nil, idp.Invalid, "it is an access token"},
		{"azure's access token", idptest.ClientID, set("scp", "api.read"), nil, idp.Invalid, "it is an access token"},
		{"an access token of another client", idptest.ClientID, set("client_id", "x"), nil, idp.Invalid, "its client_id is another client"},
		{"okta's access token of another client", idptest.ClientID, set("cid", "x"), nil, idp.Invalid, "its cid is another client"},
		{"azure's access token of another program", idptest.ClientID, set("appid", "x"), nil, idp.Invalid, "its appid is another client"},
		{"ours, of a client that is no text", idptest.ClientID, set("client_id", []string{idptest.ClientID}), nil, idp.Invalid, "its client_id is another client"},
		{"ours, which says so twice", idptest.ClientID, set("client_id", idptest.ClientID), nil, fine, ""},
		{"of a listed program, which says so twice", idptest.PublicClientID, set("client_id", idptest.PublicClientID), programs, fine, ""},
		{"claims named almost so", idptest.ClientID, func(c map[string]any) { c["ISS"], c["Aud"], c["iss"] = c["iss"], c["aud"], "https://evil.example" }, nil, idp.Invalid, "its issuer is"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake)
			change := tt.change
			if change == nil {
				change = func(map[string]any) {}
			}
			raw := w.fake.IDToken("user-alice", tt.aud, change)
			who, err := w.client.VerifyIDToken(context.Background(), raw, tt.audiences)
			w.wantKind(err, tt.kind, tt.text)
			if err != nil {
				if strings.Contains(err.Error(), raw) {
					t.Error("the error holds the token")
				}
				return
			}
			if who.UserID != "user-alice" || who.Claims["email"] != "alice@example.com" || who.Tokens != (databroker.Tokens{}) ||
				who.ExpiresAt.IsZero() || who.IssuedAt.IsZero() {
				t.Errorf("got %+v", who)
			}
		})
	}
}

func TestVerifyIDTokenThatIsNone(t *testing.T) {
	w := newWorld(t)
	good := w.fake.IDToken("user-alice", idptest.ClientID)
	parts := strings.Split(good, ".")
	mint := func(change func(*idptest.Behaviour)) string {
		w.change(change)
		defer w.change(func(b *idptest.Behaviour) { *b = idptest.Alice() })
		return w.fake.IDToken("user-alice", idptest.ClientID)
	}
	_, err := w.client.VerifyIDToken(context.Background(), w.fake.IDToken("user-alice", idptest.ClientID, set("x", strings.Repeat("x", 256<<10))), nil)
	w.wantKind(err, idp.Invalid, "it is larger than 256 KiB")
	for name, raw := range map[string]string{
		"nothing":           "",
		"dots":              strings.Repeat(".", 1<<20),
		"huge":              parts[0] + "." + strings.Repeat("A", 1<<20) + "." + parts[2],
		"no signature":      parts[0] + "." + parts[1] + ".",
		"another signature": parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"alg none":          mint(func(b *idptest.Behaviour) { b.Algorithm = "none" }),
		"alg HS256":         mint(func(b *idptest.Behaviour) { b.Algorithm = "HS256" }),
		"unpublished key":   mint(func(b *idptest.Behaviour) { b.WrongKey = true }),
		"JSON":              `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"an access token":   w.fake.AccessToken("user-alice", idptest.ClientID),
		"a logout token":    w.fake.LogoutToken("user-alice", "sid"),
		"a list":            w.fake.Sign("JWT", nil),
	} {
		t.Run(name, func(t *testing.T) {
			who, err := w.client.VerifyIDToken(context.Background(), raw, nil)
			w.wantKind(err, idp.Invalid, "verify id_token: ")
			if who != nil {
				t.Errorf("got %+v", who)
			}
		})
	}
}

func TestVerifyWhileProviderIsDown(t *testing.T) {
	w := newWorld(t)
	raw, access := w.fake.IDToken("user-alice", idptest.ClientID), w.fake.OpaqueToken("user-alice")
	w.change(func(b *idptest.Behaviour) { b.KeysStatus, b.UserInfoStatus = 500, 503 })
	_, err := w.client.VerifyIDToken(context.Background(), raw, nil)
	w.wantKind(err, idp.Unavailable, "500")
	_, err = w.client.VerifyLogoutToken(context.Background(), w.fake.LogoutToken("user-alice", ""))
	w.wantKind(err, idp.Unavailable, "500")
	_, err = w.client.VerifyAccessToken(context.Background(), access, nil)
	w.wantKind(err, idp.Unavailable, "503")
	down := newWorld(t)
	down.change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 })
	_, err = down.client.VerifyAccessToken(context.Background(), access, nil)
	down.wantKind(err, idp.Unavailable, "500")
}

func TestVerifyAccessToken(t *testing.T) {
	fake := idptest.NewProvider(t)
	api := []string{"api", "other"}
	for _, tt := range []struct {
		name      string
		token     func(*idptest.Provider) string
		audiences []string
		kind      idp.Kind
		text      string
	}{
		{"a JWT", func(p *idptest.Provider) string { return p.AccessToken("user-alice", "api") }, api, fine, ""},
		{"a JWT for several", func(p *idptest.Provider) string { return p.AccessToken("user-alice", []string{"x", "api"}) }, api, fine, ""},
		{"a JWT whose audience does not matter", func(p *idptest.Provider) string { return p.AccessToken("user-alice", "x") }, nil, fine, ""},
		{"a JWT for another", func(p *idptest.Provider) string { return p.AccessToken("user-alice", "x") }, api, idp.Invalid, `its aud is "x", want one of "api", "other"`},
		{"a JWT, and nobody may", func(p *idptest.Provider) string { return p.AccessToken("user-alice", "x") }, []string{}, idp.Invalid, "its aud is"},
		{"a JWT that has expired", func(p *idptest.Provider) string {
			return p.AccessToken("user-alice", "api", set("exp", later(-2*time.Minute)))
		}, api, idp.Invalid, "expired"},
		{"a JWT that never expires", func(p *idptest.Provider) string { return p.AccessToken("user-alice", "api", set("exp", nil)) }, api, idp.Invalid, "lacks"},
		{"a JWT of another issuer", func(p *idptest.Provider) string {
			return p.AccessToken("user-alice", "api", set("iss", "https://evil.example"))
		}, api, idp.Invalid, "issuer"},
		{"a JWT without typ", func(p *idptest.Provider) string {
			return p.Sign("", map[string]any{"iss": p.URL, "sub": "user-alice", "aud": "api", "exp": later(time.Hour), "email": "alice@example.com", "scope": "x"})
		}, api, fine, ""},
		{"an ID token without nonce", func(p *idptest.Provider) string { return p.IDToken("user-alice", "api") }, api, idp.Invalid, "ID token"},
		{"cognito's ID token", func(p *idptest.Provider) string {
			return p.IDToken("user-alice", "api", set("token_use", "id"), set("client_id", "api"))
		}, api, idp.Invalid, "ID token"},
		{"keycloak's access token", func(p *idptest.Provider) string { return p.IDToken("user-alice", "api", set("typ", "Bearer")) }, api, fine, ""},
		{"an ID token with roles", func(p *idptest.Provider) string {
			return p.IDToken("user-alice", "api", set("roles", []string{"reader"}))
		}, api, idp.Invalid, "ID token"},
		{"azure's access token of a program", func(p *idptest.Provider) string {
			return p.IDToken("user-alice", "api", set("roles", []string{"reader"}), set("azpacr", "1"))
		}, api, fine, ""},
		{"azure's first access token of a program", func(p *idptest.Provider) string {
			return p.IDToken("user-alice", "api", set("roles", []string{"reader"}), set("appid", "x"))
		}, api, fine, ""},
		{"an ID token", func(p *idptest.Provider) string {
			return p.IDToken("user-alice", "api", set("nonce", "x"), set("scope", "x"))
		}, api, idp.Invalid, "ID token"},
		{"keycloak's ID token", func(p *idptest.Provider) string { return p.IDToken("user-alice", "api", set("typ", "ID")) }, api, idp.Invalid, "typ"},
		{"keycloak's refresh token", func(p *idptest.Provider) string { return p.IDToken("user-alice", "api", set("typ", "Refresh")) }, api, idp.Invalid, "typ"},
		{"a logout token", func(p *idptest.Provider) string { return p.LogoutToken("user-alice", "", set("aud", "api")) }, api, idp.Invalid, "typ"},
		{"an opaque one", func(p *idptest.Provider) string { return p.OpaqueToken("user-alice") }, nil, fine, ""},
		{"an opaque one whose audience matters", func(p *idptest.Provider) string { return p.OpaqueToken("user-alice") }, api, idp.Invalid, "nothing tells its aud"},
		{"a made-up one", func(*idptest.Provider) string { return "made-up" }, nil, idp.Invalid, "401"},
		{"a made-up JWT", func(*idptest.Provider) string { return "e30.e30.e30" }, nil, idp.Invalid, "no JWT"},
		{"nothing", func(*idptest.Provider) string { return "" }, nil, idp.Invalid, "empty"},
		{"a long one", func(*idptest.Provider) string { return strings.Repeat("x", 9<<10) }, nil, idp.Invalid, "longer than 8 KiB"},
		{"two lines", func(*idptest.Provider) string { return "x\r\nX-Forged: 1" }, nil, idp.Invalid, "characters"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, func(s *config.IdentityProvider) { s.Name = "corp" })
			who, err := w.client.VerifyAccessToken(context.Background(), tt.token(w.fake), tt.audiences)
			w.wantKind(err, tt.kind, tt.text)
			if err == nil && (who.UserID != "corp/user-alice" || who.Claims["email"] != "alice@example.com" || who.Tokens != (databroker.Tokens{})) {
				t.Errorf("got %+v", who)
			}
		})
	}
}

// A JWT for something other than userinfo is good for what it says of itself.
func TestVerifyAccessTokenThatUserInfoRefuses(t *testing.T) {
	w := newWorld(t)
	raw := w.fake.AccessToken("user-alice", "api")
	w.fake.Revoke()
	who, err := w.client.VerifyAccessToken(context.Background(), raw, []string{"api"})
	if err != nil || who.UserID != "user-alice" || who.Claims["email"] != nil {
		t.Errorf("got %+v, %v", who, err)
	}
	w.change(func(b *idptest.Behaviour) { b.UserInfoStatus = 500 })
	_, err = w.client.VerifyAccessToken(context.Background(), raw, []string{"api"})
	w.wantKind(err, idp.Unavailable, "500")
	w.change(func(b *idptest.Behaviour) { b.UserInfoStatus, b.UserInfoSubject = 0, "mallory" })
	_, err = w.client.VerifyAccessToken(context.Background(), w.fake.AccessToken("user-alice", "api"), []string{"api"})
	w.wantKind(err, idp.Invalid, "another subject")
}

// Whoever brings made-up tokens has us ask the provider about few at once.
func TestLookupsAreBounded(t *testing.T) {
	w := newWorld(t)
	var g errgroup.Group
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	w.change(func(b *idptest.Behaviour) {
		b.OnRequest = func(endpoint string, r *http.Request) {
			if endpoint == "userinfo" {
				<-r.Context().Done()
			}
		}
	})
	for range 100 {
		g.Go(func() error {
			_, err := w.client.VerifyAccessToken(ctx, "made-up", nil)
			w.wantKind(err, idp.Unavailable, "")
			return nil
		})
	}
	_ = g.Wait()
	if got := w.fake.Count("userinfo"); got == 0 || got > 64 {
		t.Errorf("%d requests for 100 tokens, want at most 64", got)
	}
}

func TestVerifyLogoutToken(t *testing.T) {
	fake := idptest.NewProvider(t)
	const event = "http://schemas.openid.net/event/backchannel-logout"
	for _, tt := range []struct {
		name     string
		sub, sid string
		change   func(map[string]any)
		kind     idp.Kind
		text     string
	}{
		{"of a person", "user-alice", "", nil, fine, ""},
		{"of a session", "", "sid-1", nil, fine, ""},
		{"of both", "user-alice", "sid-1", nil, fine, ""},
		{"of nobody", "", "", nil, idp.Invalid, "neither a person nor a session"},
		{"without exp", "user-alice", "", set("exp", nil), fine, ""},
		{"without exp, long ago", "user-alice", "", func(c map[string]any) { delete(c, "exp"); c["iat"] = later(-4 * time.Minute) }, idp.Invalid, "more than two minutes ago"},
		{"for another client", "user-alice", "", set("aud", "x"), idp.Invalid, "aud"},
		{"of another issuer", "user-alice", "", set("iss", "https://evil.example"), idp.Invalid, "issuer"},
		{"with a nonce", "user-alice", "", set("nonce", "x"), idp.Invalid, "nonce"},
		{"without events", "user-alice", "", set("events", nil), idp.Invalid, "events"},
		{"with another event", "user-alice", "", set("events", map[string]any{"x": map[string]any{}}), idp.Invalid, "events"},
		{"with an event that is no object", "user-alice", "", set("events", map[string]any{event: true}), idp.Invalid, "events"},
		{"without jti", "user-alice", "", set("jti", nil), idp.Invalid, "jti"},
		{"with a long jti", "user-alice", "", set("jti", strings.Repeat("x", 256)), idp.Invalid, "jti"},
		{"without iat", "user-alice", "", set("iat", nil), idp.Invalid, "iat"},
		{"expired 50 s ago", "user-alice", "", set("exp", later(-50*time.Second)), fine, ""},
		{"expired 120 s ago", "user-alice", "", set("exp", later(-120*time.Second)), idp.Invalid, "clock"},
		{"issued in 120 s", "user-alice", "", set("iat", later(120*time.Second)), idp.Invalid, "clock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, func(s *config.IdentityProvider) { s.Name = "corp" })
			change := tt.change
			if change == nil {
				change = func(map[string]any) {}
			}
			out, err := w.client.VerifyLogoutToken(context.Background(), w.fake.LogoutToken(tt.sub, tt.sid, change))
			w.wantKind(err, tt.kind, tt.text)
			if err != nil {
				return
			}
			user := ""
			if tt.sub != "" {
				user = "corp/" + tt.sub
			}
			if out.UserID != user || out.SessionID != tt.sid || out.JTI == "" || out.IssuedAt.IsZero() || out.ExpiresAt.Before(time.Now()) {
				t.Errorf("got %+v", out)
			}
		})
	}
	w := worldAt(t, fake)
	for name, raw := range map[string]string{
		"an ID token":     w.fake.IDToken("user-alice", idptest.ClientID),
		"an access token": w.fake.AccessToken("user-alice", idptest.ClientID),
	} {
		_, err := w.client.VerifyLogoutToken(context.Background(), raw)
		w.wantKind(err, idp.Invalid, "")
		if err == nil {
			t.Errorf("%s signs somebody out", name)
		}
	}
}

func TestVerifyIssuers(t *testing.T) {
	one, two := idptest.NewProvider(t), idptest.NewProvider(t)
	w := worldAt(t, one)
	w.change(func(b *idptest.Behaviour) {
		b.Discovery = map[string]any{"authorization_endpoint": nil, "token_endpoint": nil}
	})
	bearer := &config.Bearer{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{
		{Name: "one", Issuer: one.URL, Audiences: []string{"api"}},
		{Name: "one-more", Issuer: one.URL, Audiences: []string{"batch"}, Algorithms: []string{"RS256"}},
		{Name: "two", Issuer: "https://two.example", JWKSURL: two.URL + "/keys", Audiences: []string{"api"}},
		{Name: "strict", Issuer: "https://strict.example", JWKSURL: two.URL + "/keys", Audiences: []string{"api"}, Algorithms: []string{"ES256"}},
		{Name: "plain", Issuer: "http://plain.example", JWKSURL: two.URL + "/keys", Audiences: []string{"api"}},
		{Name: "anyone", Issuer: "https://anyone.example", JWKSURL: two.URL + "/keys"},
	}}
	cfg := &config.Config{Routes: []*config.Route{{ID: "1"}, {ID: "2", Bearer: bearer}}}
	issuers := idp.NewIssuers(w.config(), cfg, nil)
	t.Cleanup(issuers.Wait)
	claims := func(iss, aud string, change ...func(map[string]any)) map[string]any {
		c := map[string]any{"iss": iss, "aud": aud, "sub": "robot", "exp": later(time.Hour), "email": "robot@example.com", "auth_time": later(0)}
		for _, f := range change {
			f(c)
		}
		return c
	}
	for _, tt := range []struct {
		name   string
		raw    string
		userID string
		kind   idp.Kind
		text   string
	}{
		{"by discovery", one.Sign("JWT", claims(one.URL, "api")), "one/robot", fine, ""},
		{"by another audience", one.Sign("at+jwt", claims(one.URL, "batch")), "one-more/robot", fine, ""},
		{"by jwks_url", two.Sign("", claims("https://two.example", "api")), "two/robot", fine, ""},
		{"for nobody", one.Sign("JWT", claims(one.URL, "x")), "", idp.Invalid, `its aud is "x"`},
		{"with keys of another issuer", one.Sign("JWT", claims("https://two.example", "api")), "", idp.Invalid, "not made with a key"},
		{"of an unknown issuer", one.Sign("JWT", claims("https://evil.example", "api")), "", idp.Invalid, `"https://evil.example" is not in identity_providers`},
		{"of no issuer", one.Sign("JWT", claims("", "api")), "", idp.Invalid, "not in identity_providers"},
		{"with another algorithm", two.Sign("JWT", claims("https://strict.example", "api")), "", idp.Invalid, "[ES256]"},
		{"of an issuer without https", two.Sign("JWT", claims("http://plain.example", "api")), "", idp.Misconfigured, "https"},
		{"of an issuer without aud", two.Sign("JWT", claims("https://anyone.example", "api")), "", idp.Misconfigured, "aud"},
		{"expired", one.Sign("JWT", claims(one.URL, "api", set("exp", later(-3*time.Minute)))), "", idp.Invalid, "expired 3m"},
		{"without exp", one.Sign("JWT", claims(one.URL, "api", set("exp", nil))), "", idp.Invalid, "lacks"},
		{"without sub", one.Sign("JWT", claims(one.URL, "api", set("sub", nil))), "", idp.Invalid, "lacks"},
		{"a logout token", one.LogoutToken("robot", "", set("aud", "api")), "", idp.Invalid, "typ"},
		{"garbage", "x.y.z", "", idp.Invalid, "no JWT"},
		{"dots", strings.Repeat(".", 1<<20), "", idp.Invalid, "no JWT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			who, err := issuers.Verify(context.Background(), bearer, tt.raw)
			w.wantKind(err, tt.kind, tt.text)
			if err != nil {
				return
			}
			want := map[string]any{"sub": "robot", "email": "robot@example.com"}
			if d := cmp.Diff(want, who.Claims); d != "" || who.UserID != tt.userID || who.Subject != "robot" || who.ExpiresAt.IsZero() {
				t.Errorf("got %+v: %s", who, d)
			}
		})
	}
	w.t = t
	// Of another setting's issuers none counts here.
	other := &config.Bearer{Format: config.BearerJWT, Issuers: bearer.Issuers[2:]}
	_, err := issuers.Verify(context.Background(), other, one.Sign("JWT", claims(one.URL, "api")))
	w.wantKind(err, idp.Invalid, "not in identity_providers")
	// The keys are taken over.
	fetched := one.Count("keys")
	next := idp.NewIssuers(w.config(), cfg, issuers)
	if _, err := next.Verify(context.Background(), bearer, one.Sign("JWT", claims(one.URL, "api"))); err != nil || one.Count("keys") != fetched {
		t.Errorf("after a new configuration: %v, with %d fetches more", err, one.Count("keys")-fetched)
	}
	// And an issuer that is down is not the token's fault.
	two.Change(func(b *idptest.Behaviour) { b.KeysStatus = 500 })
	empty := idp.NewIssuers(w.config(), cfg, nil)
	_, err = empty.Verify(context.Background(), bearer, two.Sign("", claims("https://two.example", "api")))
	w.wantKind(err, idp.Unavailable, "500")
}
