package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// longestMatch bounds prefix, path and regex.
const longestMatch = 4096

// routes reads policy: and then routes:.
func (l *loader) routes(s settings) {
	l.timeout = 30 * time.Second
	if v, ok := s["default_upstream_timeout"]; ok {
		l.timeout, _ = l.duration(v)
	}
	for _, key := range []string{"policy", "routes"} {
		list, ok := s[key]
		if !ok {
			continue
		}
		if list.node.Kind != yaml.SequenceNode {
			l.wrongType(list, "a list of routes", "each begins with - from:")
			continue
		}
		for _, e := range l.elements(list) {
			if e.node.Kind != yaml.MappingNode {
				l.wrongType(e, "a route", "it begins with from:")
				continue
			}
			l.cfg.Routes = append(l.cfg.Routes, l.oneRoute(e))
		}
	}
	if len(l.cfg.Routes) == 0 && !l.failed() {
		l.warn(Position{File: l.path}, "list them under routes", "there are no routes: every request answers 404")
	}
}

// oneRoute reads a route. One with problems is returned all the same, so that the
// checks across routes can go on.
func (l *loader) oneRoute(v value) *Route {
	r := &Route{Position: v.at(), Timeout: l.timeout, PassIdentityHeaders: l.passIdentity, SetResponseHeaders: l.responseHeaders}
	s := l.settings(v, l.route)
	if from, ok := s["from"]; ok {
		l.from(from, r)
	} else {
		l.problem(r.Position, "add from: https://host", "a route without from")
	}
	r.Name = r.From
	if v, ok := s["name"]; ok {
		if name, ok := l.text(v); ok && name != "" {
			r.Name = name
		}
	}
	l.match(s, r)
	l.to(s, v, r)
	l.rewrite(s, r)
	l.access(s, v, r)
	l.routeProvider(s, r)
	l.bearer(s, r)
	l.routeSessions(s, r)
	l.portal(s, r)
	l.routeHeaders(s, r)
	l.connection(s, r)
	r.ID = routeID(r)
	return r
}

// flagOr reads a bool that may be absent.
func (l *loader) flagOr(s settings, key string, absent bool) bool {
	if v, ok := s[key]; ok {
		b, _ := l.flag(v)
		return b
	}
	return absent
}

// from reads the public address of a route.
func (l *loader) from(v value, r *Route) {
	s, ok := l.text(v)
	if !ok {
		return
	}
	const hint = "write https://host"
	scheme, _, ok := strings.Cut(s, "://")
	if !ok {
		l.problem(v.at(), hint, "from: %q has no scheme", clip(s))
		return
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case "https", "http":
	case "tcp+https", "udp+https", "ssh":
		l.problem(v.at(), hint, "from: %s routes are not supported yet", scheme)
		return
	default:
		l.problem(v.at(), hint, "from: unknown scheme %q", clip(scheme))
		return
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		l.problem(v.at(), hint, "from is not a URL")
		return
	case u.User != nil:
		l.problem(v.at(), "remove what stands before the @", "from holds a user name or a password")
		return
	case u.Path != "":
		l.problem(v.at(), "put the path into prefix, path or regex", "from has a path")
		return
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#"):
		l.problem(v.at(), hint, "from has a query or a fragment")
		return
	case !validPort(u):
		l.problem(v.at(), "a port is a number from 1 to 65535", "from has a bad port")
		return
	}
	host, err := hostname(u.Hostname(), true)
	if err != nil {
		l.problem(v.at(), hint, "from: %v", err)
		return
	}
	r.From, r.Host, r.Port = s, host, u.Port()
	if defaultPort(scheme, r.Port) {
		r.Port = ""
	}
	if scheme == "http" && !l.cfg.Server.Insecure {
		l.warn(v.at(), "write https://, or insecure_server behind another TLS terminator", "from is http, but the route is served over https")
	}
}

// match reads which paths a route takes.
func (l *loader) match(s settings, r *Route) {
	var given []string
	for _, m := range []struct {
		key  string
		into *string
	}{{"prefix", &r.Prefix}, {"path", &r.Path}, {"regex", &r.Regex}} {
		v, ok := s[m.key]
		if !ok {
			continue
		}
		given = append(given, m.key)
		text, ok := l.text(v)
		switch {
		case len(given) > 1:
			l.problem(v.at(), "keep one of them; Pomerium would use regex before path before prefix", "%s and %s in one route", strings.Join(given[:len(given)-1], ", "), m.key)
		case !ok:
		case len(text) > longestMatch:
			l.problem(v.at(), "at most 4096 characters", "%s is too long", m.key)
		case m.key == "regex":
			l.regex(v, text, r)
		case m.key == "prefix" && text == "/":
		default:
			if why, hint := pathProblem(text); why != "" {
				l.problem(v.at(), hint, "%s %s", m.key, why)
			} else {
				*m.into = text
			}
		}
	}
}

func (l *loader) regex(v value, text string, r *Route) {
	re, err := regexp.Compile(text)
	switch {
	case text == "":
		l.problem(v.at(), "remove it to match every path", "regex is empty")
	case err != nil:
		l.problem(v.at(), "the syntax is RE2: no look-around, no back references", "regex: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	default:
		if literal, _ := re.LiteralPrefix(); literal != "" && literal[0] != '/' {
			l.problem(v.at(), "it matches the whole path, which begins with /", "regex can never match: it begins with %q", clip(literal))
			return
		}
		r.Regex = text
	}
}

// pathProblem says why a prefix or path can never match, "" if it can. Envoy
// compares it with the path after normalisation.
func pathProblem(p string) (why, hint string) {
	switch {
	case p == "":
		return "is empty", "remove it to match every path"
	case p[0] != '/':
		return "does not begin with /", "write /" + clip(p)
	case strings.ContainsAny(p, "?#"):
		return "holds ? or #", "it is compared with the path alone"
	case strings.Contains(p, "//"):
		return "holds //", "Envoy merges slashes before it compares: write one"
	case slices.Contains(strings.Split(p, "/"), "..") || slices.Contains(strings.Split(p, "/"), "."):
		return "holds . or .. as a segment", "Envoy resolves them before it compares"
	case strings.ContainsFunc(p, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }):
		return "holds a character that no path holds as it is", "percent-encode it, as in /caf%C3%A9"
	}
	return "", ""
}

// rewrite reads what replaces the matched path.
func (l *loader) rewrite(s settings, r *Route) {
	at := r.Position
	if v, ok := s["prefix_rewrite"]; ok {
		at = v.at()
		text, ok := l.text(v)
		if !ok {
			return
		}
		switch {
		case !strings.HasPrefix(text, "/"):
			l.problem(at, "write / to remove the prefix", "prefix_rewrite does not begin with /")
			return
		case strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '?' || c == '#' || c == '\\' }):
			l.problem(at, "it replaces the path alone", "prefix_rewrite holds a character that no path holds as it is")
			return
		}
		r.PrefixRewrite = text
	} else if len(r.To) > 0 {
		at = s["to"].at()
		r.PrefixRewrite = r.To[0].URL.EscapedPath()
		if r.PrefixRewrite == "/" && r.Prefix == "" {
			r.PrefixRewrite = ""
		}
	}
	switch {
	case r.PrefixRewrite == "":
	case r.Regex != "":
		l.warn(at, "use prefix to keep the rest of the path", "the rewrite replaces the whole path that regex matched")
	case r.Prefix != "" && !strings.HasSuffix(r.Prefix, "/") && strings.HasSuffix(r.PrefixRewrite, "/"):
		l.warn(at, "end both in / or neither", "%s/x becomes %s/x", clip(r.Prefix), clip(r.PrefixRewrite))
	case r.Path == "" && strings.HasSuffix("/"+r.Prefix, "/") && !strings.HasSuffix(r.PrefixRewrite, "/"):
		l.warn(at, "end the rewrite in /", "%sx becomes %sx", clip(cmp.Or(r.Prefix, "/")), clip(r.PrefixRewrite))
	}
}

// routeHeaders reads what is set and removed.
func (l *loader) routeHeaders(s settings, r *Route) {
	r.PassIdentityHeaders = l.flagOr(s, "pass_identity_headers", l.passIdentity)
	if v, ok := s["set_request_headers"]; ok {
		r.SetRequestHeaders = l.requestHeaderMap(v)
	}
	if v, ok := s["remove_request_headers"]; ok {
		for _, e := range l.items(v) {
			if !l.headerName(e.at, v.key, e.text) {
				continue
			}
			if slices.ContainsFunc(r.SetRequestHeaders, func(h Header) bool { return strings.EqualFold(h.Name, e.text) }) {
				l.problem(e.at, "keep one of them", "%s is set and removed", e.text)
			}
			r.RemoveRequestHeaders = append(r.RemoveRequestHeaders, e.text)
		}
	}
	if v, ok := s["set_response_headers"]; ok {
		own, off := l.responseHeaderMap(v)
		if r.SetResponseHeaders = mergeHeaders(l.responseHeaders, own); off {
			r.SetResponseHeaders = nil
		}
	}
}

// connection reads timeouts, upgrades and TLS to the upstream.
func (l *loader) connection(s settings, r *Route) {
	r.PreserveHostHeader = l.flagOr(s, "preserve_host_header", false)
	r.TLSSkipVerify = l.flagOr(s, "tls_skip_verify", false)
	if r.AllowWebsockets = l.flagOr(s, "allow_websockets", false); r.AllowWebsockets {
		// A socket lives as long as both ends want it to.
		r.Timeout, r.IdleTimeout = 0, new(time.Duration)
	}
	if v, ok := s["timeout"]; ok {
		r.Timeout, _ = l.duration(v)
	}
	if v, ok := s["idle_timeout"]; ok {
		if d, ok := l.duration(v); ok {
			r.IdleTimeout = &d
		}
	}
	if v, ok := s["tls_custom_ca_file"]; ok {
		r.TLSCustomCA = l.certificateAuthority(v)
		if r.TLSSkipVerify {
			l.warn(v.at(), "remove one of them", "tls_custom_ca_file has no effect beside tls_skip_verify")
		}
	}
	for _, key := range []string{"tls_skip_verify", "tls_custom_ca_file"} {
		if v, ok := s[key]; ok && len(r.To) > 0 && r.To[0].URL.Scheme != "https" {
			l.warn(v.at(), "write to: https://…", "%s has no effect: the upstream is %s", key, r.To[0].URL.Scheme)
		}
	}
}

// routeID names a route to Envoy and back. It depends on nothing but where
// requests come in and go, so that it outlives a change of policy.
func routeID(r *Route) string {
	h := sha256.New()
	parts := []string{r.Host, r.Port, "prefix", r.Prefix, "path", r.Path, "regex", r.Regex}
	for _, u := range r.To {
		parts = append(parts, u.URL.String())
	}
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
