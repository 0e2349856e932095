package authz

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
)

const (
	// maxOriginals bounds the verified values that are remembered.
	maxOriginals = 4096
	// maxRemembered is the length beyond which a value is verified each time.
	maxRemembered = 16 << 10
)

// trust says which assertions of others may be passed on as the original
// user's. It remembers those it has verified, until they expire; since the
// memory is its own, a value is good only under the settings it was verified
// with.
type trust struct {
	settings config.Assertion
	ring     *assertion.KeyRing
	// asProvided passes anything that fits into a header.
	asProvided bool
	own        *assertion.Verifier
	// others are by issuer, one for each audience.
	others map[string][]*assertion.Verifier
	good   *cache[time.Time]
	now    func() time.Time
}

var errNotHeader = errors.New("not a header value")

func newTrust(c *config.Assertion, ring *assertion.KeyRing, client *http.Client, now func() time.Time) (*trust, error) {
	t := &trust{
		settings:   *c,
		ring:       ring,
		asProvided: c.OriginalUserContext == "as_provided",
		// Our own keys sign nothing but assertions, each for the first hop's
		// host, which may be any of ours.
		own:    assertion.NewVerifier(assertion.VerifierConfig{Keys: ring, Now: now}),
		others: map[string][]*assertion.Verifier{},
		good:   newCache[time.Time](maxOriginals),
		now:    now,
	}
	for _, i := range c.OriginalUserContextIssuers {
		keys, err := assertion.NewRemoteKeys(i.JWKSURL, client)
		if err != nil {
			return nil, fmt.Errorf("original_user_context_issuers: %s: %w", i.Issuer, err)
		}
		for _, audience := range i.Audiences {
			if audience == "" {
				return nil, fmt.Errorf("original_user_context_issuers: %s: empty audience", i.Issuer)
			}
			t.others[i.Issuer] = append(t.others[i.Issuer], assertion.NewVerifier(assertion.VerifierConfig{
				Keys: keys, Issuers: []string{i.Issuer}, Audience: audience, Now: now,
			}))
		}
	}
	return t, nil
}

func (t *trust) sameAs(c *config.Assertion, ring *assertion.KeyRing) bool {
	return sameTrust(&t.settings, c) && sameRing(t.ring, ring)
}

// accept returns nil if value may be passed on, unchanged. ErrKeysUnavailable
// is the only error that says nothing about the value.
func (t *trust) accept(ctx context.Context, value string) error {
	if headerSafe(value) != value {
		return errNotHeader
	}
	if t.asProvided {
		return nil
	}
	if until, ok := t.good.get(value); ok && !t.now().After(until) {
		return nil
	}
	claims, err := t.verify(ctx, value)
	if err != nil {
		return err
	}
	if len(value) <= maxRemembered {
		t.good.put(strings.Clone(value), claims.ExpiresAt.Add(assertion.DefaultSkew))
	}
	return nil
}

func (t *trust) verify(ctx context.Context, value string) (*assertion.Claims, error) {
	claims, err := t.own.Verify(ctx, value)
	if err == nil || len(t.others) == 0 {
		return claims, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	for _, v := range t.others[issuerOf(value)] {
		claims, err = v.Verify(ctx, value)
		if !errors.Is(err, assertion.ErrAudience) {
			break
		}
	}
	return claims, err
}

// issuerOf reads who a token says it is from, to choose the keys to check that
// with.
func issuerOf(token string) string {
	if len(token) > assertion.MaxSize {
		return ""
	}
	_, rest, _ := strings.Cut(token, ".")
	part, _, _ := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return ""
	}
	return c.Issuer
}
