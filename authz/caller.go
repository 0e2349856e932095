package authz

import (
	"context"
	"slices"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

// caller is whom a request comes from, as far as its route takes them.
type caller struct {
	// who is nil for nobody.
	who *identity
	// bearer is whether a token of an identity provider named them.
	bearer bool
	// lapse is what is wrong with a session that does not count here, though it is
	// live: who is nobody then.
	lapse lapse
	// refusal is set where the credentials are refused whatever the policy says.
	refusal *verdict
}

// lapse is why a route does not take a session any more; the zero value is that it
// does. Limit is how old a session it takes.
type lapse struct {
	code  string
	limit time.Duration
	// session is the id of the session.
	session string
}

// The codes of what is decided without a policy.
const (
	codeTooOld    = "session-too-old"
	codeIdle      = "session-idle"
	codeBadBearer = "invalid-bearer-token"
	codeAmbiguous = "ambiguous-credentials"
)

// codeStranger is that of a criterion that wants to know who asks, where nobody does.
const codeStranger = "user-unauthenticated"

// access is whose credentials a route takes.
type access struct {
	// providers are the ids of those whose sessions count, and the only ones.
	providers []string
	// bearer is nil where bearer_token_format is default.
	bearer *config.Bearer
	// lifetime and idle are how old a session may be and how long unused; 0 for any.
	// They are not about bearer tokens and service accounts, which have their own end.
	lifetime, idle time.Duration
	// dependsOn are hosts to sign in at, too.
	dependsOn []string
}

func newAccess(r *config.Route, offered []string) access {
	a := access{
		providers: offered, bearer: r.Bearer,
		lifetime: r.SessionLifetime, idle: r.SessionIdleTimeout, dependsOn: r.DependsOn,
	}
	if r.IDP != "" {
		a.providers = []string{r.IDP}
	}
	return a
}

// takes reports whether sessions made with this provider count.
func (a *access) takes(idpID string) bool {
	for _, id := range a.providers {
		if id == idpID {
			return true
		}
	}
	return false
}

// provider is the one to sign in with, "" where people choose.
func (a *access) provider() string {
	if len(a.providers) == 1 {
		return a.providers[0]
	}
	return ""
}

// identify finds out whom a request comes from: of a provider's bearer token, where
// the route takes such, or else the first good credential of ours. What is broken,
// expired, revoked, or of a provider that the route does not take counts for nothing.
func (s *Server) identify(ctx context.Context, g *Generation, t *route, r *request, now time.Time) (c caller, err error) {
	var authorization string
	if len(r.Authorization) == 1 {
		authorization = r.Authorization[0]
	}
	_, query := splitPath(r.Path)
	found := signin.Present(g.cookieName, r.Cookies, r.PomeriumAuthorization, authorization, query)
	if t.bearer != nil {
		if token, ok := signin.BearerToken(authorization); ok {
			ours := func(p signin.Presented) bool { _, ok := g.credential(r.Host, p.Token, now); return ok }
			if t.bearer.Format == config.BearerJWT && slices.ContainsFunc(found, ours) {
				return caller{refusal: ambiguous()}, nil
			}
			c.bearer = true
			c.who, c.refusal, err = s.bearer(ctx, t, token, now)
			s.use(ctx, c.who, now)
			return c, err
		}
	}
	c.who, err = signin.Choose(found, func(p signin.Presented) (*identity, error) { return s.open(ctx, g, t, r.Host, p.Token, now) }, (*identity).id)
	if err != nil || c.who == nil {
		return c, err
	}
	if c.lapse, err = s.lapsed(ctx, t, c.who, now); err != nil {
		return caller{}, err
	}
	if c.lapse != (lapse{}) {
		c.who = nil
	}
	s.use(ctx, c.who, now)
	return c, nil
}

func (i *identity) id() string { return i.principal.ID }

// use notes that a session was used, if it is one.
func (s *Server) use(ctx context.Context, who *identity, now time.Time) {
	if who != nil && who.usage != nil {
		s.identities.uses.touch(ctx, who.usage, now)
	}
}

// credential is what a token of ours says, if it is good on this host.
func (g *Generation) credential(host, token string, now time.Time) (c signin.Credential, ok bool) {
	c, err := g.keys.OpenCredential(token, now)
	return c, err == nil && c.GoodFor(host, g.cookieDomain)
}

// open returns the live identity that a token of ours names on this host and route,
// or nil. A session that a bearer token stands for is of no provider, so that none
// of our tokens names it.
func (s *Server) open(ctx context.Context, g *Generation, t *route, host, token string, now time.Time) (*identity, error) {
	c, ok := g.credential(host, token, now)
	if !ok || c.Kind == signin.KindSession && !t.takes(c.IDPID) {
		return nil, nil
	}
	who, err := s.identities.lookup(ctx, c.Kind, c.ID, g.grace)
	if err != nil {
		return nil, err
	}
	// The record says the same as the token, or the token is not its.
	matches := who.idpID == c.IDPID
	if c.Kind == signin.KindServiceAccount {
		matches = who.principal.UserID == c.UserID
	}
	if !who.live(now) || !matches {
		return nil, nil
	}
	return who, nil
}

// lapsed says whether a session is too old for the route, or ever went unused for
// too long, anywhere: what was away is not made fresh by a use on another route.
// Before that costs somebody a sign-in, the store is asked whether another replica
// has seen it.
func (s *Server) lapsed(ctx context.Context, t *route, who *identity, now time.Time) (lapse, error) {
	if who.usage == nil {
		return lapse{}, nil
	}
	if t.lifetime > 0 && now.Sub(who.createdAt) > t.lifetime {
		return lapse{codeTooOld, t.lifetime, who.principal.ID}, nil
	}
	if t.idle == 0 || who.usage.unused(now) <= t.idle {
		return lapse{}, nil
	}
	if err := s.identities.uses.reread(ctx, who.usage, now); err != nil {
		return lapse{}, err
	}
	if who.usage.unused(now) > t.idle {
		return lapse{codeIdle, t.idle, who.principal.ID}, nil
	}
	return lapse{}, nil
}
