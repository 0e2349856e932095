package idp

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/countersign/countersign/config"
)

// Issuers verifies the JWTs of those whom identity_providers names. It is immutable
// but for the keys that it has learnt.
type Issuers struct {
	network network
	known   map[place]*issuer
}

// place is where an issuer's keys are: JWKSURL is "" for where its discovery
// document says.
type place struct{ issuer, jwksURL string }

type issuer struct {
	discovery *remote[*discovered]
	keys      *keySet
}

// NewIssuers makes the issuers of a configuration. Those that are in before are
// taken over with their keys; before may be nil.
func NewIssuers(c Config, cfg *config.Config, before *Issuers) *Issuers {
	s := &Issuers{known: map[place]*issuer{}}
	if before != nil {
		s.network = newNetwork(c, before.network.background)
	} else {
		s.network = newNetwork(c, nil)
	}
	for _, r := range cfg.Routes {
		if r.Bearer == nil {
			continue
		}
		for _, settings := range r.Bearer.Issuers {
			at := place{settings.Issuer, settings.JWKSURL}
			if s.known[at] == nil && before != nil {
				s.known[at] = before.known[at]
			}
			if s.known[at] == nil {
				s.known[at] = newIssuer(&s.network, at)
			}
		}
	}
	return s
}

func newIssuer(n *network, at place) *issuer {
	if at.jwksURL != "" {
		return &issuer{keys: newKeySet(n, at.jwksURL)}
	}
	return &issuer{discovery: newDiscovery(n, at.issuer, false, true)}
}

// Wait is as that of Set.
func (s *Issuers) Wait() { s.network.background.Wait() }

// Verify finds out whose a JWT is, by those of b that have issued it. The UserID is
// the name of the issuer's entry, a slash and the sub.
func (s *Issuers) Verify(ctx context.Context, b *config.Bearer, raw string) (*Identity, error) {
	const doing = "verify bearer token"
	unverified := readAgain(raw)
	var first error
	for _, settings := range b.Issuers {
		if settings.Issuer == "" || settings.Issuer != unverified.issuer {
			continue
		}
		who, err := s.verify(ctx, settings, raw)
		if err == nil {
			return who, nil
		}
		if first == nil {
			first = invalid(doing, err)
		}
	}
	if first != nil {
		return nil, first
	}
	return nil, failed(Invalid, "%s: it is no JWT, or its issuer %q is not in identity_providers", doing, bounded(unverified.issuer, 200))
}

func (s *Issuers) verify(ctx context.Context, settings *config.TokenIssuer, raw string) (*Identity, error) {
	known := s.known[place{settings.Issuer, settings.JWKSURL}]
	if known == nil {
		return nil, failed(Unavailable, "identity_providers: %s is not of the configuration in use", settings.Name)
	}
	if len(settings.Audiences) == 0 || !safe(settings.Issuer) || settings.JWKSURL != "" && !safe(settings.JWKSURL) {
		return nil, failed(Misconfigured, "identity_providers: %s has no aud, or is not at an https URL", settings.Name)
	}
	d := &discovered{metadata: metadata{Issuer: settings.Issuer}, keys: known.keys}
	if known.discovery != nil {
		found, _, err := known.discovery.get(ctx)
		if err != nil {
			return nil, failed(Unavailable, "discover issuer: %w", err)
		}
		d.keys = found.keys
	}
	if d.algorithms = exactly(settings.Algorithms); len(d.algorithms) == 0 {
		return nil, failed(Misconfigured, "identity_providers: %s names no algorithm that a public key verifies", settings.Name)
	}
	t, err := d.open(ctx, raw, s.network.now(), false)
	if err == nil {
		err = t.checkPurpose([]string{"", "jwt", "at+jwt"}, []string{"", "ID", "Bearer"})
	}
	if err == nil {
		err = t.checkAudience(settings.Audiences)
	}
	if err == nil && (t.subject == "" || t.expires.IsZero()) {
		err = errors.New("it lacks sub or exp")
	}
	if err != nil {
		return nil, err
	}
	delete(t.claims, claimAuthTime)
	claims, err := (&kind{}).person(t.claims, nil, false)
	if err != nil {
		return nil, err
	}
	userID, err := userIDOf(settings.Name, t.subject)
	if err != nil {
		return nil, err
	}
	return &Identity{
		Subject: t.subject, UserID: userID, SessionID: sessionID(t.claims),
		Claims: claims, IssuedAt: t.issuedAt, ExpiresAt: t.expires,
	}, nil
}

// exactly are the algorithms of a list, RS256, ES256 and EdDSA if it is empty.
func exactly(names []string) []jose.SignatureAlgorithm {
	if len(names) == 0 {
		names = []string{"RS256", "ES256", "EdDSA"}
	}
	return slices.DeleteFunc(asymmetric(names), func(a jose.SignatureAlgorithm) bool { return !slices.Contains(names, string(a)) })
}

// safe reports whether a document at the URL comes from whom it names.
func safe(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	loopback := err == nil && ip.IsLoopback() || u.Hostname() == "localhost" || strings.HasSuffix(u.Hostname(), ".localhost")
	return u.Scheme == "https" || u.Scheme == "http" && loopback
}
