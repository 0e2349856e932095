package config

import (
	"strings"

	"github.com/countersign/countersign/policy"
)

// access reads who may use a route: the policy, and the keys that are older
// than the policy language and OR-ed with it.
func (l *loader) access(s settings, route value, r *Route) {
	var keys policy.LegacyKeys
	keys.Public = l.setting(s, "allow_public_unauthenticated_access")
	keys.AnyAuthenticated = l.setting(s, "allow_any_authenticated_user")
	keys.CORSPreflight = l.setting(s, "cors_allow_preflight")
	r.CORSAllowPreflight = keys.CORSPreflight != nil
	keys.Users = l.allowed(s, "allowed_users")
	keys.Domains = l.allowedDomains(s)

	for _, key := range []string{"allow_any_authenticated_user", "allowed_users", "allowed_domains"} {
		given := key == "allow_any_authenticated_user" && keys.AnyAuthenticated != nil ||
			key == "allowed_users" && keys.Users != nil || key == "allowed_domains" && keys.Domains != nil
		switch {
		case !given:
		case keys.Public != nil:
			l.problem(s[key].at(), "keep one of them", "%s in a route with allow_public_unauthenticated_access", key)
		case keys.AnyAuthenticated != nil && key != "allow_any_authenticated_user":
			l.problem(s[key].at(), "keep one of them", "%s in a route with allow_any_authenticated_user", key)
		}
	}

	own := &policy.Policy{}
	v, hasPolicy := s["policy"]
	if hasPolicy {
		var found []policy.Problem
		own, found = policy.Parse(v.node)
		for _, p := range found {
			l.problems = append(l.problems, Problem{
				Position: Position{v.file, p.Line, p.Column}, Warning: p.Warning,
				Message: "policy: " + p.Message, Hint: p.Hint,
			})
		}
	}
	r.Policy = policy.Legacy(keys).With(own)

	anybody := hasPolicy || keys.Public != nil || keys.AnyAuthenticated != nil || keys.Users != nil || keys.Domains != nil
	for _, key := range []string{"policy", "allow_public_unauthenticated_access", "allowed_users", "allowed_domains", "allow_any_authenticated_user", "allowed_idp_claims", "allowed_groups", "sub_policies"} {
		// A key with a problem of its own has been complained about.
		anybody = anybody || hasKey(route.node, key) && !isFalse(s, key)
	}
	if !anybody {
		l.warn(r.Position, "add policy, allowed_users or allow_any_authenticated_user: true", "nobody may use this route")
	}
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
