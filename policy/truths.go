package policy

import "slices"

// requestCriterion is a criterion about the request, evaluated without Rego.
type requestCriterion struct {
	criterion
	key string
}

// maxTruths is how many bits there are.
const maxTruths = 64

// requestCriteria are the different criteria about the request, in order; many
// reports that there are too many of them for the bits.
func requestCriteria(p *Policy) (criteria []requestCriterion, many bool) {
	for _, cl := range p.clauses() {
		for _, c := range cl.criteria {
			key := c.key()
			known := func(other requestCriterion) bool { return other.key == key }
			if c.kind.session || c.kind.input == "" || slices.ContainsFunc(criteria, known) {
				continue
			}
			if len(criteria) == maxTruths {
				return nil, true
			}
			criteria = append(criteria, requestCriterion{c, key})
		}
	}
	return criteria, false
}

// RequestTruths are the truth values of the policy's criteria about the request,
// one bit each. If cacheable, the decision depends on nothing but the principal
// and these bits. (Had in its reasons is what the request at hand had.) A policy
// with more than 64 such criteria is not cacheable.
func (e *Evaluator) RequestTruths(r *Request) (bits uint64, cacheable bool) {
	if e.query.tooManyTruths {
		return 0, false
	}
	for i := range e.query.truths {
		if e.query.truths[i].holds(r) {
			bits |= 1 << i
		}
	}
	return bits, true
}

func (c *requestCriterion) holds(r *Request) bool {
	value := r.Method
	switch c.kind.name {
	case "cors_preflight":
		return r.Preflight
	case "http_path":
		value = r.Path
	}
	for _, t := range c.tests {
		if !t.holds(value) {
			return false
		}
	}
	return true
}
