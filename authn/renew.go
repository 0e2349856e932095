package authn

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

const (
	// paramRefreshToken brings the refresh token of a programmatic sign-in by link.
	paramRefreshToken = "pomerium_refresh_token"
	// refreshGrace is how long a refresh token is taken after it was used: the
	// answer may not have arrived, or the program may have asked twice at once.
	refreshGrace = 30 * time.Second
)

// renewTokens is the refresh_token grant.
func (s *Server) renewTokens(g *Generation, r *http.Request, form url.Values) (*tokenAnswer, error) {
	raw := form.Get("refresh_token")
	if raw == "" {
		return nil, invalid(oauthInvalidRequest, "refresh_token is missing")
	}
	t, err := g.keys.OpenRefresh(raw)
	// A public client need not say who it is, but what it says must be right.
	if err != nil || t.ClientID == "" || form.Has("client_id") && form.Get("client_id") != t.ClientID {
		return nil, &oauthError{code: oauthInvalidGrant, description: "this is no refresh token that was given to this client_id", cause: err}
	}
	session, refresh, err := s.rotate(g, r, t)
	if err != nil {
		return nil, err
	}
	return s.tokens(g, session, refresh)
}

// refreshToken renews a programmatic sign-in by link. Its token lasts as long as
// the session, as those of such sign-ins do.
func (s *Server) refreshToken(g *Generation, w http.ResponseWriter, r *http.Request) error {
	body, err := s.renewByLink(g, r)
	return s.answer(w, r, body, err)
}

func (s *Server) renewByLink(g *Generation, r *http.Request) (map[string]string, error) {
	refused := invalid(oauthInvalidToken, "send the refresh token of a programmatic sign-in as Authorization: Pomerium TOKEN")
	given := r.Header["Authorization"]
	if len(given) != 1 {
		return nil, refused
	}
	scheme, raw, _ := strings.Cut(given[0], " ")
	if !strings.EqualFold(scheme, "Pomerium") {
		return nil, refused
	}
	t, err := g.keys.OpenRefresh(strings.TrimSpace(raw))
	if err != nil || t.ClientID != "" {
		refused.cause = err
		return nil, refused
	}
	session, refresh, err := s.rotate(g, r, t)
	if err != nil {
		return nil, err
	}
	token, err := s.sessionToken(g, session, "")
	if err != nil {
		return nil, err
	}
	return map[string]string{"jwt": token, "refresh_token": refresh}, nil
}

// rotate trades a refresh token for the next one. One whose turn is over is taken
// for stolen (RFC 9700, section 4.14.2): the session ends, because whoever has the
// newer one may be the thief.
func (s *Server) rotate(g *Generation, r *http.Request, t signin.RefreshToken) (*databroker.Session, string, error) {
	over := invalid(oauthInvalidGrant, "the session has ended, sign in again")
	session, err := s.liveSession(r.Context(), g, t.SessionID, t.IDPID)
	if err != nil {
		return nil, "", err
	}
	if session == nil {
		return nil, "", over
	}
	next := g.keys.NextRefresh(t)
	err = s.updateSession(r.Context(), session, func() error {
		switch now := s.now(); {
		case equal(string(session.RefreshHash), string(t.Hash())):
			session.PriorRefreshHash, session.RefreshHash, session.RotatedAt = session.RefreshHash, next.Hash(), now
			return nil
		case equal(string(session.PriorRefreshHash), string(t.Hash())) && now.Before(session.RotatedAt.Add(refreshGrace)):
			return errRotated
		}
		return errReused
	})
	switch {
	case errors.Is(err, errReused):
		return nil, "", s.endReused(r, session)
	case errors.Is(err, databroker.ErrNotFound):
		return nil, "", over
	case err != nil && !errors.Is(err, errRotated):
		return nil, "", err
	}
	sealed, err := g.keys.SealRefresh(next)
	return session, sealed, err
}

var (
	// errRotated reports a refresh token that was just used: the next one is known.
	errRotated = errors.New("refresh token was used a moment ago")
	errReused  = errors.New("refresh token was used before")
)

func (s *Server) endReused(r *http.Request, session *databroker.Session) error {
	if err := s.store.RevokeSession(r.Context(), session.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return storeDown("revoke session", err)
	}
	s.log.WarnContext(r.Context(), "a refresh token was used a second time, so its session was ended: somebody may have copied it",
		"request-id", requestID(r), "user", bounded(session.UserID, 255), "client", bounded(session.Origin.UserAgent, 255))
	return &oauthError{code: oauthInvalidGrant, description: "this refresh token was used before, so the session was ended: sign in again", cause: errReused}
}

// revoke ends the session that a token stands for (RFC 7009). What is no token of
// ours is as good as revoked.
func (s *Server) revoke(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if err := s.revokeToken(g, r); err != nil {
		return s.answer(w, r, nil, err)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) revokeToken(g *Generation, r *http.Request) error {
	form, err := programForm(r)
	if err != nil {
		return err
	}
	raw := form.Get("token")
	if raw == "" {
		return invalid(oauthInvalidRequest, "token is missing")
	}
	id := ""
	// A token that has expired still says which session is meant, and that may go on:
	// at no time is it too late.
	if c, err := g.keys.OpenCredential(raw, time.Time{}); err == nil {
		if c.Kind != signin.KindSession {
			return invalid(oauthUnsupportedToken, "service accounts are revoked by whoever runs this site")
		}
		id = c.ID
	} else if t, err := g.keys.OpenRefresh(raw); err == nil {
		id = t.SessionID
	}
	if id == "" {
		return nil
	}
	switch err := s.store.RevokeSession(r.Context(), id); {
	case errors.Is(err, databroker.ErrNotFound):
	case err != nil:
		return storeDown("revoke session", err)
	default:
		s.log.InfoContext(r.Context(), "session revoked by its holder", "request-id", requestID(r), "session", id)
	}
	return nil
}
