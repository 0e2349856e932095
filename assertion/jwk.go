package assertion

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

const (
	minRSABits, maxRSABits = 2048, 8192
	// maxKeys bounds a ring and a key set.
	maxKeys = 32
)

// publicJWK returns the JSON of a public key and the key itself, named by its
// thumbprint: the hash of just the members that define it, sorted (RFC 7638).
func publicJWK(public crypto.PublicKey) ([]byte, Key, error) {
	k, err := newKey("", public)
	if err != nil {
		return nil, Key{}, err
	}
	var canonical, members string
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil {
			return nil, Key{}, errors.New("signing key: not a point of P-256")
		}
		x, y := base64url.EncodeToString(point[1:33]), base64url.EncodeToString(point[33:])
		canonical = fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, x, y)
		members = fmt.Sprintf(`"kty":"EC","crv":"P-256","x":%q,"y":%q`, x, y)
	case *rsa.PublicKey:
		e, n := base64url.EncodeToString(big.NewInt(int64(p.E)).Bytes()), base64url.EncodeToString(p.N.Bytes())
		canonical = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, e, n)
		members = fmt.Sprintf(`"kty":"RSA","n":%q,"e":%q`, n, e)
	case ed25519.PublicKey:
		x := base64url.EncodeToString(p)
		canonical = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":%q}`, x)
		members = fmt.Sprintf(`"kty":"OKP","crv":"Ed25519","x":%q`, x)
	}
	sum := sha256.Sum256([]byte(canonical))
	k.ID = base64url.EncodeToString(sum[:])
	return fmt.Appendf(nil, `{%s,"kid":%q,"alg":%q,"use":"sig"}`, members, k.ID, k.Algorithm), k, nil
}

// newKey checks that we accept this kind of key. Its errors say what to do.
func newKey(id string, public crypto.PublicKey) (Key, error) {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return Key{}, fmt.Errorf("an EC key on %s: only P-256 is supported", p.Params().Name)
		}
		return Key{id, es256, public}, nil
	case *rsa.PublicKey:
		if bits := p.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return Key{}, fmt.Errorf("an RSA key of %d bits: it must have %d to %d", bits, minRSABits, maxRSABits)
		}
		if p.E < 3 || p.E&1 == 0 {
			return Key{}, errors.New("an RSA key with a bad exponent")
		}
		return Key{id, rs256, public}, nil
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize {
			return Key{}, errors.New("an Ed25519 key of the wrong size")
		}
		return Key{id, eddsa, public}, nil
	}
	return Key{}, errors.New("a key that is neither EC P-256, RSA nor Ed25519")
}

// parseJWKS reads a key set, leaving out the keys that we would not use: other
// types, other uses, broken ones. A set without any usable key is an error.
func parseJWKS(data []byte) ([]Key, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	var keys []Key
	for _, raw := range set.Keys {
		k, err := parseJWK(raw)
		if err != nil {
			continue
		}
		if keys = append(keys, k); len(keys) == maxKeys {
			break
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no key in the set can check an assertion")
	}
	return keys, nil
}

func parseJWK(raw []byte) (Key, error) {
	var j struct {
		Type      string `json:"kty"`
		ID        string `json:"kid"`
		Algorithm string `json:"alg"`
		Use       string `json:"use"`
		Curve     string `json:"crv"`
		X         string `json:"x"`
		Y         string `json:"y"`
		N         string `json:"n"`
		E         string `json:"e"`
	}
	if err := json.Unmarshal(raw, &j); err != nil {
		return Key{}, err
	}
	if j.Use != "" && j.Use != "sig" {
		return Key{}, errors.New("not a key for signatures")
	}
	if len(j.ID) > maxKeyID {
		return Key{}, errors.New("too long a key id")
	}
	public, err := jwkPublic(j.Type, j.Curve, j.X, j.Y, j.N, j.E)
	if err != nil {
		return Key{}, err
	}
	k, err := newKey(j.ID, public)
	if err != nil {
		return Key{}, err
	}
	if j.Algorithm != "" && j.Algorithm != k.Algorithm {
		return Key{}, errors.New("a key for another algorithm")
	}
	return k, nil
}

func jwkPublic(kty, crv, xText, yText, nText, eText string) (crypto.PublicKey, error) {
	switch {
	case kty == "EC" && crv == "P-256":
		x, err1 := base64url.DecodeString(xText)
		y, err2 := base64url.DecodeString(yText)
		if err1 != nil || err2 != nil || len(x) != 32 || len(y) != 32 {
			return nil, errors.New("bad coordinates")
		}
		// It checks that the point is on the curve.
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	case kty == "RSA":
		n, err1 := base64url.DecodeString(nText)
		e, err2 := base64url.DecodeString(eText)
		if err1 != nil || err2 != nil || len(n) > maxRSABits/8+1 || len(e) == 0 || len(e) > 4 {
			return nil, errors.New("bad modulus or exponent")
		}
		exponent := new(big.Int).SetBytes(e).Int64()
		if exponent > 1<<31-1 {
			return nil, errors.New("bad exponent")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent)}, nil
	case kty == "OKP" && crv == "Ed25519":
		x, err := base64url.DecodeString(xText)
		if err != nil {
			return nil, errors.New("bad key")
		}
		return ed25519.PublicKey(x), nil
	}
	return nil, errors.New("another type of key")
}
