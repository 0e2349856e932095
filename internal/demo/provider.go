package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// ProviderConfig describes an OpenID provider with one client. Issuer, the client's
// id and secret, RedirectURIs and People are required.
type ProviderConfig struct {
	// Issuer is the URL of the provider, without a path. Requests for another
	// host are refused.
	Issuer                               string
	ClientID, ClientSecret               string
	RedirectURIs, PostLogoutRedirectURIs []string
	People                               []Person
	// PublicClientID is a client without a secret, for programs on this machine: its
	// redirect URIs are http://127.0.0.1:PORT/callback. "" for none.
	PublicClientID string
	// BackchannelLogoutURI is told when somebody signs out here, by Client, for which
	// every sign-in has a sid; "" for nobody.
	BackchannelLogoutURI string
	Client               *http.Client
	// AccessLife is how long an access token lives, 5 minutes if 0.
	AccessLife time.Duration
	// Now is the clock of the records and of auth_time; tokens are dated by the
	// system's.
	Now func() time.Time
}

// NewProvider returns an OpenID provider on which one signs in by choosing a
// person: the authorization code flow with PKCE (S256), refresh tokens that
// rotate, userinfo, revocation, sign-out, and back-channel logout. Its own page
// changes the groups of people and signs them out. It asks each time, so max_age and
// prompt=login get what they want, and auth_time is the moment of the choice.
// Everything is in memory and made anew at each call, the signing key too. It
// must not be reachable from outside the machine.
func NewProvider(cfg ProviderConfig) (http.Handler, error) {
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Host == "" || issuer.Path != "" {
		return nil, errors.New("demo provider: the issuer is not a URL without a path")
	}
	if cfg.ClientID == "" || cfg.ClientSecret == "" || len(cfg.RedirectURIs) == 0 || len(cfg.People) == 0 {
		return nil, errors.New("demo provider: it needs a client, a redirect URI and people")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.AccessLife == 0 {
		cfg.AccessLife = defaultAccessLife
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: 5 * time.Second}
	}
	cfg.People = slices.Clone(cfg.People) // they can be changed
	store, err := newStorage(cfg)
	if err != nil {
		return nil, fmt.Errorf("demo provider: %w", err)
	}
	opConfig := &op.Config{
		DefaultLogoutRedirectURI: "/signed-out",
		CodeMethodS256:           true,
		AuthMethodPost:           true,
		GrantTypeRefreshToken:    true,
		SupportedClaims:          []string{"sub", "iss", "aud", "exp", "iat", "auth_time", "nonce", "email", "email_verified", "name", "groups"},
		SupportedScopes:          []string{oidc.ScopeOpenID, oidc.ScopeProfile, oidc.ScopeEmail, scopeGroups, oidc.ScopeOfflineAccess},
	}
	_, _ = rand.Read(opConfig.CryptoKey[:]) // never fails
	// What it would log comes from strangers, and the client is told it anyway.
	silent := slog.New(slog.DiscardHandler)
	provider, err := op.NewProvider(opConfig, store, op.StaticIssuer(cfg.Issuer), op.WithAllowInsecure(), op.WithLogger(silent), op.WithCORSOptions(nil))
	if err != nil {
		return nil, fmt.Errorf("demo provider: %w", err)
	}
	endpoints := *op.DefaultEndpoints
	endpoints.Introspection, endpoints.DeviceAuthorization = nil, nil
	protocol := op.RegisterLegacyServer(server{op.NewLegacyServer(provider, endpoints)}, op.AuthorizeCallbackHandler(provider),
		op.WithFallbackLogger(silent), op.WithServerCORSOptions(nil))

	login := &login{store: store, issuer: issuer.Host}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", login.home)
	mux.HandleFunc("GET /login", login.choose)
	mux.Handle("POST /login", http.NewCrossOriginProtection().Handler(http.HandlerFunc(login.chosen)))
	mux.HandleFunc("GET /signed-out", login.signedOut)
	mux.Handle("POST /groups", http.NewCrossOriginProtection().Handler(http.HandlerFunc(login.groups)))
	mux.Handle("POST /sign-out", http.NewCrossOriginProtection().Handler(http.HandlerFunc(login.signOut)))
	mux.Handle("/", protocol)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Else a page of a stranger could reach us under a name of its own.
		if r.Host != issuer.Host {
			http.Error(w, "this provider is "+cfg.Issuer, http.StatusMisdirectedRequest)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		mux.ServeHTTP(w, r)
	}), nil
}

// server closes a gap: without a code_verifier, op takes the code of a client
// that has a secret as if no code_challenge had been sent.
type server struct{ *op.LegacyServer }

func (s server) CodeExchange(ctx context.Context, r *op.ClientRequest[oidc.AccessTokenRequest]) (*op.Response, error) {
	if r.Data.CodeVerifier == "" {
		return nil, oidc.ErrInvalidGrant().WithDescription("code_verifier is missing")
	}
	return s.LegacyServer.CodeExchange(ctx, r)
}
