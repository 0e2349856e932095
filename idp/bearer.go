package idp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/countersign/countersign/databroker"
)

// VerifyIDToken verifies an ID token that a program brings, issued to our client or
// to one of audiences.
func (p *Provider) VerifyIDToken(ctx context.Context, raw string, audiences []string) (*Identity, error) {
	const doing = "verify id_token"
	if p.kind.profile != nil {
		return nil, failed(Unsupported, "%s: %s gives none", doing, p.settings.Provider)
	}
	d, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	t, err := d.open(ctx, raw, p.now(), false)
	if err == nil {
		err = t.checkBroughtIDToken(append([]string{p.settings.ClientID}, audiences...))
	}
	if err != nil {
		return nil, invalid(doing, err)
	}
	settleAuthTime(t.claims, t.issuedAt, t.issuedAt, p.now())
	who, err := p.identity(d, t, nil, databroker.Tokens{})
	if err != nil {
		return nil, invalid(doing, err)
	}
	return who, nil
}

// checkBroughtIDToken: where a token is for several clients, azp says which of them
// it was given to.
func (t *jwt) checkBroughtIDToken(clients []string) error {
	if _, ok := t.claims["azp"]; !ok && len(t.audience) > 1 {
		return errors.New("it is for several clients, but lacks azp, which says which of them it was given to")
	}
	// Access tokens that do not say so in typ say at least what they may be used for,
	// or by which client.
	for _, name := range []string{"scope", "scp"} {
		if _, ok := t.claims[name]; ok {
			return fmt.Errorf("it is an access token: it has %s", name)
		}
	}
	for _, name := range []string{"client_id", "cid", "appid"} {
		if id, ok := t.claims[name]; ok {
			if text, _ := id.(string); !slices.Contains(clients, text) {
				return fmt.Errorf("its %s is another client", name)
			}
		}
	}
	return t.checkIDToken(clients)
}

// VerifyAccessToken finds out whose an access token is: by its signature where it is
// a JWT of the provider, else by userinfo. Its aud must name one of audiences,
// unless that is nil; then a token that was given to any client of the provider
// will do.
func (p *Provider) VerifyAccessToken(ctx context.Context, raw string, audiences []string) (*Identity, error) {
	const doing = "verify access token"
	if p.kind.opaque {
		return nil, failed(Unsupported, "%s: %s does not say whose one is", doing, p.settings.Provider)
	}
	d, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	verify := p.verifyOpaque
	if strings.Count(raw, ".") == 2 && p.kind.profile == nil {
		verify = p.verifyJWT
	}
	who, err := verify(ctx, d, raw, audiences)
	if err != nil {
		return nil, invalid(doing, err)
	}
	return who, nil
}

// verifyOpaque asks the provider whose a token is.
func (p *Provider) verifyOpaque(ctx context.Context, d *discovered, raw string, audiences []string) (*Identity, error) {
	switch {
	case audiences != nil:
		return nil, errors.New("it is no JWT, so that nothing tells its aud")
	case raw == "" || len(raw) > maxOpaque || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("it is empty, longer than 8 KiB, or has characters that no token has")
	case d.UserInfo == "":
		return nil, failed(Unsupported, "it is no JWT, and the provider has no userinfo endpoint")
	}
	claims, err := p.lookUp(ctx, d, raw, "")
	if err != nil {
		return nil, err
	}
	if p.kind.profile != nil {
		return p.plainIdentity(claims, databroker.Tokens{})
	}
	subject, _ := claims["sub"].(string)
	return p.identity(d, &jwt{subject: subject, claims: claims}, nil, databroker.Tokens{})
}

// verifyJWT follows RFC 9068, section 4, but for typ, which many issuers leave at
// JWT. Where the token does not hold the person's address, userinfo may.
func (p *Provider) verifyJWT(ctx context.Context, d *discovered, raw string, audiences []string) (*Identity, error) {
	t, err := d.open(ctx, raw, p.now(), false)
	if err != nil {
		return nil, err
	}
	if err := t.checkAccessToken(audiences); err != nil {
		return nil, err
	}
	var info map[string]any
	if _, ok := t.claims["email"]; !ok && d.UserInfo != "" {
		info, err = p.lookUp(ctx, d, raw, t.subject)
		var a *answered
		// That it is for another resource than userinfo is no fault.
		if err != nil && !(errors.As(err, &a) && kindOfStatus(a.status) == Unusable) {
			return nil, fmt.Errorf("userinfo: %w", err)
		}
	}
	for _, name := range aboutSignIn() {
		delete(t.claims, name)
	}
	return p.identity(d, t, info, databroker.Tokens{})
}

// checkAccessToken checks what every access token must be.
func (t *jwt) checkAccessToken(audiences []string) error {
	if err := t.checkPurpose([]string{"", "jwt", "at+jwt"}, []string{"Bearer"}); err != nil {
		return err
	}
	if t.typ != "at+jwt" && !t.looksLikeAccess() {
		return errors.New("it is an ID token, or has neither scope nor client_id, which access tokens have")
	}
	if t.subject == "" || t.expires.IsZero() {
		return errors.New("it lacks sub or exp")
	}
	if audiences == nil {
		return nil
	}
	return t.checkAudience(audiences)
}

// looksLikeAccess tells the access tokens of issuers that do not say so in typ from
// their ID tokens, which may be for anybody: only the latter have hashes and a nonce,
// only the former say what they may be used for, or by which client.
func (t *jwt) looksLikeAccess() bool {
	for _, name := range []string{"nonce", "at_hash", "c_hash"} {
		if _, ok := t.claims[name]; ok {
			return false
		}
	}
	// Cognito has client_id in both.
	if t.claims["token_use"] == "id" {
		return false
	}
	has := func(name string) bool { return t.claims[name] != nil }
	// azure's access tokens for programs have roles in the place of a scope; its ID
	// tokens have them, too.
	if slices.ContainsFunc([]string{"scope", "scp", "client_id", "cid"}, has) || has("roles") && (has("appid") || has("azpacr")) {
		return true
	}
	return t.claims["typ"] == "Bearer"
}

// invalid is the error of a token that somebody brought.
func invalid(doing string, err error) *Error {
	kind := kindOfFailure(err)
	if kind == Unusable {
		kind = Invalid
	}
	return failed(kind, "%s: %w", doing, err)
}
