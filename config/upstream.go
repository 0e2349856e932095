package config

import (
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// to reads the upstreams of a route.
func (l *loader) to(s settings, route value, r *Route) {
	v, ok := s["to"]
	if !ok {
		if !hasKey(route.node, "redirect") && !hasKey(route.node, "response") && !hasKey(route.node, "to") {
			l.problem(r.Position, "add to: http://host:port", "a route without to")
		}
		return
	}
	var list []value
	switch v.node.Kind {
	case yaml.SequenceNode:
		list = l.elements(v)
	default:
		list = []value{v}
	}
	if len(list) == 0 {
		l.problem(v.at(), "add to: http://host:port", "to is empty")
		return
	}
	weighted, total, complete := 0, uint64(0), true
	for _, e := range list {
		u, ok := l.upstream(e)
		if !ok {
			complete = false
			continue
		}
		if u.Weight > 0 {
			weighted++
			total += uint64(u.Weight)
		}
		r.To = append(r.To, u)
	}
	if !complete {
		return
	}
	if weighted > 0 && weighted < len(r.To) {
		l.problem(v.at(), "write URL,weight for all of them or for none", "to: some upstreams have a weight and some have none")
	}
	if total > math.MaxUint32 {
		l.problem(v.at(), "make them smaller: only their proportion counts", "to: the weights add up to more than %d", uint32(math.MaxUint32))
	}
	first := r.To[0].URL
	for i, u := range r.To[1:] {
		at := list[i+1].at()
		if u.URL.Scheme != first.Scheme {
			l.problem(at, "give each protocol a route of its own", "to: %s beside %s", u.URL.Scheme, first.Scheme)
		}
		if u.URL.EscapedPath() != first.EscapedPath() {
			l.problem(at, "they share one rewrite: use prefix_rewrite", "to: the upstreams have different paths")
		}
	}
}

// hasKey looks at the raw mapping: a key that was reported already must not
// lead to a second complaint.
func hasKey(n *yaml.Node, key string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

// upstream reads URL or URL,weight.
func (l *loader) upstream(v value) (Upstream, bool) {
	var up Upstream
	s, ok := l.text(v)
	if !ok {
		return up, false
	}
	const hint = "write http://host:port"
	text, weight, found := cutLast(s, ",")
	if found {
		n, err := strconv.ParseUint(strings.TrimSpace(weight), 10, 32)
		if err != nil || n == 0 {
			l.problem(v.at(), "write URL,weight with a whole number from 1, or a list of URLs", "to: bad weight %q", clip(weight))
			return up, false
		}
		s, up.Weight = strings.TrimSpace(text), uint32(n)
	}
	scheme, _, ok := strings.Cut(s, "://")
	if !ok {
		l.problem(v.at(), hint, "to: %q has no scheme", clip(s))
		return up, false
	}
	switch strings.ToLower(scheme) {
	case "http", "https", "h2c":
	case "tcp", "udp", "unix", "https+unix", "ssh":
		l.problem(v.at(), "it is http, https or h2c", "to: %s upstreams are not supported yet", strings.ToLower(scheme))
		return up, false
	default:
		l.problem(v.at(), "it is http, https or h2c", "to: unknown scheme %q", clip(scheme))
		return up, false
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		l.problem(v.at(), hint, "to is not a URL")
		return up, false
	case u.User != nil:
		l.problem(v.at(), "set an Authorization header with set_request_headers", "to holds a user name or a password")
		return up, false
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		l.problem(v.at(), hint, "to has a query or a fragment")
		return up, false
	case !validPort(u):
		l.problem(v.at(), "a port is a number from 1 to 65535", "to has a bad port")
		return up, false
	}
	host, err := hostname(u.Hostname(), false)
	if err != nil {
		l.problem(v.at(), hint, "to: %v", err)
		return up, false
	}
	up.URL = &url.URL{Scheme: u.Scheme, Host: joinHost(host, u.Port()), Path: u.Path, RawPath: u.RawPath}
	return up, true
}

// joinHost puts a host and an optional port together, IPv6 in brackets.
func joinHost(host, port string) string {
	if port != "" {
		return net.JoinHostPort(host, port)
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
