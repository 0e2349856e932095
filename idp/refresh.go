package idp

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/countersign/countersign/databroker"
)

// Refresh trades a refresh token for new tokens and claims, userinfo included. The
// subject must stay the same. What the provider leaves out of its answer (the ID
// token, the refresh token) is kept as it was, and so are all claims if it gives
// neither an ID token nor userinfo; but an old ID token has no IDTokenExpiresAt any
// more, since no refresh is due for its sake. Of the sign-in itself the old claims
// stay: auth_time always, acr and amr unless a new ID token has its own.
//
// The error is Refused only where the provider says that the token is no good. Once
// the provider has given new tokens there is an error no more, since the old ones
// may be used up, but for an answer about somebody else: see ClaimsStale.
func (p *Provider) Refresh(ctx context.Context, old *databroker.Session) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*providerWait)
	defer cancel()
	if p.kind.profile != nil && old.Tokens.RefreshToken == "" {
		return p.reread(ctx, old, old.Tokens)
	}
	if old.Tokens.RefreshToken == "" {
		return nil, failed(Unsupported, "refresh: session has no refresh token")
	}
	if _, err := p.userID(p.subjectOf(old.UserID)); err != nil {
		return nil, failed(Unusable, "refresh: %w", err)
	}
	d, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	asked := p.now()
	source := p.oauth(d).TokenSource(context.WithValue(ctx, oauth2.HTTPClient, p.client), &oauth2.Token{RefreshToken: old.Tokens.RefreshToken})
	token, err := source.Token()
	if err != nil {
		return nil, p.tokenFailure("refresh", err)
	}
	tokens := p.tokens(token, asked)
	var fresh *Identity
	if p.kind.profile != nil {
		fresh, err = p.reread(ctx, old, tokens)
	} else {
		fresh, err = p.renewed(ctx, d, old, tokens)
	}
	switch {
	case errors.Is(err, errStranger):
		return nil, failed(Unusable, "refresh: %w", err)
	case err != nil:
		tokens.IDToken, tokens.IDTokenExpiresAt = old.Tokens.IDToken, time.Time{}
		return &Identity{
			Subject: p.subjectOf(old.UserID), UserID: old.UserID, SessionID: old.ProviderSessionID,
			Claims: maps.Clone(old.Claims), Tokens: tokens, ClaimsStale: true, StaleCause: err,
		}, nil
	}
	return fresh, nil
}

// reread reads the profile again at a provider without ID tokens.
func (p *Provider) reread(ctx context.Context, old *databroker.Session, tokens databroker.Tokens) (*Identity, error) {
	claims, err := p.kind.profile(p, ctx, tokens.AccessToken)
	var a *answered
	switch {
	case errors.As(err, &a) && a.status == 401:
		return nil, failed(Refused, "read profile: %w", err)
	case err != nil:
		return nil, failed(kindOfFailure(err), "read profile: %w", err)
	}
	fresh, err := p.plainIdentity(claims, tokens)
	if err == nil && fresh.UserID != old.UserID {
		return nil, failed(Unusable, "read profile: %w", errStranger)
	}
	return fresh, err
}

// renewed is who the provider speaks of after a refresh.
func (p *Provider) renewed(ctx context.Context, d *discovered, old *databroker.Session, tokens databroker.Tokens) (*Identity, error) {
	before := readAgain(old.Tokens.IDToken)
	t := &jwt{claims: maps.Clone(before.claims), subject: before.subject}
	fresh := &Identity{Subject: p.subjectOf(old.UserID), UserID: old.UserID, SessionID: old.ProviderSessionID}
	given := tokens.IDToken != ""
	if given {
		var err error
		if t, err = p.ownIDToken(ctx, d, &tokens); err != nil {
			return nil, err
		}
		if before.nonce() != "" && t.nonce() != "" && t.nonce() != before.nonce() {
			return nil, errors.New("verify id_token: its nonce is not the one of the sign-in")
		}
		fresh.IssuedAt, fresh.ExpiresAt = t.issuedAt, t.expires
		if sid := sessionID(t.claims); sid != "" {
			fresh.SessionID = sid
		}
		if subject, err := p.subject(t); err != nil {
			return nil, errStranger
		} else if id, err := p.userID(subject); err != nil || id != old.UserID {
			return nil, errStranger
		}
	} else {
		tokens.IDToken = old.Tokens.IDToken
	}
	fresh.Tokens = tokens
	if !given && d.UserInfo == "" || t.claims == nil {
		fresh.Claims = maps.Clone(old.Claims)
		return fresh, nil
	}
	keepSignIn(t.claims, old.Claims)
	var info map[string]any
	if d.UserInfo != "" {
		var err error
		if info, err = p.userinfo(ctx, d, tokens.AccessToken, t.subject); err != nil {
			return nil, err
		}
	}
	var err error
	fresh.Claims, err = p.kind.person(t.claims, info, d.shared())
	return fresh, err
}

// keepSignIn has claims tell of the sign-in what the old ones do.
func keepSignIn(claims, old map[string]any) {
	for _, name := range aboutSignIn() {
		_, own := claims[name]
		if own && name != claimAuthTime {
			continue
		}
		delete(claims, name)
		if v, ok := old[name]; ok {
			claims[name] = v
		}
	}
}

// readAgain reads a token without verifying it: one of our store, which we verified
// before we put it there, or one whose issuer is to be looked up. What is no token
// holds nothing.
func readAgain(raw string) *jwt {
	parts := strings.SplitN(raw, ".", 4)
	if len(parts) != 3 || len(raw) > maxToken {
		return &jwt{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return &jwt{}
	}
	t, err := read(payload)
	if err != nil {
		return &jwt{}
	}
	return t
}
