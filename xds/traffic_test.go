package xds

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const everyKind = `
authenticate_service_url: https://authenticate.localhost
jwt_claims_headers: {X-Email: email}
routes:
- from: https://app.localhost
  to: http://UPSTREAM
  pass_identity_headers: true
  cors_allow_preflight: true
  allow_any_authenticated_user: true
- from: https://h2.localhost
  to: h2c://UPSTREAM
  pass_identity_headers: true
  allow_any_authenticated_user: true
- from: https://public.localhost
  to: http://UPSTREAM
  allow_public_unauthenticated_access: true
`

// TestNoClientIdentityReachesAnUpstream sends every spelling of our headers on
// every kind of route.
func TestNoClientIdentityReachesAnUpstream(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	preflight := http.Header{"Origin": {"https://x.localhost"}, "Access-Control-Request-Method": {"PUT"}}
	kinds := []struct {
		name, method, url string
		extra             http.Header
		by                string
		want              string // the assertion that arrives
	}{
		{"protected", "GET", "https://app.localhost/a", nil, "upstream", "[ours]"},
		{"protected, HTTP/2 behind", "GET", "https://h2.localhost/a", nil, "upstream", "[ours]"},
		{"public, identity not passed", "GET", "https://public.localhost/a", nil, "upstream", "[]"},
		{"preflight", "OPTIONS", "https://app.localhost/a", preflight, "upstream", "[]"},
		{"internal", "GET", "https://app.localhost/.pomerium/", nil, "authn", "[]"},
		{"authenticate", "GET", "https://authenticate.localhost/anything", nil, "authn", "[]"},
	}
	attacks := []struct {
		name   string
		header http.Header
	}{
		{"twice", http.Header{"X-Pomerium-Jwt-Assertion": {"evil", "evil2"}, "X-Pomerium-Jwt-Assertion-For": {"evil", "evil2"}}},
		{"other case", http.Header{"x-PoMeRiUm-JWT-assertion": {"evil"}, "X-POMERIUM-CLAIM-EMAIL": {"evil"}}},
		{"dots", http.Header{"X.Pomerium.Jwt.Assertion": {"evil"}, "x-pomerium.claim-email": {"evil"}, "X.Email": {"evil"}}},
		{"a claim header", http.Header{"X-Email": {"evil", "evil"}, "X-Pomerium-Claim-Foo": {"evil"}}},
		{"our own and Envoy's", http.Header{"X-Countersign-Keep-X-Pomerium-Jwt-Assertion": {"evil"}, "X-Envoy-Original-Path": {"/evil"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"1"}}},
		{"claims of a proxy", http.Header{"X-Forwarded-Host": {"evil"}, "Forwarded": {"host=evil"}, "X-Real-Ip": {"evil"}, "X-Original-Url": {"/evil"}, "X-Request-Id": {"evil"}, "X-Forwarded-Proto": {"evil"}}},
	}
	for _, h2 := range []bool{false, true} {
		client := s.client(h2)
		for _, kind := range kinds {
			for _, attack := range attacks {
				t.Run(fmt.Sprintf("%s/%s/h2=%v", kind.name, attack.name, h2), func(t *testing.T) {
					header := attack.header.Clone()
					for name, values := range kind.extra {
						header[name] = values
					}
					got := s.get(client, kind.method, kind.url, header)
					if got.Status != 200 || got.By != kind.by {
						t.Fatalf("answered %d by %q: %s", got.Status, got.By, got.Path)
					}
					for name, values := range got.Header {
						if strings.Contains(strings.Join(values, ","), "evil") || strings.HasPrefix(name, "X-Envoy") || strings.HasPrefix(name, "X-Countersign") {
							t.Errorf("%s: %q arrived", name, values)
						}
					}
					if assertion := fmt.Sprint(got.Header["X-Pomerium-Jwt-Assertion"]); assertion != kind.want {
						t.Errorf("assertion %s, want %s", assertion, kind.want)
					}
					if got.Response.Get("X-Envoy-Told") != "" || got.Response.Get("X-Request-Id") == "" || got.Header.Get("X-Forwarded-Proto") != "https" {
						t.Errorf("response %v, request %v", got.Response, got.Header)
					}
				})
			}
		}
	}
}

// TestWhatAuthorizationSees shows that the three headers that it reads arrive
// once, nothing like them beside, and every other one as the client sent it.
func TestWhatAuthorizationSees(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	for _, h2 := range []bool{false, true} {
		got := s.get(s.client(h2), "GET", "https://app.localhost/a?b=c", http.Header{
			"X-Pomerium-Jwt-Assertion":     {"first", "second"},
			"X-Pomerium-Jwt-Assertion-For": {"for", "other"},
			"X-Pomerium-Authorization":     {"token", "other"},
			"X-Pomerium-Claim-Email":       {"evil"},
			"Cookie":                       {"a=1", "b=2"},
			"Authorization":                {"Bearer x"},
			"X-Twice":                      {"1", "2"},
			"Accept-Language":              {"en"},
			"X-Request-Id":                 {"mine"},
		})
		saw := s.authz.saw()
		for name, want := range map[string]string{
			headerAssertion: "[first]", headerOriginal: "[for]", headerAuthorization: "[token]", "x-pomerium-claim-email": "[]",
			"authorization": "[Bearer x]", "x-twice": "[1 2]", "accept-language": "[]", ":path": "[/a?b=c]", "x-forwarded-proto": "[https]",
		} {
			if fmt.Sprint(saw[name]) != want {
				t.Errorf("%s: authorization saw %q, want %s", name, saw[name], want)
			}
		}
		if cookies := strings.Join(saw["cookie"], "; "); cookies != "a=1; b=2" {
			t.Errorf("cookies %q", cookies)
		}
		id := saw["x-request-id"]
		if len(id) != 1 || id[0] == "mine" || id[0] != got.Response.Get("X-Request-Id") || id[0] != got.Header.Get("X-Request-Id") {
			t.Errorf("request id %q, response %q, upstream %q", id, got.Response["X-Request-Id"], got.Header["X-Request-Id"])
		}
	}
}

// TestInsecure shows a listener behind another TLS terminator.
func TestInsecure(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply("insecure_server: true\n" + everyKind)
	got := s.get(s.client(false), "GET", "http://app.localhost/a", http.Header{"X-Forwarded-Proto": {"http"}, "X-Pomerium-Claim-X": {"evil"}})
	if got.Status != 200 || got.Header.Get("X-Forwarded-Proto") != "https" || got.Header.Get("X-Pomerium-Claim-X") != "" || got.Header.Get("X-Pomerium-Jwt-Assertion") != "ours" {
		t.Errorf("%d %v", got.Status, got.Header)
	}
	if saw := s.authz.saw(); fmt.Sprint(saw["x-forwarded-proto"], saw[":scheme"]) != "[https] [https]" {
		t.Errorf("authorization saw %v", saw)
	}
}
