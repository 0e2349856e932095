package xds

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// raw sends bytes that no client library would and returns the answer.
func (s *stack) raw(serverName, request string) (int, http.Header, string) {
	s.t.Helper()
	c, err := tls.Dial("tcp", s.address(), &tls.Config{RootCAs: s.ca.pool, ServerName: serverName})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return exchange(s.t, c, request)
}

func exchange(t testing.TB, c net.Conn, request string) (int, http.Header, string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.80q: %v", request, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(body)
}

func request(target, host string, lines ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n" + strings.Join(append(lines, "\r\n"), "\r\n")
}

// TestHopByHopHeaders shows that a client cannot name a header of ours as one
// that proxies drop.
func TestHopByHopHeaders(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	for _, connection := range []string{
		"x-pomerium-jwt-assertion", "close, X-Pomerium-Jwt-Assertion", "keep-alive, x-pomerium-jwt-assertion, te", "cookie, authorization, x-request-id",
	} {
		status, _, body := s.raw("app.localhost", "GET /a HTTP/1.1\r\nHost: app.localhost\r\nConnection: "+connection+"\r\nX-Pomerium-Jwt-Assertion: evil\r\n\r\n")
		if status == 400 {
			continue
		}
		if status != 200 || !strings.Contains(body, `"X-Pomerium-Jwt-Assertion":["ours"]`) || strings.Contains(body, "evil") {
			t.Errorf("Connection: %s: %d %s", connection, status, body)
		}
	}
	for _, name := range []string{"X_Pomerium_Jwt_Assertion", "X-Pomerium_Claim-Foo", "x_email", "x_forwarded_host"} {
		if status, _, body := s.raw("app.localhost", request("/a", "app.localhost", name+": evil")); status != 400 {
			t.Errorf("%s: %d %s, want 400", name, status, body)
		}
	}
}

// TestTrailers shows that trailers are no way around the scrubbing of headers.
func TestTrailers(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	for _, url := range []string{"https://h2.localhost/", "https://app.localhost/", "https://public.localhost/"} {
		req, err := http.NewRequest("POST", url, struct{ io.Reader }{strings.NewReader("body")})
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Pomerium-Claim-Foo": {"evil"}, "X.pomerium.jwt": {"evil"}, "X-Fine": {"kept"}}
		got := s.do(s.client(true), req)
		if got.Status != 200 || strings.Contains(fmt.Sprint(got.Trailer, got.Header), "evil") {
			t.Errorf("%s: %d trailer %v", url, got.Status, got.Trailer)
		}
		if strings.Contains(url, "h2") && got.Trailer.Get("X-Fine") != "kept" {
			t.Errorf("%s: an innocent trailer was lost: %v", url, got.Trailer)
		}
	}
}

// TestPaths sends a corpus of odd paths: the path that was authorised, the
// route it was authorised for and what the upstream got always agree.
func TestPaths(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(`
routes:
- {from: https://p.localhost, to: http://UPSTREAM, prefix: /public/, name: public, allow_public_unauthenticated_access: true}
- {from: https://p.localhost, to: http://UPSTREAM, path: /exact, name: exact, allow_public_unauthenticated_access: true}
- {from: https://p.localhost, to: http://UPSTREAM, regex: '/r/[0-9]+', name: regex, allow_public_unauthenticated_access: true}
- {from: https://p.localhost, to: http://UPSTREAM, prefix: /admin, name: admin, allow_any_authenticated_user: true}
`)
	tests := []struct{ target, want string }{
		{"/public/x", "/public/x"},
		{"/public/../admin", "/admin"},
		{"/public/./x", "/public/x"},
		{"//public//x", "/public/x"},
		{"/public/%2e%2e/admin", "/admin"},
		{`/public/..\admin`, "/admin"},
		{"/public/%61", "/public/a"},
		{"/public/..%2fadmin", "400"},
		{"/public/..%5cadmin", "400"},
		{"/public/%00", "400"},
		{"/public/x#/admin", "400"},
		{"/admin%23x", "/admin%23x"},
		{"/public/..;/admin", "/admin"},
		{"/public/..;x=1/admin", "/admin"},
		{"/public;x/../admin", "/admin"},
		{"/public/x?next=/admin/../..", "/public/x?next=/admin/../.."},
		{"/exact", "/exact"},
		{"/exact?x=/public/", "/exact?x=/public/"},
		{"/exact/", "404"},
		{"/exact;x", "404"},
		{"/r/12", "/r/12"},
		{"/r/12/x", "404"},
		{"/x/r/12", "404"},
		{"/administrator", "/administrator"},
		{"/Public/x", "404"},
		{"/..", "404"},
		{"*", "400"},
		{"/%zz", "404"},
		{"http://p.localhost/public/x", "/public/x"},
		{"http://other.localhost/public/x", "404"},
		{"public/x", "400"},
	}
	for _, test := range tests {
		t.Run(test.target, func(t *testing.T) {
			status, _, body := s.raw("p.localhost", request(test.target, "p.localhost"))
			got := strconv.Itoa(status)
			if status == 200 {
				_, rest, _ := strings.Cut(body, `"Path":"`)
				got, _, _ = strings.Cut(rest, `"`)
				if checked := s.authz.saw()[":path"][0]; checked != got {
					t.Errorf("authz checked %s, the upstream got %s", checked, got)
				}
			}
			if got != test.want {
				t.Errorf("got %s (%s), want %s", got, body, test.want)
			}
		})
	}
}

// TestBounds shows what a client may not send.
func TestBounds(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	long := strings.Repeat("a", 130<<10)
	many := make([]string, 1001)
	for i := range many {
		many[i] = "A: b"
	}
	for _, test := range []struct {
		name, request string
		want          []int
	}{
		{"a long header", request("/", "app.localhost", "A: "+long), []int{431}},
		{"a long cookie", request("/", "app.localhost", "Cookie: "+long), []int{431}},
		{"a long path", request("/"+long, "app.localhost"), []int{431, 400, 414}},
		{"many headers", request("/", "app.localhost", many...), []int{431}},
		{"CONNECT", "CONNECT app.localhost:443 HTTP/1.1\r\nHost: app.localhost:443\r\n\r\n", []int{404, 403, 400}},
		{"two hosts", request("/", "app.localhost", "Host: public.localhost"), []int{400, 404}},
		{"two lengths", request("/", "app.localhost", "Content-Length: 1", "Content-Length: 2"), []int{400}},
		{"length and chunks", request("/", "app.localhost", "Content-Length: 1", "Transfer-Encoding: chunked"), []int{400}},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", []int{426}},
		{"an upgrade nobody allowed", "GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", []int{403}},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, _, body := s.raw("app.localhost", test.request)
			if !slices.Contains(test.want, status) {
				t.Errorf("got %d %.200s, want %v", status, body, test.want)
			}
		})
	}
}

// TestHosts shows which route a Host header leads to.
func TestHosts(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(`
authenticate_service_url: https://auth.example.com
routes:
- {from: 'https://*.special.example.com', to: http://UPSTREAM/special/, allow_public_unauthenticated_access: true}
- {from: 'https://*.example.com', to: http://UPSTREAM/wild/, allow_public_unauthenticated_access: true}
- {from: https://exact.example.com, to: http://UPSTREAM/exact/, prefix: /, allow_public_unauthenticated_access: true}
- {from: 'https://port.example.com:8443', to: http://UPSTREAM/port/, allow_public_unauthenticated_access: true}
- {from: https://default.example.com:443, to: http://UPSTREAM/default/, allow_public_unauthenticated_access: true}
`)
	for _, test := range []struct{ host, path, want string }{
		{"exact.example.com", "/x", "/exact/x"},
		{"EXACT.example.COM", "/x", "/exact/x"},
		{"exact.example.com:443", "/x", "/exact/x"},
		{"exact.example.com:1234", "/x", "/exact/x"},
		{"a.example.com", "/x", "/wild/x"},
		{"A.b.EXAMPLE.com:99", "/x", "/wild/x"},
		{"x.special.example.com", "/x", "/special/x"}, // first in file order
		{"port.example.com:8443", "/x", "/port/x"},
		{"port.example.com", "/x", "/wild/x"},
		{"default.example.com", "/x", "/default/x"},
		{"default.example.com:443", "/x", "/default/x"},
		{"example.com", "/x", "404"},
		{"a.example.com.evil.org", "/x", "404"},
		{"evil.org", "/x", "404"},
		{"evil.org", "/ping", "authn /ping"},
		{"evil.org", "/.pomerium/", "404"},
		{"exact.example.com", "/.pomerium/?x=1", "authn /.pomerium/?x=1"},
		{"exact.example.com", "/.pomerium", "authn /.pomerium"},
		{"exact.example.com", "/.well-known/pomerium/jwks.json", "authn /.well-known/pomerium/jwks.json"},
		{"exact.example.com", "/.pomeriumx", "/exact/.pomeriumx"},
		{"exact.example.com", "/pingpong", "/exact/pingpong"},
		{"a.example.com", "/healthz", "authn /healthz"},
		{"a.example.com", "/.pomerium/callback/", "authn /.pomerium/callback/"},
		{"auth.example.com", "/oauth2/callback?code=1", "authn /oauth2/callback?code=1"},
		{"auth.example.com", "/", "authn /"},
	} {
		t.Run(test.host+test.path, func(t *testing.T) {
			before := s.authz.count()
			status, _, body := s.raw("a.example.com", request(test.path, test.host))
			got := strconv.Itoa(status)
			if status == 200 {
				_, rest, _ := strings.Cut(body, `"Path":"`)
				got, _, _ = strings.Cut(rest, `"`)
				if strings.Contains(body, `"By":"authn"`) {
					got = "authn " + got
				}
			}
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			checked := s.authz.count() > before
			if internal := strings.HasPrefix(test.want, "authn"); checked == internal {
				t.Errorf("authz was asked: %v", checked)
			}
			if status == 404 && !strings.Contains(body, "says authz") {
				t.Errorf("404 from elsewhere: %s", body)
			}
		})
	}
}
