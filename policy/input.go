package policy

import (
	"net/url"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// inputs is the input document as far as a policy reads it. Its leaves know where
// their values come from.
type inputs struct {
	// session, http and time are nil where the policy does not read them.
	session, http, time *place
}

// place is one key of the document.
type place struct {
	key *ast.Term
	// value is that of a leaf; a nil result is left out. A place without a value
	// is an object of its parts.
	value func(in *Input) *ast.Term
	parts []*place
}

func readInputs(p *Policy) inputs {
	var in inputs
	for _, cl := range p.clauses() {
		for i := range cl.criteria {
			c := &cl.criteria[i]
			switch m, ok := c.operand.(*moduleRule); {
			case ok:
				for _, ref := range m.refs {
					in.addModule(ref)
				}
			case c.kind.input != "":
				in.add(c.place(), func(in *Input) *ast.Term { return c.value(in) })
			}
			for _, also := range c.readsToo() {
				in.addModule(also)
			}
			if c.aboutSession() {
				in.root("session")
			}
		}
	}
	return in
}

// readsToo are the parts of the input that the criterion looks at besides its own.
func (c *criterion) readsToo() []string {
	m, isRecord := c.operand.(*recordMatch)
	switch {
	case c.kind.data == age:
		return []string{"time"}
	case c.kind.name == "invalid_client_certificate":
		return []string{"http.client_certificate"}
	case isRecord:
		return []string{m.by.reads()}
	}
	return nil
}

// place is where in the document the criterion looks.
func (c *criterion) place() []string {
	input := c.kind.input
	if m, ok := c.operand.(*recordMatch); ok {
		return append(strings.Split(m.by.ref(), "."), m.typ, m.field)
	}
	keys := strings.Split(input, ".")
	if c.path != "" {
		keys = append(keys, c.path)
	}
	return keys
}

// ref is place as Rego writes it. Names that a policy chose are quoted.
func (c *criterion) ref() string {
	keys, own := c.place(), 0
	switch {
	case c.kind.data == record:
		own = 2
	case c.path != "":
		own = 1
	}
	ref := "input." + strings.Join(keys[:len(keys)-own], ".")
	for _, key := range keys[len(keys)-own:] {
		ref += "[" + quote(key) + "]"
	}
	return ref
}

// addModule adds what a module looks at.
func (in *inputs) addModule(ref string) {
	keyed, name, isKeyed := strings.Cut(ref, "/")
	if isKeyed {
		kinds := map[string]string{"session.claims": "claim", "http.headers": "header", "http.query": "query"}
		k, _ := kindNamed(kinds[keyed])
		c := &criterion{kind: k, path: name}
		if k.name == "header" {
			c.path = strings.ToLower(name)
		}
		in.add(append(strings.Split(keyed, "."), name), func(in *Input) *ast.Term { return c.value(in) })
		return
	}
	switch ref {
	case "session":
		in.root("session")
	case "session.id":
		in.add([]string{"session", "id"}, func(in *Input) *ast.Term { return ast.StringTerm(in.Principal.ID) })
	case "session.service_account":
		in.add([]string{"session", "service_account"}, func(in *Input) *ast.Term { return ast.BooleanTerm(in.Principal.ServiceAccount) })
	default:
		i := slices.IndexFunc(kinds(), func(k kind) bool { return k.input == ref })
		c := &criterion{kind: kinds()[i]}
		in.add(strings.Split(ref, "."), func(in *Input) *ast.Term { return c.value(in) })
	}
}

// root is the first place of a path.
func (in *inputs) root(name string) *place {
	root := map[string]**place{"session": &in.session, "http": &in.http, "time": &in.time}[name]
	if *root == nil {
		*root = &place{key: ast.StringTerm(name)}
	}
	return *root
}

func (in *inputs) add(keys []string, value func(in *Input) *ast.Term) {
	at := in.root(keys[0])
	for _, key := range keys[1:] {
		term := ast.StringTerm(key)
		i := slices.IndexFunc(at.parts, func(p *place) bool { return p.key.Equal(term) })
		if i < 0 {
			i = len(at.parts)
			at.parts = append(at.parts, &place{key: term})
		}
		at = at.parts[i]
	}
	at.value = value
}

// term is the input document.
func (in *inputs) term(from *Input) *ast.Term {
	var pairs [3][2]*ast.Term
	document := pairs[:0]
	if in.session != nil {
		value := ast.NullTerm()
		if from.Principal != nil {
			value = in.session.object(from)
		}
		document = append(document, [2]*ast.Term{in.session.key, value})
	}
	if in.http != nil {
		document = append(document, [2]*ast.Term{in.http.key, in.http.object(from)})
	}
	if in.time != nil && timely(from.Time) {
		document = append(document, [2]*ast.Term{in.time.key, in.time.value(from)})
	}
	return ast.ObjectTerm(document...)
}

func (p *place) object(from *Input) *ast.Term {
	var few [8][2]*ast.Term
	pairs := few[:0]
	for _, part := range p.parts {
		if part.value == nil {
			pairs = append(pairs, [2]*ast.Term{part.key, part.object(from)})
		} else if value := part.value(from); value != nil {
			pairs = append(pairs, [2]*ast.Term{part.key, value})
		}
	}
	return ast.ObjectTerm(pairs...)
}

// value is what the criterion looks at. Of a kind about the session it is asked
// for only where there is one.
func (c *criterion) value(in *Input) *ast.Term {
	p, r := in.Principal, &in.Request
	switch c.kind.name {
	case "authenticated_user", "user":
		return ast.StringTerm(p.UserID)
	case "email":
		return ast.StringTerm(p.Email)
	case "domain", "acr":
		if text, ok := c.text(in); ok {
			return ast.StringTerm(text)
		}
		return nil
	case "groups", "claim", "amr":
		return texts(c.list(in))
	case "auth_time":
		if timely(p.AuthTime) {
			return number(p.AuthTime.UnixNano())
		}
		return nil
	case "device":
		return deviceTerm(p.Devices)
	case "record":
		return c.operand.(*recordMatch).term(in)
	case "http_method":
		return ast.StringTerm(r.Method)
	case "http_path":
		return ast.StringTerm(r.Path)
	case "header", "query", "user_agent":
		if values := c.list(in); len(values) > 0 {
			return texts(values)
		}
		return nil
	case "cors_preflight":
		return ast.BooleanTerm(r.Preflight)
	case "source_ip":
		if !r.IP.IsValid() {
			return nil
		}
		return ast.StringTerm(plainAddress(r.IP).String())
	case "client_certificate":
		return r.Certificate.term()
	case "invalid_client_certificate":
		return ast.StringTerm(r.CertificateProblem)
	default:
		return number(in.Time.UnixNano())
	}
}

// text is the one text that a criterion of text compares. Of an email address
// without exactly one @ there is no domain.
func (c *criterion) text(in *Input) (string, bool) {
	p := in.Principal
	switch c.kind.name {
	case "http_method":
		return in.Request.Method, true
	case "http_path":
		return in.Request.Path, true
	}
	if p == nil {
		return "", false
	}
	switch c.kind.name {
	case "authenticated_user", "user":
		return p.UserID, true
	case "email":
		return p.Email, true
	case "domain":
		return domainOf(p.Email)
	case "acr":
		acr, ok := p.Claims["acr"].(string)
		return acr, ok
	}
	return "", false
}

// list are the texts that a criterion of several compares.
func (c *criterion) list(in *Input) []string {
	switch c.kind.name {
	case "header", "user_agent":
		if in.Request.Headers == nil {
			return nil
		}
		return in.Request.Headers.Values(c.path)
	case "query":
		return queryValues(in.Request.Query, c.path)
	}
	if in.Principal == nil {
		return nil
	}
	switch c.kind.name {
	case "groups":
		return in.Principal.Groups
	case "claim":
		return claimAt(in.Principal.Claims, c.path)
	case "amr":
		return claimAt(in.Principal.Claims, "amr")
	}
	return nil
}

// queryValues are those of one parameter, decoded as a form is. What cannot be
// decoded is left out: whoever hands us a query refuses one that is malformed.
func queryValues(query, name string) []string {
	var values []string
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		key, err1 := url.QueryUnescape(key)
		value, err2 := url.QueryUnescape(value)
		if err1 == nil && err2 == nil && key == name {
			values = append(values, value)
		}
	}
	return values
}

func number(n int64) *ast.Term { return ast.NumberTerm(jsonNumber(n)) }

func deviceTerm(devices []EnrolledDevice) *ast.Term {
	terms := make([]*ast.Term, len(devices))
	for i, d := range devices {
		terms[i] = ast.ObjectTerm(
			[2]*ast.Term{ast.StringTerm("id"), ast.StringTerm(d.ID)},
			[2]*ast.Term{ast.StringTerm("type"), ast.StringTerm(d.Type)},
			[2]*ast.Term{ast.StringTerm("approved"), ast.BooleanTerm(d.Approved)})
	}
	return ast.ArrayTerm(terms...)
}

func (c *Certificate) term() *ast.Term {
	if c == nil {
		return nil
	}
	return ast.ObjectTerm(
		[2]*ast.Term{ast.StringTerm("fingerprint"), ast.StringTerm(c.Fingerprint)},
		[2]*ast.Term{ast.StringTerm("spki_hash"), ast.StringTerm(c.SPKIHash)},
		[2]*ast.Term{ast.StringTerm("san_email"), texts(c.SANEmail)},
		[2]*ast.Term{ast.StringTerm("san_dns"), texts(c.SANDNS)},
		[2]*ast.Term{ast.StringTerm("san_uri"), texts(c.SANURI)})
}

func texts(values []string) *ast.Term {
	terms := make([]*ast.Term, len(values))
	for i, v := range values {
		terms[i] = ast.StringTerm(v)
	}
	return ast.ArrayTerm(terms...)
}
