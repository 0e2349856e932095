// Package config is what the operator wrote: the YAML file of settings and
// routes and the environment, checked, with defaults filled in and every file
// it names read. It is data. It starts nothing, compiles nothing and knows
// neither Envoy nor HTTP handlers.
//
// Load reports every problem at once, each with file, line, column and a hint.
// A Config is immutable: nobody changes one after Load has returned it.
package config

import (
	"net/url"
	"time"

	"github.com/countersign/countersign/policy"
)

// Config is a whole, valid configuration.
type Config struct {
	// Path is the absolute path of the file it was read from.
	Path string
	// Version is a hash of the content of the file, of every file it names
	// and of the environment forms in force: equal versions, equal configs.
	Version string
	// Files are the absolute paths that Watch follows: Path and every file
	// that it names.
	Files []string
	// Warnings are the problems that do not stop a start.
	Warnings Problems

	Server     Server
	Secrets    Secrets
	Cookie     Cookie
	Programs   Programs
	Assertion  Assertion
	Databroker Databroker

	// AuthenticateURL is where people sign in, without a path. Its default is
	// "https://authenticate." and the parent domain of the first route's host,
	// or that host itself where the parent is a public suffix; with its port.
	AuthenticateURL *url.URL
	// IDPs are all providers in use, each ID once: that of the idp_* keys, which
	// has no Name, if any of them is set; then those of idps:, in the order of the
	// file; then one for each client that routes bring with idp_client_id. Empty:
	// nobody can sign in.
	IDPs []*IdentityProvider
	// SignOutRedirectURL is where a sign-out leads that names no target, nil for
	// our own page. SignOutRedirectDomains are the hosts, besides ours, that a
	// sign-out may lead to.
	SignOutRedirectURL     *url.URL
	SignOutRedirectDomains []string
	// Policies are those of policies:, which routes refer to by name.
	Policies map[string]*policy.Policy
	// DownstreamMTLS is nil where no client certificate is asked for.
	DownstreamMTLS *DownstreamMTLS
	// MetricsAddress is host:port of the Prometheus listener, "" for none.
	MetricsAddress string
	// LogLevel is one of trace, debug, info, warn, error, disabled.
	LogLevel string

	// Routes are in file order, which is the order of matching.
	Routes []*Route
}

// Server is the listeners.
type Server struct {
	// Address is host:port of the HTTPS listener, ":443" by default.
	Address string
	// HTTPRedirectAddress is host:port of the listener that redirects http to
	// https; "" for none.
	HTTPRedirectAddress string
	// Insecure serves plain HTTP on Address, behind another TLS terminator.
	Insecure bool
	// XFFNumTrustedHops is how many proxies before us are trusted to say, in
	// X-Forwarded-For, where a request came from; SkipXFFAppend leaves our own
	// peer out of the one sent upstream.
	XFFNumTrustedHops uint32
	SkipXFFAppend     bool
	// Certificates are chosen by SNI; the first serves clients that match none.
	// Empty only if Insecure, or if LoadOptions.Generate had none to offer.
	Certificates []Certificate
}

// DownstreamMTLS asks clients for certificates.
type DownstreamMTLS struct {
	Position Position
	// Enforcement is policy_with_default_deny (the default), policy or
	// reject_connection.
	Enforcement string
	// ClientCAConfig has been tried: policy.NewClientCA takes it.
	policy.ClientCAConfig
}

// Certificate is a PEM chain and its PEM private key.
type Certificate struct {
	Chain, Key []byte
	Position   Position
}

// Secrets are the keys of the deployment. Never log one.
type Secrets struct {
	// Shared and Cookie are 32 bytes each.
	Shared, Cookie []byte
	// SigningKey is what signing_key held after base64 (and line wrapping)
	// was undone: one or more PEM blocks, or a bare 32-byte P-256 scalar.
	SigningKey []byte
	// SigningKeyAt is where signing_key is written, for errors found later.
	SigningKeyAt Position
}

// IdentityProvider is one client of ours at an OpenID Connect provider, or at one
// that speaks OAuth 2 alone (github).
type IdentityProvider struct {
	Position Position
	// Name is the one in idps:, "" for the provider of the idp_* keys. Label is
	// what people see when they choose.
	Name, Label string
	// Offered: people may choose it where a route names no provider. Those with a
	// route's own client are not.
	Offered bool
	// Provider is the kind: oidc, google, azure, okta, auth0, cognito, ping,
	// onelogin, gitlab, keycloak, github or apple.
	Provider, URL, ClientID, ClientSecret string
	// Scopes replace those of the kind; nil for the kind's own.
	Scopes []string
	// RequestParams are added to the authorization request, sorted by name.
	RequestParams []Parameter
	// AccessTokenAudiences are what aud of an access token must name one of where
	// bearer tokens are the provider's; nil for no check.
	AccessTokenAudiences []string

	// id is ID, set by Load, which nobody needs to work out again.
	id string
}

// Parameter is a query parameter.
type Parameter struct{ Name, Value string }

// Programs is how programs get in on a person's behalf.
type Programs struct {
	// RedirectDomains are the hosts that a programmatic sign-in may redirect to;
	// "localhost" stands for any loopback address.
	RedirectDomains []string
	// Audiences are the client ids, besides our own, whose ID tokens may be
	// exchanged for a token of ours (programmatic_allowed_audiences).
	Audiences []string
}

// BearerFormat is what Authorization: Bearer holds on a route, besides tokens of
// our own.
type BearerFormat string

// The values of bearer_token_format, but for default, which is no Bearer at all.
const (
	BearerAccessToken   BearerFormat = "idp_access_token"
	BearerIdentityToken BearerFormat = "idp_identity_token"
	BearerJWT           BearerFormat = "jwt"
)

// Bearer says whose bearer tokens a route takes. Routes with equal settings share
// one.
type Bearer struct {
	Format BearerFormat
	// ID is a hash of everything that decides what a token is worth here: what was
	// found for one ID is good for no other.
	ID string
	// IDPs are the providers whose tokens count; none for jwt.
	IDPs []*IdentityProvider
	// Audiences are for access tokens the idp_access_token_allowed_audiences of the
	// route, or what all of IDPs agree on; nil for no check. For identity tokens they
	// are the programmatic_allowed_audiences, which count beside the client ids.
	Audiences []string
	// Issuers are those of identity_providers, for jwt alone.
	Issuers []*TokenIssuer
}

// TokenIssuer is an entry of identity_providers: somebody whose JWTs count as
// bearer tokens.
type TokenIssuer struct {
	// Name is the key; a user of it has the id NAME/sub.
	Name, Issuer string
	// JWKSURL is "" for the jwks_uri of the issuer's discovery document.
	JWKSURL string
	// Algorithms are RS256, ES256 and EdDSA unless the operator names others.
	Algorithms, Audiences []string
}

// Cookie is the session cookie that route hosts set.
type Cookie struct {
	// Name is "_pomerium" by default.
	Name string
	// Domain is "" for a host-only cookie.
	Domain   string
	HTTPOnly bool
	// Expire is the lifetime of the cookie and of a session, 14 h by default.
	Expire time.Duration
	// SameSite is "", "strict", "lax" or "none".
	SameSite string
}

// Assertion says what identity travels to upstreams.
type Assertion struct {
	// ClaimHeaders are unsigned headers copied from claims, which are also
	// added to the assertion.
	ClaimHeaders []ClaimHeader
	// IssuerFormat is "" (iss is "pomerium-proxy"), "hostOnly" or "uri".
	IssuerFormat string
	// Reuse is how long one assertion may serve the same session revision and
	// audience: 30 s by default, 0 signs every request.
	Reuse time.Duration
	// OriginalUserContext is "verified" (default) or "as_provided".
	OriginalUserContext string
	// OriginalUserContextIssuers are trusted for X-Pomerium-Jwt-Assertion-For
	// besides our own keys.
	OriginalUserContextIssuers []TrustedIssuer
}

// ClaimHeader is one entry of jwt_claims_headers.
type ClaimHeader struct{ Header, Claim string }

// TrustedIssuer is an outside signer of assertions.
type TrustedIssuer struct {
	Issuer, JWKSURL string
	Audiences       []string
}

// Databroker says where sessions are kept.
type Databroker struct {
	// StorageType is "file" (default) or "memory".
	StorageType string
	// ConnectionString is "" for the default state folder, or file:///dir.
	ConnectionString string
	// Dir is the folder that ConnectionString names, "" for the default.
	Dir string
	// OutageGrace is how long a cached session outlives contact with the
	// databroker: 60 s by default.
	OutageGrace time.Duration
}

// Header is a name and a value, both literal.
type Header struct{ Name, Value string }

// Route is one entry of routes: or policy:.
type Route struct {
	// ID is a stable hash of From, the path match and To: 16 hex digits.
	ID string
	// Name is what the operator called it; From where it has no name.
	Name     string
	Position Position

	// From is as written. Host is its host in lower case without a port; it
	// may hold "*". Port is "" unless it is written and not the scheme's own.
	From, Host, Port string

	// At most one of Path, Prefix and Regex is set; none matches every path, and
	// is what prefix: / becomes.
	// Prefix is a raw string prefix. Regex is RE2 and must match the whole path.
	Prefix, Path, Regex string

	To []Upstream

	// Policy is what the route demands, legacy keys (allowed_users and the
	// like, cors_allow_preflight) included. Never nil.
	Policy *policy.Policy

	// IDP is the ID of the one provider that the route's sessions are made with,
	// "" for any that is Offered.
	IDP string
	// DependsOn are hosts of other routes that a sign-in here signs in at, too: at
	// most 5, in lower case, with the port that people reach them at unless it is 443.
	DependsOn []string
	// SessionLifetime is how old a session may be here, and SessionIdleTimeout how
	// long it may go unused, before the person must sign in again; 0 for any.
	SessionLifetime, SessionIdleTimeout time.Duration
	// Bearer is nil where bearer_token_format is default.
	Bearer *Bearer
	// Description, LogoURL are for the portal.
	Description, LogoURL string

	// ShadowPolicy is policy_shadow: evaluated and logged, never enforced. Nil for
	// none. It stands for all of Policy, the legacy keys included.
	ShadowPolicy *policy.Policy

	CORSAllowPreflight bool
	// PassIdentityHeaders is the route's own setting or the global one.
	PassIdentityHeaders bool

	SetRequestHeaders    []Header
	RemoveRequestHeaders []string
	// SetResponseHeaders is the route's map merged over the global one (or
	// over the defaults), sorted by name.
	SetResponseHeaders []Header

	PreserveHostHeader bool
	// PrefixRewrite replaces what Prefix (or Path) matched, the first slash where
	// none is set, the whole path with Regex; "" leaves the path alone.
	// It comes from prefix_rewrite or from the path of the first To.
	PrefixRewrite string

	// Timeout of the whole upstream response, 0 for none. Always resolved.
	Timeout time.Duration
	// IdleTimeout is nil for Envoy's default, 0 for none.
	IdleTimeout *time.Duration

	AllowWebsockets bool
	TLSSkipVerify   bool
	// TLSCustomCA is PEM and replaces the system's roots; nil for the system's.
	TLSCustomCA []byte
}

// Upstream is one server behind a route.
type Upstream struct {
	// URL has scheme http, https or h2c, a host, a port if written, and the path
	// that PrefixRewrite may come from.
	URL *url.URL
	// Weight is 0 where none is written, on all upstreams of a route or on none.
	// All upstreams of a route have the same scheme and path.
	Weight uint32
}
