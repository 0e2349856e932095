package config

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// access reads who may use a route: the policy, and the keys that are older
// than the policy language and OR-ed with it.
func (l *loader) access(s settings, route value, r *Route) {
	before := len(l.problems)
	var keys policy.LegacyKeys
	keys.Public = l.setting(s, "allow_public_unauthenticated_access")
	keys.AnyAuthenticated = l.setting(s, "allow_any_authenticated_user")
	keys.CORSPreflight = l.setting(s, "cors_allow_preflight")
	r.CORSAllowPreflight = keys.CORSPreflight != nil
	keys.Users = l.allowed(s, "allowed_users")
	keys.Domains = l.allowedDomains(s)
	keys.Claims = l.allowedClaims(s)
	given := givenKeys(keys)
	l.exclusive(s, given)

	own := &policy.Policy{}
	v, hasPolicy := s["policy"]
	if hasPolicy {
		own = l.parsePolicy(v)
		l.orPolicy(s, given, v)
	} else {
		v = route
	}
	all := policy.Legacy(keys).With(own)
	if !l.failedSince(before) {
		l.lint(v, all)
	}
	r.Policy = l.withCertificate(all)
	l.shadow(s, r)

	anybody := hasPolicy || len(given) > 0
	for _, key := range []string{"policy", "policies", "allow_public_unauthenticated_access", "allowed_users", "allowed_domains", "allow_any_authenticated_user", "allowed_idp_claims", "allowed_groups", "sub_policies"} {
		// A key with a problem of its own has been complained about.
		anybody = anybody || hasKey(route.node, key) && !isFalse(s, key)
	}
	if !anybody || hasPolicy && !l.failedSince(before) && !all.Admits() {
		l.warn(r.Position, "add policy with an allow rule, allowed_users or allow_any_authenticated_user: true", "nobody may use this route")
	}
}

// shadow reads the policy that is tried beside the real one.
func (l *loader) shadow(s settings, r *Route) {
	v, ok := s["policy_shadow"]
	if !ok {
		return
	}
	before := len(l.problems)
	p := l.parsePolicy(v)
	if !l.failedSince(before) {
		l.lint(v, p)
	}
	r.ShadowPolicy = l.withCertificate(p)
}

// givenKeys are the legacy keys that let people in, in order of precedence.
func givenKeys(keys policy.LegacyKeys) []string {
	var given []string
	for _, k := range []struct {
		key   string
		given bool
	}{
		{"allow_public_unauthenticated_access", keys.Public != nil},
		{"allow_any_authenticated_user", keys.AnyAuthenticated != nil},
		{"allowed_users", keys.Users != nil},
		{"allowed_domains", keys.Domains != nil},
		{"allowed_idp_claims", keys.Claims != nil},
	} {
		if k.given {
			given = append(given, k.key)
		}
	}
	return given
}

// exclusive refuses keys that a wider one makes meaningless.
func (l *loader) exclusive(s settings, given []string) {
	if len(given) == 0 || !strings.HasPrefix(given[0], "allow_") {
		return
	}
	for _, key := range given[1:] {
		l.problem(s[key].at(), "keep one of them", "%s in a route with %s", key, given[0])
	}
}

// orPolicy warns where people may believe that a policy narrows the older keys.
func (l *loader) orPolicy(s settings, given []string, v value) {
	if len(given) == 0 || !l.allows(v.node) {
		return
	}
	l.warn(s[given[0]].at(), "to demand both, write it into the policy as a criterion below and:",
		"%s and policy: either alone lets people in", strings.Join(given, ", "))
}

// withCertificate adds what downstream_mtls demands of every route. Where Envoy
// demands it too, that is at the handshake alone: a connection that stays open must
// not outlive a revocation.
func (l *loader) withCertificate(p *policy.Policy) *policy.Policy {
	mtls := l.cfg.DownstreamMTLS
	if mtls == nil || mtls.CA == nil || mtls.Enforcement == EnforcePolicy {
		return p
	}
	return p.With(policy.RequireCertificate(mtls.Position.Line))
}

func isFalse(s settings, key string) bool {
	v, ok := s[key]
	return ok && strings.EqualFold(v.node.Value, "false")
}

// setting is a flag that is true, with its line; nil for one that is not.
func (l *loader) setting(s settings, key string) *policy.Setting {
	v, ok := s[key]
	if !ok {
		return nil
	}
	if on, ok := l.flag(v); !ok || !on {
		return nil
	}
	return &policy.Setting{Value: "true", Line: v.node.Line}
}

func (l *loader) allowed(s settings, key string) []policy.Setting {
	v, ok := s[key]
	if !ok {
		return nil
	}
	before := len(l.problems)
	list := []policy.Setting{}
	for _, e := range l.items(v) {
		list = append(list, policy.Setting{Value: e.text, Line: e.at.Line})
	}
	if len(list) == 0 && len(l.problems) == before {
		l.warn(v.at(), "it lets nobody in", "%s is empty", key)
	}
	return list
}

func (l *loader) allowedDomains(s settings) []policy.Setting {
	list := l.allowed(s, "allowed_domains")
	for _, e := range list {
		if strings.ContainsAny(e.Value, "@ /*") {
			v := s["allowed_domains"]
			l.problem(Position{v.file, e.Line, v.node.Column}, "write the part of the address after the @: example.com", "allowed_domains: %q is not a domain", clip(e.Value))
		}
	}
	return list
}

// allowedClaims reads a mapping of claims to a value or a list of them. A comma
// is part of a value: claims hold names such as "Doe, Jane".
func (l *loader) allowedClaims(s settings) []policy.ClaimSetting {
	v, ok := s["allowed_idp_claims"]
	if !ok {
		return nil
	}
	before := len(l.problems)
	list := []policy.ClaimSetting{}
	for _, m := range l.members(v) {
		if m.name == "" || len(m.name) > 256 {
			l.problem(m.at, "name a claim of the provider's ID token", "allowed_idp_claims: %q is not a claim", clip(m.name))
			continue
		}
		values := []value{m.value}
		if m.node.Kind == yaml.SequenceNode {
			values = l.elements(m.value)
		}
		if len(values) == 0 {
			l.warn(m.value.at(), "it lets nobody in", "%s is empty", m.key)
		}
		for _, e := range values {
			if text, ok := l.claimValue(e); ok {
				list = append(list, policy.ClaimSetting{Claim: m.name, Setting: policy.Setting{Value: text, Line: e.node.Line}})
			}
		}
	}
	if len(list) == 0 && len(l.problems) == before {
		l.warn(v.at(), "it lets nobody in", "allowed_idp_claims is empty")
	}
	return list
}

// claimValue reads text; a bool counts as the text that policies compare it as.
func (l *loader) claimValue(v value) (string, bool) {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!bool" {
		return strings.ToLower(v.node.Value), true
	}
	return l.text(v)
}
