package idp

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const maxKeys = 64

// keySet is the keys of an issuer.
type keySet struct {
	remote[[]jose.JSONWebKey]
	// forcedAt is when somebody else's token last had the keys fetched.
	forcedAt time.Time
}

func newKeySet(n *network, address string) *keySet {
	k := &keySet{}
	k.network, k.name, k.life = n, "keys at "+bounded(address, 200), keysLife
	k.fetch = func(ctx context.Context, _ []jose.JSONWebKey) ([]jose.JSONWebKey, error) {
		var document struct{ Keys *[]json.RawMessage }
		if err := n.getJSON(ctx, address, "", &document); err != nil {
			return nil, err
		}
		if document.Keys == nil {
			return nil, errors.New("document has no keys")
		}
		var keys []jose.JSONWebKey
		for _, raw := range *document.Keys {
			var key jose.JSONWebKey
			// Kinds of keys that we do not know stand beside those that we do.
			if json.Unmarshal(raw, &key) == nil && key.Valid() && key.IsPublic() && key.Use != "enc" && len(keys) < maxKeys {
				keys = append(keys, key)
			}
		}
		return keys, nil
	}
	return k
}

// errUnknownKey is that no published key has made a signature.
var errUnknownKey = errors.New("its signature was not made with a key that the issuer publishes")

// verify returns the payload of a token. Ours says that the issuer itself has just
// given it to us: it may have begun to sign with a new key this moment, so the keys
// are fetched again if need be. For tokens that anybody brings that is done no more
// often than once in a pause, so that they cannot have us ask without end.
func (k *keySet) verify(ctx context.Context, token *jose.JSONWebSignature, ours bool) ([]byte, error) {
	keys, serial, err := k.get(ctx)
	if err != nil {
		return nil, &Error{Unavailable, err}
	}
	refetches := 1
	if ours && k.busy() {
		// That fetch may have begun before the key was there.
		refetches = 2
	}
	for ; ; refetches-- {
		for i := range keys {
			if payload, err := verifyWith(&keys[i], token); err == nil {
				return payload, nil
			}
		}
		if refetches == 0 || !ours && !k.mayForce(serial) {
			return nil, errUnknownKey
		}
		if keys, serial, err = k.next(ctx, serial); err != nil {
			return nil, &Error{Unavailable, err}
		}
	}
}

func verifyWith(key *jose.JSONWebKey, token *jose.JSONWebSignature) ([]byte, error) {
	header := token.Signatures[0].Protected
	if key.KeyID != "" && header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm {
		return nil, errUnknownKey
	}
	return token.Verify(key.Key)
}

// mayForce reports whether somebody else's token may have the keys fetched that are
// newer than the serial.
func (k *keySet) mayForce(serial int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if k.serial > serial || k.underWay != nil {
		return true
	}
	if !k.forcedAt.IsZero() && now.Sub(k.forcedAt) < pause {
		return false
	}
	k.forcedAt = now
	return true
}
