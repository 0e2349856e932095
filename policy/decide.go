package policy

import (
	"slices"
	"time"
)

// findings are what came out for each criterion, counted from 0, for each operator
// and for each action.
type findings interface {
	code(criterion int) string
	truth(clause int) bool
	of(a action) bool
}

// ruling is what decides, gathered from reasons.
type ruling struct {
	allow, deny bool
	// unauthenticated, noDevice and badDevice are whether a reason says so;
	// badCertificate whether one of a deny rule does.
	unauthenticated, noDevice, badDevice, badCertificate bool
}

// effect is the security decision. The order is that of the package comment.
func (r ruling) effect() Effect {
	switch {
	case r.badCertificate:
		return ClientCertificate
	case r.unauthenticated:
		return SignIn
	case r.noDevice:
		return Device
	case r.allow && !r.deny:
		return Allow
	case r.badDevice:
		return Device
	default:
		return Deny
	}
}

// add takes one reason into account.
func (r *ruling) add(a action, code string) {
	switch code {
	case unauthenticated:
		r.unauthenticated = true
	case deviceUnauthenticated:
		r.noDevice = true
	case deviceUnauthorized:
		r.badDevice = r.badDevice || r.deny == (a == deny)
	case certificateRequired, certificateInvalid:
		r.badCertificate = r.badCertificate || a == deny
	}
}

// rule gathers the reasons: the criteria that made their operator what it is, of
// the operators that made their action what it is. Visit, if set, is shown each.
func (e *Evaluator) rule(f findings, visit func(cl *clause, c *criterion, number int, code string)) ruling {
	r := ruling{allow: f.of(allow), deny: f.of(deny)}
	for i := range e.clauses {
		cl := &e.clauses[i]
		holds := f.truth(i)
		if holds != f.of(cl.action) {
			continue
		}
		for j := range cl.criteria {
			c, number := &cl.criteria[j], cl.first-1+j
			code := f.code(number)
			if (c.kind.holds(code) != cl.inverts()) != holds {
				continue
			}
			r.add(cl.action, code)
			if visit != nil {
				visit(cl, c, number, code)
			}
		}
	}
	return r
}

// decision is the effect with its reasons.
func (e *Evaluator) decision(o outcome, in *Input) Decision {
	d := Decision{Reasons: make([]Reason, 0, len(e.asks))}
	allows := 0
	r := e.rule(o, func(cl *clause, c *criterion, number int, code string) {
		d.Reasons = append(d.Reasons, Reason{
			Code: code, Action: string(cl.action), Rule: e.asks[number], Told: e.told[number],
			Line: c.line, Had: c.had(in), OfRequest: c.aboutRequest(),
		})
		if cl.action == allow {
			allows++
		}
	})
	d.Effect = r.effect()
	if d.Effect != Allow && d.Effect != SignIn {
		d.Refusals = d.Reasons[:allows:allows]
		if o.deny {
			d.Refusals = d.Reasons[allows:]
		}
		if d.MaxAge = e.staleSignIn(o, in); d.MaxAge > 0 {
			d.Effect = SignIn
		}
	}
	return d
}

// simulated are findings that follow from the codes of the criteria alone.
type simulated struct {
	e     *Evaluator
	codes []string
}

func (s simulated) code(i int) string { return s.codes[i] }

func (s simulated) truth(i int) bool {
	cl := &s.e.clauses[i]
	for j := range cl.criteria {
		counts := cl.criteria[j].kind.holds(s.codes[cl.first-1+j]) != cl.inverts()
		if counts != cl.all() {
			return counts
		}
	}
	return cl.all()
}

func (s simulated) of(a action) bool {
	for i := range s.e.clauses {
		if s.e.clauses[i].action == a && s.truth(i) {
			return true
		}
	}
	return false
}

// codes are those of the criteria, by number less one.
func (o outcome) codes(n int) []string {
	codes := make([]string, n)
	for i := range codes {
		codes[i] = o.code(i)
	}
	return codes
}

// criterionAt is the criterion with this number less one.
func (e *Evaluator) criterionAt(i int) *criterion {
	cl := &e.clauses[e.clauseOf(i)]
	return &cl.criteria[i-cl.first+1]
}

// clauseOf is the index of the clause that has the criterion with this number less
// one.
func (e *Evaluator) clauseOf(i int) int {
	return slices.IndexFunc(e.clauses, func(cl clause) bool { return i < cl.first-1+len(cl.criteria) })
}

// staleSignIn is the greatest age of a sign-in with which the person would be let
// in, as they would be by signing in now; 0 if that is not what keeps them out.
func (e *Evaluator) staleSignIn(o outcome, in *Input) time.Duration {
	if !e.query.asksAge || in.Principal == nil || in.Principal.ServiceAccount {
		return 0
	}
	codes := o.codes(len(e.asks))
	var limits []time.Duration
	for i := range codes {
		if limit, ok := e.criterionAt(i).operand.(maxAge); ok {
			limits = append(limits, time.Duration(limit))
		}
	}
	allows := func(age time.Duration) bool {
		for i := range codes {
			c := e.criterionAt(i)
			if limit, ok := c.operand.(maxAge); ok {
				codes[i] = c.kind.fail
				if age <= time.Duration(limit) {
					codes[i] = c.kind.pass
				}
			}
		}
		return e.rule(simulated{e, codes}, nil).effect() == Allow
	}
	if !allows(0) {
		return 0
	}
	slices.Sort(limits)
	for _, limit := range slices.Backward(slices.Compact(limits)) {
		if allows(limit) {
			return limit
		}
	}
	return 0
}
