package policy

import "slices"

// truth is something about a request, or about the time, that a decision depends
// on, found out without Rego.
type truth struct {
	key   string
	holds func(in *Input) bool
}

// maxTruths is how many bits there are.
const maxTruths = 64

// readTruths are the different truths that a policy's decision depends on besides
// the principal. They cannot be had if there are more than there are bits, or if a
// module in Rego looks at the request.
func readTruths(p *Policy) (truths []truth, cacheable bool) {
	add := func(t truth) {
		if !slices.ContainsFunc(truths, func(other truth) bool { return other.key == t.key }) {
			truths = append(truths, t)
		}
	}
	for _, cl := range p.clauses() {
		for i := range cl.criteria {
			c := &cl.criteria[i]
			if m, ok := c.operand.(*moduleRule); ok && m.readsRequest() {
				return nil, false
			}
			if !c.aboutRequest() {
				continue
			}
			add(truth{c.key(), c.holds})
			if c.kind.name == "invalid_client_certificate" {
				// To have none and to have a bad one are different reasons.
				add(truth{"presented", func(in *Input) bool { return in.Request.Certificate != nil }})
			}
		}
	}
	return truths, len(truths) <= maxTruths
}

// Truths are the truth values of the policy's criteria about the request and the
// time, one bit each. If cacheable, the decision depends on nothing but the policy,
// the principal, the records of the principal and these bits. (Had in its reasons is
// what the request at hand had.) A policy with more than 64 such criteria is not
// cacheable, nor is one with a rule in Rego that looks at the request.
func (e *Evaluator) Truths(in *Input) (bits uint64, cacheable bool) {
	if !e.query.cacheable {
		return 0, false
	}
	for i := range e.query.truths {
		if e.query.truths[i].holds(in) {
			bits |= 1 << i
		}
	}
	return bits, true
}

// holds evaluates a criterion about the request or the time as Rego does.
func (c *criterion) holds(in *Input) bool {
	switch m := c.operand.(type) {
	case textTests:
		if c.kind.data == repeated {
			return m.holdAll(c.list(in), c.keepsOut)
		}
		value, ok := c.text(in)
		return ok && m.hold(value)
	case networkSet:
		return in.Request.IP.IsValid() && m.hold(in.Request.IP)
	case certificateMatch:
		return m.hold(in.Request.Certificate)
	case dateSpan:
		return timely(in.Time) && m.hold(in.Time)
	case weekdaySet:
		return timely(in.Time) && m.hold(in.Time)
	case clockSpan:
		return timely(in.Time) && m.hold(in.Time)
	case *recordMatch:
		return m.hold(in)
	case maxAge:
		return m.hold(in)
	}
	switch c.kind.name {
	case "cors_preflight":
		return in.Request.Preflight
	case "invalid_client_certificate":
		return in.Request.CertificateProblem != ""
	}
	return false
}
