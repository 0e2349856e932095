package authz

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// routeKey is the context extension that names the route Envoy chose.
const routeKey = "countersign.route"

// The headers that a decision, or what travels upstream, depends on.
const (
	headerAuthorization         = "authorization"
	headerPomeriumAuthorization = "x-pomerium-authorization"
	headerAssertion             = "x-pomerium-jwt-assertion"
	headerOriginal              = "x-pomerium-jwt-assertion-for"
	headerCookie                = "cookie"
	// headerCertificate is written by Envoy alone, which drops a client's own.
	headerCertificate = "x-forwarded-client-cert"
	// headerAddress is where Envoy tells the client's address and how many proxies
	// before it are trusted to know that. It, too, is Envoy's alone.
	headerAddress = "x-countersign-client-address"
)

// hopsMark stands between the address and the number.
const hopsMark = ";hops="

// request is what we read of a CheckRequest. Its strings may share one
// message's memory: whoever keeps one beyond the check clones it.
type request struct {
	RouteID string
	// ID is x-request-id, or else Envoy's own id of the stream.
	ID string
	// Path is with its query, as the upstream would get it.
	Method, Path, Host, Scheme string
	// Source is the address of Envoy's peer.
	Source string

	// Headers are all of them, for policies that read some.
	Headers headers

	Cookies []string
	// Authorization is every value that was sent.
	Authorization []string
	// Of each of these the first value counts.
	PomeriumAuthorization, Assertion, Original string

	Accept      string
	ContentType string
	Fetch       fetchMetadata
	// Preflight is a CORS preflight: OPTIONS with both of its headers.
	Preflight bool
}

// fetchMetadata is how a client says what it wants an answer for.
type fetchMetadata struct {
	// Mode is Sec-Fetch-Mode; Sent is whether there was any Sec-Fetch header.
	Mode string
	Sent bool
	// Scripted is X-Requested-With or a websocket's Upgrade.
	Scripted bool
}

// field is one header of an answer.
type field struct{ name, value string }

// headers are names, in lower case, each followed by its value: a value can be
// handed out as a list of one without a copy.
type headers []string

// Values implements policy.Headers.
func (h *headers) Values(name string) []string {
	var found []string
	for i := 0; i < len(*h); i += 2 {
		switch {
		case (*h)[i] != name:
		case found == nil:
			found = (*h)[i+1 : i+2 : i+2]
		default:
			found = append(found, (*h)[i+1])
		}
	}
	return found
}

// attributes is what a CheckRequest says, before headers are told apart. Both
// ways to read one, from the wire and from its protobuf type, fill it.
type attributes struct {
	routeID, source                string
	id, method, path, host, scheme string
	// raw are the headers one by one. joined, which only an Envoy that does
	// not encode raw headers sends, has one entry per name and is read only
	// where raw is empty.
	raw    headers
	joined []field
}

// request tells the headers apart.
func (a *attributes) request() *request {
	r := &request{
		RouteID: a.routeID, ID: a.id, Method: a.method, Path: a.path, Host: a.host, Scheme: a.scheme,
		Source: a.source, Headers: a.raw,
	}
	if len(r.Headers) == 0 {
		r.Headers = nil
		slices.SortFunc(a.joined, func(a, b field) int { return strings.Compare(a.name, b.name) })
		for _, h := range a.joined {
			r.Headers = append(r.Headers, h.name, h.value)
		}
	}
	var p preflight
	for i := 0; i < len(r.Headers); i += 2 {
		r.Headers[i] = lower(r.Headers[i])
		// Whoever reads HTTP/1 after us does not see the space around a value.
		if r.Headers[i] != ":path" {
			r.Headers[i+1] = strings.Trim(r.Headers[i+1], " \t")
		}
		r.read(r.Headers[i], r.Headers[i+1], &p)
	}
	r.Preflight = r.Method == "OPTIONS" && p.origin && p.method
	return r
}

type preflight struct{ origin, method bool }

func (r *request) read(name, value string, p *preflight) {
	switch name {
	case headerCookie:
		r.Cookies = append(r.Cookies, value)
	case headerAuthorization:
		r.Authorization = append(r.Authorization, value)
	case headerPomeriumAuthorization:
		first(&r.PomeriumAuthorization, value)
	case headerAssertion:
		first(&r.Assertion, value)
	case headerOriginal:
		first(&r.Original, value)
	case ":path":
		// What http.path says has invalid UTF-8 replaced; this is the truth.
		r.Path = value
	case "accept":
		if r.Accept != "" {
			value = r.Accept + "," + value
		}
		r.Accept = value
	case "content-type":
		first(&r.ContentType, value)
	case "origin":
		p.origin = p.origin || value != ""
	case "access-control-request-method":
		p.method = p.method || value != ""
	case "x-request-id":
		if value != "" && len(value) <= 128 {
			r.ID = value
		}
	case "x-forwarded-proto":
		if value == "https" || value == "http" {
			r.Scheme = value
		}
	case "x-requested-with":
		r.Fetch.Scripted = true
	case "upgrade":
		r.Fetch.Scripted = r.Fetch.Scripted || strings.EqualFold(value, "websocket")
	case "sec-fetch-mode":
		first(&r.Fetch.Mode, value)
		r.Fetch.Sent = true
	default:
		r.Fetch.Sent = r.Fetch.Sent || strings.HasPrefix(name, "sec-fetch-")
	}
}

// address is the client's, and the zero value if it is not known. Envoy says how
// many proxies it trusted for it: one that has not heard of a new number says the
// address by another rule. Where proxies are trusted, the address of our peer is one
// of theirs, and means that they did not tell the client's.
func (r *request) address(hops uint32) (ip netip.Addr, text string) {
	told := r.Headers.Values(headerAddress)
	if len(told) != 1 {
		return netip.Addr{}, ""
	}
	text, trusted, _ := strings.Cut(told[0], hopsMark)
	if n, err := strconv.ParseUint(trusted, 10, 32); err != nil || uint32(n) != hops {
		return netip.Addr{}, ""
	}
	ip = addressOf(text)
	if !ip.IsValid() || hops > 0 && ip == addressOf(r.Source) {
		return netip.Addr{}, ""
	}
	return ip, text
}

func first(dst *string, v string) {
	if *dst == "" {
		*dst = v
	}
}

// lower is strings.ToLower for header names, which Envoy sends in lower case.
func lower(name string) string {
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			return strings.ToLower(name)
		}
	}
	return name
}

// splitPath cuts a request path into the part that policies see and the query.
func splitPath(path string) (plain, query string) {
	path, _, _ = strings.Cut(path, "#")
	plain, query, _ = strings.Cut(path, "?")
	return plain, query
}

// fromProto reads a CheckRequest in its protobuf type.
func fromProto(m *authv3.CheckRequest) *request {
	http := m.GetAttributes().GetRequest().GetHttp()
	a := &attributes{
		routeID: m.GetAttributes().GetContextExtensions()[routeKey],
		source:  m.GetAttributes().GetSource().GetAddress().GetSocketAddress().GetAddress(),
		id:      http.GetId(),
		method:  http.GetMethod(),
		path:    http.GetPath(),
		host:    http.GetHost(),
		scheme:  http.GetScheme(),
	}
	for _, h := range http.GetHeaderMap().GetHeaders() {
		a.raw = append(a.raw, h.GetKey(), headerText(h))
	}
	// Maps have no order, so that only one spelling of a name can count.
	for name, value := range http.GetHeaders() {
		if name == lower(name) {
			a.joined = append(a.joined, field{name, value})
		}
	}
	return a.request()
}

func headerText(h *corev3.HeaderValue) string {
	if raw := h.GetRawValue(); len(raw) > 0 {
		return string(raw)
	}
	return h.GetValue()
}
