package config

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// longestReuse keeps an assertion that is used again well inside the five
// minutes that it is valid for.
const longestReuse = 4 * time.Minute

// assertion reads what identity travels to upstreams.
func (l *loader) assertion(s settings) {
	a := &l.cfg.Assertion
	a.Reuse, a.OriginalUserContext = 30*time.Second, "verified"
	if v, ok := s["pass_identity_headers"]; ok {
		l.passIdentity, _ = l.flag(v)
	}
	if v, ok := s["jwt_claims_headers"]; ok {
		a.ClaimHeaders = l.claimHeaders(v)
	}
	if v, ok := s["jwt_issuer_format"]; ok && !v.empty() {
		a.IssuerFormat, _ = l.oneOf(v, "hostOnly", "uri")
	}
	if v, ok := s["jwt_assertion_reuse"]; ok {
		if a.Reuse, ok = l.duration(v); ok && a.Reuse > longestReuse {
			l.problem(v.at(), "an assertion is valid for 5m", "jwt_assertion_reuse is more than %s", "4m")
		}
	}
	if v, ok := s["original_user_context"]; ok {
		a.OriginalUserContext, _ = l.oneOf(v, "verified", "as_provided")
	}
	if v, ok := s["original_user_context_issuers"]; ok {
		a.OriginalUserContextIssuers = l.trustedIssuers(v)
	}
}

// claimHeaders reads a map of headers to claims, or a list of claims that
// travel as X-Pomerium-Claim-<claim>.
func (l *loader) claimHeaders(v value) []ClaimHeader {
	var list []ClaimHeader
	seen := map[string]bool{}
	add := func(at Position, header, claim string) {
		if !l.headerName(at, v.key, header) || !l.identityHeaderFree(at, v.key, header) {
			return
		}
		folded := foldHeader(header)
		switch {
		case claim == "" || len(claim) > 256:
			l.problem(at, "name a claim of the provider's ID token", "%s: %s has no valid claim", v.key, header)
		case seen[folded]:
			l.problem(at, "a header carries one claim", "%s: header %s twice", v.key, header)
		default:
			seen[folded] = true
			list = append(list, ClaimHeader{Header: header, Claim: claim})
		}
	}
	if v.node.Kind == yaml.ScalarNode && !v.env && v.node.ShortTag() != "!!str" {
		l.wrongType(v, "a mapping of headers to claims, or a list of claims", "")
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		for _, e := range l.items(v) {
			add(e.at, "X-Pomerium-Claim-"+strings.ReplaceAll(e.text, "/", "-"), e.text)
		}
		return list
	}
	for _, m := range l.members(v) {
		if claim, ok := l.text(m.value); ok {
			add(m.at, m.name, claim)
		}
	}
	return list
}

func (l *loader) trustedIssuers(v value) []TrustedIssuer {
	var list []TrustedIssuer
	seen := map[string]bool{}
	for _, e := range l.elements(v) {
		s := l.fields(e, "issuer", "jwks_url", "audiences")
		if e.node.Kind != yaml.MappingNode {
			continue
		}
		var t TrustedIssuer
		complete := true
		for _, key := range []string{"issuer", "jwks_url", "audiences"} {
			if _, ok := s[key]; !ok {
				complete = false
				l.problem(e.at(), "an entry pins issuer, jwks_url and audiences", "%s has no %s", e.key, key)
			}
		}
		if !complete {
			continue
		}
		t.Issuer, _ = l.text(s["issuer"])
		t.JWKSURL = l.providerURL(s["jwks_url"], "anyone on the way to it can sign as this issuer")
		t.Audiences = l.texts(s["audiences"])
		switch {
		case t.Issuer == "":
			l.problem(s["issuer"].at(), "it is the iss claim of the assertions", "%s.issuer is empty", e.key)
		case seen[t.Issuer]:
			l.problem(s["issuer"].at(), "list each issuer once", "%s: issuer %q twice", v.key, clip(t.Issuer))
		case len(t.Audiences) == 0:
			l.problem(s["audiences"].at(), "list the hosts that its assertions are for", "%s.audiences is empty", e.key)
		}
		seen[t.Issuer] = true
		list = append(list, t)
	}
	return list
}
