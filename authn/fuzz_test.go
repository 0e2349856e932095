package authn_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/countersign/countersign/internal/signin"
)

// FuzzRequest sends anything to every endpoint: the answer is never a crash,
// never a 5xx, never a session, and never leads outside.
func FuzzRequest(f *testing.F) {
	w := newWorld(f)
	link := mustURL(f, w.browser().until("/oauth2/callback", app+"/x"))
	handoff := mustURL(f, w.browser().until(signin.CallbackPath, app+"/x"))
	f.Add("auth.example.com", "/oauth2/callback", link.RawQuery, "__Host-_pomerium_signin_x=1.y", "")
	f.Add("app.example.com", "/.pomerium/callback/", handoff.RawQuery, "__Host-_pomerium_flow_x=1.y; _pomerium=a.b.c", "")
	f.Add("app.example.com", "/.pomerium/user", "pomerium_session=....", `_pomerium="; ;=`, strings.Repeat(".", 100))
	f.Add("auth.example.com", "/.pomerium/sign_in", "pomerium_redirect_uri=//evil&pomerium_signature=x", "__Host-_pomerium_authenticate=x", "Bearer Pomerium-x")
	f.Add("auth.example.com", "/.pomerium/sign_out", "pomerium_redirect_uri=https://evil", "", "")
	f.Add("[::1]:443", "/.pomerium/", "%zz", "\x00\xff", "\xff")
	f.Fuzz(func(t *testing.T, host, path, query, cookie, authorization string) {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/", nil)
		r.Host, r.URL.Path, r.URL.RawQuery = host, path, query
		r.Header["Cookie"], r.Header["Authorization"] = []string{cookie}, []string{authorization}
		rec := httptest.NewRecorder()
		w.server.Load().ServeHTTP(rec, r)
		if rec.Code >= 500 {
			t.Errorf("status %d", rec.Code)
		}
		for _, c := range rec.Result().Cookies() {
			if c.Name == "_pomerium" || strings.HasSuffix(c.Name, "_authenticate") && c.MaxAge >= 0 {
				t.Errorf("a session was given away: %s", c.Name)
			}
		}
		switch to := rec.Header().Get("Location"); {
		case to == "", strings.HasPrefix(to, w.idp.URL+"/authorize?"), strings.HasPrefix(to, app+"/"), to == "/.pomerium/", to == "/.pomerium/signed_out":
		default:
			t.Errorf("leads to %q", to)
		}
	})
}
