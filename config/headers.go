package config

import (
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// defaultResponseHeaders are set where the operator wrote none. Insisting on
// TLS is left out without a certificate of the operator's: a browser would
// remember it for a year.
func (l *loader) defaultResponseHeaders() []Header {
	list := []Header{
		{"X-Frame-Options", "SAMEORIGIN"},
		{"X-XSS-Protection", "1; mode=block"},
	}
	if l.hsts {
		list = append(list, Header{"Strict-Transport-Security", "max-age=31536000; includeSubDomains; preload"})
	}
	return sortHeaders(list)
}

func sortHeaders(list []Header) []Header {
	slices.SortFunc(list, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// responseHeaderMap reads set_response_headers; off is its key disable.
func (l *loader) responseHeaderMap(v value) (list []Header, off bool) {
	for _, m := range l.headerMembers(v) {
		if m.name == "disable" {
			off = true
			continue
		}
		if text, ok := l.headerValue(m); ok {
			list = append(list, Header{m.name, text})
		}
	}
	return sortHeaders(list), off
}

// mergeHeaders lays the route's headers over the inherited ones.
func mergeHeaders(inherited, own []Header) []Header {
	merged := slices.Clone(own)
	for _, h := range inherited {
		if !slices.ContainsFunc(own, func(o Header) bool { return strings.EqualFold(o.Name, h.Name) }) {
			merged = append(merged, h)
		}
	}
	return sortHeaders(merged)
}

// requestHeaderMap reads set_request_headers.
func (l *loader) requestHeaderMap(v value) []Header {
	var list []Header
	for _, m := range l.headerMembers(v) {
		if !l.identityHeaderFree(m.at, v.key, m.name) {
			continue
		}
		text, ok := l.headerValue(m)
		if !ok {
			continue
		}
		if text, ok = l.literal(m.value, text); ok {
			list = append(list, Header{m.name, text})
		}
	}
	return sortHeaders(list)
}

// headerMembers reads a map whose keys are header names, each once whatever
// its case.
func (l *loader) headerMembers(v value) []member {
	var list []member
	seen := map[string]bool{}
	for _, m := range l.members(v) {
		if !l.headerName(m.at, v.key, m.name) {
			continue
		}
		folded := strings.ToLower(m.name)
		if seen[folded] {
			l.problem(m.at, "header names do not depend on case", "%s: header %s twice", v.key, m.name)
			continue
		}
		seen[folded] = true
		list = append(list, m)
	}
	return list
}

func (l *loader) headerValue(m member) (string, bool) {
	if m.name == "disable" {
		return "", true
	}
	text, ok := l.text(m.value)
	switch {
	case !ok:
		return "", false
	case !httpguts.ValidHeaderFieldValue(text):
		l.problem(m.value.at(), "a value is one line without control characters", "%s: not a header value", m.key)
		return "", false
	case len(text) > 8<<10:
		l.problem(m.value.at(), "at most 8 KiB", "%s: the value is too long", m.key)
		return "", false
	}
	return text, true
}

// literal turns $$ into $ and refuses templates, which would otherwise reach
// the upstream unexpanded.
func (l *loader) literal(v value, text string) (string, bool) {
	if !strings.Contains(text, "$") {
		return text, true
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '$' && i+1 < len(text) {
			next := text[i+1]
			if next == '$' {
				i++
			} else if next == '{' || next == '_' || 'a' <= next|0x20 && next|0x20 <= 'z' {
				l.problem(v.at(), "write $$ for a dollar sign", "%s: templates (${...}, $name) are not supported yet", v.key)
				return "", false
			}
		}
		b.WriteByte(text[i])
	}
	return b.String(), true
}

// headerName checks a name that we set or remove.
func (l *loader) headerName(at Position, key, name string) bool {
	switch {
	case strings.HasPrefix(name, ":"):
		l.problem(at, "pseudo-headers belong to the protocol", "%s: %q cannot be changed", key, clip(name))
	case !httpguts.ValidHeaderFieldName(name) || len(name) > 256:
		l.problem(at, "letters, digits and -", "%s: %q is not a header name", key, clip(name))
	case strings.EqualFold(name, "host"):
		l.problem(at, "use preserve_host_header", "%s: Host cannot be changed", key)
	case slices.Contains(connectionHeaders(), strings.ToLower(name)):
		l.problem(at, "it belongs to the connection, which Envoy manages", "%s: %s cannot be changed", key, name)
	default:
		return true
	}
	return false
}

// identityHeaderFree refuses names that carry the caller's identity: a value
// of the operator's there would be taken for a verified one.
func (l *loader) identityHeaderFree(at Position, key, name string) bool {
	folded := foldHeader(name)
	if strings.HasPrefix(folded, "x-pomerium-jwt-assertion") || folded == "x-pomerium-authorization" {
		l.problem(at, "only Countersign sets it", "%s: %s is reserved", key, name)
		return false
	}
	return true
}

// foldHeader makes names equal that an upstream may take for one another.
func foldHeader(name string) string {
	return strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name))
}
