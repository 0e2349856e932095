package main

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/countersign/countersign/config"
)

// routeTable finds the route that Envoy would choose for a request: the virtual
// host first, an exact one before the wildcards, and in it the first route whose
// path matches. It is what package xds builds, read back.
type routeTable struct {
	// exact are virtual hosts by the host and the port that from names. The port is
	// "" where it names none: they get what comes on ports that nobody names.
	exact     map[string]*virtualHost
	wildcards []*matchedRoute
}

type virtualHost struct {
	// authenticate marks the host where people sign in.
	authenticate bool
	routes       []*matchedRoute
}

type matchedRoute struct {
	*config.Route
	// authority is set for wildcard hosts, regex for routes that have one.
	authority, regex *regexp.Regexp
}

// place is where a request ends: at a route, or at nothing that a policy
// decides about.
type place struct {
	route *config.Route
	// why says, where route is nil, who answers instead.
	why string
}

func newRouteTable(cfg *config.Config) (*routeTable, error) {
	t := &routeTable{exact: map[string]*virtualHost{}}
	for _, r := range cfg.Routes {
		m := &matchedRoute{Route: r}
		if r.Regex != "" {
			var err error
			if m.regex, err = regexp.Compile(`\A(?:` + r.Regex + `)\z`); err != nil {
				return nil, fmt.Errorf("%s: %w", r.Position, err)
			}
		}
		if strings.Contains(r.Host, "*") {
			m.authority = authorityPattern(r)
			t.wildcards = append(t.wildcards, m)
			continue
		}
		v := t.at(r.Host, r.Port)
		v.routes = append(v.routes, m)
	}
	if u := cfg.AuthenticateURL; u != nil {
		t.at(strings.ToLower(u.Hostname()), u.Port()).authenticate = true
	}
	return t, nil
}

func (t *routeTable) at(host, port string) *virtualHost {
	key := net.JoinHostPort(host, port)
	if t.exact[key] == nil {
		t.exact[key] = &virtualHost{}
	}
	return t.exact[key]
}

// authorityPattern is the Host header that a wildcard host stands for. A "*" may
// be several labels, or none.
func authorityPattern(r *config.Route) *regexp.Regexp {
	parts := strings.Split(r.Host, "*")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	port := `(:[0-9]+)?`
	if r.Port != "" {
		port = ":" + regexp.QuoteMeta(r.Port)
	}
	return regexp.MustCompile(`(?i)\A` + strings.Join(parts, `[^:/@]*`) + port + `\z`)
}

// find returns where a request for a path, which may have a query, ends. Authority
// is the Host header, with or without a port.
func (t *routeTable) find(authority, path string) place {
	path, err := normalPath(path)
	if err != nil {
		return place{why: "Envoy refuses the request: " + err.Error()}
	}
	if v := t.virtualHost(authority); v != nil {
		return v.find(authority, path)
	}
	if path == "/ping" || path == "/healthz" {
		return ownPath(path)
	}
	var known bool
	for _, r := range t.wildcards {
		known = known || r.authority.MatchString(authority)
	}
	if known && internalPath(path) {
		return ownPath(path)
	}
	for _, r := range t.wildcards {
		if r.authority.MatchString(authority) && r.takes(path) {
			return place{route: r.Route}
		}
	}
	if known {
		return place{why: fmt.Sprintf("no route of the host %s has the path %s: the answer is 404", authority, path)}
	}
	return place{why: fmt.Sprintf("no route has the host %s: the answer is 404", authority)}
}

// virtualHost is that of an exact host, nil if there is none. One of the very port
// comes before one of any.
func (t *routeTable) virtualHost(authority string) *virtualHost {
	host, port := strings.ToLower(authority), ""
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if v := t.exact[net.JoinHostPort(host, port)]; v != nil {
		return v
	}
	return t.exact[net.JoinHostPort(host, "")]
}

func (v *virtualHost) find(authority, path string) place {
	switch {
	case internalPath(path):
		return ownPath(path)
	case v.authenticate:
		return place{why: authority + " is where people sign in: Countersign answers there itself"}
	}
	for _, r := range v.routes {
		if r.takes(path) {
			return place{route: r.Route}
		}
	}
	return place{why: fmt.Sprintf("no route of the host %s has the path %s: the answer is 404", authority, path)}
}

func (r *matchedRoute) takes(path string) bool {
	switch {
	case r.regex != nil:
		return r.regex.MatchString(path)
	case r.Path != "":
		return path == r.Path
	default:
		return strings.HasPrefix(path, r.Prefix)
	}
}

func ownPath(path string) place {
	return place{why: path + " is Countersign's own: it answers there itself, whoever asks"}
}

// internalPath reports whether a path is ours on every host of a route.
func internalPath(path string) bool {
	switch path {
	case "/ping", "/healthz", "/.pomerium", "/.well-known/pomerium":
		return true
	}
	return strings.HasPrefix(path, "/.pomerium/") || strings.HasPrefix(path, "/.well-known/pomerium/")
}
