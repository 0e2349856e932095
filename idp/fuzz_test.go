package idp_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// Text that the provider has not signed is never a token, whatever it is.
func FuzzVerifyText(f *testing.F) {
	w := newWorld(f)
	for _, raw := range []string{"", "..", "e30.e30.e30", "eyJhbGciOiJub25lIn0.e30.", `{"payload":"e30"}`} {
		f.Add(raw)
	}
	good := []string{
		w.fake.IDToken("user-alice", idptest.ClientID), w.fake.AccessToken("user-alice", "api"), w.fake.LogoutToken("user-alice", "sid"),
	}
	for _, raw := range good {
		f.Add(raw)
		f.Add(raw[:len(raw)-1])
		f.Add(strings.Replace(raw, ".", "..", 1))
	}
	bearer := &config.Bearer{Issuers: []*config.TokenIssuer{{Name: "one", Issuer: w.fake.URL, Audiences: []string{"api"}}}}
	issuers := idp.NewIssuers(w.config(), &config.Config{Routes: []*config.Route{{Bearer: bearer}}}, nil)
	f.Cleanup(issuers.Wait)
	// Whether tokens of the corpus are well signed is plain to see: they are the seeds.
	signed := func(raw string) bool { return slices.Contains(good, raw) }
	f.Fuzz(func(t *testing.T, raw string) {
		ctx := context.Background()
		verify := map[string]func() error{
			"id_token":     func() error { _, err := w.client.VerifyIDToken(ctx, raw, nil); return err },
			"access token": func() error { _, err := w.client.VerifyAccessToken(ctx, raw, []string{"api"}); return err },
			"logout token": func() error { _, err := w.client.VerifyLogoutToken(ctx, raw); return err },
			"bearer token": func() error { _, err := issuers.Verify(ctx, bearer, raw); return err },
		}
		for name, f := range verify {
			if err := f(); err == nil && !signed(raw) {
				t.Errorf("%q is accepted as %s", raw, name)
			} else if len(raw) > 20 && err != nil && strings.Contains(err.Error(), raw) {
				t.Errorf("%s: the error holds the token: %v", name, err)
			}
		}
	})
}

// What the provider has signed is accepted only for what it says.
func FuzzVerifyClaims(f *testing.F) {
	w := newWorld(f)
	now := time.Now().Unix()
	for _, c := range []map[string]any{
		{"iss": w.fake.URL, "aud": idptest.ClientID, "sub": "a", "iat": now, "exp": now + 1e6},
		{"iss": w.fake.URL, "aud": []string{"x", idptest.ClientID}, "azp": idptest.ClientID, "sub": "a", "iat": now, "exp": now + 1e6, "auth_time": now},
		{"iss": w.fake.URL, "aud": idptest.ClientID, "sid": "s", "iat": now, "exp": now + 1e6, "jti": "j", "events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}},
		{"iss": 1, "aud": 1, "sub": nil, "exp": -1, "nbf": 1e300, "email_verified": "yes", "email": []int{1}, "typ": 1},
	} {
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("JWT", string(b))
		f.Add("logout+jwt", string(b))
	}
	f.Fuzz(func(t *testing.T, typ, payload string) {
		var claims map[string]any
		if json.Unmarshal([]byte(payload), &claims) != nil {
			return
		}
		raw := w.fake.Sign(typ, claims)
		ctx := context.Background()
		_, isLogout := claims["events"].(map[string]any)
		exp, _ := claims["exp"].(float64)
		who, err := w.client.VerifyIDToken(ctx, raw, nil)
		if err == nil && (claims["iss"] != w.fake.URL || claims["sub"] != who.Subject || who.Subject == "" || isLogout || exp < float64(time.Now().Unix()-61)) {
			t.Errorf("accepted as ID token: %s", payload)
		}
		if who, err = w.client.VerifyAccessToken(ctx, raw, []string{idptest.ClientID}); err == nil && (claims["iss"] != w.fake.URL || who.Subject == "" || isLogout || exp < float64(time.Now().Unix()-61)) {
			t.Errorf("accepted as access token: %s", payload)
		}
		out, err := w.client.VerifyLogoutToken(ctx, raw)
		if err == nil && (claims["iss"] != w.fake.URL || !isLogout || claims["nonce"] != nil || out.JTI == "" || out.UserID == "" && out.SessionID == "") {
			t.Errorf("accepted as logout token: %s", payload)
		}
	})
}
