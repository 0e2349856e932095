package authn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
)

const (
	// opaqueLife is how long an access token is believed that does not say when it
	// ends, before the provider is asked again.
	opaqueLife = 10 * time.Minute
	// opaqueAge is how old such a token is taken to be when it comes: it does not
	// say, and after a revocation it must not buy what the revocation ended. Most
	// access tokens live no longer.
	opaqueAge = time.Hour

	maxBearer = 64 << 10
)

// ErrBearer reports a bearer token that is no good. Its text goes to the client.
var ErrBearer = errors.New("invalid bearer token")

// BearerSession returns the id of the stored session that a provider's bearer token
// stands for on routes with these settings, made at first. Its error is ErrBearer
// with the reason for a token that is no good; any other means that nobody can tell
// now.
func (s *Server) BearerSession(ctx context.Context, b *config.Bearer, token string) (sessionID string, err error) {
	g := s.current.Load()
	if g == nil {
		return "", unavailable("starting", nil)
	}
	if token == "" || len(token) > maxBearer {
		return "", fmt.Errorf("%w: it is empty or longer than %d bytes", ErrBearer, maxBearer)
	}
	if checkSpelling(token) != nil {
		// But for an opaque token, which has one spelling.
		if _, opaque := readUnverified(token); opaque == nil || b.Format != config.BearerAccessToken {
			return "", fmt.Errorf("%w: it is not a signed JWT", ErrBearer)
		}
	}
	id := "t" + g.keys.Digest("bearer token", b.ID, token)
	known, err := s.store.Session(ctx, id)
	switch {
	case err == nil && s.now().Before(known.ExpiresAt):
		return id, nil
	case err != nil && !errors.Is(err, databroker.ErrNotFound):
		return "", storeDown("load session", err)
	}
	session, err := s.bearerSession(ctx, g, b, token, id)
	var bad *badToken
	var refused *failure
	switch {
	case errors.As(err, &bad):
		return "", fmt.Errorf("%w: %s", ErrBearer, bad.reason)
	case errors.As(err, &refused) && refused.status < 500:
		return "", fmt.Errorf("%w: %s", ErrBearer, refused.message)
	case err != nil:
		return "", err
	}
	return session.ID, nil
}

func (s *Server) bearerSession(ctx context.Context, g *Generation, b *config.Bearer, token, id string) (*databroker.Session, error) {
	who, err := g.verifyBearer(ctx, b, token)
	if err != nil {
		return nil, err
	}
	now := s.now()
	issued, expires := who.IssuedAt, who.ExpiresAt
	if issued.IsZero() {
		issued = now.Add(-opaqueAge)
	}
	if expires.IsZero() {
		expires = now.Add(opaqueLife)
	}
	return s.buy(ctx, g, &databroker.Session{
		ID: id, IDPID: b.ID, Origin: databroker.Origin{Method: "bearer"}, ExpiresAt: earliest(expires, now.Add(g.cfg.Cookie.Expire)),
	}, who, issued)
}

// verifyBearer finds out whose a token is.
func (g *Generation) verifyBearer(ctx context.Context, b *config.Bearer, token string) (*idp.Identity, error) {
	var providers []*idp.Provider
	for _, settings := range b.IDPs {
		if p := g.providers.Get(settings.ID()); p != nil {
			providers = append(providers, p)
		}
	}
	switch b.Format {
	case config.BearerJWT:
		who, err := g.issuers.Verify(ctx, b, token)
		if err != nil {
			return nil, tokenFailure(err)
		}
		return who, nil
	case config.BearerIdentityToken:
		_, who, err := verifyIDToken(ctx, token, providers, b.Audiences)
		return who, err
	case config.BearerAccessToken:
		return verifyAccessToken(ctx, providers, b.Audiences, token)
	}
	return nil, fmt.Errorf("bearer_token_format %q is not known", b.Format)
}

// verifyAccessToken asks the one provider whose an access token can be. It is shown to
// no other, which could use it.
func verifyAccessToken(ctx context.Context, providers []*idp.Provider, audiences []string, token string) (*idp.Identity, error) {
	if len(providers) > 1 {
		says, err := readUnverified(token)
		if err != nil {
			return nil, &badToken{reason: "it does not say which of several identity providers it is from, so the route has to name one (idp)"}
		}
		if providers = says.issuedBy(providers); len(providers) > 1 {
			providers = providers[:1]
		}
	}
	if len(providers) == 0 {
		return nil, &badToken{reason: "its issuer is none of the identity providers of this route"}
	}
	who, err := providers[0].VerifyAccessToken(ctx, token, audiences)
	if err != nil {
		return nil, tokenFailure(err)
	}
	return who, nil
}

// sessionIDPs are the ids under which sessions of a provider are kept: its own, and
// those of the settings for bearer tokens that take its tokens.
func (g *Generation) sessionIDPs(p *idp.Provider) []string {
	ids := []string{p.ID()}
	for _, r := range g.cfg.Routes {
		if r.Bearer == nil || slices.Contains(ids, r.Bearer.ID) {
			continue
		}
		if slices.ContainsFunc(r.Bearer.IDPs, func(i *config.IdentityProvider) bool { return i.ID() == p.ID() }) {
			ids = append(ids, r.Bearer.ID)
		}
	}
	return ids
}
