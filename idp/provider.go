package idp

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
)

// maxKept is how long an ID token can be that the databroker keeps.
const maxKept = 64 << 10

// Provider is one client of ours at one identity provider.
type Provider struct {
	network
	settings *config.IdentityProvider
	kind     *kind
	callback string
	// discovery is nil for kinds that have none: known is all that there is.
	discovery *remote[*discovered]
	known     *discovered
	lookups   *lookups

	// taken are the names of others in the newest configuration.
	taken atomic.Pointer[map[string]bool]
	// givesAuthTime is whether an id_token has ever held a usable auth_time.
	givesAuthTime atomic.Bool
}

func newProvider(n network, settings *config.IdentityProvider, callback string) *Provider {
	p := &Provider{network: n, settings: settings, kind: kindNamed(settings.Provider), callback: callback, lookups: newLookups()}
	if p.kind.profile != nil {
		p.known = githubEndpoints(settings.URL)
		return p
	}
	p.discovery = newDiscovery(&p.network, settings.URL, p.kind.tenants, false)
	return p
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

// endpoints returns what is known of the provider.
func (p *Provider) endpoints(ctx context.Context) (*discovered, error) {
	if p.discovery == nil {
		return p.known, nil
	}
	d, _, err := p.discovery.get(ctx)
	var ours *Error
	if err != nil && !errors.As(err, &ours) {
		err = failed(Unavailable, "discover provider: %w", err)
	}
	return d, err
}

// doubt has the provider discovered anew, since what we know led to a failure.
func (p *Provider) doubt() {
	if p.discovery != nil {
		p.discovery.doubt()
	}
}

// oauth is our client at the provider.
func (p *Provider) oauth(d *discovered) *oauth2.Config {
	style := oauth2.AuthStyleInHeader
	if p.settings.ClientSecret == "" || len(d.AuthMethods) > 0 && !slices.Contains(d.AuthMethods, "client_secret_basic") {
		style = oauth2.AuthStyleInParams
	}
	return &oauth2.Config{
		ClientID: p.settings.ClientID, ClientSecret: p.settings.ClientSecret, RedirectURL: p.callback,
		Endpoint: oauth2.Endpoint{AuthURL: d.Authorization, TokenURL: d.Token, AuthStyle: style},
		Scopes:   p.kind.askFor(p.settings.Scopes, d.Scopes),
	}
}

// challenges reports whether the provider knows S256 of PKCE. Those that do not say
// may ignore it.
func (d *discovered) challenges() bool {
	return d.Challenges == nil || slices.Contains(d.Challenges, "S256")
}

// AuthURL is where the browser goes to sign in.
func (p *Provider) AuthURL(ctx context.Context, r AuthRequest) (string, error) {
	d, err := p.endpoints(ctx)
	if err != nil {
		return "", err
	}
	options := p.kind.parameters(r, p.settings.RequestParams)
	if d.challenges() {
		options = append(options, oauth2.S256ChallengeOption(r.Verifier))
	}
	return p.oauth(d).AuthCodeURL(r.State, options...), nil
}

// Exchange redeems a code and checks all that comes back.
func (p *Provider) Exchange(ctx context.Context, code, nonce, verifier string) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*providerWait)
	defer cancel()
	d, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	var options []oauth2.AuthCodeOption
	if d.challenges() {
		options = append(options, oauth2.VerifierOption(verifier))
	}
	asked := p.now()
	token, err := p.oauth(d).Exchange(context.WithValue(ctx, oauth2.HTTPClient, p.client), code, options...)
	if err != nil {
		return nil, p.tokenFailure("exchange code", err)
	}
	tokens := p.tokens(token, asked)
	if p.kind.profile != nil {
		return p.signedInPlainly(ctx, tokens)
	}
	t, err := p.ownIDToken(ctx, d, &tokens)
	if err == nil && !(nonce != "" && t.nonce() != "" && subtle.ConstantTimeCompare([]byte(t.nonce()), []byte(nonce)) == 1) {
		err = failed(Unusable, "verify id_token: its nonce is not the one of this sign-in")
	}
	if err != nil {
		p.doubt()
		return nil, err
	}
	if p.kind.backdates {
		asked = t.issuedAt
	}
	settleAuthTime(t.claims, t.issuedAt, asked, p.now())
	if _, ok := t.claims[claimAuthTime]; ok {
		p.givesAuthTime.Store(true)
	}
	var info map[string]any
	if d.UserInfo != "" {
		if info, err = p.userinfo(ctx, d, tokens.AccessToken, t.subject); err != nil {
			return nil, failed(kindOfFailure(err), "userinfo: %w", err)
		}
	}
	return p.identity(d, t, info, tokens)
}

func (t *jwt) nonce() string {
	nonce, _ := t.claims["nonce"].(string)
	return nonce
}

// signedInPlainly is the identity of a sign-in at a provider without ID tokens.
func (p *Provider) signedInPlainly(ctx context.Context, tokens databroker.Tokens) (*Identity, error) {
	claims, err := p.kind.profile(p, ctx, tokens.AccessToken)
	if err != nil {
		return nil, failed(kindOfFailure(err), "read profile: %w", err)
	}
	return p.plainIdentity(claims, tokens)
}

func (p *Provider) plainIdentity(claims map[string]any, tokens databroker.Tokens) (*Identity, error) {
	subject, _ := claims["sub"].(string)
	userID, err := p.userID(subject)
	if err != nil {
		return nil, &Error{Unusable, err}
	}
	if claims, err = p.kind.person(nil, claims, false); err != nil {
		return nil, &Error{Unusable, err}
	}
	return &Identity{Subject: subject, UserID: userID, Claims: claims, Tokens: tokens}, nil
}

// identity is who an ID token, and userinfo where there is one, speak of.
func (p *Provider) identity(d *discovered, t *jwt, info map[string]any, tokens databroker.Tokens) (*Identity, error) {
	subject, err := p.subject(t)
	if err != nil {
		return nil, &Error{Unusable, err}
	}
	userID, err := p.userID(subject)
	if err != nil {
		return nil, &Error{Unusable, err}
	}
	claims, err := p.kind.person(t.claims, info, d.shared())
	if err != nil {
		return nil, &Error{Unusable, err}
	}
	return &Identity{
		Subject: subject, UserID: userID, SessionID: sessionID(t.claims), Claims: claims,
		Tokens: tokens, IssuedAt: t.issuedAt, ExpiresAt: t.expires,
	}, nil
}

// ownIDToken verifies the ID token that the provider has just given us, and notes
// when it expires. One that is too long to be kept is taken out of the tokens.
func (p *Provider) ownIDToken(ctx context.Context, d *discovered, tokens *databroker.Tokens) (*jwt, error) {
	if tokens.IDToken == "" {
		return nil, failed(Unusable, "answer has no id_token")
	}
	t, err := d.open(ctx, tokens.IDToken, p.now(), true)
	if err == nil {
		err = t.checkIDToken([]string{p.settings.ClientID})
	}
	if err == nil {
		err = t.checkHash(tokens.AccessToken)
	}
	if err != nil {
		return nil, failed(kindOfFailure(err), "verify id_token: %w", err)
	}
	if tokens.IDTokenExpiresAt = t.expires; len(tokens.IDToken) > maxKept {
		tokens.IDToken, tokens.IDTokenExpiresAt = "", time.Time{}
	}
	return t, nil
}

// userinfo returns the claims of the userinfo endpoint, which must be about the
// subject, but for those that it cannot know.
func (p *Provider) userinfo(ctx context.Context, d *discovered, access, subject string) (map[string]any, error) {
	body, mediaType, err := p.get(ctx, d.UserInfo, access)
	if err != nil {
		return nil, briefly(err)
	}
	var t *jwt
	if mediaType == "application/jwt" {
		// It may say whose it is and for whom, but need not (OpenID Connect Core,
		// section 5.3.2): we have just asked for it.
		t, err = d.signed(ctx, string(body), true)
	} else {
		t, err = read(body)
	}
	if err != nil {
		return nil, err
	}
	if t.subject == "" || subject != "" && t.subject != subject {
		return nil, fmt.Errorf("%w: it is about another subject", errStranger)
	}
	for _, name := range aboutSignIn() {
		delete(t.claims, name)
	}
	return t.claims, nil
}

// tokens are those of an answer, with their times on our clock.
func (p *Provider) tokens(t *oauth2.Token, asked time.Time) databroker.Tokens {
	tokens := databroker.Tokens{AccessToken: t.AccessToken, RefreshToken: t.RefreshToken, TokenType: t.TokenType}
	tokens.IDToken, _ = t.Extra("id_token").(string)
	if !t.Expiry.IsZero() {
		tokens.ExpiresAt = asked.Add(time.Until(t.Expiry).Round(time.Second))
	}
	return tokens
}

// tokenFailure sorts what the token endpoint says.
func (p *Provider) tokenFailure(doing string, err error) error {
	var answer *oauth2.RetrieveError
	if !errors.As(err, &answer) || answer.Response == nil {
		p.doubt()
		return failed(kindOfFailure(err), "%s: %w", doing, briefly(err))
	}
	// The answer's body may echo what we sent, so it is not for the log.
	cause := fmt.Errorf("%s: provider answered %d %q", doing, answer.Response.StatusCode, bounded(answer.ErrorCode, 64))
	kind := kindOfStatus(answer.Response.StatusCode)
	if kind == Unusable {
		kind = kindOfCode(answer.ErrorCode, answer.Response.StatusCode)
	}
	if kind != Refused {
		p.doubt()
	}
	return &Error{kind, cause}
}

// kindOfCode sorts the errors of RFC 6749, section 5.2, and github's.
func kindOfCode(code string, status int) Kind {
	switch code {
	case "invalid_grant", "bad_verification_code", "bad_refresh_token":
		return Refused
	case "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "incorrect_client_credentials", "redirect_uri_mismatch":
		return Misconfigured
	case "temporarily_unavailable", "server_error", "slow_down":
		return Unavailable
	case "":
		if status == http.StatusUnauthorized {
			return Misconfigured
		}
	}
	return Unusable
}
