package e2e

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/assertion"
)

const (
	headerAssertion = "X-Pomerium-Jwt-Assertion"
	headerOriginal  = "X-Pomerium-Jwt-Assertion-For"
)

// verify checks an assertion against the key set that a host publishes.
func (w *world) verify(t testing.TB, keysAt, audience, token string) *assertion.Claims {
	t.Helper()
	keys, err := assertion.NewRemoteKeys(w.url(keysAt, "/.well-known/pomerium/jwks.json"), w.client().Client)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	claims, err := assertion.NewVerifier(assertion.VerifierConfig{
		Keys: keys, Audience: w.host(audience), Issuers: []string{"pomerium-proxy"},
	}).Verify(t.Context(), token)
	if err != nil {
		t.Fatalf("the assertion for %s does not verify: %v", audience, err)
	}
	return claims
}

// TestHops is the example of the design: a user's request to App, App's to API
// for that user, API's to API2.
func TestHops(t *testing.T) {
	w := sharedWorld.get(t)
	ana := w.client()
	first := w.signIn(t, ana, "ana", w.url("app", "/hops?x=1")).echo(t)
	if first.Target != "/hops?x=1" {
		t.Errorf("the sign-in ended at %s, want /hops?x=1", first.Target)
	}
	user := first.value(headerAssertion)
	claims := w.verify(t, "app", "app", user)
	if claims.Subject != "ana" || claims.Email != "ana@companydomain.com" || first.value("x-email") != claims.Email {
		t.Errorf("App was told of %+v, claim header %q", claims, first.value("x-email"))
	}
	if got := first.values(headerOriginal); len(got) != 0 {
		t.Errorf("App got an original user: %q", got)
	}

	hop := func(from *received, host, account string) *received {
		token := w.serviceAccount(t, account)
		r := request(t, "GET", w.url(host, "/"), "Authorization", "Bearer Pomerium-"+token)
		for _, name := range []string{headerAssertion, headerOriginal} {
			r.Header[name] = from.values(name)
		}
		got := w.client().send(t, r).echo(t)
		if claims := w.verify(t, "app", host, got.value(headerAssertion)); claims.Subject != account || claims.Email != "" {
			t.Errorf("%s was told of %+v, want %s", host, claims, account)
		}
		if got.value(headerOriginal) != user {
			t.Errorf("%s got the original user %q, want %q", host, got.values(headerOriginal), user)
		}
		return got
	}
	hop(hop(first, "api", "api-access"), "api2", "api2-access")
}

// TestOriginalUser shows whose word counts for who the original user is: that of
// this deployment's keys, in an assertion that is not over.
func TestOriginalUser(t *testing.T) {
	w := sharedWorld.get(t)
	ring, now := w.keys(t), time.Now()
	sign := func(ring *assertion.KeyRing, expires time.Duration) string {
		token, err := ring.Sign(assertion.Claims{
			Issuer: "pomerium-proxy", Audience: w.host("app"), Subject: "ana", User: "ana", IssuedAt: now.Add(-10 * time.Minute), ExpiresAt: now.Add(expires),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.secret(token)
		return token
	}
	good, expired, foreign := sign(ring, time.Minute), sign(ring, -2*time.Minute), sign(foreignKeys(t), time.Minute)
	token := w.serviceAccount(t, "api-access")
	tests := []struct {
		name                string
		assertion, original []string
		want                string
	}{
		{"nothing", nil, nil, ""},
		{"the caller's assertion", []string{good}, nil, good},
		{"the original user's", nil, []string{good}, good},
		{"both", []string{sign(ring, 2*time.Minute)}, []string{good}, good},
		{"a foreign one is not replaced by the caller's", []string{good}, []string{foreign}, ""},
		{"a foreign one", []string{foreign}, nil, ""},
		{"an expired one", nil, []string{expired}, ""},
		{"no token at all", nil, []string{"ana"}, ""},
		{"no signature", nil, []string{"eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + "."}, ""},
		{"of two the first", nil, []string{good, foreign}, good},
		{"of two the first, which is bad", nil, []string{foreign, good}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, c := range []*agent{w.client(), w.client1()} {
				r := request(t, "GET", w.url("api", "/"), "Authorization", "Bearer Pomerium-"+token)
				r.Header[headerAssertion], r.Header[headerOriginal] = test.assertion, test.original
				got := c.send(t, r).echo(t)
				if original := got.values(headerOriginal); strings.Join(original, " ") != test.want {
					t.Errorf("passed on %q, want %q", original, test.want)
				}
				if len(got.values(headerAssertion)) != 1 || got.value(headerAssertion) == good {
					t.Errorf("assertions %q", got.values(headerAssertion))
				}
			}
		})
	}
}

// foreignKeys are those of another deployment.
func foreignKeys(t testing.TB) *assertion.KeyRing {
	t.Helper()
	key, err := assertion.GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := assertion.ParseSigningKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// TestRefusedUser shows what the API tells a person who has no business there,
// in each form, and that the log says the same.
func TestRefusedUser(t *testing.T) {
	w := sharedWorld.get(t)
	ana := w.client()
	page := w.signIn(t, ana, "ana", w.url("api", "/page"))
	if page.StatusCode != http.StatusForbidden || !strings.Contains(page.Body, "api-access") || !strings.Contains(page.Body, "ana@companydomain.com") {
		t.Fatalf("%s: %s", page.Status, page.Body)
	}
	for accept, contentType := range map[string]string{
		"text/html": "text/html; charset=utf-8", "application/json": "application/json", "text/plain": "text/plain; charset=utf-8",
	} {
		a := ana.send(t, request(t, "GET", w.url("api", "/refused"), "Accept", accept))
		id := a.Header.Get("X-Request-Id")
		if a.StatusCode != http.StatusForbidden || a.Header.Get("Content-Type") != contentType || id == "" ||
			!strings.Contains(a.Body, id) || !strings.Contains(a.Body, "api-access") {
			t.Errorf("Accept: %s: %s, %s, request %q: %s", accept, a.Status, a.Header.Get("Content-Type"), id, a.Body)
		}
		line := w.decision(t, id)
		if line["outcome"] != "forbidden" || line["user"] != "ana" || line["route"] != "API" || line["line"] == float64(0) {
			t.Errorf("the log says of request %s: %v", id, line)
		}
		if accept != "application/json" {
			continue
		}
		var got struct {
			Code      string
			Status    int
			Reasons   []string
			RequestID string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil || got.Code != "forbidden" || got.Status != 403 || got.RequestID != id {
			t.Errorf("%+v, %v", got, err)
		}
		if diff := cmp.Diff([]string{"user-unauthorized"}, got.Reasons); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
	}
	api, err := w.upstream("api")
	if err != nil {
		t.Fatal(err)
	}
	if got := api.requests("/refused"); len(got) != 0 {
		t.Errorf("the upstream got %+v", got)
	}
}

// TestCredentialsStayHere sends credentials in each form, together with what is
// not ours: the first do not reach the upstream, the second do.
func TestCredentialsStayHere(t *testing.T) {
	w := sharedWorld.get(t)
	token := w.serviceAccount(t, "api-access")
	session := w.session(t, "ana", w.url("app", "/")).cookie(t, w.url("app", "/"), "_pomerium")
	if session == "" {
		t.Fatal("no session cookie")
	}
	tests := []struct {
		name, host, path string
		headers          []string
		target, cookie   string
		authorization    []string
	}{
		{"bearer token", "api", "/a", []string{"Authorization", "Bearer Pomerium-" + token}, "/a", "", nil},
		{"bearer token in other case", "api", "/a", []string{"authorization", "bearer pomerium-" + token}, "/a", "", nil},
		{"pomerium scheme", "api", "/a", []string{"Authorization", "Pomerium " + token}, "/a", "", nil},
		{"header of its own", "api", "/a", []string{"X-Pomerium-Authorization", token}, "/a", "", nil},
		{"header of its own beside an application's", "api", "/a", []string{"X-Pomerium-Authorization", token, "Authorization", "Bearer theirs"}, "/a", "", []string{"Bearer theirs"}},
		{"query", "api", "/a?b=c&pomerium_session=" + token + "&d=e", nil, "/a?b=c&d=e", "", nil},
		{"cookie", "app", "/a", []string{"Cookie", "theirs=1; _pomerium=" + session + "; also=2"}, "/a", "theirs=1; also=2", nil},
		{"cookie alone", "app", "/a", []string{"Cookie", "_pomerium=" + session}, "/a", "", nil},
		{"the cookie's value in a header", "app", "/a", []string{"X-Pomerium-Authorization", session}, "/a", "", nil},
		{"the cookie's value as a token", "app", "/a", []string{"Authorization", "Bearer Pomerium-" + session}, "/a", "", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, c := range []*agent{w.client(), w.client1()} {
				got := c.send(t, request(t, "GET", w.url(test.host, test.path), test.headers...)).echo(t)
				if got.Target != test.target || got.value("cookie") != test.cookie || !cmp.Equal(got.values("authorization"), test.authorization) ||
					len(got.values("x-pomerium-authorization")) != 0 {
					t.Errorf("the upstream got %+v", got)
				}
				all, _ := json.Marshal(got)
				if strings.Contains(string(all), token) || strings.Contains(string(all), session) {
					t.Errorf("a credential reached the upstream: %s", all)
				}
			}
		})
	}
}

// TestAssertionIsStandard reads the assertion as any JWT library would see it.
func TestAssertionIsStandard(t *testing.T) {
	w := sharedWorld.get(t)
	token := w.session(t, "ana", w.url("app", "/")).fetch(t, w.url("app", "/claims")).echo(t).value(headerAssertion)
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	var header struct{ Alg, Typ, Kid string }
	var claims struct {
		Iss, Aud, Sub, Email string
		Iat, Exp             int64
		Groups               []string
	}
	for i, into := range []any{&header, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if header.Alg != "ES256" || header.Typ != "JWT" || header.Kid != w.keys(t).KeyID() {
		t.Errorf("header %+v", header)
	}
	if claims.Iss != "pomerium-proxy" || claims.Aud != w.host("app") || claims.Sub != "ana" || claims.Email != "ana@companydomain.com" ||
		!cmp.Equal(claims.Groups, []string{"staff", "engineering"}) {
		t.Errorf("claims %+v", claims)
	}
	now := time.Now().Unix()
	if claims.Iat > now || claims.Iat < now-60 || claims.Exp-claims.Iat != 300 {
		t.Errorf("issued %d s ago, lives %d s", now-claims.Iat, claims.Exp-claims.Iat)
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) != 64 {
		t.Errorf("signature of %d bytes: %v", len(signature), err)
	}
}

// TestVerifyCommand shows which assertions the command line takes for good.
func TestVerifyCommand(t *testing.T) {
	w := sharedWorld.get(t)
	ring, now := w.keys(t), time.Now()
	foreign := foreignKeys(t)
	sign := func(ring *assertion.KeyRing, issued, expires time.Duration) string {
		token, err := ring.Sign(assertion.Claims{
			Issuer: "pomerium-proxy", Audience: w.host("app"), Subject: "ana", User: "ana", Email: "ana@companydomain.com",
			IssuedAt: now.Add(issued), ExpiresAt: now.Add(expires),
		})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(ring, 0, time.Minute)
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	tests := []struct {
		name, audience, token string
		code                  int
	}{
		{"a good one", "app", good, 0},
		{"for somebody else", "api", good, 1},
		{"expired", "app", sign(ring, -10*time.Minute, -2*time.Minute), 1},
		{"expired within the skew", "app", sign(ring, -10*time.Minute, -45*time.Second), 0},
		{"issued by a clock that is ahead", "app", sign(ring, 45*time.Second, 5*time.Minute), 0},
		{"issued too far ahead", "app", sign(ring, 2*time.Minute, 5*time.Minute), 1},
		{"another key", "app", sign(foreign, 0, time.Minute), 1},
		{"no signature", "app", none, 1},
		{"claims of another", "app", parts[0] + "." + strings.Split(sign(ring, -time.Second, time.Minute), ".")[1] + "." + parts[2], 1},
		{"no token", "app", "not-a-token", 1},
	}
	jwks := w.url("app", "/.well-known/pomerium/jwks.json")
	key := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(key, w.signingKey(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		for _, keys := range [][2]string{{"--jwks", jwks}, {"--key", key}} {
			r := w.cli(t, "verify", keys[0], keys[1], "--audience", w.host(test.audience), test.token)
			if r.code != test.code {
				t.Errorf("%s, %s: exit code %d, want %d: %s%s", test.name, keys[0], r.code, test.code, r.stdout, r.stderr)
			}
			if r.code == 1 && (!strings.HasPrefix(r.stderr, "countersign: the assertion is bad: ") || r.stdout != "") {
				t.Errorf("%s: says %q, prints %q", test.name, r.stderr, r.stdout)
			}
			if r.code == 0 && !strings.Contains(r.stdout, `"ana@companydomain.com"`) {
				t.Errorf("%s: prints %q", test.name, r.stdout)
			}
		}
	}
}
