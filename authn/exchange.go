package authn

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/signin"
)

// The token types of RFC 8693, section 3, that we know.
const (
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
)

// exchangeIDToken trades an ID token for a token of ours, as Pomerium's first
// versions did.
func (s *Server) exchangeIDToken(g *Generation, w http.ResponseWriter, r *http.Request) error {
	body, err := s.exchange(g, r)
	return s.answer(w, r, body, err)
}

func (s *Server) exchange(g *Generation, r *http.Request) (map[string]string, error) {
	form, err := programForm(r)
	if err != nil {
		return nil, err
	}
	if form.Get("id_token") == "" {
		return nil, invalid(oauthInvalidRequest, "missing id token")
	}
	session, err := s.sessionOfIDToken(g, r, form.Get("id_token"), oauthInvalidGrant)
	if err != nil {
		return nil, err
	}
	token, err := s.sessionToken(g, session, "")
	if err != nil {
		return nil, err
	}
	return map[string]string{"Token": token, "Expiry": session.ExpiresAt.UTC().Format(time.RFC3339)}, nil
}

// exchangeToken is the token exchange of RFC 8693. There a token that is no good is
// an invalid_request (section 2.2.2).
func (s *Server) exchangeToken(g *Generation, r *http.Request, form url.Values) (*tokenAnswer, error) {
	kind, wanted := form.Get("subject_token_type"), form.Get("requested_token_type")
	switch {
	case form.Get("subject_token") == "" || kind == "":
		return nil, invalid(oauthInvalidRequest, "subject_token or subject_token_type is missing")
	case kind != typeIDToken && kind != typeJWT:
		return nil, invalid(oauthInvalidRequest, "subject_token_type must be "+typeIDToken)
	case wanted != "" && wanted != typeAccessToken:
		return nil, invalid(oauthInvalidRequest, "requested_token_type must be "+typeAccessToken+", or left out")
	case form.Has("actor_token") || form.Has("actor_token_type"):
		return nil, invalid(oauthInvalidRequest, "actor_token is not supported: a token of this service acts for one person")
	}
	host, err := g.exchangeTarget(form)
	if err != nil {
		return nil, err
	}
	session, err := s.sessionOfIDToken(g, r, form.Get("subject_token"), oauthInvalidRequest)
	if err != nil {
		return nil, err
	}
	now := s.now()
	token, err := g.keys.MintSession(signin.SessionToken{Host: host, SessionID: session.ID, IDPID: session.IDPID, IssuedAt: now, ExpiresAt: session.ExpiresAt})
	if err != nil {
		return nil, err
	}
	return &tokenAnswer{
		AccessToken: token, IssuedTokenType: typeAccessToken, TokenType: "Bearer",
		ExpiresIn: max(0, int64(session.ExpiresAt.Sub(now)/time.Second)),
	}, nil
}

// exchangeTarget is the one route host that resource and audience name, "" if there
// are none: then the token is good on all.
func (g *Generation) exchangeTarget(form url.Values) (string, error) {
	host := ""
	for _, name := range slices.Concat(form["resource"], form["audience"]) {
		found := name
		if strings.Contains(name, "/") {
			u, err := signin.SafeRedirect(name, g.hosts.isRoute)
			if err != nil || !g.hosts.schemeOK(u.Scheme) || strings.Contains(name, "#") {
				return "", invalid(oauthInvalidTarget, "resource and audience must name a host of this site")
			}
			found = u.Host
		}
		if !g.hosts.isRoute(found) {
			return "", invalid(oauthInvalidTarget, "resource and audience must name a host of this site")
		}
		if host != "" && signin.Hostname(host) != signin.Hostname(found) {
			return "", invalid(oauthInvalidTarget, "a token can be for one host, or for all if resource and audience are left out")
		}
		host = found
	}
	return host, nil
}

// sessionOfIDToken is the session that an ID token buys, the same one each time. A
// token that is no good is the error code refused.
func (s *Server) sessionOfIDToken(g *Generation, r *http.Request, raw, refused string) (*databroker.Session, error) {
	err := checkSpelling(raw)
	var provider *idp.Provider
	var who *idp.Identity
	if err == nil {
		provider, who, err = verifyIDToken(r.Context(), raw, g.providers.All(), g.cfg.Programs.Audiences)
	}
	var session *databroker.Session
	if err == nil {
		session = &databroker.Session{
			ID: "t" + g.keys.Digest("id_token", provider.ID(), raw), IDPID: provider.ID(), Origin: g.origin(r, "id_token"),
			ExpiresAt: earliest(who.ExpiresAt, s.now().Add(g.cfg.Cookie.Expire)),
		}
		session, err = s.buy(r.Context(), g, session, who, who.IssuedAt)
	}
	var bad *badToken
	switch {
	case errors.As(err, &bad):
		return nil, &oauthError{code: refused, description: "the id_token cannot be used: " + bad.reason, cause: err}
	case err != nil:
		return nil, err
	}
	return session, nil
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// badToken is an error about a token that somebody brought. reason is for them.
type badToken struct {
	reason string
	cause  error
}

func (e *badToken) Error() string {
	if e.cause != nil {
		return e.reason + ": " + e.cause.Error()
	}
	return e.reason
}

func (e *badToken) Unwrap() error { return e.cause }

// unverified is what a token says of itself. It chooses whom to ask, and proves
// nothing.
type unverified struct {
	issuer    string
	audiences []string
}

// checkSpelling refuses a JWT in any other spelling than the one that its issuer
// writes (RFC 7515, section 2): a token is known by its text, and must not be many.
func checkSpelling(raw string) error {
	strict := base64.RawURLEncoding.Strict()
	parts := strings.Split(raw, ".")
	for _, p := range parts {
		if _, err := strict.DecodeString(p); err != nil || strings.ContainsAny(p, "\r\n") || len(parts) != 3 {
			return &badToken{reason: "it is not a signed JWT"}
		}
	}
	return nil
}

func readUnverified(raw string) (unverified, error) {
	var u unverified
	bad := &badToken{reason: "it is not a signed JWT"}
	if strings.Count(raw, ".") != 2 {
		return u, bad
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		return u, bad
	}
	var claims struct {
		Issuer   string `json:"iss"`
		Audience any    `json:"aud"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return u, bad
	}
	return unverified{claims.Issuer, values(claims.Audience)}, nil
}

// issuedBy are the providers of this issuer, as far as their settings tell.
func (u unverified) issuedBy(providers []*idp.Provider) []*idp.Provider {
	issuer, err := url.Parse(u.issuer)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(providers), func(p *idp.Provider) bool { return !issuedBy(p, issuer) })
}

// verifyIDToken finds the provider whose an ID token is, and verifies it: the one
// whose client id is its audience, else the first that is offered, if the audience
// is one of audiences, which come from programmatic_allowed_audiences.
func verifyIDToken(ctx context.Context, raw string, providers []*idp.Provider, audiences []string) (*idp.Provider, *idp.Identity, error) {
	token, err := readUnverified(raw)
	if err != nil {
		return nil, nil, err
	}
	allowed := slices.ContainsFunc(token.audiences, func(a string) bool { return slices.Contains(audiences, a) })
	var own, others []*idp.Provider
	for _, p := range providers {
		switch {
		case slices.Contains(token.audiences, p.Settings().ClientID):
			own = append(own, p)
		case allowed && p.Settings().Offered:
			others = append(others, p)
		}
	}
	candidates := append(own, others...)
	if len(candidates) == 0 {
		return nil, nil, &badToken{reason: "its aud is neither a client id of this site nor one of programmatic_allowed_audiences"}
	}
	if exact := token.issuedBy(candidates); len(exact) > 0 {
		candidates = exact
	}
	var first error
	for _, p := range candidates {
		who, err := p.VerifyIDToken(ctx, raw, audiences)
		if err == nil {
			return p, who, nil
		}
		// One that cannot be asked may be the one.
		if first == nil || !undecided(first) && undecided(err) {
			first = err
		}
	}
	return nil, nil, tokenFailure(first)
}

// undecided reports whether nobody can tell now what a token is worth.
func undecided(err error) bool {
	var e *idp.Error
	if !errors.As(err, &e) {
		return true
	}
	return e.Kind == idp.Unavailable || e.Kind == idp.Unusable || e.Kind == idp.Misconfigured
}

// tokenFailure says what an error of package idp means for a token that somebody
// brought.
func tokenFailure(err error) error {
	if undecided(err) {
		return fmt.Errorf("verify token: %w", err)
	}
	return &badToken{reason: "its issuer, audience, signature, algorithm or time is not right", cause: err}
}

// buy writes the session that a token of a provider stands for, or returns the one
// that it stands for already. session has the ID, which is a digest of the token, so
// that the same token gives the same session; what is about the person is put in.
//
// A token from before the last revocation of its user buys nothing. That is looked at
// again after the session was written: a revocation in between has not seen it.
func (s *Server) buy(ctx context.Context, g *Generation, session *databroker.Session, who *idp.Identity, issued time.Time) (*databroker.Session, error) {
	now := s.now()
	if !now.Before(session.ExpiresAt) {
		return nil, &badToken{reason: "it has expired"}
	}
	session.UserID, session.ProviderSessionID = who.UserID, who.SessionID
	if err := s.checkRevoked(ctx, g, session, issued); err != nil {
		return nil, err
	}
	for range maxTries {
		known, err := s.store.Session(ctx, session.ID)
		switch {
		case err == nil && now.Before(known.ExpiresAt):
			return known, nil
		case err == nil:
			session.Version = known.Version
		case errors.Is(err, databroker.ErrNotFound):
			session.Version = 0
		default:
			return nil, storeDown("load session", err)
		}
		if err := s.recordUser(ctx, who, now); err != nil {
			return nil, err
		}
		session.Claims, session.CreatedAt, session.AccessedAt = who.Claims, now, now
		err = s.store.PutSession(ctx, session)
		if errors.Is(err, databroker.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, storeDown("write session", err)
		}
		return session, s.confirm(ctx, g, session, issued)
	}
	return nil, unavailable("busy", errors.New("write session: changed each time"))
}

// confirm takes a new session back if its user, or the provider's session, was ended
// before it was made or meanwhile.
func (s *Server) confirm(ctx context.Context, g *Generation, session *databroker.Session, issued time.Time) error {
	err := s.checkRevoked(ctx, g, session, issued)
	if err == nil {
		return nil
	}
	if gone := s.store.DeleteSession(ctx, session.ID); gone != nil && !errors.Is(gone, databroker.ErrNotFound) {
		return storeDown("delete session", gone)
	}
	return err
}

// checkRevoked refuses a token that was issued before its user's sessions were last
// revoked. Tokens say the second alone, so one of that very second is refused, too.
func (s *Server) checkRevoked(ctx context.Context, g *Generation, session *databroker.Session, issued time.Time) error {
	const signedOut = "its user has signed out or was signed out since it was issued, so sign in at the identity provider again for a new one"
	if ended, err := s.endedSince(ctx, g, session.IDPID, session.ProviderSessionID, issued); err != nil {
		return err
	} else if ended {
		return &badToken{reason: signedOut}
	}
	user, err := s.store.User(ctx, session.UserID)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil
	case err != nil:
		return storeDown("load user", err)
	case user.RevokedAt.IsZero() || issued.Unix() > user.RevokedAt.Unix():
		return nil
	}
	return &badToken{reason: signedOut}
}
