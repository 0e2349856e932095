package authz

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

const (
	// maxBearers bounds the bearer tokens whose sessions are remembered, and
	// maxBadBearers those that were refused: junk does not crowd out what is good.
	maxBearers    = maxIdentities
	maxBadBearers = 1000
	// badBearerFor is how long a token that was refused stays so unasked.
	badBearerFor = 5 * time.Second
	// maxBearerReason bounds what a client is told of its token.
	maxBearerReason = 200
)

// Bearer knows whose a token of an identity provider is.
type Bearer interface {
	// BearerSession returns the id of the stored session that a bearer token stands
	// for on routes with these settings, made at first. Its error is ErrBearer for a
	// token that is no good, anything else where that cannot be found out. The
	// session's IDPID is b.ID, and it ends when the token does.
	BearerSession(ctx context.Context, b *config.Bearer, token string) (sessionID string, err error)
}

// ErrBearer reports a bearer token that is no good. Its text goes to the client.
var ErrBearer = errors.New("invalid bearer token")

// bearers remembers what became of the bearer tokens of providers. Only the digest
// of a token is kept, taken together with the settings that it was judged by: what
// it is worth under one says nothing about another. Of a good token only the id of
// its session is, which is looked up like any session, so that a revocation is felt
// at once.
type bearers struct {
	judge     Bearer
	good      *cache[string]
	bad       *cache[badBearer]
	inquiries inquiries
}

// badBearer is why a token was refused, and for how long it is so unasked.
type badBearer struct {
	reason string
	until  time.Time
}

func newBearers(judge Bearer) *bearers {
	return &bearers{judge: judge, good: newCache[string](maxBearers), bad: newCache[badBearer](maxBadBearers)}
}

// bearerKey is a digest of the token and of the settings' ID, which is hexadecimal
// and so ends where the NUL is.
func bearerKey(b *config.Bearer, token string) string {
	digest := sha256.New()
	_, _ = fmt.Fprintf(digest, "%s\x00%s", b.ID, token) // never fails
	return string(digest.Sum(nil))
}

// bearer returns the live session that a provider's token stands for, or the verdict
// that it is no good.
func (s *Server) bearer(ctx context.Context, t *route, token string, now time.Time) (*identity, *verdict, error) {
	b := t.bearer
	if s.bearers.judge == nil {
		return nil, badToken("tokens of identity providers are not accepted"), nil
	}
	if token == "" {
		return nil, badToken("it is malformed"), nil
	}
	key := bearerKey(b, token)
	if bad, ok := s.bearers.bad.get(key); ok && now.Before(bad.until) {
		return nil, badToken(bad.reason), nil
	}
	if id, ok := s.bearers.good.get(key); ok {
		who, err := s.bearerSession(ctx, t, id, now)
		if who != nil || err != nil {
			return who, nil, err
		}
		// The session is over. Whether the token buys another is not for us to say.
		s.bearers.good.drop(key)
	}
	id, err := s.bearers.inquiries.wait(ctx, b.ID, key, func(ctx context.Context) (string, error) { return s.inquire(ctx, b, key, token) })
	switch {
	case errors.Is(err, ErrBearer):
		return nil, badToken(bearerReason(err)), nil
	case err != nil:
		return nil, nil, fmt.Errorf("resolve bearer token: %w", err)
	}
	who, err := s.newBearerSession(ctx, t, id, now)
	if who == nil && err == nil {
		s.bearers.good.drop(key)
		return nil, s.refuseBearer(key, "its session is over"), nil
	}
	return who, nil, err
}

// inquire asks whose a token is, and remembers that for those who ask next.
func (s *Server) inquire(ctx context.Context, b *config.Bearer, key, token string) (id string, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.LogAttrs(ctx, slog.LevelError, "resolving a bearer token panicked", slog.String("stack", string(debug.Stack())))
			err = errors.New("panicked")
		}
	}()
	id, err = s.bearers.judge.BearerSession(ctx, b, token)
	switch {
	case err == nil:
		s.bearers.good.put(key, id)
	case errors.Is(err, ErrBearer):
		s.refuseBearer(key, bearerReason(err))
	}
	return id, err
}

// newBearerSession is bearerSession for one that may have been made a moment ago.
func (s *Server) newBearerSession(ctx context.Context, t *route, id string, now time.Time) (*identity, error) {
	who, err := s.bearerSession(ctx, t, id, now)
	if who != nil || err != nil {
		return who, err
	}
	// What is remembered of it may be from before.
	s.identities.changed(databroker.KindSession, id)
	return s.bearerSession(ctx, t, id, now)
}

// bearerSession is the live session with this id if it was made for the settings of
// the route, or nil.
func (s *Server) bearerSession(ctx context.Context, t *route, id string, now time.Time) (*identity, error) {
	who, err := s.identities.lookup(ctx, signin.KindSession, id, t.from.grace)
	if err != nil || !who.live(now) || who.idpID != t.bearer.ID {
		return nil, err
	}
	return who, nil
}

func (s *Server) refuseBearer(key, reason string) *verdict {
	s.bearers.bad.put(key, badBearer{reason, s.now().Add(badBearerFor)})
	return badToken(reason)
}

// bearerReason is what an ErrBearer says besides that it is one.
func bearerReason(err error) string {
	reason := headerSafe(strings.TrimPrefix(strings.TrimPrefix(err.Error(), ErrBearer.Error()), ": "))
	return strings.ToValidUTF8(reason[:min(len(reason), maxBearerReason)], "")
}

func badToken(reason string) *verdict {
	required := "a bearer token that this application accepts"
	if reason != "" {
		required += " (this one is refused: " + reason + ")"
	}
	return refusal(codeBadBearer, required)
}

func ambiguous() *verdict {
	v := refusal(codeAmbiguous, "one credential: a bearer token or a session of this site, not both")
	v.ambiguous = true
	return v
}
