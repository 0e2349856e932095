package authn

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	routesPath = "/.pomerium/routes"

	// maxApplications is how many of a group the portal's page lists; the JSON has
	// them all.
	maxApplications = 500
)

// routes is the portal: the routes that whoever asks may use.
func (s *Server) routes(g *Generation, w http.ResponseWriter, r *http.Request) error {
	asking, open, err := s.openRoutes(g, r)
	if err != nil {
		return err
	}
	if len(asking) == 0 {
		return g.notSignedIn(r)
	}
	page := pages.Portal{
		Who: asking[0].who(), Groups: groups(open), RequestID: requestID(r),
		Actions: []pages.Action{{Label: "Who am I here?", URL: "/.pomerium/"}},
	}
	show(w, r, http.StatusOK, page)
	return nil
}

// portalRoute is a route as programs see it.
type portalRoute struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	Type           string `json:"type"`
	From           string `json:"from"`
	Description    string `json:"description"`
	ConnectCommand string `json:"connect_command"`
	LogoURL        string `json:"logo_url"`
}

// routesJSON is the portal for programs.
func (s *Server) routesJSON(g *Generation, w http.ResponseWriter, r *http.Request) error {
	asking, open, err := s.openRoutes(g, r)
	if err != nil {
		if f := (*failure)(nil); errors.As(err, &f) {
			f.json = true
		}
		return err
	}
	if len(asking) == 0 {
		writeUnauthenticated(w, r)
		return nil
	}
	list := []portalRoute{}
	for _, route := range open {
		list = append(list, portalRoute{
			ID: route.ID, Name: cmp.Or(route.Name, route.From), Type: "http", From: route.From, Description: route.Description, LogoURL: route.LogoURL,
		})
	}
	writeJSON(w, r, http.StatusOK, map[string]any{"routes": list})
	return nil
}

// openRoutes returns who asks, nobody or several with one browser, and the routes
// that are open to any of them, in the order of the configuration.
func (s *Server) openRoutes(g *Generation, r *http.Request) ([]*principal, []*config.Route, error) {
	asking, err := s.asking(g, r)
	if err != nil || len(asking) == 0 {
		return nil, nil, err
	}
	if s.accessible == nil {
		return nil, nil, unavailable("portal", errors.New("nobody can tell which routes are open"))
	}
	open := map[string]bool{}
	for _, p := range asking {
		kind := signin.KindSession
		if p.account != nil {
			kind = signin.KindServiceAccount
		}
		ids, err := s.accessible(r.Context(), kind, p.id(), g.address(r))
		if err != nil {
			return nil, nil, unavailable("portal", fmt.Errorf("list open routes: %w", err))
		}
		for id, ok := range ids {
			open[id] = open[id] || ok
		}
	}
	var routes []*config.Route
	for _, route := range g.cfg.Routes {
		if open[route.ID] {
			routes = append(routes, route)
		}
	}
	return asking, routes, nil
}

// asking is whom a request's credentials stand for. At the authenticate host that
// is everybody who has signed in there with this browser.
func (s *Server) asking(g *Generation, r *http.Request) ([]*principal, error) {
	if !g.hosts.isAuthenticate(r.Host) {
		who, err := s.principal(g, r)
		if who == nil || err != nil {
			return nil, err
		}
		return []*principal{who}, nil
	}
	here, err := s.authenticatedSessions(g, r)
	if err != nil {
		return nil, err
	}
	var asking []*principal
	for _, session := range here {
		asking = append(asking, &principal{session: session})
	}
	return asking, nil
}

// who is what people know the asker by.
func (p *principal) who() string {
	if p.account != nil {
		return p.account.UserID
	}
	return personName(p.session)
}

func (g *Generation) notSignedIn(r *http.Request) *failure {
	f := &failure{
		status: http.StatusUnauthorized, code: "user-unauthenticated",
		title: "You are not signed in", message: "This page lists the applications that you may use. It can do that once you have signed in.",
		remedy: "Open one of the applications to sign in, then come back.",
	}
	if !g.hosts.isAuthenticate(r.Host) {
		f.remedy, f.actions = "Sign in, then come back to this page.", []pages.Action{{Label: "Sign in", URL: "/"}}
	}
	return f
}

// groups sorts routes into those that a link opens and those that stand for many
// addresses, each by name.
func groups(routes []*config.Route) []pages.Group {
	links := pages.Group{}
	patterns := pages.Group{Title: "Without a link", Note: "Each of these stands for many addresses. Open the one that you were given."}
	for _, route := range routes {
		a := application(route)
		if a.URL != "" {
			links.Applications = append(links.Applications, a)
		} else {
			patterns.Applications = append(patterns.Applications, a)
		}
	}
	var out []pages.Group
	for _, group := range []pages.Group{links, patterns} {
		all := group.Applications
		if len(all) == 0 {
			continue
		}
		slices.SortStableFunc(all, func(a, b pages.Application) int {
			return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.Address, b.Address))
		})
		group.Applications = all[:min(len(all), maxApplications)]
		group.More = len(all) - len(group.Applications)
		out = append(out, group)
	}
	return out
}

func application(route *config.Route) pages.Application {
	path := cmp.Or(route.Path, route.Prefix)
	a := pages.Application{Address: strings.TrimPrefix(strings.TrimSuffix(route.From, "/")+path, "https://"), Description: route.Description}
	a.Name = a.Address
	if route.Name != route.From {
		a.Name = cmp.Or(route.Name, a.Address)
	}
	if route.Regex != "" {
		a.Address += " " + route.Regex
		return a
	}
	u, err := url.Parse(route.From)
	if err == nil && !strings.Contains(u.Host, "*") && (u.Scheme == "https" || u.Scheme == "http") {
		u.Path = cmp.Or(path, "/")
		a.URL = u.String()
	}
	return a
}
