package xds

import (
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	mutatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/countersign/countersign/config"
)

// A site is one exact host, as it is written in routes: all its routes share a
// virtual host. Port is "" for the default port.
type site struct{ host, port string }

// A siteRoutes is the virtual host of a site.
type siteRoutes struct {
	site
	// anyPort is set where a route names no port, so that the site is served
	// on whatever port clients reach us.
	anyPort bool
	routes  []*config.Route
	// authenticate marks the host where people sign in.
	authenticate bool
}

// routeTable builds the one table of routes. Exact hosts have a virtual host
// each. Hosts with a "*" share the last one, which also catches the rest: a
// request that nothing matches is checked without a route id and denied.
func (b *builder) routeTable() {
	b.checkClaimHeaders()
	sites, wildcards := b.sites()
	table := &routev3.RouteConfiguration{
		Name: routeTableName,
		// What Envoy tells its kind about the client, upstreams have in X-Forwarded-For.
		// Certificate and address are told to authorization alone.
		RequestHeadersToRemove: []string{"x-envoy-external-address", "x-envoy-original-path", headerClientCert, headerClientAddress},
	}
	internal, none := b.internalRoutes(nil), noRoute()
	for _, s := range sites {
		table.VirtualHosts = append(table.VirtualHosts, b.virtualHost(s, internal, none))
	}
	table.VirtualHosts = append(table.VirtualHosts, b.catchAll(wildcards))
	if claims := claimMutations(b.cfg.Assertion.ClaimHeaders); len(claims) > 0 {
		table.TypedPerFilterConfig = map[string]*anypb.Any{
			filterMutation: b.typed(&mutatev3.HeaderMutationPerRoute{Mutations: &mutatev3.Mutations{RequestMutations: claims}}),
		}
	}
	b.add(resourcev3.RouteType, routeTableName, table, config.Position{})
}

// sites sorts routes by where they are, in file order.
func (b *builder) sites() (exact []*siteRoutes, wildcards []*config.Route) {
	bySite := map[site]*siteRoutes{}
	at := func(host, port string, anyPort bool) *siteRoutes {
		key := site{host, port}
		s, ok := bySite[key]
		if !ok {
			s = &siteRoutes{site: key}
			bySite[key] = s
			exact = append(exact, s)
		}
		s.anyPort = s.anyPort || anyPort
		return s
	}
	for _, r := range b.cfg.Routes {
		b.checkRoute(r)
		b.positions[r.ID] = r.Position
		if strings.Contains(r.Host, "*") {
			wildcards = append(wildcards, r)
			continue
		}
		s := at(strings.ToLower(r.Host), sitePort(r.Port, fromScheme(r)), r.Port == "")
		s.routes = append(s.routes, r)
		if _, known := b.positions[s.name()]; !known {
			b.positions[s.name()] = r.Position
		}
	}
	if u := b.cfg.AuthenticateURL; u != nil {
		s := at(strings.ToLower(u.Hostname()), sitePort(u.Port(), u.Scheme), u.Port() == "")
		s.authenticate = true
	}
	return exact, wildcards
}

// sitePort drops a port that the scheme implies.
func sitePort(port, scheme string) string {
	if port == "443" && scheme != "http" || port == "80" && scheme == "http" {
		return ""
	}
	return port
}

func fromScheme(r *config.Route) string {
	if u, err := url.Parse(r.From); err == nil && u.Scheme == "http" {
		return "http"
	}
	return "https"
}

func (s *siteRoutes) name() string {
	if s.port == "" {
		return s.host
	}
	return net.JoinHostPort(s.host, s.port)
}

// domains are the values of Host that lead here. Envoy compares them without
// regard to case. Behind another TLS terminator port 80 may be the default one.
func (s *siteRoutes) domains(insecure bool) []string {
	host := s.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	switch {
	case s.port != "":
		return []string{host + ":" + s.port}
	case s.anyPort:
		return []string{host, host + ":443", host + ":*"}
	case insecure:
		return []string{host, host + ":443", host + ":80"}
	default:
		return []string{host, host + ":443"}
	}
}

// virtualHost is one site. What all sites have in common is one set of
// messages, of which there would else be most.
func (b *builder) virtualHost(s *siteRoutes, internal []*routev3.Route, none *routev3.Route) *routev3.VirtualHost {
	v := &routev3.VirtualHost{Name: s.name(), Domains: s.domains(b.cfg.Server.Insecure), Routes: slices.Clone(internal)}
	if s.authenticate {
		v.Routes = append(v.Routes, b.internalRoute(pathMatch("/oauth2/callback"), nil))
		none = b.internalRoute(prefixMatch("/"), nil)
	}
	for _, r := range s.routes {
		v.Routes = append(v.Routes, b.policyRoutes(r, nil)...)
	}
	v.Routes = append(v.Routes, none)
	return v
}

// catchAll serves wildcard hosts. Internal paths exist there only for hosts
// that a route names; health is answered whoever asks.
func (b *builder) catchAll(wildcards []*config.Route) *routev3.VirtualHost {
	v := &routev3.VirtualHost{Name: "*", Domains: []string{"*"}, Routes: []*routev3.Route{
		b.internalRoute(pathMatch("/ping"), nil),
		b.internalRoute(pathMatch("/healthz"), nil),
	}}
	seen := map[string]bool{}
	for _, r := range wildcards {
		pattern := authorityPattern(r)
		if !seen[pattern] {
			seen[pattern] = true
			v.Routes = append(v.Routes, b.internalRoutes(authorityMatch(pattern))...)
		}
	}
	for _, r := range wildcards {
		v.Routes = append(v.Routes, b.policyRoutes(r, authorityMatch(authorityPattern(r)))...)
	}
	v.Routes = append(v.Routes, noRoute())
	return v
}

// authorityPattern is the Host header that a wildcard host stands for. A "*"
// may be several labels, or none.
func authorityPattern(r *config.Route) string {
	parts := strings.Split(strings.ToLower(r.Host), "*")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	port := `(:[0-9]+)?`
	if r.Port != "" {
		port = ":" + regexp.QuoteMeta(r.Port)
		if sitePort(r.Port, fromScheme(r)) == "" {
			port = "(" + port + ")?"
		}
	}
	return `(?i)` + strings.Join(parts, `[^:/@]*`) + port
}

func authorityMatch(pattern string) []*routev3.HeaderMatcher {
	return []*routev3.HeaderMatcher{headerMatch(":authority", pattern)}
}

func headerMatch(name, pattern string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                 name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: matching(pattern)},
	}
}

func pathMatch(path string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}}
}

func prefixMatch(prefix string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix}}
}

// internalRoutes are the paths of a host that are ours.
func (b *builder) internalRoutes(headers []*routev3.HeaderMatcher) []*routev3.Route {
	var all []*routev3.Route
	for _, match := range []*routev3.RouteMatch{
		pathMatch("/ping"), pathMatch("/healthz"),
		pathMatch("/.pomerium"), prefixMatch("/.pomerium/"),
		pathMatch("/.well-known/pomerium"), prefixMatch("/.well-known/pomerium/"),
	} {
		all = append(all, b.internalRoute(match, headers))
	}
	return all
}

// internalRoute leads to the authenticate service, which does its own checks.
// Credentials stay, for it reads them; claims about identity go.
func (b *builder) internalRoute(match *routev3.RouteMatch, headers []*routev3.HeaderMatcher) *routev3.Route {
	match.Headers = headers
	return &routev3.Route{
		Name:  "internal " + match.GetPath() + match.GetPrefix(),
		Match: match,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: AuthnCluster},
		}},
		RequestHeadersToRemove: []string{headerAssertion, headerOriginal},
		TypedPerFilterConfig:   map[string]*anypb.Any{filterAuthz: b.unchecked()},
	}
}

// noRoute is where requests end that no route matches. The authorization
// server, which is asked without a route id, answers them; if it ever did
// allow one, there is nothing behind.
func noRoute() *routev3.Route {
	return &routev3.Route{
		Name:  "none",
		Match: prefixMatch("/"),
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 404,
			Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "no such route\n"}},
		}},
	}
}
