package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// regoPolicy is a policy of one module.
func regoPolicy(t testing.TB, text string) (*Policy, []Problem) {
	t.Helper()
	content, err := yaml.Marshal(map[string]string{"rego": text})
	if err != nil {
		t.Fatal(err)
	}
	var n yaml.Node
	if err := yaml.Unmarshal(content, &n); err != nil {
		t.Fatal(err)
	}
	return Parse(&n, nil)
}

func TestModulesThatAreRefused(t *testing.T) {
	tests := []struct {
		name, text, want string
	}{
		{"no request to elsewhere", `allow if http.send({"url": "http://x", "method": "GET"}).status_code == 200`, "undefined function http.send"},
		{"no environment", `allow if opa.runtime().env.HOME`, "undefined function opa.runtime"},
		{"no names looked up", `allow if count(net.lookup_ip_addr("x.com")) > 0`, "undefined function net.lookup_ip_addr"},
		{"no lots", `allow if rand.intn("x", 2) == 1`, "undefined function rand.intn"},
		{"no identifiers drawn", `allow if uuid.rfc4122("x") != ""`, "undefined function uuid.rfc4122"},
		{"no clock but the input's", `allow if time.now_ns() > 0`, "undefined function time.now_ns"},
		{"nothing made out of a number", `allow if count(numbers.range(1, 1e9)) > 1`, "undefined function numbers.range"},
		{"no walk", `allow if walk(input.session.groups, ["x", _])`, "undefined function walk"},
		{"no trace", `allow if trace("x")`, "undefined function trace"},
		{"no whole session for a truth", `allow if input.session`, "can only be compared with null"},
		{"no whole session in a variable", `allow if { s := input.session; s != null }`, "can only be compared with null"},
		{"no list against a text", `deny if input.http.headers["x-team"] == "bad"`, "is a list, and is compared with a text"},
		{"no list against a text, the other way round", `deny if "bad" != input.session.claims["a"]`, "is a list, and is compared with a text"},
		{"nothing in a text", `deny if "banned" in input.session.email`, "is a text: nothing is in it"},
		{"nothing of a text", `deny if { some x in input.session.email; x == "a" }`, "is a text: nothing is in it"},
		{"no time against a date", `allow if input.time < "2020-01-01T00:00:00Z"`, "is a number, and is compared with a text: write time.parse_rfc3339_ns"},
		{"no truth against a text", `deny if input.session.service_account == "true"`, "is true or false, and is compared with a text"},
		{"no text against a truth", `deny if input.http.client_certificate_problem == true`, "is a text, and is compared with true or false"},
		{"no comparison within another", `deny if count([1 | input.session.groups == "a"]) > 0`, "is a list, and is compared with a text"},
		{"no replace", `allow if replace("a", "a", "aa") == "aa"`, "undefined function replace"},
		{"no array.concat", `allow if count(array.concat([1], [2])) == 2`, "undefined function array.concat"},
		{"no print", `allow if print(input.session.email)`, "print has no place in a policy"},
		{"no tokens verified", `allow if io.jwt.decode(input.http.headers.x[0])[1].admin`, "undefined function io.jwt.decode"},
		{"no keys and signatures", `allow if crypto.hmac.sha256("a", "b") == ""`, "undefined function crypto.hmac.sha256"},
		{"no graph search", `allow if graph.reachable({}, {"x"}) == set()`, "undefined function graph.reachable"},
		{"no formats", `allow if sprintf("%100000000d", [1]) == ""`, "undefined function sprintf"},
		{"no function that nobody defined", `allow if admin(input.session.email)`, "undefined function admin"},

		{"no import of data", "import data.x\nallow if x", "nothing can be imported, found data.x"},
		{"no import of input", "import input.session as s\nallow if s.email", "nothing can be imported, found input.session"},
		{"no data", `allow if data.users[input.session.email]`, "there is no data"},
		{"no data as a whole", "x := data\nallow if x", "there is no data"},
		{"no data that is called", `allow if data.countersign.policy.f(1)`, "there is no data"},
		{"no data in brackets", `allow if input.session.groups[data.countersign.policy.allow_1]`, "there is no data"},
		{"no data in brackets within brackets", `allow if input.session.claims["x"][input.session.groups[data.x]]`, "there is no data"},
		{"no data of another rule", `allow if data.countersign.rules.rule.deny`, "there is no data"},
		{"no with", `allow if { true with input as {"session": {"email": "a"}} }`, "with has no place in a policy"},
		{"no other input", `allow if { deny with input.session as null }`, "with has no place in a policy"},

		{"not the whole input", `allow if input`, "name the part of the input"},
		{"not the whole input in a call", `allow if count(input) > 0`, "name the part of the input"},
		{"not the whole request", `allow if input.http`, "there is no input.http"},
		{"not any part", `allow if input[x].email == "a"`, "name the part of the input"},
		{"not any part of the session", `allow if input.session[x] == "a"`, `input.session needs a name written out`},
		{"not any claim", `allow if input.session.claims[x] == ["a"]`, `input.session.claims needs a name written out, as in input.session.claims["x"]`},
		{"not any header", `allow if input.http.headers[input.session.email]`, `input.http.headers needs a name written out`},
		{"not all parameters", `allow if count(input.http.query) > 1`, `input.http.query needs a name written out`},
		{"not a claim in a claim", `allow if "x" in input.session.claims.realm.roles`, `input.session.claims["a/b"]`},
		{"not a part of a text", `allow if input.session.email.domain == "x"`, "input.session.email has no domain"},
		{"not an unknown part of a device", `allow if input.session.devices[_].aproved`, "input.session.devices has no aproved"},
		{"not an unknown part of a certificate", `allow if input.http.client_certificate.serial`, "input.http.client_certificate has no serial"},
		{"a slip", `allow if input.session.emial == "x"`, "did you mean input.session.email?"},
		{"input as a variable", `allow if { some input; input == 1 }`, "name the part of the input"},
		{"input as an argument", "f(input) := 1\nallow if f(2)", ""},
		{"input as a rule", "input := {\"session\": 1}\nallow if true", ""},
		{"data as a rule", "data := 1\nallow if true", ""},

		{"a rule that refers to itself", `allow if allow`, "recursive"},
		{"functions that refer to one another", "f(x) if g(x)\ng(x) if f(x)\nallow if f(1)", "recursive"},
		{"a variable without a value", `allow if x`, "var x is unsafe"},
		{"a text", `allow := "yes"`, "allow must be true or false"},
		{"a number", `deny := 1`, "deny must be true or false"},
		{"a text by calculation", `deny := concat("", ["x"])`, "deny must be true or false"},
		{"a set of messages", `deny contains "not you" if input.session.email == "x"`, "deny must be true or false"},
		{"an object", `allow["x"] := true`, "allow must be true or false"},
		{"a rule below a rule", `deny.x := true`, "deny must be true or false"},
		{"a function", `allow(_) := true`, "allow must be true or false"},
		{"one good and one bad", "allow := true\ndeny := 3", "deny must be true or false"},
		{"neither allow nor deny", `alow := true`, "neither allow nor deny"},
		{"a package and a rule in one line", "package a; allow if true", "unexpected ;"},
		{"two packages", "package a\npackage b\nallow := true", "unexpected package"},
		{"nothing", "", "neither allow nor deny"},
		{"no Rego", "allow: true", ""},
		{"Rego of old", "allow { true }", "`if` keyword is required"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, problems := regoPolicy(t, test.text)
			if !slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(p.Message, test.want) }) {
				t.Errorf("%s\ngot  %v\nwant %s", test.text, problems, test.want)
			}
		})
	}
}

func TestModules(t *testing.T) {
	ana := &Principal{ID: "s", UserID: "u1", Email: "ana@x.com", Groups: []string{"staff"}, Claims: map[string]any{
		"realm": map[string]any{"roles": []any{"dev"}}, "odd": "yes",
	}}
	tests := []struct {
		name, text string
		who        *Principal
		want       Effect
		code       string
	}{
		{"a true allow allows", `allow if input.session.email == "ana@x.com"`, ana, Allow, "rego-ok"},
		{"a false allow does not", `allow if input.session.email == "bob@x.com"`, ana, Deny, "rego-unauthorized"},
		{"one that looks at the session asks a stranger to sign in", `allow if input.session.email == "bob@x.com"`, nil, SignIn, "user-unauthenticated"},
		{"so does one that is false outright", "default allow := false\nallow if input.session.email == \"x\"", nil, SignIn, "user-unauthenticated"},
		{"one that looks at the session never allows a stranger", "allow if input.session == null", nil, SignIn, "user-unauthenticated"},
		{"not even for what they are not", `allow if count({g | some g in input.session.groups; g == "banned"}) == 0`, nil, SignIn, "user-unauthenticated"},
		{"nor where it would allow anyone", "allow if input.http.method == \"GET\"\nallow if input.session.email == \"x\"", nil, SignIn, "user-unauthenticated"},
		{"one that does not look never asks", `allow if input.http.method == "POST"`, nil, Deny, "rego-unauthorized"},
		{"a deny denies", "allow if true\ndeny if \"staff\" in input.session.groups", ana, Deny, "rego-ok"},
		{"a deny that looks asks a stranger", "allow if true\ndeny if \"staff\" in input.session.groups", nil, SignIn, "user-unauthenticated"},
		{"a deny that is false lets through", "allow if true\ndeny if \"admins\" in input.session.groups", ana, Allow, "rego-ok"},
		{"functions of the author", "staff(gs) if \"staff\" in gs\nallow if staff(input.session.groups)", ana, Allow, "rego-ok"},
		{"helper rules", "is_staff if \"staff\" in input.session.groups\nallow if is_staff", ana, Allow, "rego-ok"},
		{"else", "allow := false if input.http.method == \"POST\" else := true", ana, Allow, "rego-ok"},
		{"a nested claim by its path", `allow if "dev" in input.session.claims["realm/roles"]`, ana, Allow, "rego-ok"},
		{"a header in any case", `allow if "red" in input.http.headers["X-Team"]`, nil, Allow, "rego-ok"},
		{"a parameter", `allow if input.http.query.tab == ["a b"]`, nil, Allow, "rego-ok"},
		{"time", `allow if time.weekday([input.time, "Europe/Berlin"]) == "Sunday"`, nil, Allow, "rego-ok"},
		{"a value that nobody knew to be a text allows nobody", `allow := input.session.claims.odd[0]`, ana, Deny, "rego-unauthorized"},
		{"and denies everybody", "allow if true\ndeny := input.session.claims.odd[0]", ana, Deny, "rego-ok"},
		{"a package of its own", "package app.authz\n\nallow if true", ana, Allow, "rego-ok"},
		{"a package behind comments", "# package a\n# c\npackage a # why\nallow if true", ana, Allow, "rego-ok"},
		{"a package that is ours", "package countersign.policy\nresult := [true]\nallow if true", ana, Allow, "rego-ok"},
		{"a package behind a tab", "package\ta\nallow if true", ana, Allow, "rego-ok"},
		{"line ends of another system", "package a\r\n\r\nallow if {\r\n\ttrue\r\n}\r\n", ana, Allow, "rego-ok"},
		{"the import that others write", "import rego.v1\nallow if true", ana, Allow, "rego-ok"},
		{"the imports that others wrote", "import future.keywords.if\nallow if true", ana, Allow, "rego-ok"},
	}
	at, err := time.Parse(time.RFC3339, "2026-03-28T23:30:00Z")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, problems := regoPolicy(t, test.text)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			in := &Input{Principal: test.who, Time: at, Request: Request{
				Method: "GET", Query: "tab=a+b", Headers: headerMap{"x-team": {"red"}},
			}}
			d, err := compile(t, p).Evaluate(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			if last := d.Reasons[len(d.Reasons)-1].Code; d.Effect != test.want || last != test.code && d.Codes()[0] != test.code {
				t.Errorf("%s\ngot  %s %v\nwant %s %s\n%s", test.text, d.Effect, d.Codes(), test.want, test.code, Rego(p))
			}
		})
	}
}

// slow counts to n to the fifth, with nothing but what a module may call.
func slow(n int) string {
	return fmt.Sprintf(`many := split("%s", ",")
allow if {
	some a in many
	some b in many
	some c in many
	some d in many
	some e in many
	concat("", [a, b, c, d, e]) == input.http.path
}`, strings.Repeat("x,", n))
}

func TestAModuleThatFailsIsNoDecision(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"two values of one rule", "allow := true if input.http.method == \"GET\"\nallow := false if input.http.path == \"/\"", "conflicting values"},
		{"a function that fails", "allow if to_number(input.http.path) > 1", "to_number"},
		{"an evaluation without end", slow(500), context.DeadlineExceeded.Error()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, problems := regoPolicy(t, test.text)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			e := compile(t, p)
			began := time.Now()
			d, err := e.Evaluate(t.Context(), &Input{Request: Request{Method: "GET", Path: "/"}})
			if err == nil || !strings.Contains(err.Error(), test.want) || d.Effect != Deny || d.Reasons != nil {
				t.Errorf("Evaluate = %+v, %v; want an error with %q", d, err, test.want)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestModulesSideBySide(t *testing.T) {
	// The same module twice is one, another is another, and neither sees the other.
	p := parse(t, `
- rego: |
    allow if helper
    helper if input.http.method == "GET"
- rego: |
    allow if helper
    helper if input.http.method == "GET"
- rego: |
    deny if helper
    helper if input.http.path == "/secret"
- allow: {or: [reject: true]}
`)
	e := compile(t, p)
	for path, want := range map[string]Effect{"/": Allow, "/secret": Deny} {
		d, err := e.Evaluate(t.Context(), &Input{Request: Request{Method: "GET", Path: path}})
		if err != nil || d.Effect != want {
			t.Errorf("%s: %+v, %v; want %s", path, d, err, want)
		}
	}
	if n := strings.Count(Rego(p), "package countersign.rules."); n != 2 {
		t.Errorf("%d modules in\n%s", n, Rego(p))
	}
}

func TestWhatAModuleLooksAtIsKnown(t *testing.T) {
	tests := []struct {
		text      string
		session   bool
		cacheable bool
		want      Reads
	}{
		{`allow if true`, false, true, Reads{}},
		{`allow if input.session.email == "x"`, true, true, Reads{Session: true}},
		{`allow if input.session.groups[input.session.claims["a/b"][0]]`, true, true, Reads{Session: true, Groups: true, Claims: []string{"a/b"}}},
		{`allow if input.session.groups[count(input.http.path)]`, true, false, Reads{Session: true, Groups: true, Path: true}},
		{`allow if { x := {y | some y in input.http.headers["X-A"]}; count(x) > input.time }`, false, false, Reads{Headers: []string{"x-a"}, Time: true}},
		{`allow if every d in input.session.devices { d.approved == (input.http.ip == "::1") }`, true, false, Reads{Session: true, Devices: true, IP: true}},
		{"f(x) := input.http.query[\"tab\"][x]\nallow if f(0) == input.session.amr[0]", true, false, Reads{Session: true, Claims: []string{"amr"}, Query: []string{"tab"}}},
		{`allow := false if input.http.client_certificate.fingerprint == "" else := input.session.auth_time > 1`, true, false, Reads{Session: true, AuthTime: true, Certificate: true}},
	}
	for _, test := range tests {
		p, problems := regoPolicy(t, test.text)
		if len(problems) > 0 {
			t.Errorf("%s: %v", test.text, problems)
			continue
		}
		e := compile(t, p)
		_, cacheable := e.Truths(&Input{})
		if e.ReadsSession() != test.session || cacheable != test.cacheable || fmt.Sprint(p.Reads()) != fmt.Sprint(test.want) {
			t.Errorf("%s\nReadsSession %t, cacheable %t, Reads %+v\nwant         %t,           %t,       %+v", test.text, e.ReadsSession(), cacheable, p.Reads(), test.session, test.cacheable, test.want)
		}
	}
}

func TestAModuleThatIsSlowToCompileIsRefused(t *testing.T) {
	text := "allow if count(" + strings.Repeat("{1} | ", 1000) + "{1}) == 1"
	m, err := parseModule(text)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := compileModule(ctx, m); err == nil || !strings.Contains(err.Error(), "too complex") {
		t.Errorf("compileModule: %v; want it to be too complex", err)
	}
	p, problems := regoPolicy(t, text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if _, err := Compile(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Compile: %v; want the deadline", err)
	}
}

type chanceModule struct {
	text string
	// readsWho is whether it looks at the session.
	readsWho    bool
	allow, deny func(in *Input) bool
}

// chanceModules are the rules in Rego of the random policies, each with what its
// allow and its deny mean; nil is one that it does not define.
var chanceModules = []chanceModule{
	{
		text:  "allow if input.http.method == \"GET\"",
		allow: func(in *Input) bool { return in.Request.Method == "GET" },
	},
	{
		text:     "# who\npackage anything\n\nallow if \"g1\" in input.session.groups",
		readsWho: true,
		allow:    func(in *Input) bool { return in.Principal != nil && slices.Contains(in.Principal.Groups, "g1") },
	},
	{
		text:     "default allow := false\nallow if input.session == null\ndeny if input.session.claims[\"n/x\"][_] == \"g1\"",
		readsWho: true,
		allow:    func(in *Input) bool { return in.Principal == nil },
		deny: func(in *Input) bool {
			if in.Principal == nil {
				return false
			}
			nested, _ := in.Principal.Claims["n"].(map[string]any)
			return slices.Contains(flatten(nested["x"]), "g1")
		},
	},
	{
		text:     "deny if is(input.http.headers[\"X-Team\"])\nis(teams) if \"red\" in teams\ndeny if input.session.user_id == \"u1\"",
		readsWho: true,
		deny: func(in *Input) bool {
			return slices.Contains(repeatedValues("header", "X-Team", in.Request), "red") || in.Principal != nil && in.Principal.UserID == "u1"
		},
	},
	{
		text: "allow if {\n\tsome value in input.http.query.tab\n\tvalue == \"a b\"\n} else := input.http.client_certificate_problem == \"\"",
		allow: func(in *Input) bool {
			return slices.Contains(repeatedValues("query", "tab", in.Request), "a b") || in.Request.CertificateProblem == ""
		},
	},
}

func interpretModule(text string, s scene, actions map[string][]verdict) {
	i := slices.IndexFunc(chanceModules, func(m chanceModule) bool { return m.text == text })
	m := chanceModules[i]
	for action, rule := range map[string]func(*Input) bool{"allow": m.allow, "deny": m.deny} {
		if rule == nil {
			continue
		}
		v := reason(rule(&s.Input), "rego-ok", "rego-unauthorized")
		if m.readsWho && s.Principal == nil {
			v = verdict{false, map[string]bool{"user-unauthenticated": true}}
		}
		actions[action] = append(actions[action], v)
	}
}
