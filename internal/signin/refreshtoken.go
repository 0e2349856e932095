package signin

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// RefreshToken renews what a program may do, once: each use gives the next one. It
// is good for nothing else.
type RefreshToken struct {
	SessionID string `json:"s"`
	IDPID     string `json:"i"`
	// ClientID is what the program called itself; "" for the programmatic sign-in by
	// link, which has no client ids.
	ClientID string `json:"c,omitempty"`
	// Secret is what changes with each use.
	Secret string `json:"k"`
}

// Hash is what the session keeps of the token.
func (t RefreshToken) Hash() []byte {
	sum := sha256.Sum256([]byte("refresh " + t.Secret))
	return sum[:]
}

// NextRefresh is what t is traded for, the same one each time: who asks again
// because the answer was lost, or twice at once, must not get a second line of
// tokens of which one looks stolen.
func (k *Keys) NextRefresh(t RefreshToken) RefreshToken {
	t.Secret = k.Digest("next refresh token", t.SessionID, t.Secret)
	return t
}

// SealRefresh is the text of a token.
func (k *Keys) SealRefresh(t RefreshToken) (string, error) {
	plain, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("seal refresh token: %w", err)
	}
	return k.Seal(PurposeRefreshToken, plain, nil), nil
}

// OpenRefresh returns what SealRefresh sealed, or ErrMalformed or ErrSignature. That
// its turn has come, and that its session lives, is for the session's record to say.
func (k *Keys) OpenRefresh(sealed string) (RefreshToken, error) {
	var t RefreshToken
	plain, err := k.Open(PurposeRefreshToken, sealed, nil)
	if err != nil {
		return RefreshToken{}, err
	}
	if err := json.Unmarshal(plain, &t); err != nil || t.SessionID == "" || t.Secret == "" {
		return RefreshToken{}, fmt.Errorf("open refresh token: %w", ErrMalformed)
	}
	return t, nil
}
