package authn

import (
	"context"
	"errors"

	"github.com/countersign/countersign/config"
)

// ErrBearer reports a bearer token that is no good. Its text goes to the client.
var ErrBearer = errors.New("invalid bearer token")

// BearerSession returns the id of the stored session that a provider's bearer token
// stands for on routes with these settings, made at first.
func (s *Server) BearerSession(ctx context.Context, b *config.Bearer, token string) (sessionID string, err error) {
	return "", ErrBearer
}
