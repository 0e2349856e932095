package config

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// ID names these settings in sessions and tokens: a session that was made with
// another provider or client is not one of theirs. The secret, the scopes and the
// label are no part of it, so that changing them signs nobody out.
func (p *IdentityProvider) ID() string {
	text := strconv.Quote(p.Provider) + strconv.Quote(p.URL) + strconv.Quote(p.ClientID)
	if p.Name != "" {
		text += strconv.Quote(p.Name)
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// FindIDP returns the provider with this ID, or nil.
func (c *Config) FindIDP(id string) *IdentityProvider {
	for _, p := range c.IDPs {
		if p.ID() == id {
			return p
		}
	}
	return nil
}

// OfferedIDPs are the providers that people may choose from where a route names
// none.
func (c *Config) OfferedIDPs() []*IdentityProvider {
	var offered []*IdentityProvider
	for _, p := range c.IDPs {
		if p.Offered {
			offered = append(offered, p)
		}
	}
	return offered
}

// Takes reports whether a session made with a provider of this ID is good for the
// route.
func (r *Route) Takes(c *Config, idpID string) bool {
	if r.IDP != "" {
		return r.IDP == idpID
	}
	p := c.FindIDP(idpID)
	return p != nil && p.Offered
}
