package demo

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/countersign/countersign/assertion"
)

// Hop is what one service received, and what the next one said it received.
// It never holds a token.
type Hop struct {
	Service string `json:"service"`
	Host    string `json:"host"`
	// Assertion is about whoever called, Original about the user for whom.
	Assertion Evidence `json:"assertion"`
	Original  Evidence `json:"original"`
	Next      *Hop     `json:"next,omitempty"`
	// NextError says why there is no Next, in a sentence, where there should
	// be one.
	NextError string `json:"next_error,omitempty"`
}

// Evidence is what came of checking one header.
type Evidence struct {
	Header   string `json:"header"`
	Present  bool   `json:"present"`
	Verified bool   `json:"verified"`
	// Error is why it is not verified.
	Error string `json:"error,omitempty"`
	KeyID string `json:"key_id,omitempty"`
	// Fingerprint is the start of the SHA-256 of the header: two that are the
	// same byte for byte have the same one.
	Fingerprint string  `json:"fingerprint,omitempty"`
	Checks      []Check `json:"checks,omitempty"`
	// Claims are nil unless verified.
	Claims *Claims `json:"claims,omitempty"`
}

// Check is one step of verifying. Those after a failed one were not made.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
}

// Claims are those of an assertion that the demo shows.
type Claims struct {
	Issuer    string    `json:"iss"`
	Audience  string    `json:"aud"`
	Subject   string    `json:"sub"`
	Email     string    `json:"email,omitempty"`
	Name      string    `json:"name,omitempty"`
	Groups    []string  `json:"groups,omitempty"`
	IssuedAt  time.Time `json:"iat"`
	ExpiresAt time.Time `json:"exp"`
}

// ServiceAccount reports whether the assertion is not about a person: a
// person has an email address here.
func (c *Claims) ServiceAccount() bool { return c.Email == "" }

// Who is what to call them.
func (c *Claims) Who() string {
	switch {
	case c.Name != "":
		return c.Name
	case c.Email != "":
		return c.Email
	}
	return c.Subject
}

// examine verifies one header, which must be there once.
func examine(ctx context.Context, v *assertion.Verifier, h http.Header, name string) Evidence {
	e := Evidence{Header: name}
	values := h.Values(name)
	switch len(values) {
	case 0:
		e.Error = "the header is absent"
		return e
	case 1:
	default:
		e.Present, e.Error = true, "the header came more than once"
		return e
	}
	token := values[0]
	sum := sha256.Sum256([]byte(token))
	e.Present, e.Fingerprint = true, hex.EncodeToString(sum[:6])
	c, err := v.Verify(ctx, token)
	e.Checks = checks(err)
	if err != nil {
		e.Error = explain(err)
		return e
	}
	e.Verified, e.KeyID = true, keyID(token)
	e.Claims = &Claims{
		Issuer: c.Issuer, Audience: c.Audience, Subject: c.Subject, Email: c.Email, Name: c.Name,
		Groups: c.Groups, IssuedAt: c.IssuedAt, ExpiresAt: c.ExpiresAt,
	}
	return e
}

// checks lists the steps of verifying, in the order in which a Verifier makes
// them, up to the one that err is about.
func checks(err error) []Check {
	steps := []struct {
		name   string
		errors []error
	}{
		{"well-formed", []error{assertion.ErrMalformed}},
		{"signed with a published key", []error{assertion.ErrAlgorithm, assertion.ErrUnknownKey, assertion.ErrSignature, assertion.ErrKeysUnavailable}},
		{"within its time", []error{assertion.ErrExpired, assertion.ErrNotYetValid}},
		{"issued by the proxy", []error{assertion.ErrIssuer}},
		{"meant for this host", []error{assertion.ErrAudience}},
	}
	var list []Check
	for _, step := range steps {
		for _, failure := range step.errors {
			if errors.Is(err, failure) {
				return append(list, Check{step.name, false})
			}
		}
		list = append(list, Check{step.name, true})
	}
	if err != nil {
		return nil
	}
	return list
}

// explain is the sentinel's own text: what follows it quotes the token.
func explain(err error) string {
	for _, known := range []error{
		assertion.ErrMalformed, assertion.ErrAlgorithm, assertion.ErrUnknownKey, assertion.ErrSignature, assertion.ErrExpired,
		assertion.ErrNotYetValid, assertion.ErrAudience, assertion.ErrIssuer, assertion.ErrKeysUnavailable,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "it could not be checked"
}

// keyID reads the header of a token that has been verified.
func keyID(token string) string {
	head, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return ""
	}
	var header struct {
		KeyID string `json:"kid"`
	}
	if json.Unmarshal(raw, &header) != nil {
		return ""
	}
	return header.KeyID
}
