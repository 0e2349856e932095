package policy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func TestSensiblePoliciesHaveNoFindings(t *testing.T) {
	for name, text := range map[string]string{
		"one domain": `allow: {or: [domain: {is: example.com}]}`,
		"public":     `allow: {or: [accept: true]}`,
		"public but": `
- allow: {or: [accept: true]}
- deny: {or: [source_ip: 192.0.2.0/24]}
`,
		"domain or user": `
- allow:
    or:
      - domain: {is: companydomain.com}
      - user: api-access
`,
		"staff read admins write": `
- allow:
    and:
      - groups: staff
      - http_method: {in: [GET, HEAD]}
- allow:
    or:
      - groups: admins
`,
		"gone": `
- allow: {or: [domain: example.com]}
- deny: {or: [email: gone@example.com]}
`,
		"office hours": `
allow:
  and:
    - domain: example.com
    - day_of_week: mon-fri
    - time_of_day: {timezone: Europe/Berlin, after: "08:00", before: "18:00"}
`,
		"preflights": `
allow:
  or:
    - cors_preflight: true
    - authenticated_user: true
`,
		"fresh": `
allow:
  and:
    - groups: admins
    - auth_time: 15m
    - source_ip: 10.0.0.0/8
`,
		"devices": `
- allow:
    and:
      - domain: example.com
      - device: {approved: true}
- deny:
    or:
      - invalid_client_certificate: true
`,
		"everyone but": `
allow:
  not:
    - email: guest@example.com
    - groups: contractors
`,
		"records": `
- allow:
    or:
      - record: {type: employee, field: department, is: engineering}
- deny:
    or:
      - record: {type: employee, field: left, exists: true}
`,
		"paths": `
- allow:
    and:
      - http_path: {starts_with: /public/}
      - http_method: GET
- allow:
    and:
      - domain: example.com
      - http_path: {starts_with: /}
`,
		"overlap": `
allow:
  or:
    - source_ip: 10.0.0.0/8
    - source_ip: 192.0.2.0/24
    - claim/team: red
    - claim/team: {exclude: blue}
`,
		"module": `
- rego: |
    allow if input.http.method == "GET"
    deny if input.http.path == "/secret"
- allow:
    or:
      - groups: admins
`,
		"two modules": `
- rego: |
    allow if input.http.method == "GET"
- rego: |
    allow if input.http.method == "HEAD"
`,
		"token": `
- allow:
    and:
      - header/x-token: {in: [a, b]}
      - query/tab: c
- allow:
    or: [user_agent: {starts_with: kube-probe}]
`,
		"nobody": `[]`,
		"not domain": `
- allow:
    or: [authenticated_user: true]
- deny:
    not: [domain: example.com]
`,
	} {
		if problems := Lint(parse(t, text)); len(problems) > 0 {
			t.Errorf("%s: %s\n%s", name, text, printProblems(problems))
		}
	}
	for name, p := range map[string]*Policy{
		"public":         Legacy(LegacyKeys{Public: &Setting{}, CORSPreflight: &Setting{}}),
		"any user":       Legacy(LegacyKeys{AnyAuthenticated: &Setting{}}),
		"users":          Legacy(LegacyKeys{Domains: []Setting{{Value: "x.com"}}, Users: []Setting{{Value: "u1"}, {Value: "a@y.com"}}}),
		"a certificate":  parse(t, `allow: {or: [domain: x.com]}`).With(RequireCertificate(1)),
		"nothing at all": {},
	} {
		if problems := Lint(p); len(problems) > 0 {
			t.Errorf("%s: %s\n%s", name, p, printProblems(problems))
		}
	}
}

func TestOpenness(t *testing.T) {
	tests := []struct {
		text string
		want Openness
	}{
		{`[]`, Restricted},
		{`allow: {or: [domain: x.com]}`, Restricted},
		{`allow: {or: [reject: 1]}`, Restricted},
		{`allow: {or: [authenticated_user: 1]}`, AnyUser},
		{`allow: {or: [{authenticated_user: 1}, {domain: x.com}]}`, AnyUser},
		{`allow: {and: [{authenticated_user: 1}, {domain: x.com}]}`, Restricted},
		{`allow: {and: [{authenticated_user: 1}, {accept: 1}]}`, AnyUser},
		{`allow: {or: [accept: 1]}`, Public},
		{`allow: {and: [accept: 1]}`, Public},
		{`[{allow: {or: [domain: x.com]}}, {allow: {or: [accept: 1]}}]`, Public},
		{`{allow: {or: [accept: 1]}, deny: {or: [email: a@x.com]}}`, Public},
		{`deny: {or: [accept: 1]}`, Restricted},
		{`allow: {not: [accept: 1]}`, Restricted},
	}
	for _, test := range tests {
		if got := parse(t, test.text).Openness(); got != test.want {
			t.Errorf("Openness of %s = %d, want %d", test.text, got, test.want)
		}
	}
}

func TestDecisive(t *testing.T) {
	e := compile(t, parse(t, `
- allow:
    or:
      - domain: x.com
      - groups: staff
    and:
      - http_method: GET
      - accept: true
- deny:
    not:
      - source_ip: 10.0.0.0/8
`))
	wantRules := []Rule{
		{"allow", "or", "domain is x.com", 4}, {"allow", "or", "groups has staff", 5},
		{"allow", "and", "http_method is GET", 7}, {"allow", "and", "accept", 8},
		{"deny", "not", "source_ip is in 10.0.0.0/8", 11},
	}
	if diff := cmp.Diff(wantRules, e.Rules()); diff != "" {
		t.Error(diff)
	}
	tests := []struct {
		name, input string
		effect      Effect
		want        []bool
	}{
		{"one allow decides", `{user: u, email: a@x.com, ip: 10.0.0.1, method: POST}`, Allow, []bool{true, false, false, false, true}},
		{"either would do", `{user: u, email: a@x.com, groups: [staff], ip: 10.0.0.1, method: POST}`, Allow, []bool{false, false, false, false, true}},
		{"each alone would do", `{user: u, email: a@y.com, ip: 10.0.0.1, method: POST}`, Deny, []bool{true, true, true, false, false}},
		{"the deny decides", `{user: u, email: a@x.com, ip: 192.0.2.1, method: POST}`, Deny, []bool{false, false, false, false, true}},
		{"a stranger is let in by method", `{ip: 10.0.0.1, method: GET}`, Allow, []bool{false, false, true, true, true}},
		{"a stranger might be somebody", `{ip: 10.0.0.1, method: POST}`, SignIn, []bool{true, true, true, false, false}},
	}
	for _, test := range tests {
		d, decisive, err := e.Decisive(t.Context(), readInput(t, test.input))
		if err != nil || d.Effect != test.effect || !cmp.Equal(decisive, test.want) {
			t.Errorf("%s: Decisive = %s %v, %v; want %s %v", test.name, d.Effect, decisive, err, test.effect, test.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := e.Decisive(ctx, &Input{}); err == nil {
		t.Error("Decisive in an ended context: no error")
	}
}

func TestStringIsEqualForEqualPolicies(t *testing.T) {
	one := parse(t, `[{allow: {or: [{domain: x.com}, {source_ip: 10.1.2.3}], nor: [accept: 1]}}, {deny: {or: []}}]`)
	const want = `allow:
  or:
    - domain is x.com
    - source_ip is in 10.1.2.3/32
  nor:
    - accept
deny:
`
	if got := one.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	two := parse(t, "- allow:\n    or:\n      - domain: {is: x.com}\n      - source_ip: [\"::ffff:10.1.2.3\"]\n    nor:\n      - accept: [1]\n- deny: {}")
	if one.String() != two.String() || one.Key() != two.Key() {
		t.Errorf("equal policies differ:\n%s%s\n%s%s", one, one.Key(), two, two.Key())
	}
}

// TestKeysTellPoliciesApart compares policies that differ in one thing.
func TestKeysTellPoliciesApart(t *testing.T) {
	seen := map[string]string{}
	for _, criterion := range []string{
		`claim/a: b`, `claim/b: a`, `groups: b`, `amr: b`, `groups: {is: b}`, `groups: {exclude: b}`, `groups: {has: b, is: b}`,
		`header/a: b`, `query/a: b`, `query/A: b`, `user_agent: b`, `header/user-agent: b`, `header/a: {in: [b, c]}`, `header/a: {in: ["b c"]}`, `header/a: {in: ['b" "c']}`,
		`source_ip: 10.0.0.0/8`, `source_ip: 10.0.0.0/9`, `source_ip: [10.0.0.0/8, 10.0.0.0/9]`,
		`date: {after: 2026-01-01}`, `date: {before: 2026-01-01}`, `date: {after: 2026-01-01, timezone: Asia/Tokyo}`, `date: {after: 2026-01-01T00:00:00.5Z}`,
		`day_of_week: mon`, `day_of_week: "*"`, `day_of_week: mon-sun`, `day_of_week: {days: mon, timezone: Asia/Tokyo}`,
		`time_of_day: {timezone: UTC, after: "1:00"}`, `time_of_day: {timezone: UTC, before: "1:00"}`, `time_of_day: {timezone: Asia/Tokyo, after: "1:00"}`, `time_of_day: {timezone: UTC, after: "1:00", before: "2:00"}`,
		`device: {type: any}`, `device: {type: own}`, `device: {is: own}`, `device: {approved: true}`, `device: {approved: false}`,
		`record: {type: a, field: b, is: c}`, `record: {type: b, field: a, is: c}`, `record: {by: user.email, type: a, field: b, is: c}`, `record: {type: a, field: b, has: c}`,
		`record: {type: a, field: b, "=": 1}`, `record: {type: a, field: b, "<=": 1}`, `record: {type: a, field: b, "<=": 1.5}`, `record: {type: a, field: b, exists: true}`, `record: {type: a, field: b, exists: false}`, `record: {type: a, field: b, exists: true, is: c}`, `record: {type: a, field: b, in: [c]}`, `record: {type: a, field: b, not: c}`,
		`auth_time: 1h`, `auth_time: 2h`, `client_certificate: {san_dns: a}`, `client_certificate: {san_email: a}`, `client_certificate: {san_dns: {not: a}}`,
		`client_certificate: {spki_hash: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, `invalid_client_certificate: 1`, `cors_preflight: 1`, `accept: 1`, `reject: 1`,
	} {
		for _, text := range []string{"allow: {or: [{" + criterion + "}]}", "allow: {not: [{" + criterion + "}]}", "deny: {or: [{" + criterion + "}]}"} {
			key := parse(t, text).Key()
			if other, ok := seen[key]; ok {
				t.Errorf("%s\n%s\nhave one key", other, text)
			}
			seen[key] = text
		}
	}
	for _, module := range []string{"allow if true", "allow if 1 == 1", "deny if true", "allow if true\ndeny if true"} {
		p, problems := regoPolicy(t, module)
		if other, ok := seen[p.Key()]; ok || len(problems) > 0 {
			t.Errorf("%s\n%s\nhave one key %v", other, module, problems)
		}
		seen[p.Key()] = module
	}
}

func TestLegacyClaims(t *testing.T) {
	p := Legacy(LegacyKeys{Claims: []ClaimSetting{
		{Claim: "groups", Setting: Setting{Value: "staff", Line: 3}}, {Claim: "realm/roles", Setting: Setting{Value: "dev", Line: 4}},
	}})
	e := compile(t, p)
	for input, want := range map[string]Effect{
		`{user: u, claims: {groups: [staff]}}`:             Allow,
		`{user: u, claims: {realm: {roles: [ops, dev]}}}`:  Allow,
		`{user: u, claims: {groups: [dev], realm: staff}}`: Deny,
		`{}`: SignIn,
	} {
		if d, err := e.Evaluate(t.Context(), readInput(t, input)); err != nil || d.Effect != want {
			t.Errorf("%s: %+v, %v; want %s", input, d, err, want)
		}
	}
}

func TestRequireCertificate(t *testing.T) {
	e := compile(t, parse(t, `allow: {or: [domain: x.com]}`).With(RequireCertificate(9)))
	for input, want := range map[string]Effect{
		`{user: u, email: a@x.com, certificate: {}}`:                      Allow,
		`{user: u, email: a@x.com}`:                                       Allow, // nobody asks for one
		`{user: u, email: a@x.com, problem: none}`:                        ClientCertificate,
		`{user: u, email: a@x.com, certificate: {}, problem: it expired}`: ClientCertificate,
		`{problem: none}`:                                                 ClientCertificate,
		`{certificate: {}}`:                                               SignIn,
		`{user: u, email: a@y.com, certificate: {}}`:                      Deny,
	} {
		d, err := e.Evaluate(t.Context(), readInput(t, input))
		if err != nil || d.Effect != want {
			t.Errorf("%s: %+v, %v; want %s", input, d, err, want)
		}
		if d.Effect == ClientCertificate && (len(d.Refusals) != 1 || d.Refusals[0].Line != 9) {
			t.Errorf("%s: refusals %+v, want one of line 9", input, d.Refusals)
		}
	}
}

// TestWhatMayBeTold: whoever was refused learns no value that could be all that it
// takes to get in, and nothing about the network behind.
func TestWhatMayBeTold(t *testing.T) {
	secrets := []string{"s3cr3t", "10.9.8", "0a0a0a0a", "employee", "level"}
	e := compile(t, parse(t, `
- allow:
    and:
      - header/x-origin-verify: s3cr3t
      - query/key: {starts_with: s3cr3t}
      - user_agent: {contains: s3cr3t}
      - source_ip: 10.9.8.0/24
      - client_certificate: {fingerprint: 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a}
      - record: {by: request.ip, type: employee, field: level, is: s3cr3t}
- allow: {not: [header/x-origin-verify: s3cr3t]}
- deny: {not: [source_ip: 10.9.8.0/24]}
- deny: {or: [header/x-origin-verify: {not: s3cr3t}]}
`))
	d, err := e.Evaluate(t.Context(), &Input{Request: Request{Headers: headerMap{"x-origin-verify": {"wrong"}}}})
	if err != nil || d.Effect != Deny || len(d.Refusals) == 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	for _, r := range d.Reasons {
		if r.Told == "" || r.Rule == "" {
			t.Errorf("nothing is told of %+v", r)
		}
		for _, secret := range secrets {
			if strings.Contains(r.Told, secret) || strings.Contains(r.Had, secret) {
				t.Errorf("%q tells %s", r.Told, secret)
			}
		}
	}
	open := compile(t, parse(t, `allow: {and: [domain: x.com]}`))
	d, err = open.Evaluate(t.Context(), &Input{Principal: &Principal{UserID: "u", Email: "a@y.com"}})
	if err != nil || d.Refusals[0].Told != "domain is x.com" {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestErrorsHoldNoValues: what Rego says of a function that failed has the values
// in it that the function was given.
func TestErrorsHoldNoValues(t *testing.T) {
	p, problems := regoPolicy(t, `allow if to_number(input.http.headers["x-api-key"][0]) > 1`)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	e := compile(t, p)
	for _, value := range []string{"hunter2-header", strings.Repeat("hunter2", 10_000)} {
		_, err := e.Evaluate(t.Context(), &Input{Request: Request{Headers: headerMap{"x-api-key": {value}}}})
		if err == nil || strings.Contains(err.Error(), "hunter2") || len(err.Error()) > 300 {
			t.Errorf("error %.400v", err)
		}
	}
}

// TestNetworksOfRecords: how an id is written, and in which order records come,
// does not change which of them an address finds.
func TestNetworksOfRecords(t *testing.T) {
	record := func(id string) Record {
		return Record{Type: "net", ID: id, Fields: map[string]any{"id": id}}
	}
	for range 20 {
		a, b := NewRecords([]Record{record("10.0.0.1"), record("10.0.0.1/32"), record("::ffff:10.0.0.1")}),
			NewRecords([]Record{record("::ffff:10.0.0.1"), record("10.0.0.1/32"), record("10.0.0.1")})
		for _, records := range []*Records{a, b} {
			if fields, ok := records.FindAddress("net", netip.MustParseAddr("10.0.0.1")); !ok || fields["id"] != "10.0.0.1" {
				t.Fatalf("found %v, %t", fields, ok)
			}
		}
	}
	fields, ok := NewRecords([]Record{record("10.0.0.1/8")}).FindAddress("net", netip.MustParseAddr("10.0.0.1"))
	if !ok || fields["id"] != "10.0.0.1/8" {
		t.Errorf("found %v, %t", fields, ok)
	}
}

// TestNamedPoliciesDoNotMultiply: policies that name one another twice each double.
func TestNamedPoliciesDoNotMultiply(t *testing.T) {
	named := map[string]*Policy{"p0": parse(t, "allow: {or: []}")}
	for i := range 40 {
		var n yaml.Node
		if err := yaml.Unmarshal(fmt.Appendf(nil, "[p%d, p%d]", i, i), &n); err != nil {
			t.Fatal(err)
		}
		p, problems := Parse(&n, named)
		if len(problems) > 0 {
			if !strings.Contains(problems[0].Message, "at most") {
				t.Error(problems)
			}
			return
		}
		named[fmt.Sprintf("p%d", i+1)] = p
	}
	t.Error("2^40 rules were taken")
}
