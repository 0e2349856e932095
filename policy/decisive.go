package policy

import "context"

// Rule is one criterion where it stands.
type Rule struct {
	// Action is allow or deny, Operator and, or, not or nor.
	Action   string `json:"action"`
	Operator string `json:"operator"`
	// Text is what the criterion asks, such as "domain is example.com".
	Text string `json:"rule"`
	Line int    `json:"line"`
}

// Rules are the criteria of the policy, those of allow rules first.
func (e *Evaluator) Rules() []Rule {
	rules := make([]Rule, 0, len(e.asks))
	for _, cl := range e.clauses {
		for _, c := range cl.criteria {
			rules = append(rules, Rule{string(cl.action), cl.name, c.String(), c.line})
		}
	}
	return rules
}

// Decisive evaluates the policy and says of each of Rules whether the effect
// would have been another, had that one criterion come out the other way.
func (e *Evaluator) Decisive(ctx context.Context, in *Input) (Decision, []bool, error) {
	o, err := e.run(ctx, in)
	if err != nil {
		return Decision{}, nil, err
	}
	codes := o.codes(len(e.asks))
	effect := e.rule(simulated{e, codes}, nil).effect()
	decisive := make([]bool, len(codes))
	for i, code := range codes {
		codes[i] = e.criterionAt(i).other(code)
		decisive[i] = e.rule(simulated{e, codes}, nil).effect() != effect
		codes[i] = code
	}
	return e.decision(o, in), decisive, nil
}

// other is a code that the criterion has when it comes out the other way.
func (c *criterion) other(code string) string {
	if c.kind.holds(code) {
		return c.kind.fail
	}
	return c.kind.pass
}
