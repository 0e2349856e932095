// Package idptest is an OpenID Connect provider on loopback for tests. It
// really works: it signs with RSA, redeems each code and, if told to, each refresh
// token once, and checks the client's secret and the PKCE verifier. A Behaviour
// makes it misbehave. It can pass for GitHub, too (see github.go).
//
// It asks nobody for a password: whoever comes is the Subject. Like others it
// remembers when that was, and signs in anew only a new Subject, or for a max_age
// that is over or prompt=login.
package idptest

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The clients that the provider knows. The public one has no secret: it is a
// program on somebody's own machine, and PKCE is all that it has.
const (
	ClientID       = "countersign-test"
	ClientSecret   = "a-client-secret-for-tests"
	PublicClientID = "countersign-test-program"
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
	Issuing
	// Now is its clock, time.Now if nil; Skew is how far that is ahead.
	Now  func() time.Time
	Skew time.Duration

	// UserInfoSubject is another sub in the userinfo; UserInfo adds claims, and nil
	// leaves one out.
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

// Issuing is what tokens the provider gives.
type Issuing struct {
	// SessionID is the sid of ID tokens, "" for none.
	SessionID string
	// RotateRefresh makes refresh tokens good for one use. A second use ends all
	// that came of the sign-in, as RFC 9700, section 4.14.2 asks for.
	RotateRefresh bool
	// NoRefreshToken gives none; NoRefreshedIDToken has a refresh give no ID token,
	// and RefreshedNonce is the nonce of the one it gives, "" for none.
	NoRefreshToken, NoRefreshedIDToken bool
	RefreshedNonce                     string
	// JWTAccessTokens has access tokens be JWTs with this aud.
	JWTAccessTokens any
	// NoNonce leaves the nonce out of ID tokens.
	NoNonce bool
	// SignedUserInfo has userinfo answer with a JWT.
	SignedUserInfo bool
	// Lifetime is that of access tokens, IDTokenLifetime that of ID tokens: an hour
	// each if 0.
	Lifetime, IDTokenLifetime time.Duration
}

// Refusals are what the endpoints say instead of an answer.
type Refusals struct {
	// AuthorizeError sends the browser back with an error.
	AuthorizeError, AuthorizeDescription string
	// TokenError is the error of a 400; the statuses replace 200.
	TokenError                                               string
	DiscoveryStatus, KeysStatus, TokenStatus, UserInfoStatus int
	// Discovery replaces members of the discovery document; nil leaves one out.
	Discovery map[string]any
	// OnRequest runs before any endpoint answers, with the name by which it is
	// counted. It may wait: the request's context ends when the client gives up.
	OnRequest func(endpoint string, r *http.Request)
}

// Provider is the provider. Its URL is the issuer.
type Provider struct {
	*httptest.Server
	other func() *rsa.PrivateKey

	mu        sync.Mutex
	key       *rsa.PrivateKey
	keyID     int
	behaviour Behaviour
	codes     map[string]url.Values
	access    map[string]string
	refresh   map[string]*grant
	counts    map[string]int
	secrets   []string
	// who signed in last, and when.
	subject    string
	signedInAt time.Time
}

// NewProvider starts a provider at which alice signs in; it ends with the test.
func NewProvider(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{
		codes: map[string]url.Values{}, access: map[string]string{}, refresh: map[string]*grant{}, counts: map[string]int{},
		behaviour: Alice(), other: sync.OnceValue(newKey), key: newKey(), keyID: 1,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{path...}", p.discovery)
	mux.HandleFunc("GET /keys", p.keys)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", p.userinfo)
	mux.HandleFunc("GET /logout", p.logout)
	p.github(mux)
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func newKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// Alice is somebody with a name, a verified address and groups.
func Alice() Behaviour {
	return Behaviour{Subject: "user-alice", Claims: map[string]any{
		"name": "Alice", "email": "alice@example.com", "email_verified": true, "groups": []string{"eng", "ops"},
	}}
}

// Groups are n names of groups.
func Groups(n int) []string {
	groups := make([]string, n)
	for i := range groups {
		groups[i] = fmt.Sprintf("group-%04d", i)
	}
	return groups
}

// Change changes the behaviour from now on. A change to Claims replaces the map or
// is made before the provider is asked for anything.
func (p *Provider) Change(f func(*Behaviour)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.behaviour)
}

// RotateKeys replaces the signing key by a new one with a new kid, and publishes
// that alone.
func (p *Provider) RotateKeys() {
	key := newKey()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key = key
	p.keyID++
}

// Revoke ends all that refresh and access tokens are good for, as an administrator
// does who closes somebody's sessions.
func (p *Provider) Revoke() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.access)
	for _, g := range p.refresh {
		g.over = true
	}
}

// Count returns how often "discovery", "keys", "authorize", "token", "userinfo",
// "logout" or "github" was asked; or for "login" how often the Subject signed in,
// for "refresh" how often a refresh token was traded, and for "reuse" how often one
// that was used up came again.
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

func (p *Provider) enter(endpoint string, r *http.Request) Behaviour {
	p.mu.Lock()
	p.counts[endpoint]++
	b := p.behaviour
	p.mu.Unlock()
	if b.OnRequest != nil {
		b.OnRequest(endpoint, r)
	}
	return b
}

func (p *Provider) secret() string {
	s := rand.Text()
	p.secrets = append(p.secrets, s)
	return s
}

const wellKnown = ".well-known/openid-configuration"

// discovery answers below any path, as providers do that have several issuers.
func (p *Provider) discovery(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutSuffix(r.URL.Path, "/"+wellKnown)
	if !ok {
		http.NotFound(w, r)
		return
	}
	b := p.enter("discovery", r)
	if b.DiscoveryStatus != 0 {
		http.Error(w, "out of order", b.DiscoveryStatus)
		return
	}
	doc := map[string]any{
		"issuer": p.URL + path, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
		"jwks_uri": p.URL + "/keys", "userinfo_endpoint": p.URL + "/userinfo", "end_session_endpoint": p.URL + "/logout",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
		"code_challenge_methods_supported":      []string{"S256"},
		"backchannel_logout_supported":          true, "backchannel_logout_session_supported": true,
	}
	if b.NoUserInfo {
		delete(doc, "userinfo_endpoint")
	}
	for k, v := range b.Discovery {
		if doc[k] = v; v == nil {
			delete(doc, k)
		}
	}
	answer(w, http.StatusOK, doc)
}

func (p *Provider) keys(w http.ResponseWriter, r *http.Request) {
	b := p.enter("keys", r)
	if b.KeysStatus != 0 {
		http.Error(w, "out of order", b.KeysStatus)
		return
	}
	p.mu.Lock()
	key := jose.JSONWebKey{Key: &p.key.PublicKey, KeyID: strconv.Itoa(p.keyID), Algorithm: "RS256", Use: "sig"}
	p.mu.Unlock()
	answer(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
}

func (b Behaviour) now() time.Time {
	now := time.Now()
	if b.Now != nil {
		now = b.Now()
	}
	return now.Add(b.Skew)
}

func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request) {
	b := p.enter("userinfo", r)
	if b.UserInfoStatus != 0 {
		http.Error(w, r.Header.Get("Authorization"), b.UserInfoStatus)
		return
	}
	subject, known := p.holder(r)
	if !known {
		http.Error(w, "unknown token", http.StatusUnauthorized)
		return
	}
	body := map[string]any{"sub": subject}
	for _, m := range []map[string]any{b.Claims, b.UserInfo} {
		for k, v := range m {
			if body[k] = v; v == nil {
				delete(body, k)
			}
		}
	}
	if b.UserInfoSubject != "" {
		body["sub"] = b.UserInfoSubject
	}
	if b.SignedUserInfo {
		p.mu.Lock()
		defer p.mu.Unlock()
		w.Header().Set("Content-Type", "application/jwt")
		_, _ = w.Write([]byte(p.mint(b, "", body, nil)))
		return
	}
	answer(w, http.StatusOK, body)
}

// holder is whose access token came with a request.
func (p *Provider) holder(r *http.Request) (subject string, known bool) {
	const scheme = "Bearer "
	v := r.Header.Get("Authorization")
	if len(v) < len(scheme) || v[:len(scheme)] != scheme {
		return "", false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	subject, known = p.access[v[len(scheme):]]
	return subject, known
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
