package idp_test

import (
	"context"
	"crypto/rand"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

func TestRefresh(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.SessionID, b.Claims["acr"] = "sid-1", "gold" })
	old := w.signedIn()
	w.change(func(b *idptest.Behaviour) {
		b.Claims = map[string]any{"name": "Alice B.", "email": "alice@example.com", "amr": []string{"otp"}}
		b.UserInfo = map[string]any{"groups": []string{"ops"}}
		b.RotateRefresh, b.Lifetime = true, 5*time.Minute
		b.AuthTime = w.now().Unix() - 1
	})
	w.offset.Store(int64(10 * time.Second))
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"sub": "user-alice", "name": "Alice B.", "email": "alice@example.com", "groups": []any{"ops"}, "sid": "sid-1",
		"acr": "gold", "amr": []any{"otp"}, "auth_time": old.Claims["auth_time"],
	}
	if d := cmp.Diff(want, fresh.Claims); d != "" {
		t.Errorf("claims: %s", d)
	}
	got := fresh.Tokens
	if got.AccessToken == old.Tokens.AccessToken || got.RefreshToken == old.Tokens.RefreshToken || got.IDToken == old.Tokens.IDToken ||
		!got.IDTokenExpiresAt.Equal(fresh.ExpiresAt) || got.ExpiresAt.Sub(w.now().Add(5*time.Minute)).Abs() > 5*time.Second {
		t.Errorf("tokens are not new: %+v", got)
	}
	if fresh.UserID != "user-alice" || fresh.Subject != "user-alice" || fresh.SessionID != "sid-1" || fresh.ClaimsStale {
		t.Errorf("got %+v", fresh)
	}
	if old.Claims["acr"] != "gold" || old.Claims["name"] != "Alice" {
		t.Errorf("the old session was changed: %v", old.Claims)
	}

	// The one that is used up says so, and ends what came of it.
	_, err = w.client.Refresh(context.Background(), old)
	w.wantKind(err, idp.Refused, "invalid_grant")
	if w.fake.Count("reuse") != 1 {
		t.Error("the provider did not see the reuse")
	}
}

func TestRefreshKeepsWhatIsLeftOut(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.NoUserInfo, b.NoRefreshedIDToken = true, true })
	old := w.signedIn()
	w.change(func(b *idptest.Behaviour) { b.Claims = map[string]any{} })
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(old.Claims, fresh.Claims); d != "" || fresh.ClaimsStale {
		t.Errorf("neither ID token nor userinfo, but claims changed (stale: %v): %s", fresh.ClaimsStale, d)
	}
	if fresh.Tokens.RefreshToken != old.Tokens.RefreshToken || fresh.Tokens.IDToken != old.Tokens.IDToken ||
		!fresh.Tokens.IDTokenExpiresAt.IsZero() || fresh.Tokens.AccessToken == old.Tokens.AccessToken {
		t.Errorf("got tokens %+v", fresh.Tokens)
	}
}

func TestRefreshByIDTokenAlone(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.NoUserInfo, b.SessionID = true, "sid-1" })
	old := w.signedIn()
	w.change(func(b *idptest.Behaviour) { b.Claims, b.SessionID = map[string]any{"name": "A"}, "sid-2" })
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"sub": "user-alice", "sid": "sid-2", "name": "A", "auth_time": old.Claims["auth_time"]}
	if d := cmp.Diff(want, fresh.Claims); d != "" || fresh.SessionID != "sid-2" {
		t.Errorf("got session %q: %s", fresh.SessionID, d)
	}
	w.change(func(b *idptest.Behaviour) { b.SessionID = "" })
	if fresh, err = w.client.Refresh(context.Background(), sessionOf(fresh)); err != nil || fresh.SessionID != "sid-2" {
		t.Errorf("an ID token without sid: got %+v, %v", fresh, err)
	}
}

// A group that only userinfo told of goes when userinfo tells of it no more.
func TestRefreshByUserInfoAlone(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.NoRefreshedIDToken, b.Claims, b.UserInfo = true, map[string]any{"department": "x"}, map[string]any{"groups": []string{"eng"}}
	})
	old := w.signedIn()
	w.change(func(b *idptest.Behaviour) { b.Claims, b.UserInfo = nil, map[string]any{"name": "A"} })
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"sub": "user-alice", "department": "x", "name": "A", "auth_time": old.Claims["auth_time"]}
	if d := cmp.Diff(want, fresh.Claims); d != "" {
		t.Error(d)
	}
}

func TestRefreshKeepsEmailUnverified(t *testing.T) {
	w := newWorld(t)
	old := w.signedIn()
	w.change(func(b *idptest.Behaviour) { b.UserInfo = map[string]any{"email_verified": false} })
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil || fresh.Claims["email"] != nil || fresh.Claims["unverified_email"] != "alice@example.com" {
		t.Errorf("got %+v, %v", fresh, err)
	}
}

// What a provider may answer to a refresh. Stale says that the new tokens are kept
// with the old claims.
func TestRefreshFailures(t *testing.T) {
	fake := idptest.NewProvider(t)
	for _, tt := range []struct {
		name   string
		change func(*idptest.Behaviour)
		kind   idp.Kind
		text   string
		stale  bool
	}{
		{"revoked", func(b *idptest.Behaviour) { b.TokenError = "invalid_grant" }, idp.Refused, "refresh: provider answered 400 \"invalid_grant\"", false},
		{"revoked, with a 401", func(b *idptest.Behaviour) { b.TokenStatus, b.TokenError = 401, "invalid_grant" }, idp.Refused, "invalid_grant", false},
		{"500", func(b *idptest.Behaviour) { b.TokenStatus = 500 }, idp.Unavailable, "500", false},
		{"503 that calls the grant invalid", func(b *idptest.Behaviour) { b.TokenStatus, b.TokenError = 503, "invalid_grant" }, idp.Unavailable, "503", false},
		{"429", func(b *idptest.Behaviour) { b.TokenStatus = 429 }, idp.Unavailable, "429", false},
		{"trouble, with a 400", func(b *idptest.Behaviour) { b.TokenError = "temporarily_unavailable" }, idp.Unavailable, "temporarily_unavailable", false},
		{"wrong secret", func(b *idptest.Behaviour) { b.TokenStatus, b.TokenError = 401, "invalid_client" }, idp.Misconfigured, "invalid_client", false},
		{"401 without a word", func(b *idptest.Behaviour) { b.TokenStatus = 401 }, idp.Misconfigured, "401", false},
		{"unauthorized client", func(b *idptest.Behaviour) { b.TokenError = "unauthorized_client" }, idp.Misconfigured, "unauthorized_client", false},
		{"unknown error", func(b *idptest.Behaviour) { b.TokenError = "what" }, idp.Unusable, "what", false},
		{"ID token of another", func(b *idptest.Behaviour) { b.Claims = map[string]any{"sub": "mallory"} }, idp.Unusable, "not about the person", false},
		{"ID token of another issuer", func(b *idptest.Behaviour) { b.Issuer = "https://evil.example" }, idp.Unusable, "issuer", false},
		{"userinfo of another", func(b *idptest.Behaviour) { b.UserInfoSubject = "mallory" }, idp.Unusable, "another subject", false},
		{"nonce of the sign-in", func(b *idptest.Behaviour) { b.RefreshedNonce = nonce }, fine, "", false},
		{"another nonce", func(b *idptest.Behaviour) { b.RefreshedNonce = "x" }, fine, "nonce", true},
		{"alg none", func(b *idptest.Behaviour) { b.Algorithm = "none" }, fine, "no JWT signed", true},
		{"wrong audience", func(b *idptest.Behaviour) { b.Audience = "x" }, fine, "aud", true},
		{"clock is 120 s ahead", func(b *idptest.Behaviour) { b.Skew = 120 * time.Second }, fine, "clock", true},
		{"userinfo answers 500", func(b *idptest.Behaviour) { b.UserInfoStatus = 500 }, fine, "500", true},
		{"userinfo answers 401", func(b *idptest.Behaviour) { b.UserInfoStatus = 401 }, fine, "401", true},
		{"claims too large", func(b *idptest.Behaviour) { b.UserInfo = map[string]any{"groups": idptest.Groups(30000)} }, fine, "claims", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake)
			w.change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Claims["sub"] = true, "user-alice" })
			old := w.signedIn()
			w.change(func(b *idptest.Behaviour) { b.Claims = map[string]any{} })
			w.change(tt.change)
			fresh, err := w.client.Refresh(context.Background(), old)
			w.wantKind(err, tt.kind, tt.text)
			if err != nil {
				return
			}
			if fresh.ClaimsStale != tt.stale {
				t.Fatalf("ClaimsStale is %v (%v), want %v", fresh.ClaimsStale, fresh.StaleCause, tt.stale)
			}
			if !tt.stale {
				return
			}
			w.wantKind(&idp.Error{Kind: idp.Unusable, Cause: fresh.StaleCause}, idp.Unusable, tt.text)
			if d := cmp.Diff(old.Claims, fresh.Claims); d != "" || fresh.UserID != old.UserID {
				t.Errorf("claims are not the old ones: %s", d)
			}
			if fresh.Tokens.IDToken != old.Tokens.IDToken || !fresh.Tokens.IDTokenExpiresAt.IsZero() || fresh.Tokens.RefreshToken == old.Tokens.RefreshToken {
				t.Errorf("tokens: %+v", fresh.Tokens)
			}
			// The new refresh token is good: nothing is lost.
			w.change(func(b *idptest.Behaviour) { *b = idptest.Alice() })
			if again, err := w.client.Refresh(context.Background(), sessionOf(fresh)); err != nil || again.ClaimsStale {
				t.Errorf("the next refresh: %+v, %v", again, err)
			}
		})
	}
}

// Keys that cannot be had cost nobody the refresh token.
func TestRefreshWhileKeysAreAway(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.RotateRefresh = true })
	old := w.signedIn()
	w.fake.RotateKeys()
	w.change(func(b *idptest.Behaviour) { b.KeysStatus = 503 })
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil || !fresh.ClaimsStale || fresh.Tokens.RefreshToken == old.Tokens.RefreshToken {
		t.Fatalf("got %+v, %v", fresh, err)
	}
}

func TestRefreshWithoutToken(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.NoRefreshToken = true })
	_, err := w.client.Refresh(context.Background(), w.signedIn())
	w.wantKind(err, idp.Unsupported, "no refresh token")
}

func TestRefreshOfAnotherUsersSession(t *testing.T) {
	w := newWorld(t)
	old := w.signedIn()
	old.UserID = "mallory"
	_, err := w.client.Refresh(context.Background(), old)
	w.wantKind(err, idp.Unusable, "not about the person")
}

func TestRefreshIsNotWaitedForLong(t *testing.T) {
	w := newWorld(t)
	old := w.signedIn()
	ctx, cancel := context.WithCancel(context.Background())
	w.change(func(b *idptest.Behaviour) {
		b.OnToken = func(r *http.Request) {
			cancel()
			<-r.Context().Done()
		}
	})
	_, err := w.client.Refresh(ctx, old)
	w.wantKind(err, idp.Unavailable, "canceled")
}

// A session from a store with nothing but its tokens is refreshed, too.
func TestRefreshOfBareSession(t *testing.T) {
	w := newWorld(t)
	old := w.signedIn()
	bare := &databroker.Session{UserID: old.UserID, Claims: maps.Clone(old.Claims), Tokens: databroker.Tokens{RefreshToken: old.Tokens.RefreshToken}}
	w.change(func(b *idptest.Behaviour) { b.NoRefreshedIDToken = true })
	fresh, err := w.client.Refresh(context.Background(), bare)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(old.Claims, fresh.Claims); d != "" {
		t.Error(d)
	}
}

// A token that the databroker would not keep stops neither a sign-in nor a refresh,
// and the claims are the new ones.
func TestLongIDTokenIsNotKept(t *testing.T) {
	w := newWorld(t)
	long := func(name string) {
		w.change(func(b *idptest.Behaviour) {
			b.NoUserInfo, b.Claims = true, map[string]any{"name": name, "x": strings.Repeat("x", 60<<10)}
		})
	}
	store := databroker.NewMemory(databroker.MemoryConfig{})
	keep := func(s *databroker.Session) {
		t.Helper()
		if s.Tokens.IDToken != "" || !s.Tokens.IDTokenExpiresAt.IsZero() {
			t.Errorf("got an ID token of %d bytes that expires at %v", len(s.Tokens.IDToken), s.Tokens.IDTokenExpiresAt)
		}
		s.ID, s.ExpiresAt = rand.Text(), w.now().Add(time.Hour)
		if err := store.PutSession(context.Background(), s); err != nil {
			t.Error(err)
		}
	}
	long("A")
	old := w.signedIn()
	keep(old)
	long("B")
	fresh, err := w.client.Refresh(context.Background(), old)
	if err != nil || fresh.Claims["name"] != "B" || fresh.ExpiresAt.IsZero() {
		t.Fatalf("got %+v, %v", fresh, err)
	}
	keep(sessionOf(fresh))
}

func TestUserInfo(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.Claims, b.UserInfo = map[string]any{"department": "x"}, map[string]any{"groups": []string{"eng"}}
	})
	old := w.signedIn()
	w.change(func(b *idptest.Behaviour) { b.Claims, b.UserInfo = nil, map[string]any{"name": "A"} })
	fresh, err := w.client.UserInfo(context.Background(), old)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"sub": "user-alice", "department": "x", "name": "A", "auth_time": old.Claims["auth_time"]}
	if d := cmp.Diff(want, fresh.Claims); d != "" || fresh.Tokens != old.Tokens || fresh.UserID != old.UserID {
		t.Errorf("got %+v: %s", fresh, d)
	}
	for _, tt := range []struct {
		name   string
		change func(*idptest.Behaviour)
		kind   idp.Kind
		text   string
	}{
		{"out of order", func(b *idptest.Behaviour) { b.UserInfoStatus = 503 }, idp.Unavailable, "503"},
		{"about another", func(b *idptest.Behaviour) { b.UserInfoStatus, b.UserInfoSubject = 0, "mallory" }, idp.Unusable, "another subject"},
		{"token is revoked", func(b *idptest.Behaviour) { b.UserInfoStatus = 401 }, idp.Refused, "401"},
	} {
		w.change(tt.change)
		if _, err := w.client.UserInfo(context.Background(), old); err == nil {
			t.Errorf("%s: no error", tt.name)
		} else {
			w.wantKind(err, tt.kind, tt.text)
		}
	}
	_, err = w.client.UserInfo(context.Background(), &databroker.Session{UserID: "user-alice"})
	w.wantKind(err, idp.Unsupported, "no access token")
}
