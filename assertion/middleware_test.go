package assertion

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMiddleware(t *testing.T) {
	ring := newRing(t)
	sign := func(change func(*Claims)) string {
		c := fullClaims()
		change(&c)
		token, err := ring.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(func(*Claims) {})
	config := VerifierConfig{Keys: ring, Audience: "app.example.com", Now: func() time.Time { return noon }}
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := FromContext(r.Context())
		if !ok {
			t.Error("no claims behind the middleware")
			return
		}
		_, _ = io.WriteString(w, c.Email)
	})
	down := newKeyServer(t, nil)
	unavailable, _ := remote(t, down)

	tests := []struct {
		name    string
		headers []string
		keys    KeySource
		status  int
		body    string
	}{
		{"a good assertion", []string{good}, ring, 200, "alice@example.com"},
		{"none", nil, ring, 401, "this service is reached through its proxy only\n"},
		{"an empty one", []string{""}, ring, 401, "this service is reached through its proxy only\n"},
		{"the good one twice", []string{good, good}, ring, 401, "this service is reached through its proxy only\n"},
		{"a good one and another", []string{good, "x"}, ring, 401, "this service is reached through its proxy only\n"},
		{"for another application", []string{sign(func(c *Claims) { c.Audience = "api.example.com" })}, ring, 401, "this service is reached through its proxy only\n"},
		{"an old one", []string{sign(func(c *Claims) { c.IssuedAt, c.ExpiresAt = noon.Add(-time.Hour), noon.Add(-time.Hour+1) })}, ring, 401, "this service is reached through its proxy only\n"},
		{"no keys to check with", []string{good}, unavailable, 503, "cannot check who you are at the moment\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			config.Keys = tt.keys
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header[HeaderAssertion] = tt.headers
			w := httptest.NewRecorder()
			Middleware(NewVerifier(config))(app).ServeHTTP(w, r)
			if w.Code != tt.status || w.Body.String() != tt.body {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, tt.status, tt.body)
			}
			want := map[int][]string{401: {"Pomerium"}}[tt.status]
			if diff := cmp.Diff(want, w.Header().Values("WWW-Authenticate")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestNoClaimsWithoutMiddleware(t *testing.T) {
	if c, ok := FromContext(t.Context()); ok || c != nil {
		t.Errorf("got %v", c)
	}
}
