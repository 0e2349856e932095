package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// claimAuthTime is when the person proved to the provider who they are, in
// seconds since 1970 (OpenID Connect Core, section 2).
const claimAuthTime = "auth_time"

// anyAge, in seconds, is the max_age of a sign-in that may be of any age: so
// long that the provider asks nobody again for it.
const anyAge = 365 * 24 * 60 * 60

// authRequest is what the provider is asked. max_age is what obliges a provider to
// give auth_time (OpenID Connect Core, section 3.1.2.1), so every sign-in has one. A
// fresh sign-in adds prompt=login for the providers that pass over max_age.
func (req signInRequest) authRequest(state string, p pendingSignIn) idp.AuthRequest {
	a := idp.AuthRequest{State: state, Nonce: p.Nonce, Verifier: p.Verifier, MaxAge: anyAge}
	switch {
	case req.MaxAge > 0:
		a.MaxAge, a.Fresh = req.MaxAge, true
	case req.Ageless:
		a.MaxAge = -1
	}
	return a
}

// mayMindMaxAge reports whether a provider may have answered code because it
// takes no max_age, without which an ordinary sign-in can do. The answers that
// are about the person or the client are not tried again, nor is a fresh
// sign-in, which would lose what it is for.
func (req signInRequest) mayMindMaxAge(code string) bool {
	if req.MaxAge > 0 || req.Ageless {
		return false
	}
	// The second is that of providers built with doorkeeper-openid_connect
	// that have not been told how to find auth_time.
	return code == "invalid_request" || code == "invalid_configuration" || code == "server_error"
}

// withoutMaxAge goes to the provider once more and asks for no auth_time. It is
// tried anew at each sign-in: the answer came through a browser, and what one
// person writes there must not decide what others' sign-ins are worth.
func (s *Server) withoutMaxAge(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, code string) error {
	if _, warned := s.warned.LoadOrStore("max_age "+req.IDPID, true); !warned {
		s.log.WarnContext(r.Context(), "the identity provider answered a sign-in with an error, so it was tried again without max_age: if that helps, nobody can see when these people signed in, and routes with auth_time ask them again",
			"provider", g.providers.Get(req.IDPID).Host(), "error", code, "request-id", requestID(r))
	}
	req.Ageless = true
	return s.goToProvider(g, w, r, req)
}

// authTime returns when the person last proved who they are, from the claims
// of an id_token that settleAuthTime has seen or from those of a session. False
// means that nobody knows: the provider may have signed them in silently, so the
// time at which a session began says nothing.
func authTime(claims map[string]any) (time.Time, bool) {
	at, ok := claims[claimAuthTime].(float64)
	return time.Unix(int64(at), 0), ok
}

// satisfiedBy reports whether the person of a session need not be asked again.
// Who signed in at a time that nobody knows, or in the future, must be.
func (req signInRequest) satisfiedBy(session *databroker.Session, now time.Time) bool {
	if req.MaxAge == 0 {
		return true
	}
	at, ok := authTime(session.Claims)
	// A route that limits the age of sessions counts from their beginning.
	return ok && req.youngEnough(at, now) && req.youngEnough(session.CreatedAt, now)
}

func (req signInRequest) youngEnough(at, now time.Time) bool {
	age := now.Sub(at)
	return -signin.Leeway <= age && age <= time.Duration(req.MaxAge)*time.Second
}

// latest is now, or the end of the second in which a verified link was made if
// the clock there is ahead: who found the session too old by its own clock must
// not be given it back.
func latest(now time.Time, link url.Values) time.Time {
	issued, err := strconv.ParseInt(link.Get(signin.ParamIssued), 10, 64)
	if end := time.Unix(issued+1, 0); err == nil && end.After(now) {
		return end
	}
	return now
}

// settleFresh sees to it that a fresh sign-in has an auth_time, or returns what
// to tell a person whom the provider has sent back without asking, though we
// wanted it to: trying again would go on forever. Who was asked in the course of
// this sign-in may go on even if they took longer than the maximum age; whether
// that is good enough is for authz to say.
//
// At a provider that gives no auth_time, the time of its answer counts: it was
// told to ask. That is not for a provider known to give one, whose answer lacks
// it because the browser, which carries what we ask for, left max_age and prompt
// out on the way.
func (s *Server) settleFresh(ctx context.Context, g *Generation, req signInRequest, who *idp.Identity) *failure {
	if req.MaxAge == 0 {
		return nil
	}
	now, provider := s.now(), g.providers.Get(req.IDPID)
	at, ok := authTime(who.Claims)
	switch {
	case !ok && provider.GivesAuthTime():
		return g.silentAboutTime(req)
	case !ok:
		if _, warned := s.warned.LoadOrStore("auth_time "+req.IDPID, true); !warned {
			s.log.WarnContext(ctx, "the identity provider gives no usable auth_time although it was asked for max_age, so nobody can see whether it asks people again: the time of its answer counts",
				"provider", provider.Host())
		}
		who.Claims[claimAuthTime] = float64(now.Unix())
		return nil
	case req.youngEnough(at, now) || at.Unix() >= req.StartedAt:
		return nil
	}
	return g.notAskedAgain(req, now.Sub(at))
}

// silentAboutTime is for a sign-in whose time nobody knows, from a provider that
// has told it before.
func (g *Generation) silentAboutTime(req signInRequest) *failure {
	return &failure{
		status: http.StatusForbidden, code: "no-auth-time",
		cause: fmt.Errorf("provider was asked for a sign-in of at most %ds and gave no usable auth_time, which it did for others", req.MaxAge),
		title: "The identity provider did not say when you signed in",
		message: fmt.Sprintf("The page that you want needs a sign-in that is at most %s old. The identity provider was told to ask you again and to say when it did, but this time it did not say.",
			pages.Span(time.Duration(req.MaxAge)*time.Second)),
		remedy:  "Start over. If this page comes back, tell the people who run this site: their identity provider leaves auth_time out of some of its answers.",
		details: []pages.Detail{{Label: "Identity provider", Value: g.providers.Get(req.IDPID).Host()}},
		actions: g.startOverActions(req),
	}
}

// notAskedAgain is for a sign-in that is still too old.
func (g *Generation) notAskedAgain(req signInRequest, age time.Duration) *failure {
	return &failure{
		status: http.StatusForbidden, code: "not-asked-again",
		cause: fmt.Errorf("provider was asked for a sign-in of at most %ds and gave one of %ds", req.MaxAge, int64(age/time.Second)),
		title: "The identity provider did not ask you again",
		message: fmt.Sprintf("The page that you want needs a sign-in that is at most %s old. The identity provider was told to ask you again, but sent you back with a sign-in that is %s old.",
			pages.Span(time.Duration(req.MaxAge)*time.Second), pages.Span(age)),
		remedy:  "Sign out at the identity provider, then start over. If this page comes back, tell the people who run this site: their identity provider honours neither max_age nor prompt=login.",
		details: []pages.Detail{{Label: "Identity provider", Value: g.providers.Get(req.IDPID).Host()}},
		actions: g.startOverActions(req),
	}
}

// renew is the session that a sign-in gives this browser. One that it has already of
// the same person and provider stays, unless a fresh one was asked for: two tabs may
// sign in at once. Any other of that provider is ended, since cookies of route hosts
// would keep it alive, and neither a sign-out nor another person's sign-in would end
// it.
func (s *Server) renew(g *Generation, r *http.Request, req signInRequest, who *idp.Identity, asked time.Time) (*databroker.Session, error) {
	before, err := s.authenticatedSessions(g, r)
	if err != nil {
		return nil, err
	}
	before = slices.DeleteFunc(before, func(b *databroker.Session) bool { return b.IDPID != req.IDPID })
	for _, b := range before {
		if req.MaxAge == 0 && b.UserID == who.UserID {
			return b, nil
		}
	}
	session, err := s.record(r, g, req, who, asked)
	if err != nil {
		return nil, err
	}
	for _, b := range before {
		if err := s.store.DeleteSession(r.Context(), b.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
			return nil, storeDown("delete session", err)
		}
	}
	return session, nil
}
