package assertion

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

const (
	// maxKeyText bounds what is read as a signing key.
	maxKeyText = 256 << 10
	scalarSize = 32

	makeOne = "make one with: countersign keys new"
)

// ParseSigningKey reads a key ring in any form that signing_key may have: PEM
// (PKCS #8, SEC 1 or PKCS #1; the first of several keys signs), a bare 32-byte
// P-256 scalar, or the base64 text of either, with or without line breaks. Its
// errors name the block and say what to do; they never contain key bytes.
func ParseSigningKey(raw []byte) (*KeyRing, error) {
	if len(raw) > maxKeyText {
		return nil, fmt.Errorf("signing key: %d bytes is too long to be one", len(raw))
	}
	if !isPEM(raw) && !isScalar(raw) {
		decoded, err := decodeText(raw)
		if err != nil {
			return nil, fmt.Errorf("signing key: %w; %s", err, makeOne)
		}
		raw = decoded
	}
	switch {
	case isPEM(raw):
		keys, err := parseBlocks(raw, parsePrivate)
		if err != nil {
			return nil, err
		}
		return newKeyRing(keys)
	case isScalar(raw):
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
		if err != nil {
			return nil, fmt.Errorf("signing key: these 32 bytes are no P-256 key; %s", makeOne)
		}
		return newKeyRing([]crypto.Signer{key})
	}
	return nil, fmt.Errorf("signing key: base64 of neither a PEM nor a 32-byte key; %s", makeOne)
}

func isPEM(b []byte) bool { return bytes.Contains(b, []byte("-----BEGIN ")) }

// isScalar leaves text of that length to be read as text: a password is no key.
func isScalar(b []byte) bool {
	return len(b) == scalarSize && bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r > '~' })
}

// decodeText undoes base64 of either alphabet, padded or not, in any wrapping.
func decodeText(raw []byte) ([]byte, error) {
	text := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return -1
		case r == '-':
			return '+'
		case r == '_':
			return '/'
		}
		return r
	}, string(raw))
	text = strings.TrimRight(text, "=")
	if text == "" {
		return nil, errors.New("it is empty")
	}
	decoded, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("neither a PEM nor base64 of one")
	}
	return decoded, nil
}

// parseBlocks applies parse to each PEM block, counted from 1, and accepts no
// block that cannot be read: a ring that silently lacks a key is worse than none.
func parseBlocks[K any](raw []byte, parse func(*pem.Block) (K, error)) ([]K, error) {
	var keys []K
	total := bytes.Count(raw, []byte("-----BEGIN "))
	if total > maxKeys {
		return nil, fmt.Errorf("signing key: %d PEM blocks are too many; drop the keys that are no longer used", total)
	}
	for n := 1; n <= total; n++ {
		// One block at a time: Decode on the whole would pass over a bad one.
		start := bytes.Index(raw, []byte("-----BEGIN "))
		next := len(raw)
		if i := bytes.Index(raw[start+1:], []byte("-----BEGIN ")); i >= 0 {
			next = start + 1 + i
		}
		block, _ := pem.Decode(raw[start:next])
		raw = raw[next:]
		if block == nil {
			return nil, fmt.Errorf("signing key, block %d of %d: its lines are damaged; copy the whole block again, from BEGIN to END", n, total)
		}
		if block.Type == "EC PARAMETERS" { // openssl ecparam prints it before the key
			continue
		}
		key, err := parse(block)
		if err != nil {
			return nil, fmt.Errorf("signing key, block %d of %d (%s): %w", n, total, blockType(block), err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("signing key: no PEM block holds a private key; %s", makeOne)
	}
	return keys, nil
}

// blockType is safe to print: what is in place of a type may be anything.
func blockType(b *pem.Block) string {
	switch b.Type {
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY",
		"PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE", "OPENSSH PRIVATE KEY":
		return b.Type
	}
	return "unknown type"
}

func parsePrivate(block *pem.Block) (crypto.Signer, error) {
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, errors.New("it is encrypted; decrypt it with: openssl pkey -in FILE")
	case block.Type == "PUBLIC KEY" || block.Type == "RSA PUBLIC KEY" || block.Type == "CERTIFICATE":
		return nil, errors.New("it is public; the private key is needed here")
	case block.Type == "OPENSSH PRIVATE KEY":
		return nil, errors.New("it is in OpenSSH's own format; convert it with: ssh-keygen -p -m PKCS8 -f FILE")
	}
	// Labels are often wrong, so the content decides.
	var key any
	var err error
	if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
			if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
				return nil, fmt.Errorf("not a private key that can be used (EC P-256, RSA or Ed25519); %s", makeOne)
			}
		}
	}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		_, err = newKey("", key.Public())
		return key, withAdvice(err)
	case *rsa.PrivateKey:
		_, err = newKey("", key.Public())
		return key, withAdvice(err)
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("a key that cannot sign; %s", makeOne)
}

func withAdvice(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w; %s", err, makeOne)
}

// fixedKeys are tried for every token, whatever key id it names.
type fixedKeys []Key

func (f fixedKeys) Keys(context.Context, string) ([]Key, error) { return f, nil }

// ParsePublicKey reads the key to check assertions with from PEM: a public key,
// a certificate (of a chain, the first), or a signing key in any of its forms,
// of which all keys count. The source offers them for every key id.
func ParsePublicKey(raw []byte) (KeySource, error) {
	block, _ := pem.Decode(raw)
	if block == nil || strings.HasSuffix(block.Type, "PRIVATE KEY") || block.Type == "EC PARAMETERS" {
		ring, err := ParseSigningKey(raw)
		switch {
		case err == nil:
			return fixedKeys(ring.public), nil
		case block == nil:
			return nil, errors.New("public key: no PEM block in it; give a public key, a certificate or a signing key")
		}
		return nil, err
	}
	var public any
	var err error
	switch block.Type {
	case "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			public = cert.PublicKey
		}
	case "RSA PUBLIC KEY":
		public, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("public key: this PEM block (%s) is neither a public key nor a certificate", blockType(block))
	}
	key, err := newKey("", public)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return fixedKeys{key}, nil
}
