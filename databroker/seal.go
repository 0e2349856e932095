package databroker

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// sealKeySize is the size of FileConfig.SealKey.
const sealKeySize = 32

// sealPurpose keeps the derived key apart from every other key that comes from
// the same secret.
const sealPurpose = "countersign databroker tokens v1"

// errWrongKey says no more than this: to tell a wrong key from a changed box is
// what authenticated encryption does not do.
var errWrongKey = errors.New("sealed under another key, or changed since")

// sealer encrypts tokens and tickets at rest: XChaCha20-Poly1305 with a random nonce in
// front, bound to the record it belongs to.
type sealer struct {
	aead cipher.AEAD
}

func newSealer(secret []byte) (*sealer, error) {
	if len(secret) != sealKeySize {
		return nil, fmt.Errorf("seal key is %d bytes long, not %d", len(secret), sealKeySize)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, sealPurpose, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive seal key: %w", err)
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("derive seal key: %w", err)
	}
	return &sealer{aead: aead}, nil
}

func (s *sealer) seal(plaintext []byte, record string) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(plaintext)+s.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return s.aead.Seal(nonce, nonce, plaintext, []byte(record))
}

func (s *sealer) open(sealed []byte, record string) ([]byte, error) {
	if len(sealed) < s.aead.NonceSize() {
		return nil, errWrongKey
	}
	nonce, box := sealed[:s.aead.NonceSize()], sealed[s.aead.NonceSize():]
	plaintext, err := s.aead.Open(nil, nonce, box, []byte(record))
	if err != nil {
		return nil, errWrongKey
	}
	return plaintext, nil
}

// The names of records that boxes are bound to.
func sessionBox(id string) string { return "session " + id }
func ticketBox(id string) string  { return "ticket " + id }

// sealTokens returns nil for no tokens.
func (s *sealer) sealTokens(t Tokens, sessionID string) ([]byte, error) {
	if t == (Tokens{}) {
		return nil, nil
	}
	plaintext, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	return s.seal(plaintext, sessionBox(sessionID)), nil
}

func (s *sealer) openTokens(sealed []byte, sessionID string) (Tokens, error) {
	if len(sealed) == 0 {
		return Tokens{}, nil
	}
	plaintext, err := s.open(sealed, sessionBox(sessionID))
	if err != nil {
		return Tokens{}, fmt.Errorf("tokens: %w", err)
	}
	var t Tokens
	if err := json.Unmarshal(plaintext, &t); err != nil {
		// The cause may quote what it could not decode.
		return Tokens{}, errors.New("tokens: not what was sealed")
	}
	return t, nil
}
