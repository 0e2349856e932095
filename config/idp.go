package config

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
)

// ID names these settings in sessions and tokens: a session that was made with
// another provider or client is not one of theirs. The secret, the scopes and the
// label are no part of it, so that changing them signs nobody out.
func (p *IdentityProvider) ID() string {
	if p.id != "" {
		return p.id
	}
	text := strconv.Quote(p.Provider) + strconv.Quote(p.URL) + strconv.Quote(p.ClientID)
	if p.Name != "" {
		text += strconv.Quote(p.Name)
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// Missing are the keys without which nobody can sign in, in the order of the
// reference; it is empty where the provider is complete.
func (p *IdentityProvider) Missing() []string {
	var missing []string
	for _, k := range []struct{ key, text string }{
		{"idp_provider_url", p.URL},
		{"idp_client_id", p.ClientID},
		{"idp_client_secret", p.ClientSecret},
	} {
		if k.text == "" {
			missing = append(missing, k.key)
		}
	}
	return missing
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

// kind is what is known of the providers of one kind before any is asked.
type kind struct {
	name, label string
	// url is the provider's where none is written. Where there is no such thing,
	// form is what one looks like.
	url, form string
}

func kinds() []kind {
	return []kind{
		{name: "oidc", form: "https://idp.example.com"},
		{name: "google", label: "Google", url: "https://accounts.google.com"},
		{name: "azure", label: "Microsoft", url: "https://login.microsoftonline.com/common/v2.0"},
		{name: "okta", label: "Okta", form: "https://NAME.okta.com"},
		{name: "auth0", label: "Auth0", form: "https://NAME.REGION.auth0.com"},
		{name: "cognito", label: "Amazon Cognito", form: "https://cognito-idp.REGION.amazonaws.com/POOL_ID"},
		{name: "ping", label: "Ping Identity", form: "https://auth.pingone.com/ENVIRONMENT_ID/as"},
		{name: "onelogin", label: "OneLogin", form: "https://NAME.onelogin.com/oidc/2"},
		{name: "gitlab", label: "GitLab", url: "https://gitlab.com"},
		{name: "keycloak", label: "Keycloak", form: "https://HOST/realms/NAME"},
		{name: "github", label: "GitHub", url: "https://github.com"},
		{name: "apple", label: "Apple", url: "https://appleid.apple.com"},
	}
}

// findKind is the kind of this name; of one without a name nothing is known.
func findKind(name string) kind {
	all := kinds()
	if i := slices.IndexFunc(all, func(k kind) bool { return k.name == name }); i >= 0 {
		return all[i]
	}
	return kind{}
}

func kindNames() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}
