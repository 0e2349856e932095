package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/countersign/countersign/config"
)

// TestNothingIsToldThatLetsIn holds that whoever is refused does not learn from the
// answer, whatever its form, what a header, a parameter, an address, a certificate or
// a record has to be.
func TestNothingIsToldThatLetsIn(t *testing.T) {
	const value = "s3cr3t"
	a := newAuthority(t)
	fingerprint := fingerprint(a.client("ana@example.com", noon, noon.Add(time.Hour)))
	w := newWorld(t, func(c *config.Config) { c.DownstreamMTLS = a.asked() }, map[string]routeDef{
		"header":      {"allow: {and: [{header/x-origin-verify: s3cr3t}]}", false},
		"deny":        {"[{allow: {or: [{accept: true}]}}, {deny: {or: [{header/x-origin-verify: {not: s3cr3t}}, {http_method: GET}]}}]", false},
		"query":       {"allow: {and: [{query/key: s3cr3t}]}", false},
		"agent":       {"allow: {and: [{user_agent: {is: s3cr3t}}]}", false},
		"ip":          {"allow: {and: [{source_ip: [10.20.30.0/24, 198.51.100.7]}]}", false},
		"record":      {"allow: {and: [{record: {type: network, by: request.ip, field: tier, is: s3cr3t}}]}", false},
		"certificate": {"allow: {and: [{client_certificate: {fingerprint: " + fingerprint + "}}]}", false},
		"rego":        {"rego: |\n  allow if input.http.headers[\"x-key\"][0] == \"s3cr3t\"\n", false},
	})
	for _, route := range []string{"header", "deny", "query", "agent", "ip", "record", "certificate", "rego"} {
		for _, form := range []string{"accept: text/html", "accept: application/json", "accept: text/plain", "content-type: application/grpc"} {
			r := w.check(from(call(route, "GET", "/?key=guess", form, "x-origin-verify: guess", "user-agent: guess", "x-key: guess"), "203.0.113.7"))
			if r.allowed || r.status == 503 || !strings.HasPrefix(form, "content-type") && !strings.Contains(r.body, "Re") {
				t.Errorf("%s, %s: status %d, %s", route, form, r.status, r.body)
			}
			told := r.String()
			for _, secret := range []string{value, fingerprint, "10.20.30", "198.51.100", "guess"} {
				if strings.Contains(told, secret) {
					t.Errorf("%s, %s: the answer tells %s: %s", route, form, secret, told)
				}
			}
		}
	}
	if log := w.log.String(); strings.Contains(log, value) || strings.Contains(log, fingerprint) || strings.Contains(log, "guess") {
		t.Errorf("the log tells it: %s", log)
	}
}

// TestSpaceAroundAHeaderIsNotPartOfIt: HTTP/2 carries it, and who reads HTTP/1 after
// us does not see it.
func TestSpaceAroundAHeaderIsNotPartOfIt(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{
		"deny":   {"[{allow: {or: [{accept: true}]}}, {deny: {or: [{header/x-team: {is: evil}}, {user_agent: {is: evil}}]}}]", false},
		"joined": {"[{allow: {or: [{accept: true}]}}, {deny: {or: [{header/x-team: {is: evil}}]}}]", false},
	})
	for _, value := range []string{"evil", " evil", "evil ", "\tevil", "evil\t", " \t evil \t "} {
		for _, name := range []string{"x-team", "user-agent"} {
			m := call("deny", "GET", "/", name+": "+value)
			if r := w.check(m); r.status != 403 {
				t.Errorf("%s %q: status %d", name, value, r.status)
			}
			wired, err := decodeRequest(string(marshal(t, m)))
			if err != nil || !slices.Equal(wired.Headers.Values(name), []string{"evil"}) {
				t.Errorf("%s %q: from the wire it is %q, %v", name, value, wired.Headers.Values(name), err)
			}
		}
		m := call("joined", "GET", "/")
		m.Attributes.Request.Http.HeaderMap = nil
		m.Attributes.Request.Http.Headers = map[string]string{"x-team": value, ":path": "/"}
		if r := w.check(m); r.status != 403 {
			t.Errorf("joined %q: status %d", value, r.status)
		}
	}
}

func TestAMethodInSmallLettersIsRefusedWhereItMatters(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{
		"no deleting": {"[{allow: {or: [{accept: true}]}}, {deny: {or: [{http_method: DELETE}]}}]", false},
		"in rego":     {"rego: |\n  allow if input.http.method != \"DELETE\"\n", false},
	})
	for _, route := range []string{"no deleting", "in rego"} {
		for _, method := range []string{"delete", "Delete", "DELETe", "get"} {
			r := w.check(call(route, method, "/", "accept: application/json"))
			if r.status != 403 || !strings.Contains(r.body, `"malformed-method"`) {
				t.Errorf("%s %s: status %d: %s", route, method, r.status, r.body)
			}
		}
		if r := w.check(call(route, "M-SEARCH", "/")); !r.allowed {
			t.Errorf("%s, a method that is no word: status %d", route, r.status)
		}
	}
	if r := w.check(call("open", "delete", "/")); !r.allowed {
		t.Errorf("a policy that does not look at it: status %d", r.status)
	}
	reads := w.server.published.Load().route("no deleting").judge.reads
	if unknown := w.lines()[0].Unknown(reads); !slices.Equal(unknown, []string{"a well-formed method"}) {
		t.Errorf("replayed with %q unknown", unknown)
	}
}

func TestAnAddressThatNobodyVouchesFor(t *testing.T) {
	w := newWorld(t, nil, nil)
	for i, tt := range []struct {
		verified any
		want     int
	}{
		{true, 200}, {"true", 200}, {"True", 200}, {"TRUE", 200},
		{false, 403}, {"false", 403}, {"False", 403}, {"no", 403}, {"0", 403}, {"", 403}, {1.0, 403}, {nil, 403}, {[]any{true}, 403}, {map[string]any{}, 403},
	} {
		token := w.session(fmt.Sprint(i), "a@example.com", map[string]any{"email_verified": tt.verified})
		if got := w.asks("app", token); got != tt.want {
			t.Errorf("email_verified %#v: status %d, want %d", tt.verified, got, tt.want)
		}
	}
}

// TestAGoneRouteAsksForWhatItAsked: a reload that takes away a route and with it what
// it needs must not let anyone into the route while an Envoy still names it.
func TestAGoneRouteAsksForWhatItAsked(t *testing.T) {
	a := newAuthority(t)
	good := headerCertificate + ": " + presented(a.client("ana@example.com", noon, noon.Add(time.Hour)))
	w := newWorld(t, func(c *config.Config) { c.DownstreamMTLS, c.Server.XFFNumTrustedHops = a.asked(), 1 }, map[string]routeDef{
		"needs":  {certificatePolicy, false},
		"nearby": {"allow: {and: [{source_ip: 203.0.113.0/24}]}", false},
	})
	expect := func(when string) {
		t.Helper()
		if got := w.check(call("needs", "GET", "/")).status; got != 495 {
			t.Errorf("%s, without a certificate: status %d", when, got)
		}
		if got := w.check(call("needs", "GET", "/", good)).status; got != 200 {
			t.Errorf("%s, with one: status %d", when, got)
		}
		if got := w.check(via(call("nearby", "GET", "/"), "203.0.113.7;hops=1")).status; got != 200 {
			t.Errorf("%s, as the old listener tells: status %d", when, got)
		}
		if got := w.check(from(call("nearby", "GET", "/"), "203.0.113.7")).status; got != 403 {
			t.Errorf("%s, by another rule: status %d", when, got)
		}
	}
	expect("before")
	w.config.DownstreamMTLS, w.config.Server.XFFNumTrustedHops = nil, 0
	w.config.Routes = slices.DeleteFunc(w.config.Routes, func(r *config.Route) bool { return r.ID == "needs" || r.ID == "nearby" })
	w.publish()
	expect("gone")
	w.publish()
	expect("gone for two generations")
	w.server.Retire()
	if got := w.check(call("needs", "GET", "/", good)).status; got != 404 {
		t.Errorf("retired: status %d", got)
	}
}

// TestTheLogIsBounded: what a stranger sends takes no more than some room in a line,
// errors included.
func TestTheLogIsBounded(t *testing.T) {
	number := "rego: |\n  allow if to_number(input.http.headers[\"x-api-key\"][0]) > 5\n"
	w := newWorld(t, func(c *config.Config) {
		c.Routes = append(c.Routes, &config.Route{ID: "shaded", Policy: parsePolicy(t, anyPolicy), ShadowPolicy: parsePolicy(t, number)})
	}, map[string]routeDef{"number": {number, false}, "app2": {appPolicy, true}})
	long := strings.Repeat("z", 100_000)
	token := w.session("alice", "alice@example.com", nil)
	bad := call("number", "GET", "/", "x-api-key: "+long)
	stream := call("open", "GET", "/")
	stream.Attributes.Request.Http.Id = long
	stream.Attributes.Request.Http.HeaderMap.Headers = nil
	for name, m := range map[string]reply{
		"an error":         w.check(bad),
		"a short error":    w.check(call("number", "GET", "/", "x-api-key: hunter2")),
		"a shadow's error": w.check(call("shaded", "GET", "/", "x-api-key: "+long)),
		"a method":         w.check(call("open", long, "/")),
		"a path":           w.check(call("open", "GET", "/"+long)),
		"an id":            w.check(stream),
		"a route":          w.check(call(long, "GET", "/")),
		"an address":       w.check(via(call("open", "GET", "/"), long+";hops=0")),
		"an original user": w.check(call("app2", "GET", "/", "cookie: _pomerium="+token, headerAssertion+": "+long)),
	} {
		if strings.Contains(m.body, "hunter2") || m.status == 0 {
			t.Errorf("%s: status %d, %s", name, m.status, m.body)
		}
	}
	for line := range strings.Lines(w.log.String()) {
		if len(line) > 4*maxLogged || strings.Contains(line, "hunter2") {
			t.Errorf("a line of %d bytes: %.300s", len(line), line)
		}
	}
}

// TestRulesInRegoTakeTurns: however many requests wait for rules in Rego, all others
// are answered.
func TestRulesInRegoTakeTurns(t *testing.T) {
	const rule = "rego: |\n  allow if input.http.path == \"/\"\n"
	w := newWorld(t, func(c *config.Config) {
		c.Routes = append(c.Routes, &config.Route{ID: "shaded", Policy: parsePolicy(t, anyPolicy), ShadowPolicy: parsePolicy(t, rule)})
	}, map[string]routeDef{"rego": {rule, false}})
	if r := w.check(call("rego", "GET", "/")); !r.allowed {
		t.Fatalf("with turns to be had: status %d", r.status)
	}
	for range cap(w.server.turns) {
		select {
		case w.server.turns <- struct{}{}:
		default:
			t.Fatal("a turn was not given back")
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	waiting := make(chan reply)
	for range 100 {
		go func() { waiting <- w.checkCtx(ctx, call("rego", "GET", "/new")) }()
	}
	token := w.session("alice", "alice@example.com", nil)
	patient, done := context.WithTimeout(context.Background(), 5*time.Second)
	defer done()
	for what, m := range map[string]*authv3.CheckRequest{
		"a public route": call("open", "GET", "/"), "a route with a shadow in Rego": call("shaded", "GET", "/"),
		"a policy about people": call("app", "GET", "/", "cookie: _pomerium="+token),
	} {
		if r := w.checkCtx(patient, m); !r.allowed {
			t.Errorf("%s, beside them: status %d", what, r.status)
		}
	}
	cancel()
	for range 100 {
		unavailable(t, "in vain", <-waiting)
	}
	for range cap(w.server.turns) {
		<-w.server.turns
	}
	for range 3 * cap(w.server.turns) { // each turn is given back
		if r := w.checkCtx(patient, call("rego", "GET", "/other")); r.status != 403 {
			t.Errorf("with turns to be had again: status %d", r.status)
		}
	}
}
