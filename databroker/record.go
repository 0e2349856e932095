package databroker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The bounds of a record. What an identity provider sends ends up in one, so
// none may grow without limit.
const (
	maxID     = 256
	maxText   = 4 << 10
	maxClaims = 256 << 10
	maxToken  = 64 << 10
)

// Bounds on what one call does.
const (
	// changesAtOnce is how many changes Changes returns at most.
	changesAtOnce = 1000
	// pruneAtOnce is how many records of a kind one Prune removes at most.
	pruneAtOnce = 500
	// defaultKeepChanges is how many changes a reader may be behind.
	defaultKeepChanges = 100_000
)

// expiredFor is how long an expired record stays, so that its reader can say
// that it expired instead of that it never was.
const expiredFor = 24 * time.Hour

func checkSession(s *Session) error {
	return cmp.Or(
		checkID("id", s.ID),
		checkID("user id", s.UserID),
		checkText("identity provider id", s.IDPID, maxID),
		checkExpiry(s.ExpiresAt),
		checkText("access token", s.Tokens.AccessToken, maxToken),
		checkText("refresh token", s.Tokens.RefreshToken, maxToken),
		checkText("token type", s.Tokens.TokenType, maxID),
		checkText("id token", s.Tokens.IDToken, maxToken),
	)
}

func checkUser(u *User) error {
	return cmp.Or(
		checkID("id", u.ID),
		checkText("email", u.Email, maxText),
		checkText("name", u.Name, maxText),
	)
}

func checkServiceAccount(a *ServiceAccount) error {
	return cmp.Or(
		checkID("id", a.ID),
		checkID("user id", a.UserID),
	)
}

func checkID(name, id string) error {
	if id == "" {
		return fmt.Errorf("%s is empty", name)
	}
	return checkText(name, id, maxID)
}

// checkText refuses what some store would not give back as it was: SQL text
// holds neither broken UTF-8 nor NUL.
func checkText(name, s string, limit int) error {
	switch {
	case len(s) > limit:
		return fmt.Errorf("%s is %d bytes long, more than %d", name, len(s), limit)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s is not UTF-8", name)
	case strings.ContainsRune(s, 0):
		return fmt.Errorf("%s contains a NUL", name)
	}
	return nil
}

func checkExpiry(t time.Time) error {
	if t.IsZero() {
		return errors.New("expiry is not set")
	}
	return nil
}

// encodeClaims returns claims as every back end keeps them.
func encodeClaims(claims map[string]any) ([]byte, error) {
	encoded, err := json.Marshal(claims)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	if len(encoded) > maxClaims {
		return nil, fmt.Errorf("claims are %d bytes of JSON, more than %d", len(encoded), maxClaims)
	}
	// The encoder nests deeper than the decoder follows. What cannot be read
	// again must not be written.
	if !json.Valid(encoded) {
		return nil, errors.New("claims are nested too deep")
	}
	return encoded, nil
}

func decodeClaims(encoded []byte) (map[string]any, error) {
	var claims map[string]any
	if err := json.Unmarshal(encoded, &claims); err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	return claims, nil
}

// instant returns t as every back end gives it back.
func instant(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}
