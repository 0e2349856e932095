package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// claimAuthTime is when the person proved to the provider who they are, in
// seconds since 1970 (OpenID Connect Core, section 2).
const claimAuthTime = "auth_time"

// askAgain has the provider ask the person again. prompt=login is for the
// providers that pass over max_age, and max_age is what obliges a provider to
// give auth_time, by which we see whether it did ask.
func askAgain(maxAge int64) []oauth2.AuthCodeOption {
	return []oauth2.AuthCodeOption{
		oauth2.SetAuthURLParam("max_age", strconv.FormatInt(maxAge, 10)),
		oauth2.SetAuthURLParam("prompt", "login"),
	}
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

// authTime returns the auth_time that settleAuthTime left in claims.
func authTime(claims map[string]any) (time.Time, bool) {
	at, ok := claims[claimAuthTime].(float64)
	return time.Unix(int64(at), 0), ok
}

// signedInAt is when the person of a session last proved who they are. Where
// the provider does not say, it is when it answered.
func signedInAt(session *databroker.Session) time.Time {
	if at, ok := authTime(session.Claims); ok {
		return at
	}
	return session.CreatedAt
}

// youngEnough reports whether a person who signed in at this time need not be
// asked again. Who signed in in the future must be.
func (req signInRequest) youngEnough(at, now time.Time) bool {
	age := now.Sub(at)
	return req.MaxAge == 0 || -signin.Leeway <= age && age <= time.Duration(req.MaxAge)*time.Second
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

// notAskedAgain returns what to tell a person whom the provider has sent back
// without asking, though we wanted it to: trying again would go on forever. Who
// was asked in the course of this sign-in may go on even if they took longer
// than the maximum age; whether that is good enough is for authz to say.
func (s *Server) notAskedAgain(ctx context.Context, g *Generation, req signInRequest, who *identity) *failure {
	if req.MaxAge == 0 {
		return nil
	}
	at, ok := authTime(who.claims)
	if !ok {
		g.noAuthTime.Do(func() {
			s.log.WarnContext(ctx, "the identity provider gives no usable auth_time although it was asked for max_age, so nobody can see whether it asks people again: the time of its answer counts",
				"provider", g.providerHost())
		})
		return nil
	}
	now := s.now()
	if req.youngEnough(at, now) || at.Unix() >= req.StartedAt {
		return nil
	}
	return &failure{
		status: http.StatusForbidden, code: "not-asked-again",
		cause: fmt.Errorf("provider was asked for a sign-in of at most %ds and gave one of %ds", req.MaxAge, int64(now.Sub(at)/time.Second)),
		title: "The identity provider did not ask you again",
		message: fmt.Sprintf("The page that you want needs a sign-in that is at most %s old. The identity provider was told to ask you again, but sent you back with a sign-in that is %s old.",
			span(time.Duration(req.MaxAge)*time.Second), span(now.Sub(at))),
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

// span is a time in its two largest units.
func span(d time.Duration) string {
	var parts []string
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		n := d / unit.size
		d %= unit.size
		switch {
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %ss", n, unit.name))
		case n == 1:
			parts = append(parts, "1 "+unit.name)
		}
	}
	return strings.Join(parts[:min(len(parts), 2)], " ")
}
