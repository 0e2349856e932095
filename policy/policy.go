// Package policy is the policy language: what a route demands of a caller. It
// turns YAML into a syntax tree with positions, the tree into a Rego module, the
// module into a prepared query, and evaluates that to a Decision with reasons.
// It does no I/O and knows neither HTTP handlers nor sessions: a caller hands it
// the principal and the request.
//
// The grammar, over YAML nodes (Parse):
//
//	policy    = nothing | rules | [ rules ... ]
//	rules     = { allow: body, deny: body }           each optional
//	body      = { and: list, or: list, not: list, nor: list }  each optional
//	list      = [ criterion ... ]
//	criterion = { NAME: data } | { claim/PATH: data }
//
// The operators of a body are or-ed, and so are bodies of the same action. Of an
// operator's criteria A and B, "and" is A∧B, "or" A∨B, "not" ¬A∧¬B and "nor" ¬A∨¬B;
// an empty list counts for nothing.
//
// Each criterion gives a reason code. The reasons of a decision are those of the
// criteria that made their operator, and through it their action, what it is: the
// true ones where it is true, the false ones where it is false ("not" and "nor"
// invert the truth and keep the reason). Then, in this order: a reason
// user-unauthenticated asks for a sign-in, a true deny denies, a true allow
// allows, and everything else denies. A criterion about the session is false
// without one, whatever its matcher; since "not" and "nor" keep its reason, a
// rule that would admit someone for what they are not asks who they are first.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Policy is the syntax tree of one route's policy. It is immutable. The zero
// value has no rules and denies everyone.
type Policy struct {
	rules []rule
}

type action string

const (
	allow action = "allow"
	deny  action = "deny"
)

// rule is one body of allow or deny.
type rule struct {
	action    action
	line      int
	operators []operator
}

// operator joins criteria; it has at least one.
type operator struct {
	name     string // and, or, not, nor
	line     int
	criteria []criterion
}

// inverts reports whether the truth of the criteria is turned round.
func (o operator) inverts() bool { return o.name == "not" || o.name == "nor" }

// all reports whether every criterion must hold, rather than one of them.
func (o operator) all() bool { return o.name == "and" || o.name == "not" }

type criterion struct {
	kind kind
	path string // of a claim
	// tests must all hold. They are empty where the kind takes no matcher.
	tests []test
	line  int
}

// test is one matcher of a criterion and what it compares with: one value, or
// any number for in and not_in.
type test struct {
	matcher string
	values  []string
}

// With returns a policy that has the rules of p and then those of other.
func (p *Policy) With(other *Policy) *Policy {
	rules := make([]rule, 0, len(p.rules)+len(other.rules))
	return &Policy{rules: append(append(rules, p.rules...), other.rules...)}
}

// HasDeny reports whether there is a deny rule with criteria: a request may then
// be refused, or its sender asked to sign in, although an allow rule holds.
func (p *Policy) HasDeny() bool {
	for _, r := range p.rules {
		if r.action == deny && len(r.operators) > 0 {
			return true
		}
	}
	return false
}

// Key is a hash of what the policy says, without positions: policies with equal
// keys can share one compiled query (Evaluator.For).
func (p *Policy) Key() string {
	var b strings.Builder
	for _, r := range p.rules {
		fmt.Fprintf(&b, "%s(", r.action)
		for _, o := range r.operators {
			fmt.Fprintf(&b, "%s(", o.name)
			for _, c := range o.criteria {
				b.WriteString(c.key())
			}
			b.WriteByte(')')
		}
		b.WriteByte(')')
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:])
}

// key is equal for criteria that ask the same.
func (c criterion) key() string {
	return fmt.Sprintf("%s/%q%q", c.kind.name, c.path, c.tests)
}

// clause is an operator with the action it belongs to.
type clause struct {
	operator
	action action
	// rule is the index of the rule it stands in.
	rule int
	// first is the number of its first criterion.
	first int
}

// clauses are the operators that matter, those of allow before those of deny, with
// their criteria numbered from 1 in that order.
func (p *Policy) clauses() []clause {
	var clauses []clause
	number := 1
	for _, a := range []action{allow, deny} {
		for i, r := range p.rules {
			if r.action != a {
				continue
			}
			for _, o := range r.operators {
				clauses = append(clauses, clause{o, a, i, number})
				number += len(o.criteria)
			}
		}
	}
	return clauses
}
