package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/oauth2"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// claimAuthTime is when the person proved to the provider who they are, in
// seconds since 1970 (OpenID Connect Core, section 2).
const claimAuthTime = "auth_time"

// anyAge, in seconds, is the max_age of a sign-in that may be of any age: so
// long that the provider asks nobody again for it.
const anyAge = 365 * 24 * 60 * 60

// parameters tell the provider how old the sign-in may be. max_age is what
// obliges a provider to give auth_time (OpenID Connect Core, section 3.1.2.1),
// so every sign-in has one. A fresh sign-in adds prompt=login for the providers
// that pass over max_age.
func (req signInRequest) parameters() []oauth2.AuthCodeOption {
	maxAge := func(n int64) oauth2.AuthCodeOption {
		return oauth2.SetAuthURLParam("max_age", strconv.FormatInt(n, 10))
	}
	switch {
	case req.MaxAge > 0:
		return []oauth2.AuthCodeOption{maxAge(req.MaxAge), oauth2.SetAuthURLParam("prompt", "login")}
	case req.Ageless:
		return nil
	}
	return []oauth2.AuthCodeOption{maxAge(anyAge)}
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
	g.mindsMaxAge.Do(func() {
		s.log.WarnContext(r.Context(), "the identity provider answered a sign-in with an error, so it was tried again without max_age: if that helps, nobody can see when these people signed in, and routes with auth_time ask them again",
			"provider", g.providerHost(), "error", code, "request-id", requestID(r))
	})
	req.Ageless = true
	return s.goToProvider(g, w, r, req)
}

// settleAuthTime puts the auth_time of an id_token on our clock, on which
// everybody who reads the claim will measure its age. One that cannot be meant
// is dropped: a time ahead would make a sign-in that never grows old.
//
// The provider made the token after we had asked for it, so an iat outside
// asked..now shows how far its clock is off, and auth_time is off as far.
func settleAuthTime(claims map[string]any, issued, asked, now time.Time) {
	at, ok := claims[claimAuthTime].(float64)
	delete(claims, claimAuthTime)
	iat, first, last := issued.Unix(), asked.Unix(), now.Unix()
	if iat <= 0 {
		iat = last
	}
	// A provider of several machines may have clocks that differ.
	if !ok || at <= 0 || at > float64(iat)+signin.Leeway.Seconds() {
		return
	}
	settled := int64(at) + min(max(iat, first), last) - iat
	claims[claimAuthTime] = float64(min(settled, last))
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
	return ok && req.youngEnough(at, now)
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
func (s *Server) settleFresh(ctx context.Context, g *Generation, req signInRequest, who *identity) *failure {
	if req.MaxAge == 0 {
		return nil
	}
	now := s.now()
	at, ok := authTime(who.claims)
	switch {
	case !ok && g.provider.givesAuthTime.Load():
		return g.silentAboutTime(req)
	case !ok:
		g.noAuthTime.Do(func() {
			s.log.WarnContext(ctx, "the identity provider gives no usable auth_time although it was asked for max_age, so nobody can see whether it asks people again: the time of its answer counts",
				"provider", g.providerHost())
		})
		who.claims[claimAuthTime] = float64(now.Unix())
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
		details: []pages.Detail{{Label: "Identity provider", Value: g.providerHost()}},
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
		details: []pages.Detail{{Label: "Identity provider", Value: g.providerHost()}},
		actions: g.startOverActions(req),
	}
}

func (g *Generation) providerHost() string {
	u, err := url.Parse(g.cfg.IDP.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// renew is record. Where a fresh sign-in was asked for, the new session takes
// the place of the one that this browser had: other hosts' cookies would keep
// it alive, and neither a sign-out nor another person's sign-in would end it.
func (s *Server) renew(g *Generation, r *http.Request, req signInRequest, who *identity) (*databroker.Session, error) {
	var old *databroker.Session
	if req.MaxAge > 0 {
		var err error
		if old, err = s.authenticatedSession(g, r); err != nil {
			return nil, err
		}
	}
	session, err := s.record(r.Context(), g, who)
	if err != nil || old == nil {
		return session, err
	}
	if err := s.store.DeleteSession(r.Context(), old.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return nil, storeDown("delete session", err)
	}
	return session, nil
}
