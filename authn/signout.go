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
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	signOutPath   = "/.pomerium/sign_out"
	signedOutPath = "/.pomerium/signed_out"

	// paramSignOut names, by its hash, the session that a signed link ends.
	// paramEverywhere, in a form of the authenticate host, ends all of the person's,
	// and paramParting is a sealed parting.
	paramSignOut    = "pomerium_sign_out"
	paramEverywhere = "everywhere"
	paramParting    = "pomerium_parting"

	// maxForm bounds what is read of a request's body.
	maxForm = 64 << 10
	// maxHint is the longest ID token that goes into a URL.
	maxHint = 4 << 10
	// logoutWait bounds how long a sign-out waits for what the provider says of
	// itself, and partingLife how long the person may stay there.
	logoutWait  = 3 * time.Second
	partingLife = time.Hour
)

// parting is what a sign-out takes along: from a route's host the ended session's ID
// token, for the provider, and through the provider where it leads in the end.
type parting struct {
	IDPID     string `json:"p,omitempty"`
	IDToken   string `json:"i,omitempty"`
	To        string `json:"t,omitempty"`
	ExpiresAt int64  `json:"e"`
}

// partingOf leaves out an ID token that is too long for a URL.
func partingOf(session *databroker.Session) parting {
	p := parting{IDPID: session.IDPID, IDToken: session.Tokens.IDToken}
	if len(p.IDToken) > maxHint {
		p.IDToken = ""
	}
	return p
}

func (s *Server) sealParting(g *Generation, at string, p parting) (string, error) {
	p.ExpiresAt = s.now().Add(partingLife).Unix()
	plain, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	return g.keys.Seal(signin.PurposeSignOut, plain, []byte(at)), nil
}

// openParting returns the zero parting for anything but one sealed for at.
func (s *Server) openParting(g *Generation, at, sealed string) parting {
	plain, err := g.keys.Open(signin.PurposeSignOut, sealed, []byte(at))
	var p parting
	if err != nil || json.Unmarshal(plain, &p) != nil || s.now().After(time.Unix(p.ExpiresAt, 0)) {
		return parting{}
	}
	return p
}

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
	q := url.Values{}
	if who != nil && who.session != nil {
		q.Set(paramSignOut, signOutHash(who.session.ID))
		if err := s.end(r.Context(), r, who.session); err != nil {
			return err
		}
		sealed, err := s.sealParting(g, signOutPath, partingOf(who.session))
		if err != nil {
			return err
		}
		q.Set(paramParting, sealed)
	}
	g.dropSessionCookies(w, r)
	if g.cfg.AuthenticateURL == nil {
		return s.showSignedOut(w, r, g.orDefault(to), false)
	}
	link := g.authenticateURL(signOutPath)
	if to != "" {
		q.Set(signin.ParamRedirectURI, to)
	}
	link.RawQuery = q.Encode()
	g.keys.SignLink(link, s.now(), signin.LinkLife)
	return redirect(w, link.String())
}

// authenticateSignOut ends the sessions of the authenticate host: for a page of
// its own, or for a signed link that names one of this very browser's. Then it goes
// on to the provider, if that has a page for it.
func (s *Server) authenticateSignOut(g *Generation, w http.ResponseWriter, r *http.Request) error {
	to, err := g.afterSignOut(r)
	if err != nil {
		return err
	}
	sessions, err := s.authenticatedSessions(g, r)
	if err != nil {
		return err
	}
	q, named := r.URL.Query(), false
	switch {
	case r.Method == http.MethodPost && !g.sameOrigin(r):
		return crossSite(g.signOutAction(r))
	case r.Method != http.MethodPost:
		signed := g.keys.VerifyLink(g.link(r), s.now()) == nil
		// A signed link could have been carried here from another browser.
		named = signed && g.lists(r, q.Get(paramSignOut))
		if !signed || len(sessions) > 0 && !named {
			return s.askSignOut(g, w, r)
		}
	}

	// The request is genuine: from here on we may change things.
	var last parting
	if named {
		last = s.openParting(g, signOutPath, q.Get(paramParting))
	}
	for _, session := range sessions {
		if err := s.endFor(r, session, everywhere(r)); err != nil {
			return err
		}
		if last.IDPID == "" {
			last = partingOf(session)
		}
	}
	http.SetCookie(w, signin.DeleteCookie(signin.AuthenticateCookieName(g.cfg.Cookie.Name)))
	to = g.orDefault(to)
	if s.logoutURL(r.Context(), g, last, to) != "" {
		return s.leadToProvider(g, w, r, last, to)
	}
	if to == "" {
		return redirect(w, signedOutPath)
	}
	return s.showSignedOut(w, r, to, false)
}

// leadToProvider is a page, too, as showSignedOut is. The ID token must not be in it,
// so it leads to signedOut, which redirects.
func (s *Server) leadToProvider(g *Generation, w http.ResponseWriter, r *http.Request, last parting, to string) error {
	last.To = to
	sealed, err := s.sealParting(g, paramParting, last)
	if err != nil {
		return err
	}
	navigate(w, r, pages.Notice{
		Title:     "You are signed out",
		Message:   "Your session has ended here and in every application of this site. Signing you out at " + g.providers.Get(last.IDPID).Host() + ", too …",
		RefreshTo: signedOutPath + "?" + url.Values{paramParting: {sealed}}.Encode(),
	})
	return nil
}

// lists reports whether the authenticate cookie names the session with this hash,
// over or not.
func (g *Generation) lists(r *http.Request, hash string) bool {
	for _, list := range g.authenticateCookies(r) {
		if slices.ContainsFunc(list, func(a authenticated) bool { return equal(hash, signOutHash(a.SessionID)) }) {
			return true
		}
	}
	return false
}

// logoutURL is where the provider signs people out, "" if it has no such page or
// does not answer.
func (s *Server) logoutURL(ctx context.Context, g *Generation, last parting, to string) string {
	p := g.providers.Get(last.IDPID)
	if p == nil {
		return ""
	}
	if len(to) > maxStateTarget {
		to, _, _ = strings.Cut(to, "?")
	}
	state, err := s.sealParting(g, signedOutPath, parting{To: to})
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, logoutWait)
	defer cancel()
	return p.LogoutURL(ctx, last.IDToken, g.authenticateURL(signedOutPath).String(), state)
}

// afterSignOut is where a request for a sign-out wants it to lead, "" for nowhere.
func (g *Generation) afterSignOut(r *http.Request) (string, error) {
	raw := r.URL.Query().Get(signin.ParamRedirectURI)
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			return "", badRequest("form", "This form cannot be read.", errors.New("parse form"))
		}
		if raw == "" {
			raw = r.PostForm.Get(signin.ParamRedirectURI)
		}
	}
	if raw == "" {
		return "", nil
	}
	to, err := g.signOutTarget(raw)
	if err != nil {
		return "", badRequest("redirect-target", "This sign-out would lead to a page outside this site.", err)
	}
	return to, nil
}

// signOutTarget refuses a target that is neither on a host of ours nor on one that
// the operator has listed.
func (g *Generation) signOutTarget(raw string) (string, error) {
	ours := false
	u, err := signin.SafeRedirect(raw, func(host string) bool {
		ours = g.hosts.isRoute(host) || g.hosts.isAuthenticate(host)
		return true
	})
	if err != nil || u.Host == "" {
		return "", errTarget
	}
	name := u.Hostname()
	listed := slices.ContainsFunc(g.cfg.SignOutRedirectDomains, func(d string) bool { return strings.EqualFold(d, name) })
	if ours && g.hosts.schemeOK(u.Scheme) || listed && (u.Scheme == "https" || loopback(name)) {
		return u.String(), nil
	}
	return "", errTarget
}

// orDefault is to, or where a sign-out leads that names nothing.
func (g *Generation) orDefault(to string) string {
	if to == "" && g.cfg.SignOutRedirectURL != nil {
		return g.cfg.SignOutRedirectURL.String()
	}
	return to
}

// everywhere reports whether a form asks to end all of the person's sessions.
func everywhere(r *http.Request) bool { return r.PostForm.Get(paramEverywhere) == "true" }

func signOutHash(sessionID string) string {
	sum := sha256.Sum256([]byte("sign-out " + sessionID))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// endFor ends a session, or all that its person has.
func (s *Server) endFor(r *http.Request, session *databroker.Session, all bool) error {
	if !all {
		return s.end(r.Context(), r, session)
	}
	ended, err := s.store.RevokeUser(r.Context(), session.UserID, "")
	if err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return storeDown("revoke user", err)
	}
	s.log.InfoContext(r.Context(), "signed out everywhere", "request-id", requestID(r), "user", bounded(session.UserID, 255), "sessions", ended)
	return nil
}

// end removes a session, so that every route refuses it.
func (s *Server) end(ctx context.Context, r *http.Request, session *databroker.Session) error {
	err := s.store.RevokeSession(ctx, session.ID)
	if err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return storeDown("revoke session", err)
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
	here := g.signOutAction(r)
	// Everywhere is for the authenticate host: here any script of an application could
	// ask for it.
	all := pages.Action{Label: "Sign out everywhere", URL: signOutPath}
	if g.hosts.isAuthenticate(r.Host) {
		all.Post, all.Fields = true, append(slices.Clone(here.Fields), pages.Detail{Label: paramEverywhere, Value: "true"})
	} else if g.cfg.AuthenticateURL != nil {
		there := g.authenticateURL(signOutPath)
		if to, err := g.afterSignOut(r); err == nil && to != "" {
			there.RawQuery = url.Values{signin.ParamRedirectURI: {to}}.Encode()
		}
		all.URL = there.String()
	}
	page := pages.Notice{
		Title: "Sign out?", Message: "You will be signed out of every application of this site in this browser.",
		Remedy:    "Signing out everywhere ends your sessions in all other browsers and programs, too.",
		Actions:   []pages.Action{here, all, {Label: "Stay signed in", URL: "/.pomerium/"}},
		RequestID: requestID(r),
	}
	show(w, r, http.StatusOK, page, g.formTargets()...)
	return nil
}

// formTargets is where our forms may lead besides their own host.
func (g *Generation) formTargets() []string {
	if g.cfg.AuthenticateURL == nil {
		return nil
	}
	return []string{g.cfg.AuthenticateURL.String()}
}

// signedOut is where a sign-out ends. On its way it goes from here to the provider,
// which sends people back with a state that says where they wanted to go.
func (s *Server) signedOut(g *Generation, w http.ResponseWriter, r *http.Request) error {
	q, to := r.URL.Query(), ""
	if last := s.openParting(g, paramParting, q.Get(paramParting)); last.IDPID != "" {
		if there := s.logoutURL(r.Context(), g, last, last.To); there != "" {
			return redirect(w, there)
		}
	}
	back := s.openParting(g, signedOutPath, q.Get("state"))
	if back.To != "" {
		// The configuration may have changed meanwhile.
		to, _ = g.signOutTarget(back.To)
	}
	return s.showSignedOut(w, r, to, back.ExpiresAt != 0)
}

// showSignedOut is a page even when it leads on: browsers hold every redirect
// that follows a form against the form's policy, and the next page may well
// redirect to the identity provider.
func (s *Server) showSignedOut(w http.ResponseWriter, r *http.Request, to string, atProvider bool) error {
	n := pages.Notice{
		Title: "You are signed out", Message: "Your session has ended here and in every application of this site.",
		Remedy: "On a shared computer, sign out of your identity provider too, or close the browser.", RefreshTo: to,
	}
	if atProvider {
		n.Message, n.Remedy = "Your session has ended here, in every application of this site, and at the identity provider.", ""
	}
	if to != "" {
		n.Actions = []pages.Action{{Label: "Continue", URL: to}}
	}
	show(w, r, http.StatusOK, n)
	return nil
}

func crossSite(action pages.Action) *failure {
	return &failure{
		status: http.StatusForbidden, code: "cross-site",
		title: "This was not asked for from here", message: "Another site, or a program, sent this request. Nothing was changed.",
		remedy: "If it was you who wanted this, confirm it here.", actions: []pages.Action{action},
	}
}
