package policy

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// inputs are what a policy reads, as the keys of the input document. A key is nil
// where the policy does not read what it names.
type inputs struct {
	null, sessionKey, userID, email, domain, groups, claims *ast.Term
	claimPaths                                              []claimPath

	http, method, path, preflight *ast.Term
}

type claimPath struct {
	path string
	key  *ast.Term
}

func (in *inputs) session() bool { return in.sessionKey != nil }

func readInputs(p *Policy) inputs {
	var in inputs
	for _, cl := range p.clauses() {
		for _, c := range cl.criteria {
			in.add(c)
		}
	}
	return in
}

func (in *inputs) add(c criterion) {
	// The last part of the Rego reference is the key.
	key := ast.StringTerm(c.kind.input[strings.LastIndexByte(c.kind.input, '.')+1:])
	switch c.kind.name {
	case "authenticated_user", "user":
		in.userID = key
	case "email":
		in.email = key
	case "domain":
		in.domain = key
	case "groups":
		in.groups = key
	case "claim":
		in.claims = key
		if !slices.ContainsFunc(in.claimPaths, func(p claimPath) bool { return p.path == c.path }) {
			in.claimPaths = append(in.claimPaths, claimPath{c.path, ast.StringTerm(c.path)})
		}
	case "http_method":
		in.method = key
	case "http_path":
		in.path = key
	case "cors_preflight":
		in.preflight = key
	default:
		return
	}
	if c.kind.session {
		in.sessionKey, in.null = ast.StringTerm("session"), ast.NullTerm()
	} else {
		in.http = ast.StringTerm("http")
	}
}

// term is the input document.
func (in *inputs) term(from *Input) *ast.Term {
	var pairs [2][2]*ast.Term
	document := pairs[:0]
	if in.sessionKey != nil {
		session := in.null
		if from.Principal != nil {
			session = in.principal(from.Principal)
		}
		document = append(document, [2]*ast.Term{in.sessionKey, session})
	}
	if in.http != nil {
		document = append(document, [2]*ast.Term{in.http, in.request(&from.Request)})
	}
	return ast.ObjectTerm(document...)
}

func (in *inputs) principal(p *Principal) *ast.Term {
	var pairs [5][2]*ast.Term
	session := pairs[:0]
	if in.userID != nil {
		session = append(session, [2]*ast.Term{in.userID, ast.StringTerm(p.UserID)})
	}
	if in.email != nil {
		session = append(session, [2]*ast.Term{in.email, ast.StringTerm(p.Email)})
	}
	if in.domain != nil {
		if domain, ok := domainOf(p.Email); ok {
			session = append(session, [2]*ast.Term{in.domain, ast.StringTerm(domain)})
		}
	}
	if in.groups != nil {
		session = append(session, [2]*ast.Term{in.groups, texts(p.Groups)})
	}
	if in.claims != nil {
		claims := make([][2]*ast.Term, len(in.claimPaths))
		for i, path := range in.claimPaths {
			claims[i] = [2]*ast.Term{path.key, texts(claimAt(p.Claims, path.path))}
		}
		session = append(session, [2]*ast.Term{in.claims, ast.ObjectTerm(claims...)})
	}
	return ast.ObjectTerm(session...)
}

func (in *inputs) request(r *Request) *ast.Term {
	var pairs [3][2]*ast.Term
	http := pairs[:0]
	if in.method != nil {
		http = append(http, [2]*ast.Term{in.method, ast.StringTerm(r.Method)})
	}
	if in.path != nil {
		http = append(http, [2]*ast.Term{in.path, ast.StringTerm(r.Path)})
	}
	if in.preflight != nil {
		http = append(http, [2]*ast.Term{in.preflight, ast.BooleanTerm(r.Preflight)})
	}
	return ast.ObjectTerm(http...)
}

func texts(values []string) *ast.Term {
	terms := make([]*ast.Term, len(values))
	for i, v := range values {
		terms[i] = ast.StringTerm(v)
	}
	return ast.ArrayTerm(terms...)
}

// domainOf is what follows the @ of an address. An address with more than one
// belongs to no domain: readers disagree on which one counts.
func domainOf(email string) (string, bool) {
	_, domain, ok := strings.Cut(email, "@")
	if !ok || domain == "" || strings.Contains(domain, "@") {
		return "", false
	}
	return domain, true
}

// maxClaimDepth is how many segments of a claim's path are looked up in nested
// claims.
const maxClaimDepth = 5

// claimAt are the values of a claim as text: the claim of exactly that name or
// else the one that the path's segments, split at "/" and ".", lead to. A claim that
// is no list is a list of one; null and a mapping are none.
func claimAt(claims map[string]any, path string) []string {
	value, ok := claims[path]
	if !ok {
		segments := strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '.' })
		if len(segments) > maxClaimDepth {
			return nil
		}
		value = claims
		for _, segment := range segments {
			nested, ok := value.(map[string]any)
			if !ok {
				return nil
			}
			value = nested[segment]
		}
	}
	switch v := value.(type) {
	case []string:
		return v
	case []any:
		result := make([]string, len(v))
		for i, item := range v {
			result[i] = textOf(item)
		}
		return result
	case nil, map[string]any:
		return nil
	default:
		return []string{textOf(v)}
	}
}

// textOf is a claim's value as policies compare it: a string as it is, all else as
// JSON. Nothing is left out of a list, since "is" wants the only element.
func textOf(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case float64: // without the exponent that JSON would give a large id
		return strconv.FormatFloat(v, 'f', -1, 64)
	default:
		text, _ := json.Marshal(v) // claims come from JSON
		return string(text)
	}
}

// had is what the caller had of what the criterion looks at.
func (c *criterion) had(in *Input) string {
	var value string
	switch c.kind.name {
	case "http_method":
		value = in.Request.Method
	case "http_path":
		value = in.Request.Path
	}
	if p := in.Principal; p != nil {
		switch c.kind.name {
		case "user", "authenticated_user":
			value = p.UserID
		case "email":
			value = p.Email
		case "domain":
			value, _ = domainOf(p.Email)
		}
	}
	const most = 256
	if len(value) > most {
		value = strings.ToValidUTF8(value[:most], "")
	}
	return value
}
