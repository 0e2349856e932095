package demo

import (
	"slices"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// scopeGroups is what a client asks for to be told the groups of a person.
const scopeGroups = "groups"

// client is an op.Client. One without a secret is a program on this machine.
type client struct {
	id, secret             string
	redirects, afterLogout []string
}

// newClients are the clients of a provider by their ids.
func newClients(cfg ProviderConfig) map[string]*client {
	all := map[string]*client{cfg.ClientID: {
		id: cfg.ClientID, secret: cfg.ClientSecret, redirects: cfg.RedirectURIs, afterLogout: cfg.PostLogoutRedirectURIs,
	}}
	if cfg.PublicClientID != "" {
		all[cfg.PublicClientID] = &client{id: cfg.PublicClientID, redirects: []string{"http://127.0.0.1/callback"}}
	}
	return all
}

func (c *client) GetID() string                    { return c.id }
func (c *client) RedirectURIs() []string           { return c.redirects }
func (c *client) PostLogoutRedirectURIs() []string { return c.afterLogout }
func (c *client) ApplicationType() op.ApplicationType {
	if c.secret == "" {
		return op.ApplicationTypeNative
	}
	return op.ApplicationTypeWeb
}
func (c *client) AuthMethod() oidc.AuthMethod {
	if c.secret == "" {
		return oidc.AuthMethodNone
	}
	return oidc.AuthMethodBasic
}
func (c *client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (c *client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken}
}
func (c *client) LoginURL(id string) string           { return "/login?request=" + id }
func (c *client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeBearer }
func (c *client) IDTokenLifetime() time.Duration      { return 10 * time.Minute }
func (c *client) ClockSkew() time.Duration            { return 0 }

// DevMode lets tests have redirect URIs with plain http.
func (c *client) DevMode() bool {
	return c.secret != "" && slices.ContainsFunc(c.redirects, func(u string) bool { return strings.HasPrefix(u, "http://") })
}

//nolint:staticcheck // ST1003: the library's interface has this name
func (c *client) RestrictAdditionalIdTokenScopes() func([]string) []string     { return allScopes }
func (c *client) RestrictAdditionalAccessTokenScopes() func([]string) []string { return allScopes }
func (c *client) IsScopeAllowed(scope string) bool                             { return scope == scopeGroups }

// IDTokenUserinfoClaimsAssertion puts email, name and groups in the ID token.
func (c *client) IDTokenUserinfoClaimsAssertion() bool { return true }

func allScopes(scopes []string) []string { return scopes }

// request is one sign-in as the client asked for it; person is nil until
// somebody has chosen. A stored request never changes.
type request struct {
	id     string
	auth   oidc.AuthRequest
	person *Person
	at     time.Time
	sid    string
}

func (r *request) GetID() string          { return r.id }
func (r *request) GetACR() string         { return "" }
func (r *request) GetAMR() []string       { return nil }
func (r *request) GetAudience() []string  { return []string{r.auth.ClientID} }
func (r *request) GetAuthTime() time.Time { return r.at }
func (r *request) GetClientID() string    { return r.auth.ClientID }
func (r *request) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: r.auth.CodeChallenge, Method: r.auth.CodeChallengeMethod}
}
func (r *request) GetNonce() string                   { return r.auth.Nonce }
func (r *request) GetRedirectURI() string             { return r.auth.RedirectURI }
func (r *request) GetResponseType() oidc.ResponseType { return r.auth.ResponseType }
func (r *request) GetResponseMode() oidc.ResponseMode { return r.auth.ResponseMode }
func (r *request) GetScopes() []string                { return r.auth.Scopes }
func (r *request) GetState() string                   { return r.auth.State }
func (r *request) Done() bool                         { return r.person != nil }
func (r *request) GetSubject() string {
	if r.person == nil {
		return ""
	}
	return r.person.ID
}

// refreshRequest is a grant that is used again. Its scopes are those asked for
// now, granted those of the beginning.
type refreshRequest struct {
	grant
	granted []string
}

func (r *refreshRequest) GetAMR() []string             { return nil }
func (r *refreshRequest) GetAudience() []string        { return []string{r.clientID} }
func (r *refreshRequest) GetAuthTime() time.Time       { return r.at }
func (r *refreshRequest) GetClientID() string          { return r.clientID }
func (r *refreshRequest) GetScopes() []string          { return r.scopes }
func (r *refreshRequest) GetSubject() string           { return r.person.ID }
func (r *refreshRequest) SetCurrentScopes(to []string) { r.scopes = to }
