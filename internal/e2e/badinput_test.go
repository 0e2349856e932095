package e2e

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// healthy fails if the world no longer serves who it should.
func (w *world) healthy(t testing.TB) {
	t.Helper()
	for _, target := range []string{w.url("app", "/healthz"), w.url("public", "/")} {
		if status := w.client1().status(t, target); status != http.StatusOK {
			t.Errorf("%s is answered %d", target, status)
		}
	}
}

// untouched fails if a request whose target contains part has reached an
// upstream.
func (w *world) untouched(t testing.TB, upstream, part string) {
	t.Helper()
	u, err := w.upstream(upstream)
	if err != nil {
		t.Fatal(err)
	}
	if got := u.requests(part); len(got) != 0 {
		t.Errorf("reached the upstream: %+v", got)
	}
}

// refused reports whether a client was turned away for what it sent, or taken
// for nobody.
func refused(status int) bool { return status == http.StatusFound || status >= 400 && status < 500 }

// TestBadCredentials: whatever is sent as a credential, its sender is nobody.
func TestBadCredentials(t *testing.T) {
	w := sharedWorld.get(t)
	app := w.url("app", "/")
	session := w.session(t, "ana", app).cookie(t, app, "_pomerium")
	account := w.serviceAccount(t, "somebody")
	parts := strings.Split(session, ".")
	broken := map[string]string{
		"nothing":                "",
		"no base64":              "%%%!!!",
		"cut off":                session[:len(session)-5],
		"cut off at the front":   session[5:],
		"without its signature":  parts[0] + "." + parts[1] + ".",
		"no algorithm":           "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"another's claims":       parts[0] + "." + strings.Split(account, ".")[1] + "." + parts[2],
		"the end changed":        session[:len(session)-3] + map[bool]string{true: "BBA", false: "AAA"}[strings.HasSuffix(session, "AAA")],
		"with something behind":  session + ".x",
		"8 KB":                   strings.Repeat("a", 8<<10),
		"dots":                   strings.Repeat(".", 8<<10),
		"bytes that are no text": "\x80\xff\xfe",
		"an assertion":           w.assertion(t),
	}
	forms := map[string]func(token string) string{
		"cookie":                   func(s string) string { return "Cookie: _pomerium=" + s },
		"cookie in quotes":         func(s string) string { return `Cookie: _pomerium="` + s + `"` },
		"cookie that is not ended": func(s string) string { return `Cookie: _pomerium="` + s },
		"cookies of one name":      func(s string) string { return "Cookie: _pomerium=" + s + "; _pomerium=" + s + "x" },
		"own header":               func(s string) string { return "X-Pomerium-Authorization: " + s },
		"pomerium scheme":          func(s string) string { return "Authorization: Pomerium " + s },
		"bearer token":             func(s string) string { return "Authorization: Bearer Pomerium-" + s },
		"plain bearer token":       func(s string) string { return "Authorization: Bearer " + s },
	}
	for name, token := range broken {
		for form, line := range forms {
			for _, accept := range []string{"text/html", "application/json"} {
				a := w.raw(t, "app", w.head("GET", "app", "/bad-credential", line(token), "Accept: "+accept, "Connection: close"))
				if !refused(a.StatusCode) {
					t.Errorf("%s as %s: %s: %s", name, form, a.Status, a.Body)
				}
			}
		}
	}
	w.untouched(t, "app", "/bad-credential")
	w.healthy(t)
}

// assertion is one of ours, which is no credential.
func (w *world) assertion(t testing.TB) string {
	t.Helper()
	return w.session(t, "ana", w.url("app", "/")).fetch(t, w.url("app", "/")).echo(t).value(headerAssertion)
}

// TestTwoSessionCookies: of a good and a broken cookie the good one counts; of
// two good ones of different people neither does.
func TestTwoSessionCookies(t *testing.T) {
	w := sharedWorld.get(t)
	app := w.url("app", "/")
	ana := w.session(t, "ana", app).cookie(t, app, "_pomerium")
	ben := w.session(t, "ben", app).cookie(t, app, "_pomerium")
	for cookies, want := range map[string]int{
		"_pomerium=broken; _pomerium=" + ana:                          http.StatusOK,
		"_pomerium=" + ana + "; _pomerium=":                           http.StatusOK,
		"_pomerium=" + ana + "; _pomerium=" + ben:                     http.StatusUnauthorized,
		strings.Repeat("_pomerium="+ben+"; ", 9) + "_pomerium=" + ana: http.StatusUnauthorized,
		strings.Repeat("_pomerium=broken; ", 9) + "_pomerium=" + ana:  http.StatusOK,
	} {
		// Authorization and the internal pages agree on who it is.
		for _, path := range []string{"/two", "/.pomerium/user"} {
			a := w.raw(t, "app", w.head("GET", "app", path, "Cookie: "+cookies, "Accept: application/json", "Connection: close"))
			if a.StatusCode != want {
				t.Errorf("%s %.20q…: %s, want %d", path, cookies, a.Status, want)
			}
		}
	}
}

// TestTooMuch sends more than anybody has a use for, over both protocols: it is
// refused soon, and everything goes on.
func TestTooMuch(t *testing.T) {
	w := sharedWorld.get(t)
	megabyte := strings.Repeat("a", 1<<20)
	dots := strings.Repeat(".", 1<<20)
	crumbs := make([]string, 3000)
	for i := range crumbs {
		crumbs[i] = "Cookie: crumb=" + strings.Repeat("c", 300)
	}
	tests := []struct {
		name, host, target string
		lines              []string
	}{
		{"header", "app", "/too-much", []string{"X-Long: " + megabyte}},
		{"header on a public route", "public", "/too-much", []string{"X-Long: " + megabyte}},
		{"cookie", "app", "/too-much", []string{"Cookie: _pomerium=" + dots}},
		{"token of dots", "app", "/too-much", []string{"Authorization: Bearer Pomerium-" + dots}},
		{"own header of dots", "app", "/too-much", []string{"X-Pomerium-Authorization: " + dots}},
		{"assertion of dots", "public", "/too-much", []string{"X-Pomerium-Jwt-Assertion: " + dots}},
		{"original user of dots", "public", "/too-much", []string{"X-Pomerium-Jwt-Assertion-For: " + dots}},
		{"many cookies", "app", "/too-much", crumbs},
		{"path", "app", "/too-much/" + megabyte, nil},
		{"query", "app", "/too-much?" + megabyte, nil},
		{"internal query", "app", "/.pomerium/callback/?pomerium_redirect_uri=" + megabyte, nil},
	}
	var all sync.WaitGroup // Envoy lets each of these connections wait for a second
	for _, test := range tests {
		all.Go(func() {
			began := time.Now()
			a, err := w.tryRaw(test.host, w.head("GET", test.host, test.target, append(test.lines, "Accept: application/json")...))
			if err != nil || a.StatusCode < 400 || a.StatusCode > 499 {
				t.Errorf("%s: HTTP/1.1: %v, %v", test.name, a, err)
			}
			r := request(t, "GET", w.url(test.host, test.target), "Accept", "application/json")
			for _, line := range test.lines {
				name, value, _ := strings.Cut(line, ": ")
				r.Header[name] = append(r.Header[name], value)
			}
			// HTTP/2 may end the stream without an answer.
			if a, err := w.client().try(r); err == nil && (a.StatusCode < 400 || a.StatusCode > 499) {
				t.Errorf("%s: HTTP/2: %s", test.name, a.Status)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("%s: took %v", test.name, took)
			}
		})
	}
	all.Wait()
	for _, upstream := range []string{"app", "public"} {
		w.untouched(t, upstream, "/too-much")
	}
	w.healthy(t)
}

// TestLargeTokens sends tokens that pass Envoy's bounds.
func TestLargeTokens(t *testing.T) {
	w := sharedWorld.get(t)
	for _, token := range []string{strings.Repeat(".", 100<<10), strings.Repeat("eyJhbGciOiJFUzI1NiJ9.", 4<<10)} {
		for _, name := range []string{"Authorization: Bearer Pomerium-", "X-Pomerium-Authorization: ", "Cookie: _pomerium=", "Cookie: __Host-_pomerium_flow_x="} {
			a := w.raw(t, "app", w.head("GET", "app", "/large", name+token, "Accept: application/json", "Connection: close"))
			if a.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: %s, want 401", name, a.Status)
			}
		}
		for _, name := range []string{"X-Pomerium-Jwt-Assertion: ", "X-Pomerium-Jwt-Assertion-For: "} {
			a := w.raw(t, "public", w.head("GET", "public", "/large", name+token, "Connection: close"))
			if got := a.echo(t); len(got.values(headerOriginal)) != 0 {
				t.Errorf("%s was passed on", name)
			}
		}
	}
	w.untouched(t, "app", "/large")
	w.healthy(t)
}

// TestRedirectTargets: nothing that says where to go next leads away from our
// hosts.
func TestRedirectTargets(t *testing.T) {
	w := sharedWorld.get(t)
	ana := w.session(t, "ana", w.url("app", "/"))
	auth := func(path string) string { return w.authenticateURL(path) }
	app := func(path string) string { return w.url("app", path) }
	for _, target := range []string{
		"https://evil.example/", "//evil.example/", `/\evil.example/`, `\\evil.example`, "https:evil.example", "https:/evil.example", "https:///evil.example",
		"https://" + hostOf(app("/")) + "@evil.example/", "https://evil.example#" + hostOf(app("/")), "https://" + w.host("app") + ".evil.example/",
		"https://evil.example:8443/", "http://evil.example", "javascript:alert(1)", "data:text/html,evil", "https://app.demo.localhost\r\nLocation: https://evil.example/",
		"https://xn--pple-43d.example/", "https://аpp.demo.localhost/", "%2f%2fevil.example", "/%2f/evil.example", " https://evil.example", "\thttps://evil.example",
		"https://" + w.host("app") + ":1/", "https://nosuch.demo.localhost/", "file:///etc/passwd",
	} {
		q := url.QueryEscape(target)
		signed := "&pomerium_issued=1&pomerium_expiry=99999999999&pomerium_signature=" + strings.Repeat("A", 43)
		for _, link := range []string{
			auth("/.pomerium/sign_in?pomerium_redirect_uri=" + q), auth("/.pomerium/sign_in?pomerium_redirect_uri=" + q + signed),
			auth("/.pomerium/sign_out?pomerium_redirect_uri=" + q), app("/.pomerium/sign_out?pomerium_redirect_uri=" + q),
			app("/.pomerium/sign_out?pomerium_redirect_uri=" + q + signed), auth("/.pomerium/sign_out?pomerium_redirect_uri=" + q + signed),
			app("/.pomerium/callback/?pomerium_redirect_uri=" + q), app("/.pomerium/callback/?pomerium_session_encrypted=x&pomerium_redirect_uri=" + q + signed),
			auth("/oauth2/callback?code=x&state=" + q), auth("/oauth2/callback?error=access_denied&state=" + q),
			app("/.pomerium/api/v1/login?pomerium_redirect_uri=" + q),
		} {
			for _, method := range []string{"GET", "POST"} {
				a := ana.send(t, request(t, method, link, "Accept", "text/html", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "same-origin"))
				if a.StatusCode < 400 || a.StatusCode > 499 || a.Header.Get("Location") != "" || strings.Contains(a.Body, "evil") {
					t.Errorf("%s %s: %s to %q: %s", method, link, a.Status, a.Header.Get("Location"), a.Body)
				}
			}
		}
	}
	if status := ana.status(t, app("/")); status != http.StatusOK {
		t.Errorf("a link signed ana out: %d", status)
	}
}

// TestOddPaths: whatever a path looks like, the route that was authorised is the
// one that is reached.
func TestOddPaths(t *testing.T) {
	w := sharedWorld.get(t)
	odd := []string{
		"/public/../admin/odd", "/public/%2e%2e/admin/odd", "/public/..%2fadmin/odd", "/public/..%2Fadmin/odd", `/public/..\admin/odd`, "/public/..%5cadmin/odd",
		"/public/..%252fadmin/odd", "/public//../admin/odd", "//admin/odd", "///admin/odd", `/\admin/odd`, `\admin/odd`, "/./admin/odd", "/%61dmin/odd", "/admin%2fodd", "/admin;x=1/odd",
		"/;a/admin/odd", "/public/..;/admin/odd", "/public/..;x/admin/odd", "/public;/../admin/odd", "/public/;/../../admin/odd", "/admin/odd#x", "/admin/odd%23x", "/public/x#/../../admin/odd",
		"/admin/odd?x=/public/", "/admin/odd?/public/../public/", "/exact/../admin/odd", "/exact/..;/admin/odd", "/exact%2f..%2fadmin/odd", "/r/1/../../admin/odd", "/r/1%0a/admin/odd",
		"/public/%zz/odd", "/public/%/odd", "/public/%00/odd", "/public/\x80\xff/odd", "/public/*/odd", "*", "/*/admin/odd", "/admin/*/odd", "/public/" + strings.Repeat("../", 2000) + "admin/odd",
		"/public/" + strings.Repeat("a", 64<<10) + "/odd", "http://" + w.host("paths") + "/admin/odd", "https://" + hostOf(w.url("paths", "")) + "/admin/odd",
		"https://evil.example/public/odd", "http://evil.example/admin/odd", "public/odd", "", "/public/\x7f/odd", "/PUBLIC/../admin/odd", "/public/.%2e/admin/odd", "/public/%2e./admin/odd",
		"/public/%c0%ae%c0%ae/admin/odd", "/public/..%c0%afadmin/odd", "/public/%u002e%u002e/admin/odd", "/public/..%00/admin/odd", "/public/.../admin/odd",
	}
	for _, target := range odd {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			a, err := w.tryRaw("paths", w.head(method, "paths", target, "Accept: application/json", "Connection: close", "Content-Length: 0"))
			if err != nil {
				continue // it was not even answered
			}
			if a.StatusCode >= 500 {
				t.Errorf("%s %.100q: %s: %.300s", method, target, a.Status, a.Body)
			}
			if a.StatusCode == http.StatusOK && a.echo(t).Upstream != "open" {
				t.Errorf("%s %.100q reached %s", method, target, a.Body)
			}
		}
	}
	admin, err := w.upstream("admin")
	if err != nil {
		t.Fatal(err)
	}
	if got := admin.requests(""); len(got) != 0 {
		t.Errorf("nobody has signed in, and admin got %+v", got)
	}
	open, err := w.upstream("open")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range open.requests("odd") {
		// As an upstream may read it that decodes once, and takes \ for /.
		path, _, _ := strings.Cut(r.Target, "?")
		decoded, err := url.PathUnescape(path)
		if err != nil {
			decoded = path
		}
		if !strings.HasPrefix(path, "/public/") || slices.Contains(strings.FieldsFunc(decoded, func(r rune) bool { return r == '/' || r == '\\' }), "..") {
			t.Errorf("the open upstream got %q", r.Target)
		}
	}
	w.healthy(t)
}

// TestConnect: there is no tunnel to be had.
func TestConnect(t *testing.T) {
	w := sharedWorld.get(t)
	for _, target := range []string{w.host("app") + ":443", hostOf(w.url("app", "")), w.host("public") + ":443", hostOf(w.url("public", "")), "127.0.0.1:22", "evil.example:443", "/"} {
		a, err := w.tryRaw("app", "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n")
		if err == nil && (a.StatusCode < 400 || a.StatusCode > 499) {
			t.Errorf("CONNECT %s: %s", target, a.Status)
		}
		if a, err := w.client().try(request(t, "CONNECT", w.url("app", "/"), "Host", target)); err == nil && (a.StatusCode < 400 || a.StatusCode > 499) {
			t.Errorf("CONNECT %s over HTTP/2: %s", target, a.Status)
		}
	}
	w.healthy(t)
}

// TestSmuggling: what two parsers may read as different requests is refused.
func TestSmuggling(t *testing.T) {
	w := sharedWorld.get(t)
	smuggled := "GET /smuggled HTTP/1.1\r\nHost: " + hostOf(w.url("app", "")) + "\r\n\r\n"
	for name, lines := range map[string][]string{
		"two lengths":           {"Content-Length: 0", "Content-Length: 5"},
		"a length and chunks":   {"Content-Length: 5", "Transfer-Encoding: chunked"},
		"an odd encoding":       {"Transfer-Encoding: chunked, identity"},
		"an encoding in a tab":  {"Transfer-Encoding:\tchunked, x"},
		"two hosts":             {"Host: " + hostOf(w.url("public", ""))},
		"a space before colon":  {"Content-Length : 5"},
		"a folded line":         {"X-A: b\r\n X-Pomerium-Jwt-Assertion: evil"},
		"a name with a newline": {"X-A\n: b"},
		"a NUL":                 {"X-A: \x00"},
		"a bare CR":             {"X-A: b\rX-Pomerium-Jwt-Assertion: evil"},
	} {
		a, err := w.tryRaw("app", w.head("POST", "app", "/", lines...)+smuggled)
		// 501 is what RFC 9112, section 6.1, asks for where a coding is unknown.
		if err == nil && (a.StatusCode < 400 || a.StatusCode > 499) && a.StatusCode != http.StatusNotImplemented {
			t.Errorf("%s: %s", name, a.Status)
		}
	}
	w.untouched(t, "app", "/smuggled")
	w.healthy(t)
}

// TestInternals: nothing of Envoy's or Go's own pages is public.
func TestInternals(t *testing.T) {
	w := sharedWorld.get(t)
	for _, host := range []string{"app", "authenticate", "paths"} {
		for _, path := range []string{"/debug/pprof/", "/metrics", "/config_dump", "/stats", "/clusters", "/quitquitquit", "/sessions", "/service-accounts"} {
			if a := w.client().fetch(t, w.url(host, path)); a.StatusCode != http.StatusNotFound && a.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s%s: %s", host, path, a.Status)
			}
		}
	}
}
