package idp_test

import (
	"context"
	"strings"
	"testing"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// Userinfo cannot know of a sign-in, whichever token it was read with.
func TestUserInfoKnowsNoSignIn(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.Claims = map[string]any{"name": "Alice"}
		b.UserInfo = map[string]any{"auth_time": 99999999999, "acr": "gold", "amr": []string{"hwk"}, "email": "alice@example.com"}
	})
	for name, raw := range map[string]string{
		"an opaque token": w.fake.OpaqueToken("user-alice"),
		"a JWT":           w.fake.AccessToken("user-alice", "api"),
	} {
		who, err := w.client.VerifyAccessToken(context.Background(), raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if who.Claims["email"] != "alice@example.com" {
			t.Errorf("%s: userinfo was not read: %v", name, who.Claims)
		}
		for _, claim := range []string{"auth_time", "acr", "amr"} {
			if v, ok := who.Claims[claim]; ok {
				t.Errorf("%s: %s is %v", name, claim, v)
			}
		}
	}
}

// TestAddressOfUserInfo shows whose word an address in the userinfo is believed on.
func TestAddressOfUserInfo(t *testing.T) {
	fake := idptest.NewProvider(t)
	for _, tt := range []struct {
		name, kind      string
		token, userinfo map[string]any
		email           any
	}{
		{"the token has verified another", "oidc", map[string]any{"email": "a@x.example", "email_verified": true}, map[string]any{"email": "b@x.example", "email_verified": nil}, nil},
		{"the token has not verified another", "oidc", map[string]any{"email": "a@x.example", "email_verified": false}, map[string]any{"email": "b@x.example", "email_verified": nil}, nil},
		{"the token has verified nothing", "oidc", map[string]any{"email_verified": true}, map[string]any{"email": "b@x.example", "email_verified": nil}, nil},
		{"userinfo has verified another", "oidc", map[string]any{"email": "a@x.example", "email_verified": false}, map[string]any{"email": "b@x.example", "email_verified": true}, "b@x.example"},
		{"userinfo has not verified the same", "oidc", map[string]any{"email": "a@x.example", "email_verified": true}, map[string]any{"email_verified": false}, nil},
		{"the token has verified the same", "oidc", map[string]any{"email": "a@x.example", "email_verified": true}, map[string]any{"email_verified": nil}, "a@x.example"},
		{"the same in capitals", "oidc", map[string]any{"email": "a@x.example", "email_verified": true}, map[string]any{"email": "A@X.example", "email_verified": nil}, "A@X.example"},
		{"nobody speaks of it", "oidc", map[string]any{"email": "a@x.example"}, map[string]any{"email": "b@x.example"}, "b@x.example"},
		{"another in mail", "ping", map[string]any{"mail": "a@x.example", "email_verified": true}, map[string]any{"mail": "b@x.example", "email_verified": nil}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, kindOf(tt.kind, ""))
			w.change(func(b *idptest.Behaviour) { b.Claims, b.UserInfo = tt.token, tt.userinfo })
			who, err := w.signIn()
			if err != nil {
				t.Fatal(err)
			}
			if who.Claims["email"] != tt.email {
				t.Errorf("got %v, want email %v", who.Claims, tt.email)
			}
		})
	}
	// At a provider of many tenants the token vouches for the domain of its own
	// address alone.
	w := worldAt(t, fake, kindOf("azure", "/common/v2.0"))
	w.change(func(b *idptest.Behaviour) {
		b.Discovery, b.Issuer = map[string]any{"issuer": fake.URL + "/{tenantid}/v2.0"}, fake.URL+"/"+tenantA+"/v2.0"
		b.Claims = map[string]any{"tid": tenantA, "oid": "oid-alice", "email": "a@x.example", "xms_edov": true}
		b.UserInfo = map[string]any{"email": "b@x.example", "xms_edov": nil}
	})
	if who, err := w.signIn(); err != nil || who.Claims["email"] != nil {
		t.Errorf("got %+v, %v", who, err)
	}
}

// TestUserIDsOfOthers shows that a provider without a name cannot speak of people of
// others, by whatever it gives us.
func TestUserIDsOfOthers(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.Subject, b.RotateRefresh = "staff/123", true })
	before := w.signedIn()
	if before.UserID != "staff/123" {
		t.Fatalf("got the user %q", before.UserID)
	}
	refused := func(sub string) {
		t.Helper()
		w.change(func(b *idptest.Behaviour) { b.Subject = sub })
		_, err := w.signIn()
		w.wantKind(err, idp.Unusable, "in the configuration")
		_, err = w.client.VerifyIDToken(context.Background(), w.fake.IDToken(sub, idptest.ClientID), nil)
		w.wantKind(err, idp.Invalid, "in the configuration")
		for _, raw := range []string{w.fake.OpaqueToken(sub), w.fake.AccessToken(sub, "x")} {
			_, err = w.client.VerifyAccessToken(context.Background(), raw, nil)
			w.wantKind(err, idp.Invalid, "in the configuration")
		}
		_, err = w.client.VerifyLogoutToken(context.Background(), w.fake.LogoutToken(sub, "sid"))
		w.wantKind(err, idp.Invalid, "in the configuration")
	}
	named := *w.cfg.IDPs[0]
	named.Name, named.ClientID = "staff", "another"
	issuer := &config.TokenIssuer{Name: "robots", Issuer: w.fake.URL, Audiences: []string{"x"}}
	taken := *w.cfg
	taken.IDPs = append(taken.IDPs[:1:1], &named)
	taken.Routes = []*config.Route{{ID: "1"}, {ID: "2", Bearer: &config.Bearer{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{issuer}}}}
	set := idp.NewSet(w.config(), &taken, w.set)
	if set.Get(w.client.ID()) != w.client {
		t.Fatal("the provider is not the one of before")
	}
	refused("staff/123")
	refused("Staff/1/2")
	refused("robots/7")
	_, err := w.client.Refresh(context.Background(), before)
	w.wantKind(err, idp.Unusable, "in the configuration")
	if w.fake.Count("refresh") != 0 {
		t.Error("a refresh token was used up for nothing")
	}
	for _, sub := range []string{"staff", "other/123", "/123", "x/staff/123"} {
		w.change(func(b *idptest.Behaviour) { b.Subject = sub })
		if who, err := w.signIn(); err != nil || who.UserID != sub {
			t.Errorf("%s: got %+v, %v", sub, who, err)
		}
	}
	// A configuration without the names takes nobody's.
	idp.NewSet(w.config(), w.cfg, set)
	w.change(func(b *idptest.Behaviour) { b.Subject = "staff/123" })
	if who, err := w.signIn(); err != nil || who.UserID != "staff/123" {
		t.Errorf("got %+v, %v", who, err)
	}
}

// A user's id is one that the databroker keeps.
func TestUserIDsAreKept(t *testing.T) {
	name := strings.Repeat("n", 64)
	w := newWorld(t, func(s *config.IdentityProvider) { s.Name = name })
	longest := strings.Repeat("s", 256-64-1)
	issuers := &config.Bearer{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{{Name: name, Issuer: w.fake.URL, Audiences: []string{"x"}}}}
	jwts := idp.NewIssuers(w.config(), &config.Config{Routes: []*config.Route{{Bearer: issuers}}}, nil)
	for sub, kind := range map[string]idp.Kind{longest: fine, longest + "x": idp.Invalid, "a\x00b": idp.Invalid, "a\xffb": idp.Invalid} {
		_, err := w.client.VerifyIDToken(context.Background(), w.fake.IDToken(sub, idptest.ClientID), nil)
		w.wantKind(err, kind, "its sub")
		_, err = w.client.VerifyAccessToken(context.Background(), w.fake.AccessToken(sub, "x"), nil)
		w.wantKind(err, kind, "its sub")
		_, err = w.client.VerifyLogoutToken(context.Background(), w.fake.LogoutToken(sub, "sid"))
		w.wantKind(err, kind, "its sub")
		_, err = jwts.Verify(context.Background(), issuers, w.fake.AccessToken(sub, "x"))
		w.wantKind(err, kind, "its sub")
	}
}
