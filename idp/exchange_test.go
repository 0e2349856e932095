package idp_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// misbehaviours are what a provider may do wrong at a sign-in, and what comes of
// it.
var misbehaviours = []struct {
	name   string
	change func(*idptest.Behaviour)
	kind   idp.Kind
	text   string
}{
	{"nothing wrong", func(*idptest.Behaviour) {}, fine, ""},
	{"discovery answers 500", func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 }, idp.Unavailable, "discovery document of http://127.0.0.1"},
	{"discovery answers 404", func(b *idptest.Behaviour) { b.DiscoveryStatus = 404 }, idp.Unusable, "404 Not Found"},
	{"discovery names another issuer", func(b *idptest.Behaviour) { b.Discovery = map[string]any{"issuer": "https://evil.example"} }, idp.Misconfigured, `its issuer is "https://evil.example"`},
	{"discovery has no token endpoint", func(b *idptest.Behaviour) { b.Discovery = map[string]any{"token_endpoint": nil} }, idp.Unusable, "token_endpoint is no https URL"},
	{"discovery sends us to a file", func(b *idptest.Behaviour) { b.Discovery = map[string]any{"userinfo_endpoint": "file:///etc/passwd"} }, idp.Unusable, "userinfo_endpoint is no https URL"},
	{"discovery sends us to another protocol", func(b *idptest.Behaviour) { b.Discovery = map[string]any{"token_endpoint": "ftp://127.0.0.1/token"} }, idp.Unusable, "token_endpoint is no https URL"},
	{"discovery is huge", func(b *idptest.Behaviour) { b.Discovery = map[string]any{"x": strings.Repeat("x", 2<<20)} }, idp.Unusable, "larger than 1 MiB"},
	{"keys answer 500", func(b *idptest.Behaviour) { b.KeysStatus = 500 }, idp.Unavailable, "keys at http://127.0.0.1"},
	{"token endpoint answers 500", func(b *idptest.Behaviour) { b.TokenStatus = 500 }, idp.Unavailable, "exchange code: provider answered 500"},
	{"token endpoint answers 429", func(b *idptest.Behaviour) { b.TokenStatus = 429 }, idp.Unavailable, "429"},
	{"code is used up", func(b *idptest.Behaviour) { b.TokenError = "invalid_grant" }, idp.Refused, "invalid_grant"},
	{"client secret is wrong", func(b *idptest.Behaviour) { b.TokenStatus, b.TokenError = 401, "invalid_client" }, idp.Misconfigured, "invalid_client"},
	{"client may not do this", func(b *idptest.Behaviour) { b.TokenError = "unauthorized_client" }, idp.Misconfigured, "unauthorized_client"},
	{"token endpoint redirects elsewhere", func(b *idptest.Behaviour) { b.TokenStatus = 307 }, idp.Unusable, ""},
	{"wrong nonce", func(b *idptest.Behaviour) { b.Nonce = "of-another" }, idp.Unusable, "nonce"},
	{"no nonce", func(b *idptest.Behaviour) { b.NoNonce = true }, idp.Unusable, "nonce"},
	{"wrong audience", func(b *idptest.Behaviour) { b.Audience = "someone-else" }, idp.Unusable, `its aud is "someone-else", want one of "countersign-test"`},
	{"audience is no text", func(b *idptest.Behaviour) { b.Audience = []any{idptest.ClientID, 1} }, idp.Unusable, "aud"},
	{"we are one of two audiences", func(b *idptest.Behaviour) { b.Audience = []string{"other", idptest.ClientID} }, fine, ""},
	{"wrong issuer", func(b *idptest.Behaviour) { b.Issuer = "https://evil.example" }, idp.Unusable, `its issuer is "https://evil.example"`},
	{"wrong authorized party", func(b *idptest.Behaviour) { b.AuthorizedParty = "x" }, idp.Unusable, "azp"},
	{"alg none", func(b *idptest.Behaviour) { b.Algorithm = "none" }, idp.Unusable, "no JWT signed with one of [RS256]"},
	{"alg HS256", func(b *idptest.Behaviour) { b.Algorithm = "HS256" }, idp.Unusable, "no JWT signed with one of [RS256]"},
	{"key is not published", func(b *idptest.Behaviour) { b.WrongKey = true }, idp.Unusable, "not made with a key that the issuer publishes"},
	{"token has expired", func(b *idptest.Behaviour) { b.Expired = true }, idp.Unusable, "it expired 1h0m"},
	{"clock is 50 s ahead", func(b *idptest.Behaviour) { b.Skew = 50 * time.Second }, fine, ""},
	{"clock is 120 s ahead", func(b *idptest.Behaviour) { b.Skew = 120 * time.Second }, idp.Unusable, "from now by the clock of this host: that clock or the issuer's is wrong"},
	{"clock is 50 s behind, tokens are short", func(b *idptest.Behaviour) { b.Skew, b.IDTokenLifetime = -50*time.Second, time.Second }, fine, ""},
	{"clock is 120 s behind, tokens are short", func(b *idptest.Behaviour) { b.Skew, b.IDTokenLifetime = -120*time.Second, time.Second }, idp.Unusable, "ago by the clock of this host"},
	{"clock is 120 s behind", func(b *idptest.Behaviour) { b.Skew = -120 * time.Second }, fine, ""},
	{"begins in an hour", func(b *idptest.Behaviour) { b.Claims["nbf"] = time.Now().Add(time.Hour).Unix() }, idp.Unusable, "from now by the clock of this host"},
	{"expires at a text", func(b *idptest.Behaviour) { b.Claims["nbf"] = "soon" }, idp.Unusable, "nbf is no time"},
	{"no id_token", func(b *idptest.Behaviour) { b.NoIDToken = true }, idp.Unusable, "no id_token"},
	{"no subject", func(b *idptest.Behaviour) { b.Subject = "" }, idp.Unusable, "sub"},
	{"subject is long", func(b *idptest.Behaviour) { b.Subject = strings.Repeat("x", 256) }, idp.Unusable, "sub"},
	{"a logout token for an ID token", func(b *idptest.Behaviour) { b.Claims["events"] = map[string]any{"x": 1} }, idp.Unusable, "event"},
	{"an access token for an ID token", func(b *idptest.Behaviour) { b.Claims["typ"] = "Bearer" }, idp.Unusable, "typ"},
	{"wrong at_hash", func(b *idptest.Behaviour) { b.Claims["at_hash"] = "x" }, idp.Unusable, "at_hash"},
	{"userinfo of another", func(b *idptest.Behaviour) { b.UserInfoSubject = "mallory" }, idp.Unusable, "another subject"},
	{"userinfo answers 500", func(b *idptest.Behaviour) { b.UserInfoStatus = 500 }, idp.Unavailable, "userinfo: provider answered 500"},
	{"userinfo answers 403", func(b *idptest.Behaviour) { b.UserInfoStatus = 403 }, idp.Unusable, "403"},
	{"claims are too large", func(b *idptest.Behaviour) { b.UserInfo = map[string]any{"x": strings.Repeat("x", 300<<10)} }, idp.Unusable, "claims are larger than 256 KiB"},
	{"userinfo is signed", func(b *idptest.Behaviour) { b.SignedUserInfo = true }, fine, ""},
	{"no email", func(b *idptest.Behaviour) { delete(b.Claims, "email") }, fine, ""},
	{"email_verified is false", func(b *idptest.Behaviour) { b.Claims["email_verified"] = false }, fine, ""},
	{"1,000 groups", func(b *idptest.Behaviour) { b.Claims["groups"] = idptest.Groups(1000) }, fine, ""},
	{"subject with a NUL", func(b *idptest.Behaviour) { b.Subject = "a\x00b" }, idp.Unusable, "NUL"},
	{"subject that is half a character", func(b *idptest.Behaviour) { b.Subject = "a\xffb" }, idp.Unusable, "no UTF-8"},
	{"id_token of 40 KB", func(b *idptest.Behaviour) { b.Claims["x"] = strings.Repeat("x", 30<<10) }, fine, ""},
}

func TestMisbehavingProvider(t *testing.T) {
	fake := idptest.NewProvider(t)
	for _, tt := range misbehaviours {
		t.Run(tt.name, func(t *testing.T) {
			w := worldAt(t, fake)
			w.change(tt.change)
			who, err := w.signIn()
			w.wantKind(err, tt.kind, tt.text)
			if (err == nil) != (who != nil) {
				t.Errorf("got identity %v with error %v", who, err)
			}
		})
	}
}

func TestWhatComesOfMisbehaviour(t *testing.T) {
	fake := idptest.NewProvider(t)
	signIn := func(t *testing.T, change func(*idptest.Behaviour)) *idp.Identity {
		t.Helper()
		w := worldAt(t, fake)
		w.change(change)
		who, err := w.signIn()
		if err != nil {
			t.Fatal(err)
		}
		return who
	}
	who := signIn(t, func(b *idptest.Behaviour) { delete(b.Claims, "email") })
	if _, ok := who.Claims["email"]; ok {
		t.Errorf("got email %v", who.Claims["email"])
	}
	who = signIn(t, func(b *idptest.Behaviour) { b.Claims["email_verified"] = "false" })
	if who.Claims["email"] != nil || who.Claims["unverified_email"] != "alice@example.com" || who.Claims["email_verified"] != false {
		t.Errorf("unverified email: got claims %v", who.Claims)
	}
	who = signIn(t, func(b *idptest.Behaviour) { b.Claims["groups"] = idptest.Groups(1000) })
	if groups, _ := who.Claims["groups"].([]any); len(groups) != 1000 {
		t.Errorf("got %d groups", len(groups))
	}
	who = signIn(t, func(b *idptest.Behaviour) { b.Claims["x"] = strings.Repeat("x", 30<<10) })
	if len(who.Tokens.IDToken) < 40<<10 {
		t.Errorf("got an ID token of %d bytes", len(who.Tokens.IDToken))
	}
	who = signIn(t, func(b *idptest.Behaviour) { b.SessionID = "a\x00b" })
	if who.SessionID != "" {
		t.Errorf("got the session id %q, which no store keeps", who.SessionID)
	}
}

func TestIdentity(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.SessionID, b.Lifetime, b.IDTokenLifetime = "sid-1", 5*time.Minute, 10*time.Minute
		b.Claims["acr"] = "gold"
		b.UserInfo = map[string]any{"auth_time": 1, "acr": "platinum", "amr": []string{"hwk"}}
	})
	who, err := w.signIn()
	if err != nil {
		t.Fatal(err)
	}
	if who.Subject != "user-alice" || who.UserID != "user-alice" || who.SessionID != "sid-1" || who.ClaimsStale {
		t.Errorf("got %+v", who)
	}
	if at, _ := who.Claims["auth_time"].(float64); at < 2 || who.Claims["acr"] != "gold" || who.Claims["amr"] != nil {
		t.Errorf("userinfo speaks of the sign-in: %v", who.Claims)
	}
	for name, at := range map[string]struct{ got, want time.Time }{
		"ExpiresAt":               {who.ExpiresAt, w.now().Add(10 * time.Minute)},
		"Tokens.IDTokenExpiresAt": {who.Tokens.IDTokenExpiresAt, w.now().Add(10 * time.Minute)},
		"Tokens.ExpiresAt":        {who.Tokens.ExpiresAt, w.now().Add(5 * time.Minute)},
		"IssuedAt":                {who.IssuedAt, w.now()},
	} {
		if d := at.got.Sub(at.want).Abs(); d > 5*time.Second {
			t.Errorf("%s is %s, want %s", name, at.got, at.want)
		}
	}
	for _, claim := range []string{"iss", "aud", "exp", "iat", "nonce"} {
		if _, ok := who.Claims[claim]; ok {
			t.Errorf("claim %s is about the token, but kept", claim)
		}
	}
}

// A code or verifier of somebody else's, or a second use, buys nothing.
func TestCodeIsUsedOnce(t *testing.T) {
	w := newWorld(t)
	_, back, err := w.visit(idp.AuthRequest{MaxAge: -1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.client.Exchange(context.Background(), back.Get("code"), nonce, verifier+"x")
	w.wantKind(err, idp.Refused, "invalid_grant")
	_, back, _ = w.visit(idp.AuthRequest{MaxAge: -1})
	if _, err = w.client.Exchange(context.Background(), back.Get("code"), nonce, verifier); err != nil {
		t.Fatal(err)
	}
	_, err = w.client.Exchange(context.Background(), back.Get("code"), nonce, verifier)
	w.wantKind(err, idp.Refused, "invalid_grant")
	_, back, _ = w.visit(idp.AuthRequest{MaxAge: -1})
	_, err = w.client.Exchange(context.Background(), back.Get("code"), "", verifier)
	w.wantKind(err, idp.Unusable, "nonce")
	w.change(func(b *idptest.Behaviour) { b.NoNonce = true })
	_, back, _ = w.visit(idp.AuthRequest{MaxAge: -1})
	_, err = w.client.Exchange(context.Background(), back.Get("code"), "", verifier)
	w.wantKind(err, idp.Unusable, "nonce")
}

// What must not follow a redirect is what holds a code or a secret.
func TestTokenEndpointRedirects(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.Discovery = map[string]any{"token_endpoint": w.fake.URL + "/moved"}
	})
	stolen := make(chan string, 1)
	w.fake.Config.Handler.(*http.ServeMux).HandleFunc("POST /moved", func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	w.fake.Config.Handler.(*http.ServeMux).HandleFunc("POST /elsewhere", func(_ http.ResponseWriter, r *http.Request) {
		stolen <- r.FormValue("code")
	})
	_, err := w.signIn()
	w.wantKind(err, idp.Unusable, "307")
	select {
	case code := <-stolen:
		t.Errorf("the code %q was sent on", code)
	default:
	}
}

// Userinfo that is signed is verified, whoever it came from.
func TestSignedUserInfo(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) {
		b.SignedUserInfo, b.UserInfo = true, map[string]any{"department": "x"}
	})
	who, err := w.signIn()
	if err != nil || who.Claims["department"] != "x" {
		t.Fatalf("got %+v, %v", who, err)
	}
	access := w.fake.OpaqueToken("user-alice")
	w.change(func(b *idptest.Behaviour) { b.WrongKey = true })
	_, err = w.client.VerifyAccessToken(context.Background(), access, nil)
	w.wantKind(err, idp.Invalid, "not made with a key")
}

// elsewhere has https://idp.example be the provider.
type elsewhere struct{ to *url.URL }

func (e elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" && r.URL.Host == "idp.example" {
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = e.to.Scheme, e.to.Host
	}
	return http.DefaultTransport.RoundTrip(r)
}

// What is behind https sends nothing to where anybody can listen.
func TestNoWayFromHTTPSToHTTP(t *testing.T) {
	w := newWorld(t)
	settings := *w.cfg.IDPs[0]
	settings.URL = "https://idp.example"
	cfg := *w.cfg
	cfg.IDPs = []*config.IdentityProvider{&settings}
	for _, tt := range []struct {
		name, token string
		kind        idp.Kind
		text        string
	}{
		{"all is https", "https://idp.example/token", fine, ""},
		{"the token endpoint is not", "http://idp.example/token", idp.Unusable, "token_endpoint is no https URL"},
	} {
		w.change(func(b *idptest.Behaviour) {
			b.Discovery = map[string]any{
				"issuer": settings.URL, "authorization_endpoint": settings.URL + "/authorize", "jwks_uri": settings.URL + "/keys",
				"userinfo_endpoint": settings.URL + "/userinfo", "end_session_endpoint": nil, "token_endpoint": tt.token,
			}
		})
		c := w.config()
		c.HTTPClient = &http.Client{Transport: elsewhere{mustURL(t, w.fake.URL)}}
		set := idp.NewSet(c, &cfg, nil)
		_, err := set.Get(settings.ID()).AuthURL(context.Background(), idp.AuthRequest{})
		w.wantKind(err, tt.kind, tt.text)
	}
	mux := w.fake.Config.Handler.(*http.ServeMux)
	mux.HandleFunc("GET /plain/.well-known/openid-configuration", func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, w.fake.URL+"/.well-known/openid-configuration", http.StatusFound)
	})
	settings.URL += "/plain"
	c := w.config()
	c.HTTPClient = &http.Client{Transport: elsewhere{mustURL(t, w.fake.URL)}}
	_, err := idp.NewSet(c, &cfg, nil).Get(settings.ID()).AuthURL(context.Background(), idp.AuthRequest{})
	w.wantKind(err, idp.Unavailable, "redirects too often, or to plain http")
}
