package idp

import (
	"context"
	"errors"
	"net/http"

	"github.com/countersign/countersign/databroker"
)

// UserInfo reads again, with the access token of a session, what the provider says
// of the person: userinfo, or what the kind has in its place. Claims and SessionID
// are as Refresh would have them without a new ID token; the Tokens are the session's.
//
// The error is Refused where the provider refuses the access token, and Unsupported
// where there is nothing to read, or nothing to read it with.
func (p *Provider) UserInfo(ctx context.Context, old *databroker.Session) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, providerWait)
	defer cancel()
	if old.Tokens.AccessToken == "" {
		return nil, failed(Unsupported, "userinfo: session has no access token")
	}
	if p.kind.profile != nil {
		return p.reread(ctx, old, old.Tokens)
	}
	d, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	if d.UserInfo == "" || readAgain(old.Tokens.IDToken).claims == nil {
		return nil, failed(Unsupported, "userinfo: there is none, or the session has no ID token")
	}
	tokens := old.Tokens
	tokens.IDToken = "" // there is no new one
	fresh, err := p.renewed(ctx, d, old, tokens)
	var a *answered
	switch {
	case errors.As(err, &a) && a.status == http.StatusUnauthorized:
		return nil, failed(Refused, "userinfo: %w", err)
	case err != nil:
		return nil, failed(kindOfFailure(err), "userinfo: %w", err)
	}
	return fresh, nil
}
