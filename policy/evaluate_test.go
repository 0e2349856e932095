package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// parse reads a policy and fails the test if there is any problem with it.
func parse(t testing.TB, text string) *Policy {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	p, problems := Parse(&n, nil)
	if len(problems) > 0 {
		t.Fatalf("parse %s: %v", text, problems)
	}
	return p
}

func compile(t testing.TB, p *Policy) *Evaluator {
	t.Helper()
	e, err := Compile(t.Context(), p)
	if err != nil {
		t.Fatalf("%v\n%s", err, Rego(p))
	}
	return e
}

func TestEvaluate(t *testing.T) {
	alice := &Principal{
		ID: "s1", UserID: "alice", Email: "alice@good.com", Groups: []string{"staff", "ops"},
		Claims: map[string]any{
			"department":     []any{"engineering"},
			"email_verified": true,
			"realm_access":   map[string]any{"roles": []any{"admin", "dev"}},
			"a.b":            "exact",
			"a":              map[string]any{"b": "nested"},
			"level":          float64(3),
			"id":             float64(1e21),
			"mixed":          []any{"a", map[string]any{}, nil},
		},
	}
	robot := &Principal{ID: "sa", UserID: "robot", ServiceAccount: true}
	twoAts := &Principal{ID: "s2", UserID: "x", Email: "a@good.com@evil.com"}
	get := Request{Method: "GET", Path: "/api/v1"}

	tests := []struct {
		name   string
		policy string
		who    *Principal
		effect Effect
		codes  []string
	}{
		{"no rules deny everyone", `[]`, alice, Deny, []string{}},
		{"an empty rule denies everyone", `allow: {or: []}`, alice, Deny, []string{}},
		{"accept admits a stranger", `allow: {or: [accept: true]}`, nil, Allow, []string{"accept"}},
		{"reject refuses", `allow: {or: [reject: true]}`, alice, Deny, []string{"reject"}},
		{"a stranger signs in first", `allow: {or: [domain: good.com]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"a member enters", `allow: {or: [domain: good.com]}`, alice, Allow, []string{"domain-ok"}},
		{"another domain is refused", `allow: {or: [domain: evil.com]}`, alice, Deny, []string{"domain-unauthorized"}},
		{"domains are not suffixes", `allow: {or: [domain: ood.com]}`, alice, Deny, []string{"domain-unauthorized"}},
		{"or keeps the reasons of what holds", `allow: {or: [{email: x@y}, {domain: good.com}]}`, alice, Allow, []string{"domain-ok"}},
		{"or with accept admits a stranger", `allow: {or: [{email: x@y}, {accept: 1}]}`, nil, Allow, []string{"accept"}},
		{"and keeps the reasons of what fails", `allow: {and: [{email: x@y}, {domain: good.com}]}`, alice, Deny, []string{"email-unauthorized"}},
		{"deny beats allow", "allow: {or: [accept: 1]}\ndeny: {or: [email: alice@good.com]}", alice, Deny, []string{"accept", "email-ok"}},
		{"deny on a session asks a stranger to sign in", "allow: {or: [accept: 1]}\ndeny: {or: [email: alice@good.com]}", nil, SignIn, []string{"accept", "user-unauthenticated"}},
		{"deny that does not hold lets through", "allow: {or: [accept: 1]}\ndeny: {or: [email: x@y]}", alice, Allow, []string{"accept", "email-unauthorized"}},
		{"deny alone admits nobody", "deny: {or: [email: x@y]}", alice, Deny, []string{"email-unauthorized"}},
		{"not asks a stranger to sign in", `allow: {not: [email: x@y]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"not admits others", `allow: {not: [email: x@y]}`, alice, Allow, []string{"email-unauthorized"}},
		{"not refuses the one", `allow: {not: [email: alice@good.com]}`, alice, Deny, []string{"email-ok"}},
		{"nor is not and", `allow: {nor: [{email: alice@good.com}, {http_method: POST}]}`, alice, Allow, []string{"http-method-unauthorized"}},
		{"nor asks a stranger to sign in", `allow: {nor: [{email: x@y}, {http_method: GET}]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"operators of a body are or-ed", `allow: {and: [{domain: evil.com}, {accept: 1}], or: [http_method: GET]}`, alice, Allow, []string{"http-method-ok"}},
		{"bodies are or-ed", `[{allow: {and: [domain: evil.com]}}, {allow: {or: [http_method: GET]}}]`, nil, Allow, []string{"http-method-ok"}},

		{"email not admits no stranger", `allow: {or: [email: {not: x@y}]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"email not_in admits no stranger", `allow: {or: [email: {not_in: [x@y]}]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"not_in nothing admits no stranger", `allow: {or: [email: {not_in: []}]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"not_in nothing admits anyone", `allow: {or: [email: {not_in: []}]}`, alice, Allow, []string{"email-ok"}},
		{"in nothing admits nobody", `allow: {or: [email: {in: []}]}`, alice, Deny, []string{"email-unauthorized"}},
		{"groups exclude admits no stranger", `allow: {or: [groups: {exclude: admins}]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"groups exclude admits who has no groups", `allow: {or: [groups: {exclude: admins}]}`, robot, Allow, []string{"groups-ok"}},
		{"groups exclude refuses members", `allow: {or: [groups: {exclude: ops}]}`, alice, Deny, []string{"groups-unauthorized"}},
		{"claim exclude admits no stranger", `allow: {or: [claim/x: {exclude: admins}]}`, nil, SignIn, []string{"user-unauthenticated"}},
		{"claim exclude admits who lacks the claim", `allow: {or: [claim/x: {exclude: admins}]}`, alice, Allow, []string{"claim-ok"}},

		{"groups has", `allow: {or: [groups: ops]}`, alice, Allow, []string{"groups-ok"}},
		{"groups is wants the only one", `allow: {or: [groups: {is: ops}]}`, alice, Deny, []string{"groups-unauthorized"}},
		{"claim in a list", `allow: {or: [claim/department: engineering]}`, alice, Allow, []string{"claim-ok"}},
		{"claim is the only one", `allow: {or: [claim/department: {is: engineering}]}`, alice, Allow, []string{"claim-ok"}},
		{"a true claim", `allow: {or: [claim/email_verified: true]}`, alice, Allow, []string{"claim-ok"}},
		{"a number claim", `allow: {or: [claim/level: 3]}`, alice, Allow, []string{"claim-ok"}},
		{"a large number has no exponent", `allow: {or: [claim/id: "1000000000000000000000"]}`, alice, Allow, []string{"claim-ok"}},
		{"the only one means of any kind", `allow: {or: [claim/mixed: {is: a}]}`, alice, Deny, []string{"claim-unauthorized"}},
		{"a mapping is no value", `allow: {or: [claim/realm_access: {exclude: a}]}`, alice, Allow, []string{"claim-ok"}},
		{"an absent nested claim", `allow: {or: [claim/level/x: "3"]}`, alice, Deny, []string{"claim-unauthorized"}},
		{"a nested claim by slash", `allow: {or: [claim/realm_access/roles: dev]}`, alice, Allow, []string{"claim-ok"}},
		{"a nested claim by dot", `allow: {or: [claim/realm_access.roles: dev]}`, alice, Allow, []string{"claim-ok"}},
		{"the exact claim wins", `allow: {or: [claim/a.b: nested]}`, alice, Deny, []string{"claim-unauthorized"}},
		{"the segments are next", `allow: {or: [claim/a/b: nested]}`, alice, Allow, []string{"claim-ok"}},

		{"an address with two @ is in no domain", `allow: {or: [domain: evil.com]}`, twoAts, Deny, []string{"domain-unauthorized"}},
		{"nor in the first one", `allow: {or: [domain: good.com]}`, twoAts, Deny, []string{"domain-unauthorized"}},
		{"nor in one not named", `allow: {or: [domain: {not: x.com}]}`, twoAts, Deny, []string{"domain-unauthorized"}},
		{"nor in one not listed", `allow: {or: [domain: {not_in: [x.com]}]}`, twoAts, Deny, []string{"domain-unauthorized"}},
		{"no address is in no domain", `allow: {or: [domain: {not_in: [x.com]}]}`, robot, Deny, []string{"domain-unauthorized"}},

		{"authenticated user", `allow: {or: [authenticated_user: true]}`, robot, Allow, []string{"user-ok"}},
		{"authenticated user needs an id", `allow: {or: [authenticated_user: true]}`, &Principal{ID: "s"}, Deny, []string{"user-unauthorized"}},
		{"user", `allow: {or: [user: robot]}`, robot, Allow, []string{"user-ok"}},
		{"matchers in one object are and-ed", `allow: {or: [email: {starts_with: alice, ends_with: evil.com}]}`, alice, Deny, []string{"email-unauthorized"}},
		{"contains and in", `allow: {or: [email: {contains: "@", in: [alice@good.com]}]}`, alice, Allow, []string{"email-ok"}},
		{"matchers heed case", `allow: {or: [email: Alice@good.com]}`, alice, Deny, []string{"email-unauthorized"}},
		{"path", `allow: {or: [http_path: {starts_with: /api/}]}`, nil, Allow, []string{"http-path-ok"}},
		{"method not in", `allow: {or: [http_method: {not_in: [GET]}]}`, nil, Deny, []string{"http-method-unauthorized"}},
		{"no preflight", `allow: {or: [cors_preflight: true]}`, nil, Deny, []string{"non-cors-request"}},
		{"a value that looks like Rego", `allow: {or: [email: "\" or true\n} allow := true # \\"]}`, alice, Deny, []string{"email-unauthorized"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := parse(t, test.policy)
			got, err := compile(t, p).Evaluate(t.Context(), &Input{Principal: test.who, Request: get})
			if err != nil {
				t.Fatal(err)
			}
			if got.Effect != test.effect || !cmp.Equal(got.Codes(), test.codes) {
				t.Errorf("policy %s\ngot  %s %q\nwant %s %q\n%s", test.policy, got.Effect, got.Codes(), test.effect, test.codes, Rego(p))
			}
		})
	}
}

func TestRefusalsSayWhatWasMissing(t *testing.T) {
	p := parse(t, `
- allow:
    or:
      - domain: good.com
      - groups: staff
- deny:
    not:
      - http_method: GET
    or:
      - email: eve@good.com
`)
	e := compile(t, p)
	tests := []struct {
		name string
		in   Input
		want []Reason
	}{
		{
			"what allows and was not met",
			Input{Principal: &Principal{UserID: "m", Email: "m@evil.com"}, Request: Request{Method: "GET"}},
			[]Reason{
				{"domain-unauthorized", "allow", "domain is good.com", "domain is good.com", 4, "evil.com", false},
				{"groups-unauthorized", "allow", "groups has staff", "groups has staff", 5, "", false},
			},
		},
		{
			"what denies",
			Input{Principal: &Principal{UserID: "e", Email: "eve@good.com"}, Request: Request{Method: "GET"}},
			[]Reason{{"email-ok", "deny", "email is eve@good.com", "email is eve@good.com", 10, "eve@good.com", false}},
		},
		{
			"what denies by not being so",
			Input{Principal: &Principal{UserID: "a", Email: "a@good.com"}, Request: Request{Method: "POST"}},
			[]Reason{{"http-method-unauthorized", "deny", "not (http_method is GET)", "not (http_method is GET)", 8, "POST", true}},
		},
		{"nothing when admitted", Input{Principal: &Principal{UserID: "a", Email: "a@good.com"}, Request: Request{Method: "GET"}}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, err := e.Evaluate(t.Context(), &test.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, d.Refusals); diff != "" {
				t.Errorf("refusals of %+v (-want +got):\n%s", d, diff)
			}
		})
	}
}

func TestAnEndedContextIsNoDecision(t *testing.T) {
	e := compile(t, parse(t, `allow: {or: [accept: true]}`))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d, err := e.Evaluate(ctx, &Input{})
	if !errors.Is(err, context.Canceled) || d.Effect != Deny {
		t.Errorf("Evaluate = %v, %v; want an error", d, err)
	}
	if _, err := e.Explain(ctx, &Input{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Explain: %v; want an error", err)
	}
}

func TestEqualPoliciesShareAQueryAndKeepTheirLines(t *testing.T) {
	one := parse(t, `allow: {or: [domain: good.com]}`)
	two := parse(t, "\n\n- allow:\n    or:\n      - domain: {is: good.com}")
	if one.Key() != two.Key() {
		t.Fatalf("keys differ: %s %s", one.Key(), two.Key())
	}
	d, err := compile(t, one).For(two).Evaluate(t.Context(), &Input{Principal: &Principal{}})
	if err != nil || len(d.Refusals) != 1 || d.Refusals[0].Line != 5 {
		t.Errorf("Evaluate = %+v, %v; want a refusal by line 5", d, err)
	}
	for _, other := range []string{
		`allow: {and: [domain: good.com]}`, `deny: {or: [domain: good.com]}`, `allow: {or: [email: good.com]}`,
		`allow: {or: [domain: {not: good.com}]}`, `allow: {or: [domain: good.org]}`, `[]`,
		`allow: {or: [{domain: good.com}, {domain: good.com}]}`, `[{allow: {or: [domain: good.com]}}, {allow: {}}]`,
	} {
		if parse(t, other).Key() == one.Key() {
			t.Errorf("%s has the key of another policy", other)
		}
	}
}

func TestLegacy(t *testing.T) {
	at := func(line int, value string) Setting { return Setting{value, line} }
	public, preflight := at(2, ""), at(3, "")
	keys := LegacyKeys{CORSPreflight: &preflight, Domains: []Setting{at(5, "good.com")}, Users: []Setting{at(7, "id-7"), at(8, "x@evil.com")}}
	p := Legacy(keys).With(parse(t, `deny: {or: [email: eve@good.com]}`))
	e := compile(t, p)
	tests := []struct {
		name string
		in   Input
		want Effect
	}{
		{"a domain", Input{Principal: &Principal{UserID: "a", Email: "a@good.com"}}, Allow},
		{"a user by id", Input{Principal: &Principal{UserID: "id-7"}}, Allow},
		{"a user by address", Input{Principal: &Principal{UserID: "8", Email: "x@evil.com"}}, Allow},
		{"someone else", Input{Principal: &Principal{UserID: "9", Email: "y@evil.com"}}, Deny},
		{"someone the policy denies", Input{Principal: &Principal{UserID: "e", Email: "eve@good.com"}}, Deny},
		{"a stranger", Input{}, SignIn},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, err := e.Evaluate(t.Context(), &test.in)
			if err != nil || d.Effect != test.want {
				t.Errorf("Evaluate = %+v, %v; want %s", d, err, test.want)
			}
		})
	}
	d, err := e.Evaluate(t.Context(), &Input{Principal: &Principal{UserID: "9", Email: "y@evil.com"}})
	want := []Reason{
		{"non-cors-request", "allow", "cors_preflight", "cors_preflight", 3, "", true},
		{"domain-unauthorized", "allow", "domain is good.com", "domain is good.com", 5, "evil.com", false},
		{"user-unauthorized", "allow", "user is one of id-7, x@evil.com", "user is one of id-7, x@evil.com", 7, "9", false},
		{"email-unauthorized", "allow", "email is one of id-7, x@evil.com", "email is one of id-7, x@evil.com", 7, "y@evil.com", false},
	}
	if diff := cmp.Diff(want, d.Refusals); err != nil || diff != "" {
		t.Errorf("refusals of a stranger: %v (-want +got):\n%s", err, diff)
	}
	if d, err := compile(t, Legacy(keys)).Evaluate(t.Context(), &Input{Request: Request{Preflight: true}}); err != nil || d.Effect != Allow {
		t.Errorf("preflight: %+v, %v", d, err)
	}
	if d, err := compile(t, Legacy(LegacyKeys{Public: &public})).Evaluate(t.Context(), &Input{}); err != nil || d.Effect != Allow {
		t.Errorf("public: %+v, %v", d, err)
	}
	if d, err := compile(t, Legacy(LegacyKeys{})).Evaluate(t.Context(), &Input{Principal: &Principal{UserID: "a"}}); err != nil || d.Effect != Deny {
		t.Errorf("no keys: %+v, %v", d, err)
	}
}

func TestReadsSession(t *testing.T) {
	tests := map[string]bool{
		`[]`:                                  false,
		`allow: {or: [accept: 1]}`:            false,
		`allow: {or: [http_method: GET]}`:     false,
		`allow: {or: [claim/x: a]}`:           true,
		`deny: {or: [authenticated_user: 1]}`: true,
	}
	for text, want := range tests {
		if got := compile(t, parse(t, text)).ReadsSession(); got != want {
			t.Errorf("ReadsSession of %s = %t, want %t", text, got, want)
		}
	}
}

func TestManyCriteriaAreServed(t *testing.T) {
	var b strings.Builder
	b.WriteString("allow:\n  or:\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "    - email: user%d@x.com\n", i)
	}
	d, err := compile(t, parse(t, b.String())).Evaluate(t.Context(), &Input{Principal: &Principal{UserID: "u", Email: "user999@x.com"}})
	if err != nil || d.Effect != Allow || len(d.Reasons) != 1 || d.Reasons[0].Line != 1002 {
		t.Errorf("Evaluate = %+v, %v; want allow by line 1002", d, err)
	}
}

// A stranger presents the certificate, so they choose its names.
func TestACertificateOfManyNamesIsJudgedAtOnce(t *testing.T) {
	names := slices.Repeat([]string{"a.x.com"}, 1000)
	in := &Input{Request: Request{Certificate: &Certificate{SANDNS: names, SANEmail: names, SANURI: names}}}
	e := compile(t, parse(t, `allow: {or: [client_certificate: {san_dns: {not: b}, san_email: {not: b}, san_uri: b}]}`))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if d, err := e.Evaluate(ctx, in); err != nil || d.Effect != Deny {
		t.Errorf("Evaluate = %+v, %v; want deny", d, err)
	}
}

func TestEvaluateFromManyGoroutines(t *testing.T) {
	e := compile(t, parse(t, `allow: {or: [{groups: staff}, {claim/a: b}]}`))
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			in := &Input{Principal: &Principal{Groups: []string{"staff"}}}
			want := Allow
			if i%2 == 0 {
				in, want = &Input{}, SignIn
			}
			for range 200 {
				if d, err := e.Evaluate(t.Context(), in); err != nil || d.Effect != want {
					t.Errorf("Evaluate = %+v, %v; want %s", d, err, want)
				}
			}
		})
	}
	wait.Wait()
}

func BenchmarkEvaluate(b *testing.B) {
	e := compile(b, parse(b, `allow: {or: [{domain: companydomain.com}, {email: someone@elsewhere.com}]}`))
	in := &Input{Principal: &Principal{UserID: "u", Email: "bob@companydomain.com"}, Request: Request{Method: "GET", Path: "/"}}
	b.ReportAllocs()
	for b.Loop() {
		d, err := e.Evaluate(b.Context(), in)
		if err != nil || d.Effect != Allow {
			b.Fatal(d, err)
		}
	}
}
