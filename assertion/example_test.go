package assertion_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/countersign/countersign/assertion"
)

// An application behind the proxy lets nobody in who did not come through it,
// and greets people by their name. Here the proxy is played by a key ring.
func ExampleMiddleware() {
	ring, jwks := proxy()
	defer jwks.Close()

	// In your application, the URL is that of your own route:
	// https://app.example.com/.well-known/pomerium/jwks.json
	keys, err := assertion.NewRemoteKeys(jwks.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	verifier := assertion.NewVerifier(assertion.VerifierConfig{
		Keys:     keys,
		Audience: "app.example.com", // the host name that people ask for
		Issuers:  []string{"pomerium-proxy"},
	})
	app := httptest.NewServer(assertion.Middleware(verifier)(http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			claims, _ := assertion.FromContext(r.Context())
			_, _ = fmt.Fprintf(w, "hello %s of %v", claims.Email, claims.Groups)
		})))
	defer app.Close()

	now := time.Now()
	token, err := ring.Sign(assertion.Claims{
		Issuer: "pomerium-proxy", Audience: "app.example.com", Subject: "u1", User: "u1",
		Email: "alice@example.com", Groups: []string{"eng"}, IssuedAt: now, ExpiresAt: now.Add(assertion.Lifetime),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(get(app.URL, token))
	fmt.Println(get(app.URL, ""))
	// Output:
	// 200 hello alice@example.com of [eng]
	// 401 this service is reached through its proxy only
}

// Two hops on, X-Pomerium-Jwt-Assertion is about the service that calls, and
// X-Pomerium-Jwt-Assertion-For about the user whom the first hop saw. Its
// audience is that first hop's host, so it takes a verifier of its own.
func ExampleVerifier_originalUser() {
	ring, jwks := proxy()
	defer jwks.Close()
	keys, err := assertion.NewRemoteKeys(jwks.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	original := assertion.NewVerifier(assertion.VerifierConfig{Keys: keys, Audience: "app.example.com"})

	now := time.Now()
	token, err := ring.Sign(assertion.Claims{
		Issuer: "pomerium-proxy", Audience: "app.example.com", User: "u1", Email: "alice@example.com",
		IssuedAt: now, ExpiresAt: now.Add(assertion.Lifetime),
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "https://api.example.com/", nil)
	r.Header.Set(assertion.HeaderOriginal, token)

	claims, err := original.Verify(context.Background(), r.Header.Get(assertion.HeaderOriginal))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("on behalf of", claims.Email)
	// Output: on behalf of alice@example.com
}

// proxy is a key ring, published as the proxy publishes it.
func proxy() (*assertion.KeyRing, *httptest.Server) {
	raw, err := assertion.GenerateSigningKey()
	if err != nil {
		log.Fatal(err)
	}
	ring, err := assertion.ParseSigningKey(raw)
	if err != nil {
		log.Fatal(err)
	}
	return ring, httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", ring.ETag())
		_, _ = w.Write(ring.JWKS())
	}))
}

func get(url, token string) string {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	if token != "" {
		req.Header.Set(assertion.HeaderAssertion, token)
	}
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}
