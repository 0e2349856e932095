package authn

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// startPath is where a browser begins a sign-in at a host that another host's route
// depends on. From host to host it goes
//
//	host before        /.pomerium/callback/ leads to a link signed for the next host
//	next host          /.pomerium/start keeps a flow cookie of its own
//	authenticate host  sign_in hands over the session, if the browser has it
//	next host          /.pomerium/callback/ compares that cookie, sets the session's
//
// so that, as anywhere else, nobody gets a session from a link alone. A host at
// which it does not succeed is passed by; each link names one host less, so that the
// journey ends, and where it ends is in every link.
const startPath = "/.pomerium/start"

// journey is what is left of a sign-in at several hosts.
type journey struct {
	target *url.URL
	idpID  string
	hosts  []string
}

// journey reads the link of a start.
func (g *Generation) journey(q url.Values) (journey, error) {
	target, err := g.hosts.target(q.Get(signin.ParamRedirectURI))
	if err != nil {
		return journey{}, err
	}
	hosts, err := signin.AdditionalHosts(q)
	return journey{target, q.Get(signin.ParamIDPID), hosts}, err
}

// start begins the sign-in at this host, unless the browser has a session here.
func (s *Server) start(g *Generation, w http.ResponseWriter, r *http.Request) error {
	link := g.link(r)
	verified := g.keys.VerifyLink(link, s.now())
	if verified != nil && !errors.Is(verified, signin.ErrExpired) {
		return badRequest("start-link", "This link was not made by this site, or it is damaged.", verified)
	}
	j, err := g.journey(link.Query())
	if err != nil {
		return badRequest("redirect-target", "This link does not lead to a page of this site.", err)
	}
	if sameHost(j.target.Host, r.Host) {
		return s.arrive(g, w, r, j.target)
	}
	if verified != nil || g.cfg.AuthenticateURL == nil {
		j.hosts = nil
		return s.goOn(g, w, r, j)
	}
	who, err := s.principal(g, r)
	if err != nil {
		return err
	}
	if who != nil && who.session != nil {
		return s.goOn(g, w, r, j)
	}
	flow, err := signin.NewFlow(s.rand, s.now())
	if err != nil {
		return fmt.Errorf("start sign-in: %w", err)
	}
	for _, c := range signin.StaleFlows(g.cfg.Cookie.Name, r.Header["Cookie"], s.now(), signin.MaxPending-1) {
		http.SetCookie(w, c)
	}
	http.SetCookie(w, flow.Cookie(g.cfg.Cookie.Name))
	return redirect(w, g.signInLink(signInRequest{
		Target: j.target.String(), Flow: flow.Hash(), IDPID: j.idpID, Hosts: j.hosts, Via: strings.ToLower(r.Host),
	}, s.now(), signin.LinkLife))
}

// goOn leads to the next host, or to where the journey ends. Browsers follow no
// more than 16 to 20 redirects, so every second host begins with a page. A strict
// cookie comes with a page of its own host only, so the last page must be that.
func (s *Server) goOn(g *Generation, w http.ResponseWriter, r *http.Request, j journey) error {
	for len(j.hosts) > 0 && (!g.hosts.isRoute(j.hosts[0]) || sameHost(j.hosts[0], j.target.Host)) {
		j.hosts = j.hosts[1:]
	}
	next := j.target.Host
	if len(j.hosts) > 0 {
		next, j.hosts = j.hosts[0], j.hosts[1:]
	} else if sameSite(g.cfg.Cookie) != http.SameSiteStrictMode || sameHost(r.Host, next) {
		return s.arrive(g, w, r, j.target)
	}
	link := &url.URL{Scheme: j.target.Scheme, Host: next, Path: startPath}
	q := url.Values{signin.ParamRedirectURI: {j.target.String()}, signin.ParamIDPID: {j.idpID}}
	if len(j.hosts) > 0 {
		q.Set(signin.ParamAdditionalHosts, strings.Join(j.hosts, ","))
	}
	link.RawQuery = q.Encode()
	g.keys.SignLink(link, s.now(), signin.LinkLife)
	if len(j.hosts)%2 == 0 {
		return redirect(w, link.String())
	}
	navigate(w, r, pages.Notice{Title: "You are signed in", Message: "Signing you in at " + link.Hostname() + ", too …", RefreshTo: link.String()})
	return nil
}

// passBy goes on without a session at req.Via.
func (s *Server) passBy(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest) error {
	target, err := g.hosts.target(req.Target)
	if err != nil {
		return badRequest("redirect-target", "This link does not lead to a page of this site.", err)
	}
	return s.goOn(g, w, r, journey{target, req.IDPID, req.Hosts})
}
