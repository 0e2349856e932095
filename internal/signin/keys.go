// Package signin is what authz and authn must agree on: the tokens that stand
// for a session or a service account, the signed links and the sealed hand-off
// between the authenticate host and a route's host, the cookie that binds a
// sign-in to one browser, and where in a request a credential may stand.
//
// Every purpose has its own key, derived from one of the two secrets of the
// deployment with HKDF-SHA256 (RFC 5869):
//
//	shared secret   session token, account token, link, hand-off, sign-out,
//	                refresh token, device code, digests
//	cookie secret   provider state, sign-in cookie, authenticate cookie, form
//
// so that nothing made for one purpose opens as another. The package keeps no
// sessions, speaks no HTTP and follows no policy.
package signin

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

var (
	// ErrMalformed reports something that we cannot have made: too long, not
	// in canonical form, or made for another purpose.
	ErrMalformed = errors.New("malformed")
	// ErrSignature reports something that our keys did not make, or that was
	// changed since.
	ErrSignature = errors.New("wrong signature")
	// ErrExpired reports something genuine whose time is over.
	ErrExpired = errors.New("expired")
	// ErrNotYetValid reports something genuine from the future: two clocks of
	// the deployment differ by more than Leeway.
	ErrNotYetValid = errors.New("not yet valid")
)

// Purpose is what a sealed value is for. Each has its own key, and a value
// sealed for one does not open for another. The zero value is no purpose.
type Purpose int

// The purposes of sealed values.
const (
	// PurposeHandoff carries a new session from the authenticate host to a route's.
	PurposeHandoff Purpose = iota + 1
	// PurposeProviderState travels through the identity provider as OAuth 2 state.
	PurposeProviderState
	// PurposeSignInCookie keeps state, nonce and PKCE verifier in the browser while
	// it is at the identity provider.
	PurposeSignInCookie
	// PurposeAuthenticateCookie is the session cookie of the authenticate host. It is
	// not a session token, so that a route's cookie is worth nothing there.
	PurposeAuthenticateCookie
	// PurposeForm ties a form (consent, sign-out) to the browser it was shown to.
	PurposeForm
	// PurposeSignOut is what a sign-out carries from one host to the next and
	// through the identity provider.
	PurposeSignOut
	// PurposeRefreshToken is what a program renews its access with.
	PurposeRefreshToken
	// PurposeDeviceCode is what a device asks with whether its person has agreed.
	PurposeDeviceCode
	purposes
)

func (p Purpose) String() string {
	switch p {
	case PurposeHandoff:
		return "hand-off"
	case PurposeProviderState:
		return "provider state"
	case PurposeSignInCookie:
		return "sign-in cookie"
	case PurposeAuthenticateCookie:
		return "authenticate cookie"
	case PurposeForm:
		return "form"
	case PurposeSignOut:
		return "sign-out"
	case PurposeRefreshToken:
		return "refresh token"
	case PurposeDeviceCode:
		return "device code"
	}
	return fmt.Sprintf("purpose %d", int(p))
}

const (
	// secretSize is the least length of the shared and the cookie secret.
	secretSize = 32
	// maxSealed bounds what Open looks at. A hand-off holds a redirect URL of
	// up to MaxRedirect.
	maxSealed = 16 << 10
)

// Keys are the keys of one deployment, safe for concurrent use. They print as
// their type's name only.
type Keys struct {
	session, account, link, digest *macKey
	seals                          [purposes]cipher.AEAD
}

// NewKeys derives the keys from shared_secret and cookie_secret, of at least 32
// bytes each.
func NewKeys(shared, cookie []byte) (*Keys, error) {
	if len(shared) < secretSize {
		return nil, fmt.Errorf("derive keys: the shared secret has %d bytes, needs %d", len(shared), secretSize)
	}
	if len(cookie) < secretSize {
		return nil, fmt.Errorf("derive keys: the cookie secret has %d bytes, needs %d", len(cookie), secretSize)
	}
	k := &Keys{}
	for _, m := range []struct {
		name string
		key  **macKey
	}{
		{"session token", &k.session},
		{"account token", &k.account},
		{"link", &k.link},
		{"digest", &k.digest},
	} {
		key, err := derive(shared, m.name)
		if err != nil {
			return nil, err
		}
		*m.key = newMACKey(key)
	}
	for p := PurposeHandoff; p < purposes; p++ {
		secret := cookie
		switch p {
		case PurposeHandoff, PurposeSignOut, PurposeRefreshToken, PurposeDeviceCode:
			secret = shared
		}
		key, err := derive(secret, p.String())
		if err != nil {
			return nil, err
		}
		if k.seals[p], err = chacha20poly1305.NewX(key); err != nil {
			return nil, fmt.Errorf("derive %s key: %w", p, err)
		}
	}
	return k, nil
}

func derive(secret []byte, purpose string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "countersign v1 "+purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive %s key: %w", purpose, err)
	}
	return key, nil
}

// Format keeps the keys out of logs, whatever the verb.
func (k *Keys) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("signin.Keys")) }

// Seal encrypts plaintext (XChaCha20-Poly1305) so that only Open with the same
// purpose and additional data returns it. The result is base64url text. Its
// nonce always comes from crypto/rand: a repeated one would give the key away.
// It panics for a purpose that does not exist.
func (k *Keys) Seal(p Purpose, plaintext, additional []byte) string {
	aead := k.seals[p]
	buf := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plaintext)+aead.Overhead())
	_, _ = rand.Read(buf) // never fails
	return base64url.EncodeToString(aead.Seal(buf, buf, plaintext, bind(p, additional)))
}

// Open returns what was sealed for this purpose with this additional data, or
// ErrMalformed or ErrSignature.
func (k *Keys) Open(p Purpose, sealed string, additional []byte) ([]byte, error) {
	if p < PurposeHandoff || p >= purposes {
		return nil, fmt.Errorf("open %s: %w", p, ErrMalformed)
	}
	aead := k.seals[p]
	if len(sealed) > maxSealed {
		return nil, fmt.Errorf("open %s: %w: too long", p, ErrMalformed)
	}
	raw, err := decode(nil, sealed)
	if err != nil || len(raw) < aead.NonceSize()+aead.Overhead() {
		return nil, fmt.Errorf("open %s: %w", p, ErrMalformed)
	}
	nonce, text := raw[:aead.NonceSize()], raw[aead.NonceSize():]
	plain, err := aead.Open(text[:0], nonce, text, bind(p, additional))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", p, ErrSignature)
	}
	return plain, nil
}

// Digest is a keyed digest of what somebody holds, as 43 characters: a record that
// is found by it can be neither guessed nor led back to that. Each kind of thing has
// digests of its own.
func (k *Keys) Digest(kind string, parts ...string) string {
	text := []byte(strconv.Quote(kind))
	for _, p := range parts {
		text = append(strconv.AppendInt(append(text, ' '), int64(len(p)), 10), ':')
		text = append(text, p...)
	}
	return k.digest.sign(string(text))
}

// bind is the authenticated data: the purpose, ended by a NUL that no name
// holds, and what the caller binds the value to.
func bind(p Purpose, additional []byte) []byte {
	return append(append([]byte(p.String()), 0), additional...)
}

// base64url is unpadded, and strict about the bits that do not count, so that
// a value has one spelling.
var base64url = base64.RawURLEncoding.Strict()

// decode appends the bytes that s stands for. Go's decoder passes over line
// breaks; here they are errors.
func decode(dst []byte, s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, ErrMalformed
	}
	return base64url.AppendDecode(dst, []byte(s))
}

// macKey is an HMAC-SHA256 key whose hash states are used again: setting one
// up costs more than hashing a token.
type macKey struct{ states sync.Pool }

type macState struct {
	hash hash.Hash
	in   []byte
	sum  [sha256.Size]byte
}

func newMACKey(key []byte) *macKey {
	return &macKey{states: sync.Pool{New: func() any { return &macState{hash: hmac.New(sha256.New, key)} }}}
}

// sign returns the code of text as base64url.
func (m *macKey) sign(text string) string {
	s := m.code(text)
	defer m.states.Put(s)
	return base64url.EncodeToString(s.sum[:])
}

// verify compares code, in base64url, in constant time.
func (m *macKey) verify(text, code string) error {
	if len(code) != base64url.EncodedLen(sha256.Size) {
		return ErrMalformed
	}
	var buf [sha256.Size]byte
	got, err := decode(buf[:0], code)
	if err != nil || len(got) != sha256.Size {
		return ErrMalformed
	}
	s := m.code(text)
	defer m.states.Put(s)
	if !hmac.Equal(got, s.sum[:]) {
		return ErrSignature
	}
	return nil
}

func (m *macKey) code(text string) *macState {
	s := m.states.Get().(*macState)
	s.hash.Reset()
	s.in = append(s.in[:0], text...)
	s.hash.Write(s.in)
	s.hash.Sum(s.sum[:0])
	return s
}
