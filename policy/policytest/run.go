package policytest

import (
	"context"
	"fmt"
	"slices"

	"github.com/countersign/countersign/policy"
)

// Runner decides cases. It compiles each distinct policy once. The zero value is
// ready; it is not for several goroutines.
type Runner struct {
	compiled map[string]*policy.Evaluator
	// own are evaluators that speak with the lines of their policy.
	own map[*policy.Policy]*policy.Evaluator
}

// Evaluator is a policy, compiled.
func (r *Runner) Evaluator(ctx context.Context, p *policy.Policy) (*policy.Evaluator, error) {
	if e := r.own[p]; e != nil {
		return e, nil
	}
	if r.own == nil {
		r.compiled, r.own = map[string]*policy.Evaluator{}, map[*policy.Policy]*policy.Evaluator{}
	}
	key := p.Key()
	if r.compiled[key] == nil {
		e, err := policy.Compile(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("compile: %w", err)
		}
		r.compiled[key] = e
	}
	e := r.compiled[key].For(p)
	r.own[p] = e
	return e, nil
}

// evaluator is the policy of a case that runs, compiled.
func (r *Runner) evaluator(ctx context.Context, c *Case) (*policy.Evaluator, error) {
	if !c.Runs() {
		return nil, fmt.Errorf("test %q has problems", c.Name)
	}
	e, err := r.Evaluator(ctx, c.Policy)
	if err != nil {
		return nil, fmt.Errorf("the policy of test %q: %w", c.Name, err)
	}
	return e, nil
}

// Decide decides a case that runs.
func (r *Runner) Decide(ctx context.Context, c *Case) (policy.Decision, error) {
	e, err := r.evaluator(ctx, c)
	if err != nil {
		return policy.Decision{}, err
	}
	d, err := e.Evaluate(ctx, c.Input)
	if err != nil {
		return policy.Decision{}, fmt.Errorf("test %q: %w", c.Name, err)
	}
	return d, nil
}

// Report is what tests showed.
type Report struct {
	Passed int      `json:"passed"`
	Failed int      `json:"failed"`
	Tests  []Result `json:"tests"`
	// Coverage has one entry for each distinct policy that a test reached; nil
	// if it was not asked for.
	Coverage []Coverage `json:"coverage,omitempty"`
	// Untested are the routes whose policy no test reached.
	Untested []string `json:"untested_routes,omitempty"`
}

// Result is what one test showed.
type Result struct {
	Name string `json:"name"`
	File string `json:"file"`
	Line int    `json:"line"`
	// Route is "" for an inline policy.
	Route   string        `json:"route,omitempty"`
	Person  string        `json:"person"`
	Request string        `json:"request"`
	Passed  bool          `json:"passed"`
	Want    policy.Effect `json:"want"`
	Got     policy.Effect `json:"got"`
	// WantReasons is nil where the reasons don't matter.
	WantReasons []string `json:"want_reasons,omitzero"`
	// Reasons are why Got.
	Reasons []policy.Reason `json:"reasons"`
	// PolicyFile is the file that the lines of reasons are of; "" if there may be
	// two.
	PolicyFile string `json:"policy_file,omitempty"`
	// Rules are, where the test failed, how each came out.
	Rules []policy.ExplainedRule `json:"rules,omitempty"`
}

// Coverage says which criteria of a policy mattered to any test.
type Coverage struct {
	// Routes share the policy, as far as a test reached them; Inline are the places
	// of tests that have it inline.
	Routes []string `json:"routes,omitempty"`
	Inline []string `json:"inline,omitempty"`
	// PolicyFile is the file that the lines are of; "" if there may be two.
	PolicyFile string `json:"policy_file,omitempty"`
	// Rules counts the criteria. Never are those that decided no test: with the
	// opposite result of one, each test would have come out the same.
	Rules int           `json:"rules"`
	Never []policy.Rule `json:"never_decisive"`
}

// Run runs cases, none of which may have problems. The coverage is that of the world
// they were bound to; nil leaves it out.
func Run(ctx context.Context, cases []*Case, covering *World) (*Report, error) {
	r := &run{report: &Report{Tests: []Result{}}, covered: map[string]*covered{}}
	for _, c := range cases {
		if err := r.run(ctx, c, covering != nil); err != nil {
			return nil, err
		}
	}
	if covering == nil {
		return r.report, nil
	}
	for _, key := range r.order {
		r.report.Coverage = append(r.report.Coverage, r.covered[key].coverage())
	}
	for i := range covering.Routes {
		if route := &covering.Routes[i]; r.covered[route.Policy.Key()] == nil {
			r.report.Untested = append(r.report.Untested, route.Name)
		}
	}
	return r.report, nil
}

type run struct {
	runner  Runner
	report  *Report
	covered map[string]*covered
	order   []string
}

// covered is what tests have shown of one policy.
type covered struct {
	evaluator      *policy.Evaluator
	routes, inline []string
	file           string
	decisive       []bool
}

func (r *run) run(ctx context.Context, c *Case, coverage bool) error {
	e, err := r.runner.evaluator(ctx, c)
	if err != nil {
		return err
	}
	var d policy.Decision
	if coverage {
		d, err = r.cover(ctx, e, c)
	} else {
		d, err = r.runner.Decide(ctx, c)
	}
	if err != nil {
		return err
	}
	result := Result{
		Name: c.Name, File: c.File, Line: c.Line, Route: c.RouteName(), Person: c.Person(), Request: c.Asks(),
		Want: c.Want, Got: d.Effect, WantReasons: c.Reasons, Reasons: d.Reasons, PolicyFile: c.policyFile(),
	}
	result.Passed = d.Effect == c.Want && (c.Reasons == nil || among(c.Reasons, d.Codes()))
	if result.Passed {
		r.report.Passed++
	} else {
		r.report.Failed++
		x, err := e.Explain(ctx, c.Input)
		if err != nil {
			return fmt.Errorf("explain test %q: %w", c.Name, err)
		}
		result.Rules = x.Rules
	}
	r.report.Tests = append(r.report.Tests, result)
	return nil
}

// cover decides a case and notes what was decisive.
func (r *run) cover(ctx context.Context, e *policy.Evaluator, c *Case) (policy.Decision, error) {
	d, decisive, err := e.Decisive(ctx, c.Input)
	if err != nil {
		return policy.Decision{}, fmt.Errorf("test %q: %w", c.Name, err)
	}
	key := c.Policy.Key()
	seen := r.covered[key]
	if seen == nil {
		seen = &covered{evaluator: e, file: c.policyFile(), decisive: make([]bool, len(e.Rules()))}
		r.covered[key] = seen
		r.order = append(r.order, key)
	}
	names, name := &seen.routes, c.RouteName()
	if c.Route == nil {
		names, name = &seen.inline, fmt.Sprintf("%s:%d", c.File, c.policy.Line)
	}
	if !slices.Contains(*names, name) {
		*names = append(*names, name)
	}
	for i := range seen.decisive {
		seen.decisive[i] = seen.decisive[i] || i < len(decisive) && decisive[i]
	}
	return d, nil
}

func (c *covered) coverage() Coverage {
	rules := c.evaluator.Rules()
	result := Coverage{Routes: c.routes, Inline: c.inline, PolicyFile: c.file, Rules: len(rules), Never: []policy.Rule{}}
	for i, rule := range rules {
		if !c.decisive[i] {
			result.Never = append(result.Never, rule)
		}
	}
	return result
}

// policyFile is the file that the lines of the case's policy are of. An inline
// policy that names others has lines of two.
func (c *Case) policyFile() string {
	switch {
	case c.Route != nil:
		return c.Route.File
	case namesOthers(c.policy):
		return ""
	}
	return c.File
}

// among reports whether every one of some is in all.
func among(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}
