package policytest

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/net/http/httpguts"

	"github.com/countersign/countersign/policy"
)

// MaxTests is how many tests one file may have.
const MaxTests = 10_000

// Parse reads a file of tests, whose name is for messages and for paths that are
// relative to it. It reports every problem at once, in the order of the file; the
// file is nil if there is any.
func Parse(name string, content []byte) (*File, []Problem) {
	p := &parser{reader: reader{file: name}}
	f := &File{Name: name}
	if root := p.document(content); root != nil {
		p.parse(f, value{node: root})
	}
	if p.problems != nil {
		sortProblems(p.problems)
		return nil, p.problems
	}
	return f, nil
}

type parser struct{ reader }

func (p *parser) parse(f *File, root value) {
	fields, _ := p.fields(root, "file", "tests", "records")
	f.records = p.records(fields["records"])
	tests, ok := fields["tests"]
	if !ok {
		if len(p.problems) == 0 {
			p.problem(root.node, "write tests: and below it a list", "the file has no tests")
		}
		return
	}
	list := p.list(tests)
	switch {
	case tests.node.Kind != yaml.SequenceNode:
	case len(list) == 0:
		p.problem(tests.node, "begin each test with a dash", "the list of tests is empty")
	case len(list) > MaxTests:
		p.problem(tests.node, "split the file", "%d tests, of at most %d", len(list), MaxTests)
		return
	}
	lines := map[string]int{}
	for _, item := range list {
		t := p.test(f.Name, item)
		if line, twice := lines[t.Name]; twice && t.Name != "" {
			p.problem(item.node, fmt.Sprintf("it is already the name of the test on line %d", line), "two tests are called %q", clip(t.Name))
			continue
		}
		lines[t.Name] = t.Line
		f.Tests = append(f.Tests, t)
	}
}

// test reads one test. What it could not make sense of is a problem.
func (p *parser) test(file string, v value) *Test {
	t := &Test{File: file, Line: v.node.Line, Column: v.node.Column}
	if v.null() {
		p.problem(v.node, "remove the dash", "%s is empty", v.name)
		return t
	}
	if v.node.Kind != yaml.MappingNode {
		p.wrongType(v, "a mapping", "")
		return t
	}
	v.name = "" // messages say as.groups, and where it stands
	fields, ok := p.fields(v, "test", "name", "route", "policy", "as", "request", "records", "want", "reasons")
	if name, given := fields["name"]; given {
		t.Name, _ = p.text(name)
	} else if ok {
		p.problem(v.node, "write name: and what the test shows", "the test has no name")
	}
	p.subject(t, v, fields, ok)
	if as, given := fields["as"]; given {
		t.Principal = p.principal(as)
	}
	p.request(t, fields["request"])
	t.records = p.records(fields["records"])
	if want, given := fields["want"]; given {
		t.Want = p.effect(want)
	} else if ok {
		p.problem(v.node, "write want: "+strings.Join(effectNames(), ", want: "), "the test does not say what it wants")
	}
	if reasons, given := fields["reasons"]; given {
		t.Reasons = p.texts(reasons)
	}
	return t
}

// subject reads what is tested: a route or a policy.
func (p *parser) subject(t *Test, v value, fields map[string]value, whole bool) {
	route, hasRoute := fields["route"]
	inline, hasPolicy := fields["policy"]
	switch {
	case hasRoute && hasPolicy:
		p.problem(inline.key, "keep one of them", "route and policy in one test")
	case hasRoute:
		t.Route, _ = p.text(route)
		t.route = route.node
	case hasPolicy:
		t.policy = inline.node
	case whole:
		p.problem(v.node, "write route: and the name of a route, or policy: and its rules", "the test has neither route nor policy")
	}
}

func effectNames() []string {
	var names []string
	for _, e := range effects() {
		names = append(names, e.String())
	}
	return names
}

func effects() []policy.Effect {
	return []policy.Effect{policy.Allow, policy.Deny, policy.SignIn, policy.ClientCertificate, policy.Device}
}

func (p *parser) effect(v value) policy.Effect {
	text, ok := p.text(v)
	if !ok {
		return policy.Deny
	}
	for _, e := range effects() {
		if e.String() == text {
			return e
		}
	}
	hint := "it is one of " + strings.Join(effectNames(), ", ")
	if near := policy.Nearest(text, effectNames()); near != "" {
		hint = "did you mean " + near + "?"
	}
	p.problem(v.node, hint, "want: unknown outcome %q", clip(text))
	return policy.Deny
}

// principal reads as.
func (p *parser) principal(v value) *policy.Principal {
	who := &policy.Principal{ID: "test"}
	fields, ok := p.fields(v, "as", "user", "email", "groups", "claims", "devices", "auth_time", "service_account")
	if account, given := fields["service_account"]; given {
		who.ServiceAccount = true
		who.UserID, _ = p.text(account)
		if len(fields) > 1 {
			p.problem(account.key, "it inherits nothing from a person", "service_account stands beside other keys")
		}
		return who
	}
	user, hasUser := fields["user"]
	if hasUser {
		who.UserID, _ = p.text(user)
	}
	if email, given := fields["email"]; given {
		who.Email, _ = p.text(email)
		if !hasUser {
			who.UserID = who.Email
		}
	} else if !hasUser && ok {
		p.problem(v.node, "write user, email or service_account, or leave out as for a request without a sign-in", "as does not say who it is")
	}
	if groups, given := fields["groups"]; given {
		who.Groups = p.texts(groups)
	}
	if claims, given := fields["claims"]; given {
		if claims.node.Kind == yaml.MappingNode {
			who.Claims, _ = p.data(claims).(map[string]any)
		} else {
			p.wrongType(claims, "a mapping", "write claims: {department: eng}")
		}
	}
	if devices, given := fields["devices"]; given {
		for _, d := range p.list(devices) {
			who.Devices = append(who.Devices, p.device(d))
		}
	}
	if at, given := fields["auth_time"]; given {
		who.AuthTime, _ = p.time(at)
	}
	return who
}

func (p *parser) device(v value) policy.EnrolledDevice {
	d := policy.EnrolledDevice{Type: "any"}
	fields, ok := p.fields(v, "device", "id", "type", "approved")
	if id, given := fields["id"]; given {
		d.ID, _ = p.text(id)
	} else if ok {
		p.problem(v.node, "write {id: d1, type: any, approved: true}", "%s has no id", v.name)
	}
	if typ, given := fields["type"]; given {
		d.Type, _ = p.text(typ)
	}
	if approved, given := fields["approved"]; given {
		d.Approved = p.flag(approved)
	}
	return d
}

// records reads {TYPE: {ID: {FIELD: value}}}; the zero value has none.
func (p *parser) records(v value) []policy.Record {
	if v.node == nil {
		return nil
	}
	var records []policy.Record
	types, _ := p.members(v)
	for _, typ := range types {
		ids, _ := p.members(typ)
		for _, id := range ids {
			if id.node.Kind != yaml.MappingNode {
				p.wrongType(id, "a mapping", "write {FIELD: value}")
				continue
			}
			fields, _ := p.data(id).(map[string]any)
			records = append(records, policy.Record{Type: typ.key.Value, ID: id.key.Value, Fields: fields})
		}
	}
	return records
}

// request reads the request; without one it is GET /.
func (p *parser) request(t *Test, v value) {
	r := &t.request
	r.method, r.path = "GET", "/"
	if v.node == nil {
		return
	}
	r.node = v.node
	fields, _ := p.fields(v, "request", "method", "path", "host", "ip", "headers", "time", "client_certificate", "preflight")
	if ip, given := fields["ip"]; given {
		r.ip = p.address(ip)
	}
	if path, given := fields["path"]; given {
		p.path(r, path)
	}
	if host, given := fields["host"]; given {
		r.host, r.hostAt = p.host(host), host.node
	}
	if h, given := fields["headers"]; given {
		r.headers = p.headers(h)
	}
	if at, given := fields["time"]; given {
		r.time, _ = p.time(at)
	}
	if c, given := fields["client_certificate"]; given {
		r.certificate, _ = p.text(c)
		r.certificateAt = c.node
	}
	p.method(r, fields)
}

// method reads method and preflight. Browsers send a preflight as OPTIONS with two
// headers, so a request that has them is one.
func (p *parser) method(r *request, fields map[string]value) {
	flag, flagged := fields["preflight"]
	if flagged {
		r.preflight = p.flag(flag)
	}
	method, given := fields["method"]
	if given {
		text, ok := p.text(method)
		switch {
		case !ok:
		case !httpguts.ValidHeaderFieldName(text): // a token, too
			p.problem(method.node, "write a word such as GET", "request.method: %q is not a method", clip(text))
		case strings.ToUpper(text) != text:
			p.problem(method.node, "write "+clip(strings.ToUpper(text)), "request.method: %q is not in capitals, and methods tell them apart", clip(text))
		}
		r.method = text
	} else if r.preflight {
		r.method = "OPTIONS"
	}
	switch complete := r.method == "OPTIONS" && r.headers["origin"] != nil && r.headers["access-control-request-method"] != nil; {
	case !flagged:
		r.preflight = complete
	case r.preflight && r.method != "OPTIONS":
		p.problem(flag.node, "leave the method out, or the preflight", "request.preflight: a preflight is OPTIONS, not %s", clip(r.method))
	case !r.preflight && complete:
		p.problem(flag.node, "leave it out, or a header", "request.preflight: OPTIONS with the headers origin and access-control-request-method is a preflight")
	}
}

func (p *parser) address(v value) netip.Addr {
	text, ok := p.text(v)
	if !ok {
		return netip.Addr{}
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" {
		hint := "write it like 203.0.113.9 or 2001:db8::1"
		if strings.Contains(text, "/") {
			hint = "a request comes from one address, not from a network"
		}
		p.problem(v.node, hint, "request.ip: %q is not an IP address", clip(text))
		return netip.Addr{}
	}
	return ip.Unmap()
}

// path reads the path and the query behind it. Policies see the path as Envoy
// passes it on, so one that Envoy would change or refuse is a mistake.
func (p *parser) path(r *request, v value) {
	text, ok := p.text(v)
	if !ok {
		return
	}
	path, query, _ := strings.Cut(text, "?")
	message, hint := pathProblem(path)
	if message == "" && strings.ContainsFunc(query, unprintable) {
		message, hint = "holds a character that no query holds as it is", "percent-encode it, as in ?q=caf%C3%A9"
	}
	if message != "" {
		p.problem(v.node, hint, "request.path %s", message)
		return
	}
	r.path, r.query, r.pathAt = path, query, v.node
}

func unprintable(c rune) bool { return c <= ' ' || c >= 0x7f }

// pathProblem says why no request that reaches a policy has this path, "" if one
// can.
func pathProblem(path string) (message, hint string) {
	segments := strings.Split(path, "/")
	escaped := strings.ToUpper(path)
	decoded, err := url.PathUnescape(path)
	switch {
	case !strings.HasPrefix(path, "/"):
		return "does not begin with /", "write /" + clip(path)
	case strings.Contains(path, "#"):
		return "holds #", "clients keep what follows it to themselves"
	case strings.Contains(path, "//"):
		return "holds //", "Envoy merges slashes before a policy sees them: write one"
	case slices.Contains(segments, "..") || slices.Contains(segments, "."):
		return "holds . or .. as a segment", "Envoy resolves them before a policy sees them"
	case strings.ContainsFunc(path, unprintable) || strings.Contains(path, `\`):
		return "holds a character that no path holds as it is", "percent-encode it, as in /caf%C3%A9"
	case strings.Contains(escaped, "%2F") || strings.Contains(escaped, "%5C"):
		return "holds an encoded slash", "Envoy refuses such requests"
	case err != nil:
		return "holds a % without two hex digits behind it", "write %25 for a percent sign"
	case strings.ContainsFunc(decoded, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return "holds an encoded control character", "such requests are refused"
	}
	return "", ""
}

// host reads a host, with or without a port.
func (p *parser) host(v value) string {
	text, ok := p.text(v)
	if !ok {
		return ""
	}
	host, port := splitHost(text)
	_, err := strconv.ParseUint(port, 10, 16)
	if host == "" || strings.ContainsAny(host, "/@?#*: ") && !isIPv6(host) || port != "" && err != nil {
		p.problem(v.node, "write it like app.example.com", "request.host: %q is not a host", clip(text))
		return ""
	}
	return strings.ToLower(text)
}

func isIPv6(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Is6()
}

// splitHost takes the port and the brackets off a host.
func splitHost(text string) (host, port string) {
	if host, port, err := net.SplitHostPort(text); err == nil {
		return host, port
	}
	return strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), ""
}

func (p *parser) headers(v value) headers {
	h := headers{}
	members, _ := p.members(v)
	for _, m := range members {
		name := strings.ToLower(m.key.Value)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			p.problem(m.key, "write it like x-team", "request.headers: %q is not the name of a header", clip(m.key.Value))
			continue
		case strings.Contains(name, "_"):
			p.problem(m.key, "write it with dashes", "request.headers: %q has an underscore, and Envoy refuses such requests", clip(m.key.Value))
			continue
		case h[name] != nil:
			p.problem(m.key, "give all values in one list", "request.headers: %q is there twice, and headers don't tell capitals apart", clip(name))
			continue
		case m.node.Kind == yaml.SequenceNode:
			h[name] = []string{}
			for i, n := range m.node.Content {
				h[name] = append(h[name], p.headerValue(m.element(i, n)))
			}
		default:
			h[name] = []string{p.headerValue(m)}
		}
	}
	return h
}

// headerValue reads a value, which may be empty.
func (p *parser) headerValue(v value) string {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" && v.node.Value == "" {
		return ""
	}
	text, ok := p.text(v)
	if ok && strings.ContainsFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
		p.problem(v.node, "", "%s holds a control character", v.name)
	}
	return text
}
