package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// bearerSet is what routes inherit and share of bearer tokens.
type bearerSet struct {
	// format is the global one, "" for default, and at where it is written.
	format BearerFormat
	at     Position
	// issuers are sorted by name. Given is whether there is an identity_providers
	// at all, right or wrong.
	issuers []*TokenIssuer
	given   bool
	known   map[string]*Bearer
}

// bearerTokens reads whose bearer tokens count where a route does not say.
func (l *loader) bearerTokens(s settings) {
	if v, ok := s["identity_providers"]; ok {
		l.bearers.given = true
		l.tokenIssuers(v)
	}
	if v, ok := s["bearer_token_format"]; ok {
		l.bearers.format, l.bearers.at = l.bearerFormat(v), v.at()
	}
}

// bearerFormat reads bearer_token_format; it is "" for default.
func (l *loader) bearerFormat(v value) BearerFormat {
	formats := []BearerFormat{BearerAccessToken, BearerIdentityToken, BearerJWT}
	word, _ := l.oneOf(v, "default", string(formats[0]), string(formats[1]), string(formats[2]))
	format := BearerFormat(word)
	if !slices.Contains(formats, format) {
		return ""
	}
	if format == BearerJWT && !l.bearers.given {
		l.problem(v.at(), "list who signs them under identity_providers, at the top of the file", "bearer_token_format jwt without identity_providers: nobody's tokens would count")
	}
	return format
}

// tokenIssuers reads identity_providers.
func (l *loader) tokenIssuers(v value) {
	seen := map[string]string{}
	for _, m := range l.members(v) {
		s := l.fields(m.value, "issuer", "jwks_url", "supported_algs", "audiences")
		if m.node.Kind != yaml.MappingNode || !l.issuerName(m) {
			continue
		}
		t := l.tokenIssuer(m.value, s)
		t.Name = m.name
		if other := seen[t.Issuer]; other != "" && t.Issuer != "" {
			l.problem(s["issuer"].at(), "list each issuer once", "%s: %s has the same issuer", m.key, clip(other))
		}
		seen[t.Issuer] = m.name
		l.bearers.issuers = append(l.bearers.issuers, t)
	}
	if len(v.node.Content) == 0 && v.node.Kind == yaml.MappingNode {
		l.problem(v.at(), "write a name, and below it issuer and audiences", "identity_providers is empty")
	}
	slices.SortFunc(l.bearers.issuers, func(a, b *TokenIssuer) int { return strings.Compare(a.Name, b.Name) })
}

// issuerName checks a key of identity_providers, which user ids begin with.
func (l *loader) issuerName(m member) bool {
	bad := m.name == "" || len(m.name) > 64 || m.name != strings.ToLower(m.name) ||
		strings.ContainsFunc(m.name, func(r rune) bool { return r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r) })
	switch {
	case bad:
		l.problem(m.at, "1 to 64 lower-case letters, digits, -, _ or .", "identity_providers: %q is not a name", clip(m.name))
	case l.idps.named[m.name] != nil:
		// Users of one would have the ids of users of the other.
		l.problem(m.at, "give one of them another name: the ids of users begin with it", "identity_providers: %s is the name of one of idps, too", m.name)
	default:
		return true
	}
	return false
}

func (l *loader) tokenIssuer(v value, s settings) *TokenIssuer {
	t := &TokenIssuer{Algorithms: []string{"RS256", "ES256", "EdDSA"}}
	for _, k := range []struct{ key, hint string }{
		{"issuer", "it is the iss claim of the tokens"},
		{"audiences", "list what the tokens name in aud: without that a token for anybody counts here"},
	} {
		if !hasKey(v.node, k.key) {
			l.problem(v.at(), k.hint, "%s has no %s", v.key, k.key)
		}
	}
	if e, ok := s["issuer"]; ok {
		t.Issuer = l.signerURL(e)
	}
	if e, ok := s["jwks_url"]; ok {
		t.JWKSURL = l.signerURL(e)
	}
	if e, ok := s["audiences"]; ok {
		t.Audiences = l.audiences(e)
	}
	if e, ok := s["supported_algs"]; ok {
		t.Algorithms = l.algorithms(e)
	}
	return t
}

// signerURL reads the address of somebody whose signature lets people in: nobody
// on the way may be able to answer in its place.
func (l *loader) signerURL(v value) string {
	text, ok := l.text(v)
	if !ok {
		return ""
	}
	if strings.HasPrefix(text, "kubernetes:") {
		l.problem(v.at(), "write the https issuer of the cluster, and its keys as jwks_url", "%s: the issuer of the cluster that we run in is not looked up", v.key)
		return ""
	}
	u, ok := l.url(v)
	switch {
	case !ok:
		return ""
	case u.Scheme == "http" && !loopback(u.Hostname()):
		l.problem(v.at(), "write https://; http is for this machine alone", "%s is plain http: anyone on the way to it can sign as this issuer", v.key)
		return ""
	case u.Fragment != "" || strings.HasSuffix(v.key, ".issuer") && hasQuery(u):
		l.problem(v.at(), "remove what follows ? or #", "%s has a query or a fragment", v.key)
		return ""
	}
	return text
}

func hasQuery(u *url.URL) bool { return u.RawQuery != "" || u.ForceQuery }

// algorithms reads supported_algs. An algorithm with a shared key, or without any,
// would let in whoever knows what is public.
func (l *loader) algorithms(v value) []string {
	known := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	before := len(l.problems)
	var list []string
	for _, e := range l.items(v) {
		switch {
		case slices.Contains(known, e.text):
			if !slices.Contains(list, e.text) {
				list = append(list, e.text)
			}
		case strings.EqualFold(e.text, "none") || strings.HasPrefix(strings.ToUpper(e.text), "HS"):
			l.problem(e.at, "use one with a public key, such as RS256 or ES256", "%s: %s is refused: whoever can read the public keys could sign with it", v.key, clip(e.text))
		default:
			l.problem(e.at, "it is one of "+strings.Join(known, ", "), "%s: unknown algorithm %q", v.key, clip(e.text))
		}
	}
	if len(list) == 0 && !l.failedSince(before) {
		l.problem(v.at(), "remove it for RS256, ES256 and EdDSA", "%s is empty", v.key)
	}
	slices.Sort(list)
	return list
}

// bearer reads whose bearer tokens a route takes.
func (l *loader) bearer(s settings, r *Route) {
	before := len(l.problems)
	b, at := &Bearer{Format: l.bearers.format}, l.bearers.at
	if v, ok := s["bearer_token_format"]; ok {
		b.Format, at = l.bearerFormat(v), v.at()
	}
	if v, ok := s["idp_access_token_allowed_audiences"]; ok {
		if b.Audiences = l.audiences(v); b.Format != BearerAccessToken && !l.failedSince(before) {
			l.problem(v.at(), "write bearer_token_format: idp_access_token, or remove it", "idp_access_token_allowed_audiences without access tokens to check")
		}
	}
	if v, ok := s["identity_providers"]; ok {
		b.Issuers = l.chosenIssuers(v)
		if b.Format != BearerJWT && !l.failedSince(before) {
			l.problem(v.at(), "write bearer_token_format: jwt, or remove it", "identity_providers on a route that takes no JWTs")
		}
	} else if b.Format == BearerJWT {
		b.Issuers = l.bearers.issuers
	}
	if b.Format == "" || l.failedSince(before) {
		return
	}
	if b.Format != BearerJWT {
		b.IDPs = l.takenBy(r)
	}
	if b.Format == BearerAccessToken && b.Audiences == nil {
		b.Audiences = commonAudiences(b.IDPs)
	}
	if b.Format == BearerIdentityToken {
		b.Audiences = slices.Compact(slices.Sorted(slices.Values(l.cfg.Programs.Audiences)))
	}
	b.ID = b.hash()
	if l.bearers.known[b.ID] == nil {
		l.bearers.known[b.ID] = b
		l.checkBearer(b, at)
	}
	r.Bearer = l.bearers.known[b.ID]
}

// takenBy are the providers whose sessions a route takes.
func (l *loader) takenBy(r *Route) []*IdentityProvider {
	if r.IDP == "" {
		return l.cfg.OfferedIDPs()
	}
	return []*IdentityProvider{l.cfg.FindIDP(r.IDP)}
}

// commonAudiences are those of each of the providers, nil where they differ.
func commonAudiences(idps []*IdentityProvider) []string {
	if len(idps) == 0 {
		return nil
	}
	first := idps[0].AccessTokenAudiences
	if slices.ContainsFunc(idps, func(p *IdentityProvider) bool { return !slices.Equal(p.AccessTokenAudiences, first) }) {
		return nil
	}
	return first
}

// checkBearer looks at settings that some routes share, once, at the first of them.
func (l *loader) checkBearer(b *Bearer, at Position) {
	switch {
	case b.Format == BearerIdentityToken && slices.ContainsFunc(b.IDPs, func(p *IdentityProvider) bool { return p.Provider == "github" }):
		l.warn(at, "use idp_access_token, or name another provider with idp", "bearer_token_format idp_identity_token: GitHub has no identity tokens, so nobody gets in with one")
	case b.Format != BearerAccessToken || b.Audiences != nil:
	case slices.ContainsFunc(b.IDPs, func(p *IdentityProvider) bool { return p.AccessTokenAudiences != nil }):
		l.problem(at, "write idp_access_token_allowed_audiences in the route, or name one provider with idp", "bearer_token_format: the providers of a route differ in the audiences that they allow")
	default:
		l.warn(at, "write idp_access_token_allowed_audiences", "bearer_token_format idp_access_token without audiences: a token that somebody gave to any other application of the provider lets that in, too")
	}
}

// chosenIssuers are those that a route names.
func (l *loader) chosenIssuers(v value) []*TokenIssuer {
	var names []string
	for _, t := range l.bearers.issuers {
		names = append(names, t.Name)
	}
	var list []*TokenIssuer
	before := len(l.problems)
	for _, e := range l.items(v) {
		i := slices.Index(names, e.text)
		if near := policy.Nearest(e.text, names); i >= 0 {
			if !slices.Contains(list, l.bearers.issuers[i]) {
				list = append(list, l.bearers.issuers[i])
			}
		} else if near != "" {
			l.problem(e.at, "did you mean "+near+"?", "identity_providers: none is called %q", clip(e.text))
		} else {
			l.problem(e.at, "list it under identity_providers, at the top of the file", "identity_providers: none is called %q", clip(e.text))
		}
	}
	if len(list) == 0 && !l.failedSince(before) {
		l.problem(v.at(), "list names of identity_providers, or remove it for all of them", "identity_providers is empty")
	}
	slices.SortFunc(list, func(a, b *TokenIssuer) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// unusedIssuers finds identity_providers that no route asks.
func (l *loader) unusedIssuers(s settings) {
	v, ok := s["identity_providers"]
	if ok && l.bearers.format != BearerJWT && !slices.ContainsFunc(l.cfg.Routes, func(r *Route) bool { return r.Bearer != nil && r.Bearer.Format == BearerJWT }) && !l.failed() {
		l.warn(v.at(), "write bearer_token_format: jwt in the routes that take their tokens", "identity_providers has no effect: no route takes JWTs")
	}
}

// hash is the ID: each part with its length, so that no two settings run together.
func (b *Bearer) hash() string {
	h := sha256.New()
	list := func(texts ...string) {
		_, _ = fmt.Fprintf(h, "%d(", len(texts)) // a hash takes everything
		for _, t := range texts {
			_, _ = fmt.Fprintf(h, "%d:", len(t))
			_, _ = io.WriteString(h, t)
		}
	}
	list(string(b.Format))
	list(b.Audiences...)
	for _, p := range b.IDPs {
		list("idp", p.ID())
		list(p.AccessTokenAudiences...)
	}
	for _, t := range b.Issuers {
		list("issuer", t.Name, t.Issuer, t.JWKSURL)
		list(t.Algorithms...)
		list(t.Audiences...)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
