package assertion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxKeyID bounds the key ids that are looked up.
	maxKeyID = 256
	// maxTries bounds the signature checks for one token without a key id.
	maxTries = 4
)

// VerifierConfig says what an assertion must be like.
type VerifierConfig struct {
	// Keys are the only ones that count. Required.
	Keys KeySource
	// Audience is who the assertion must be for: the host name that clients
	// ask for. "" accepts any, which is for tools that only look at a token:
	// with it, an assertion made for another application is good for yours.
	Audience string
	// Issuers are whom it may be from; nil accepts any signer that Keys knows.
	Issuers []string
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// Skew is how far clocks may differ, both ways; 0 means DefaultSkew, and
	// less than 0 none.
	Skew time.Duration
}

// Verifier checks assertions. It is safe for concurrent use.
type Verifier struct{ config VerifierConfig }

// NewVerifier panics if c.Keys is nil.
func NewVerifier(c VerifierConfig) *Verifier {
	if c.Keys == nil {
		panic("assertion: a Verifier needs keys")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Skew == 0 {
		c.Skew = DefaultSkew
	}
	c.Skew = max(0, c.Skew)
	c.Issuers = slices.Clone(c.Issuers)
	return &Verifier{c}
}

// Verify returns what a token says, once signature, time, audience and issuer
// are found good, else one of this package's errors with an explanation. Only
// ErrKeysUnavailable may pass by itself.
func (v *Verifier) Verify(ctx context.Context, token string) (*Claims, error) {
	payload, err := v.verifySignature(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("verify assertion: %w", err)
	}
	c, err := v.verifyClaims(payload)
	if err != nil {
		return nil, fmt.Errorf("verify assertion: %w", err)
	}
	return c, nil
}

func (v *Verifier) verifySignature(ctx context.Context, token string) (payload []byte, err error) {
	if len(token) > MaxSize {
		return nil, fmt.Errorf("%w: it is longer than %d KiB", ErrMalformed, MaxSize>>10)
	}
	first, last := strings.IndexByte(token, '.'), strings.LastIndexByte(token, '.')
	if first < 0 || first == last || strings.IndexByte(token[first+1:last], '.') >= 0 {
		return nil, fmt.Errorf("%w: it does not have three parts", ErrMalformed)
	}
	algorithm, id, err := parseHeader(token[:first])
	if err != nil {
		return nil, err
	}
	payload, err = decodePart(token[first+1 : last])
	if err != nil {
		return nil, err
	}
	signature, err := decodePart(token[last+1:])
	if err != nil {
		return nil, err
	}
	keys, err := v.config.Keys.Keys(ctx, id)
	if err != nil {
		return nil, err
	}
	tries, text := 0, []byte(token[:last])
	for i := range keys {
		if keys[i].Algorithm != algorithm {
			continue
		}
		if keys[i].check(text, signature) {
			return payload, nil
		}
		if tries++; tries == maxTries {
			break
		}
	}
	if tries == 0 {
		return nil, fmt.Errorf("%w: %s is not that of the key", ErrAlgorithm, quote(algorithm))
	}
	return nil, fmt.Errorf("%w: it was changed, or signed with another key", ErrSignature)
}

// parseHeader refuses what we would have to understand and do not (crit, RFC
// 7515, section 4.1.11), and tokens that say they are something else (typ, RFC
// 8725, section 3.11). Keys that a header brings along are not looked at.
func parseHeader(part string) (algorithm, id string, err error) {
	raw, err := decodePart(part)
	if err != nil {
		return "", "", err
	}
	header, err := parseObject(raw)
	if err != nil {
		return "", "", fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	if _, ok := header["crit"]; ok {
		return "", "", fmt.Errorf("%w: its header has critical extensions", ErrMalformed)
	}
	var typ string
	if err := errors.Join(header.text("alg", &algorithm), header.text("kid", &id), header.text("typ", &typ)); err != nil {
		return "", "", err
	}
	switch algorithm {
	case es256, rs256, eddsa:
	default:
		return "", "", fmt.Errorf("%w: %s; only ES256, RS256 and EdDSA are", ErrAlgorithm, quote(algorithm))
	}
	if typ != "" && !strings.EqualFold(typ, "JWT") && !strings.EqualFold(typ, "application/jwt") {
		return "", "", fmt.Errorf("%w: its type is %s", ErrMalformed, quote(typ))
	}
	if len(id) > maxKeyID {
		return "", "", fmt.Errorf("%w: its key id is too long", ErrMalformed)
	}
	return algorithm, id, nil
}

func (v *Verifier) verifyClaims(payload []byte) (*Claims, error) {
	o, err := parseObject(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	c, audiences, notBefore, err := parseClaims(o)
	if err != nil {
		return nil, err
	}
	now, skew := v.config.Now(), v.config.Skew
	switch {
	case now.After(c.ExpiresAt.Add(skew)):
		return nil, fmt.Errorf("%w: it was good until %s, %s ago",
			ErrExpired, stamp(c.ExpiresAt), now.Sub(c.ExpiresAt).Truncate(time.Second))
	case c.IssuedAt.After(now.Add(skew)):
		return nil, fmt.Errorf("%w: it is dated %s; compare the clocks", ErrNotYetValid, stamp(c.IssuedAt))
	case notBefore.After(now.Add(skew)):
		return nil, fmt.Errorf("%w: it begins at %s; compare the clocks", ErrNotYetValid, stamp(notBefore))
	}
	if v.config.Issuers != nil && !slices.Contains(v.config.Issuers, c.Issuer) {
		return nil, fmt.Errorf("%w: %s", ErrIssuer, quote(c.Issuer))
	}
	if want := v.config.Audience; want != "" {
		if !slices.Contains(audiences, want) {
			return nil, fmt.Errorf("%w: it is for %s, not for %s", ErrAudience, quote(strings.Join(audiences, ", ")), quote(want))
		}
		c.Audience = want
	}
	return c, nil
}

// parseClaims reads a claims set. A claim of ours with the wrong type is an
// error: taken for absent, it could make someone else of the caller.
func parseClaims(o object) (c *Claims, audiences []string, notBefore time.Time, err error) {
	c = &Claims{}
	if err := errors.Join(
		o.text("iss", &c.Issuer), o.text("jti", &c.ID), o.text("sub", &c.Subject), o.text("user", &c.User),
		o.text("email", &c.Email), o.text("sid", &c.SessionID), o.text("name", &c.Name),
		o.texts("aud", &audiences), o.texts("groups", &c.Groups),
		o.date("exp", &c.ExpiresAt), o.date("iat", &c.IssuedAt), o.date("nbf", &notBefore),
	); err != nil {
		return nil, nil, notBefore, err
	}
	if !o.has("exp") {
		return nil, nil, notBefore, fmt.Errorf("%w: it has no expiry", ErrMalformed)
	}
	if len(audiences) > 0 {
		c.Audience = audiences[0]
	}
	for name, value := range o {
		if isReserved(name) {
			continue
		}
		if c.Extra == nil {
			c.Extra = make(map[string]string)
		}
		switch s, err := unquote(value); {
		case err == nil:
			c.Extra[name] = s
		case value != "null":
			c.Extra[name] = value
		}
	}
	return c, audiences, notBefore, nil
}

func decodePart(part string) ([]byte, error) {
	if strings.ContainsAny(part, "\r\n") {
		return nil, fmt.Errorf("%w: it contains line breaks", ErrMalformed)
	}
	raw, err := base64url.DecodeString(part)
	if err != nil {
		return nil, fmt.Errorf("%w: a part is not base64url", ErrMalformed)
	}
	return raw, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// quote makes a stranger's text safe to print, and short.
func quote(s string) string {
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return strconv.Quote(s)
}
