package assertion

import (
	"crypto"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

func testVerifier(keys KeySource) *Verifier {
	return NewVerifier(VerifierConfig{Keys: keys, Now: func() time.Time { return noon }})
}

func fullClaims() Claims {
	return Claims{
		Issuer: "pomerium-proxy", Audience: "app.example.com", ID: "6f1b7a9e-0000-4000-8000-000000000000",
		Subject: "u1", User: "u1", Email: "alice@example.com", SessionID: "s1", Name: "Alice Ängström",
		Groups: []string{"eng", `odd "group"`}, IssuedAt: noon, ExpiresAt: noon.Add(Lifetime),
		Extra: map[string]string{"department": "R&D", "given_name": "Alice"},
	}
}

func TestSignedHeaderAndClaims(t *testing.T) {
	ring := newRing(t)
	token, err := ring.Sign(fullClaims())
	if err != nil {
		t.Fatal(err)
	}
	header, payload, _ := strings.Cut(token, ".")
	payload, _, _ = strings.Cut(payload, ".")
	for _, part := range []struct{ got, want string }{
		{header, `{"alg":"ES256","typ":"JWT","kid":"` + ring.KeyID() + `"}`},
		{payload, `{"iss":"pomerium-proxy","aud":"app.example.com","jti":"6f1b7a9e-0000-4000-8000-000000000000",` +
			`"iat":1800000000,"exp":1800000300,"sub":"u1","user":"u1","email":"alice@example.com",` +
			`"groups":["eng","odd \"group\""],"sid":"s1","name":"Alice Ängström","department":"R&D","given_name":"Alice"}`},
	} {
		got, err := base64.RawURLEncoding.DecodeString(part.got)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != part.want {
			t.Errorf("got  %s\nwant %s", got, part.want)
		}
	}
}

func TestSignFillsIn(t *testing.T) {
	ring := newRing(t)
	c := Claims{
		Issuer: "i", Audience: "a", IssuedAt: noon, ExpiresAt: noon.Add(time.Minute),
		Extra: map[string]string{"sub": "mallory", "iss": "x", "exp": "9999999999", "nbf": "0", "groups": "admin", "Sub": "mallory", "x": "\xff"},
	}
	first, err := ring.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	second, err := ring.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := testVerifier(ring).Verify(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	other, err := testVerifier(ring).Verify(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID == other.ID {
		t.Error("two assertions have one id")
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(got.ID) {
		t.Errorf("the id is %q", got.ID)
	}
	want := &Claims{
		Issuer: "i", Audience: "a", ID: got.ID, IssuedAt: noon, ExpiresAt: noon.Add(time.Minute), Groups: []string{},
		Extra: map[string]string{"Sub": "mallory", "x": "\ufffd"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSignRefuses(t *testing.T) {
	ring := newRing(t)
	for name, change := range map[string]func(*Claims){
		"no issuer":      func(c *Claims) { c.Issuer = "" },
		"no audience":    func(c *Claims) { c.Audience = "" },
		"no time":        func(c *Claims) { c.IssuedAt = time.Time{} },
		"no expiry":      func(c *Claims) { c.ExpiresAt = time.Time{} },
		"a life of none": func(c *Claims) { c.ExpiresAt = c.IssuedAt },
		"64 KiB":         func(c *Claims) { c.Name = strings.Repeat("x", MaxSize) },
	} {
		c := fullClaims()
		change(&c)
		if token, err := ring.Sign(c); err == nil {
			t.Errorf("%s: signed %.80s", name, token)
		}
	}
}

// Other libraries read what we sign, and we read what they sign, for each type
// of key.
func TestInterop(t *testing.T) {
	for _, tt := range []struct {
		alg jose.SignatureAlgorithm
		key crypto.Signer
	}{
		{jose.ES256, newEC(t, elliptic.P256())}, {jose.RS256, rsa2048()}, {jose.EdDSA, newEd25519(t)},
	} {
		t.Run(string(tt.alg), func(t *testing.T) {
			ring := mustRing(t, pkcs8(t, tt.key))
			want := fullClaims()
			for range 20 { // signatures with leading zeros are rare
				token, err := ring.Sign(want)
				if err != nil {
					t.Fatal(err)
				}
				jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{tt.alg})
				if err != nil {
					t.Fatal(err)
				}
				var set jose.JSONWebKeySet
				if err := json.Unmarshal(ring.JWKS(), &set); err != nil {
					t.Fatal(err)
				}
				payload, err := jws.Verify(set)
				if err != nil {
					t.Fatal(err)
				}
				wantPayload, err := json.Marshal(want)
				if err != nil {
					t.Fatal(err)
				}
				// json.Marshal escapes & in what MarshalJSON returns.
				if got := strings.ReplaceAll(string(payload), "&", `\u0026`); got != string(wantPayload) {
					t.Errorf("got  %s\nwant %s", got, wantPayload)
				}
			}

			token := joseSign(t, tt.alg, tt.key, ring.KeyID(), string(want.appendJSON(nil)), nil)
			got, err := testVerifier(ring).Verify(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestShortSignaturesArePadded(t *testing.T) {
	raw, err := rawSignature([]byte{0x30, 0x07, 0x02, 0x01, 0x05, 0x02, 0x02, 0x00, 0x80})
	if err != nil || len(raw) != 64 || raw[31] != 5 || raw[63] != 0x80 {
		t.Errorf("got %x, %v", raw, err)
	}
	if raw, err := rawSignature([]byte{0x30, 0x00}); err == nil {
		t.Errorf("nothing gives %x", raw)
	}
}

// joseSign signs any payload under any header.
func joseSign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid, payload string, extra map[jose.HeaderKey]any) string {
	t.Helper()
	options := (&jose.SignerOptions{ExtraHeaders: extra}).WithType("JWT")
	if kid != "" {
		options = options.WithHeader("kid", kid)
	}
	for name, value := range extra {
		options = options.WithHeader(name, value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestVerifyTime(t *testing.T) {
	ring := newRing(t)
	key := ring.signer.key
	at := func(d time.Duration) int64 { return noon.Add(d).Unix() }
	tests := []struct {
		name   string
		claims string
		skew   time.Duration
		want   error
	}{
		{"good for another second", fmt.Sprintf(`"exp":%d`, at(time.Second)), 0, nil},
		{"expired 60 s ago", fmt.Sprintf(`"exp":%d`, at(-time.Minute)), 0, nil},
		{"expired 61 s ago", fmt.Sprintf(`"exp":%d`, at(-61*time.Second)), 0, ErrExpired},
		{"expired 60.5 s ago", fmt.Sprintf(`"exp":%d.5`, at(-61*time.Second)), 0, ErrExpired},
		{"expired a second ago, no skew", fmt.Sprintf(`"exp":%d`, at(-time.Second)), -1, ErrExpired},
		{"expired 5 min ago, skew of 10", fmt.Sprintf(`"exp":%d`, at(-5*time.Minute)), 10 * time.Minute, nil},
		{"expired long ago", `"exp":0`, 0, ErrExpired},
		{"dated 60 s ahead", fmt.Sprintf(`"exp":%d,"iat":%d`, at(time.Hour), at(time.Minute)), 0, nil},
		{"dated 61 s ahead", fmt.Sprintf(`"exp":%d,"iat":%d`, at(time.Hour), at(61*time.Second)), 0, ErrNotYetValid},
		{"beginning in 60 s", fmt.Sprintf(`"exp":%d,"nbf":%d`, at(time.Hour), at(time.Minute)), 0, nil},
		{"beginning in 61 s", fmt.Sprintf(`"exp":%d,"nbf":%d`, at(time.Hour), at(61*time.Second)), 0, ErrNotYetValid},
		{"no expiry", `"iat":1`, 0, ErrMalformed},
		{"null as expiry", `"exp":null`, 0, ErrMalformed},
		{"text as expiry", `"exp":"1900000000"`, 0, ErrMalformed},
		{"a negative expiry", `"exp":-1`, 0, ErrMalformed},
		{"an expiry without end", `"exp":1e300`, 0, ErrMalformed},
		{"text as iat", fmt.Sprintf(`"exp":%d,"iat":"now"`, at(time.Hour)), 0, ErrMalformed},
		{"true as nbf", fmt.Sprintf(`"exp":%d,"nbf":true`, at(time.Hour)), 0, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token := joseSign(t, jose.ES256, key, ring.KeyID(), "{"+tt.claims+"}", nil)
			v := NewVerifier(VerifierConfig{Keys: ring, Now: func() time.Time { return noon }, Skew: tt.skew})
			if _, err := v.Verify(t.Context(), token); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestVerifyAudienceAndIssuer(t *testing.T) {
	ring := newRing(t)
	tests := []struct {
		name, claims string
		audience     string
		issuers      []string
		want         error
		wantAudience string
	}{
		{"the audience", `"aud":"app"`, "app", nil, nil, "app"},
		{"one of several", `"aud":["x","app"]`, "app", nil, nil, "app"},
		{"any", `"aud":"app"`, "", nil, nil, "app"},
		{"any of several", `"aud":["x","app"]`, "", nil, nil, "x"},
		{"any, and none given", `"sub":"u"`, "", nil, nil, ""},
		{"another", `"aud":"app"`, "api", nil, ErrAudience, ""},
		{"another case", `"aud":"App"`, "app", nil, ErrAudience, ""},
		{"a longer one", `"aud":"app.example.com"`, "app", nil, ErrAudience, ""},
		{"none given", `"sub":"u"`, "app", nil, ErrAudience, ""},
		{"null given", `"aud":null`, "app", nil, ErrAudience, ""},
		{"an empty list", `"aud":[]`, "app", nil, ErrAudience, ""},
		{"a number", `"aud":7`, "app", nil, ErrMalformed, ""},
		{"a list of numbers", `"aud":[7]`, "app", nil, ErrMalformed, ""},
		{"AUD is another claim", `"AUD":"app"`, "app", nil, ErrAudience, ""},
		{"the issuer", `"iss":"me"`, "", []string{"you", "me"}, nil, ""},
		{"another issuer", `"iss":"me"`, "", []string{"you"}, ErrIssuer, ""},
		{"no issuer", `"sub":"u"`, "", []string{"you"}, ErrIssuer, ""},
		{"no issuer is allowed", `"iss":"me"`, "", []string{}, ErrIssuer, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token := joseSign(t, jose.ES256, ring.signer.key, ring.KeyID(), `{"exp":1800000001,`+tt.claims+"}", nil)
			v := NewVerifier(VerifierConfig{
				Keys: ring, Audience: tt.audience, Issuers: tt.issuers, Now: func() time.Time { return noon },
			})
			c, err := v.Verify(t.Context(), token)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && c.Audience != tt.wantAudience {
				t.Errorf("the audience is %q, want %q", c.Audience, tt.wantAudience)
			}
		})
	}
}

func TestVerifyReadsClaimsOfOthers(t *testing.T) {
	ring := newRing(t)
	payload := `{"exp":1800000001.5,"sub":"u","groups":"one","n":7,"list":["a",1],"o":{"x":null},"s":"text","null":null,"Email":"x@evil","name":null}`
	got, err := testVerifier(ring).Verify(t.Context(), joseSign(t, jose.ES256, ring.signer.key, ring.KeyID(), payload, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := &Claims{
		Subject: "u", Groups: []string{"one"}, ExpiresAt: noon.Add(1500 * time.Millisecond),
		Extra: map[string]string{"n": "7", "list": `["a",1]`, "o": `{"x":null}`, "s": "text", "Email": "x@evil"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// raw makes a token of any header, payload and signature.
func raw(header, payload string, signature []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(header)) + "." + b64([]byte(payload)) + "." + b64(signature)
}

func TestVerifyRefuses(t *testing.T) {
	ring, other := newRing(t), newRing(t)
	key, kid := ring.signer.key, ring.KeyID()
	const claims = `{"exp":1800000001}`
	// signs any header and payload with the ring's own key
	forge := func(header, payload string) string {
		text := raw(header, payload, nil)
		signature, err := ring.signer.sign([]byte(strings.TrimSuffix(text, ".")))
		if err != nil {
			t.Fatal(err)
		}
		return text + base64.RawURLEncoding.EncodeToString(signature)
	}
	good := fmt.Sprintf(`{"alg":"ES256","kid":%q}`, kid)
	if _, err := testVerifier(ring).Verify(t.Context(), forge(good, claims)); err != nil {
		t.Fatalf("the test's own token is refused: %v", err)
	}
	header := func(rest string) string { return fmt.Sprintf(`{"alg":"ES256","kid":%q,%s}`, kid, rest) }
	hmacKey := jose.SigningKey{Algorithm: jose.HS256, Key: ring.JWKS()}.Key
	rsaRing := mustRing(t, pkcs8(t, rsa2048()))
	foreign, err := other.Sign(fullClaims())
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(forge(good, claims), ".")
	tests := []struct {
		name, token string
		want        error
	}{
		{"nothing", "", ErrMalformed},
		{"one part", parts[0], ErrMalformed},
		{"two parts", parts[0] + "." + parts[1], ErrMalformed},
		{"four parts", strings.Join(parts, ".") + ".", ErrMalformed},
		{"a megabyte of dots", strings.Repeat(".", 1<<20), ErrMalformed},
		{"64 KiB of dots", strings.Repeat(".", MaxSize), ErrMalformed},
		{"a byte beyond 64 KiB", strings.Repeat("A", MaxSize+1), ErrMalformed},
		{"a genuine token of 70 KiB", forge(good, `{"exp":1800000001,"x":"`+strings.Repeat("x", 52<<10)+`"}`), ErrMalformed},
		{"padding", parts[0] + "." + parts[1] + "=." + parts[2], ErrMalformed},
		{"a line break", parts[0] + "." + parts[1] + "\n." + parts[2], ErrMalformed},
		{"a space", " " + strings.Join(parts, "."), ErrMalformed},
		{"standard base64", parts[0] + "." + parts[1] + ".++++", ErrMalformed},
		{"no signature", parts[0] + "." + parts[1] + ".", ErrSignature},
		{"alg none", raw(`{"alg":"none"}`, claims, nil), ErrAlgorithm},
		{"alg none, with our key id and signature", raw(fmt.Sprintf(`{"alg":"none","kid":%q}`, kid), claims, make([]byte, 64)), ErrAlgorithm},
		{"alg None", raw(`{"alg":"None"}`, claims, nil), ErrAlgorithm},
		{"no alg", forge(fmt.Sprintf(`{"kid":%q}`, kid), claims), ErrAlgorithm},
		{"alg in another case", forge(fmt.Sprintf(`{"alg":"es256","kid":%q}`, kid), claims), ErrAlgorithm},
		{"HS256 keyed with our public set", joseSign(t, jose.HS256, hmacKey, kid, claims, nil), ErrAlgorithm},
		{"ES384", joseSign(t, jose.ES384, newEC(t, elliptic.P384()), kid, claims, nil), ErrAlgorithm},
		{"PS256 of an RSA key", joseSign(t, jose.PS256, rsa2048(), rsaRing.KeyID(), claims, nil), ErrAlgorithm},
		{"RS256 for an EC key", joseSign(t, jose.RS256, rsa2048(), kid, claims, nil), ErrAlgorithm},
		{"EdDSA for an EC key", joseSign(t, jose.EdDSA, newEd25519(t), kid, claims, nil), ErrAlgorithm},
		{"another key under our key id", joseSign(t, jose.ES256, other.signer.key, kid, claims, nil), ErrSignature},
		{"another key without key id", joseSign(t, jose.ES256, other.signer.key, "", claims, nil), ErrSignature},
		{"another deployment", foreign, ErrUnknownKey},
		{"a key id of 300 bytes", joseSign(t, jose.ES256, key, strings.Repeat("x", 300), claims, nil), ErrMalformed},
		{"a key brought along", joseSign(t, jose.ES256, other.signer.key, "", claims,
			map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: other.signer.key.Public()}}), ErrSignature},
		{"crit", forge(header(`"crit":["b64"],"b64":false`), claims), ErrMalformed},
		{"crit that is empty", forge(header(`"crit":[]`), claims), ErrMalformed},
		{"crit that is null", forge(header(`"crit":null`), claims), ErrMalformed},
		{"two algs", forge(header(`"alg":"ES256"`), claims), ErrMalformed},
		{"an access token", forge(header(`"typ":"at+jwt"`), claims), ErrMalformed},
		{"a typ of no string", forge(header(`"typ":7`), claims), ErrMalformed},
		{"a header of no object", forge(`["ES256"]`, claims), ErrMalformed},
		{"a header of nothing", forge(``, claims), ErrMalformed},
		{"a header and more", forge(good+"{}", claims), ErrMalformed},
		{"claims of no object", forge(good, `[]`), ErrMalformed},
		{"claims of nothing", forge(good, ``), ErrMalformed},
		{"claims and more", forge(good, claims+claims), ErrMalformed},
		{"half the claims", forge(good, `{"exp":1800000001`), ErrMalformed},
		{"two sub", forge(good, `{"exp":1800000001,"sub":"a","sub":"b"}`), ErrMalformed},
		{"two of another", forge(good, `{"exp":1800000001,"x":"a","x":"b"}`), ErrMalformed},
		{"a sub of no string", forge(good, `{"exp":1800000001,"sub":7}`), ErrMalformed},
		{"an email of no string", forge(good, `{"exp":1800000001,"email":["a"]}`), ErrMalformed},
		{"groups of no strings", forge(good, `{"exp":1800000001,"groups":[1]}`), ErrMalformed},
		{"deep nesting", forge(good, `{"exp":1800000001,"x":`+strings.Repeat("[", 20000)+`}`), ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := testVerifier(ring).Verify(t.Context(), tt.token)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", c, err, tt.want)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("a long error: %v", err)
			}
		})
	}
}

func TestEveryByteOfAnAssertionCounts(t *testing.T) {
	ring := newRing(t)
	token, err := ring.Sign(fullClaims())
	if err != nil {
		t.Fatal(err)
	}
	v := testVerifier(ring)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	b := []byte(token)
	for i := range b {
		for _, c := range []byte("Aa9_.=\n") {
			old := b[i]
			if old == c {
				continue
			}
			b[i] = c
			if _, err := v.Verify(t.Context(), string(b)); err == nil {
				t.Fatalf("accepted with %q at %d", c, i)
			}
			b[i] = old
		}
	}
}

func TestRotation(t *testing.T) {
	one, two := newEC(t, elliptic.P256()), newEd25519(t)
	before := mustRing(t, pkcs8(t, one))
	next := mustRing(t, join(pkcs8(t, one), pkcs8(t, two)))
	moved := mustRing(t, join(pkcs8(t, two), pkcs8(t, one)))
	after := mustRing(t, pkcs8(t, two))
	sign := func(r *KeyRing) string {
		token, err := r.Sign(fullClaims())
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, step := range []struct{ signs, verifies *KeyRing }{
		{before, next}, {next, before}, {next, moved}, {moved, next}, {moved, after}, {after, moved},
	} {
		if _, err := testVerifier(step.verifies).Verify(t.Context(), sign(step.signs)); err != nil {
			t.Errorf("%v refuses %v: %v", step.verifies, step.signs, err)
		}
	}
	if _, err := testVerifier(after).Verify(t.Context(), sign(before)); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("the dropped key: got %v", err)
	}
}

func TestATokenWithoutKeyIDFitsAnyKeyOfTheRing(t *testing.T) {
	one, two := newEC(t, elliptic.P256()), newEC(t, elliptic.P256())
	ring := mustRing(t, join(pkcs8(t, newEd25519(t)), pkcs8(t, one), pkcs8(t, two)))
	token := joseSign(t, jose.ES256, two, "", `{"exp":1800000001}`, nil)
	if _, err := testVerifier(ring).Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
}

// The sentences that countersign verify prints.
func TestErrorsExplain(t *testing.T) {
	ring := newRing(t)
	at := noon
	v := NewVerifier(VerifierConfig{
		Keys: ring, Audience: "api.example.com", Issuers: []string{"pomerium-proxy"}, Now: func() time.Time { return at },
	})
	sign := func(change func(*Claims)) string {
		c := fullClaims()
		change(&c)
		token, err := ring.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, tt := range []struct{ token, want string }{
		{sign(func(c *Claims) {}), `verify assertion: assertion is for another audience: it is for "app.example.com", not for "api.example.com"`},
		{sign(func(c *Claims) { c.Issuer = "x\n" }), `verify assertion: assertion is from another issuer: "x\n"`},
		{sign(func(c *Claims) { c.IssuedAt, c.ExpiresAt = noon.Add(-time.Hour), noon.Add(-2*time.Minute) }),
			`verify assertion: assertion has expired: it was good until 2027-01-15T07:58:00Z, 2m0s ago`},
		{sign(func(c *Claims) { c.IssuedAt = noon.Add(2 * time.Minute) }),
			`verify assertion: assertion is not valid yet: it is dated 2027-01-15T08:02:00Z; compare the clocks`},
		{raw(`{"alg":"none"}`, "{}", nil), `verify assertion: signature algorithm not allowed: "none"; only ES256, RS256 and EdDSA are`},
		{"x", `verify assertion: not a well-formed assertion: it does not have three parts`},
	} {
		if _, err := v.Verify(t.Context(), tt.token); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}
