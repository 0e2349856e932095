package config

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// authenticate reads where people sign in, or derives it from the first route.
func (l *loader) authenticate(s settings) {
	v, ok := s["authenticate_service_url"]
	if !ok {
		host := signInHost(l.cfg.Routes)
		if host == "" {
			host = "authenticate.localhost"
			if len(l.cfg.Routes) > 0 && !l.failed() {
				l.warn(Position{File: l.path}, "write authenticate_service_url: https://authenticate.example.com", "people sign in at https://%s: no route has a domain to put it in", host)
			}
		}
		l.cfg.AuthenticateURL = &url.URL{Scheme: "https", Host: host}
		return
	}
	u, ok := l.url(v)
	if !ok {
		return
	}
	host, err := hostname(u.Hostname(), false)
	switch {
	case err != nil:
		l.problem(v.at(), "write https://host", "authenticate_service_url: %v", err)
		return
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		l.problem(v.at(), "write https://host", "authenticate_service_url has a path")
		return
	case host == "authenticate.pomerium.app":
		l.problem(v.at(), "choose a host of your own domain", "authenticate_service_url: the hosted service of Pomerium is not supported")
		return
	case u.Scheme == "http" && !loopback(host):
		l.problem(v.at(), "write https://; browsers keep sign-in cookies to https", "authenticate_service_url is plain http")
		return
	}
	port := u.Port()
	if defaultPort(u.Scheme, port) {
		port = ""
	}
	l.cfg.AuthenticateURL = &url.URL{Scheme: u.Scheme, Host: joinHost(host, port)}
}

// signInHost is "authenticate." in the domain of the first route that has one,
// and "" if none has.
func signInHost(routes []*Route) string {
	for _, r := range routes {
		if domain := signInDomain(r.Host); domain != "" {
			return joinHost("authenticate."+domain, r.Port)
		}
	}
	return ""
}

// signInDomain is the parent of a route's host, or the host itself where the
// parent is one like com, in which strangers can register a domain and would
// be sent our sign-in links.
func signInDomain(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	star := strings.LastIndex(host, "*")
	_, parent, _ := strings.Cut(host[max(star, 0):], ".")
	switch {
	case ownDomain(parent):
		return parent
	case star < 0 && ownDomain(host):
		return host
	}
	return ""
}

func ownDomain(domain string) bool {
	suffix, _ := publicsuffix.PublicSuffix(domain)
	return domain == "localhost" || suffix != domain
}

// acrossRoutes finds the problems that no route has on its own.
func (l *loader) acrossRoutes(s settings) {
	groups := map[string]*group{}
	wildcards := map[string]*Route{}
	before := len(l.problems)
	for _, r := range l.cfg.Routes {
		if r.Host == "" {
			continue
		}
		key := net.JoinHostPort(r.Host, r.Port)
		g := groups[key]
		if g == nil {
			g = newGroup()
			groups[key] = g
		}
		if earlier, same := g.covering(r); same {
			l.problem(r.Position, "remove one of them, or give them different prefixes", "duplicate route: %s has the same from and path", earlier.Position)
		} else if earlier == nil {
			earlier = coveringWildcard(wildcards, r)
			l.unreachable(r, earlier)
		} else {
			l.unreachable(r, earlier)
		}
		g.add(r)
		if matchesAll(r) && strings.Contains(r.Host, "*") && wildcards[key] == nil {
			wildcards[key] = r
		}
	}
	if !l.failedSince(before) {
		l.looserRoutes(groups)
	}
	l.reservedHost()
	l.cookieReach(s)
	l.dependencies()
}

func (l *loader) unreachable(r, earlier *Route) {
	if earlier == nil {
		return
	}
	looser := ""
	if open := earlier.Policy.Openness(); open > r.Policy.Openness() {
		looser = ", and it lets in " + lets(open)
	}
	l.problem(r.Position, "put the narrower route first", "unreachable route: %s takes all of its requests%s", earlier.Position, looser)
}

// reservedHost refuses routes on the host where people sign in, which never
// see a request.
func (l *loader) reservedHost() {
	if l.cfg.AuthenticateURL == nil {
		return
	}
	host, port := l.cfg.AuthenticateURL.Hostname(), l.cfg.AuthenticateURL.Port()
	for _, r := range l.cfg.Routes {
		if r.Host == host && (r.Port == port || r.Port == "") {
			l.problem(r.Position, "give one of them another host", "unreachable route: %s is where people sign in (authenticate_service_url)", host)
		}
	}
}

// cookieReach finds routes that the session cookie will never come to.
func (l *loader) cookieReach(s settings) {
	cookie := l.cfg.Cookie
	if v, ok := s["cookie_domain"]; ok && cookie.Domain != "" {
		for _, r := range l.cfg.Routes {
			if r.Host != "" && r.Host != cookie.Domain && !strings.HasSuffix(r.Host, "."+cookie.Domain) {
				l.warn(v.at(), "sign-ins there go round in circles: give it a host below the domain or remove cookie_domain", "cookie_domain %s does not cover %s", cookie.Domain, r.Host)
				break
			}
		}
	}
	if v, ok := s["cookie_same_site"]; ok && cookie.SameSite == "none" {
		if i := slices.IndexFunc(l.cfg.Routes, func(r *Route) bool { return strings.HasPrefix(strings.ToLower(r.From), "http://") }); i >= 0 {
			l.problem(v.at(), "browsers keep such cookies to https: write from: https://", "cookie_same_site none with the http route of line %d", l.cfg.Routes[i].Position.Line)
		}
	}
}

// mostRegexes bounds how many earlier expressions of a host a path is tried
// against; finding shadowed routes is a courtesy and may not cost a load.
const mostRegexes = 64

// group is the routes of one host and port that came so far.
type group struct {
	all      *Route
	prefixes map[string]*Route
	paths    map[string]*Route
	regexes  map[string]*Route
	compiled []compiledRoute
	// lengths are those of the prefixes, ascending, so that a path is looked up
	// once for each length and not once for each route.
	lengths []int
}

type compiledRoute struct {
	route *Route
	match *regexp.Regexp
}

func newGroup() *group {
	return &group{prefixes: map[string]*Route{}, paths: map[string]*Route{}, regexes: map[string]*Route{}}
}

// matchesAll reports whether a route takes every path of its host.
func matchesAll(r *Route) bool {
	switch r.Regex {
	case ".*", ".+", "/.*", "^.*$", "^.+$", "^/.*$", "^.*", "^/.*", ".*$", "/.*$":
		return true
	}
	return r.Prefix == "" && r.Path == "" && r.Regex == ""
}

func (g *group) add(r *Route) {
	first := func(m map[string]*Route, key string) {
		if m[key] == nil {
			m[key] = r
		}
	}
	switch {
	case matchesAll(r):
		if g.all == nil {
			g.all = r
		}
	case r.Prefix != "":
		first(g.prefixes, r.Prefix)
		if i, found := slices.BinarySearch(g.lengths, len(r.Prefix)); !found {
			g.lengths = slices.Insert(g.lengths, i, len(r.Prefix))
		}
	case r.Path != "":
		first(g.paths, r.Path)
	default:
		first(g.regexes, r.Regex)
		if len(g.compiled) < mostRegexes {
			if re, err := regexp.Compile("^(?:" + r.Regex + ")$"); err == nil {
				g.compiled = append(g.compiled, compiledRoute{r, re})
			}
		}
	}
}

// covering is an earlier route that takes every request r could get, nil if
// there is none; same is whether both have the very same match.
func (g *group) covering(r *Route) (earlier *Route, same bool) {
	switch {
	case r.Prefix != "" && g.prefixes[r.Prefix] != nil:
		return g.prefixes[r.Prefix], true
	case r.Path != "" && g.paths[r.Path] != nil:
		return g.paths[r.Path], true
	case r.Regex != "" && g.regexes[r.Regex] != nil:
		return g.regexes[r.Regex], true
	case g.all != nil:
		return g.all, g.all.Prefix+g.all.Path == r.Prefix+r.Path && g.all.Regex == r.Regex
	}
	begin := r.Prefix + r.Path
	if r.Regex != "" {
		begin = literalPrefix(r.Regex)
	}
	for _, n := range g.lengths {
		if n > len(begin) {
			break
		}
		if p := g.prefixes[begin[:n]]; p != nil {
			return p, false
		}
	}
	if r.Path != "" {
		for _, c := range g.compiled {
			if c.match.MatchString(r.Path) {
				return c.route, false
			}
		}
	}
	return nil, false
}

func literalPrefix(expr string) string {
	re, err := regexp.Compile(expr)
	if err != nil {
		return ""
	}
	literal, _ := re.LiteralPrefix()
	return literal
}

// coveringWildcard is an earlier route on a wider wildcard that takes every
// request of the wildcard route r. Exact hosts always win over wildcards, so
// they are never covered. Wildcards of the form *.domain and * are enough to
// look for.
func coveringWildcard(wildcards map[string]*Route, r *Route) *Route {
	if len(wildcards) == 0 || !strings.Contains(r.Host, "*") {
		return nil
	}
	at := func(host string) *Route {
		if w := wildcards[net.JoinHostPort(host, r.Port)]; w != nil {
			return w
		}
		return wildcards[net.JoinHostPort(host, "")]
	}
	for _, host := range widerWildcards(r.Host) {
		if w := at(host); w != nil {
			return w
		}
	}
	return nil
}
