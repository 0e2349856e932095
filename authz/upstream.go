package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

// passage is the identity that an allowed request takes to the upstream.
type passage struct {
	// own are the assertion and the claim headers, shared and not to be changed.
	own []field
	// original is the value of X-Pomerium-Jwt-Assertion-For, "" for none.
	original string
	// dropped says why an incoming one is not it; nil if there was none.
	dropped error
}

// passage signs, or finds, the assertion about who, and verifies the one that
// came with the request.
func (s *Server) passage(ctx context.Context, g *Generation, r *request, who *identity) (p passage, err error) {
	if who == nil {
		who = &g.nobody
	}
	if p.own, err = g.minter.mint(who, signin.Hostname(r.Host)); err != nil {
		return passage{}, err
	}
	// An incoming assertion speaks for the original user only if nobody before
	// us has said who that is. A refused -For is not replaced by it.
	incoming := r.Original
	if incoming == "" {
		incoming = r.Assertion
	}
	if incoming == "" {
		return p, nil
	}
	switch err := g.trust.accept(ctx, incoming); {
	case err == nil:
		p.original = incoming
	case errors.Is(err, assertion.ErrKeysUnavailable) || ctx.Err() != nil:
		// Without it the upstream would take the caller to act for themselves,
		// who may be allowed more.
		return passage{}, fmt.Errorf("verify original user: %w", err)
	default:
		p.dropped = err
		s.counts.originalsDropped.Add(1)
	}
	return p, nil
}

// allow writes what the upstream gets besides what the client sent: identity,
// and nothing of our credentials. Envoy drops what is to be removed after it
// has set what is to be set, so no name is in both.
func (s *Server) allow(p *published, r *request, c *ruling) *response {
	resp := &response{Allow: true, Remove: p.scrub}
	if c.upstream.own != nil {
		// Cut to its length, so that what is appended does not end up in the
		// shared part.
		resp.Set = slices.Clip(c.upstream.own)
		resp.Remove = p.strip
		if c.upstream.original != "" {
			resp.Set = append(resp.Set, field{headerOriginal, c.upstream.original})
		} else {
			resp.Remove = append(slices.Clip(resp.Remove), headerOriginal)
		}
	}
	// Of two Authorization headers, upstreams differ on which counts.
	if len(r.Authorization) > 1 || len(r.Authorization) == 1 && signin.OwnAuthorization(r.Authorization[0]) {
		resp.Remove = append(slices.Clip(resp.Remove), headerAuthorization)
	}
	if rest, changed := stripCookies(p.cookieName, r.Cookies); changed {
		if rest == "" {
			resp.Remove = append(slices.Clip(resp.Remove), headerCookie)
		} else {
			resp.Set = append(resp.Set, field{headerCookie, rest})
		}
	}
	if path, changed := stripPath(r.Path); changed {
		resp.Set = append(resp.Set, field{":path", path})
	}
	return resp
}

// stripCookies takes our cookies out. Several Cookie headers become one when
// any of them changes. Cookies that are not text cannot be sent back to Envoy
// and go too.
func stripCookies(name string, headers []string) (rest string, changed bool) {
	kept := make([]string, 0, 1)
	for _, h := range headers {
		left, c := signin.StripCookies(name, h)
		changed = changed || c
		if left != "" {
			kept = append(kept, left)
		}
	}
	if !changed {
		return "", false
	}
	return text8(strings.Join(kept, "; ")), true
}

// stripPath takes pomerium_session out of the query of a path.
func stripPath(path string) (string, bool) {
	plain, query, found := strings.Cut(path, "?")
	if !found {
		return path, false
	}
	rest, changed := signin.StripQuery(query)
	if !changed {
		return path, false
	}
	if rest != "" {
		plain += "?" + rest
	}
	return text8(plain), true
}

// text8 drops what is not UTF-8: Envoy refuses a whole answer that has it.
func text8(s string) string { return strings.ToValidUTF8(s, "") }

// minter makes assertions and claim headers for one configuration.
type minter struct {
	id      uint64
	ring    *assertion.KeyRing
	format  string
	headers []claimHeader
	reuse   time.Duration
	now     func() time.Time
}

// claimHeader is config.ClaimHeader with the header's name in lower case.
type claimHeader struct{ header, claim string }

// assertionKey is, with the identity that holds the memo, all that an assertion
// depends on: the minter stands for signing key, claims and issuer.
type assertionKey struct {
	minter uint64
	host   string
}

type minted struct {
	fields []field
	until  time.Time
}

func newMinter(id uint64, c *config.Assertion, ring *assertion.KeyRing, now func() time.Time) minter {
	m := minter{id: id, ring: ring, format: c.IssuerFormat, now: now}
	// However long reuse is, an upstream gets at least a minute.
	m.reuse = min(c.Reuse, assertion.Lifetime-time.Minute)
	for _, h := range c.ClaimHeaders {
		m.headers = append(m.headers, claimHeader{lower(h.Header), h.Claim})
	}
	return m
}

// mint returns the assertion and the claim headers about who for a host.
func (m *minter) mint(who *identity, host string) ([]field, error) {
	now := m.now()
	key := assertionKey{m.id, host}
	if m.reuse > 0 {
		if a, ok := who.assertions.get(key); ok && now.Before(a.until) {
			return a.fields, nil
		}
	}
	claims := m.claims(who, host, now)
	token, err := m.ring.Sign(claims)
	if err != nil {
		return nil, fmt.Errorf("sign assertion: %w", err)
	}
	fields := make([]field, 1, 1+len(m.headers))
	fields[0] = field{headerAssertion, token}
	for _, h := range m.headers {
		fields = append(fields, field{h.header, headerSafe(claimText(&claims, h.claim))})
	}
	if m.reuse > 0 {
		// The host is part of the request's memory, which must not live on.
		key.host = strings.Clone(host)
		who.assertions.put(key, &minted{fields, now.Add(m.reuse)})
	}
	return fields, nil
}

func (m *minter) claims(who *identity, host string, now time.Time) assertion.Claims {
	p := &who.principal
	c := assertion.Claims{
		Issuer:    "pomerium-proxy",
		Audience:  host,
		Subject:   p.UserID,
		User:      p.UserID,
		Email:     p.Email,
		SessionID: p.ID,
		Name:      who.name,
		Groups:    who.groups,
		IssuedAt:  now,
		ExpiresAt: now.Add(assertion.Lifetime),
	}
	switch m.format {
	case "hostOnly":
		c.Issuer = host
	case "uri":
		c.Issuer = "https://" + host + "/"
	}
	if len(m.headers) > 0 {
		c.Extra = make(map[string]string, len(m.headers))
		for _, h := range m.headers {
			c.Extra[h.claim] = joined(claimAt(p.Claims, h.claim))
		}
	}
	return c
}

// claimText is a claim as a header has it: that of the assertion, so that the
// two never contradict each other.
func claimText(c *assertion.Claims, name string) string {
	switch name {
	case "iss":
		return c.Issuer
	case "aud":
		return c.Audience
	case "sub", "user":
		return c.Subject
	case "email":
		return c.Email
	case "sid":
		return c.SessionID
	case "name":
		return c.Name
	case "groups":
		return strings.Join(c.Groups, ",")
	case "iat":
		return strconv.FormatInt(c.IssuedAt.Unix(), 10)
	case "exp":
		return strconv.FormatInt(c.ExpiresAt.Unix(), 10)
	}
	return c.Extra[name]
}
