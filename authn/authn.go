// Package authn signs people in and out. It is plain HTTP behind Envoy, which
// sends it the internal paths of every route's host and the whole of the
// authenticate host.
//
// A sign-in goes round three parties, and the browser carries a cookie of its
// own at each of ours, so that nobody can finish what another began:
//
//	route host         authz makes a flow: cookie here, its hash in a signed link
//	authenticate host  sign_in checks the link, keeps a sealed cookie per sign-in
//	                   (state, nonce, PKCE verifier), goes to the provider
//	provider           sends the browser back with state and code
//	authenticate host  /oauth2/callback compares state with the cookie, then
//	                   redeems the code, checks the id_token, writes the session
//	route host         /.pomerium/callback/ checks link and seal, compares the
//	                   flow's cookie, sets the session cookie
//
// The state is sealed and holds the whole request, so a callback whose cookie
// is gone begins again instead of ending on an error page. From there the browser may
// go on to the hosts that the route depends on (see startPath).
//
// A sign-out goes the same way: it ends the session on the route's host, then those
// of the authenticate host's cookie, then the one at the provider. A provider ends
// sessions of ours through the back channel, or through its own page.
//
// It decides nothing about access, and refreshes no session.
package authn

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/signin"
)

// maxURL bounds path and query of a request.
const maxURL = 48 << 10

// Config is what a Server needs. Store is required.
type Config struct {
	Store databroker.Store
	// Accessible tells which routes, by id, are open to a session or a service
	// account, for the portal. Nil: the portal lists none.
	Accessible func(ctx context.Context, kind signin.Kind, id, address string) (map[string]bool, error)
	// HTTPClient fetches the keys of identity_providers. Nil is one of package idp's.
	HTTPClient *http.Client
	// Log gets one line per refusal, sign-in and sign-out; nil for none.
	Log *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// Rand is crypto/rand if nil.
	Rand io.Reader
}

// Server is an http.Handler. Until the first Publish it answers 503.
type Server struct {
	store                   databroker.Store
	log                     *slog.Logger
	now                     func() time.Time
	rand                    io.Reader
	onRoute, onAuthenticate map[string]endpoint
	accessible              func(ctx context.Context, kind signin.Kind, id, address string) (map[string]bool, error)

	current atomic.Pointer[Generation]
	// warned holds what was said once about a provider.
	warned sync.Map
	// devices bounds the codes for devices.
	devices budget
	client  *http.Client
}

// Generation is everything that follows from one configuration.
type Generation struct {
	cfg       *config.Config
	keys      *signin.Keys
	ring      *assertion.KeyRing
	hosts     *hosts
	providers *idp.Set
	issuers   *idp.Issuers
	// missing are the keys without which nobody can sign in.
	missing []string
}

// handler answers a request, or returns an error before it has written.
type handler func(g *Generation, w http.ResponseWriter, r *http.Request) error

type endpoint struct {
	// methods are separated by spaces.
	methods string
	serve   handler
}

// New makes a Server without a configuration.
func New(c Config) *Server {
	s := &Server{store: c.Store, accessible: c.Accessible, log: c.Log, now: c.Now, rand: c.Rand, client: c.HTTPClient}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.rand == nil {
		s.rand = rand.Reader
	}
	const read, get, post, both = "GET HEAD", "GET", "POST", "GET POST"
	shared := map[string]endpoint{
		"/ping":                    {read, s.healthy},
		"/healthz":                 {read, s.healthy},
		"/.well-known/pomerium":    {read, s.wellKnown},
		"/.well-known/pomerium/":   {read, s.wellKnown},
		jwksPath:                   {read, s.jwks},
		"/.pomerium":               {read, s.whoami},
		"/.pomerium/":              {read, s.whoami},
		"/.pomerium/user":          {read, s.user},
		"/.pomerium/api/v1/login":  {get, s.programmaticLogin},
		routesPath:                 {read, s.routes},
		"/.pomerium/api/v1/routes": {read, s.routesJSON},
	}
	s.onRoute = with(shared, map[string]endpoint{
		strings.TrimSuffix(signin.CallbackPath, "/"): {get, s.routeCallback},
		signin.CallbackPath:                          {get, s.routeCallback},
		signOutPath:                                  {both, s.signOut},
		startPath:                                    {get, s.start},
	})
	s.onAuthenticate = with(shared, map[string]endpoint{
		"/":               {read, s.home},
		"/robots.txt":     {read, s.robots},
		callbackPath:      {both, s.providerCallback},
		signin.SignInPath: {get, s.signIn},
		signOutPath:       {both, s.authenticateSignOut},
		signedOutPath:     {read, s.signedOut},
		consentPath:       {post, s.consent},
		sessionsPath:      {post, s.endSession},

		metadataPath:            {read, s.metadata},
		authorizePath:           {get, s.authorize},
		tokenPath:               {post, s.token},
		deviceAuthorizationPath: {post, s.deviceAuthorization},
		devicePath:              {both, s.device},
		revokePath:              {post, s.revoke},
		exchangePath:            {post, s.exchangeIDToken},
		refreshPath:             {both, s.refreshToken},

		backchannelPath:  {post, s.backchannelLogout},
		frontchannelPath: {get, s.frontchannelLogout},
	})
	return s
}

func with(a, b map[string]endpoint) map[string]endpoint {
	out := map[string]endpoint{}
	for _, m := range []map[string]endpoint{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// Build makes a generation without putting it in force. It does not touch the
// network: a provider that is down stops no start.
func (s *Server) Build(cfg *config.Config, keys *signin.Keys, ring *assertion.KeyRing, providers *idp.Set) (*Generation, error) {
	if cfg == nil || keys == nil || ring == nil || providers == nil {
		return nil, errors.New("build authn: configuration or keys are missing")
	}
	g := &Generation{cfg: cfg, keys: keys, ring: ring, hosts: newHosts(cfg), providers: providers}
	var before *idp.Issuers
	if current := s.current.Load(); current != nil {
		before = current.issuers
	}
	g.issuers = idp.NewIssuers(idp.Config{HTTPClient: s.client, Now: s.now, Log: s.log}, cfg, before)
	if len(providers.All()) == 0 {
		first := &config.IdentityProvider{}
		if len(cfg.IDPs) > 0 {
			first = cfg.IDPs[0]
		}
		g.missing = first.Missing()
	}
	if cfg.AuthenticateURL == nil {
		g.missing = append(g.missing, "authenticate_service_url")
	}
	return g, nil
}

// Wait waits for what still goes on in the background. It is for when nobody asks
// any more.
func (s *Server) Wait() {
	if g := s.current.Load(); g != nil {
		g.issuers.Wait()
	}
}

// Publish puts g in force for every request that begins after it.
func (s *Server) Publish(g *Generation) { s.current.Store(g) }

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.serve(w, r); err != nil {
		s.fail(w, r, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	g := s.current.Load()
	if g == nil {
		return unavailable("starting", nil)
	}
	if len(r.URL.Path)+len(r.URL.RawQuery) > maxURL {
		return &failure{status: http.StatusRequestURITooLong, code: "url-too-long", title: "This address is too long", message: "The address that was asked for is longer than this service reads."}
	}
	var endpoints map[string]endpoint
	switch {
	case g.hosts.isAuthenticate(r.Host):
		endpoints = s.onAuthenticate
	case g.hosts.isRoute(r.Host):
		endpoints = s.onRoute
	default:
		return notFound()
	}
	e, ok := endpoints[r.URL.Path]
	if !ok {
		return notFound()
	}
	methods := strings.Fields(e.methods)
	for _, m := range methods {
		if r.Method == m {
			r.Body = http.MaxBytesReader(w, r.Body, maxForm)
			return e.serve(g, w, r)
		}
	}
	return &failure{
		status: http.StatusMethodNotAllowed, code: "method-not-allowed",
		title: "This method is not allowed here", message: "This address answers to " + strings.Join(methods, " and ") + ".",
		before: func(w http.ResponseWriter) { w.Header().Set("Allow", strings.Join(methods, ", ")) },
	}
}

func (s *Server) healthy(_ *Generation, w http.ResponseWriter, r *http.Request) error {
	writeText(w, r, "OK")
	return nil
}

func (s *Server) home(_ *Generation, w http.ResponseWriter, _ *http.Request) error {
	return redirect(w, "/.pomerium/")
}

func (s *Server) robots(_ *Generation, w http.ResponseWriter, r *http.Request) error {
	writeText(w, r, "User-agent: *\nDisallow: /\n")
	return nil
}

// random returns n random bytes as base64url.
func (s *Server) random(n int) (string, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.rand, b); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// equal compares two secrets in constant time. An empty one equals nothing.
func equal(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
