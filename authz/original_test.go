package authz

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
)

func TestOriginalUser(t *testing.T) {
	ctx := context.Background()
	partnerKey, err := assertion.GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	partner, err := assertion.ParseSigningKey(partnerKey)
	if err != nil {
		t.Fatal(err)
	}
	down := make(chan struct{})
	jwks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stalled":
			select {
			case <-down:
			case <-r.Context().Done():
			}
			return
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(partner.JWKS())
	}))
	defer jwks.Close()
	defer close(down)
	trusting := func(c *config.Config) {
		c.Assertion.OriginalUserContextIssuers = []config.TrustedIssuer{
			{Issuer: "partner", JWKSURL: jwks.URL + "/keys", Audiences: []string{"a.partner", "b.partner"}},
			{Issuer: "stalled", JWKSURL: jwks.URL + "/stalled", Audiences: []string{"a.partner"}},
			{Issuer: "broken", JWKSURL: jwks.URL + "/broken", Audiences: []string{"a.partner"}},
		}
	}
	w := newWorld(t, trusting, map[string]routeDef{"public": {anyPolicy, true}})
	sign := func(ring *assertion.KeyRing, iss, aud string, exp time.Duration) string {
		t.Helper()
		s, err := ring.Sign(assertion.Claims{Issuer: iss, Audience: aud, Subject: "bob", IssuedAt: noon.Add(-time.Hour), ExpiresAt: noon.Add(exp)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	own := sign(w.ring, "pomerium-proxy", "first.example.com", time.Minute)
	justOver := sign(w.ring, "pomerium-proxy", "first.example.com", -50*time.Second)
	expired := sign(w.ring, "pomerium-proxy", "first.example.com", -2*time.Minute)
	fromPartner := sign(partner, "partner", "b.partner", time.Minute)
	const none = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJwb21lcml1bS1wcm94eSIsImV4cCI6OTk5OTk5OTk5OX0."

	tests := []struct {
		name              string
		assertion, future []string // incoming assertions, incoming -For
		want              string
		dropped           bool
	}{
		{"neither", nil, nil, "", false},
		{"an assertion becomes it", []string{own}, nil, own, false},
		{"-For is kept", nil, []string{own}, own, false},
		{"-For wins over the assertion", []string{fromPartner}, []string{own}, own, false},
		{"of two -For the first counts", nil, []string{own, "opaque"}, own, false},
		{"the same turned round", nil, []string{"opaque", own}, "", true},
		{"of two assertions the first counts", []string{own, fromPartner}, nil, own, false},
		{"opaque", nil, []string{"opaque"}, "", true},
		{"a refused -For is not replaced", []string{own}, []string{"opaque"}, "", true},
		{"expired within the skew", nil, []string{justOver}, justOver, false},
		{"expired", nil, []string{expired}, "", true},
		{"no algorithm", nil, []string{none}, "", true},
		{"a foreign key under our name", nil, []string{sign(partner, "pomerium-proxy", "first.example.com", time.Minute)}, "", true},
		{"a trusted issuer", nil, []string{fromPartner}, fromPartner, false},
		{"a trusted issuer for somebody else", nil, []string{sign(partner, "partner", "c.partner", time.Minute)}, "", true},
		{"a trusted issuer's key under another name", nil, []string{sign(partner, "friend", "a.partner", time.Minute)}, "", true},
		{"very many dots", nil, []string{strings.Repeat(".", 1<<20)}, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var headers []string
			for _, v := range tt.assertion {
				headers = append(headers, "x-pomerium-jwt-assertion: "+v)
			}
			for _, v := range tt.future {
				headers = append(headers, "x-pomerium-jwt-assertion-for: "+v)
			}
			for range 2 { // cold and remembered
				before := w.server.Stats().OriginalsDropped
				r := w.check(call("public", "GET", "/", headers...))
				if !r.allowed || r.header("x-pomerium-jwt-assertion-for") != tt.want {
					t.Errorf("status %d, -For %.60q, want %.60q", r.status, r.header("x-pomerium-jwt-assertion-for"), tt.want)
				}
				if removed := slices.Contains(r.removed, "x-pomerium-jwt-assertion-for"); removed != (tt.want == "") {
					t.Errorf("removed: %v", removed)
				}
				if got := w.server.Stats().OriginalsDropped > before; got != tt.dropped {
					t.Errorf("counted as dropped: %v, want %v", got, tt.dropped)
				}
				if a := r.header("x-pomerium-jwt-assertion"); slices.Contains(tt.assertion, a) || w.claims(a).Subject != "" {
					t.Error("the assertion is not ours about nobody")
				}
			}
		})
	}

	t.Run("remembered until it expires", func(t *testing.T) {
		w.clock.Set(noon.Add(3 * time.Minute))
		defer w.clock.Set(noon)
		if r := w.check(call("public", "GET", "/", "x-pomerium-jwt-assertion-for: "+own)); r.header("x-pomerium-jwt-assertion-for") != "" {
			t.Error("an expired value is passed on from memory")
		}
	})
	t.Run("not remembered under other settings", func(t *testing.T) {
		w.config.Assertion.OriginalUserContextIssuers = nil
		w.publish()
		if r := w.check(call("public", "GET", "/", "x-pomerium-jwt-assertion-for: "+fromPartner)); r.header("x-pomerium-jwt-assertion-for") != "" {
			t.Error("a value of an issuer that is no longer trusted is passed on from memory")
		}
		trusting(w.config)
		w.publish()
	})
	t.Run("keys out of reach are no verdict", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		r := w.checkCtx(ctx, call("public", "GET", "/", "x-pomerium-jwt-assertion-for: "+sign(partner, "stalled", "a.partner", time.Minute)))
		if r.allowed || r.status != 503 {
			t.Errorf("stalled: status %d, want 503", r.status)
		}
		r = w.check(call("public", "GET", "/", "x-pomerium-jwt-assertion-for: "+sign(partner, "broken", "a.partner", time.Minute)))
		if r.allowed || r.status != 503 {
			t.Errorf("broken: status %d, want 503", r.status)
		}
	})
}
