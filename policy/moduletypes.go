package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// inputType is what a part of the input is.
type inputType string

const (
	aText   inputType = "text"
	aList   inputType = "list"
	aNumber inputType = "number"
	aTruth  inputType = "true or false"
)

// typeOf is what a reference leads to, "" where that is not known. Its parts are
// all texts.
func typeOf(t *ast.Term) inputType {
	ref, ok := t.Value.(ast.Ref)
	if !ok || ref[0].String() != "input" {
		return ""
	}
	var parts []string
	for _, part := range ref[1:] {
		s, ok := part.Value.(ast.String)
		if !ok {
			return ""
		}
		parts = append(parts, string(s))
	}
	switch path := strings.Join(parts, "."); path {
	case "session.id", "session.user_id", "session.email", "session.domain", "session.acr",
		"http.method", "http.path", "http.ip", "http.client_certificate_problem",
		"http.client_certificate.fingerprint", "http.client_certificate.spki_hash":
		return aText
	case "session.groups", "session.amr", "session.devices",
		"http.client_certificate.san_email", "http.client_certificate.san_dns", "http.client_certificate.san_uri":
		return aList
	case "session.auth_time", "time":
		return aNumber
	case "session.service_account", "http.cors_preflight":
		return aTruth
	}
	const keyed = 3 // input.http.headers["x"] and the like
	if len(parts) == keyed && slices.Contains(keyedPaths(), parts[0]+"."+parts[1]) {
		return aList
	}
	return ""
}

// literalType is what a value that is written out is, "" for what has variables in
// it.
func literalType(t *ast.Term) inputType {
	switch t.Value.(type) {
	case ast.String:
		return aText
	case ast.Number:
		return aNumber
	case ast.Boolean:
		return aTruth
	case *ast.Array:
		return aList
	}
	return ""
}

// moduleTypes finds comparisons of the input that can come out one way only, which
// Rego makes without a word: of a list with a text, of a time with a date.
func moduleTypes(m *ast.Module, refuse func(at *ast.Location, message string)) {
	check := func(operator string, args []*ast.Term, at *ast.Location) {
		const both = 2
		if len(args) != both {
			return
		}
		switch operator {
		case "equal", "eq", "neq", "lt", "lte", "gt", "gte":
			for i, t := range args {
				is, other := typeOf(t), literalType(args[1-i])
				if is != "" && other != "" && is != other {
					refuse(at, fmt.Sprintf("%s is %s, and is compared with %s%s", t, article(is), article(other), typeHint(is, t)))
				}
			}
		case "internal.member_2":
			if is := typeOf(args[1]); is != "" && is != aList {
				refuse(at, fmt.Sprintf("%s is %s: nothing is in it", args[1], article(is)))
			}
		}
	}
	ast.WalkExprs(m, func(e *ast.Expr) bool {
		if terms, ok := e.Terms.([]*ast.Term); ok {
			check(terms[0].String(), terms[1:], e.Location)
		}
		return false
	})
	ast.WalkTerms(m, func(t *ast.Term) bool {
		if call, ok := t.Value.(ast.Call); ok {
			check(call[0].String(), call[1:], t.Location)
		}
		return false
	})
}

func article(t inputType) string {
	if t == aTruth {
		return string(t)
	}
	return "a " + string(t)
}

// typeHint is what to write in place of a comparison.
func typeHint(is inputType, t *ast.Term) string {
	switch {
	case is == aList:
		return fmt.Sprintf(`: write "x" in %s`, t)
	case t.String() == "input.time" || strings.HasSuffix(t.String(), "auth_time"):
		return ": write time.parse_rfc3339_ns(\"2026-01-31T00:00:00Z\")"
	}
	return ""
}

// comparesSession are the terms that compare input.session with null, which is all
// that the whole of it is good for.
func comparesSession(m *ast.Module) map[*ast.Term]bool {
	found := map[*ast.Term]bool{}
	ast.WalkExprs(m, func(e *ast.Expr) bool {
		terms, ok := e.Terms.([]*ast.Term)
		const comparison = 3
		if !ok || len(terms) != comparison || !slices.Contains([]string{"equal", "eq", "neq"}, terms[0].String()) {
			return false
		}
		for i, t := range terms[1:] {
			if _, null := terms[2-i].Value.(ast.Null); null {
				found[t] = true
			}
		}
		return false
	})
	return found
}
