// Package idptest is an OpenID Connect provider on loopback for tests. It
// really works: it signs with RSA, redeems each code once, and checks the
// client's secret and the PKCE verifier. A Behaviour makes it misbehave.
//
// It asks nobody for a password: whoever comes is the Subject. Like others it
// remembers when that was, and signs in anew only a new Subject, or for a max_age
// that is over or prompt=login.
package idptest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The client that the provider knows.
const (
	ClientID     = "countersign-test"
	ClientSecret = "a-client-secret-for-tests"
)

// Behaviour is who signs in, and what the provider does wrong. The zero value
// of each field is right, but for Subject.
type Behaviour struct {
	Subject string
	// Claims are put into the id_token and the userinfo.
	Claims map[string]any

	// These replace what the id_token should hold.
	Nonce, Issuer, AuthorizedParty string
	Audience                       any
	// Algorithm is RS256 unless it is none or HS256.
	Algorithm string
	// WrongKey signs with a key that is not published.
	WrongKey  bool
	Expired   bool
	NoIDToken bool

	Asking
	// Now is its clock, time.Now if nil.
	Now func() time.Time

	// UserInfoSubject is another sub in the userinfo; UserInfo adds claims.
	UserInfoSubject string
	UserInfo        map[string]any
	// NoUserInfo leaves the endpoint out of the discovery document.
	NoUserInfo bool

	Refusals
	// OnToken runs before the token endpoint answers; it may wait.
	OnToken func(*http.Request)
}

// Asking is what the provider makes of max_age and prompt, and what it says of
// the time of a sign-in.
type Asking struct {
	// NeverAsksAgain disregards max_age and prompt.
	NeverAsksAgain bool
	// AuthTime replaces auth_time; NoAuthTime leaves it out, and
	// AuthTimeIfAsked where no max_age was asked for.
	AuthTime                    any
	NoAuthTime, AuthTimeIfAsked bool
	// MaxAgeError is the error with which it answers a max_age, if any.
	MaxAgeError string
}

// Refusals are what the endpoints say instead of an answer.
type Refusals struct {
	// AuthorizeError sends the browser back with an error.
	AuthorizeError, AuthorizeDescription string
	// TokenError is the error of a 400; the statuses replace 200.
	TokenError                                   string
	DiscoveryStatus, TokenStatus, UserInfoStatus int
}

// Provider is the provider. Its URL is the issuer.
type Provider struct {
	*httptest.Server
	key, other *rsa.PrivateKey

	mu        sync.Mutex
	behaviour Behaviour
	codes     map[string]url.Values
	access    map[string]bool
	counts    map[string]int
	secrets   []string
	// who signed in last, and when.
	subject    string
	signedInAt time.Time
}

// NewProvider starts a provider at which alice signs in; it ends with the test.
func NewProvider(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{codes: map[string]url.Values{}, access: map[string]bool{}, counts: map[string]int{}}
	for _, k := range []**rsa.PrivateKey{&p.key, &p.other} {
		var err error
		if *k, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatalf("make provider key: %v", err)
		}
	}
	p.behaviour = Alice()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("GET /keys", p.keys)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", p.userinfo)
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// Alice is somebody with a name, a verified address and groups.
func Alice() Behaviour {
	return Behaviour{Subject: "user-alice", Claims: map[string]any{
		"name": "Alice", "email": "alice@example.com", "email_verified": true, "groups": []string{"eng", "ops"},
	}}
}

// Change changes the behaviour from now on.
func (p *Provider) Change(f func(*Behaviour)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.behaviour)
}

// Count returns how often "discovery", "authorize", "token" or "userinfo" was
// asked, or for "login" how often the Subject signed in.
func (p *Provider) Count(endpoint string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[endpoint]
}

// Secrets returns every code and token given out, and the client's secret.
func (p *Provider) Secrets() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{ClientSecret}, p.secrets...)
}

func (p *Provider) enter(endpoint string) Behaviour {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[endpoint]++
	return p.behaviour
}

func (p *Provider) secret() string {
	s := rand.Text()
	p.secrets = append(p.secrets, s)
	return s
}

func (p *Provider) discovery(w http.ResponseWriter, _ *http.Request) {
	b := p.enter("discovery")
	if b.DiscoveryStatus != 0 {
		http.Error(w, "out of order", b.DiscoveryStatus)
		return
	}
	doc := map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
		"jwks_uri": p.URL + "/keys", "userinfo_endpoint": p.URL + "/userinfo",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
		"code_challenge_methods_supported":      []string{"S256"},
	}
	if b.NoUserInfo {
		delete(doc, "userinfo_endpoint")
	}
	answer(w, http.StatusOK, doc)
}

func (p *Provider) keys(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &p.key.PublicKey, KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
}

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	b := p.enter("authorize")
	q := r.URL.Query()
	to, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("client_id") != ClientID || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" {
		http.Error(w, "bad authorization request", http.StatusBadRequest)
		return
	}
	back := url.Values{"state": {q.Get("state")}}
	if b.AuthorizeError == "" && q.Has("max_age") {
		b.AuthorizeError = b.MaxAgeError
	}
	if b.AuthorizeError != "" {
		back.Set("error", b.AuthorizeError)
		back.Set("error_description", b.AuthorizeDescription)
	} else {
		p.mu.Lock()
		code := p.secret()
		q.Set("auth_time", strconv.FormatInt(p.signIn(b, q).Unix(), 10))
		p.codes[code] = q
		p.mu.Unlock()
		back.Set("code", code)
	}
	to.RawQuery = back.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}

// signIn returns when the Subject last signed in, which may be now.
func (p *Provider) signIn(b Behaviour, q url.Values) time.Time {
	now := b.now()
	old := q.Get("prompt") == "login"
	if n, err := strconv.Atoi(q.Get("max_age")); err == nil {
		old = old || now.Sub(p.signedInAt) > time.Duration(n)*time.Second
	}
	if p.signedInAt.IsZero() || p.subject != b.Subject || old && !b.NeverAsksAgain {
		p.subject, p.signedInAt = b.Subject, now
		p.counts["login"]++
	}
	return p.signedInAt
}

func (b Behaviour) now() time.Time {
	if b.Now != nil {
		return b.Now()
	}
	return time.Now()
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	b := p.enter("token")
	if err := r.ParseForm(); err != nil {
		http.Error(w, "bad form", http.StatusBadRequest)
		return
	}
	if b.OnToken != nil {
		b.OnToken(r)
	}
	if b.TokenStatus != 0 || b.TokenError != "" {
		answer(w, max(b.TokenStatus, http.StatusBadRequest), map[string]string{"error": b.TokenError, "error_description": r.FormValue("code")})
		return
	}
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.FormValue("client_id"), r.FormValue("client_secret")
	}
	if id != ClientID || secret != ClientSecret {
		answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	asked, ok := p.codes[r.FormValue("code")]
	delete(p.codes, r.FormValue("code"))
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	if !ok || asked.Get("redirect_uri") != r.FormValue("redirect_uri") || asked.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(sum[:]) {
		answer(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
		return
	}
	access := p.secret()
	p.access[access] = true
	body := map[string]any{"access_token": access, "refresh_token": p.secret(), "token_type": "Bearer", "expires_in": 3600}
	if !b.NoIDToken {
		raw := p.idToken(b, asked)
		p.secrets = append(p.secrets, raw)
		body["id_token"] = raw
	}
	answer(w, http.StatusOK, body)
}

func (p *Provider) idToken(b Behaviour, asked url.Values) string {
	now := b.now()
	claims := map[string]any{
		"iss": p.URL, "aud": ClientID, "sub": b.Subject, "nonce": asked.Get("nonce"),
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "auth_time": json.Number(asked.Get("auth_time")),
	}
	if b.NoAuthTime || b.AuthTimeIfAsked && !asked.Has("max_age") {
		delete(claims, "auth_time")
	}
	if b.AuthTime != nil {
		claims["auth_time"] = b.AuthTime
	}
	for k, v := range b.Claims {
		claims[k] = v
	}
	for k, v := range map[string]string{"nonce": b.Nonce, "iss": b.Issuer, "azp": b.AuthorizedParty} {
		if v != "" {
			claims[k] = v
		}
	}
	if b.Audience != nil {
		claims["aud"] = b.Audience
	}
	if b.Expired {
		claims["exp"] = now.Add(-time.Hour).Unix()
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	if b.Algorithm == "none" {
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload) + "."
	}
	key := jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: p.key, KeyID: "1"}}
	if b.WrongKey {
		key.Key = jose.JSONWebKey{Key: p.other, KeyID: "1"}
	}
	if b.Algorithm == "HS256" {
		key = jose.SigningKey{Algorithm: jose.HS256, Key: []byte(ClientSecret + ClientSecret)}
	}
	signer, err := jose.NewSigner(key, nil)
	if err != nil {
		panic(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		panic(err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return raw
}

func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request) {
	b := p.enter("userinfo")
	if b.UserInfoStatus != 0 {
		http.Error(w, r.Header.Get("Authorization"), b.UserInfoStatus)
		return
	}
	token, _ := bearer(r)
	p.mu.Lock()
	known := p.access[token]
	p.mu.Unlock()
	if !known {
		http.Error(w, "unknown token", http.StatusUnauthorized)
		return
	}
	body := map[string]any{"sub": b.Subject}
	for _, m := range []map[string]any{b.Claims, b.UserInfo} {
		for k, v := range m {
			body[k] = v
		}
	}
	if b.UserInfoSubject != "" {
		body["sub"] = b.UserInfoSubject
	}
	answer(w, http.StatusOK, body)
}

func bearer(r *http.Request) (string, bool) {
	const scheme = "Bearer "
	v := r.Header.Get("Authorization")
	if len(v) < len(scheme) || v[:len(scheme)] != scheme {
		return "", false
	}
	return v[len(scheme):], true
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
