// Package assertion makes and checks the signed statement of who the caller
// is, the JWT in X-Pomerium-Jwt-Assertion. Applications behind the proxy may
// import it: it depends on nothing of ours.
//
// An application checks assertions with a Verifier, most easily as Middleware,
// over the keys that the proxy publishes:
//
//	keys, err := assertion.NewRemoteKeys("https://app.example.com/.well-known/pomerium/jwks.json", nil)
//	verifier := assertion.NewVerifier(assertion.VerifierConfig{Keys: keys, Audience: "app.example.com"})
//	http.ListenAndServe("127.0.0.1:8000", assertion.Middleware(verifier)(app))
//
// The algorithm follows from the type of the key and is never the token's to
// choose: ES256 for EC P-256, RS256 for RSA of 2048 bits or more, EdDSA for
// Ed25519. A key's id is its JWK thumbprint (RFC 7638). The package does not
// encrypt, does not know sessions, and decides nothing about access.
package assertion

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"
)

const (
	// HeaderAssertion carries the assertion about whoever sent this request.
	HeaderAssertion = "X-Pomerium-Jwt-Assertion"
	// HeaderOriginal carries, across any number of hops, the assertion about
	// the user that the first hop saw. Its audience is that first hop's host.
	HeaderOriginal = "X-Pomerium-Jwt-Assertion-For"

	// MaxSize is the length in bytes beyond which nothing is read as an
	// assertion, and none is made.
	MaxSize = 64 << 10
	// DefaultSkew is how far two clocks may differ.
	DefaultSkew = time.Minute
	// Lifetime is how long a new assertion is customarily good for.
	Lifetime = 5 * time.Minute
)

// What can be wrong with an assertion. Each comes wrapped in a sentence that
// holds nothing secret, for a log or a terminal.
var (
	ErrMalformed       = errors.New("not a well-formed assertion")
	ErrAlgorithm       = errors.New("signature algorithm not allowed")
	ErrUnknownKey      = errors.New("signed with an unknown key")
	ErrSignature       = errors.New("signature does not match")
	ErrExpired         = errors.New("assertion has expired")
	ErrNotYetValid     = errors.New("assertion is not valid yet")
	ErrAudience        = errors.New("assertion is for another audience")
	ErrIssuer          = errors.New("assertion is from another issuer")
	ErrKeysUnavailable = errors.New("signing keys are unavailable")
)

// Claims are what an assertion says. They marshal to JSON as in the token.
type Claims struct {
	// Issuer and Audience are "iss" and "aud". Of a token that lists several
	// audiences, Audience is the one that the verifier wanted, or the first.
	Issuer, Audience string
	// ID is "jti". Sign draws a random UUID for "".
	ID string
	// Subject is "sub", and User says the same as "user": the id of the user.
	Subject, User string
	// Email is "" for whoever has none.
	Email string
	// SessionID is "sid": the session, or the service account.
	SessionID string
	Name      string
	// Groups are never absent from a token, though often empty.
	Groups []string
	// IssuedAt and ExpiresAt are kept to the second.
	IssuedAt, ExpiresAt time.Time
	// Extra are all other claims by name. Sign leaves out those that have the
	// name of a claim above, or nbf. Of a token that holds something else
	// than a string, Verify gives its JSON text; null counts as absent.
	Extra map[string]string
}

// reserved are the names that Extra cannot give a value to.
var reserved = [...]string{"iss", "aud", "jti", "iat", "exp", "nbf", "sub", "user", "email", "groups", "sid", "name"}

func isReserved(name string) bool { return slices.Contains(reserved[:], name) }

// MarshalJSON returns the claims set as Sign signs it.
func (c Claims) MarshalJSON() ([]byte, error) { return c.appendJSON(nil), nil }

// appendJSON writes the claims in one fixed order.
func (c *Claims) appendJSON(b []byte) []byte {
	b = appendString(append(b, `{"iss":`...), c.Issuer)
	b = appendString(append(b, `,"aud":`...), c.Audience)
	b = appendString(append(b, `,"jti":`...), c.ID)
	if !c.IssuedAt.IsZero() {
		b = strconv.AppendInt(append(b, `,"iat":`...), c.IssuedAt.Unix(), 10)
	}
	b = strconv.AppendInt(append(b, `,"exp":`...), c.ExpiresAt.Unix(), 10)
	b = appendString(append(b, `,"sub":`...), c.Subject)
	b = appendString(append(b, `,"user":`...), c.User)
	b = appendString(append(b, `,"email":`...), c.Email)
	b = append(b, `,"groups":[`...)
	for i, g := range c.Groups {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, g)
	}
	b = appendString(append(b, `],"sid":`...), c.SessionID)
	b = appendString(append(b, `,"name":`...), c.Name)
	if len(c.Extra) > 0 {
		names := make([]string, 0, len(c.Extra))
		for name := range c.Extra {
			if !isReserved(name) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			b = appendString(append(b, ','), name)
			b = appendString(append(b, ':'), c.Extra[name])
		}
	}
	return append(b, '}')
}

// appendString writes a JSON string. Nearly all need no escape.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // a string always marshals
				return append(b, `""`...)
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
