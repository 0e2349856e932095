package e2e

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// identityName is every name that an upstream may take for one of ours.
var identityName = regexp.MustCompile(`(?i)^x[-_.](pomerium|countersign|envoy)[-_.]`)

// attacks are lines that a client adds to a request. What matters of each says
// "evil".
func attacks() map[string][]string {
	return map[string][]string{
		"twice": {"X-Pomerium-Jwt-Assertion: evil", "X-Pomerium-Jwt-Assertion: evil2",
			"X-Pomerium-Jwt-Assertion-For: evil", "X-Pomerium-Jwt-Assertion-For: evil2"},
		"with a comma":   {"X-Pomerium-Jwt-Assertion: evil,evil2", "X-Pomerium-Jwt-Assertion-For: evil, evil2"},
		"other case":     {"x-POMERIUM-jwt-ASSERTION: evil", "X-pomerium-CLAIM-email: evil", "x-email: evil", "X-EMAIL: evil"},
		"dots":           {"X.Pomerium.Jwt.Assertion: evil", "x-pomerium.claim-email: evil", "X.Email: evil", "X.Pomerium.Jwt.Assertion.For: evil"},
		"claim headers":  {"X-Pomerium-Claim-Email: evil", "X-Pomerium-Claim-Groups: evil", "X-Email: evil", "X-Pomerium-Iap-Jwt-Assertion: evil", "X-Pomerium-Authenticated-User-Email: evil"},
		"our own names":  {"X-Countersign-Keep-X-Pomerium-Jwt-Assertion: evil", "X-Countersign-Anything: evil"},
		"of another key": {"X-Pomerium-Jwt-Assertion: eyJhbGciOiJub25lIn0.e30.evil", "X-Pomerium-Jwt-Assertion-For: eyJhbGciOiJub25lIn0.e30.evil"},
		"of Envoy": {"X-Envoy-Original-Path: /evil", "X-Envoy-Original-Dst-Host: evil:1", "X-Envoy-Internal: evil", "X-Envoy-External-Address: evil",
			"X-Envoy-Upstream-Rq-Timeout-Ms: 1", "X-Envoy-Decorator-Operation: evil", "X-Envoy-Peer-Metadata: evil", "X-Envoy-Expected-Rq-Timeout-Ms: 1"},
		"of a proxy in front": {"X-Forwarded-Host: evil", "X-Forwarded-Proto: evil", "X-Forwarded-Port: evil", "X-Forwarded-Prefix: evil",
			"X-Forwarded-Server: evil", "X-Original-Url: /evil", "X-Rewrite-Url: /evil", "X-Real-Ip: evil", "Forwarded: host=evil", "X-Request-Id: evil"},
	}
}

// hopByHop are values of Connection that ask a proxy to drop our headers.
func hopByHop() []string {
	return []string{
		"x-pomerium-jwt-assertion", "close, X-Pomerium-Jwt-Assertion", "keep-alive, X-Pomerium-Jwt-Assertion, X-Pomerium-Jwt-Assertion-For",
		"te, x-email, x-pomerium-jwt-assertion", "upgrade, x-pomerium-jwt-assertion",
	}
}

// kinds are the routes that differ in how headers are dealt with: those with
// authorization, without it, and preflights.
type kind struct {
	name, method, host string
	lines              []string
	// identified: the upstream is told who the caller is.
	identified bool
}

func (w *world) kinds(t testing.TB) []kind {
	cookie := func(host string) []string {
		url := w.url(host, "/")
		return []string{"Cookie: _pomerium=" + w.session(t, "ana", url).cookie(t, url, "_pomerium")}
	}
	preflight := []string{"Origin: https://elsewhere.example", "Access-Control-Request-Method: PUT"}
	return []kind{
		{"protected", "GET", "app", cookie("app"), true},
		{"protected, HTTP/2 behind", "GET", "h2", cookie("h2"), true},
		{"public", "GET", "public", nil, true},
		{"public without identity", "GET", "bare", nil, false},
		{"preflight", "OPTIONS", "cors", preflight, false},
		{"checked preflight", "OPTIONS", "corsdeny", preflight, false},
	}
}

// check reports what should not have reached the upstream.
func (k kind) check(t *testing.T, w *world, a *answer) {
	t.Helper()
	got := a.echo(t)
	for _, h := range got.Header {
		if strings.Contains(h[1], "evil") {
			t.Errorf("%s: %s reached the upstream", h[0], h[1])
		}
		if identityName.MatchString(h[0]) && !strings.EqualFold(h[0], headerAssertion) {
			t.Errorf("%s: %s reached the upstream", h[0], h[1])
		}
	}
	switch assertions := got.values(headerAssertion); {
	case !k.identified && len(assertions) != 0:
		t.Errorf("the upstream got assertions %q, want none", assertions)
	case k.identified && len(assertions) != 1:
		t.Errorf("the upstream got assertions %q, want one", assertions)
	case k.identified:
		if claims := w.verify(t, "app", k.host, assertions[0]); (claims.Subject == "ana") != (k.lines != nil) {
			t.Errorf("the upstream was told of %+v", claims)
		}
	}
	if got.value("x-forwarded-proto") != "https" {
		t.Errorf("X-Forwarded-Proto %q", got.values("x-forwarded-proto"))
	}
	if id := got.value("x-request-id"); id == "" || id != a.Header.Get("X-Request-Id") {
		t.Errorf("request id %q, in the answer %q", got.values("x-request-id"), a.Header["X-Request-Id"])
	}
}

// TestSpoofedHeaders sends every spelling of our headers on every kind of
// route, over HTTP/1.1 byte by byte and over HTTP/2.
func TestSpoofedHeaders(t *testing.T) {
	w := sharedWorld.get(t)
	c := w.client()
	for _, k := range w.kinds(t) {
		t.Run(k.name, func(t *testing.T) {
			for name, lines := range attacks() {
				lines = append(lines, k.lines...)
				t.Run(name, func(t *testing.T) {
					k.check(t, w, w.raw(t, k.host, w.head(k.method, k.host, "/", append(lines, "Connection: close")...)))
					r := request(t, k.method, w.url(k.host, "/"))
					for _, line := range lines {
						name, value, _ := strings.Cut(line, ": ")
						r.Header[name] = append(r.Header[name], value)
					}
					a := c.send(t, r)
					if a.ProtoMajor != 2 {
						t.Fatalf("spoke %s", a.Proto)
					}
					k.check(t, w, a)
				})
			}
			for _, connection := range hopByHop() {
				t.Run("Connection: "+connection, func(t *testing.T) {
					a := w.raw(t, k.host, w.head(k.method, k.host, "/", append([]string{"Connection: " + connection, "X-Pomerium-Jwt-Assertion: evil"}, k.lines...)...))
					// An upgrade to nothing is refused, which is as good.
					if a.StatusCode != http.StatusForbidden && a.StatusCode != http.StatusBadRequest {
						k.check(t, w, a)
					}
				})
			}
		})
	}
}

// TestUnderscores: a name with an underscore is refused, since upstreams take
// it for the same with a dash.
func TestUnderscores(t *testing.T) {
	w := sharedWorld.get(t)
	public, err := w.upstream("public")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"X_Pomerium_Jwt_Assertion", "X-Pomerium_Claim-Email", "x_email", "X_Forwarded_Host"} {
		if a := w.raw(t, "public", w.head("GET", "public", "/underscore", name+": evil")); a.StatusCode != http.StatusBadRequest {
			t.Errorf("HTTP/1.1, %s: %s", name, a.Status)
		}
		// HTTP/2 resets the stream.
		if a, err := w.client().try(request(t, "GET", w.url("public", "/underscore"), name, "evil")); err == nil && a.StatusCode != http.StatusBadRequest {
			t.Errorf("HTTP/2, %s: %s", name, a.Status)
		}
	}
	if got := public.requests("/underscore"); len(got) != 0 {
		t.Errorf("reached the upstream: %+v", got)
	}
}

// TestForwardedChangesNothing: no header of a proxy, and no user agent, opens a
// protected route by naming a public one.
func TestForwardedChangesNothing(t *testing.T) {
	w := sharedWorld.get(t)
	admin, err := w.upstream("admin")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"X-Forwarded-Uri: /public/x", "X-Forwarded-Path: /public/x", "X-Original-Url: /public/x", "X-Original-Uri: /public/x", "X-Rewrite-Url: /public/x",
		"X-Envoy-Original-Path: /public/x", "X-Forwarded-Prefix: /public", "X-Forwarded-Method: OPTIONS", "X-Http-Method-Override: OPTIONS",
		"X-Forwarded-Host: " + w.host("public"), "X-Forwarded-Proto: http", "X-Forwarded-Port: 80", "X-Forwarded-For: 127.0.0.1", "X-Real-Ip: 127.0.0.1",
		"X-Envoy-Internal: true", "X-Envoy-External-Address: 127.0.0.1", "Forwarded: for=127.0.0.1;host=" + w.host("public") + ";proto=https",
		"User-Agent: GoogleHC/1.0", "User-Agent: kube-probe/1.30", "X-Envoy-Ratelimited: true", "X-Envoy-Force-Trace: true",
		"Access-Control-Request-Method: GET", "Origin: https://elsewhere.example",
	} {
		a := w.raw(t, "paths", w.head("GET", "paths", "/admin/forwarded", line, "Accept: application/json", "Sec-Fetch-Mode: cors", "Connection: close"))
		if a.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s, want 401", line, a.Status)
		}
	}
	if got := admin.requests("forwarded"); len(got) != 0 {
		t.Errorf("reached the upstream: %+v", got)
	}
}
