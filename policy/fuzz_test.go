package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
)

// FuzzParse shows that no policy makes Parse panic, and that whatever Parse
// accepts compiles and evaluates, a stranger who is asked to sign in included.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, section := range txtar.Parse(content).Files {
			switch section.Name {
			case "policy.yaml":
				f.Add(string(section.Data))
			case "criteria":
				for line := range strings.Lines(string(section.Data)) {
					f.Add("allow:\n  not:\n    - " + line)
				}
			}
		}
	}
	for _, m := range chanceModules {
		f.Add(fmt.Sprintf("rego: %q", m.text))
	}
	f.Add("allow: {or: [email: \"\\ud800 \\x00 \\ufeff\"]}")
	f.Add("- allow:\n    or: [&x {claim/&: !!str 1}, *x]")
	f.Fuzz(func(t *testing.T, text string) {
		var n yaml.Node
		if yaml.Unmarshal([]byte(text), &n) != nil {
			return
		}
		p, problems := Parse(&n, nil)
		for _, problem := range problems {
			if problem.Message == "" {
				t.Errorf("empty problem of %q", text)
			}
			if !problem.Warning {
				return
			}
		}
		e, err := Compile(context.Background(), p)
		if err != nil {
			t.Fatalf("%v\n%s", err, Rego(p))
		}
		for _, problem := range Lint(p) {
			if !problem.Warning || problem.Line < 1 || problem.Column < 1 {
				t.Errorf("finding %+v", problem)
			}
		}
		x, err := e.Explain(context.Background(), &Input{})
		if err != nil {
			t.Fatalf("%v\n%s", err, Rego(p))
		}
		for _, r := range x.Decision.Reasons {
			if r.Code == unauthenticated && x.Decision.Effect != SignIn {
				t.Errorf("%s with reasons %v", x.Decision.Effect, x.Decision.Codes())
			}
		}
	})
}

// FuzzModule shows that a rule in Rego that Parse accepts compiles beside our own
// module, and that its decision is one of a module: for a stranger it allows, denies
// or asks, and looks at nothing that it does not say.
func FuzzModule(f *testing.F) {
	for _, m := range chanceModules {
		f.Add(m.text)
	}
	f.Add("# c\npackage x # y\nimport rego.v1\ndefault allow := false\nallow if not f(input.session.groups)\nf(x) := y if y := x[_]")
	f.Add("allow := x if { x := {y: z | some y, z in input.http.headers.a}; every q in x { q } } else := [1 | input.time > 1] == []")
	f.Add("deny if input.session.claims[\"a/b\"][count(input.http.query.x)] == input.http.ip")
	f.Fuzz(func(t *testing.T, text string) {
		p, problems := regoPolicy(t, text)
		if len(problems) > 0 {
			return
		}
		e, err := Compile(t.Context(), p)
		if err != nil {
			t.Fatalf("%v\n%s", err, Rego(p))
		}
		d, err := e.Evaluate(t.Context(), &Input{})
		if err != nil {
			return // conflicting values, a function that fails
		}
		r := chance{rand.New(rand.NewPCG(1, uint64(len(text))))}
		other := r.except(scene{}, p.Reads())
		if after, err := e.Evaluate(t.Context(), &other.Input); err != nil || !cmp.Equal(withoutHad(d), withoutHad(after)) {
			t.Errorf("%s\nreads %+v, but decides %+v or %+v (%v)", text, p.Reads(), d, after, err)
		}
	})
}

// FuzzEvaluate shows that nothing in a request, a claim or a record makes Evaluate
// fail, that the reference decides the same, and that Truths are all that matters of
// a request.
func FuzzEvaluate(f *testing.F) {
	policies := []string{
		`allow: {or: [{header/x: {starts_with: a}}, {query/a b: {not: c}}], nor: [header/x: {in: [a, ""]}]}`,
		`[{allow: {or: [http_path: {contains: /a}]}}, {deny: {or: [{query/a b: {ends_with: c}}, {header/x: {not_in: [a]}}]}}]`,
		`allow: {or: [{domain: {ends_with: x}}, {email: {contains: "@"}}, {claim/a: {has: "1"}}], not: [claim/a.b: {is: c}]}`,
		`allow: {or: [{acr: {not: a}}, {amr: {exclude: a}}, {claim/a/b: {exclude: c}}]}`,
		`allow: {or: [{record: {type: t, field: f, "<=": 3}}, {record: {type: t, field: f, not_in: [a], exclude: a}}, {record: {by: user.email, type: t, field: f, exists: false}}]}`,
		`allow: {or: [{source_ip: 10.0.0.0/8}, {source_ip: "2000::/3"}, {record: {by: request.ip, type: t, field: f, is: a}}]}`,
		`allow: {and: [{auth_time: 1h30m}, {date: {after: 2026-03-29, timezone: Europe/Berlin}}], or: [{day_of_week: sat-mon}, {time_of_day: {timezone: Europe/Berlin, after: 10:15PM, before: 3AM}}]}`,
	}
	type evaluated struct {
		document any
		e        *Evaluator
		known    map[string]Decision
	}
	var all []evaluated
	for _, text := range policies {
		var document any
		if err := yaml.Unmarshal([]byte(text), &document); err != nil {
			f.Fatal(err)
		}
		all = append(all, evaluated{document, compile(f, parse(f, text)), map[string]Decision{}})
	}
	f.Add("a", "a+b=c&a%20b", "/a", "a@x", `{"a": {"b": ["c"]}, "acr": "a", "amr": ["b", 1, null]}`, `"a"`, "10.1.2.3", int64(1774746000000000000))
	f.Add("", "%zz&=&&a b", "\xff", "a@x@x", `{"a": 1e300, "a.b": {}, "amr": {}}`, `[1, {"a": "<>"}]`, "::ffff:10.1.2.3", int64(-1))
	f.Add("a\x00", "a%20b=%00;a=b", "/a/../b", "@", `{"a": [[], 1], "acr": 1}`, `3.0000000000000001`, "fe80::1%a", int64(1))
	f.Add("x", "", "", "", "", `-1e-320`, "0.0.0.0", int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, header, query, path, email, claims, field, ip string, at int64) {
		s := scene{Input: Input{Time: time.Unix(0, at)}}
		s.Request = Request{Path: path, Query: query, Headers: headerMap{"x": slices.DeleteFunc(strings.Split(header, ","), func(v string) bool { return v == "-" })}}
		s.Request.IP, _ = netip.ParseAddr(ip)
		if email != "" {
			s.Principal = &Principal{UserID: "u", Email: email, AuthTime: s.Time.Add(-time.Duration(len(path)) * time.Minute)}
			if json.Unmarshal([]byte(claims), &s.Principal.Claims) != nil {
				return
			}
		}
		var value any
		if json.Unmarshal([]byte(field), &value) != nil || s.Time.Year() < 1971 || s.Time.Year() > 2260 {
			return
		}
		for _, id := range []string{"u", email, "10.0.0.0/8", "0.0.0.0/0"} {
			s.records = append(s.records, Record{Type: "t", ID: id, Fields: map[string]any{"f": value}})
		}
		s.Records = NewRecords(s.records)
		for i, p := range all {
			got, err := p.e.Evaluate(t.Context(), &s.Input)
			if err != nil {
				t.Fatalf("%s: %v", policies[i], err)
			}
			effect, reasons, maxAge := interpret(p.document, s)
			if codes := slices.Sorted(slices.Values(got.Codes())); got.Effect != effect || !slices.Equal(codes, reasons) || got.MaxAge != maxAge {
				t.Fatalf("%s\ngot  %s %v\nwant %s %v", policies[i], got.Effect, codes, effect, reasons)
			}
			bits, cacheable := p.e.Truths(&s.Input)
			key := fmt.Sprintf("%q %q %v %q %d", email, claims, s.Principal == nil, field, bits)
			if i == len(all)-1 {
				key += fmt.Sprint(len(path), at) // how long ago the sign-in was is not of the request
			}
			before, ok := p.known[key]
			if !cacheable || ok && !cmp.Equal(withoutHad(before), withoutHad(got)) {
				t.Fatalf("%s: two decisions for bits %b: %+v %+v", policies[i], bits, before, got)
			}
			if len(p.known) < 10000 {
				p.known[key] = got
			}
		}
	})
}
