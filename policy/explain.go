package policy

import (
	"context"
	"fmt"
	"strings"
)

// Explanation is a decision with the result of every rule, in the order of the
// policy.
type Explanation struct {
	Decision Decision        `json:"decision"`
	Rules    []ExplainedRule `json:"rules"`
}

// ExplainedRule is one allow or deny of a policy.
type ExplainedRule struct {
	Action    string              `json:"action"`
	Line      int                 `json:"line"`
	Holds     bool                `json:"holds"`
	Operators []ExplainedOperator `json:"operators"`
}

// ExplainedOperator is one of and, or, not and nor.
type ExplainedOperator struct {
	Operator string               `json:"operator"`
	Line     int                  `json:"line"`
	Holds    bool                 `json:"holds"`
	Criteria []ExplainedCriterion `json:"criteria"`
}

// ExplainedCriterion is a criterion before its operator turns its result round.
type ExplainedCriterion struct {
	Rule  string `json:"rule"`
	Line  int    `json:"line"`
	Holds bool   `json:"holds"`
	Code  string `json:"code"`
	// Had is what the caller had, lists and claims included, cut to 256 bytes.
	Had string `json:"had,omitempty"`
	// Near is how close a criterion that failed was: "has group eng, needs
	// engineering". It is "" where it was not close.
	Near string `json:"near,omitempty"`
	// Reads is what the criterion looks at.
	Reads Reads `json:"-"`
}

// Explain evaluates the policy as Evaluate does and says how each rule came out.
func (e *Evaluator) Explain(ctx context.Context, in *Input) (Explanation, error) {
	result, err := e.run(ctx, in)
	if err != nil {
		return Explanation{}, err
	}
	x := Explanation{Decision: e.decision(result, in), Rules: []ExplainedRule{}}
	for i, r := range e.policy.rules {
		explained := ExplainedRule{Action: string(r.action), Line: r.line, Operators: []ExplainedOperator{}}
		for k, cl := range e.clauses {
			if cl.rule != i {
				continue
			}
			operator := ExplainedOperator{Operator: cl.name, Line: cl.line, Holds: result.truth(k)}
			for j := range cl.criteria {
				operator.Criteria = append(operator.Criteria, explain(&cl.criteria[j], result.code(cl.first-1+j), in))
			}
			explained.Operators = append(explained.Operators, operator)
			explained.Holds = explained.Holds || operator.Holds
		}
		x.Rules = append(x.Rules, explained)
	}
	return x, nil
}

func explain(c *criterion, code string, in *Input) ExplainedCriterion {
	x := ExplainedCriterion{Rule: c.String(), Line: c.line, Holds: c.kind.holds(code), Code: code, Had: c.hadAll(in)}
	x.Reads.addCriterion(c)
	if !x.Holds && code != unauthenticated {
		x.Near = c.near(in)
	}
	return x
}

// String is the explanation for a terminal, one line for each rule, operator and
// criterion.
func (x Explanation) String() string {
	var b strings.Builder
	b.WriteString(x.Decision.Effect.String())
	if x.Decision.MaxAge > 0 {
		fmt.Fprintf(&b, " again: the sign-in may be %s old", shortDuration(x.Decision.MaxAge))
	}
	b.WriteByte('\n')
	for _, r := range x.Rules {
		fmt.Fprintf(&b, "  %-5t %s (line %d)\n", r.Holds, r.Action, r.Line)
		for _, o := range r.Operators {
			fmt.Fprintf(&b, "    %-5t %s (line %d)\n", o.Holds, o.Operator, o.Line)
			for _, c := range o.Criteria {
				fmt.Fprintf(&b, "      %-5t %s (line %d): %s", c.Holds, c.Rule, c.Line, c.Code)
				if c.Had != "" {
					fmt.Fprintf(&b, ", had %s", plain(c.Had))
				}
				if c.Near != "" {
					fmt.Fprintf(&b, "; %s", c.Near)
				}
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}
