package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

// Openness is how many people a policy may let in.
type Openness int

// From the narrowest to the widest.
const (
	Restricted Openness = iota
	// AnyUser lets in whoever has signed in.
	AnyUser
	// Public lets in everybody.
	Public
)

// Openness returns how wide the policy's allow rules are, whatever it denies.
func (p *Policy) Openness() Openness {
	widest := Restricted
	for _, r := range p.rules {
		for _, o := range r.operators {
			if r.action != allow || o.inverts() {
				continue
			}
			open := make([]Openness, len(o.criteria))
			for i, c := range o.criteria {
				open[i] = c.openness()
			}
			if o.all() {
				widest = max(widest, slices.Min(open))
			} else {
				widest = max(widest, slices.Max(open))
			}
		}
	}
	return widest
}

func (c *criterion) openness() Openness {
	switch c.kind.name {
	case "accept":
		return Public
	case "authenticated_user":
		return AnyUser
	}
	return Restricted
}

// Lint finds what is legal in a policy and most likely not meant. Its problems
// are warnings, in the order of the file.
func Lint(p *Policy) []Problem {
	problems := append(p.caseVariants(), p.impossible()...)
	problems = append(problems, p.idle()...)
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return problems
}

// caseVariants finds domains that no address will have: providers give them in
// lower case, and comparisons know the difference.
func (p *Policy) caseVariants() []Problem {
	var problems []Problem
	warn := func(c *criterion, hint, format string, args ...any) {
		problems = append(problems, Problem{Line: c.line, Column: max(c.column, 1), Warning: true, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	for _, cl := range p.clauses() {
		for i := range cl.criteria {
			c := &cl.criteria[i]
			tests, _ := c.operand.(textTests)
			for _, t := range tests {
				for _, v := range t.values {
					domain := v
					if _, after, ok := strings.Cut(v, "@"); ok {
						domain = after
					}
					switch {
					case c.kind.name != "domain" && c.kind.name != "email":
					case c.kind.name == "domain" && strings.Contains(v, "@"):
						warn(c, "write what follows the @, or email in place of domain", "domain is compared with what follows the @ of an address: %s has one itself", plain(v))
					case strings.ContainsFunc(domain, unicode.IsUpper):
						warn(c, fmt.Sprintf("write %s", plain(strings.Replace(v, domain, strings.ToLower(domain), 1))), "%s is compared letter by letter, and domains come in lower case: %s", c.kind.name, plain(v))
					}
				}
			}
		}
	}
	return problems
}

// impossible finds criteria that hold of nothing, by themselves.
func (p *Policy) impossible() []Problem {
	var problems []Problem
	for _, cl := range p.clauses() {
		for i := range cl.criteria {
			c := &cl.criteria[i]
			if why, hint := c.impossible(); why != "" {
				problems = append(problems, Problem{
					Line: c.line, Column: max(c.column, 1), Warning: true, Hint: hint,
					Message: fmt.Sprintf("%s can never be: %s", c, why),
				})
			}
		}
	}
	return problems
}

// impossible says why the criterion holds of nothing, "" where it may hold.
func (c *criterion) impossible() (why, hint string) {
	if tests, ok := c.operand.(listTests); ok {
		for _, t := range tests {
			if t.matcher == "exclude" && slices.ContainsFunc(tests, func(o test) bool { return o.matcher != "exclude" && o.values[0] == t.values[0] }) {
				return "it has and excludes the same", "remove one of them"
			}
		}
		return "", ""
	}
	values := c.exactly()
	switch {
	case values == nil:
		return "", ""
	case len(values) == 0:
		return "no value matches all of it", "remove what contradicts the rest"
	}
	fits := func(ok func(string) bool) bool { return slices.ContainsFunc(values, ok) }
	switch {
	case c.kind.name == "http_method" && !fits(func(v string) bool { return v == strings.ToUpper(v) }):
		return "methods are written in capitals", "write " + strings.ToUpper(values[0])
	case c.kind.name == "http_path" && !fits(func(v string) bool { return strings.HasPrefix(v, "/") }):
		return "a path begins with /", "write /" + values[0]
	}
	return "", ""
}

// Bounds on the work of idle: it doubles with each fact, and is done once for
// every criterion.
const (
	mostFacts = 8
	mostWork  = 1 << 16
)

// idle finds criteria without which every decision would be the same. It tries
// every case that there can be: who asks is signed in or not, and each different
// criterion holds or does not, as far as they can together.
func (p *Policy) idle() []Problem {
	e := (&Evaluator{query: &query{}}).For(p)
	facts, index := e.facts()
	if len(facts) > mostFacts || len(index)*len(index) > mostWork>>len(facts) {
		return nil
	}
	cases := consistent(facts)
	constant := make([]string, len(e.asks)) // by criterion, "" for none
	before := e.effects(cases, index, constant)
	dead := map[int]bool{} // operators that never hold
	var problems []Problem
	// From behind, so that of two that say the same the first one stays.
	for i := len(e.asks) - 1; i >= 0; i-- {
		c := e.criterionAt(i)
		if c.kind.input == "" || c.kind.name == "cors_preflight" || c.kind.name == "invalid_client_certificate" {
			continue // constants, and what the configuration adds
		}
		at := e.clauseOf(i)
		if dead[at] {
			continue // as all of it, which is told once
		}
		left, impossible := e.clauses[at].without(c)
		constant[i] = left
		if slices.Equal(e.effects(cases, index, constant), before) {
			problems = append(problems, Problem{
				Line: c.line, Column: max(c.column, 1), Warning: true,
				Message: fmt.Sprintf("%s never decides anything: every decision is the same without it", e.asks[i]),
				Hint:    "remove it, or look again at what the rules around it already say",
			})
			continue
		}
		constant[i] = impossible
		if impossible != "" && slices.Equal(e.effects(cases, index, constant), before) {
			problems = append(problems, Problem{
				Line: c.line, Column: max(c.column, 1), Warning: true,
				Message: fmt.Sprintf("%s never comes true together with what stands beside it", e.asks[i]),
				Hint:    "write or: where one of them is enough",
			})
			dead[at] = true
			continue
		}
		constant[i] = ""
	}
	return problems
}

// without is the code with which a criterion counts as if it was not written: the
// last one of an operator takes the operator with it. Impossible is, where all of
// several must hold, the code with which they never do.
func (cl *clause) without(c *criterion) (left, impossible string) {
	counts, countsNot := c.kind.pass, c.kind.fail
	if cl.inverts() {
		counts, countsNot = countsNot, counts
	}
	if cl.all() && len(cl.criteria) > 1 {
		return counts, countsNot
	}
	return countsNot, ""
}

// facts are the different criteria, and for each criterion the index of its own.
func (e *Evaluator) facts() (facts []*criterion, index []int) {
	known := map[string]int{}
	for i := range e.asks {
		c := e.criterionAt(i)
		key := c.key()
		at, ok := known[key]
		if !ok {
			at = len(facts)
			known[key] = at
			facts = append(facts, c)
		}
		index = append(index, at)
	}
	return facts, index
}

// situation is one case: whether somebody is signed in, and which facts hold.
type situation struct {
	signedIn bool
	holds    []bool
}

// consistent lists the cases that can be.
func consistent(facts []*criterion) []situation {
	var cases []situation
	for bits := range 1 << len(facts) {
		holds := make([]bool, len(facts))
		for i := range facts {
			holds[i] = bits>>i&1 == 1
		}
		for _, signedIn := range []bool{true, false} {
			if possible(facts, holds, signedIn) {
				cases = append(cases, situation{signedIn, holds})
			}
		}
	}
	return cases
}

func possible(facts []*criterion, holds []bool, signedIn bool) bool {
	for i, f := range facts {
		switch {
		case f.kind.name == "accept" && !holds[i], f.kind.name == "reject" && holds[i]:
			return false
		case f.aboutSession() && !signedIn && holds[i]:
			return false
		}
		for j, g := range facts {
			if i != j && holds[i] && (f.excludes(g) && holds[j] || f.implies(g) && !holds[j]) {
				return false
			}
		}
	}
	return true
}

// exactly are the only values with which the criterion holds, nil if others do.
func (c *criterion) exactly() []string {
	tests, ok := c.operand.(textTests)
	if !ok || c.kind.data != text {
		return nil
	}
	for _, t := range tests {
		if t.matcher == "is" || t.matcher == "in" {
			return slices.DeleteFunc(append([]string{}, t.values...), func(v string) bool { return !tests.hold(v) })
		}
	}
	return nil
}

// compares returns the values that d would look at where c holds, which knows its
// values; ok is false if they have nothing to do with one another.
func (c *criterion) compares(d *criterion) (values []string, tests textTests, ok bool) {
	tests, isText := d.operand.(textTests)
	values = c.exactly()
	switch {
	case values == nil || !isText:
		return nil, nil, false
	case c.kind.name == d.kind.name:
		return values, tests, true
	case c.kind.name == "email" && d.kind.name == "domain":
		for i, v := range values {
			if values[i], ok = domainOf(v); !ok {
				return nil, nil, false
			}
		}
		return values, tests, true
	}
	return nil, nil, false
}

// implies reports whether d holds wherever c does.
func (c *criterion) implies(d *criterion) bool {
	if d.kind.name == "authenticated_user" && c.aboutSession() {
		return true // whoever has an address has an id
	}
	if a, ok := c.operand.(networkSet); ok {
		b, ok := d.operand.(networkSet)
		return ok && b.covers(a)
	}
	values, tests, ok := c.compares(d)
	return ok && !slices.ContainsFunc(values, func(v string) bool { return !tests.hold(v) })
}

// excludes reports whether d never holds where c does.
func (c *criterion) excludes(d *criterion) bool {
	values, tests, ok := c.compares(d)
	return ok && !slices.ContainsFunc(values, tests.hold)
}

// covers reports whether every address of other is in ns.
func (ns networkSet) covers(other networkSet) bool {
	for _, o := range other {
		if !slices.ContainsFunc(ns, func(n netip.Prefix) bool { return n.Bits() <= o.Bits() && n.Contains(o.Addr()) }) {
			return false
		}
	}
	return true
}

// effects are the outcomes of all cases, with some criteria made constant.
func (e *Evaluator) effects(cases []situation, index []int, constant []string) []Effect {
	effects := make([]Effect, len(cases))
	codes := make([]string, len(index))
	for n, s := range cases {
		for i, at := range index {
			c := e.criterionAt(i)
			switch {
			case constant[i] != "":
				codes[i] = constant[i]
			case c.aboutSession() && !s.signedIn:
				codes[i] = unauthenticated
			case s.holds[at]:
				codes[i] = c.kind.pass
			default:
				codes[i] = c.kind.fail
			}
		}
		effects[n] = e.rule(simulated{e, codes}, nil).effect()
	}
	return effects
}
