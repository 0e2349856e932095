package config

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// ID names these settings in sessions and tokens: a session that was made with
// another provider or client is not one of theirs. The secret and the scopes
// are no part of it, so that changing them signs nobody out. The zero value has
// an ID too, which no session carries.
func (p IdentityProvider) ID() string {
	sum := sha256.Sum256([]byte(strconv.Quote(p.Provider) + strconv.Quote(p.URL) + strconv.Quote(p.ClientID)))
	return hex.EncodeToString(sum[:8])
}
