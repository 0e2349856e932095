package config_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// TestNamedPolicies shows that a name stands for the rules behind it.
func TestNamedPolicies(t *testing.T) {
	cfg := load(t, `
policies:
  Staff_1.a-b: {allow: {or: [domain: {is: example.com}]}}
  admins: [Staff_1.a-b, {deny: {or: [email: b@example.com]}}]
routes:
  - {from: https://a.example.com, to: http://a, policy: Staff_1.a-b}
  - {from: https://b.example.com, to: http://a, policy: [{allow: {or: [domain: {is: example.com}]}}]}
  - {from: https://c.example.com, to: http://a, policy: admins}
  - {from: https://d.example.com, to: http://a, policy: [Staff_1.a-b, {deny: {or: [email: b@example.com]}}]}
  - {from: https://e.example.com, to: http://a, allowed_users: [a], policy_shadow: admins}
`, config.LoadOptions{})
	if len(cfg.Warnings) > 1 { // nobody can sign in
		t.Errorf("warnings:\n%v", cfg.Warnings)
	}
	key := func(i int) string { return cfg.Routes[i].Policy.Key() }
	if key(0) != key(1) || key(2) != key(3) || key(0) == key(2) {
		t.Errorf("a name does not stand for its rules: %.4s %.4s, %.4s %.4s", key(0), key(1), key(2), key(3))
	}
	if got := cfg.Policies["admins"]; len(cfg.Policies) != 2 || got == nil || got.Key() != key(2) {
		t.Errorf("policies: got %v", cfg.Policies)
	}
	if shadow := cfg.Routes[4].ShadowPolicy; shadow == nil || shadow.Key() != key(2) || key(4) == key(2) {
		t.Errorf("shadow policy: got %v beside %v", shadow, cfg.Routes[4].Policy)
	}
	if cfg.Routes[0].ShadowPolicy != nil {
		t.Errorf("a shadow policy that nobody wrote: %v", cfg.Routes[0].ShadowPolicy)
	}
}

// TestPoliciesInTheEnvironment shows that names and routes may come from
// different places.
func TestPoliciesInTheEnvironment(t *testing.T) {
	env := []string{`POLICIES={"staff": {"allow": {"or": [{"domain": "Example.com"}, {"domain": "Example.com"}]}}}`}
	cfg := load(t, "routes: [{from: https://a.example.com, to: http://a, policy: staff}]", config.LoadOptions{Env: env})
	if cfg.Policies["staff"] == nil || cfg.Routes[0].Policy.Key() != cfg.Policies["staff"].Key() {
		t.Errorf("got %v", cfg.Policies)
	}
	warnings := cfg.Warnings.Error()
	if !strings.Contains(warnings, "POLICIES:1:30: warning: ") || strings.Contains(warnings, ".yaml:1:30: warning: domain") {
		t.Errorf("the warnings do not name the variable:\n%s", warnings)
	}
}

// TestAllowedClaims shows that a value of a claim is never taken apart.
func TestAllowedClaims(t *testing.T) {
	cfg := load(t, `
routes:
  - from: https://a.example.com
    to: http://a
    allowed_idp_claims:
      groups: [admins, "ops, night"]
      verified: true
      level: 3
`, config.LoadOptions{})
	at := func(claim, value string) policy.ClaimSetting {
		return policy.ClaimSetting{Claim: claim, Setting: policy.Setting{Value: value}}
	}
	want := policy.Legacy(policy.LegacyKeys{Claims: []policy.ClaimSetting{
		at("groups", "admins"), at("groups", "ops, night"), at("verified", "true"), at("level", "3"),
	}})
	if got := cfg.Routes[0].Policy; got.Key() != want.Key() || got.Key() == (&policy.Policy{}).Key() {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestUnsentHeaders holds the list that Envoy's configuration is built from
// against what policies may name.
func TestUnsentHeaders(t *testing.T) {
	reads := func(header string) error {
		path := filepath.Join(t.TempDir(), "config.yaml")
		write(t, path, []byte("routes: [{from: https://a.example.com, to: http://a, policy: {allow: {or: [{header/"+header+": {is: x}}]}}}]"))
		_, err := config.Load(path, config.LoadOptions{})
		return err
	}
	for _, header := range append(append(config.UnsentHeaders(), config.RemovedHeaders()...), "x-forwarded-for") {
		if err := reads(header); err == nil || !strings.Contains(err.Error(), "header "+header) {
			t.Errorf("%s: got %v", header, err)
		}
	}
	for _, header := range []string{"user-agent", "User-Agent", "origin", "referer", "x-team", "x-forwarded-proto", "content-type"} {
		if err := reads(header); err != nil {
			t.Errorf("%s: %v", header, err)
		}
	}
}

// distinct is a configuration of n routes with a tenth as many policies.
func distinct(n int, route func(i int) string) string {
	var b strings.Builder
	b.WriteString("policies:\n  staff: {allow: {and: [{domain: {is: example.com}}, {groups: {has: staff}}]}}\nroutes:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {%s, to: 'http://10.0.0.1:3000', policy: [staff, {allow: {or: [{groups: {has: g%d}}, {email: {is: a%d@example.com}}]}}, {deny: {or: [{http_method: {is: DELETE}}]}}]}\n", route(i), i%(n/10), i%(n/10))
	}
	return b.String()
}

// TestLintsAreShared shows that what routes share is reported once.
func TestLintsAreShared(t *testing.T) {
	var b strings.Builder
	b.WriteString("routes:\n")
	for i := range 20 {
		fmt.Fprintf(&b, "  - {from: https://a%d.example.com, to: http://a, policy: {allow: {or: [domain: Example.com]}}}\n", i)
	}
	cfg := load(t, b.String(), config.LoadOptions{})
	if diff := cmp.Diff(1, strings.Count(cfg.Warnings.Error(), "Example.com")); diff != "" {
		t.Errorf("-want +got:\n%s\n%v", diff, cfg.Warnings)
	}
}

func BenchmarkLoad1000Policies(b *testing.B) {
	shapes := []struct {
		name  string
		route func(i int) string
	}{
		{"ten on a host", func(i int) string { return fmt.Sprintf("from: https://app-%d.example.com, prefix: /p%d/", i/10, i) }},
		{"prefixes on one host", func(i int) string { return fmt.Sprintf("from: https://app.example.com, prefix: /p%d/", i) }},
		{"expressions on one host", func(i int) string {
			if i%2 == 0 {
				return fmt.Sprintf("from: https://app.example.com, allow_any_authenticated_user: true, regex: '/[a-z]+/.*x%d'", i)
			}
			return fmt.Sprintf("from: https://app.example.com, prefix: /p/%d/", i)
		}},
		{"wildcards", func(i int) string {
			return fmt.Sprintf("from: 'https://*.b%d.a%d.example.com', prefix: /p%d/", i/10, i/100, i)
		}},
	}
	for _, shape := range shapes {
		b.Run(shape.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "config.yaml")
			write(b, path, []byte(distinct(10_000, shape.route)))
			for b.Loop() {
				if _, err := config.Load(path, config.LoadOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
