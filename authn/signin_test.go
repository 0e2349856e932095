package authn_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

func randomText() string { return rand.Text() }

func TestSignIn(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	p := b.get(app + "/deep/link?a=1&b=2%20x")
	p.want(t, http.StatusOK, welcome+" /deep/link?a=1&b=2%20x")

	sessions, err := w.store.Sessions(context.Background(), "user-alice")
	if err != nil || len(sessions) != 1 {
		t.Fatalf("got sessions %v, %v, want one", sessions, err)
	}
	s := sessions[0]
	if got := s.Claims["email"]; got != "alice@example.com" {
		t.Errorf("claim email: got %v", got)
	}
	for _, name := range []string{"iss", "aud", "exp", "iat", "nonce"} {
		if _, ok := s.Claims[name]; ok {
			t.Errorf("claim %s of the token is kept", name)
		}
	}
	if s.Tokens.RefreshToken == "" || s.Tokens.IDToken == "" || s.Tokens.AccessToken == "" {
		t.Error("the provider's tokens were not kept")
	}
	user, err := w.store.User(context.Background(), "user-alice")
	if err != nil || user.Email != "alice@example.com" || user.Name != "Alice" {
		t.Errorf("got user %+v, %v", user, err)
	}

	// A second host does not go to the provider again, and shares the session.
	n := w.idp.Count("authorize")
	b.get(other+"/x").want(t, http.StatusOK, welcome+" /x")
	if got := w.idp.Count("authorize"); got != n {
		t.Errorf("second host: %d visits to the provider, want %d", got, n)
	}
	if sessions, _ := w.store.Sessions(context.Background(), ""); len(sessions) != 1 {
		t.Errorf("got %d sessions, want 1", len(sessions))
	}
	for _, c := range b.Jar.Cookies(mustURL(t, app)) {
		if strings.Contains(c.Name, "_flow_") {
			t.Errorf("cookie %s is left", c.Name)
		}
	}
	for _, c := range b.Jar.Cookies(mustURL(t, auth)) {
		if strings.Contains(c.Name, "_signin_") {
			t.Errorf("cookie %s is left", c.Name)
		}
	}
}

func TestTwentyTabs(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	var tabs []string
	for i := range 20 {
		tabs = append(tabs, b.until("/oauth2/callback", fmt.Sprintf("%s/tab/%d", app, i)))
	}
	// Out of order: the last first, then every third.
	for i := range tabs {
		n := (i*7 + 19) % 20
		b.get(tabs[n]).want(t, http.StatusOK, fmt.Sprintf("%s /tab/%d", welcome, n))
	}
}

func TestPendingCookiesAreBounded(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	for i := range 60 {
		b.until("/oauth2/callback", fmt.Sprintf("%s/%d", app, i))
	}
	for _, at := range []string{app, auth} {
		if n := len(b.Jar.Cookies(mustURL(t, at))); n == 0 || n > signin.MaxPending {
			t.Errorf("%s: %d cookies, want 1 to %d", at, n, signin.MaxPending)
		}
	}
}

func TestHandoffInAnotherBrowser(t *testing.T) {
	w := newWorld(t)
	link := w.browser().until("/.pomerium/callback/", app+"/secret?x=1")
	victim := w.browser()
	p := victim.get(link)
	p.want(t, http.StatusBadRequest, "began in another browser", `href="`+app+`/secret?x=1"`)
	if c := victim.cookie(app, "_pomerium"); c != nil {
		t.Errorf("the victim got a session cookie")
	}

	// Nor does a victim with a sign-in of its own under way.
	victim.until("/oauth2/callback", app+"/mine")
	victim.get(link).want(t, http.StatusBadRequest, "began in another browser")
	if c := victim.cookie(app, "_pomerium"); c != nil {
		t.Errorf("the victim got a session cookie")
	}
}

func TestHandoffTwice(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/.pomerium/callback/", app+"/x")
	b.get(link).want(t, http.StatusOK, welcome+" /x")
	b.get(link).want(t, http.StatusOK, welcome+" /x")
}

func TestHandoffIsBoundToItsHost(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/.pomerium/callback/", app+"/x")
	moved := strings.Replace(link, app, other, 1)
	b.get(moved).want(t, http.StatusBadRequest)
	b.get(link+"&x=y").want(t, http.StatusBadRequest)
	w.offset.Store(int64(7 * time.Minute))
	b.get(link).want(t, http.StatusBadRequest, "too long")
}

func TestCallbackInAnotherBrowser(t *testing.T) {
	w := newWorld(t)
	link := w.browser().until("/oauth2/callback", app+"/x")
	victim := w.browser()
	before := w.idp.Count("token")
	// The victim signs in anew at the provider, and the flow is not its own.
	victim.get(link).want(t, http.StatusBadRequest, "began in another browser")
	if got := w.idp.Count("token"); got != before+1 {
		t.Errorf("%d codes redeemed, want only the victim's own", got-before)
	}
	if victim.cookie(app, "_pomerium") != nil {
		t.Error("the victim got a session cookie")
	}
}

func TestCallbackWithoutCookies(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/oauth2/callback", app+"/x")
	b.Jar = nil
	p := b.get(link)
	p.want(t, http.StatusBadRequest, "does not get to its end", "Allow cookies for auth.example.com", "Start over")
	if got := w.idp.Count("token"); got != 0 {
		t.Errorf("%d codes were redeemed without the cookie", got)
	}
	if got := w.idp.Count("authorize"); got != 3 {
		t.Errorf("%d visits to the provider, want 3", got)
	}
}

func TestRestartBetweenRedirectAndCallback(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/oauth2/callback", app+"/x?y=z")
	w.restart()
	b.get(link).want(t, http.StatusOK, welcome+" /x?y=z")
}

func TestCallbackWithLostCookieStartsAgain(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/oauth2/callback", app+"/x")
	for _, c := range b.Jar.Cookies(mustURL(t, auth)) {
		b.Jar.SetCookies(mustURL(t, auth), []*http.Cookie{signin.DeleteCookie(c.Name)})
	}
	b.get(link).want(t, http.StatusOK, welcome+" /x")
}

func TestCallbackTooLate(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/oauth2/callback", app+"/x")
	w.offset.Store(int64(11 * time.Minute))
	b.get(link).want(t, http.StatusOK, welcome+" /x")
}

func TestCallbackTwice(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/oauth2/callback", app+"/x")
	b.get(link).want(t, http.StatusOK, welcome+" /x")
	b.get(link).want(t, http.StatusOK, welcome+" /x")
	if got := w.idp.Count("token"); got != 1 {
		t.Errorf("%d redemptions, want 1", got)
	}
}

func TestCallbackRefuses(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	good := mustURL(t, b.until("/oauth2/callback", app+"/x")).Query()
	state, code := good.Get("state"), good.Get("code")
	tests := []struct{ name, query string }{
		{"nothing", ""},
		{"no state", url.Values{"code": {code}}.Encode()},
		{"a damaged state", url.Values{"code": {code}, "state": {damaged(state)}}.Encode()},
		{"a repeated state", url.Values{"code": {code}, "state": {state, state}}.Encode()},
		{"a malformed query", "state=%zz"},
		{"no code", url.Values{"state": {state}}.Encode()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b.get(auth+"/oauth2/callback?"+tt.query).want(t, http.StatusBadRequest)
		})
	}
	if got := w.idp.Count("token"); got != 0 {
		t.Errorf("%d codes were redeemed", got)
	}
}

func TestProviderMisbehaves(t *testing.T) {
	tests := []struct {
		name   string
		change func(*idptest.Behaviour)
		status int
		text   string
	}{
		{"wrong nonce", func(b *idptest.Behaviour) { b.Nonce = "x" }, 502, "cannot be used"},
		{"wrong audience", func(b *idptest.Behaviour) { b.Audience = "someone-else" }, 502, "cannot be used"},
		{"wrong issuer", func(b *idptest.Behaviour) { b.Issuer = "https://evil.example" }, 502, "cannot be used"},
		{"wrong authorized party", func(b *idptest.Behaviour) { b.AuthorizedParty = "x" }, 502, "cannot be used"},
		{"alg none", func(b *idptest.Behaviour) { b.Algorithm = "none" }, 502, "cannot be used"},
		{"alg HS256", func(b *idptest.Behaviour) { b.Algorithm = "HS256" }, 502, "cannot be used"},
		{"unpublished key", func(b *idptest.Behaviour) { b.WrongKey = true }, 502, "cannot be used"},
		{"expired", func(b *idptest.Behaviour) { b.Expired = true }, 502, "cannot be used"},
		{"no id_token", func(b *idptest.Behaviour) { b.NoIDToken = true }, 502, "cannot be used"},
		{"no subject", func(b *idptest.Behaviour) { b.Subject = "" }, 502, "cannot be used"},
		{"userinfo of another", func(b *idptest.Behaviour) { b.UserInfoSubject = "mallory" }, 502, "cannot be used"},
		{"userinfo fails", func(b *idptest.Behaviour) { b.UserInfoStatus = 500 }, 503, "does not answer"},
		{"token endpoint fails", func(b *idptest.Behaviour) { b.TokenStatus = 500 }, 503, "does not answer"},
		{"client refused", func(b *idptest.Behaviour) { b.TokenError = "invalid_client" }, 502, "client id and secret"},
		{"code refused each time", func(b *idptest.Behaviour) { b.TokenError = "invalid_grant" }, 400, "does not get to its end"},
		{"claims too large", func(b *idptest.Behaviour) {
			b.UserInfo = map[string]any{"groups": strings.Repeat("x", 300<<10)}
		}, 502, "cannot be used"},
		{"person says no", func(b *idptest.Behaviour) {
			b.AuthorizeError, b.AuthorizeDescription = "access_denied", "<b>not today</b>"
		}, 401, "&lt;b&gt;not today&lt;/b&gt;"},
		{"interaction needed", func(b *idptest.Behaviour) { b.AuthorizeError = "interaction_required" }, 400, "interaction_required"},
		{"provider is ill", func(b *idptest.Behaviour) { b.AuthorizeError = "server_error" }, 502, "problem of its own"},
		{"unknown error", func(b *idptest.Behaviour) { b.AuthorizeError = "<script>" }, 400, "ended this sign-in"},
		{"discovery fails", func(b *idptest.Behaviour) { b.DiscoveryStatus = 500 }, 503, "does not answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.idp.Change(tt.change)
			b := w.browser()
			p := b.get(app + "/x")
			p.want(t, tt.status, tt.text)
			if sessions, _ := w.store.Sessions(context.Background(), ""); len(sessions) != 0 {
				t.Errorf("a session was made")
			}
			if tt.status == 503 && p.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if tt.status == 401 && p.Header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
			noSecrets(t, w, p.body)
		})
	}
}

// noSecrets looks for every secret that was used in a text and in the log.
func noSecrets(t *testing.T, w *world, text string) {
	t.Helper()
	for _, s := range w.idp.Secrets() {
		if strings.Contains(text, s) {
			t.Errorf("page holds the secret %q", s)
		}
		if strings.Contains(w.log.String(), s) {
			t.Errorf("log holds the secret %q", s)
		}
	}
}

func TestProviderComesBack(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 503 })
	b := w.browser()
	for range 5 {
		b.get(app+"/x").want(t, http.StatusServiceUnavailable)
	}
	if got := w.idp.Count("discovery"); got != 1 {
		t.Errorf("%d discoveries within the pause, want 1", got)
	}
	w.idp.Change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 0 })
	w.offset.Store(int64(6 * time.Second))
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	b.get(other+"/x").want(t, http.StatusOK, welcome)
	if got := w.idp.Count("discovery"); got != 2 {
		t.Errorf("%d discoveries, want 2", got)
	}
}

func TestProviderIsSlow(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until("/oauth2/callback", app+"/x")
	ctx, cancel := context.WithCancel(context.Background())
	w.idp.Change(func(b *idptest.Behaviour) {
		b.OnToken = func(r *http.Request) {
			cancel()
			<-r.Context().Done()
		}
	})
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	for _, c := range b.Jar.Cookies(r.URL) {
		r.AddCookie(c)
	}
	rec := httptest.NewRecorder()
	w.server.Load().ServeHTTP(rec, r)
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Set-Cookie") != "" {
		t.Errorf("got status %d and cookies %q, want 503 and none", rec.Code, rec.Header()["Set-Cookie"])
	}
}

func TestEmailVerification(t *testing.T) {
	tests := []struct {
		name        string
		claims      map[string]any
		userinfo    map[string]any
		email, kept any
	}{
		{"verified", map[string]any{"email": "a@x.example", "email_verified": true}, nil, "a@x.example", nil},
		{"verified, as text", map[string]any{"email": "a@x.example", "email_verified": "true"}, nil, "a@x.example", nil},
		{"nothing said", map[string]any{"email": "a@x.example"}, nil, "a@x.example", nil},
		{"not verified", map[string]any{"email": "a@x.example", "email_verified": false}, nil, nil, "a@x.example"},
		{"not verified, as text", map[string]any{"email": "a@x.example", "email_verified": "false"}, nil, nil, "a@x.example"},
		{"userinfo takes it back", map[string]any{"email": "a@x.example", "email_verified": true}, map[string]any{"email_verified": false}, nil, "a@x.example"},
		{"no address", map[string]any{}, nil, nil, nil},
		{"forged leftover", map[string]any{"unverified_email": "x"}, nil, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.idp.Change(func(b *idptest.Behaviour) { b.Claims, b.UserInfo = tt.claims, tt.userinfo })
			w.browser().get(app+"/x").want(t, http.StatusOK, welcome)
			sessions, err := w.store.Sessions(context.Background(), "")
			if err != nil || len(sessions) != 1 {
				t.Fatalf("got %v, %v", sessions, err)
			}
			if got := sessions[0].Claims["email"]; got != tt.email {
				t.Errorf("email: got %v, want %v", got, tt.email)
			}
			if got := sessions[0].Claims["unverified_email"]; got != tt.kept {
				t.Errorf("unverified_email: got %v, want %v", got, tt.kept)
			}
		})
	}
}

func TestSignInUnderAnAccountsID(t *testing.T) {
	w := newWorld(t)
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "1", UserID: "user-alice"}); err != nil {
		t.Fatal(err)
	}
	w.browser().get(app+"/x").want(t, http.StatusForbidden, "service account")
	if sessions, _ := w.store.Sessions(context.Background(), ""); len(sessions) != 0 {
		t.Error("a session was made")
	}
}

func TestStoreFails(t *testing.T) {
	w := newWorld(t)
	signedIn := w.browser()
	signedIn.get(app+"/x").want(t, http.StatusOK, welcome)
	fresh := w.browser()
	link := fresh.until("/oauth2/callback", app+"/x")
	before := w.idp.Count("token")

	w.store.Break(errFault)
	for name, p := range map[string]page{
		"callback":    fresh.get(link),
		"who am I":    signedIn.get(app + "/.pomerium/"),
		"user":        signedIn.get(app+"/.pomerium/user", "Accept", "application/json"),
		"sign out":    signedIn.post(app+"/.pomerium/sign_out", nil, "Sec-Fetch-Site", "same-origin"),
		"second host": signedIn.get(other + "/x"),
	} {
		p.want(t, http.StatusServiceUnavailable)
		if p.Header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", name)
		}
		if c := p.Header["Set-Cookie"]; len(c) > 0 {
			t.Errorf("%s: cookies were touched: %v", name, c)
		}
		if strings.Contains(p.body, "fire") {
			t.Errorf("%s: page tells the cause", name)
		}
	}
	if got := w.idp.Count("token"); got != before {
		t.Error("a code was spent although there was no store")
	}
	w.store.Heal()
	fresh.get(link).want(t, http.StatusOK, welcome)
	signedIn.get(app+"/y").want(t, http.StatusOK, welcome)

	// It breaks while the provider is being asked.
	w.idp.Change(func(b *idptest.Behaviour) { b.OnToken = func(*http.Request) { w.store.Break(errFault) } })
	late := w.browser()
	late.get(app+"/x").want(t, http.StatusServiceUnavailable)
	w.store.Heal()
	w.idp.Change(func(b *idptest.Behaviour) { b.OnToken = nil })
	late.get(app+"/x").want(t, http.StatusOK, welcome)
}

func TestNotConfigured(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.IDPs = nil })
	b := w.browser()
	p := b.get(app + "/x")
	p.want(t, http.StatusServiceUnavailable, "idp_provider_url", "idp_client_id", "idp_client_secret")
	if p.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	b.get(app+"/.pomerium/").want(t, http.StatusOK, "not signed in")
	b.get(auth+"/oauth2/callback").want(t, http.StatusServiceUnavailable)
	b.get(app+"/.pomerium/api/v1/login?pomerium_redirect_uri=http://localhost/").want(t, http.StatusServiceUnavailable)
}

func TestSignInLinkRefuses(t *testing.T) {
	w := newWorld(t)
	flow, err := signin.NewFlow(rand.Reader, w.now())
	if err != nil {
		t.Fatal(err)
	}
	link := func(target string) string {
		u := mustURL(t, auth+signin.SignInPath)
		u.RawQuery = url.Values{signin.ParamRedirectURI: {target}, signin.ParamIDPID: {w.cfg.IDPs[0].ID()}, signin.ParamFlow: {flow.Hash()}}.Encode()
		w.keys.SignLink(u, w.now(), signin.LinkLife)
		return u.String()
	}
	targets := []string{
		"", "/", "//evil.example", `/\evil.example`, `https:\\evil.example`, "https:evil.example", "https://evil.example/", "http://app.example.com/",
		"https://app.example.com@evil.example/", "https://evil.example#app.example.com", "https://app.example.com.evil.example/",
		"https://app.example.com:8444/", "https://app.example.com\r\nX: y/", "https://app.example.com\\.evil.example/", "https://xn--pp-xka.example.com/",
		"https://аpp.example.com/", "javascript:alert(1)", "https://auth.example.com/.pomerium/sign_in", "https://.wild.example.com/", "https://evil.example/.wild.example.com",
	}
	b := w.browser()
	for _, target := range targets {
		b.get(link(target)).want(t, http.StatusBadRequest)
	}
	if got := w.idp.Count("authorize"); got != 0 {
		t.Errorf("%d visits to the provider", got)
	}
	good := link(app + "/x")
	b.stop = func(u *url.URL) bool { return u.Path == "/authorize" }
	for _, tt := range []struct {
		name   string
		header []string
		to     string
		status int
	}{
		{"as it is", nil, good, 302},
		{"a wildcard host", nil, link("https://a.b.wild.example.com/x"), 302},
		{"opened by a browser", []string{"Sec-Fetch-Mode", "navigate"}, good, 302},
		{"unsigned", nil, auth + signin.SignInPath + "?" + signin.ParamRedirectURI + "=" + app, 400},
		{"changed", nil, strings.Replace(good, "%2Fx", "%2Fy", 1), 400},
		{"by fetch", []string{"Sec-Fetch-Mode", "cors"}, good, 401},
		{"by XHR", []string{"X-Requested-With", "XMLHttpRequest"}, good, 401},
	} {
		t.Run(tt.name, func(t *testing.T) { b.get(tt.to, tt.header...).want(t, tt.status) })
	}
	b.post(good, nil).want(t, http.StatusMethodNotAllowed)
	w.offset.Store(int64(7 * time.Minute))
	b.get(good).want(t, http.StatusBadRequest, "Start over", `href="`+app+`/x"`)
}

func TestSessionCookie(t *testing.T) {
	tests := []struct {
		name   string
		cookie config.Cookie
		want   []string
		not    []string
	}{
		{"default", config.Cookie{Name: "_pomerium", HTTPOnly: true}, []string{"_pomerium=", "Path=/", "Secure", "HttpOnly", "Expires="}, []string{"SameSite", "Domain"}},
		{"for scripts", config.Cookie{Name: "_pomerium", SameSite: "none"}, []string{"SameSite=None", "Secure"}, []string{"HttpOnly"}},
		{"shared", config.Cookie{Name: "_pomerium", HTTPOnly: true, Domain: "example.com", SameSite: "lax"}, []string{"Domain=example.com", "SameSite=Lax"}, nil},
		{"strict", config.Cookie{Name: "_pomerium", HTTPOnly: true, SameSite: "strict"}, []string{"SameSite=Strict"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cookie.Expire = time.Hour
			w := newWorld(t, func(c *config.Config) { c.Cookie = tt.cookie })
			b := w.browser()
			link := b.until(signin.CallbackPath, app+"/x?a=1&b=2")
			b.stop = func(*url.URL) bool { return true }
			p := b.get(link)
			var got string
			for _, c := range p.Header["Set-Cookie"] {
				if strings.HasPrefix(c, "_pomerium=") {
					got = c
				}
			}
			for _, s := range tt.want {
				if !strings.Contains(got, s) {
					t.Errorf("got %q, want %q in it", got, s)
				}
			}
			for _, s := range tt.not {
				if strings.Contains(got, s) {
					t.Errorf("got %q, want no %q in it", got, s)
				}
			}
			if tt.cookie.SameSite == "strict" {
				p.want(t, http.StatusOK, `content="0;url=https://app.example.com/x?a=1&amp;b=2"`)
				if got := p.Header.Get("Referrer-Policy"); got != "no-referrer" {
					t.Errorf("Referrer-Policy: got %q", got)
				}
			} else if p.want(t, http.StatusFound); p.Header.Get("Location") != app+"/x?a=1&b=2" {
				t.Errorf("Location: got %q", p.Header.Get("Location"))
			}
		})
	}
}
