package idp

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
)

const (
	discoveryLife  = time.Hour
	discoveryPause = 5 * time.Second
	providerWait   = 10 * time.Second
	maxProviderDoc = 1 << 20
	maxClaims      = 256 << 10
	// leeway is how far a provider's clock may be off.
	leeway = time.Minute
)

// Provider is one client of ours at one identity provider. It is discovered on first use and
// again when what is known grows old or has led to a failure, but after a
// failure not more often than every discoveryPause.
type Provider struct {
	settings *config.IdentityProvider
	callback string
	client   *http.Client
	now      func() time.Time
	log      *slog.Logger

	// turn holds one token: who takes it may discover and touch what follows.
	turn     chan struct{}
	known    *discovered
	stale    bool
	failedAt time.Time
	failure  error

	// givesAuthTime is whether an id_token has ever held a usable auth_time.
	givesAuthTime atomic.Bool
}

type discovered struct {
	oidc     *oidc.Provider
	oauth    *oauth2.Config
	verifier *oidc.IDTokenVerifier
	at       time.Time
}

func newProvider(c Config, settings *config.IdentityProvider, callback string) *Provider {
	next := c.HTTPClient.Transport
	if next == nil {
		next = &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: providerWait, IdleConnTimeout: time.Minute}
	}
	bound := &http.Client{Timeout: providerWait, Transport: boundedBodies{next}, CheckRedirect: c.HTTPClient.CheckRedirect}
	return &Provider{settings: settings, callback: callback, client: bound, now: c.Now, log: c.Log, turn: make(chan struct{}, 1)}
}

// serves reports whether p is the provider of these settings.
func (p *Provider) serves(s *config.IdentityProvider, callback string) bool {
	a, b := *p.settings, *s
	a.Position, b.Position = config.Position{}, config.Position{}
	return p.callback == callback && reflect.DeepEqual(a, b)
}

// ID is that of the settings.
func (p *Provider) ID() string { return p.settings.ID() }

// Settings are what the provider was made of. Nobody changes them.
func (p *Provider) Settings() *config.IdentityProvider { return p.settings }

// Host is the provider's, for people to recognise.
func (p *Provider) Host() string {
	u, err := url.Parse(p.settings.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// GivesAuthTime reports whether an ID token has ever held a usable auth_time.
func (p *Provider) GivesAuthTime() bool { return p.givesAuthTime.Load() }

// discover returns the provider's endpoints and keys.
func (p *Provider) discover(ctx context.Context) (*discovered, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("discover provider: %w", ctx.Err())
	}
	now := p.now()
	if p.known != nil && !p.stale && now.Sub(p.known.at) < discoveryLife {
		return p.known, nil
	}
	if p.failure != nil && now.Sub(p.failedAt) < discoveryPause {
		if p.known != nil {
			return p.known, nil
		}
		return nil, p.failure
	}
	// Others wait for this answer, so one browser that gives up must not
	// spoil it.
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.WithoutCancel(ctx), p.client), providerWait)
	defer cancel()
	d, err := p.fetch(ctx)
	if err != nil {
		p.failedAt, p.failure = p.now(), err
		if p.known != nil {
			return p.known, nil
		}
		return nil, err
	}
	d.at, p.stale, p.failure = now, false, nil
	p.known = d
	return d, nil
}

func (p *Provider) fetch(ctx context.Context) (*discovered, error) {
	op, err := oidc.NewProvider(ctx, p.settings.URL)
	var mismatch *oidc.IssuerMismatchError
	if errors.As(err, &mismatch) && strings.TrimSuffix(mismatch.Discovered, "/") == strings.TrimSuffix(mismatch.Provided, "/") {
		op, err = oidc.NewProvider(ctx, mismatch.Discovered)
	}
	if err != nil {
		return nil, fmt.Errorf("discover provider: %w", briefly(err))
	}
	var doc struct {
		Scopes      []string `json:"scopes_supported"`
		AuthMethods []string `json:"token_endpoint_auth_methods_supported"`
	}
	if err := op.Claims(&doc); err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	endpoint := op.Endpoint()
	for _, u := range []string{endpoint.AuthURL, endpoint.TokenURL} {
		if e, err := url.Parse(u); err != nil || e.Host == "" || e.Scheme != "https" && e.Scheme != "http" {
			return nil, errors.New("discover provider: authorization or token endpoint is no URL")
		}
	}
	endpoint.AuthStyle = oauth2.AuthStyleInHeader
	if p.settings.ClientSecret == "" || len(doc.AuthMethods) > 0 && !slices.Contains(doc.AuthMethods, "client_secret_basic") {
		endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return &discovered{
		oidc: op,
		oauth: &oauth2.Config{
			ClientID: p.settings.ClientID, ClientSecret: p.settings.ClientSecret,
			Endpoint: endpoint, RedirectURL: p.callback, Scopes: scopes(p.settings.Scopes, doc.Scopes),
		},
		verifier: op.VerifierContext(oidc.ClientContext(context.WithoutCancel(ctx), p.client), &oidc.Config{
			ClientID: p.settings.ClientID,
			// A minute for clocks that disagree.
			Now: func() time.Time { return p.now().Add(-time.Minute) },
		}),
	}, nil
}

// scopes are the configured ones, but for the one that some providers refuse
// instead of ignoring it.
func scopes(configured, supported []string) []string {
	out := []string{oidc.ScopeOpenID}
	for _, s := range configured {
		refused := s == oidc.ScopeOfflineAccess && len(supported) > 0 && !slices.Contains(supported, s)
		if s != oidc.ScopeOpenID && !refused {
			out = append(out, s)
		}
	}
	return out
}

// AuthURL is where the browser goes to sign in.
func (p *Provider) AuthURL(ctx context.Context, r AuthRequest) (string, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return "", &Error{Unavailable, err}
	}
	options := []oauth2.AuthCodeOption{oidc.Nonce(r.Nonce), oauth2.S256ChallengeOption(r.Verifier)}
	if r.MaxAge >= 0 {
		options = append(options, oauth2.SetAuthURLParam("max_age", strconv.FormatInt(r.MaxAge, 10)))
	}
	if r.Fresh {
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"))
	}
	return d.oauth.AuthCodeURL(r.State, options...), nil
}

// Exchange redeems a code and checks all that comes back.
func (p *Provider) Exchange(ctx context.Context, code, nonce, verifier string) (*Identity, error) {
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, p.client), 2*providerWait)
	defer cancel()
	d, err := p.discover(ctx)
	if err != nil {
		return nil, &Error{Unavailable, err}
	}
	asked := p.now()
	token, err := d.oauth.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		return nil, p.exchangeFailure(err)
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return nil, failed(Unusable, "answer has no id_token")
	}
	idToken, err := d.verifier.Verify(ctx, raw)
	if err != nil {
		p.forget()
		return nil, failed(Unusable, "verify id_token: %w", err)
	}
	claims, err := checkIDToken(idToken, p.settings.ClientID, nonce, token.AccessToken)
	if err != nil {
		return nil, &Error{Unusable, err}
	}
	settleAuthTime(claims, idToken.IssuedAt, asked, p.now())
	if _, ok := claims[claimAuthTime]; ok {
		p.givesAuthTime.Store(true)
	}
	if d.oidc.UserInfoEndpoint() != "" {
		info, err := d.oidc.UserInfo(ctx, oauth2.StaticTokenSource(token))
		if err != nil {
			return nil, failed(Unusable, "userinfo: %w", briefly(err))
		}
		if info.Subject != idToken.Subject {
			return nil, failed(Unusable, "userinfo is about another subject")
		}
		var more map[string]any
		if err := info.Claims(&more); err != nil {
			return nil, failed(Unusable, "userinfo is no JSON object")
		}
		merge(claims, more)
	}
	sid, _ := claims["sid"].(string)
	claims = keep(claims)
	if b, err := json.Marshal(claims); err != nil || len(b) > maxClaims {
		return nil, failed(Unusable, "claims are too large")
	}
	return &Identity{
		Subject: idToken.Subject, UserID: p.userID(idToken.Subject), SessionID: sid, Claims: claims,
		IssuedAt: idToken.IssuedAt, ExpiresAt: idToken.Expiry,
		Tokens: databroker.Tokens{
			AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, TokenType: token.TokenType,
			IDToken: raw, ExpiresAt: token.Expiry, IDTokenExpiresAt: idToken.Expiry,
		},
	}, nil
}

// userID is who a subject of this provider is to us.
func (p *Provider) userID(subject string) string {
	if p.settings.Name == "" {
		return subject
	}
	return p.settings.Name + "/" + subject
}

// checkIDToken checks what the verifier does not.
func checkIDToken(t *oidc.IDToken, clientID, nonce, access string) (map[string]any, error) {
	if !(nonce != "" && subtle.ConstantTimeCompare([]byte(t.Nonce), []byte(nonce)) == 1) {
		return nil, errors.New("verify id_token: nonce is not the one of this sign-in")
	}
	if t.Subject == "" || len(t.Subject) > 255 {
		return nil, errors.New("verify id_token: sub is empty or longer than 255 bytes")
	}
	if t.AccessTokenHash != "" {
		if err := t.VerifyAccessToken(access); err != nil {
			return nil, fmt.Errorf("verify id_token: %w", err)
		}
	}
	var claims map[string]any
	if err := t.Claims(&claims); err != nil {
		return nil, errors.New("verify id_token: claims are no JSON object")
	}
	if azp, ok := claims["azp"]; ok && azp != clientID {
		return nil, errors.New("verify id_token: azp is another client")
	}
	return claims, nil
}

// claimAuthTime is when the person proved to the provider who they are, in
// seconds since 1970 (OpenID Connect Core, section 2).
const claimAuthTime = "auth_time"

// settleAuthTime puts the auth_time of an id_token on our clock, on which
// everybody who reads the claim will measure its age. One that cannot be meant
// is dropped: a time ahead would make a sign-in that never grows old.
//
// The provider made the token after we had asked for it, so an iat outside
// asked..now shows how far its clock is off, and auth_time is off as far.
func settleAuthTime(claims map[string]any, issued, asked, now time.Time) {
	at, ok := claims[claimAuthTime].(float64)
	delete(claims, claimAuthTime)
	iat, first, last := issued.Unix(), asked.Unix(), now.Unix()
	if iat <= 0 {
		iat = last
	}
	// A provider of several machines may have clocks that differ.
	if !ok || at <= 0 || at > float64(iat)+leeway.Seconds() {
		return
	}
	settled := int64(at) + min(max(iat, first), last) - iat
	claims[claimAuthTime] = float64(min(settled, last))
}

// merge adds the claims of userinfo, but for those about the sign-in, which
// only the id_token can know. A newer email takes the older one's verification
// away unless it brings its own.
func merge(claims, more map[string]any) {
	for _, k := range []string{claimAuthTime, "acr", "amr"} {
		delete(more, k)
	}
	if email, ok := more["email"]; ok && email != claims["email"] {
		delete(claims, "email_verified")
	}
	for k, v := range more {
		claims[k] = v
	}
}

// keep drops the claims that are about the token, not about the person.
//
// An address that the provider says it has not verified must not open a door
// that a policy opens for that address or its domain: it is kept, but under
// unverified_email. A provider that says nothing about it is believed.
func keep(claims map[string]any) map[string]any {
	for _, k := range []string{"iss", "aud", "exp", "iat", "nbf", "jti", "nonce", "azp", "at_hash", "c_hash", "s_hash", "typ"} {
		delete(claims, k)
	}
	delete(claims, "unverified_email")
	if v, ok := claims["email_verified"]; ok && v != true && v != "true" {
		if email, ok := claims["email"]; ok {
			claims["unverified_email"] = email
		}
		delete(claims, "email")
	}
	return claims
}

func (p *Provider) exchangeFailure(err error) error {
	var answer *oauth2.RetrieveError
	if !errors.As(err, &answer) || answer.Response == nil {
		p.forget()
		return failed(Unavailable, "exchange code: %w", briefly(err))
	}
	// The answer's body may echo what we sent, so it is not for the log.
	cause := fmt.Errorf("exchange code: provider answered %d %q", answer.Response.StatusCode, bounded(answer.ErrorCode, 64))
	if answer.ErrorCode == "invalid_grant" {
		return &Error{Refused, cause}
	}
	p.forget()
	return &Error{Unusable, cause}
}

// forget has the next sign-in discover the provider anew.
func (p *Provider) forget() {
	p.turn <- struct{}{}
	p.stale = true
	<-p.turn
}

// briefly keeps the start of an error: that of an HTTP answer goes on with
// its body.
func briefly(err error) error {
	text := err.Error()
	var transport *url.Error
	if !errors.As(err, &transport) && len(text) > 4 && text[3] == ' ' && text[0] >= '1' && text[0] <= '5' {
		status, _, _ := strings.Cut(text, ":")
		return errors.New("provider answered " + bounded(status, 64))
	}
	return errors.New(bounded(text, 300))
}

// boundedBodies is a transport whose answers end after maxProviderDoc bytes.
type boundedBodies struct{ next http.RoundTripper }

func (t boundedBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxProviderDoc), resp.Body}
	return resp, nil
}

func bounded(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
