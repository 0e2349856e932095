package authn_test

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

// FuzzRequest sends anything to every endpoint: the answer is never a crash,
// never a 5xx, never a session, and never leads outside.
func FuzzRequest(f *testing.F) {
	w := newWorld(f, func(c *config.Config) { c.Routes[0].DependsOn = []string{"other.example.com", "x.wild.example.com"} })
	link := mustURL(f, w.browser().until("/oauth2/callback", app+"/x"))
	handoff := mustURL(f, w.browser().until(signin.CallbackPath, app+"/x"))
	start := mustURL(f, w.browser().get(app+"/x").next())
	onward := mustURL(f, w.browser().until(signin.SignInPath, start.String()))
	form := func(pairs ...string) string {
		q := url.Values{}
		for i := 0; i+1 < len(pairs); i += 2 {
			q.Set(pairs[i], pairs[i+1])
		}
		return q.Encode()
	}
	const get, post = "GET", "POST"
	f.Add(get, "auth.example.com", "/oauth2/callback", link.RawQuery, "__Host-_pomerium_signin_x=1.y", "", "")
	f.Add(post, "auth.example.com", "/oauth2/callback", "", "", "", link.RawQuery)
	f.Add(get, "app.example.com", "/.pomerium/callback/", handoff.RawQuery, "__Host-_pomerium_flow_x=1.y; _pomerium=a.b.c", "", "")
	f.Add(get, start.Host, start.Path, start.RawQuery, "_pomerium=a.b.c; __Host-_pomerium_round=1.9", "", "")
	f.Add(get, onward.Host, onward.Path, onward.RawQuery, "", "", "")
	f.Add(get, "app.example.com", "/.pomerium/user", "pomerium_session=....", `_pomerium="; ;=`, strings.Repeat(".", 100), "")
	f.Add(get, "auth.example.com", "/.pomerium/sign_in", "pomerium_redirect_uri=//evil&pomerium_signature=x", "__Host-_pomerium_authenticate=x", "Bearer Pomerium-x", "")
	f.Add(get, "auth.example.com", "/.pomerium/sign_out", "pomerium_redirect_uri=https://evil", "", "", "")
	f.Add(post, "app.example.com", "/.pomerium/sign_out", "", "", "", form("pomerium_redirect_uri", app, "everywhere", "true"))
	f.Add(get, "auth.example.com", "/.pomerium/signed_out", "state=x", "", "", "")
	f.Add(post, "auth.example.com", "/oauth2/backchannel_logout", "", "", "", form("logout_token", w.idp.LogoutToken("", "x", func(c map[string]any) { c["aud"] = 1 })))
	f.Add(post, "auth.example.com", "/oauth2/backchannel_logout", "", "", "", "logout_token=a.eyJhdWQiOm51bGx9.c")
	f.Add(get, "auth.example.com", "/oauth2/frontchannel_logout", form("iss", w.idp.URL, "sid", "x"), "", "", "")
	f.Add(get, "[::1]:443", "/.pomerium/", "%zz", "\x00\xff", "\xff", "")
	f.Fuzz(func(t *testing.T, method, host, path, query, cookie, authorization, body string) {
		if method != get && method != post {
			method = post
		}
		r := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(body))
		r.Host, r.URL.Path, r.URL.RawQuery = host, path, query
		r.Header["Cookie"], r.Header["Authorization"] = []string{cookie}, []string{authorization}
		r.Header["Content-Type"] = []string{"application/x-www-form-urlencoded"}
		// As if a page of the same host had sent it.
		r.Header["Origin"] = []string{"https://" + host}
		rec := httptest.NewRecorder()
		w.server.Load().ServeHTTP(rec, r)
		if rec.Code >= 500 {
			t.Errorf("status %d", rec.Code)
		}
		for _, c := range rec.Result().Cookies() {
			if (c.Name == "_pomerium" || strings.HasSuffix(c.Name, "_authenticate")) && c.MaxAge >= 0 {
				t.Errorf("a session was given away: %s", c.Name)
			}
		}
		if to := rec.Header().Get("Location"); to != "" && !w.ours(to) {
			t.Errorf("leads to %q", to)
		}
	})
}
