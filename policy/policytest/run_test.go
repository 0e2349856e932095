package policytest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// TestTwoWorlds decides the tests of one file in two worlds, as a comparison of
// configurations does.
func TestTwoWorlds(t *testing.T) {
	file, problems := Parse("tests.yaml", []byte(`
tests:
  - {name: kept, route: App, as: {user: u1, email: ana@example.com}, want: allow}
  - {name: gone, route: Old, want: deny}
  - {name: inline, policy: staff, as: {service_account: api}, request: {path: "/x?y"}, want: deny}
`))
	if problems != nil {
		t.Fatal(problems)
	}
	before := file.Bind(world(t, "allow: {or: [domain: example.com]}", "App", "Old"))
	after := file.Bind(world(t, "allow: {or: [domain: example.org]}", "App"))
	var runner Runner
	decide := func(c *Case) string {
		if !c.Runs() {
			if _, err := runner.Decide(t.Context(), c); err == nil {
				t.Errorf("%s: a case with problems was decided", c.Name)
			}
			return c.Problems[0].Message
		}
		d, err := runner.Decide(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return d.Effect.String()
	}
	var got strings.Builder
	for i, c := range before {
		fmt.Fprintf(&got, "%s: route %q, %s, %s: %s, then %s\n", c.Name, c.RouteName(), c.Person(), c.Asks(), decide(c), decide(after[i]))
	}
	want := `kept: route "App", ana@example.com (u1), GET /: allow, then deny
gone: route "Old", nobody, GET /: sign-in, then no route of config.yaml is called "Old"
inline: route "", service account api, GET /x?y: deny, then deny
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

// TestEqualPoliciesCompileOnce whatever test or route they are of.
func TestEqualPoliciesCompileOnce(t *testing.T) {
	file, problems := Parse("tests.yaml", []byte(`
tests:
  - {name: a, route: App, want: allow}
  - {name: b, route: Twin, want: allow}
  - {name: c, policy: {allow: {or: [domain: example.com]}}, want: allow}
`))
	if problems != nil {
		t.Fatal(problems)
	}
	var runner Runner
	var first *policy.Evaluator
	for _, c := range file.Bind(world(t, "allow: {or: [domain: example.com]}", "App", "Twin")) {
		if _, err := runner.Decide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		compiled := runner.compiled[c.Policy.Key()]
		if first == nil {
			first = compiled
		}
		if compiled != first || len(runner.compiled) != 1 {
			t.Errorf("%s was compiled again", c.Name)
		}
	}
}

// world has routes with one policy, which is also called staff.
func world(t *testing.T, rules string, names ...string) *World {
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(rules), &n); err != nil {
		t.Fatal(err)
	}
	w := &World{
		Config:   "config.yaml",
		Policies: map[string]*policy.Policy{"staff": parsePolicy(t, &n, nil)},
		Find:     func(string, string) (int, string) { return 0, "" },
	}
	for _, name := range names {
		w.Routes = append(w.Routes, Route{Name: name, Host: name, Policy: parsePolicy(t, &n, nil)})
	}
	w.Find = func(host, _ string) (int, string) {
		for i, r := range w.Routes {
			if r.Host == host {
				return i, ""
			}
		}
		return -1, "no such host"
	}
	return w
}

func TestHostsOfRoutes(t *testing.T) {
	for _, test := range []struct {
		route   Route
		anyHost string
	}{
		{Route{Host: "app.example.com"}, "app.example.com"},
		{Route{Host: "app.example.com", Port: "8443"}, "app.example.com:8443"},
		{Route{Host: "*.example.com"}, "any.example.com"},
		{Route{Host: "2001:db8::1"}, "[2001:db8::1]"},
		{Route{Host: "2001:db8::1", Port: "8443"}, "[2001:db8::1]:8443"},
	} {
		if got := test.route.anyHost(); got != test.anyHost {
			t.Errorf("a host of %s is %s, want %s", test.route.Host, got, test.anyHost)
		}
		if !test.route.serves(test.route.anyHost()) {
			t.Errorf("%s does not serve its own %s", test.route.Host, test.route.anyHost())
		}
	}
	for _, test := range []struct {
		pattern, host string
		want          bool
	}{
		{"*.example.com", "a.b.example.com:443", true},
		{"*.example.com", "example.com", false},
		{"a*b*c", "abc", true},
		{"a*b*c", "axbybc", true},
		{"a*b*c", "acb", false},
		{"a*b*c", "xbc", false},
		{"a*b*bc", "abc", false},
		{"*ab*ab", "ab", false},
		{"app.example.com", "app.example.com.evil.test", false},
	} {
		if got := (&Route{Host: test.pattern}).serves(test.host); got != test.want {
			t.Errorf("%s serves %s: %t, want %t", test.pattern, test.host, got, test.want)
		}
	}
}

func TestBounds(t *testing.T) {
	for _, test := range []struct {
		name, content, want string
	}{
		{"the largest file", "tests: []" + strings.Repeat(" ", MaxFile-9), "the list of tests is empty"},
		{"a larger file", "tests: []" + strings.Repeat(" ", MaxFile-8), "the file is larger than 1 MiB"},
		{"the most tests", "tests:\n" + strings.Repeat("- {name: a, policy: {}, want: deny}\n", MaxTests), `two tests are called "a"`},
		{"more tests", "tests:\n" + strings.Repeat("- {name: a, policy: {}, want: deny}\n", MaxTests+1), "10001 tests, of at most 10000"},
	} {
		file, problems := Parse("tests.yaml", []byte(test.content))
		if file != nil || len(problems) == 0 || problems[0].Message != test.want {
			t.Errorf("%s: got %v, want %s", test.name, problems[:min(1, len(problems))], test.want)
		}
	}
}

func TestLongChain(t *testing.T) {
	client := readClient(t)
	for n, good := range map[int]bool{maxChain: true, maxChain + 1: false} {
		chain, err := readChain(func(string) ([]byte, error) { return []byte(strings.Repeat(client, n)), nil }, "chain.pem")
		if (err == nil) != good || good && len(chain) != n {
			t.Errorf("%d certificates: got %d, %v", n, len(chain), err)
		}
	}
	large := func(string) ([]byte, error) { return []byte(client + strings.Repeat("\n", MaxFile)), nil }
	if _, err := readChain(large, "chain.pem"); err == nil {
		t.Error("a file beyond MaxFile was read")
	}
	if _, err := readChain(nil, "chain.pem"); err == nil {
		t.Error("a world without files gave one")
	}
}

// TestAnEndedContext is no result: neither a pass nor a failure.
func TestAnEndedContext(t *testing.T) {
	file, problems := Parse("tests.yaml", []byte("tests: [{name: a, policy: {}, want: deny}]"))
	if problems != nil {
		t.Fatal(problems)
	}
	cases := file.Bind(&World{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, covering := range []*World{nil, {}} {
		if report, err := Run(ctx, cases, covering); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, %v", report, err)
		}
	}
}

// TestCoverageIsOptional and costs the report nothing else.
func TestCoverageIsOptional(t *testing.T) {
	file, problems := Parse("tests.yaml", []byte("tests: [{name: a, policy: {allow: {or: [accept: 1, reject: 1]}}, want: allow}]"))
	if problems != nil {
		t.Fatal(problems)
	}
	report, err := Run(t.Context(), file.Bind(&World{}), nil)
	if err != nil || report.Passed != 1 || report.Coverage != nil || report.Untested != nil {
		t.Errorf("got %+v, %v", report, err)
	}
}

// TestAddressesHaveOneForm, as in a check from Envoy.
func TestAddressesHaveOneForm(t *testing.T) {
	file, problems := Parse("tests.yaml", []byte(`tests: [{name: a, policy: {}, request: {ip: "::ffff:203.0.113.9"}, want: deny}]`))
	if problems != nil {
		t.Fatal(problems)
	}
	if got := file.Bind(&World{})[0].Input.Request.IP.String(); got != "203.0.113.9" {
		t.Errorf("the policy sees %s", got)
	}
}

// TestPrintable shows what XML 1.0 cannot hold, which a file's name may.
func TestPrintable(t *testing.T) {
	const text, want = "a\xff\x00\ufffe\ufffd\t\U0001f600", "a\\xff\\u0000\\ufffe\ufffd\t\U0001f600"
	if got := printable(text); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
