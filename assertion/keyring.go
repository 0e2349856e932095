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
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// The algorithms, named as in a JOSE header.
const (
	es256 = "ES256"
	rs256 = "RS256"
	eddsa = "EdDSA"
)

// Key is a public key that checks assertions.
type Key struct {
	// ID is the key id that tokens name, "" for a key that fits any.
	ID string
	// Algorithm is ES256, RS256 or EdDSA, by the type of Public.
	Algorithm string
	// Public is an *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey.
	Public crypto.PublicKey
}

// KeySource finds the keys that a token may be signed with.
type KeySource interface {
	// Keys returns the keys with this id, or all of them for "". Where there
	// is none it returns ErrUnknownKey, and ErrKeysUnavailable where it could
	// not find out. The result must not be changed.
	Keys(ctx context.Context, id string) ([]Key, error)
}

// KeyRing is one or more signing keys. The first signs, and all of them are
// published and accepted, so that keys can be rotated: append the next key,
// later move it to the front, later drop the old one. A KeyRing is immutable
// and safe for concurrent use. It prints as its key ids only.
type KeyRing struct {
	signer signer
	public []Key
	jwks   []byte
	etag   string
}

// signer is the first key with its protected header, ready to be signed under.
type signer struct {
	key    crypto.Signer
	header string
}

// newKeyRing makes a ring of distinct keys; a repeated one counts once.
func newKeyRing(keys []crypto.Signer) (*KeyRing, error) {
	r := &KeyRing{}
	var set []byte
	for i, key := range keys {
		jwk, k, err := publicJWK(key.Public())
		if err != nil {
			return nil, err
		}
		if i == 0 {
			head := fmt.Sprintf(`{"alg":%q,"typ":"JWT","kid":%q}`, k.Algorithm, k.ID)
			r.signer = signer{key, base64url.EncodeToString([]byte(head)) + "."}
		}
		if _, err := r.Keys(context.Background(), k.ID); err == nil {
			continue
		}
		if len(r.public) > 0 {
			set = append(set, ',')
		}
		set = append(set, jwk...)
		r.public = append(r.public, k)
	}
	if len(r.public) == 0 {
		return nil, errors.New("signing key: there is none")
	}
	r.jwks = append(append([]byte(`{"keys":[`), set...), `]}`...)
	sum := sha256.Sum256(r.jwks)
	r.etag = `"` + hex.EncodeToString(sum[:16]) + `"`
	return r, nil
}

// GenerateSigningKey returns a new EC P-256 key as PEM (PKCS #8).
func GenerateSigningKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("generate signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// KeyID is the id of the key that signs.
func (r *KeyRing) KeyID() string { return r.public[0].ID }

// JWKS is the public part of every key as a JSON Web Key Set (RFC 7517), the
// same bytes for the same keys. The caller must not change it.
func (r *KeyRing) JWKS() []byte { return r.jwks }

// ETag is a strong entity tag for JWKS, quotes included.
func (r *KeyRing) ETag() string { return r.etag }

// Keys makes a ring the KeySource of what it signed itself.
func (r *KeyRing) Keys(_ context.Context, id string) ([]Key, error) {
	return findKeys(r.public, id)
}

// Format keeps the keys out of logs, whatever the verb.
func (r *KeyRing) Format(s fmt.State, _ rune) {
	_, _ = s.Write([]byte("assertion.KeyRing"))
	for _, k := range r.public {
		_, _ = s.Write([]byte(" " + k.ID))
	}
}

func findKeys(keys []Key, id string) ([]Key, error) {
	if id == "" && len(keys) > 0 {
		return keys, nil
	}
	for i, k := range keys {
		if k.ID == id {
			return keys[i : i+1 : i+1], nil
		}
	}
	return nil, fmt.Errorf("%w: key id %s", ErrUnknownKey, quote(id))
}

// Sign returns the assertion as a compact JWS. Issuer, Audience, IssuedAt and a
// later ExpiresAt are required; the rest may be empty.
func (r *KeyRing) Sign(c Claims) (string, error) {
	switch {
	case c.Issuer == "" || c.Audience == "":
		return "", errors.New("sign assertion: no issuer or no audience")
	case c.IssuedAt.IsZero() || !c.ExpiresAt.After(c.IssuedAt):
		return "", errors.New("sign assertion: it would never be valid")
	}
	if c.ID == "" {
		c.ID = newUUID()
	}
	payload := c.appendJSON(make([]byte, 0, 512))
	token := make([]byte, 0, len(r.signer.header)+base64url.EncodedLen(len(payload))+1+maxSignatureText)
	token = append(token, r.signer.header...)
	token = base64url.AppendEncode(token, payload)
	signature, err := r.signer.sign(token)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	token = base64url.AppendEncode(append(token, '.'), signature)
	if len(token) > MaxSize {
		return "", fmt.Errorf("sign assertion: %d bytes are more than any verifier reads: leave out groups or claims", len(token))
	}
	return string(token), nil
}

// maxSignatureText is what an RSA signature of 4096 bits takes in base64url.
const maxSignatureText = 684

func (s *signer) sign(text []byte) ([]byte, error) {
	switch key := s.key.(type) {
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256(text)
		der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		return rawSignature(der)
	case *rsa.PrivateKey:
		digest := sha256.Sum256(text)
		return rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	case ed25519.PrivateKey:
		return ed25519.Sign(key, text), nil
	}
	return nil, errors.New("unknown type of key")
}

// rawSignature turns a DER signature into r and s of 32 bytes each, as RFC 7518,
// section 3.4 has it.
func rawSignature(der []byte) ([]byte, error) {
	var inner cryptobyte.String
	var r, s []byte
	in := cryptobyte.String(der)
	if !in.ReadASN1(&inner, asn1.SEQUENCE) || !inner.ReadASN1Integer(&r) || !inner.ReadASN1Integer(&s) ||
		len(r) > 32 || len(s) > 32 {
		return nil, errors.New("odd signature")
	}
	raw := make([]byte, 64)
	copy(raw[32-len(r):], r)
	copy(raw[64-len(s):], s)
	return raw, nil
}

// check reports whether the key made this signature over text.
func (k *Key) check(text, signature []byte) bool {
	switch key := k.Public.(type) {
	case *ecdsa.PublicKey:
		if len(signature) != 64 {
			return false
		}
		digest := sha256.Sum256(text)
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		return ecdsa.Verify(key, digest[:], r, s)
	case *rsa.PublicKey:
		digest := sha256.Sum256(text)
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, text, signature)
	}
	return false
}

// newUUID returns a version 4 UUID (RFC 9562).
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	b := make([]byte, 0, 36)
	for i, part := range [][]byte{u[:4], u[4:6], u[6:8], u[8:10], u[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return string(b)
}

// base64url is unpadded, and strict about the bits that do not count.
var base64url = base64.RawURLEncoding.Strict()
