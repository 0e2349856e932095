// Package policy is the policy language: what a route demands of a caller. It
// turns YAML into a syntax tree with positions, the tree into a Rego module, the
// module into a prepared query, and evaluates that to a Decision with reasons.
// It does no I/O and knows neither HTTP handlers nor sessions: a caller hands it
// the principal and the request.
//
// The grammar, over YAML nodes (Parse):
//
//	policy    = nothing | NAME | rules | [ (NAME | rules) ... ]
//	rules     = { allow: body, deny: body, rego: module }  each optional
//	body      = { and: list, or: list, not: list, nor: list }  each optional
//	list      = [ criterion ... ]
//	criterion = { KIND: data } | { KIND/PATH: data }
//
// A NAME stands for the rules of the policy that has it. The operators of a body
// are or-ed, and so are bodies of the same action. Of an operator's criteria A and
// B, "and" is A∧B, "or" A∨B, "not" ¬A∧¬B and "nor" ¬A∨¬B; an empty list counts for
// nothing. The rules allow and deny that a module defines each count as a body.
//
// Each criterion gives a reason code. The reasons of a decision are those of the
// criteria that made their operator, and through it their action, what it is: the
// true ones where it is true, the false ones where it is false ("not" and "nor"
// invert the truth and keep the reason). Then, in this order: a deny rule's reason
// about the client's certificate refuses the client, a reason user-unauthenticated
// asks for a sign-in, a reason device-unauthenticated refuses the device, a true
// deny denies, a true allow allows, and everything else denies. A denial that a
// newer sign-in would turn into an allowance (auth_time) asks for one.
//
// A criterion about the session is false without one, whatever its matcher; since
// "not" and "nor" keep its reason, a rule that would admit someone for what they are
// not asks who they are first. A criterion about something that a request does not
// have, an address for one, is false as well. Where a client repeats a header or a
// parameter, all of its values must match if that lets the request in, and one is
// enough if that keeps it out; one that it leaves out never lets in, and counts as
// empty where that keeps out.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
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
	// path is that of a claim or a parameter, or a header's name in lower case.
	path string
	// operand is nil where the kind compares with nothing.
	operand operand
	// keepsOut is whether the request is the worse off if the criterion holds.
	keepsOut bool
	line     int
	// column is 0 where the criterion is not written as one.
	column int
}

// operand is what a criterion compares with. Each kind of data has its own.
type operand interface {
	// phrase says what is asked of name, such as "domain is example.com".
	phrase(name string) string
	// alternatives are lists of Rego expressions over ref. The criterion holds if
	// all of one list do, and none does where the input has no ref.
	alternatives(c *criterion, ref string) [][]string
	// key is equal for operands that ask the same.
	key() string
}

// With returns a policy that has the rules of p and then those of other.
func (p *Policy) With(other *Policy) *Policy {
	rules := make([]rule, 0, len(p.rules)+len(other.rules))
	return &Policy{rules: append(append(rules, p.rules...), other.rules...)}
}

// String is the policy as lines for a person to compare, indented and without
// positions: equal policies, equal text.
func (p *Policy) String() string {
	var b strings.Builder
	for _, r := range p.rules {
		fmt.Fprintf(&b, "%s:\n", r.action)
		for _, o := range r.operators {
			fmt.Fprintf(&b, "  %s:\n", o.name)
			for _, c := range o.criteria {
				fmt.Fprintf(&b, "    - %s\n", c)
			}
		}
	}
	return b.String()
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

// Admits reports whether there is an allow rule with criteria; without one the policy
// lets nobody in.
func (p *Policy) Admits() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.action == allow && len(r.operators) > 0 })
}

// Key is a hash of what the policy says, without positions: policies with equal
// keys can share one compiled query (Evaluator.For).
func (p *Policy) Key() string {
	var b strings.Builder
	for _, r := range p.rules {
		fmt.Fprintf(&b, "%s(", r.action)
		for _, o := range r.operators {
			fmt.Fprintf(&b, "%s(", o.name)
			for i := range o.criteria {
				b.WriteString(o.criteria[i].key())
			}
			b.WriteByte(')')
		}
		b.WriteByte(')')
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:])
}

// key is equal for criteria that ask the same.
func (c *criterion) key() string {
	operand := ""
	if c.operand != nil {
		operand = c.operand.key()
	}
	return fmt.Sprintf("%s/%q%q%t", c.kind.name, c.path, operand, c.keepsOut && c.kind.data == repeated)
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
