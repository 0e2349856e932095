package config

import (
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/countersign/countersign/policy"
)

// mostDependsOn is how many further hosts one sign-in leads through.
const mostDependsOn = 5

// ages are how old a session may grow and how long it may go unused, 0 for any.
type ages struct{ lifetime, idle time.Duration }

// dependent is a depends_on that waits for all routes to be known.
type dependent struct {
	route *Route
	hosts []item
}

// sessions reads how long sessions last and where a sign-out leads.
func (l *loader) sessions(s settings) {
	l.ages = l.sessionAges(s, ages{})
	if v, ok := s["signout_redirect_domain_whitelist"]; ok {
		l.cfg.SignOutRedirectDomains = l.redirectDomains(v)
	}
	v, ok := s["signout_redirect_url"]
	if !ok {
		return
	}
	u, ok := l.url(v)
	if !ok {
		return
	}
	host, err := hostname(u.Hostname(), false)
	switch {
	case err != nil:
		l.problem(v.at(), "write https://host/path", "signout_redirect_url: %v", err)
		return
	case u.Scheme == "http" && !loopback(host):
		l.problem(v.at(), "write https://", "signout_redirect_url is plain http: anyone on the way to it can answer in its place")
		return
	}
	l.cfg.SignOutRedirectURL = u
	if !slices.Contains(l.cfg.SignOutRedirectDomains, host) {
		l.cfg.SignOutRedirectDomains = append(l.cfg.SignOutRedirectDomains, host)
	}
}

// sessionAges reads session_lifetime and session_idle_timeout over those that are
// inherited.
func (l *loader) sessionAges(s settings, inherited ages) ages {
	a := inherited
	for _, k := range []struct {
		key   string
		into  *time.Duration
		least time.Duration
		hint  string
	}{
		{"session_lifetime", &a.lifetime, time.Second, "a session needs a lifetime, such as 8h; 0 is as long as cookie_expire"},
		{"session_idle_timeout", &a.idle, time.Minute, "write 1m or more, or 0 for none: the use of a session is recorded once a minute"},
	} {
		v, ok := s[k.key]
		if !ok {
			continue
		}
		d, ok := l.duration(v)
		switch {
		case !ok:
			continue
		case d > 0 && d < k.least:
			l.problem(v.at(), k.hint, "%s is less than %s", k.key, shortDuration(k.least))
		case d > l.cfg.Cookie.Expire:
			l.warn(v.at(), "make it shorter than cookie_expire, or that longer", "%s has no effect: cookie_expire ends each session after %s", k.key, shortDuration(l.cfg.Cookie.Expire))
		}
		*k.into = d
	}
	return a
}

// shortDuration is a duration without the zeros at its end: 14h, not 14h0m0s.
func shortDuration(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// programs reads how programs get in on a person's behalf.
func (l *loader) programs(s settings) {
	p := &l.cfg.Programs
	p.RedirectDomains = []string{"localhost"}
	if v, ok := s["programmatic_redirect_domain_whitelist"]; ok {
		p.RedirectDomains = l.redirectDomains(v)
	}
	if v, ok := s["programmatic_allowed_audiences"]; ok {
		p.Audiences = l.texts(v)
	}
}

func (l *loader) redirectDomains(v value) []string {
	list := []string{}
	for _, e := range l.items(v) {
		host, err := hostname(e.text, false)
		if err != nil {
			l.problem(e.at, "write a host name alone", "%s: %v", v.key, err)
			continue
		}
		list = append(list, host)
	}
	return list
}

// routeSessions reads how long a route's sessions last and where else its sign-ins
// lead.
func (l *loader) routeSessions(s settings, r *Route) {
	a := l.sessionAges(s, l.ages)
	r.SessionLifetime, r.SessionIdleTimeout = a.lifetime, a.idle
	v, ok := s["depends_on"]
	if !ok {
		return
	}
	hosts := l.items(v)
	if len(hosts) > mostDependsOn {
		l.problem(v.at(), "each is two redirects more for every sign-in: list 5 at most", "depends_on: %d hosts", len(hosts))
		return
	}
	l.dependent = append(l.dependent, dependent{r, hosts})
}

// dependencies checks each depends_on against the hosts of all routes.
func (l *loader) dependencies() {
	if len(l.dependent) == 0 {
		return
	}
	hosts := newHostIndex(l.cfg.Routes)
	for _, d := range l.dependent {
		for _, e := range d.hosts {
			l.dependency(d.route, e, hosts)
		}
	}
}

func (l *loader) dependency(r *Route, e item, hosts *hostIndex) {
	name, port, ok := e.text, "", true
	if h, p, err := net.SplitHostPort(e.text); err == nil {
		name, port, ok = h, p, validPortNumber(p)
	}
	host, err := hostname(strings.Trim(name, "[]"), false)
	if err != nil || !ok {
		l.problem(e.at, "write the host of another route, such as app.example.com", "depends_on: %q is not a host", clip(e.text))
		return
	}
	if port == "443" {
		port = ""
	}
	found := hosts.routes(host)
	_, listen, _ := net.SplitHostPort(l.cfg.Server.Address)
	i := slices.IndexFunc(found, func(f *Route) bool { return port == "" || f.Port == port || f.Port == "" && port == listen })
	if i < 0 {
		l.problem(e.at, dependencyHint(host, hosts), "depends_on: no route is on %s", clip(e.text))
		return
	}
	if port == "" && !slices.ContainsFunc(found, func(f *Route) bool { return f.Port == "" }) {
		port = found[0].Port
	}
	if !slices.ContainsFunc(found, func(f *Route) bool { return r.IDP == f.IDP || f.Takes(l.cfg, r.IDP) || r.Takes(l.cfg, f.IDP) }) {
		l.warn(e.at, "remove it, or let both take the same provider", "depends_on: %s takes sessions of another provider, so a sign-in here is none there", clip(e.text))
	}
	switch target := joinHost(host, port); {
	case host == r.Host && (port == r.Port || r.Port == ""):
		l.warn(e.at, "remove it: a sign-in leads to its own host anyway", "depends_on: %s is the route's own host", clip(e.text))
	case !slices.Contains(r.DependsOn, target):
		r.DependsOn = append(r.DependsOn, target)
	}
}

func dependencyHint(host string, hosts *hostIndex) string {
	if routes := hosts.named[host]; len(routes) > 0 {
		return "did you mean " + joinHost(host, routes[0].Port) + "?"
	}
	known := slices.Sorted(maps.Keys(hosts.named))
	if near := policy.Nearest(host, known); near != "" {
		return "did you mean " + near + "?"
	}
	return "write the host of another route of this file"
}

// hostIndex finds the routes of a host without a look at each.
type hostIndex struct {
	// named are those of plain hosts and of *.domain, odd those of other wildcards.
	named map[string][]*Route
	odd   []compiledRoute
}

func newHostIndex(routes []*Route) *hostIndex {
	x := &hostIndex{named: map[string][]*Route{}}
	for _, r := range routes {
		if r.Host == "" {
			continue
		}
		if r.Host != "*" && strings.Contains(strings.TrimPrefix(r.Host, "*."), "*") {
			re, err := regexp.Compile("^" + strings.ReplaceAll(regexp.QuoteMeta(r.Host), `\*`, ".+") + "$")
			if err == nil {
				x.odd = append(x.odd, compiledRoute{r, re})
			}
			continue
		}
		x.named[r.Host] = append(x.named[r.Host], r)
	}
	return x
}

// routes are those of a plain host, or of the wildcards that take it where it has
// none of its own.
func (x *hostIndex) routes(host string) []*Route {
	if list := x.named[host]; len(list) > 0 {
		return list
	}
	var list []*Route
	for _, w := range widerWildcards(host) {
		list = append(list, x.named[w]...)
	}
	for _, c := range x.odd {
		if c.match.MatchString(host) {
			list = append(list, c.route)
		}
	}
	return list
}

// portal reads what people see of a route where they choose one.
func (l *loader) portal(s settings, r *Route) {
	if v, ok := s["description"]; ok {
		if r.Description, ok = l.text(v); ok && utf8.RuneCountInString(r.Description) > 1000 {
			l.problem(v.at(), "at most 1,000 characters", "description is too long")
		}
	}
	v, ok := s["logo_url"]
	if !ok {
		return
	}
	text, ok := l.text(v)
	switch {
	case !ok:
	case len(text) > 8<<10:
		l.problem(v.at(), "at most 8 KiB: put the picture behind an address", "logo_url is too long")
	case !pictureURL(text):
		l.problem(v.at(), "write https://host/picture.png, /picture.png or data:image/png;base64,...", "logo_url is not the address of a picture")
	default:
		r.LogoURL = text
	}
}

// pictureURL reports whether a page can show what is at an address: https, a path
// of its own host, or the picture itself.
func pictureURL(text string) bool {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.User != nil || strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == '\\' || c == 0x7f }):
		return false
	case u.Scheme == "data":
		return strings.HasPrefix(u.Opaque, "image/")
	case u.Scheme == "https":
		return u.Hostname() != "" && validPort(u)
	}
	return u.Scheme == "" && u.Host == "" && strings.HasPrefix(text, "/")
}
