package authn_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

const (
	loopbackURI = "http://127.0.0.1:5000/done"
	verifier    = "dBjftJeZ4CVP-mBcT-a-verifier-of-a-test-0123456789"
	client      = "backup script"

	grantDevice   = "urn:ietf:params:oauth:grant-type:device_code"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeIDToken   = "urn:ietf:params:oauth:token-type:id_token"
)

func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// object is the JSON object of an answer that nobody may keep.
func (p page) object(t testing.TB, status int) map[string]any {
	t.Helper()
	p.want(t, status)
	var object map[string]any
	if err := json.Unmarshal([]byte(p.body), &object); err != nil {
		t.Errorf("%s: %v: %s", p.Request.URL, err, p.body)
	}
	if got := p.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("%s: Cache-Control %q", p.Request.URL, got)
	}
	if got := p.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("%s: Content-Type %q", p.Request.URL, got)
	}
	return object
}

// refused looks at the error of an answer to a program.
func (p page) refused(t testing.TB, status int, code string) {
	t.Helper()
	got := p.object(t, status)
	if got["error"] != code || got["error_description"] == "" {
		t.Errorf("%s: got %v, want the error %s with a description", p.Request.URL, got, code)
	}
}

func text(t testing.TB, object map[string]any, name string) string {
	t.Helper()
	s, _ := object[name].(string)
	if s == "" {
		t.Fatalf("%v has no %s", object, name)
	}
	return s
}

// call sends a form to the authenticate host, as a program does.
func (w *world) call(path string, form url.Values, header ...string) page {
	w.t.Helper()
	return w.browser().post(auth+path, form, header...)
}

// accepts reports whether a route's host knows whose a credential is.
func (w *world) accepts(authorization string) bool {
	w.t.Helper()
	p := w.browser().get(app+"/.pomerium/user", "Authorization", authorization)
	if p.StatusCode != http.StatusOK && p.StatusCode != http.StatusUnauthorized {
		p.want(w.t, http.StatusOK)
	}
	return p.StatusCode == http.StatusOK
}

func (w *world) sessions() []*databroker.Session {
	w.t.Helper()
	sessions, err := w.store.Store.Sessions(context.Background(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	return sessions
}

var formField = regexp.MustCompile(`name="form" value="([^"]+)"`)

// consentForm is the form that a consent page holds.
func (p page) consentForm(t testing.TB, answer string) url.Values {
	t.Helper()
	m := formField.FindStringSubmatch(p.body)
	if m == nil {
		t.Fatalf("%s: no form:\n%s", p.Request.URL, p.body)
	}
	return url.Values{"form": {html.UnescapeString(m[1])}, "answer": {answer}}
}

// answer presses a button of a consent page, and returns where that leads.
func (b *browser) answer(asked page, answer string) page {
	b.w.t.Helper()
	b.stop = func(*url.URL) bool { return true }
	defer func() { b.stop = nil }()
	return b.post(auth+"/.pomerium/consent", asked.consentForm(b.w.t, answer), "Origin", auth)
}

func (p page) location(t testing.TB) *url.URL {
	t.Helper()
	p.want(t, http.StatusFound)
	return mustURL(t, p.Header.Get("Location"))
}

// byLink signs a program in by a link, up to the consent page.
func (b *browser) byLink() page {
	b.w.t.Helper()
	link := b.w.browser().get(app + "/.pomerium/api/v1/login?pomerium_redirect_uri=" + url.QueryEscape(loopbackURI+"?n=1"))
	link.want(b.w.t, http.StatusOK, auth+"/.pomerium/sign_in?")
	return b.get(link.body)
}

func authorization(change ...string) string {
	q := url.Values{
		"response_type": {"code"}, "client_id": {client}, "redirect_uri": {loopbackURI}, "state": {"a state"},
		"code_challenge": {challengeOf(verifier)}, "code_challenge_method": {"S256"},
	}
	for i := 0; i+1 < len(change); i += 2 {
		if q.Set(change[i], change[i+1]); change[i+1] == "" {
			q.Del(change[i])
		}
	}
	return auth + "/oauth2/authorize?" + q.Encode()
}

func redemption(code string, change ...string) url.Values {
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "client_id": {client}, "redirect_uri": {loopbackURI}, "code_verifier": {verifier}}
	for i := 0; i+1 < len(change); i += 2 {
		if form.Set(change[i], change[i+1]); change[i+1] == "" {
			form.Del(change[i])
		}
	}
	return form
}

// code is an authorization code that a person has just agreed to.
func (w *world) code() string {
	w.t.Helper()
	b := w.browser()
	return b.answer(b.get(authorization()), "allow").location(w.t).Query().Get("code")
}

// byCode signs a program in by an authorization code.
func (w *world) byCode() (access, refresh string) {
	w.t.Helper()
	got := w.call("/oauth2/token", redemption(w.code())).object(w.t, http.StatusOK)
	return text(w.t, got, "access_token"), text(w.t, got, "refresh_token")
}

func TestProgrammaticSignIn(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	asked := b.byLink()
	asked.want(t, http.StatusOK, "Let a program act as you?", "http://127.0.0.1:5000", "alice@example.com")
	if csp := asked.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' http://127.0.0.1:5000;") {
		t.Errorf("policy %q", csp)
	}
	for _, at := range []string{app, auth} {
		for _, c := range b.Jar.Cookies(mustURL(t, at)) {
			if !strings.Contains(c.Name, "_signin_") {
				t.Errorf("%s: the cookie %s was set", at, c.Name)
			}
		}
	}
	to := b.answer(asked, "allow").location(t)
	c, err := w.keys.OpenCredential(to.Query().Get("pomerium_jwt"), w.now())
	if err != nil || c.Kind != signin.KindSession || to.Host != "127.0.0.1:5000" || to.Query().Get("n") != "1" {
		t.Fatalf("got %s, %+v, %v", to.Redacted(), c, err)
	}
	token, refresh := to.Query().Get("pomerium_jwt"), to.Query().Get("pomerium_refresh_token")
	w.browser().get(app+"/.pomerium/user", "Authorization", "Pomerium "+token).want(t, http.StatusOK, "user-alice")
	for _, secret := range append(w.idp.Secrets(), token, refresh) {
		if strings.Contains(w.log.String(), secret) {
			t.Error("the log holds a token")
		}
	}
	s := w.sessions()[0]
	if end := w.now().Add(w.cfg.Cookie.Expire); !c.ExpiresAt.After(end.Add(-time.Minute)) || s.ExpiresAt.Sub(c.ExpiresAt) >= time.Second || s.Origin.Method != "program" || s.Tokens.RefreshToken == "" {
		t.Errorf("the token ends at %v, the session is %+v", c.ExpiresAt, s)
	}

	// The session is the program's own.
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	if n := len(w.sessions()); n != 2 {
		t.Fatalf("%d sessions, want the program's and the browser's", n)
	}
	b.post(app+"/.pomerium/sign_out", nil, "Origin", app)
	if !w.accepts("Pomerium " + token) {
		t.Error("signing out of the browser has ended the program's session")
	}

	// Renewing.
	for _, header := range []string{"Bearer " + refresh, refresh, "Pomerium", "Pomerium " + refresh + "x"} {
		p := w.call("/api/v1/refresh", nil, "Authorization", header)
		p.refused(t, http.StatusUnauthorized, "invalid_token")
		if !strings.Contains(p.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
			t.Errorf("WWW-Authenticate: %q", p.Header.Get("WWW-Authenticate"))
		}
	}
	got := w.call("/api/v1/refresh", nil, "Authorization", "Pomerium "+refresh).object(t, http.StatusOK)
	if !w.accepts("Pomerium "+text(t, got, "jwt")) || text(t, got, "refresh_token") == refresh {
		t.Errorf("renewed: got %v", got)
	}
	again := w.browser().get(auth+"/api/v1/refresh", "Authorization", "pomerium "+text(t, got, "refresh_token")).object(t, http.StatusOK)
	if c, err := w.keys.OpenCredential(text(t, again, "jwt"), w.now()); err != nil || s.ExpiresAt.Sub(c.ExpiresAt) >= time.Second {
		t.Errorf("renewed: the token ends at %v, %v; the session at %v", c.ExpiresAt, err, s.ExpiresAt)
	}
}

func TestProgrammaticTargets(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Programs.RedirectDomains = []string{"localhost", "tool.example.net"} })
	b := w.browser()
	b.stop = func(*url.URL) bool { return true }
	tests := []struct {
		target            string
		byLink, authorize int
	}{
		{"http://localhost:1234/", 200, 302}, {"http://127.0.0.1/", 200, 302}, {"http://[::1]:9/", 200, 302}, {"http://127.8.8.8/", 200, 302},
		{"https://tool.example.net/x", 200, 302}, {"http://tool.example.net/x", 400, 400}, {"https://tool.example.net/x#y", 200, 400},
		{"", 404, 400}, {"https://sub.tool.example.net/", 400, 400}, {"https://localhost.evil.example/", 400, 400}, {"https://tool.example.net@evil.example/", 400, 400},
		{"//localhost/", 400, 400}, {"/x", 400, 400}, {"javascript:alert(1)", 400, 400}, {"ftp://localhost/", 400, 400}, {app, 400, 400},
		{"http://localhost\\.evil.example", 400, 400}, {"http:localhost", 400, 400}, {"http://localhost\r\nX: y", 400, 400}, {"http://loсalhost/", 400, 400},
		{"https://evil.example/?http://localhost/", 400, 400}, {"http://localhost/" + strings.Repeat("x", 4000), 400, 400},
		{"my.app:/done", 400, 400}, {"urn:ietf:wg:oauth:2.0:oob", 400, 400}, {"http://0.0.0.0/", 400, 400}, {"http://2130706433/", 400, 400},
		{"http://127.0.0.1:65535/", 200, 302}, {"http://127.0.0.1:65536/", 400, 400}, {"http://127.0.0.1:0/", 400, 400}, {"https://tool.example.net:99999/", 400, 400},
	}
	for _, tt := range tests {
		b.get(app+"/.pomerium/api/v1/login?pomerium_redirect_uri="+url.QueryEscape(tt.target)).want(t, tt.byLink)
		// An error that is the redirect URI's is never sent there, nor is another.
		for _, change := range []string{"code", "token"} {
			p := b.get(authorization("redirect_uri", tt.target, "response_type", change))
			p.want(t, tt.authorize)
			if to := p.Header.Get("Location"); tt.authorize != 302 && to != "" {
				t.Errorf("%s: leads to %s", tt.target, to)
			}
		}
	}
	for target, why := range map[string]string{
		"http://tool.example.net/": "plain http at another machine", "https://evil.example/": "programmatic_redirect_domain_whitelist",
		"http://localhost:99999/": "no web address", "http://localhost/" + strings.Repeat("x", 4000): "longer than 3000 bytes",
	} {
		b.get(app+"/.pomerium/api/v1/login?pomerium_redirect_uri="+url.QueryEscape(target)).want(t, http.StatusBadRequest, why)
		b.get(authorization("redirect_uri", target)).want(t, http.StatusBadRequest, why)
	}
}

func TestProgramNames(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.stop = func(*url.URL) bool { return true }
	for name, status := range map[string]int{
		client: 302, "7": 302, "żółw": 302, "резервная копия": 302, "バックアップ": 302, "संदेश": 302, "ที่เก็บ": 302, "cafe\u0301": 302, "☁\ufe0f sync": 302, "v\u0323\u0302\u0303": 302,
		// Nothing to be seen.
		"\u115f": 400, "\u1160": 400, "\u3164": 400, "\uffa0": 400, "\u2800": 400, "\U0001d159": 400, "a\u3164b": 400, "a\u2800b": 400, "a\u034fb": 400, "a\u200bb": 400, "\u00ad": 400, "a\U0001d159b": 400,
		// Nothing to be read.
		"!!!": 400, "☁\ufe0f": 400, "\u0301": 400,
		// What changes the text around it.
		"a" + strings.Repeat("\u0335", 4): 400, "\u0335a": 400, "\u202eevil": 400, "a\u2066b": 400, "x\u2028y": 400,
		" x": 400, "x ": 400, "a\xff": 400, "a\u0085b": 400,
	} {
		p := b.get(authorization("client_id", name))
		if p.StatusCode != status {
			t.Errorf("%+q: authorize: got status %d, want %d", name, p.StatusCode, status)
		}
		p = w.call("/oauth2/device_authorization", url.Values{"client_id": {name}})
		if ok := p.StatusCode == http.StatusOK; ok != (status == 302) {
			t.Errorf("%+q: device: got status %d", name, p.StatusCode)
		}
	}
}

func TestConsent(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	for name, asked := range map[string]page{"by link": b.byLink(), "by code": b.get(authorization())} {
		t.Run(name, func(t *testing.T) {
			form := asked.consentForm(t, "allow")
			consent := auth + "/.pomerium/consent"
			b.stop = func(*url.URL) bool { return true }
			defer func() { b.stop = nil }()
			b.post(consent, form, "Sec-Fetch-Site", "cross-site").want(t, http.StatusForbidden)
			b.post(consent, form).want(t, http.StatusForbidden)
			b.post(consent, url.Values{"form": {"x"}, "answer": {"allow"}}, "Origin", auth).want(t, http.StatusBadRequest)
			w.browser().post(consent, form, "Origin", auth).want(t, http.StatusBadRequest, "another browser")
			for _, s := range w.sessions() {
				if left := s.ExpiresAt.Sub(w.now()); s.RefreshHash == nil && left > 15*time.Minute {
					t.Errorf("a session lasts for %v though nobody has agreed", left)
				}
			}
			b.post(consent, form, "Origin", auth).want(t, http.StatusFound)
			b.post(consent, form, "Origin", auth).want(t, http.StatusBadRequest)
		})
	}
	late := b.byLink()
	w.offset.Store(int64(11 * time.Minute))
	b.answer(late, "allow").want(t, http.StatusBadRequest, "too old")
}

// TestConsentTwice presses Allow twice, in a browser that forgets nothing.
func TestConsentTwice(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.refuse(func(_ *url.URL, c *http.Cookie) bool { return c.MaxAge < 0 })
	asked := b.byLink()
	b.answer(asked, "allow").want(t, http.StatusFound)
	b.answer(asked, "allow").want(t, http.StatusBadRequest, "used in the meantime")
	asked = b.get(authorization())
	code := b.answer(asked, "allow").location(t).Query().Get("code")
	w.call("/oauth2/token", redemption(code)).want(t, http.StatusOK)
	b.answer(asked, "allow").want(t, http.StatusBadRequest, "used in the meantime")
	b.answer(asked, "cancel").want(t, http.StatusBadRequest, "used in the meantime")
}

func TestConsentRefused(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	p := b.answer(b.byLink(), "cancel")
	p.want(t, http.StatusOK, "Nothing was allowed")
	to := b.answer(b.get(authorization()), "cancel").location(t)
	if q := to.Query(); q.Get("error") != "access_denied" || q.Get("state") != "a state" || q.Get("iss") != auth || q.Has("code") || to.Host != "127.0.0.1:5000" {
		t.Errorf("the program is told %s", to)
	}
	// A form without an answer is no consent.
	b.answer(b.byLink(), "").want(t, http.StatusOK, "Nothing was allowed")
	if s := w.sessions(); len(s) != 0 {
		t.Errorf("%d sessions are left", len(s))
	}
}

func TestUserRevokedBeforeConsent(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	asked := b.byLink()
	if _, err := w.store.RevokeUser(context.Background(), "user-alice", ""); err != nil {
		t.Fatal(err)
	}
	b.answer(asked, "allow").want(t, http.StatusBadRequest, "was ended")
}

func TestAuthorizationCode(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	asked := b.get(authorization())
	asked.want(t, http.StatusOK, "Let a program act as you?", "http://127.0.0.1:5000", client, "alice@example.com")
	to := b.answer(asked, "allow").location(t)
	q := to.Query()
	if q.Get("state") != "a state" || q.Get("iss") != auth || !strings.HasPrefix(to.String(), loopbackURI+"?") {
		t.Fatalf("leads to %s", to)
	}
	got := w.call("/oauth2/token", redemption(q.Get("code")), "User-Agent", "curl").object(t, http.StatusOK)
	if got["token_type"] != "Bearer" || got["expires_in"] != float64(3600) {
		t.Errorf("got %v", got)
	}
	if !w.accepts("Pomerium "+text(t, got, "access_token")) || !w.accepts("Bearer Pomerium-"+text(t, got, "access_token")) {
		t.Error("the token is worth nothing")
	}
	s := w.sessions()[0]
	if s.Origin.UserAgent != client || s.Origin.Method != "program" || s.ExpiresAt.Sub(w.now()) < 13*time.Hour || s.Tokens.RefreshToken == "" {
		t.Errorf("the session is %+v", s)
	}
	for _, secret := range []string{q.Get("code"), text(t, got, "access_token"), text(t, got, "refresh_token")} {
		if strings.Contains(w.log.String(), secret) {
			t.Error("the log holds a secret")
		}
	}
	// The token ends when it says, the session does not.
	w.offset.Store(int64(time.Hour + time.Minute))
	if w.accepts("Pomerium " + text(t, got, "access_token")) {
		t.Error("the token is good after its time")
	}
	renewed := w.call("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {text(t, got, "refresh_token")}, "client_id": {client}}).object(t, http.StatusOK)
	if !w.accepts("Pomerium " + text(t, renewed, "access_token")) {
		t.Error("the renewed token is worth nothing")
	}
	w.offset.Store(int64(13*time.Hour + 30*time.Minute))
	renewed = w.call("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {text(t, renewed, "refresh_token")}}).object(t, http.StatusOK)
	if life, _ := renewed["expires_in"].(float64); life > 1800 || life < 1700 {
		t.Errorf("shortly before the session ends a token lives for %v s", life)
	}
}

func TestAuthorizationErrors(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.stop = func(*url.URL) bool { return true }
	for _, tt := range []struct {
		name, code string
		change     []string
	}{
		{"no PKCE", "invalid_request", []string{"code_challenge", ""}},
		{"plain PKCE", "invalid_request", []string{"code_challenge_method", "plain"}},
		{"PKCE of no method, which would be plain", "invalid_request", []string{"code_challenge_method", ""}},
		{"a challenge that is no hash", "invalid_request", []string{"code_challenge", "abc"}},
		{"a padded challenge", "invalid_request", []string{"code_challenge", challengeOf(verifier) + "="}},
		{"the implicit grant", "unsupported_response_type", []string{"response_type", "token"}},
		{"no response type", "unsupported_response_type", []string{"response_type", ""}},
		{"a fragment", "invalid_request", []string{"response_mode", "fragment"}},
		{"a request object", "invalid_request", []string{"request", "x"}},
		{"a request by reference", "invalid_request", []string{"request_uri", "https://evil.example"}},
		{"an endless state", "invalid_request", []string{"state", strings.Repeat("x", 3000)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to := b.get(authorization(tt.change...)).location(t)
			if q := to.Query(); q.Get("error") != tt.code || q.Get("iss") != auth || to.Host != "127.0.0.1:5000" || q.Has("code") {
				t.Errorf("leads to %s, want error %s", to, tt.code)
			}
		})
	}
	for name, to := range map[string]string{
		"no client":           authorization("client_id", ""),
		"an endless client":   authorization("client_id", strings.Repeat("x", 129)),
		"an unreadable name":  authorization("client_id", "good\u202Elive"),
		"a name with a break": authorization("client_id", "a\nb"),
		"two clients":         authorization() + "&client_id=other",
		"two redirect URIs":   authorization() + "&redirect_uri=https%3A%2F%2Fevil.example",
		"a broken query":      authorization() + "&%zz",
	} {
		t.Run(name, func(t *testing.T) { b.get(to).want(t, http.StatusBadRequest) })
	}
	b.get(authorization(), "Sec-Fetch-Mode", "cors").want(t, http.StatusUnauthorized)
	if n := w.idp.Count("authorize"); n != 0 {
		t.Errorf("%d visits to the provider", n)
	}
}

func TestProviderRefusesForAProgram(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.AuthorizeError = "access_denied" })
	w.browser().get(authorization()).want(t, http.StatusUnauthorized, "Back to the program", html.EscapeString(loopbackURI)+"?error=access_denied")
}
