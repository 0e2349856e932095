// Package idp talks to identity providers: OpenID Connect ones, and those that
// know OAuth 2 alone. It finds out their endpoints and keys, makes the URLs that
// browsers are sent to, trades codes and refresh tokens for identities, and
// verifies what a provider has signed.
//
// One generic implementation does it; what is special to a kind of provider is
// data (see kinds.go). Nothing here touches the network before it is asked for
// something, so that a provider that is down stops no start; and what is known of
// a provider is used while it is asked again.
//
// It keeps no sessions, sets no cookies and writes no pages.
package idp

import (
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
)

// Kind says what an error means for whoever asked. The zero value is Unavailable:
// an unknown error ends no session.
type Kind int

// The kinds of error.
const (
	// Unavailable: the provider does not answer, or has trouble of its own (a
	// timeout, a 5xx, 429). It may answer later; nothing is lost.
	Unavailable Kind = iota
	// Unusable: it answered what proves nothing, such as an ID token with a wrong
	// signature, nonce, issuer or audience.
	Unusable
	// Refused: it refuses what we sent: the code was used, the refresh token
	// revoked or expired (invalid_grant, RFC 6749, section 5.2).
	Refused
	// Misconfigured: it refuses us: wrong client secret, unauthorized client.
	Misconfigured
	// Invalid: a token that somebody brought us is no good: expired, forged, for
	// another audience or client.
	Invalid
	// Unsupported: this provider cannot do what was asked for.
	Unsupported
)

// Error is every error of this package. It never holds a token, a code or a secret.
type Error struct {
	Kind Kind
	// Cause is for the log.
	Cause error
}

func (e *Error) Error() string { return e.Cause.Error() }

func (e *Error) Unwrap() error { return e.Cause }

func failed(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Cause: fmt.Errorf(format, args...)}
}

// Identity is who a provider says somebody is.
type Identity struct {
	// Subject is the provider's id of the person: sub, or what the kind has in its
	// place (oid at azure, node_id at github).
	Subject string
	// UserID is who that is to us: the Subject, after NAME/ where the provider has
	// a name of its own in the configuration.
	UserID string
	// SessionID is the sid of the provider's session, "" if it names none.
	SessionID string
	// Claims are about the person; those about the token are left out. auth_time is
	// on our clock, and only there if it can be meant.
	Claims map[string]any
	// Tokens are empty where a token was only verified.
	Tokens databroker.Tokens
	// IssuedAt and ExpiresAt are of the ID token, zero where there is none.
	IssuedAt, ExpiresAt time.Time
	// ClaimsStale is that a refresh brought new Tokens, which must be kept, but that
	// Claims are still those of before, since the provider did not give new ones
	// that hold; StaleCause says why, for the log.
	ClaimsStale bool
	StaleCause  error
}

// Config is what a Set needs besides a configuration.
type Config struct {
	// HTTPClient reaches the providers; its Timeout is ours to set. Nil for one of
	// our own.
	HTTPClient *http.Client
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// Log gets a line when something about a provider is amiss; nil for none.
	Log *slog.Logger
}

// Set is the providers of one configuration. It is immutable but for what its
// providers have learnt.
type Set struct {
	byID       map[string]*Provider
	listed     []*Provider
	background *sync.WaitGroup
}

// Wait waits for the fetches under way, of this Set and of those before it, which
// end within seconds. It is for when nobody asks any more.
func (s *Set) Wait() { s.background.Wait() }

// NewSet makes the providers of a configuration. Those that are in before with the
// same settings are taken over with all that they know; before may be nil.
func NewSet(c Config, cfg *config.Config, before *Set) *Set {
	s := &Set{byID: map[string]*Provider{}}
	if before != nil {
		s.background = before.background
	}
	n := newNetwork(c, s.background)
	s.background = n.background
	if cfg.AuthenticateURL == nil {
		return s
	}
	callback, taken := cfg.AuthenticateURL.JoinPath(CallbackPath).String(), takenNames(cfg)
	for _, settings := range cfg.IDPs {
		if len(settings.Missing()) > 0 {
			continue
		}
		id := settings.ID()
		p := before.Get(id)
		if p == nil || !p.serves(settings, callback) {
			p = newProvider(n, settings, callback)
		}
		p.taken.Store(&taken)
		s.byID[id] = p
		s.listed = append(s.listed, p)
	}
	return s
}

// CallbackPath is where providers send browsers back to, on the authenticate host.
const CallbackPath = "/oauth2/callback"

// Get returns the provider with this ID, or nil.
func (s *Set) Get(id string) *Provider {
	if s == nil {
		return nil
	}
	return s.byID[id]
}

// All are the providers in the order of the configuration, those with a route's own
// client last. Nobody changes the list.
func (s *Set) All() []*Provider {
	if s == nil {
		return nil
	}
	return s.listed
}

// AuthRequest is what a browser takes to a provider.
type AuthRequest struct {
	// State, Nonce and Verifier (of PKCE) are new for each request.
	State, Nonce, Verifier string
	// MaxAge is how old the sign-in may be, in seconds (OpenID Connect Core,
	// section 3.1.2.1); negative leaves it out. Fresh asks for prompt=login.
	MaxAge int64
	Fresh  bool
}

// Logout is a logout token that was verified (OpenID Connect Back-Channel Logout
// 1.0, section 2.4). It names a user, a session, or both.
type Logout struct {
	UserID, SessionID string
	// JTI is that of the token, and ExpiresAt when it may be forgotten.
	JTI       string
	IssuedAt  time.Time
	ExpiresAt time.Time
}
