package authn_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign/internal/signin"
)

// FuzzProgramForm sends anything to the endpoints of programs: the answer is an error
// of the table, never a crash and never a token.
func FuzzProgramForm(f *testing.F) {
	w := newWorld(f)
	_, refresh := w.byCode()
	d := w.device()
	const form = "application/x-www-form-urlencoded"
	f.Add(uint8(0), form, "", redemption(w.code(), "code_verifier", "x").Encode())
	f.Add(uint8(0), form, "", renewal("x"+refresh).Encode())
	f.Add(uint8(0), form, "", strings.Replace(d.poll().Encode(), "client_id=", "client_id=x", 1))
	f.Add(uint8(0), form, "", exchanging("a.e30.c", "resource", app).Encode())
	f.Add(uint8(1), form+"; charset=utf-8", "", "id_token=e30.eyJpc3MiOiJ4IiwiYXVkIjpbXX0.&id_token=%zz")
	f.Add(uint8(2), form, "Pomerium x", "")
	f.Add(uint8(3), form, "", "client_id=%e2%80%ae")
	f.Add(uint8(4), form, "", "token=x&token_type_hint=y")
	paths := []string{"/oauth2/token", "/api/v1/token", "/api/v1/refresh", "/oauth2/device_authorization", "/oauth2/revoke"}
	f.Fuzz(func(t *testing.T, path uint8, kind, authorization, body string) {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/", strings.NewReader(body))
		r.Host, r.URL.Path = "auth.example.com", paths[int(path)%len(paths)]
		r.Header["Content-Type"], r.Header["Authorization"] = []string{kind}, []string{authorization}
		rec := httptest.NewRecorder()
		w.server.Load().ServeHTTP(rec, r)
		var got map[string]any
		if rec.Body.Len() > 0 && json.Unmarshal(rec.Body.Bytes(), &got) != nil {
			t.Fatalf("no JSON: %s", rec.Body)
		}
		code, _ := got["error"].(string)
		switch {
		case rec.Code == http.StatusOK && (r.URL.Path == "/oauth2/revoke" || got["user_code"] != nil):
		case rec.Code == http.StatusServiceUnavailable && r.URL.Path == "/oauth2/device_authorization":
		case rec.Code >= 400 && rec.Code < 500 && code != "" && rec.Header().Get("Cache-Control") == "no-store":
		default:
			t.Errorf("status %d: %s", rec.Code, rec.Body)
		}
	})
}

// FuzzAuthorization sends anything to the pages of programs: they lead to the
// provider, or with an error to the program's own address.
func FuzzAuthorization(f *testing.F) {
	w := newWorld(f)
	f.Add("/oauth2/authorize", mustURL(f, authorization()).RawQuery)
	f.Add("/oauth2/authorize", mustURL(f, authorization("response_type", "token", "redirect_uri", "http://localhost:1/?a=b")).RawQuery)
	f.Add("/oauth2/authorize", "client_id=x&redirect_uri=//evil.example&redirect_uri=http://localhost")
	f.Add("/device", "user_code=BCDF-GHJK&device=x")
	f.Fuzz(func(t *testing.T, path, query string) {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/", nil)
		r.Host, r.URL.Path, r.URL.RawQuery = "auth.example.com", path, query
		if path != "/oauth2/authorize" && path != "/device" {
			return
		}
		rec := httptest.NewRecorder()
		w.server.Load().ServeHTTP(rec, r)
		if rec.Code >= 500 {
			t.Errorf("status %d", rec.Code)
		}
		to := rec.Header().Get("Location")
		if to == "" || strings.HasPrefix(to, w.idp.URL+"/authorize?") {
			return
		}
		u, err := url.Parse(to)
		if err != nil || u.Query().Get("error") == "" || u.Query().Has("code") && !strings.Contains(query, "code") {
			t.Errorf("leads to %q", to)
			return
		}
		if _, err := signin.SafeRedirect(to, func(host string) bool {
			name := signin.Hostname(host)
			return name == "localhost" || strings.HasPrefix(name, "127.") || name == "[::1]" || strings.Contains(name, ":")
		}); err != nil {
			t.Errorf("leads to %q", to)
		}
	})
}
