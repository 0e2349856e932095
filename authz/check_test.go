package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

func TestWhoIsRedirected(t *testing.T) {
	w := newWorld(t, nil, nil)
	tests := []struct {
		name    string
		method  string
		headers []string
		status  int
	}{
		{"Chrome going to a page", "GET", []string{"sec-fetch-mode: navigate", "sec-fetch-dest: document", "accept: text/html,*/*;q=0.8"}, 302},
		{"Chrome in a frame", "GET", []string{"sec-fetch-mode: navigate", "sec-fetch-dest: iframe", "accept: */*"}, 302},
		{"an old Safari without fetch metadata", "GET", []string{"accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, 302},
		{"HEAD of a page", "HEAD", []string{"sec-fetch-mode: navigate"}, 302},
		{"curl as it comes", "GET", []string{"accept: */*", "user-agent: curl/8"}, 302},
		{"a client without Accept", "GET", nil, 302},
		{"curl asking for JSON", "GET", []string{"accept: application/json"}, 401},
		{"fetch across origins", "GET", []string{"sec-fetch-mode: cors", "accept: */*"}, 401},
		{"fetch of the same origin that lists HTML", "GET", []string{"sec-fetch-mode: same-origin", "accept: text/html"}, 401},
		{"an image", "GET", []string{"sec-fetch-mode: no-cors", "sec-fetch-dest: image", "accept: image/*,*/*;q=0.8"}, 401},
		{"fetch metadata without a mode", "GET", []string{"sec-fetch-site: none", "accept: text/html"}, 401},
		{"EventSource", "GET", []string{"sec-fetch-mode: cors", "accept: text/event-stream"}, 401},
		{"EventSource of an old browser", "GET", []string{"accept: text/event-stream"}, 401},
		{"a browser's websocket", "GET", []string{"sec-fetch-mode: websocket", "upgrade: websocket"}, 401},
		{"a program's websocket", "GET", []string{"upgrade: websocket", "connection: upgrade"}, 401},
		{"an old script", "GET", []string{"x-requested-with: XMLHttpRequest", "accept: text/html, */*"}, 401},
		{"gRPC", "POST", []string{"content-type: application/grpc"}, 200},
		{"gRPC-web", "POST", []string{"content-type: application/grpc-web+proto"}, 200},
		{"a form", "POST", []string{"sec-fetch-mode: navigate", "accept: text/html"}, 401},
		{"a form of an old browser", "POST", []string{"accept: text/html"}, 401},
		{"HTML that is not wanted", "GET", []string{"accept: text/html;q=0, application/json"}, 401},
		{"a bad token in a header", "GET", []string{"x-pomerium-authorization: x", "accept: text/html"}, 401},
		{"a bad token as bearer", "GET", []string{"authorization: Bearer Pomerium-x", "accept: text/html"}, 401},
		{"somebody else's bearer token", "GET", []string{"authorization: Bearer x", "accept: text/html"}, 302},
		{"DELETE", "DELETE", []string{"sec-fetch-mode: navigate"}, 401},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := w.check(call("app", tt.method, "/", tt.headers...))
			if r.allowed || r.status != tt.status {
				t.Errorf("%s with %q: status %d, want %d", tt.method, tt.headers, r.status, tt.status)
			}
			if got := len(r.set["location"]) > 0; got != (tt.status == 302) {
				t.Errorf("location %q at status %d", r.set["location"], r.status)
			}
			if tt.status == 401 && r.header("www-authenticate") == "" {
				t.Error("a 401 without WWW-Authenticate")
			}
			if tt.status == 200 && (r.header("grpc-status") != "16" || !strings.HasPrefix(r.header("content-type"), "application/grpc")) {
				t.Errorf("no gRPC status: %v", r.set)
			}
		})
	}
}

func TestUnknownRouteIsNeverAllowed(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := w.session("alice", "alice@example.com", nil)
	for _, id := range []string{"", "nope", "app2"} {
		r := w.check(call(id, "GET", "/", "Cookie: _pomerium="+alice))
		if r.allowed || r.status != 404 {
			t.Errorf("route %q: status %d, want 404", id, r.status)
		}
	}
	if r := read(t, New(Config{Store: w.store}).mustCheck(t, call("app", "GET", "/"))); r.status != 503 {
		t.Errorf("before the first configuration: status %d, want 503", r.status)
	}
	if r := read(t, w.server.mustCheck(t, &authv3.CheckRequest{})); r.status != 404 {
		t.Errorf("an empty check: status %d, want 404", r.status)
	}
}

func (s *Server) mustCheck(t *testing.T, m *authv3.CheckRequest) *authv3.CheckResponse {
	t.Helper()
	resp, err := s.Check(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestCredentials(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := w.session("alice", "alice@example.com", nil)
	carol := w.session("carol", "carol@example.com", nil)
	again := w.sessionToken("alice")
	w.clock.Advance(time.Second)
	another := w.sessionToken("alice")
	ghost := w.sessionToken("ghost")
	api := w.account("acct", "api-access", time.Time{})
	foreignKeys, err := signin.NewKeys([]byte(strings.Repeat("x", 32)), []byte(strings.Repeat("y", 32)))
	if err != nil {
		t.Fatal(err)
	}
	forged, err := foreignKeys.MintSession(signin.SessionToken{SessionID: "alice", IDPID: w.config.IDPs[0].ID(), IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	otherIDP, err := w.keys.MintSession(signin.SessionToken{SessionID: "alice", IDPID: "other", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	swapped, err := w.keys.MintAccount(signin.AccountToken{AccountID: "acct", UserID: "user-alice", IssuedAt: noon})
	if err != nil {
		t.Fatal(err)
	}

	if err := w.store.PutSession(context.Background(), &databroker.Session{
		ID: "elsewhere", UserID: "eve", IDPID: "other", ExpiresAt: noon.Add(time.Hour),
	}); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := w.keys.MintSession(signin.SessionToken{SessionID: "elsewhere", IDPID: "other", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name    string
		path    string
		headers []string
		want    string // session or account id, "" for nobody
	}{
		{"none", "/", nil, ""},
		{"cookie", "/", []string{"cookie: a=b; _pomerium=" + alice}, "alice"},
		{"second of two Cookie headers", "/", []string{"cookie: a=b", "cookie: _pomerium=" + alice}, "alice"},
		{"quoted cookie", "/", []string{`cookie: _pomerium="` + alice + `"`}, "alice"},
		{"X-Pomerium-Authorization", "/", []string{"x-pomerium-authorization: " + alice}, "alice"},
		{"of two X-Pomerium-Authorization the first", "/", []string{"x-pomerium-authorization: " + alice, "x-pomerium-authorization: " + carol}, "alice"},
		{"Authorization: Pomerium", "/", []string{"authorization: Pomerium " + alice}, "alice"},
		{"Authorization: Bearer Pomerium-", "/", []string{"authorization: Bearer Pomerium-" + alice}, "alice"},
		{"query", "/x?a=b&pomerium_session=" + alice, nil, "alice"},
		{"cookie before header", "/", []string{"cookie: _pomerium=" + alice, "x-pomerium-authorization: " + carol}, "alice"},
		{"header after a bad cookie", "/", []string{"cookie: _pomerium=bad", "x-pomerium-authorization: " + carol}, "carol"},
		{"header after a signed-out cookie", "/", []string{"cookie: _pomerium=" + ghost, "authorization: Bearer Pomerium-" + api}, "acct"},
		{"two cookies of one session", "/", []string{"cookie: _pomerium=" + again + "; _pomerium=" + another}, "alice"},
		{"two cookies of two sessions", "/", []string{"cookie: _pomerium=" + alice + "; _pomerium=" + carol}, ""},
		{"the same, in two headers, turned round", "/", []string{"cookie: _pomerium=" + carol, "cookie: _pomerium=" + alice}, ""},
		{"two cookies of two sessions, and a header", "/", []string{"cookie: _pomerium=" + alice + "; _pomerium=" + carol, "x-pomerium-authorization: " + carol}, "carol"},
		{"a live cookie besides a dead one", "/", []string{"cookie: _pomerium=" + ghost + "; _pomerium=" + alice}, "alice"},
		{"two Authorization headers", "/", []string{"authorization: Pomerium " + alice, "authorization: Pomerium " + alice}, ""},
		{"plain bearer token of ours", "/", []string{"authorization: Bearer " + alice}, "alice"},
		{"wrong key", "/", []string{"cookie: _pomerium=" + forged}, ""},
		{"other identity provider", "/", []string{"cookie: _pomerium=" + otherIDP}, ""},
		{"session of another identity provider", "/", []string{"cookie: _pomerium=" + elsewhere}, ""},
		{"account token for another user", "/", []string{"authorization: Pomerium " + swapped}, ""},
		{"truncated", "/", []string{"cookie: _pomerium=" + alice[:len(alice)-5]}, ""},
		{"broken base64", "/", []string{"cookie: _pomerium=" + strings.Replace(alice, ".", ".!", 1)}, ""},
		{"dots", "/", []string{"authorization: Pomerium " + strings.Repeat(".", 1<<20)}, ""},
		{"8 KB", "/", []string{"cookie: _pomerium=" + strings.Repeat("a", 8<<10)}, ""},
		{"lone quote", "/", []string{`cookie: _pomerium="` + alice}, ""},
		{"raw bytes", "/", []string{"cookie: \xff\xfe=\x80; _pomerium=" + alice}, "alice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			r := w.check(call("public", "GET", tt.path, tt.headers...))
			if r.allowed {
				t.Fatal("route public does not exist")
			}
			p := w.server.published.Load()
			c, err := w.server.identify(context.Background(), p.Generation, p.route("app"), fromProto(call("app", "GET", tt.path, tt.headers...)), w.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			if c.who != nil {
				got = c.who.principal.ID
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			// Whatever it was, no trace of it goes on.
			up := w.check(call("open", "GET", tt.path, tt.headers...))
			if !up.allowed {
				t.Fatalf("the public route answers %d", up.status)
			}
			for _, token := range []string{alice, carol, api, ghost, forged} {
				for name, values := range upstreamHeaders(call("open", "GET", tt.path, tt.headers...), up) {
					if strings.Contains(strings.Join(values, " "), token) {
						t.Errorf("the upstream gets our token in %s", name)
					}
				}
			}
		})
	}
}

// upstreamHeaders applies an answer to a request as Envoy does.
func upstreamHeaders(m *authv3.CheckRequest, r reply) map[string][]string {
	h := map[string][]string{}
	for _, f := range m.GetAttributes().GetRequest().GetHttp().GetHeaderMap().GetHeaders() {
		h[f.GetKey()] = append(h[f.GetKey()], string(f.GetRawValue()))
	}
	for name, values := range r.set {
		h[name] = values[:1]
	}
	for _, name := range r.removed {
		delete(h, name)
	}
	return h
}

func TestForgedIdentityNeverPasses(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Assertion.ClaimHeaders = []config.ClaimHeader{{Header: "X-Email", Claim: "email"}}
	}, map[string]routeDef{"passing": {anyPolicy, true}})
	for _, route := range []string{"open", "passing"} {
		m := call(route, "GET", "/",
			"x-pomerium-jwt-assertion: evil", "x-pomerium-jwt-assertion: evil2",
			"x-pomerium-jwt-assertion-for: evil", "x-pomerium-jwt-assertion-for: evil2",
			"x-email: evil@example.com", "x-email: evil2@example.com",
			"x-pomerium-authorization: evil", "x-pomerium-authorization: evil2")
		r := w.check(m)
		if !r.allowed {
			t.Fatalf("%s: status %d", route, r.status)
		}
		for name, values := range upstreamHeaders(m, r) {
			if strings.Contains(strings.Join(values, " "), "evil") {
				t.Errorf("%s: the upstream gets %s: %q", route, name, values)
			}
		}
	}
}

func TestClaimsCannotBreakHeaders(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Assertion.ClaimHeaders = []config.ClaimHeader{
			{Header: "X-Name", Claim: "name"}, {Header: "X-Team", Claim: "org/team"}, {Header: "X-Levels", Claim: "levels"},
		}
	}, map[string]routeDef{"passing": {anyPolicy, true}})
	tests := []struct{ name, claim, want string }{
		{"plain", "Ann Lee", "Ann Lee"},
		{"unicode", "Zoë, Ltd", "Zoë, Ltd"},
		{"line break", "a\r\nX-Admin: true", ""},
		{"line feed alone", "a\nb", ""},
		{"NUL", "a\x00b", ""},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token := w.session(fmt.Sprint("s", i), "a@example.com", map[string]any{
				"name": tt.claim, "org": map[string]any{"team": "blue"}, "levels": []any{1.0, true, "x"},
			})
			r := w.check(call("passing", "GET", "/", "cookie: _pomerium="+token))
			if got := r.header("x-name"); got != tt.want {
				t.Errorf("x-name is %q, want %q", got, tt.want)
			}
			if got := w.claims(r.header("x-pomerium-jwt-assertion")).Name; got != tt.claim {
				t.Errorf("the assertion's name is %q, want %q", got, tt.claim)
			}
			if r.header("x-team") != "blue" || r.header("x-levels") != "1,true,x" {
				t.Errorf("x-team %q, x-levels %q", r.header("x-team"), r.header("x-levels"))
			}
		})
	}
}

func TestReservedClaimHeader(t *testing.T) {
	w := newWorld(t, nil, nil)
	for _, name := range []string{"Cookie", "Authorization", "X-Pomerium-Jwt-Assertion", "Host", ":path"} {
		w.config.Assertion.ClaimHeaders = []config.ClaimHeader{{Header: name, Claim: "email"}}
		if _, err := w.server.Build(context.Background(), w.config, w.keys, w.ring); err == nil {
			t.Errorf("a claim may be written to %s", name)
		}
	}
}

func TestUnverifiedEmailIsNoEmail(t *testing.T) {
	w := newWorld(t, nil, nil)
	for i, v := range []any{false, "false"} {
		token := w.session(fmt.Sprint("s", i), "boss@example.com", map[string]any{"email_verified": v})
		if r := w.check(call("app", "GET", "/", "cookie: _pomerium="+token)); r.allowed || r.status != 403 {
			t.Errorf("email_verified %v: status %d, want 403", v, r.status)
		}
	}
}

func TestExpiryIsCheckedOnEachRequest(t *testing.T) {
	w := newWorld(t, nil, nil)
	w.follow()
	alice := w.session("alice", "alice@example.com", nil)
	api := w.account("acct", "api-access", noon.Add(time.Hour))
	app := call("app", "GET", "/", "cookie: _pomerium="+alice)
	hop := call("api", "GET", "/", "authorization: Bearer Pomerium-"+api)
	for range 2 {
		if !w.check(app).allowed || !w.check(hop).allowed {
			t.Fatal("both should get in")
		}
	}
	w.clock.Set(noon.Add(time.Hour))
	if r := w.check(hop); r.allowed || r.status != 401 {
		t.Errorf("expired account: status %d, want 401", r.status)
	}
	w.clock.Set(noon.Add(14 * time.Hour))
	if r := w.check(app); r.allowed || r.status != 302 {
		t.Errorf("expired session: status %d, want 302", r.status)
	}
}

func TestAssertionsAreReusedForTheSameOnly(t *testing.T) {
	w := newWorld(t, nil, nil)
	w.follow()
	alice, anna := w.session("alice", "alice@example.com", nil), w.session("anna", "anna@example.com", nil)
	ask := func(token, host string) string {
		t.Helper()
		a := w.check(callHost("app", host, "GET", "/", "cookie: _pomerium="+token)).header("x-pomerium-jwt-assertion")
		if c := w.claims(a); c.Audience != strings.ToLower(host) || c.User != "user-"+map[string]string{alice: "alice", anna: "anna"}[token] {
			t.Errorf("asked for %s: the assertion is %s's for %s", host, c.User, c.Audience)
		}
		return a
	}
	seen := ask(alice, "one.example.com")
	w.until("assertions are reused", func() bool {
		next := ask(alice, "one.example.com")
		same := next == seen
		seen = next
		return same
	})
	for name, other := range map[string]string{
		"another host": ask(alice, "two.example.com"), "another session": ask(anna, "one.example.com"),
	} {
		if other == seen {
			t.Errorf("%s shares the assertion", name)
		}
	}
	w.clock.Advance(30 * time.Second)
	w.until("contact is renewed", func() bool { return w.server.identities.trusted(time.Minute) })
	late := ask(alice, "one.example.com")
	if late == seen {
		t.Error("reused beyond jwt_assertion_reuse")
	}
	w.config.Assertion.IssuerFormat = "uri"
	w.publish()
	if c := w.claims(ask(alice, "one.example.com")); c.Issuer != "https://one.example.com/" {
		t.Errorf("after the format changed, iss is %q", c.Issuer)
	}
	w.config.Assertion.Reuse = 0
	w.publish()
	if first, second := ask(alice, "one.example.com"), ask(alice, "one.example.com"); first == second {
		t.Error("jwt_assertion_reuse 0 reuses")
	}
}

func TestPublishAndRetire(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"old": {anyPolicy, false}})
	w.config.Routes = slices.DeleteFunc(w.config.Routes, func(r *config.Route) bool { return r.ID == "old" })
	for _, r := range w.config.Routes {
		if r.ID == "open" {
			r.Policy = parsePolicy(t, "")
		}
	}
	w.publish()
	if r := w.check(call("old", "GET", "/")); !r.allowed {
		t.Errorf("a route that is gone answers %d before Retire", r.status)
	}
	if r := w.check(call("open", "GET", "/")); r.status != 403 {
		t.Errorf("a changed policy answers %d at once, want 403", r.status)
	}
	w.publish()
	if r := w.check(call("old", "GET", "/")); !r.allowed {
		t.Errorf("a route that is gone answers %d after a second Publish", r.status)
	}
	w.server.Retire()
	if r := w.check(call("old", "GET", "/")); r.status != 404 {
		t.Errorf("a retired route answers %d, want 404", r.status)
	}
}

func TestEqualPoliciesAreCompiledOnce(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"app2": {"\n\n" + appPolicy, true}})
	g := w.server.published.Load()
	if len(g.compiled) != 3 {
		t.Errorf("%d compiled policies for 3 different ones", len(g.compiled))
	}
	before := g.compiled[w.config.Routes[0].Policy.Key()]
	w.publish()
	if w.server.published.Load().compiled[w.config.Routes[0].Policy.Key()] != before {
		t.Error("an unchanged policy was compiled again")
	}
}

func TestMalformedPaths(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"deny": {"allow: {or: [{accept: true}]}\ndeny: {or: [{http_path: {starts_with: /admin}}]}", false}})
	for path, status := range map[string]int{
		"/ok": 200, "/%6fk": 200, "/a%20b": 200, "/ok?x=/admin": 200, "/ok?%zz": 200,
		"/admin": 403, "/%61dmin/x": 403, "/admin?x": 403, "/admin#x": 403,
		"/%zz": 403, "/a%00b": 403, "/a\x00b": 403, "*": 403, "": 403, "http://x/admin": 403, "/%": 403,
		"/" + strings.Repeat("a", 64<<10): 200,
	} {
		if r := w.check(call("deny", "GET", path)); r.status != status {
			t.Errorf("%.40q: status %d, want %d", path, r.status, status)
		}
	}
	if r := w.check(call("deny", "CONNECT", "")); r.allowed {
		t.Error("CONNECT without a path is allowed")
	}
}

func TestRequestIDOfPageAndLog(t *testing.T) {
	w := newWorld(t, nil, nil)
	mallory := w.session("mallory", "mallory@elsewhere.org", nil)
	r := w.check(call("app", "GET", "/", "cookie: _pomerium="+mallory, "accept: application/json"))
	var body struct {
		Code      string   `json:"code"`
		Reasons   []string `json:"reasons"`
		RequestID string   `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	if body.Code != "forbidden" || len(body.Reasons) == 0 || body.RequestID != "req-1" {
		t.Errorf("body %+v", body)
	}
	if !strings.Contains(w.log.String(), `"request-id":"req-1"`) {
		t.Errorf("log without the request id: %s", w.log)
	}
}

func TestFlowsArePruned(t *testing.T) {
	w := newWorld(t, nil, nil)
	var crumbs []string
	for i := range 40 {
		f, err := signin.NewFlow(w.server.rand, noon.Add(-time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		c := f.Cookie("_pomerium")
		crumbs = append(crumbs, c.Name+"="+c.Value)
	}
	r := w.check(call("app", "GET", "/", "cookie: "+strings.Join(crumbs, "; ")))
	deleted := 0
	for _, c := range r.set["set-cookie"] {
		if strings.Contains(c, "Max-Age=0") {
			deleted++
		}
	}
	if r.status != 302 || len(r.set["set-cookie"]) != deleted+1 || deleted < 40-signin.MaxPending {
		t.Errorf("status %d, %d cookies set, %d of them deletions", r.status, len(r.set["set-cookie"]), deleted)
	}
}

func TestSecretsStayOutOfTheLog(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"public": {anyPolicy, true}})
	n := w.people()
	secret := "s3cr3t-query"
	for _, route := range []string{"app", "api", "open", "public", "nope"} {
		for _, token := range n {
			for _, h := range []string{"cookie: _pomerium=", "authorization: Bearer Pomerium-", "authorization: Pomerium ",
				"authorization: Bearer ", "x-pomerium-authorization: ", "x-pomerium-jwt-assertion: ", "x-pomerium-jwt-assertion-for: x"} {
				w.check(call(route, "GET", "/p?pomerium_session="+token+"&k="+secret, h+token))
			}
		}
	}
	w.store.Break(errors.New("broken"))
	w.check(call("app", "GET", "/p?k="+secret, "cookie: _pomerium="+n["alice"]))
	log := w.log.String()
	if !strings.Contains(log, `"outcome":"unavailable"`) || !strings.Contains(log, `"outcome":"allow"`) {
		t.Fatal("the log does not show what was to be seen")
	}
	for name, token := range n {
		if strings.Contains(log, token) {
			t.Errorf("the log holds the token of %s", name)
		}
		if sig := token[strings.LastIndexByte(token, '.')+1:]; strings.Contains(log, sig) {
			t.Errorf("the log holds the signature of the token of %s", name)
		}
	}
	if strings.Contains(log, secret) {
		t.Error("the log holds a query")
	}
}
