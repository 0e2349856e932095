package authn

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// handOver gives a session to the route's host where it was asked for, by a link.
func (s *Server) handOver(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	if g.isDevicePage(req.Target) {
		return redirect(w, g.signedInPage(req.Target, s.now()))
	}
	target, err := g.hosts.target(req.Target)
	if err != nil {
		return badRequest("redirect-target", "This link does not lead to a page of this site.", errTarget)
	}
	host := req.Via
	if host == "" {
		host = target.Host
	}
	token, err := s.sessionToken(g, session, g.audience(host))
	if err != nil {
		return err
	}
	to, err := g.keys.HandoffURL(signin.Handoff{
		SessionToken: token, Flow: req.Flow, RedirectURI: req.Target, Host: req.Via, Hosts: req.Hosts, Round: req.Round,
	}, s.now())
	if err != nil {
		return err
	}
	return redirect(w, to)
}

// routeCallback ends a sign-in on the route's host. Only the browser that
// began it there gets the session.
func (s *Server) routeCallback(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Has(paramMismatch) {
		return g.mismatch(r)
	}
	link := g.link(r)
	// Both spellings of the path are one place; links are signed for the one.
	link.Path, link.RawPath = signin.CallbackPath, ""
	if err := g.keys.VerifyLink(link, s.now()); err != nil && !errors.Is(err, signin.ErrExpired) {
		return badRequest("hand-off-link", "This link was not made by this site, or it is damaged.", err)
	} else if err != nil {
		return badRequest("hand-off-expired", "This sign-in took too long. Go back to the page you wanted to start over.", err)
	}
	h, err := g.keys.OpenHandoff(link.Query().Get(signin.ParamSessionEncrypted), s.now())
	if err != nil {
		return badRequest("hand-off-link", "This link is damaged or too old. Go back to the page you wanted to start over.", err)
	}
	target, err := g.hosts.target(h.RedirectURI)
	host := h.Host
	if err == nil && host == "" {
		host = target.Host
	}
	if err != nil || !sameHost(host, r.Host) {
		return badRequest("redirect-target", "This link does not lead to a page of this site.", errTarget)
	}
	c, err := g.keys.OpenCredential(h.SessionToken, s.now())
	if err != nil || c.Kind != signin.KindSession {
		return badRequest("hand-off-link", "This link is damaged or too old. Go back to the page you wanted to start over.", err)
	}
	onward := journey{target, c.IDPID, h.Hosts}
	if !signin.MatchFlow(g.cfg.Cookie.Name, r.Header["Cookie"], h.Flow, s.now()) {
		if h.Host != "" || s.holds(g, r, c.ID) {
			// A host on the way is passed by; or else the page was loaded again,
			// and this browser has been through here.
			return s.goOn(g, w, r, onward)
		}
		// The address holds somebody's session: it must not stay where people copy
		// addresses from.
		s.log.InfoContext(r.Context(), "hand-off in another browser", "request-id", requestID(r), "host", bounded(r.Host, 255))
		return redirect(w, signin.CallbackPath+"?"+url.Values{paramMismatch: {target.RequestURI()}}.Encode())
	}

	// The request is genuine: from here on we may change things.
	for _, rival := range g.rivals(r) {
		http.SetCookie(w, rival)
	}
	http.SetCookie(w, g.sessionCookie(r.Host, h.SessionToken, c.ExpiresAt))
	if h.Host == "" {
		http.SetCookie(w, signin.RoundCookie(g.cfg.Cookie.Name, s.round(g, r, h.Round, c.IDPID), s.now()))
	}
	if end := signin.EndFlow(g.cfg.Cookie.Name, h.Flow); end != nil {
		http.SetCookie(w, end)
	}
	return s.goOn(g, w, r, onward)
}

// paramMismatch is the page that was wanted where a sign-in ends in a browser that
// did not begin it.
const paramMismatch = "pomerium_mismatch"

// mismatch says that a sign-in cannot end here. Anybody can bring this page up; it
// leads nowhere but to a page of its own host.
func (g *Generation) mismatch(r *http.Request) *failure {
	here := &url.URL{Scheme: g.scheme(r), Host: r.Host, Path: "/"}
	if to, err := signin.SafeRedirect(r.URL.Query().Get(paramMismatch), func(string) bool { return false }); err == nil {
		here = here.ResolveReference(to)
	}
	return &failure{
		status: http.StatusBadRequest, code: "flow-mismatch",
		title:   "This sign-in began in another browser",
		message: "A sign-in can only be finished in the browser window it was started in, and within ten minutes. Nobody was signed in here.",
		remedy:  "If you wanted to open " + here.Hostname() + ", start over from here.",
		actions: []pages.Action{{Label: "Start over", URL: here.String()}},
		cause:   errors.New("no cookie of this flow"),
	}
}

// Rounds are weighed: a sign-in that ends where the last one has just ended weighs
// heavyRound, so that the third is the last. Where the browser had a session of
// another provider, a page of this host may ask for that one and nothing was lost:
// such a round weighs less, but does not go on for ever either.
const (
	heavyRound = signin.MaxRound / maxRounds
	lightRound = 2
)

// round is the weight of the sign-ins of this browser that have ended at this host
// within a minute, the present one included.
func (s *Server) round(g *Generation, r *http.Request, before int, idpID string) int {
	for _, v := range signin.CookieValues(g.cfg.Cookie.Name, r.Header["Cookie"]) {
		if c, err := g.keys.OpenCredential(v, s.now()); err == nil && c.Kind == signin.KindSession && c.IDPID != idpID {
			return before + lightRound
		}
	}
	return before + heavyRound
}

// holds reports whether the browser already has this session's cookie.
func (s *Server) holds(g *Generation, r *http.Request, sessionID string) bool {
	for _, v := range signin.CookieValues(g.cfg.Cookie.Name, r.Header["Cookie"]) {
		if c, err := g.keys.OpenCredential(v, s.now()); err == nil && c.Kind == signin.KindSession && c.ID == sessionID {
			return true
		}
	}
	return false
}

// arrive sends the browser to the page it wanted. A strict cookie is withheld
// from a redirect that began at another site, so there a page of our own has
// to navigate.
func (s *Server) arrive(g *Generation, w http.ResponseWriter, r *http.Request, target *url.URL) error {
	if sameSite(g.cfg.Cookie) != http.SameSiteStrictMode {
		return redirect(w, target.String())
	}
	navigate(w, r, pages.Notice{Title: "You are signed in", Message: "Taking you to " + target.Hostname() + " …", RefreshTo: target.String()})
	return nil
}

// navigate shows a page that goes on by itself.
func navigate(w http.ResponseWriter, r *http.Request, n pages.Notice) {
	n.Actions = []pages.Action{{Label: "Continue", URL: n.RefreshTo}}
	show(noReferrer{w}, r, http.StatusOK, n)
}

// noReferrer keeps the address of a page that carries sealed values from the
// next one.
type noReferrer struct{ http.ResponseWriter }

func (w noReferrer) WriteHeader(status int) {
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.ResponseWriter.WriteHeader(status)
}
