package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// TestTokenOfOneHostIsNoneOfAnother: the upstream of one route can make a
// visitor's browser sign in there, and may learn the token; it opens no other.
func TestTokenOfOneHostIsNoneOfAnother(t *testing.T) {
	w := sharedWorld.get(t)
	const name = "_pomerium"
	cors, app := w.url("cors", "/x"), w.url("app", "/x")
	token := w.session(t, "ana", cors).cookie(t, cors, name)
	for _, header := range [][]string{
		{"Cookie", name + "=" + token},
		{"X-Pomerium-Authorization", token},
		{"Authorization", "Pomerium " + token},
		{"Authorization", "Bearer Pomerium-" + token},
	} {
		for url, want := range map[string]int{cors: http.StatusOK, app: http.StatusUnauthorized, w.url("app", "/.pomerium/user"): http.StatusUnauthorized} {
			a := w.client().send(t, request(t, "GET", url, append([]string{"Sec-Fetch-Mode", "cors"}, header...)...))
			if a.StatusCode != want {
				t.Errorf("%s at %s: %s, want %d", header[0], url, a.Status, want)
			}
		}
	}
	// Nor does it reach an upstream under another cookie's name.
	a := w.client().send(t, request(t, "GET", w.url("public", "/"), "Cookie", "old_name="+token+"; mine=1"))
	if a.StatusCode != http.StatusOK || strings.Contains(string(a.Body), token) || !strings.Contains(string(a.Body), "mine=1") {
		t.Errorf("the upstream got the token, or nothing: %s", a.Status)
	}
}

// TestPreflightWithAToken: a browser repeats the query of the real request in
// its preflight, which passes unchecked.
func TestPreflightWithAToken(t *testing.T) {
	w := sharedWorld.get(t)
	token := w.session(t, "ana", w.url("cors", "/")).cookie(t, w.url("cors", "/"), "_pomerium")
	for _, query := range []string{"pomerium_session=" + token, "a=b&%70omerium_session=" + token, "pomerium%5Fsession=" + token + "&c=d"} {
		a := w.client().send(t, request(t, "OPTIONS", w.url("cors", "/x?"+query), "Sec-Fetch-Mode", "cors",
			"Origin", "https://elsewhere.example", "Access-Control-Request-Method", "PUT"))
		if a.StatusCode != http.StatusOK || strings.Contains(string(a.Body), token) {
			t.Errorf("%s: the upstream got the token, or nothing: %s", strings.ReplaceAll(query, token, "TOKEN"), a.Status)
		}
	}
}
