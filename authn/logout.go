package authn

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/signin"
)

const (
	backchannelPath  = "/oauth2/backchannel_logout"
	frontchannelPath = "/oauth2/frontchannel_logout"

	// maxLogoutAge is how old a logout token may be, whatever its exp: so long we
	// remember those that were used.
	maxLogoutAge = 10 * time.Minute
	// maxCandidates bounds the providers that one logout token is verified with.
	maxCandidates = 8
	maxSID        = 256

	// noProvider names no provider settings: to revoke a user's sessions of it ends
	// none, and yet records the time.
	noProvider = "-"
)

// backchannelLogout ends sessions because a provider says so (OpenID Connect
// Back-Channel Logout 1.0). Nobody needs to show who they are: the token does. The
// provider tries again after a 503, and takes a 400 as final.
func (s *Server) backchannelLogout(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil || len(r.PostForm["logout_token"]) != 1 {
		return badLogout("The request needs one logout_token in a form.", err)
	}
	raw := r.PostForm.Get("logout_token")
	done := 0
	var down error
	refused := errors.New("it is for no client of ours")
	for _, p := range g.clients(raw) {
		logout, err := p.VerifyLogoutToken(r.Context(), raw)
		var e *idp.Error
		switch {
		case err != nil && (!errors.As(err, &e) || e.Kind == idp.Unavailable):
			down = err
			continue
		case err == nil:
			err = s.checkLogout(r.Context(), p, logout)
		}
		var f *failure
		if errors.As(err, &f) {
			return f
		}
		if err != nil {
			refused = err
			continue
		}

		// The token is good: from here on we may change things.
		if err := s.logOut(g, r, p, logout); err != nil {
			return err
		}
		done++
	}
	switch {
	case done > 0:
		w.Header().Set("Cache-Control", "no-store")
		write(w, r, http.StatusOK, nil)
		return nil
	case down != nil:
		f := providerFailure(down)
		f.json, f.message = true, "The logout_token cannot be verified right now, because the provider's keys cannot be had. Send it again."
		return f
	}
	return badLogout("The logout_token is not a new and valid one of a provider of this site, issued to it.", refused)
}

func badLogout(message string, cause error) *failure {
	return &failure{status: http.StatusBadRequest, code: "invalid_request", title: "This logout request cannot be used", message: message, cause: cause, json: true}
}

// clients are the providers at which we are one of those that a logout token, not
// yet verified, is for. One client may be configured more than once.
func (g *Generation) clients(raw string) []*idp.Provider {
	var claims struct {
		Audience any `json:"aud"`
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return nil
	}
	audience := list(claims.Audience)
	var found []*idp.Provider
	for _, p := range g.providers.All() {
		if len(found) < maxCandidates && slices.Contains(audience, p.Settings().ClientID) {
			found = append(found, p)
		}
	}
	return found
}

// logoutMark is the ticket by which a logout token is known to have been used.
func logoutMark(p *idp.Provider, l *idp.Logout) string {
	sum := sha256.Sum256([]byte("logout token\x00" + p.ID() + "\x00" + l.JTI))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// checkLogout refuses a token that is old or was used before. A failure means that
// we cannot know.
func (s *Server) checkLogout(ctx context.Context, p *idp.Provider, l *idp.Logout) error {
	if s.now().Sub(l.IssuedAt) > maxLogoutAge {
		return errors.New("it is too old")
	}
	_, err := s.store.Ticket(ctx, logoutMark(p, l))
	switch {
	case err == nil:
		return errors.New("it was used before")
	case !errors.Is(err, databroker.ErrNotFound):
		return logoutStoreDown("look for used logout token", err)
	}
	return nil
}

// logOut does what a logout token says, and marks it as used.
func (s *Server) logOut(g *Generation, r *http.Request, p *idp.Provider, l *idp.Logout) error {
	ctx := r.Context()
	ended, err := s.endAsToken(ctx, g, g.sessionIDPs(p), l)
	if err != nil {
		return logoutStoreDown("end sessions", err)
	}
	// Marked last: after a failure the provider sends the same token again, and to
	// end what has ended already does no harm.
	err = s.store.PutTicket(ctx, &databroker.Ticket{ID: logoutMark(p, l), ExpiresAt: s.now().Add(maxLogoutAge + signin.Leeway)})
	if err != nil && !errors.Is(err, databroker.ErrConflict) && !errors.Is(err, databroker.ErrFull) {
		return logoutStoreDown("mark logout token", err)
	}
	s.log.InfoContext(ctx, "signed out by the provider", "request-id", requestID(r), "provider", p.Host(),
		"user", bounded(l.UserID, 255), "by-session", l.SessionID != "", "sessions", ended)
	return nil
}

// endAsToken ends the sessions that a token means: those of its sid, or where it has
// none all of the user's that this provider made. Where a sid comes with a sub and
// nobody has it, it has most likely ended here already, and the user's others have
// nothing to do with it: but for those of which the provider never told the sid.
func (s *Server) endAsToken(ctx context.Context, g *Generation, idpIDs []string, l *idp.Logout) (ended int, err error) {
	if l.SessionID == "" {
		for _, id := range idpIDs {
			n, err := s.store.RevokeUser(ctx, l.UserID, id)
			if err := known(err); err != nil {
				return ended, err
			}
			ended += n
		}
		return ended, nil
	}
	for _, id := range idpIDs {
		if err := s.markEnded(ctx, g, id, l.SessionID); err != nil {
			return 0, err
		}
	}
	ended, err = s.endProviderSession(ctx, idpIDs, l.SessionID, l.UserID)
	if err != nil || ended > 0 || l.UserID == "" {
		return ended, err
	}
	sessions, err := s.store.Sessions(ctx, l.UserID)
	if err != nil {
		return 0, err
	}
	for _, session := range sessions {
		if !slices.Contains(idpIDs, session.IDPID) || session.ProviderSessionID != "" {
			continue
		}
		if err := known(s.store.RevokeSession(ctx, session.ID)); err != nil {
			return ended, err
		}
		ended++
	}
	// An ID token from before buys no new session, though no old one has ended.
	_, err = s.store.RevokeUser(ctx, l.UserID, noProvider)
	return ended, known(err)
}

// endedLife is how long a session of a provider is remembered that has ended there:
// longer than ID tokens of it are good.
const endedLife = 24 * time.Hour

// markEnded remembers when a provider's session has ended: what was signed in its
// name before may come later than the news of its end, and buys no session here.
func (s *Server) markEnded(ctx context.Context, g *Generation, idpID, sid string) error {
	ticket := &databroker.Ticket{ID: g.keys.Digest("ended", idpID, sid)}
	if known, err := s.store.Ticket(ctx, ticket.ID); err == nil {
		ticket = known
	}
	now := s.now()
	ticket.Data, ticket.ExpiresAt = strconv.AppendInt(nil, now.Unix(), 10), now.Add(endedLife)
	err := s.store.PutTicket(ctx, ticket)
	if errors.Is(err, databroker.ErrConflict) || errors.Is(err, databroker.ErrFull) {
		return nil // somebody has just done so, or there is no room, which must not keep sessions alive
	}
	return err
}

// endedSince reports whether a provider has said that its session has ended, in the
// second of since or later. A provider may give the sid to a new session.
func (s *Server) endedSince(ctx context.Context, g *Generation, idpID, sid string, since time.Time) (bool, error) {
	if sid == "" {
		return false, nil
	}
	ticket, err := s.store.Ticket(ctx, g.keys.Digest("ended", idpID, sid))
	if errors.Is(err, databroker.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, storeDown("look for ended session", err)
	}
	at, err := strconv.ParseInt(string(ticket.Data), 10, 64)
	return err != nil || at >= since.Unix(), nil
}

// endProviderSession ends the sessions that a provider knows by sid, if they are the
// user's; "" is any user.
func (s *Server) endProviderSession(ctx context.Context, idpIDs []string, sid, userID string) (ended int, err error) {
	for _, id := range idpIDs {
		sessions, err := s.store.ProviderSessions(ctx, id, sid)
		if err != nil {
			return ended, err
		}
		for _, session := range sessions {
			if userID != "" && session.UserID != userID {
				continue
			}
			if err := known(s.store.RevokeSession(ctx, session.ID)); err != nil {
				return ended, err
			}
			ended++
		}
	}
	return ended, nil
}

// known is err, but for that something to be ended is not there.
func known(err error) error {
	if errors.Is(err, databroker.ErrNotFound) {
		return nil
	}
	return err
}

func logoutStoreDown(operation string, err error) *failure {
	f := storeDown(operation, err)
	f.json = true
	return f
}

// frontchannelLogout ends sessions because the browser shows the provider's logout
// page, which frames this one (OpenID Connect Front-Channel Logout 1.0). The browser
// withholds our cookies in that frame, so only the sid says which session it is, and
// anybody might have sent it: without it nothing ends.
func (s *Server) frontchannelLogout(g *Generation, w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || len(q["iss"]) != 1 || len(q["sid"]) != 1 {
		return badRequest("logout-query", "A logout through the browser needs iss and sid, once each.", err)
	}
	sid := q.Get("sid")
	issuer, err := url.Parse(q.Get("iss"))
	if err != nil {
		return badRequest("logout-query", "iss is no identity provider of this site.", nil)
	}
	var issuers []*idp.Provider
	for _, p := range g.providers.All() {
		if issuedBy(p, issuer) {
			issuers = append(issuers, p)
		}
	}
	if len(issuers) == 0 || sid == "" || len(sid) > maxSID {
		return badRequest("logout-query", "iss names no identity provider of this site, or sid is no session of one.", nil)
	}

	// The request can mean only one thing: from here on we may change things.
	total := 0
	for _, p := range issuers {
		ended, err := s.endProviderSession(r.Context(), g.sessionIDPs(p), sid, "")
		if err != nil {
			return storeDown("end sessions", err)
		}
		total += ended
	}
	s.log.InfoContext(r.Context(), "signed out through the provider's page", "request-id", requestID(r), "provider", issuers[0].Host(), "sessions", total)
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors "+issuer.Scheme+"://"+issuer.Host)
	writeText(w, r, "Signed out.\n")
	return nil
}

// issuedBy reports whether iss is the issuer of a provider. Azure's names the
// tenant, which the configuration need not.
func issuedBy(p *idp.Provider, iss *url.URL) bool {
	if p.Settings().Provider == "azure" && iss.Scheme == "https" && iss.User == nil && iss.Host == p.Host() {
		return true
	}
	return strings.TrimSuffix(iss.String(), "/") == strings.TrimSuffix(p.Settings().URL, "/")
}
