package xds

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPreflight shows which requests pass without being checked, and what of
// them arrives.
func TestPreflight(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(`
set_response_headers: {X-Route: "100%"}
routes:
- from: https://cors.localhost
  to: http://UPSTREAM
  prefix: /api
  prefix_rewrite: /v1
  cors_allow_preflight: true
  allow_any_authenticated_user: true
  pass_identity_headers: true
  set_request_headers: {X-Secret: "upstream's"}
- from: https://deny.localhost
  to: http://UPSTREAM
  cors_allow_preflight: true
  policy: {deny: {or: [{domain: {is: evil.example}}]}, allow: {or: [{authenticated_user: true}]}}
- {from: https://plain.localhost, to: http://UPSTREAM, allow_any_authenticated_user: true}
`)
	full := http.Header{
		"Origin": {"https://a.localhost"}, "Access-Control-Request-Method": {"PUT"},
		"Cookie": {"_pomerium=evil; other=evil"}, "Authorization": {"Pomerium evil"}, "X-Pomerium-Authorization": {"evil"},
		"X-Pomerium-Jwt-Assertion": {"evil"}, "X-Pomerium-Jwt-Assertion-For": {"evil"},
	}
	without := func(names ...string) http.Header {
		h := full.Clone()
		for _, name := range names {
			h.Del(name)
		}
		return h
	}
	empty := full.Clone()
	empty["Origin"] = []string{""}
	for _, test := range []struct {
		name, method, url string
		header            http.Header
		checked           bool
	}{
		{"a preflight passes", "OPTIONS", "https://cors.localhost/api/x", full, false},
		{"without Origin it is a request like any other", "OPTIONS", "https://cors.localhost/api/x", without("Origin"), true},
		{"without a method it is a request like any other", "OPTIONS", "https://cors.localhost/api/x", without("Access-Control-Request-Method"), true},
		{"an empty Origin is none", "OPTIONS", "https://cors.localhost/api/x", empty, true},
		{"GET is no preflight", "GET", "https://cors.localhost/api/x", full, true},
		{"the path must match", "OPTIONS", "https://cors.localhost/other", full, true},
		{"the normalised path must match", "OPTIONS", "https://cors.localhost/api/../other", full, true},
		{"a policy that can deny is asked", "OPTIONS", "https://deny.localhost/", full, true},
		{"a route without the key is asked", "OPTIONS", "https://plain.localhost/", full, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := s.authz.count()
			got := s.get(s.client(false), test.method, test.url, test.header)
			if checked := s.authz.count() > before; checked != test.checked {
				t.Fatalf("authz was asked: %v, answer %d", checked, got.Status)
			}
			if test.checked {
				return
			}
			if got.Status != 200 || got.Path != "/v1/x" || got.Response.Get("X-Route") != "100%" || strings.Contains(fmt.Sprint(got.Header), "evil") || got.Header.Get("X-Secret") != "" {
				t.Errorf("%d %s, response %v, the upstream got %v", got.Status, got.Path, got.Response, got.Header)
			}
		})
	}
}

// TestRouteSettings shows what the settings of a route do to requests.
func TestRouteSettings(t *testing.T) {
	s := newStack(t, ServerConfig{})
	upstream := strings.TrimPrefix(s.upstream.URL, "http://")
	s.apply(`
set_response_headers: {X-Global: yes}
routes:
- from: https://a.localhost
  to: http://UPSTREAM
  allow_public_unauthenticated_access: true
  set_request_headers: {X-Set: "50%% %REQ(host)%"}
  remove_request_headers: [x-gone]
  set_response_headers: {X-Envoy-Told: no, Content-Type: text/x-test}
- {from: https://b.localhost, to: http://UPSTREAM, preserve_host_header: true, allow_public_unauthenticated_access: true}
- {from: https://c.localhost, to: http://UPSTREAM, remove_request_headers: [X-Forwarded-Host], allow_public_unauthenticated_access: true}
- {from: https://d.localhost, to: http://UPSTREAM, prefix: /api, prefix_rewrite: /, allow_public_unauthenticated_access: true}
- {from: https://e.localhost, to: http://UPSTREAM/base, allow_public_unauthenticated_access: true}
- {from: https://f.localhost, to: http://UPSTREAM, path: /one, prefix_rewrite: /two, allow_public_unauthenticated_access: true}
`)
	client := s.client(true)
	get := func(url string) seen {
		t.Helper()
		got := s.get(client, "GET", url, http.Header{"X-Gone": {"x"}, "X-Set": {"client", "client"}, "Server": {"x"}})
		if got.Status != 200 {
			t.Fatalf("%s: %d %s", url, got.Status, got.Path)
		}
		return got
	}
	a := get("https://a.localhost/x?q=%2F")
	if fmt.Sprint(a.Header["X-Set"], a.Header["X-Gone"]) != "[50%% %REQ(host)%] []" {
		t.Errorf("request headers %v", a.Header)
	}
	if a.Response.Get("Content-Type") != "text/x-test" || a.Response.Get("X-Global") != "yes" || a.Response.Get("Server") != "countersign" {
		t.Errorf("response headers %v", a.Response)
	}
	if a.Host != upstream || a.Header.Get("X-Forwarded-Host") != "a.localhost" || a.Path != "/x?q=%2F" {
		t.Errorf("host %s, forwarded %q, path %s", a.Host, a.Header["X-Forwarded-Host"], a.Path)
	}
	if b := get("https://b.localhost/"); b.Host != "b.localhost" || b.Header.Get("X-Forwarded-Host") != "" {
		t.Errorf("preserve_host_header: %s %v", b.Host, b.Header)
	}
	if c := get("https://c.localhost/"); c.Header.Get("X-Forwarded-Host") != "" {
		t.Errorf("x-forwarded-host was not removed: %v", c.Header)
	}
	for url, want := range map[string]string{
		"https://d.localhost/api":       "/",
		"https://d.localhost/api/x?y=/": "/x?y=/",
		"https://d.localhost/api//x":    "/x",
		"https://d.localhost/apix":      "/x",
		"https://e.localhost/":          "/base/",
		"https://e.localhost/x":         "/base/x",
		"https://f.localhost/one?x":     "/two?x",
	} {
		got := get(url)
		if got.Path != want {
			t.Errorf("%s became %s, want %s", url, got.Path, want)
		}
		if got.Header.Get("X-Envoy-Original-Path") != "" {
			t.Errorf("%s: %v", url, got.Header)
		}
	}
}

// TestDeniedKeepsResponseHeaders shows that what set_response_headers asks for
// is also on answers that no upstream gave.
func TestDeniedKeepsResponseHeaders(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(`
set_response_headers: {X-Frame-Options: DENY}
routes:
- {from: https://dead.localhost, to: 'http://127.0.0.1:1', allow_public_unauthenticated_access: true}
`)
	got := s.get(s.client(true), "GET", "https://dead.localhost/", nil)
	if got.Status != 503 || got.Response.Get("X-Frame-Options") != "DENY" || got.Response.Get("Retry-After") != "1" {
		t.Errorf("%d %v", got.Status, got.Response)
	}
	if strings.Contains(got.Path, "127.0.0.1") || strings.Contains(got.Path, "connect error") || got.Path == "" {
		t.Errorf("told to a stranger: %q", got.Path)
	}
}

// TestWebsockets shows that an upgrade passes where it is allowed, and stays
// open with nothing said.
func TestWebsockets(t *testing.T) {
	s := newStack(t, ServerConfig{})
	hijacker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"+r.Header.Get("X-Pomerium-Jwt-Assertion")+"\n")
		_, _ = io.Copy(c, buffered)
	}))
	t.Cleanup(hijacker.Close)
	s.apply(`
default_upstream_timeout: 100ms
routes:
- {from: https://ws.localhost, to: ` + hijacker.URL + `, allow_websockets: true, allow_any_authenticated_user: true, pass_identity_headers: true}
- {from: https://no.localhost, to: ` + hijacker.URL + `, allow_any_authenticated_user: true}
`)
	upgrade := "Connection: Upgrade, X-Pomerium-Jwt-Assertion\r\nUpgrade: websocket\r\nX-Pomerium-Jwt-Assertion: evil\r\n\r\n"
	if status, _, _ := s.raw("no.localhost", "GET / HTTP/1.1\r\nHost: no.localhost\r\n"+upgrade); status != 403 {
		t.Errorf("an upgrade nobody allowed: %d", status)
	}
	c, err := tls.Dial("tcp", s.address(), &tls.Config{RootCAs: s.ca.pool, ServerName: "ws.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: ws.localhost\r\n"+upgrade); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %v", res, err)
	}
	defer func() { _ = res.Body.Close() }()
	if line, err := r.ReadString('\n'); line != "ours\n" {
		t.Fatalf("the upstream got the assertion %q %v", line, err)
	}
	// Longer than the upstream timeout of other routes.
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; {
		if _, err := io.WriteString(c, "echo\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := r.ReadString('\n'); line != "echo\n" {
			t.Fatalf("got %q %v", line, err)
		}
	}
}

// TestUpstreamTLS shows that an https upstream is believed only for its name.
func TestUpstreamTLS(t *testing.T) {
	s := newStack(t, ServerConfig{})
	good := s.tlsUpstream("up.localhost")
	wrong := s.tlsUpstream("other.localhost")
	writeFile(t, filepath.Join(s.dir, "ca.pem"), string(s.ca.pem))
	s.apply(fmt.Sprintf(`
routes:
- {from: https://good.localhost, to: 'https://up.localhost:%[1]s', tls_custom_ca_file: ca.pem, allow_public_unauthenticated_access: true}
- {from: https://wrong.localhost, to: 'https://up.localhost:%[2]s', tls_custom_ca_file: ca.pem, allow_public_unauthenticated_access: true}
- {from: https://roots.localhost, to: 'https://up.localhost:%[1]s', allow_public_unauthenticated_access: true}
- {from: https://skip.localhost, to: 'https://up.localhost:%[2]s', tls_skip_verify: true, allow_public_unauthenticated_access: true}
- {from: https://sockets.localhost, to: 'https://up.localhost:%[1]s', allow_websockets: true, tls_custom_ca_file: ca.pem, allow_public_unauthenticated_access: true}
- {from: https://ip.localhost, to: 'https://127.0.0.1:%[1]s', tls_custom_ca_file: ca.pem, allow_public_unauthenticated_access: true}
- from: https://two.localhost
  to: ['https://up.localhost:%[1]s', 'https://other.localhost:%[2]s']
  tls_custom_ca_file: ca.pem
  allow_public_unauthenticated_access: true
`, good, wrong))
	for host, want := range map[string]string{
		"good": "200 HTTP/2.0", "wrong": "503", "roots": "503", "skip": "200 HTTP/2.0", "sockets": "200 HTTP/1.1", "ip": "503",
	} {
		got := s.get(s.client(true), "GET", "https://"+host+".localhost/", nil)
		if result := strings.TrimSpace(fmt.Sprint(got.Status, " ", got.Response.Get("X-Proto"))); result != want {
			t.Errorf("%s: %s %s, want %s", host, result, got.Path, want)
		}
	}
	hosts := map[string]bool{}
	for range 8 {
		got := s.get(s.client(true), "GET", "https://two.localhost/", nil)
		if got.Status != 200 {
			t.Fatalf("two upstreams: %d %s", got.Status, got.Path)
		}
		hosts[got.Host] = true
	}
	if len(hosts) != 2 {
		t.Errorf("asked only %v", hosts)
	}
}

// tlsUpstream starts an upstream with a certificate for host and returns its port.
func (s *stack) tlsUpstream(host string) (port string) {
	c := s.ca.issue(s.t, host, host)
	pair, err := tls.X509KeyPair(c.Chain, c.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		echo("tls").ServeHTTP(w, r)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.EnableHTTP2 = true
	server.StartTLS()
	s.t.Cleanup(server.Close)
	return server.URL[strings.LastIndexByte(server.URL, ':')+1:]
}

// TestRedirect shows the listener that sends plain requests to https.
func TestRedirect(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/x?y=1", s.redirect), nil)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"app.localhost":      fmt.Sprintf("https://app.localhost:%d/x?y=1", s.port),
		"app.localhost:8080": fmt.Sprintf("https://app.localhost:%d/x?y=1", s.port),
	} {
		req.Host = host
		eventually(t, "the redirect listener answers", func() bool {
			res, err := client.Do(req)
			if err != nil {
				return false
			}
			_ = res.Body.Close()
			if res.StatusCode != 301 || res.Header.Get("Location") != want {
				t.Errorf("%d to %s, want %s", res.StatusCode, res.Header.Get("Location"), want)
			}
			return true
		})
	}
}
