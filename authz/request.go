package authz

import (
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
)

// request is what we read of a CheckRequest. Its strings may share one
// message's memory: whoever keeps one beyond the check clones it.
type request struct {
	RouteID string
	// ID is x-request-id, or else Envoy's own id of the stream.
	ID string
	// Path is with its query, as the upstream would get it.
	Method, Path, Host, Scheme string

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

// field is one header of a request or of an answer.
type field struct{ name, value string }

// attributes is what a CheckRequest says, before headers are told apart. Both
// ways to read one, from the wire and from its protobuf type, fill it.
type attributes struct {
	routeID                        string
	id, method, path, host, scheme string
	// raw are the headers one by one. joined, which only an Envoy that does
	// not encode raw headers sends, has one entry per name and is read only
	// where raw is empty.
	raw, joined []field
}

// request tells the headers apart.
func (a *attributes) request() *request {
	r := &request{RouteID: a.routeID, ID: a.id, Method: a.method, Path: a.path, Host: a.host, Scheme: a.scheme}
	headers := a.raw
	if len(headers) == 0 {
		headers = a.joined
	}
	var p preflight
	for _, h := range headers {
		r.read(h, &p)
	}
	r.Preflight = r.Method == "OPTIONS" && p.origin && p.method
	return r
}

type preflight struct{ origin, method bool }

func (r *request) read(h field, p *preflight) {
	switch name := lower(h.name); name {
	case headerCookie:
		r.Cookies = append(r.Cookies, h.value)
	case headerAuthorization:
		r.Authorization = append(r.Authorization, h.value)
	case headerPomeriumAuthorization:
		first(&r.PomeriumAuthorization, h.value)
	case headerAssertion:
		first(&r.Assertion, h.value)
	case headerOriginal:
		first(&r.Original, h.value)
	case ":path":
		// What http.path says has invalid UTF-8 replaced; this is the truth.
		r.Path = h.value
	case "accept":
		if r.Accept != "" {
			h.value = r.Accept + "," + h.value
		}
		r.Accept = h.value
	case "content-type":
		first(&r.ContentType, h.value)
	case "origin":
		p.origin = p.origin || h.value != ""
	case "access-control-request-method":
		p.method = p.method || h.value != ""
	case "x-request-id":
		if h.value != "" && len(h.value) <= 128 {
			r.ID = h.value
		}
	case "x-forwarded-proto":
		if h.value == "https" || h.value == "http" {
			r.Scheme = h.value
		}
	case "x-requested-with":
		r.Fetch.Scripted = true
	case "upgrade":
		r.Fetch.Scripted = r.Fetch.Scripted || strings.EqualFold(h.value, "websocket")
	case "sec-fetch-mode":
		first(&r.Fetch.Mode, h.value)
		r.Fetch.Sent = true
	default:
		r.Fetch.Sent = r.Fetch.Sent || strings.HasPrefix(name, "sec-fetch-")
	}
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

// hostname is the host in lower case and without a port.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return lower(strings.TrimSuffix(host, "."))
}

// fromProto reads a CheckRequest in its protobuf type.
func fromProto(m *authv3.CheckRequest) *request {
	http := m.GetAttributes().GetRequest().GetHttp()
	a := &attributes{
		routeID: m.GetAttributes().GetContextExtensions()[routeKey],
		id:      http.GetId(),
		method:  http.GetMethod(),
		path:    http.GetPath(),
		host:    http.GetHost(),
		scheme:  http.GetScheme(),
	}
	for _, h := range http.GetHeaderMap().GetHeaders() {
		a.raw = append(a.raw, field{h.GetKey(), headerText(h)})
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
