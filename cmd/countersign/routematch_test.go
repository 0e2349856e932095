package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
)

// manyHosts has one route for each rule of matching, named for it.
const manyHosts = `
authenticate_service_url: https://authenticate.example.com
routes:
- {name: api, from: https://app.example.com, prefix: /api, to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: exact path, from: https://app.example.com, path: /exact, to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: regex, from: https://app.example.com, regex: '/r/[0-9]+', to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: any, from: 'https://*.example.com', to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: app, from: https://app.example.com, prefix: /a, to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: port, from: 'https://port.example.com:8443', to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: other port, from: https://port.example.com, prefix: /p, to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: later, from: 'https://*.b.example.org', prefix: /x, to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: between, from: 'https://a.*.example.org', to: http://127.0.0.1:1, allow_any_authenticated_user: true}
- {name: wild port, from: 'https://*.example.net:9443', to: http://127.0.0.1:1, allow_any_authenticated_user: true}
`

func tableOf(t testing.TB, text string) *routeTable {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, config.LoadOptions{Generate: throwAway})
	if err != nil {
		t.Fatal(err)
	}
	table, err := newRouteTable(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestRouteTable(t *testing.T) {
	table := tableOf(t, manyHosts)
	tests := []struct{ name, host, path, want string }{
		{"a prefix", "app.example.com", "/api/x", "api"},
		{"a prefix is of letters, not of segments", "app.example.com", "/apian", "api"},
		{"the first match in file order wins", "app.example.com", "/api", "api"},
		{"what it leaves is for the next", "app.example.com", "/ap", "app"},
		{"a path is whole", "app.example.com", "/exact", "exact path"},
		{"a longer path is another", "app.example.com", "/exact/", "no route of the host"},
		{"a query is no part of the path", "app.example.com", "/exact?x=/api", "exact path"},
		{"an expression is whole", "app.example.com", "/r/12", "regex"},
		{"an expression is not a prefix", "app.example.com", "/r/12x", "no route of the host"},
		{"an exact host never falls through to a wildcard", "app.example.com", "/zzz", "no route of the host app.example.com has the path /zzz"},
		{"hosts have no case", "APP.Example.COM", "/api", "api"},
		{"paths have", "app.example.com", "/API", "no route of the host"},
		{"the port of the scheme", "app.example.com:443", "/api", "api"},
		{"another port of the scheme", "port.example.com", "/p", "other port"},
		{"any port", "app.example.com:8443", "/api", "api"},
		{"a wildcard", "other.example.com", "/", "any"},
		{"a wildcard is any number of labels", "a.b.example.com", "/", "any"},
		{"a wildcard may be empty", ".example.com", "/", "any"},
		{"a wildcard keeps the dot before its domain", "example.com", "/", "no route has the host example.com"},
		{"a wildcard on any port", "other.example.com:8443", "/", "any"},
		{"a route of the very port comes first", "port.example.com:8443", "/p", "port"},
		{"a route of any port takes the others", "port.example.com:9443", "/p", "other port"},
		{"wildcards are tried in file order", "a.b.example.org", "/x", "later"},
		{"and by their paths", "a.b.example.org", "/y", "between"},
		{"a wildcard on its port", "x.example.net:9443", "/", "wild port"},
		{"a wildcard has no case either", "X.EXAMPLE.net:9443", "/", "wild port"},
		{"and on no other", "x.example.net", "/", "no route has the host"},
		{"no host", "elsewhere.test", "/", "no route has the host elsewhere.test: the answer is 404"},
		{"dots are resolved before", "app.example.com", "/x/../api", "api"},
		{"encoded dots too", "app.example.com", "/x/%2e%2E/api", "api"},
		{"our own path", "app.example.com", "/.pomerium/sign_out", "is Countersign's own"},
		{"our own path below a wildcard", "other.example.com", "/.pomerium", "is Countersign's own"},
		{"nobody's path like ours", "elsewhere.test", "/.pomerium", "no route has the host"},
		{"health is answered on any host", "elsewhere.test", "/healthz", "is Countersign's own"},
		{"where people sign in", "authenticate.example.com", "/api", "is where people sign in"},
		{"an encoded slash", "app.example.com", "/x/..%2fapi", "Envoy refuses the request: the path holds an encoded slash"},
		{"no path", "app.example.com", "api", "Envoy refuses the request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			end := table.find(tt.host, tt.path)
			got := end.why
			if end.route != nil {
				got = end.route.Name
			}
			if got != tt.want && (end.route != nil || !strings.Contains(got, tt.want)) {
				t.Errorf("%s%s ends at %q, want %q", tt.host, tt.path, got, tt.want)
			}
		})
	}
}

func TestNormalPath(t *testing.T) {
	tests := []struct{ path, want string }{
		{"/", "/"},
		{"/a/b", "/a/b"},
		{"/a/./b/", "/a/b/"},
		{"/a/../b", "/b"},
		{"/a/..", "/"},
		{"/a/b/..", "/a/"},
		{"/a/b/.", "/a/b/"},
		{"/../../a", "/a"},
		{"//a///b", "/a/b"},
		{"/a//..//b", "/a/b"},
		{`/a\b`, "/a/b"},
		{`/a/..\b`, "/b"},
		{"/%61%2D%7e", "/a-~"},
		{"/%20%C3%A9", "/%20%C3%A9"},
		{"/a/%2e%2E/b", "/b"},
		{"/a/..;x=1/b", "/b"},
		{"/%zz%6", "/%zz%6"},
		{"/a?b=/../c", "/a"},
	}
	for _, tt := range tests {
		if got, err := normalPath(tt.path); got != tt.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", tt.path, got, err, tt.want)
		}
	}
	for _, path := range []string{"", "a", "*", "/a%2Fb", "/a%5cb", "/%00", "/a#b"} {
		if got, err := normalPath(path); err == nil {
			t.Errorf("%q: got %q, want an error", path, got)
		}
	}
}

// FuzzNormalPath shows that what comes out is a path, and stays as it is.
func FuzzNormalPath(f *testing.F) {
	for _, path := range []string{"/", "/a/../b", "/%2e%2e/x", "//a", `/\..\a`, "/..;/x", "/%25%32%65", "/a?b", "/."} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		once, err := normalPath(path)
		if err != nil {
			return
		}
		if !strings.HasPrefix(once, "/") || strings.Contains(once, "/../") || strings.Contains(once, "//") {
			t.Errorf("%q became %q", path, once)
		}
		if twice, err := normalPath(once); err == nil && twice != once && !strings.Contains(path, "%") {
			t.Errorf("%q became %q, and then %q", path, once, twice)
		}
	})
}

// TestRouteTableAgreesWithEnvoy asks a real Envoy which route it chooses.
func TestRouteTableAgreesWithEnvoy(t *testing.T) {
	s := newSystem(t)
	head, _, _ := strings.Cut(s.config(), "\nroutes:")
	route := func(name, from, match string) string {
		return fmt.Sprintf("- {name: %s, from: 'https://%s', %s to: %s, policy: {allow: {or: [{accept: true}]}}}\n", name, from, match, s.upstream.URL)
	}
	own := s.host("app")
	s.write(head + "\nroutes:\n" +
		route("api", own, "prefix: /api,") +
		route("path", own, "path: /exact,") +
		route("regex", own, "regex: '/r/[0-9]+',") +
		route("wild", "*.corp.localhost", "") +
		route("a", own, "prefix: /a,"))
	s.start()
	table, err := newRouteTable(s.deploy.inForce())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{own, strings.ToUpper(own), "b.corp.localhost", "b.c.corp.localhost:1", "elsewhere.test", "authenticate.corp.localhost"} {
		for _, path := range []string{
			"/api", "/api/x", "/apian", "/a", "/b", "/exact", "/exact/", "/exact?x", "/r/12", "/r/12/", "/r/x", "/API",
			"/b/../api", "/b/%2e%2e/api", "//api", "/./api", `/\api`, "/%61pi", "/%41pi", "/..;/api", "/b;x/../api", "/a%2fpi", "/a%5cpi", "/%00",
			"/a/.", "/r/12/..", "/r/12/../12", "/x/..", "/..", "/exact;x", "/b//../api", "/%zz", "/api%20x", "/exac%74",
			"/.pomerium", "/.pomerium/x", "/.pomeriumx", "/x/../.pomerium/", "/ping", "/pings", "/healthz", "/.well-known/pomerium", "/.well-known/x",
		} {
			want, status := s.chosen(host, path)
			end := table.find(host, path)
			got := "none"
			switch {
			case !strings.HasSuffix(end.why, "404") && end.route == nil:
				got = "unchecked"
			case end.route != nil:
				got = end.route.Name
			}
			if got != want {
				t.Errorf("%s%s: got %s, Envoy's answer was %d and its route %s", host, path, got, status, want)
			}
		}
	}
}

// chosen is the route that Envoy chooses for a request with this very target,
// "none", or "unchecked" where it asks nobody.
func (s *system) chosen(host, target string) (route string, status int) {
	s.t.Helper()
	settings := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	settings.ServerName = "app.corp.localhost"
	c, err := tls.Dial("tcp", s.addr, settings)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", target, host); err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = resp.Body.Close()
	id := resp.Header.Get("X-Request-Id")
	for line := range strings.Lines(s.log.String()) {
		if check, err := authz.ParseCheck([]byte(line)); err == nil && id != "" && check.RequestID == id {
			if check.Route == "" {
				return "none", resp.StatusCode
			}
			return check.Route, resp.StatusCode
		}
	}
	return "unchecked", resp.StatusCode
}
