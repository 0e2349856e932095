package authn

import (
	"context"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/signin"
)

// authenticated is one session in the authenticate host's own cookie, which holds
// one for each provider that the person has signed in with.
type authenticated struct {
	SessionID string `json:"s"`
	IDPID     string `json:"i"`
	ExpiresAt int64  `json:"e"`
}

// authenticateURL is a page on the authenticate host.
func (g *Generation) authenticateURL(path string) *url.URL {
	return &url.URL{Scheme: g.cfg.AuthenticateURL.Scheme, Host: g.cfg.AuthenticateURL.Host, Path: path}
}

// link is the URL that the client asked for, as the signer of a link wrote it.
func (g *Generation) link(r *http.Request) *url.URL {
	u := &url.URL{Scheme: g.scheme(r), Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	if g.hosts.isAuthenticate(r.Host) {
		u.Scheme, u.Host = g.cfg.AuthenticateURL.Scheme, g.cfg.AuthenticateURL.Host
	}
	return u
}

// scheme is https, unless we serve plain HTTP and Envoy says it was that.
func (g *Generation) scheme(r *http.Request) string {
	if g.cfg.Server.Insecure && r.Header.Get("X-Forwarded-Proto") == "http" {
		return "http"
	}
	return "https"
}

// sameOrigin reports whether a request was made by a page of this very host.
// Browsers send one of the two headers with every POST; what sends neither is
// refused.
func (g *Generation) sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site == "same-origin"
	}
	u, err := url.Parse(r.Header.Get("Origin"))
	return err == nil && u.Scheme == g.scheme(r) && sameHost(u.Host, r.Host)
}

// principal is who asks: a session or a service account.
type principal struct {
	session *databroker.Session
	account *databroker.ServiceAccount
}

func (p *principal) id() string {
	if p.account != nil {
		return p.account.ID
	}
	return p.session.ID
}

// principal returns who the credentials of a request to a route's host stand
// for, or nil for nobody. An error means that we cannot know.
func (s *Server) principal(g *Generation, r *http.Request) (*principal, error) {
	if g.hosts.isAuthenticate(r.Host) {
		session, err := s.authenticatedSession(g, r)
		if session == nil || err != nil {
			return nil, err
		}
		return &principal{session: session}, nil
	}
	return s.credential(g, r, r.Header["Cookie"])
}

// credential is whom the first good credential of a request names, cookies first.
func (s *Server) credential(g *Generation, r *http.Request, cookies []string) (*principal, error) {
	found := signin.Present(g.cfg.Cookie.Name, cookies, r.Header.Get("X-Pomerium-Authorization"), r.Header.Get("Authorization"), r.URL.RawQuery)
	return signin.Choose(found, func(p signin.Presented) (*principal, error) {
		return s.open(r.Context(), g, r.Host, p.Token)
	}, (*principal).id)
}

// open returns the live session or account that a token names on this host, or
// nil.
func (s *Server) open(ctx context.Context, g *Generation, host, token string) (*principal, error) {
	c, err := g.keys.OpenCredential(token, s.now())
	if err != nil || !c.GoodFor(host, g.cfg.Cookie.Domain) {
		return nil, nil
	}
	if c.Kind == signin.KindSession {
		session, err := s.liveSession(ctx, g, c.ID, c.IDPID)
		if session == nil || err != nil {
			return nil, err
		}
		return &principal{session: session}, nil
	}
	a, err := s.store.ServiceAccount(ctx, c.ID)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, storeDown("load service account", err)
	case !a.ExpiresAt.IsZero() && !s.now().Before(a.ExpiresAt):
		return nil, nil
	}
	return &principal{account: a}, nil
}

// maxAuthenticated is how many sessions the authenticate host's cookie holds.
const maxAuthenticated = 8

// authenticateCookies returns what the authenticate host's cookies list, live or not:
// most often there is one.
func (g *Generation) authenticateCookies(r *http.Request) [][]authenticated {
	var lists [][]authenticated
	for _, sealed := range signin.CookieValues(signin.AuthenticateCookieName(g.cfg.Cookie.Name), r.Header["Cookie"]) {
		plain, err := g.keys.Open(signin.PurposeAuthenticateCookie, sealed, nil)
		var list []authenticated
		if err == nil && json.Unmarshal(plain, &list) == nil {
			lists = append(lists, list[:min(len(list), maxAuthenticated)])
		}
	}
	return lists
}

// authenticatedSessions returns the live sessions that the authenticate host's
// cookie stands for, the newest first.
func (s *Server) authenticatedSessions(g *Generation, r *http.Request) ([]*databroker.Session, error) {
	for _, list := range g.authenticateCookies(r) {
		var live []*databroker.Session
		for _, a := range list {
			if !s.now().Before(time.Unix(a.ExpiresAt, 0)) {
				continue
			}
			session, err := s.liveSession(r.Context(), g, a.SessionID, a.IDPID)
			if err != nil {
				return nil, err
			}
			if session != nil {
				live = append(live, session)
			}
		}
		if live != nil {
			return live, nil
		}
	}
	return nil, nil
}

// authenticatedSession returns the newest of the sessions that the browser has at
// the authenticate host, or nil.
func (s *Server) authenticatedSession(g *Generation, r *http.Request) (*databroker.Session, error) {
	sessions, err := s.authenticatedSessions(g, r)
	if err != nil || len(sessions) == 0 {
		return nil, err
	}
	return sessions[0], nil
}

// liveSession returns nil for a session that is gone, over, or another
// provider's.
func (s *Server) liveSession(ctx context.Context, g *Generation, id, idpID string) (*databroker.Session, error) {
	if g.cfg.FindIDP(idpID) == nil {
		return nil, nil
	}
	session, err := s.store.Session(ctx, id)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, storeDown("load session", err)
	case session.IDPID != idpID || !s.now().Before(session.ExpiresAt):
		return nil, nil
	}
	return session, nil
}

func storeDown(operation string, err error) *failure {
	return unavailable("databroker-unavailable", fmt.Errorf("%s: %w", operation, err))
}

// authenticateCookie keeps people signed in at the authenticate host. The first of
// sessions is the newest.
func (g *Generation) authenticateCookie(sessions []*databroker.Session) (*http.Cookie, error) {
	var list []authenticated
	expires := time.Time{}
	for _, session := range sessions[:min(len(sessions), maxAuthenticated)] {
		list = append(list, authenticated{session.ID, session.IDPID, session.ExpiresAt.Unix()})
		if session.ExpiresAt.After(expires) {
			expires = session.ExpiresAt
		}
	}
	plain, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("seal authenticate cookie: %w", err)
	}
	return &http.Cookie{
		Name: signin.AuthenticateCookieName(g.cfg.Cookie.Name), Value: g.keys.Seal(signin.PurposeAuthenticateCookie, plain, nil),
		Path: "/", Expires: expires, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}, nil
}

// withSession are the sessions of a browser once it has another: one of each
// provider, the new one first.
func withSession(session *databroker.Session, before []*databroker.Session) []*databroker.Session {
	out := []*databroker.Session{session}
	for _, b := range before {
		if b.IDPID != session.IDPID {
			out = append(out, b)
		}
	}
	return out
}

// sessionToken is the credential for a session on a host, "" for any.
func (s *Server) sessionToken(g *Generation, session *databroker.Session, host string) (string, error) {
	return g.keys.MintSession(signin.SessionToken{
		Host: host, SessionID: session.ID, IDPID: session.IDPID, IssuedAt: s.now(), ExpiresAt: session.ExpiresAt,
	})
}

// audience is where the session cookie of a route's host is good. Whoever sets
// cookie_http_only: false wants pages to read the cookie and use it on other
// hosts (X-Pomerium-Authorization), so then it is good on all.
func (g *Generation) audience(host string) string {
	c := g.cfg.Cookie
	switch {
	case !c.HTTPOnly:
		return ""
	case c.Domain != "" && signin.Covers(c.Domain, host):
		return c.Domain
	}
	return host
}

// cookieDomain is cookie_domain, but on a host that it does not cover, where a
// browser would refuse it.
func (g *Generation) cookieDomain(host string) string {
	if d := g.cfg.Cookie.Domain; d != "" && signin.Covers(d, host) {
		return d
	}
	return ""
}

// sessionCookie is the cookie of a route's host.
func (g *Generation) sessionCookie(host, token string, expires time.Time) *http.Cookie {
	return &http.Cookie{
		Name: g.cfg.Cookie.Name, Value: token, Path: "/", Domain: g.cookieDomain(host), Expires: expires,
		Secure: true, HttpOnly: g.cfg.Cookie.HTTPOnly, SameSite: sameSite(g.cfg.Cookie),
	}
}

// maxParents bounds the domains in which we look for cookies from before.
const maxParents = 8

// rivals delete the session cookies from other settings of cookie_domain, which
// would quarrel with the one of now: the host's own where the domain's counts, and
// where the browser has sent several, those of every domain that covers the host.
func (g *Generation) rivals(r *http.Request) []*http.Cookie {
	var domains []string
	if g.cookieDomain(r.Host) != "" {
		domains = append(domains, "")
	}
	if len(signin.CookieValues(g.cfg.Cookie.Name, r.Header["Cookie"])) > 1 {
		host := signin.Hostname(r.Host)
		for net.ParseIP(strings.Trim(host, "[]")) == nil && strings.Contains(host, ".") && len(domains) < maxParents {
			domains = append(domains, host)
			_, host, _ = strings.Cut(host, ".")
		}
	}
	var deletions []*http.Cookie
	for _, d := range domains {
		deletions = append(deletions, g.sessionCookieIn(d))
	}
	return deletions
}

// sessionCookieIn deletes the session cookie of a domain, "" for the host's own.
func (g *Generation) sessionCookieIn(domain string) *http.Cookie {
	c := signin.DeleteCookie(g.cfg.Cookie.Name)
	c.Domain, c.HttpOnly, c.SameSite = domain, g.cfg.Cookie.HTTPOnly, sameSite(g.cfg.Cookie)
	return c
}

// dropSessionCookies deletes the session cookies of a host, also those from before
// cookie_domain was changed, and the count of its rounds.
func (g *Generation) dropSessionCookies(w http.ResponseWriter, r *http.Request) {
	for _, c := range append(g.rivals(r), g.sessionCookieIn(g.cookieDomain(r.Host))) {
		http.SetCookie(w, c)
	}
	round := signin.RoundCookie(g.cfg.Cookie.Name, 0, time.Time{})
	round.Value, round.MaxAge = "", -1
	http.SetCookie(w, round)
}

func sameSite(c config.Cookie) http.SameSite {
	switch strings.ToLower(c.SameSite) {
	case "strict":
		return http.SameSiteStrictMode
	case "lax":
		return http.SameSiteLaxMode
	case "none":
		return http.SameSiteNoneMode
	}
	return http.SameSiteDefaultMode
}

// record writes what we have learnt: the user, and a new session, made by a method
// and for a life. asked is when the provider was asked for it: whoever revokes the
// user's sessions from then on means this one, too.
func (s *Server) record(r *http.Request, g *Generation, req signInRequest, who *idp.Identity, asked time.Time) (*databroker.Session, error) {
	id, err := s.sessionID()
	if err != nil {
		return nil, err
	}
	now := s.now()
	if err := s.recordUser(r.Context(), who, now); err != nil {
		return nil, err
	}
	session := &databroker.Session{
		ID: id, UserID: who.UserID, IDPID: req.IDPID, ProviderSessionID: who.SessionID, Claims: who.Claims, Tokens: who.Tokens,
		Origin:    g.origin(r, req.method()),
		CreatedAt: now, AccessedAt: now, ExpiresAt: now.Add(g.cfg.Cookie.Expire),
	}
	if req.Programmatic {
		session.ExpiresAt = now.Add(min(pendingLife, g.cfg.Cookie.Expire))
	}
	if err := s.store.PutSession(r.Context(), session); err != nil {
		return nil, storeDown("write session", err)
	}
	user, err := s.store.User(r.Context(), who.UserID)
	ended, endedErr := s.endedSince(r.Context(), g, req.IDPID, who.SessionID, asked)
	switch {
	case err != nil && !errors.Is(err, databroker.ErrNotFound):
		err = storeDown("load user", err)
	case endedErr != nil:
		err = endedErr
	case ended || err == nil && !user.RevokedAt.Before(asked):
		err = g.startOver(req, "signed-out-meanwhile", "Your sessions were ended while you signed in.", nil)
	default:
		return session, nil
	}
	if gone := s.store.DeleteSession(r.Context(), session.ID); gone != nil && !errors.Is(gone, databroker.ErrNotFound) {
		return nil, storeDown("delete session", gone)
	}
	return nil, err
}

// sessionID is a new name of a session. People pass it to commands, so it has letters
// and digits alone.
func (s *Server) sessionID() (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(s.rand, b); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)), nil
}

// method is how the session of a sign-in is made (databroker.Origin).
func (req signInRequest) method() string {
	switch {
	case req.device():
		return "device"
	case req.Programmatic:
		return "program"
	}
	return "browser"
}

// origin is where a session comes from: what its client calls itself, and where
// Envoy saw it.
func (g *Generation) origin(r *http.Request, method string) databroker.Origin {
	return databroker.Origin{Method: method, UserAgent: bounded(r.UserAgent(), 256), Address: g.address(r)}
}

// recordUser creates or updates the user. All sign-ins that one person may
// have under way succeed at once; one under the id of a service account never
// does.
func (s *Server) recordUser(ctx context.Context, who *idp.Identity, now time.Time) error {
	unknown := 0
	// Each round of a crowd lets one of it through.
	for range 2 * signin.MaxPending {
		user, err := s.store.User(ctx, who.UserID)
		if errors.Is(err, databroker.ErrNotFound) {
			// What cannot be created, and is not there, is a service account.
			if unknown++; unknown > 4 {
				return userIsAccount()
			}
			user, err = &databroker.User{ID: who.UserID, CreatedAt: now}, nil
		}
		if err != nil {
			return storeDown("load user", err)
		}
		user.Email, user.Name, user.SignedInAt = text(who.Claims["email"]), text(who.Claims["name"]), now
		err = s.store.PutUser(ctx, user)
		if err == nil {
			return nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return storeDown("write user", err)
		}
	}
	return unavailable("busy", errors.New("write user: changed each time"))
}

func userIsAccount() *failure {
	return &failure{
		status: http.StatusForbidden, code: "user-is-service-account",
		title:   "This account cannot sign in",
		message: "Your user id is the same as that of a service account, which is a machine's identity.",
		remedy:  "Ask the people who run this site to rename the service account.",
	}
}

func text(v any) string {
	s, _ := v.(string)
	return bounded(s, 320)
}
