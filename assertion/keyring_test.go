package assertion

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

var noon = time.Unix(1_800_000_000, 0)

// RSA keys take a while to make, so the tests share them.
var (
	rsa2048 = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	rsa1024 = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(1024) })
)

func newRSA(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

func newEC(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEd25519(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func block(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

func sec1(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("EC PRIVATE KEY", der)
}

func pkcs1(key *rsa.PrivateKey) []byte {
	return block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

func join(blocks ...[]byte) []byte {
	var all []byte
	for _, b := range blocks {
		all = append(all, b...)
	}
	return all
}

// wrapped is base64 as `| base64` prints it.
func wrapped(b []byte) []byte {
	var out strings.Builder
	for text := base64.StdEncoding.EncodeToString(b); text != ""; {
		n := min(76, len(text))
		out.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return []byte(out.String())
}

func mustRing(t testing.TB, raw []byte) *KeyRing {
	t.Helper()
	ring, err := ParseSigningKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func newRing(t testing.TB) *KeyRing {
	t.Helper()
	raw, err := GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return mustRing(t, raw)
}

// thumbprint is go-jose's opinion of a key's id.
func thumbprint(t testing.TB, key crypto.Signer) string {
	t.Helper()
	jwk := jose.JSONWebKey{Key: key.Public()}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

func scalar(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseSigningKey(t *testing.T) {
	ec, ed, rs := newEC(t, elliptic.P256()), newEd25519(t), rsa2048()
	all := join(sec1(t, ec), pkcs1(rs), pkcs8(t, ed))
	rawURL := []byte(base64.RawURLEncoding.EncodeToString(scalar(t, ec)))
	tests := []struct {
		name string
		raw  []byte
		want []crypto.Signer
	}{
		{"EC as PKCS #8", pkcs8(t, ec), []crypto.Signer{ec}},
		{"EC as SEC 1", sec1(t, ec), []crypto.Signer{ec}},
		{"EC as openssl ecparam prints it", join(block("EC PARAMETERS", []byte{6, 1, 42}), sec1(t, ec)), []crypto.Signer{ec}},
		{"RSA as PKCS #8", pkcs8(t, rs), []crypto.Signer{rs}},
		{"RSA as PKCS #1", pkcs1(rs), []crypto.Signer{rs}},
		{"Ed25519", pkcs8(t, ed), []crypto.Signer{ed}},
		{"a wrong label", block("EC PRIVATE KEY", decodePEM(t, pkcs8(t, ec))), []crypto.Signer{ec}},
		{"several", all, []crypto.Signer{ec, rs, ed}},
		{"several in another order", join(pkcs8(t, ed), pkcs8(t, ec)), []crypto.Signer{ed, ec}},
		{"one twice", join(pkcs8(t, ec), sec1(t, ec)), []crypto.Signer{ec}},
		{"text around the blocks", join([]byte("my key\n"), pkcs8(t, ec), []byte("and\n"), pkcs8(t, ed), []byte("end")), []crypto.Signer{ec, ed}},
		{"CRLF", []byte(strings.ReplaceAll(string(all), "\n", "\r\n")), []crypto.Signer{ec, rs, ed}},
		{"base64", []byte(base64.StdEncoding.EncodeToString(all)), []crypto.Signer{ec, rs, ed}},
		{"base64 in lines", wrapped(all), []crypto.Signer{ec, rs, ed}},
		{"base64 in indented lines", []byte("  " + strings.ReplaceAll(string(wrapped(all)), "\n", "\r\n  ")), []crypto.Signer{ec, rs, ed}},
		{"base64url without padding", []byte(base64.RawURLEncoding.EncodeToString(all)), []crypto.Signer{ec, rs, ed}},
		{"a bare scalar", []byte(base64.StdEncoding.EncodeToString(scalar(t, ec))), []crypto.Signer{ec}},
		{"a bare scalar and a line break", []byte(base64.StdEncoding.EncodeToString(scalar(t, ec)) + "\n"), []crypto.Signer{ec}},
		{"a bare scalar in base64url", rawURL, []crypto.Signer{ec}},
		{"a bare scalar, decoded", scalar(t, ec), []crypto.Signer{ec}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ring, err := ParseSigningKey(tt.raw)
			if err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for _, key := range tt.want {
				want = append(want, thumbprint(t, key))
			}
			for _, k := range ring.public {
				got = append(got, k.ID)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("key ids -want +got:\n%s", diff)
			}
			if ring.KeyID() != want[0] {
				t.Error("another key than the first signs")
			}
		})
	}
}

func decodePEM(t testing.TB, raw []byte) []byte {
	t.Helper()
	b, _ := pem.Decode(raw)
	if b == nil {
		t.Fatal("no PEM block")
	}
	return b.Bytes
}

func TestParseSigningKeyRefuses(t *testing.T) {
	ec := newEC(t, elliptic.P256())
	good := pkcs8(t, ec)
	public, err := x509.MarshalPKIXPublicKey(ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	text := string(good)
	const make1 = "; make one with: countersign keys new"
	tests := []struct {
		name string
		raw  []byte
		want string
	}{
		{"nothing", nil, "signing key: it is empty" + make1},
		{"spaces", []byte(" \n"), "signing key: it is empty" + make1},
		{"a password", []byte("hunter2!"), "signing key: neither a PEM nor base64 of one" + make1},
		{"a password of 32 characters", []byte("correct horse, battery staple 12"), "signing key: neither a PEM nor base64 of one" + make1},
		{"base64 of 16 bytes", []byte("AAAAAAAAAAAAAAAAAAAAAA=="), "signing key: base64 of neither a PEM nor a 32-byte key" + make1},
		{"the scalar 0", make([]byte, 32), "signing key: these 32 bytes are no P-256 key" + make1},
		{"a scalar beyond the order", []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\xff", 32)))), "signing key: these 32 bytes are no P-256 key" + make1},
		{"a megabyte", make([]byte, 1<<20), "signing key: 1048576 bytes is too long to be one"},
		{"half a block", good[:len(good)/2], "signing key, block 1 of 1: its lines are damaged; copy the whole block again, from BEGIN to END"},
		{"a damaged second block", join(good, []byte(strings.Replace(text, "\nM", "\n*M", 1)), good), "signing key, block 2 of 3: its lines are damaged; copy the whole block again, from BEGIN to END"},
		{"a block cut by the next", join(good, good[:len(good)/2], []byte("\n"), good), "signing key, block 2 of 3: its lines are damaged; copy the whole block again, from BEGIN to END"},
		{"a public key", block("PUBLIC KEY", public), "signing key, block 1 of 1 (PUBLIC KEY): it is public; the private key is needed here"},
		{"a certificate after a key", join(good, block("CERTIFICATE", []byte{1})), "signing key, block 2 of 2 (CERTIFICATE): it is public; the private key is needed here"},
		{"only parameters", block("EC PARAMETERS", []byte{1}), "signing key: no PEM block holds a private key" + make1},
		{"an encrypted key", block("ENCRYPTED PRIVATE KEY", []byte{1}), "signing key, block 1 of 1 (ENCRYPTED PRIVATE KEY): it is encrypted; decrypt it with: openssl pkey -in FILE"},
		{"an OpenSSH key", block("OPENSSH PRIVATE KEY", []byte{1}), "signing key, block 1 of 1 (OPENSSH PRIVATE KEY): it is in OpenSSH's own format; convert it with: ssh-keygen -p -m PKCS8 -f FILE"},
		{"something else", block("s3cr3t", []byte{1}), "signing key, block 1 of 1 (unknown type): not a private key that can be used (EC P-256, RSA or Ed25519)" + make1},
		{"P-384", sec1(t, newEC(t, elliptic.P384())), "signing key, block 1 of 1 (EC PRIVATE KEY): an EC key on P-384: only P-256 is supported" + make1},
		{"RSA of 1024 bits", pkcs1(rsa1024()), "signing key, block 1 of 1 (RSA PRIVATE KEY): an RSA key of 1024 bits: it must have 2048 to 8192" + make1},
		{"33 blocks", []byte(strings.Repeat(text, 33)), "signing key: 33 PEM blocks are too many; drop the keys that are no longer used"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseSigningKey(tt.raw)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestKeyRingDoesNotPrint(t *testing.T) {
	ring := newRing(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got, want := fmt.Sprintf(verb, ring), "assertion.KeyRing "+ring.KeyID(); got != want {
			t.Errorf("%s prints %q, want %q", verb, got, want)
		}
	}
}

func TestJWKS(t *testing.T) {
	ec, ed, rs := newEC(t, elliptic.P256()), newEd25519(t), rsa2048()
	raw := join(pkcs8(t, ec), pkcs8(t, rs), pkcs8(t, ed))
	ring := mustRing(t, raw)
	if again := mustRing(t, raw); string(again.JWKS()) != string(ring.JWKS()) || again.ETag() != ring.ETag() {
		t.Error("the same keys give another set")
	}
	if other := mustRing(t, pkcs8(t, ec)); other.ETag() == ring.ETag() {
		t.Error("other keys give the same tag")
	}
	if !regexp.MustCompile(`^"[0-9a-f]{32}"$`).MatchString(ring.ETag()) {
		t.Errorf("the tag is %s", ring.ETag())
	}

	var set jose.JSONWebKeySet
	if err := json.Unmarshal(ring.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		key crypto.Signer
		alg string
	}{{ec, "ES256"}, {rs, "RS256"}, {ed, "EdDSA"}}
	if len(set.Keys) != len(want) {
		t.Fatalf("%d keys in %s", len(set.Keys), ring.JWKS())
	}
	for i, w := range want {
		got := set.Keys[i]
		if !got.Valid() || !got.IsPublic() || got.Algorithm != w.alg || got.Use != "sig" || got.KeyID != thumbprint(t, w.key) {
			t.Errorf("key %d: %+v", i, got)
		}
		if equal, ok := w.key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !equal.Equal(got.Key) {
			t.Errorf("key %d is another key", i)
		}
	}
	var members struct{ Keys []map[string]any }
	if err := json.Unmarshal(ring.JWKS(), &members); err != nil {
		t.Fatal(err)
	}
	for _, key := range members.Keys {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "oth"} {
			if _, ok := key[private]; ok {
				t.Errorf("the set publishes %q", private)
			}
		}
	}

	// What we publish, we read.
	keys, err := parseJWKS(ring.JWKS())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ring.public, keys, cmp.Comparer(func(a, b *rsa.PublicKey) bool { return a.Equal(b) }),
		cmp.Comparer(func(a, b *ecdsa.PublicKey) bool { return a.Equal(b) })); diff != "" {
		t.Errorf("-published +read:\n%s", diff)
	}
}

func TestParseJWKSLeavesOutWhatItWouldNotUse(t *testing.T) {
	good := `{"kty":"OKP","crv":"Ed25519","kid":"good","x":"` + base64.RawURLEncoding.EncodeToString(newEd25519(t)[32:]) + `"}`
	b64 := func(n int) string { return base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("\xff", n))) }
	for name, bad := range map[string]string{
		"a symmetric key":      `{"kty":"oct","k":"AAAA"}`,
		"an encryption key":    strings.Replace(good, `"kid"`, `"use":"enc","kid"`, 1),
		"another algorithm":    strings.Replace(good, `"kid"`, `"alg":"HS256","kid"`, 1),
		"off the curve":        `{"kty":"EC","crv":"P-256","x":"` + b64(32) + `","y":"` + b64(32) + `"}`,
		"short coordinates":    `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`,
		"another curve":        `{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}`,
		"a short modulus":      `{"kty":"RSA","n":"` + b64(128) + `","e":"AQAB"}`,
		"a huge modulus":       `{"kty":"RSA","n":"` + b64(4096) + `","e":"AQAB"}`,
		"the exponent 1":       `{"kty":"RSA","n":"` + b64(256) + `","e":"AQ"}`,
		"an even exponent":     `{"kty":"RSA","n":"` + b64(256) + `","e":"BA"}`,
		"a huge exponent":      `{"kty":"RSA","n":"` + b64(256) + `","e":"` + b64(8) + `"}`,
		"a short Ed25519":      `{"kty":"OKP","crv":"Ed25519","x":"AAAA"}`,
		"X25519":               `{"kty":"OKP","crv":"X25519","x":"` + b64(32) + `"}`,
		"wrong types":          `{"kty":7}`,
		"no object":            `"x"`,
		"a very long key id":   strings.Replace(good, `"good"`, `"`+strings.Repeat("x", 300)+`"`, 1),
		"base64 that is wrong": strings.Replace(good, `"x":"`, `"x":"*`, 1),
	} {
		keys, err := parseJWKS([]byte(`{"keys":[` + bad + `,` + good + `]}`))
		if err != nil || len(keys) != 1 || keys[0].ID != "good" {
			t.Errorf("%s: got %v, %v", name, keys, err)
		}
		if keys, err := parseJWKS([]byte(`{"keys":[` + bad + `]}`)); err == nil {
			t.Errorf("%s alone: got %v", name, keys)
		}
	}
	for _, bad := range []string{"", "[]", "{}", `{"keys":{}}`, "<html>"} {
		if keys, err := parseJWKS([]byte(bad)); err == nil {
			t.Errorf("%q: got %v", bad, keys)
		}
	}
	many := `{"keys":[` + strings.TrimSuffix(strings.Repeat(good+",", 100), ",") + `]}`
	if keys, err := parseJWKS([]byte(many)); err != nil || len(keys) != maxKeys {
		t.Errorf("of 100 keys: got %d, %v", len(keys), err)
	}
}

func TestParsePublicKey(t *testing.T) {
	ec, rs := newEC(t, elliptic.P256()), rsa2048()
	pkix, err := x509.MarshalPKIXPublicKey(ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotAfter: noon}
	der, err := x509.CreateCertificate(rand.Reader, template, template, rs.Public(), rs)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		raw  []byte
		want []crypto.Signer
	}{
		{"a public key", block("PUBLIC KEY", pkix), []crypto.Signer{ec}},
		{"an RSA public key", block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rs.PublicKey)), []crypto.Signer{rs}},
		{"a certificate", block("CERTIFICATE", der), []crypto.Signer{rs}},
		{"the first of a chain", join(block("CERTIFICATE", der), block("CERTIFICATE", []byte{1})), []crypto.Signer{rs}},
		{"a signing key", pkcs8(t, ec), []crypto.Signer{ec}},
		{"a ring in base64", wrapped(join(pkcs8(t, ec), pkcs1(rs))), []crypto.Signer{ec, rs}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source, err := ParsePublicKey(tt.raw)
			if err != nil {
				t.Fatal(err)
			}
			keys, err := source.Keys(context.Background(), "any id")
			if err != nil || len(keys) != len(tt.want) {
				t.Fatalf("got %v, %v", keys, err)
			}
			for i, want := range tt.want {
				if equal, ok := want.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !equal.Equal(keys[i].Public) {
					t.Errorf("key %d is another key", i)
				}
			}
		})
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "a word": []byte("x"), "a broken certificate": block("CERTIFICATE", []byte{1}),
		"a broken key": block("PUBLIC KEY", []byte{1}), "a broken private key": block("PRIVATE KEY", []byte{1}),
		"a short RSA key": block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsa1024().PublicKey)),
	} {
		if _, err := ParsePublicKey(raw); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzParseSigningKey(f *testing.F) {
	raw, err := GenerateSigningKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(wrapped(raw))
	f.Add(pkcs1(rsa2048()))
	f.Add(make([]byte, 32))
	f.Add([]byte("-----BEGIN -----BEGIN "))
	sum := sha256.Sum256(raw)
	f.Add(sum[:])
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := ParsePublicKey(raw); err != nil && len(err.Error()) > 300 {
			t.Errorf("a long error: %v", err)
		}
		ring, err := ParseSigningKey(raw)
		if err != nil {
			if len(err.Error()) > 300 {
				t.Errorf("a long error: %v", err)
			}
			return
		}
		token, err := ring.Sign(Claims{Issuer: "i", Audience: "a", IssuedAt: noon, ExpiresAt: noon.Add(1)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := testVerifier(ring).Verify(t.Context(), token); err != nil {
			t.Error(err)
		}
	})
}
