package policy

// LegacyKeys are the keys of a route that say who may enter without the policy
// language. A nil Setting is a key that is absent or false.
type LegacyKeys struct {
	// Public is allow_public_unauthenticated_access.
	Public *Setting
	// AnyAuthenticated is allow_any_authenticated_user.
	AnyAuthenticated *Setting
	// CORSPreflight is cors_allow_preflight.
	CORSPreflight *Setting
	// Domains and Users are allowed_domains and allowed_users. A user may be
	// given by id or by email address.
	Domains, Users []Setting
	// Claims are allowed_idp_claims, one entry for each value of a claim.
	Claims []ClaimSetting
}

// ClaimSetting is a claim and one value that it may have.
type ClaimSetting struct {
	Claim string
	Setting
}

// Setting is a value and the line it is written on.
type Setting struct {
	Value string
	Line  int
}

// Legacy is the policy that the legacy keys stand for: one allow rule that any
// of them satisfies, or no rule if none is set. A list is one criterion, with the
// line of its first value: a hundred users are looked up at once, and someone
// refused is not shown a hundred reasons. Put a route's own policy behind it:
// Legacy(keys).With(own).
func Legacy(keys LegacyKeys) *Policy {
	var criteria []criterion
	flag := func(name string, s *Setting) {
		if s != nil {
			k, _ := kindNamed(name)
			criteria = append(criteria, criterion{kind: k, line: s.Line})
		}
	}
	oneOf := func(name string, settings []Setting) {
		if len(settings) == 0 {
			return
		}
		k, _ := kindNamed(name)
		t := test{matcher: "in"}
		if len(settings) == 1 {
			t.matcher = "is"
		}
		for _, s := range settings {
			t.values = append(t.values, s.Value)
		}
		criteria = append(criteria, criterion{kind: k, line: settings[0].Line, operand: textTests{t}})
	}

	flag("accept", keys.Public)
	flag("cors_preflight", keys.CORSPreflight)
	flag("authenticated_user", keys.AnyAuthenticated)
	oneOf("domain", keys.Domains)
	for _, s := range keys.Claims {
		k, _ := kindNamed("claim")
		criteria = append(criteria, criterion{kind: k, path: s.Claim, line: s.Line, operand: listTests{{"has", []string{s.Value}}}})
	}
	oneOf("user", keys.Users)
	oneOf("email", keys.Users)
	if len(criteria) == 0 {
		return &Policy{}
	}
	line := criteria[0].line
	return &Policy{rules: []rule{{allow, line, []operator{{"or", line, criteria}}}}}
}

// RequireCertificate is the deny rule that downstream_mtls adds to every policy:
// invalid_client_certificate. Put it behind the route's own policy.
func RequireCertificate(line int) *Policy {
	k, _ := kindNamed("invalid_client_certificate")
	c := criterion{kind: k, keepsOut: true, line: line}
	return &Policy{rules: []rule{{deny, line, []operator{{"or", line, []criterion{c}}}}}}
}
