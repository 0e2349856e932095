package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// TestWithoutSession shows what each kind of client is told that has not signed
// in. Only what a person looks at is redirected.
func TestWithoutSession(t *testing.T) {
	w := sharedWorld.get(t)
	const pageAccept = "text/html,application/xhtml+xml,*/*;q=0.8"
	tests := []struct {
		name, method string
		headers      []string
		status       int
		contentType  string
	}{
		{"Chrome opens a page", "GET", []string{"Accept", pageAccept, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 302, ""},
		{"Chrome opens a frame", "GET", []string{"Accept", pageAccept, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 302, ""},
		{"an old browser opens a page", "GET", []string{"Accept", pageAccept}, 302, ""},
		{"HEAD of a page", "HEAD", []string{"Accept", "text/html"}, 302, ""},
		{"curl", "GET", []string{"Accept", "*/*"}, 302, ""},
		{"fetch across origins", "GET", []string{"Accept", "*/*", "Sec-Fetch-Mode", "cors", "Origin", "https://elsewhere.example"}, 401, "application/json"},
		{"fetch at home", "GET", []string{"Accept", "*/*", "Sec-Fetch-Mode", "same-origin"}, 401, "application/json"},
		{"fetch that wants a page", "GET", []string{"Accept", "text/html", "Sec-Fetch-Mode", "cors"}, 401, "text/html; charset=utf-8"},
		{"an image", "GET", []string{"Accept", "image/*,*/*", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"}, 401, "application/json"},
		{"jQuery", "GET", []string{"Accept", "text/html, */*; q=0.01", "X-Requested-With", "XMLHttpRequest"}, 401, "text/html; charset=utf-8"},
		{"EventSource", "GET", []string{"Accept", "text/event-stream", "Sec-Fetch-Mode", "cors"}, 401, "application/json"},
		{"an API client", "GET", []string{"Accept", "application/json"}, 401, "application/json"},
		{"an API client that sends", "POST", []string{"Accept", "application/json"}, 401, "application/json"},
		{"a client that wants text", "GET", []string{"Accept", "text/plain"}, 401, "text/plain; charset=utf-8"},
		{"a form that is sent", "POST", []string{"Accept", pageAccept, "Sec-Fetch-Mode", "navigate"}, 401, "text/html; charset=utf-8"},
		{"gRPC", "POST", []string{"Content-Type", "application/grpc", "Te", "trailers"}, 200, "application/grpc"},
		{"a bad token", "GET", []string{"Accept", pageAccept, "Authorization", "Bearer Pomerium-nonsense"}, 401, "text/html; charset=utf-8"},
		{"OPTIONS", "OPTIONS", []string{"Accept", "*/*"}, 401, "application/json"},
		{"OPTIONS of another origin without a method", "OPTIONS", []string{"Origin", "https://elsewhere.example"}, 401, "application/json"},
		{"OPTIONS with a method and no origin", "OPTIONS", []string{"Access-Control-Request-Method", "PUT"}, 401, "application/json"},
		{"a preflight that nobody allowed", "OPTIONS", []string{"Origin", "https://elsewhere.example", "Access-Control-Request-Method", "PUT"}, 401, "application/json"},
		{"a request that says it has a preflight", "GET", []string{"Origin", "https://elsewhere.example", "Access-Control-Request-Method", "PUT", "Sec-Fetch-Mode", "cors"}, 401, "application/json"},
	}
	app, err := w.upstream("app")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, c := range []*agent{w.client(), w.client1()} {
				a := c.send(t, request(t, test.method, w.url("app", "/nobody?x=1"), test.headers...))
				if a.StatusCode != test.status || a.Header.Get("Content-Type") != test.contentType {
					t.Fatalf("%s, %s, want %d, %s: %s", a.Status, a.Header.Get("Content-Type"), test.status, test.contentType, a.Body)
				}
				at := a.Header.Get("Location")
				if (test.status == 302) != strings.HasPrefix(at, w.authenticateURL("/.pomerium/sign_in?")) {
					t.Errorf("redirected to %q", at)
				}
				if challenge := a.Header.Get("Www-Authenticate"); (test.status == 302) != (challenge == "") {
					t.Errorf("challenge %q", challenge)
				}
				if scripted := test.contentType == "application/json"; scripted && len(a.Cookies()) > 0 {
					t.Errorf("a script is given cookies: %v", a.Cookies())
				}
				if test.name == "gRPC" && a.Header.Get("Grpc-Status") != "16" {
					t.Errorf("grpc-status %q", a.Header.Get("Grpc-Status"))
				}
				if test.name == "a form that is sent" && !strings.Contains(a.Body, w.authenticateURL("/.pomerium/sign_in")) {
					t.Errorf("the page has no link to the sign-in: %s", a.Body)
				}
				if line := w.decision(t, a.Header.Get("X-Request-Id")); line["outcome"] != "sign-in" {
					t.Errorf("the log says %v", line)
				}
			}
		})
	}
	if got := app.requests("/nobody"); len(got) != 0 {
		t.Errorf("reached the upstream: %+v", got)
	}
}

// TestPreflight shows which preflights pass, and that nothing else does in
// their place.
func TestPreflight(t *testing.T) {
	w := sharedWorld.get(t)
	const origin, method = "Origin", "Access-Control-Request-Method"
	preflight := []string{origin, "https://elsewhere.example", method, "PUT"}
	tests := []struct {
		name, host, path, method string
		headers                  []string
		status                   int
	}{
		{"allowed", "cors", "/x", "OPTIONS", preflight, 200},
		{"not allowed", "app", "/x", "OPTIONS", preflight, 401},
		{"allowed but without an origin", "cors", "/x", "OPTIONS", preflight[2:], 401},
		{"allowed but without a method", "cors", "/x", "OPTIONS", preflight[:2], 401},
		{"allowed but with an empty origin", "cors", "/x", "OPTIONS", []string{origin, "", method, "PUT"}, 401},
		{"allowed but with an empty method", "cors", "/x", "OPTIONS", []string{origin, "https://elsewhere.example", method, ""}, 401},
		{"no preflight", "cors", "/x", "GET", preflight, 401},
		{"no preflight either", "cors", "/x", "PUT", preflight, 401},
		{"allowed, where a deny rule does not apply", "corsdeny", "/x", "OPTIONS", preflight, 200},
		{"denied by a rule", "corsdeny", "/internal/x", "OPTIONS", preflight, 403},
		{"denied by a rule, in another spelling", "corsdeny", "/x/../internal/%78", "OPTIONS", preflight, 403},
		{"no preflight where a deny rule is", "corsdeny", "/x", "GET", preflight, 401},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, c := range []*agent{w.client(), w.client1()} {
				r := request(t, test.method, w.url(test.host, test.path), append([]string{"Sec-Fetch-Mode", "cors"}, test.headers...)...)
				a := c.send(t, r)
				if a.StatusCode != test.status {
					t.Fatalf("%s, want %d: %s", a.Status, test.status, a.Body)
				}
				if test.status == http.StatusOK {
					if got := a.echo(t); got.Method != "OPTIONS" || len(got.values(headerAssertion)) != 0 {
						t.Errorf("the upstream got %+v", got)
					}
				}
			}
		})
	}
	// Whoever is signed in sends an OPTIONS that is no preflight like any request.
	got := w.session(t, "ana", w.url("app", "/")).send(t, request(t, "OPTIONS", w.url("app", "/x"), "Accept", "*/*")).echo(t)
	if got.Method != "OPTIONS" || got.value(headerAssertion) == "" {
		t.Errorf("the upstream got %+v", got)
	}
}

// TestNoSuchRoute: hosts and paths that nobody serves.
func TestNoSuchRoute(t *testing.T) {
	w := sharedWorld.get(t)
	for _, host := range []string{"nosuch", "paths"} {
		a := w.client1().send(t, request(t, "GET", w.url("app", "/"), "Accept", "application/json"))
		if a.StatusCode != http.StatusUnauthorized {
			t.Fatalf("%s", a.Status)
		}
		a = w.raw(t, "app", w.head("GET", host, "/nothing", "Accept: application/json", "Connection: close"))
		if a.StatusCode != http.StatusNotFound || !strings.Contains(a.Body, "no-such-route") || !strings.Contains(a.Body, a.Header.Get("X-Request-Id")) {
			t.Errorf("%s: %s: %s", host, a.Status, a.Body)
		}
	}
}

// TestWebSocket: an upgrade is authorised like any request, and then carries
// messages.
func TestWebSocket(t *testing.T) {
	w := sharedWorld.get(t)
	if a := w.raw(t, "app", w.head("GET", "app", "/ws", upgrade()...)); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a session: %s, want 401", a.Status)
	}
	url := w.url("app", "/")
	socket := w.dialWebSocket(t, "app", w.session(t, "ana", url).cookie(t, url, "_pomerium"))
	socket.say(t, "one")
	socket.say(t, strings.Repeat("long ", 1000))
}
