package idp_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// What each kind asks the provider for, beside what keeps the sign-in safe.
func TestAuthorizationRequests(t *testing.T) {
	const oidc = "openid profile email offline_access"
	fresh := idp.AuthRequest{MaxAge: 300, Fresh: true}
	anyAge := idp.AuthRequest{MaxAge: -1}
	fake := idptest.NewProvider(t)
	for _, tt := range []struct {
		name    string
		kind    string
		change  func(*config.IdentityProvider)
		request idp.AuthRequest
		want    map[string]string
	}{
		{"oidc", "oidc", nil, anyAge, map[string]string{"scope": oidc}},
		{"oidc, fresh", "oidc", nil, fresh, map[string]string{"scope": oidc, "max_age": "300", "prompt": "login"}},
		{"google", "google", nil, anyAge, map[string]string{"scope": "openid profile email", "access_type": "offline", "prompt": "select_account consent"}},
		{"google, fresh", "google", nil, fresh, map[string]string{"scope": "openid profile email", "access_type": "offline", "prompt": "login consent", "max_age": "300"}},
		{"azure", "azure", nil, anyAge, map[string]string{"scope": oidc, "prompt": "select_account"}},
		{"azure, fresh", "azure", nil, fresh, map[string]string{"scope": oidc, "prompt": "login", "max_age": "300"}},
		{"okta", "okta", nil, anyAge, map[string]string{"scope": oidc}},
		{"auth0", "auth0", nil, anyAge, map[string]string{"scope": oidc}},
		{"cognito", "cognito", nil, anyAge, map[string]string{"scope": "openid profile email"}},
		{"ping", "ping", nil, anyAge, map[string]string{"scope": oidc}},
		{"onelogin", "onelogin", nil, anyAge, map[string]string{"scope": "openid profile email groups offline_access"}},
		{"gitlab", "gitlab", nil, anyAge, map[string]string{"scope": "openid profile email"}},
		{"keycloak", "keycloak", nil, anyAge, map[string]string{"scope": "openid profile email"}},
		{"github", "github", nil, anyAge, map[string]string{"scope": "user:email read:org"}},
		{"github cannot be asked for a new sign-in", "github", nil, fresh, map[string]string{"scope": "user:email read:org"}},
		{"apple", "apple", nil, anyAge, map[string]string{"scope": "openid name email", "response_mode": "form_post"}},
		{"scopes of the operator", "google", func(s *config.IdentityProvider) { s.Scopes = []string{"email", "openid"} }, anyAge,
			map[string]string{"scope": "openid email", "access_type": "offline", "prompt": "select_account consent"}},
		{"parameters of the operator", "google", params("hd", "example.com", "prompt", "consent"), anyAge,
			map[string]string{"scope": "openid profile email", "access_type": "offline", "prompt": "consent", "hd": "example.com"}},
		{"a new sign-in goes before them", "oidc", params("prompt", "select_account", "max_age", "99999"), fresh,
			map[string]string{"scope": oidc, "prompt": "login", "max_age": "300"}},
		{"they change nothing that keeps a sign-in safe", "oidc", params("state", "x", "nonce", "x", "redirect_uri", "https://evil.example", "client_id", "x", "response_type", "token",
			"response_mode", "fragment", "code_challenge", "x", "code_challenge_method", "plain", "scope", "x"), anyAge, map[string]string{"scope": oidc}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, kindOf(tt.kind, ""), func(s *config.IdentityProvider) {
				if tt.change != nil {
					tt.change(s)
				}
			})
			asked, _, err := w.visit(tt.request)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for name := range asked {
				got[name] = asked.Get(name)
			}
			safe := map[string]string{
				"state": "state", "nonce": nonce, "redirect_uri": callback, "client_id": idptest.ClientID, "response_type": "code",
				"code_challenge_method": "S256", "code_challenge": got["code_challenge"],
			}
			if tt.kind == "github" {
				delete(safe, "nonce")
			}
			if got["code_challenge"] == "" || got["code_challenge"] == "x" {
				t.Errorf("code_challenge is %q", got["code_challenge"])
			}
			maps.Copy(safe, tt.want)
			if d := cmp.Diff(safe, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func params(pairs ...string) func(*config.IdentityProvider) {
	return func(s *config.IdentityProvider) {
		for pair := range slices.Chunk(pairs, 2) {
			s.RequestParams = append(s.RequestParams, config.Parameter{Name: pair[0], Value: pair[1]})
		}
	}
}

func TestDiscoveryGoesFirst(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.Discovery = map[string]any{
			"scopes_supported":                      []string{"openid", "email"},
			"code_challenge_methods_supported":      []string{"plain"},
			"token_endpoint_auth_methods_supported": []string{"client_secret_post"},
		}
		b.OnToken = func(r *http.Request) {
			if _, _, basic := r.BasicAuth(); basic || r.Form.Has("code_verifier") {
				t.Errorf("the token request has basic authentication (%v) or a verifier (%v)", basic, r.Form.Has("code_verifier"))
			}
		}
	})
	asked, back, err := w.visit(idp.AuthRequest{MaxAge: -1})
	if err != nil {
		t.Fatal(err)
	}
	if got := asked.Get("scope"); got != "openid profile email" {
		t.Errorf("scope is %q, want no offline_access", got)
	}
	if asked.Has("code_challenge") {
		t.Error("asked with a challenge that the provider does not know")
	}
	if _, err := w.client.Exchange(context.Background(), back.Get("code"), nonce, verifier); err != nil {
		t.Error(err)
	}
}

func TestTrailingSlash(t *testing.T) {
	w := newWorld(t, kindOf("auth0", ""))
	w.change(func(b *idptest.Behaviour) {
		b.Issuer, b.Discovery = w.fake.URL+"/", map[string]any{"issuer": w.fake.URL + "/"}
	})
	_, err := w.signIn()
	w.wantKind(err, fine, "")
	w.change(func(b *idptest.Behaviour) { b.Issuer = w.fake.URL })
	_, err = w.signIn()
	w.wantKind(err, idp.Unusable, "its issuer is")
	// More than a slash is another issuer, even on the same host.
	other := newWorld(t)
	other.change(func(b *idptest.Behaviour) { b.Discovery = map[string]any{"issuer": other.fake.URL + "/other"} })
	_, err = other.signIn()
	other.wantKind(err, idp.Misconfigured, "its issuer is")
}

const (
	tenantA = "3aa4a235-b6e2-48d5-9195-7fcf05b459b0"
	tenantB = "9188040d-6c67-4c5b-b112-36a304b66dad"
)

func TestAzure(t *testing.T) {
	fake := idptest.NewProvider(t)
	azure := func(t *testing.T, path string, change func(*idptest.Behaviour)) (*world, *idp.Identity, error) {
		t.Helper()
		w := worldAt(t, fake, kindOf("azure", path))
		w.change(func(b *idptest.Behaviour) {
			b.Discovery = map[string]any{"issuer": w.fake.URL + "/{tenantid}/v2.0"}
			b.Issuer = w.fake.URL + "/" + tenantA + "/v2.0"
			b.Claims["tid"], b.Claims["oid"] = tenantA, "oid-alice"
			delete(b.Claims, "email_verified")
			change(b)
		})
		who, err := w.signIn()
		return w, who, err
	}
	for _, tt := range []struct {
		name, path string
		change     func(*idptest.Behaviour)
		kind       idp.Kind
		text       string
	}{
		{"any tenant", "/common/v2.0", func(*idptest.Behaviour) {}, fine, ""},
		{"any organization", "/organizations/v2.0", func(*idptest.Behaviour) {}, fine, ""},
		{"the tid is of another tenant", "/common/v2.0", func(b *idptest.Behaviour) { b.Claims["tid"] = tenantB }, idp.Unusable, "its issuer is"},
		{"there is no tid", "/common/v2.0", func(b *idptest.Behaviour) { delete(b.Claims, "tid") }, idp.Unusable, "tid is no id of a tenant"},
		{"the tid is a way out", "/common/v2.0", func(b *idptest.Behaviour) {
			b.Claims["tid"] = "x/../evil"
			b.Issuer = strings.Replace(b.Issuer, tenantA, "x/../evil", 1)
		}, idp.Unusable, "tid is no id of a tenant"},
		{"the issuer is elsewhere", "/common/v2.0", func(b *idptest.Behaviour) { b.Issuer = "https://evil.example/" + tenantA + "/v2.0" }, idp.Unusable, "its issuer is"},
		{"the template is elsewhere", "/common/v2.0", func(b *idptest.Behaviour) {
			b.Discovery = map[string]any{"issuer": "https://evil.example/{tenantid}/v2.0"}
		}, idp.Misconfigured, "its issuer is"},
		{"the template is on another host", "/common/v2.0", func(b *idptest.Behaviour) {
			b.Discovery = map[string]any{"issuer": "http://evil.example/{tenantid}/v2.0"}
		}, idp.Misconfigured, "its issuer is"},
		{"the template stands for itself", "/common/v2.0", func(b *idptest.Behaviour) {
			b.Issuer = strings.Replace(b.Issuer, tenantA, "{tenantid}", 1)
		}, idp.Unusable, "its issuer is"},
		{"there is no oid", "/common/v2.0", func(b *idptest.Behaviour) { delete(b.Claims, "oid") }, idp.Unusable, "no oid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, who, err := azure(t, tt.path, tt.change)
			w.wantKind(err, tt.kind, tt.text)
			if err == nil && (who.Subject != "oid-alice" || who.UserID != "oid-alice") {
				t.Errorf("got %+v", who)
			}
		})
	}

	// It writes an iat of five minutes ago, whatever its clock says.
	at := time.Now().Add(-10 * time.Minute).Unix()
	_, who, err := azure(t, "/common/v2.0", func(b *idptest.Behaviour) { b.Skew, b.AuthTime = -5*time.Minute, at })
	if err != nil || who.Claims["auth_time"] != float64(at) {
		t.Errorf("auth_time: got %v, %v, want %d", who, err, at)
	}

	// Anybody can have a tenant, and give the people in it any address.
	_, who, err = azure(t, "/common/v2.0", func(*idptest.Behaviour) {})
	if err != nil || who.Claims["email"] != nil || who.Claims["unverified_email"] != "alice@example.com" {
		t.Errorf("an address from any tenant is believed: %v, %v", who.Claims, err)
	}
	_, who, err = azure(t, "/common/v2.0", func(b *idptest.Behaviour) { b.Claims["xms_edov"] = true })
	if err != nil || who.Claims["email"] != "alice@example.com" {
		t.Errorf("an address whose domain is verified is not believed: %v, %v", who.Claims, err)
	}
	// In one's own tenant one believes it.
	one := worldAt(t, fake, kindOf("azure", "/"+tenantA+"/v2.0"))
	one.change(func(b *idptest.Behaviour) {
		b.Issuer = one.fake.URL + "/" + tenantA + "/v2.0"
		b.Claims["oid"] = "oid-alice"
		delete(b.Claims, "email_verified")
	})
	if who, err = one.signIn(); err != nil || who.Claims["email"] != "alice@example.com" {
		t.Errorf("own tenant: got %+v, %v", who, err)
	}
	one.change(func(b *idptest.Behaviour) { b.Issuer = one.fake.URL + "/" + tenantB + "/v2.0" })
	_, err = one.signIn()
	one.wantKind(err, idp.Unusable, "its issuer is")
}

func TestClaimsOfKinds(t *testing.T) {
	fake := idptest.NewProvider(t)
	for _, tt := range []struct {
		name, kind string
		claims     map[string]any
		want       map[string]any
	}{
		{"ping writes mail", "ping", map[string]any{"mail": "a@x.example"}, map[string]any{"email": "a@x.example"}},
		{"an email of ping's goes first", "ping", map[string]any{"mail": "b@x.example", "email": "a@x.example"}, map[string]any{"email": "a@x.example"}},
		{"cognito writes a text", "cognito", map[string]any{"email": "a@x.example", "email_verified": "true"}, map[string]any{"email": "a@x.example", "email_verified": true}},
		{"cognito says no in a text", "cognito", map[string]any{"email": "a@x.example", "email_verified": "false"}, map[string]any{"unverified_email": "a@x.example", "email": nil, "email_verified": false}},
		{"elsewhere mail is no address", "oidc", map[string]any{"mail": "a@x.example"}, map[string]any{"email": nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, kindOf(tt.kind, ""))
			w.change(func(b *idptest.Behaviour) { b.Claims = tt.claims })
			who, err := w.signIn()
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.want {
				if got := who.Claims[name]; got != want {
					t.Errorf("%s: got %v, want %v", name, got, want)
				}
			}
		})
	}
}

func TestEveryOIDCKindSignsIn(t *testing.T) {
	fake := idptest.NewProvider(t)
	for _, kind := range []string{"oidc", "google", "okta", "auth0", "cognito", "ping", "onelogin", "gitlab", "keycloak"} {
		w := worldAt(t, fake, kindOf(kind, ""), func(s *config.IdentityProvider) { s.Name = "corp" })
		who, err := w.signIn()
		if err != nil || who.Subject != "user-alice" || who.UserID != "corp/user-alice" || who.Claims["email"] != "alice@example.com" {
			t.Errorf("%s: got %+v, %v", kind, who, err)
		}
	}
}

func TestApple(t *testing.T) {
	w := newWorld(t, kindOf("apple", ""))
	w.change(func(b *idptest.Behaviour) {
		b.NoUserInfo, b.Claims = true, map[string]any{"email": "alice@example.com", "email_verified": "true"}
		b.Discovery = map[string]any{"end_session_endpoint": nil}
	})
	to, err := w.client.AuthURL(context.Background(), idp.AuthRequest{State: "state", Nonce: nonce, Verifier: verifier, MaxAge: -1})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.fake.Client().Get(to)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(page), `action="`+callback+`"`) {
		t.Fatalf("got page %s, %v", page, err)
	}
	_, code, _ := strings.Cut(string(page), `name="code" value="`)
	code, _, _ = strings.Cut(code, `"`)
	who, err := w.client.Exchange(context.Background(), code, nonce, verifier)
	if err != nil || who.Claims["email"] != "alice@example.com" {
		t.Errorf("got %+v, %v", who, err)
	}
	_, err = w.client.VerifyAccessToken(context.Background(), w.fake.OpaqueToken("user-alice"), nil)
	w.wantKind(err, idp.Unsupported, "apple")
	if got := w.client.LogoutURL(context.Background(), "x", "https://app.example.com/", "s"); got != "" {
		t.Errorf("LogoutURL is %q", got)
	}
}

func TestGitHub(t *testing.T) {
	w := newWorld(t, kindOf("github", ""))
	w.change(func(b *idptest.Behaviour) {
		b.Claims["groups"] = append(idptest.Groups(250), "octo/core")
	})
	who, err := w.signIn()
	if err != nil {
		t.Fatal(err)
	}
	groups, _ := who.Claims["groups"].([]any)
	if who.UserID != "user-alice" || who.Claims["email"] != "alice@example.com" || who.Claims["preferred_username"] != "octo-user-alice" ||
		len(groups) != 251 || groups[250] != "octo/core" {
		t.Errorf("got %+v with %d groups", who, len(groups))
	}
	if w.fake.Count("discovery")+w.fake.Count("userinfo") != 0 {
		t.Error("asked for what github does not have")
	}

	// A refresh is another look at the profile.
	w.change(func(b *idptest.Behaviour) {
		b.Claims = map[string]any{"groups": []string{"octo"}, "email": "a@x.example"}
	})
	fresh, err := w.client.Refresh(context.Background(), sessionOf(who))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]any{"octo"}, fresh.Claims["groups"]); d != "" || fresh.Claims["email"] != nil || fresh.Tokens != who.Tokens {
		t.Errorf("got %+v; groups: %s", fresh, d)
	}
	another := sessionOf(who)
	another.UserID = "mallory"
	_, err = w.client.Refresh(context.Background(), another)
	w.wantKind(err, idp.Unusable, "not about the person")
	brought, err := w.client.VerifyAccessToken(context.Background(), who.Tokens.AccessToken, nil)
	if err != nil || brought.UserID != "user-alice" || brought.Tokens != (databroker.Tokens{}) {
		t.Errorf("got %+v, %v", brought, err)
	}
	w.change(func(b *idptest.Behaviour) { b.UserInfoStatus = 503 })
	_, err = w.client.Refresh(context.Background(), sessionOf(who))
	w.wantKind(err, idp.Unavailable, "503")
	w.change(func(b *idptest.Behaviour) { b.UserInfoStatus = 0 })
	w.fake.Revoke()
	_, err = w.client.Refresh(context.Background(), sessionOf(who))
	w.wantKind(err, idp.Refused, "401")
	_, err = w.client.VerifyAccessToken(context.Background(), who.Tokens.AccessToken, nil)
	w.wantKind(err, idp.Invalid, "401")
	_, err = w.client.VerifyIDToken(context.Background(), w.fake.IDToken("user-alice", idptest.ClientID), nil)
	w.wantKind(err, idp.Unsupported, "github")
	_, err = w.client.VerifyLogoutToken(context.Background(), w.fake.LogoutToken("user-alice", ""))
	w.wantKind(err, idp.Unsupported, "github")
}

func TestGitHubRefuses(t *testing.T) {
	fake := idptest.NewProvider(t)
	for _, tt := range []struct {
		name   string
		change func(*idptest.Behaviour)
		kind   idp.Kind
		text   string
	}{
		{"the code is used up", func(b *idptest.Behaviour) { b.TokenError = "bad_verification_code" }, idp.Refused, "bad_verification_code"},
		{"the secret is wrong", func(b *idptest.Behaviour) { b.TokenError = "incorrect_client_credentials" }, idp.Misconfigured, "incorrect_client_credentials"},
		{"it is out of order", func(b *idptest.Behaviour) { b.TokenStatus = 502 }, idp.Unavailable, "502"},
		{"the profile is out of order", func(b *idptest.Behaviour) { b.UserInfoStatus = 500 }, idp.Unavailable, "read profile"},
		{"there are too many groups", func(b *idptest.Behaviour) { b.Claims["groups"] = idptest.Groups(2001) }, idp.Unusable, "more than 2000"},
		{"there is no node_id", func(b *idptest.Behaviour) { b.Subject = "" }, idp.Unusable, "node_id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, kindOf("github", ""))
			w.change(tt.change)
			_, err := w.signIn()
			w.wantKind(err, tt.kind, tt.text)
		})
	}
}

func TestLogoutURL(t *testing.T) {
	fake := idptest.NewProvider(t)
	const back = "https://app.example.com/.pomerium/signed_out"
	standard := map[string]string{"client_id": idptest.ClientID, "id_token_hint": "hint", "post_logout_redirect_uri": back, "state": "s"}
	for _, tt := range []struct {
		name, kind string
		endpoint   any
		path       string
		want       map[string]string
	}{
		{"what discovery says", "oidc", "/logout?a=b", "/logout", map[string]string{"a": "b", "client_id": idptest.ClientID, "id_token_hint": "hint", "post_logout_redirect_uri": back, "state": "s"}},
		{"keycloak", "keycloak", "/logout", "/logout", standard},
		{"auth0, which says it", "auth0", "/oidc/logout", "/oidc/logout", standard},
		{"auth0, which does not", "auth0", nil, "/v2/logout", map[string]string{"client_id": idptest.ClientID, "returnTo": back}},
		{"cognito, which says it", "cognito", "/out", "/out", map[string]string{"client_id": idptest.ClientID, "logout_uri": back}},
		{"cognito, which does not", "cognito", nil, "/logout", map[string]string{"client_id": idptest.ClientID, "logout_uri": back}},
		{"nowhere", "google", nil, "", nil},
		{"nowhere at github", "github", nil, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake, kindOf(tt.kind, ""))
			w.change(func(b *idptest.Behaviour) {
				if b.Discovery = map[string]any{"end_session_endpoint": nil}; tt.endpoint != nil {
					b.Discovery["end_session_endpoint"] = w.fake.URL + tt.endpoint.(string)
				}
			})
			to := w.client.LogoutURL(context.Background(), "hint", back, "s")
			if tt.want == nil {
				if to != "" {
					t.Errorf("got %q, want nothing", to)
				}
				return
			}
			got := map[string]string{}
			u := mustURL(t, to)
			for name := range u.Query() {
				got[name] = u.Query().Get(name)
			}
			if d := cmp.Diff(tt.want, got); d != "" || "http://"+u.Host != w.fake.URL || u.Path != tt.path {
				t.Errorf("got %s: %s", to, d)
			}
		})
	}

	w := worldAt(t, fake)
	u := mustURL(t, w.client.LogoutURL(context.Background(), strings.Repeat("x", 5000), "", ""))
	if d := cmp.Diff(url.Values{"client_id": {idptest.ClientID}}, u.Query()); d != "" {
		t.Errorf("a hint that fits no URL, and nowhere to go: %s", d)
	}
	down := worldAt(t, fake)
	down.change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 })
	if got := down.client.LogoutURL(context.Background(), "hint", back, "s"); got != "" {
		t.Errorf("a provider that is down: got %q", got)
	}
}
