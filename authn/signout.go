package authn

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	signOutPath   = "/.pomerium/sign_out"
	signedOutPath = "/.pomerium/signed_out"

	// paramSignOut names, by its hash, the session that a signed link ends.
	paramSignOut = "pomerium_sign_out"

	// maxForm bounds what is read of a request's body.
	maxForm = 64 << 10
)

// signOut ends the session on a route's host, then goes on to the authenticate
// host to end it there. Only a page of this host can do that; anybody else can
// merely bring up the question.
func (s *Server) signOut(g *Generation, w http.ResponseWriter, r *http.Request) error {
	to, err := g.afterSignOut(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPost {
		return s.askSignOut(g, w, r)
	}
	if !g.sameOrigin(r) {
		return crossSite(g.signOutAction(r))
	}
	who, err := s.principal(g, r)
	if err != nil {
		return err
	}

	// The request is genuine: from here on we may change things.
	ended := ""
	if who != nil && who.session != nil {
		if err := s.end(r.Context(), r, who.session); err != nil {
			return err
		}
		ended = signOutHash(who.session.ID)
	}
	g.dropSessionCookies(w)
	if g.cfg.AuthenticateURL == nil {
		return s.showSignedOut(w, r, to)
	}
	link := g.authenticateURL(signOutPath)
	q := url.Values{paramSignOut: {ended}}
	if to != "" {
		q.Set(signin.ParamRedirectURI, to)
	}
	link.RawQuery = q.Encode()
	g.keys.SignLink(link, s.now(), signin.LinkLife)
	return redirect(w, link.String())
}

// authenticateSignOut ends the session on the authenticate host: for a page of
// its own, or for a signed link that names this very session.
func (s *Server) authenticateSignOut(g *Generation, w http.ResponseWriter, r *http.Request) error {
	to, err := g.afterSignOut(r)
	if err != nil {
		return err
	}
	if r.Method == http.MethodPost && !g.sameOrigin(r) {
		return crossSite(g.signOutAction(r))
	}
	signed := g.keys.VerifyLink(g.link(r), s.now()) == nil
	session, err := s.authenticatedSession(g, r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPost && session != nil {
		// A signed link could have been carried here from another browser.
		named := signed && equal(r.URL.Query().Get(paramSignOut), signOutHash(session.ID))
		if !named {
			return s.askSignOut(g, w, r)
		}
	}
	if r.Method != http.MethodPost && !signed {
		return s.askSignOut(g, w, r)
	}

	// The request is genuine: from here on we may change things.
	if session != nil {
		if err := s.end(r.Context(), r, session); err != nil {
			return err
		}
	}
	http.SetCookie(w, signin.DeleteCookie(signin.AuthenticateCookieName(g.cfg.Cookie.Name)))
	if to == "" {
		return redirect(w, signedOutPath)
	}
	return s.showSignedOut(w, r, to)
}

// afterSignOut is where a sign-out leads, "" for nowhere. It never leaves our
// hosts.
func (g *Generation) afterSignOut(r *http.Request) (string, error) {
	raw := r.URL.Query().Get(signin.ParamRedirectURI)
	if raw == "" && r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			return "", badRequest("form", "This form cannot be read.", errors.New("parse form"))
		}
		raw = r.PostForm.Get(signin.ParamRedirectURI)
	}
	if raw == "" {
		return "", nil
	}
	u, err := signin.SafeRedirect(raw, func(host string) bool { return g.hosts.isRoute(host) || g.hosts.isAuthenticate(host) })
	if err != nil || u.Host == "" || !g.hosts.schemeOK(u.Scheme) {
		return "", badRequest("redirect-target", "This sign-out would lead to a page outside this site.", errTarget)
	}
	return u.String(), nil
}

func signOutHash(sessionID string) string {
	sum := sha256.Sum256([]byte("sign-out " + sessionID))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// end removes a session, so that every route refuses it.
func (s *Server) end(ctx context.Context, r *http.Request, session *databroker.Session) error {
	err := s.store.DeleteSession(ctx, session.ID)
	if err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return storeDown("delete session", err)
	}
	s.log.InfoContext(ctx, "signed out", "request-id", requestID(r), "user", bounded(session.UserID, 255))
	return nil
}

func (g *Generation) signOutAction(r *http.Request) pages.Action {
	a := pages.Action{Label: "Sign out", URL: signOutPath, Post: true}
	if to, err := g.afterSignOut(r); err == nil && to != "" {
		a.Fields = []pages.Detail{{Label: signin.ParamRedirectURI, Value: to}}
	}
	return a
}

func (s *Server) askSignOut(g *Generation, w http.ResponseWriter, r *http.Request) error {
	page := pages.Notice{
		Title: "Sign out?", Message: "You will be signed out of every application of this site in this browser.",
		Actions:   []pages.Action{g.signOutAction(r), {Label: "Stay signed in", URL: "/.pomerium/"}},
		RequestID: requestID(r),
	}.HTML()
	writePage(w, r, http.StatusOK, page, g.formTargets()...)
	return nil
}

// formTargets is where our forms may lead besides their own host.
func (g *Generation) formTargets() []string {
	if g.cfg.AuthenticateURL == nil {
		return nil
	}
	return []string{g.cfg.AuthenticateURL.String()}
}

func (s *Server) signedOut(_ *Generation, w http.ResponseWriter, r *http.Request) error {
	return s.showSignedOut(w, r, "")
}

// showSignedOut is a page even when it leads on: browsers hold every redirect
// that follows a form against the form's policy, and the next page may well
// redirect to the identity provider.
func (s *Server) showSignedOut(w http.ResponseWriter, r *http.Request, to string) error {
	n := pages.Notice{
		Title: "You are signed out", Message: "Your session has ended here and in every application of this site.",
		Remedy: "On a shared computer, sign out of your identity provider too, or close the browser.", RefreshTo: to,
	}
	if to != "" {
		n.Actions = []pages.Action{{Label: "Continue", URL: to}}
	}
	writePage(w, r, http.StatusOK, n.HTML())
	return nil
}

func crossSite(action pages.Action) *failure {
	return &failure{
		status: http.StatusForbidden, code: "cross-site",
		title: "This was not asked for from here", message: "Another site, or a program, sent this request. Nothing was changed.",
		remedy: "If it was you who wanted this, confirm it here.", actions: []pages.Action{action},
	}
}
