package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Effect is the outcome of evaluating a policy. The zero value denies, so a
// forgotten return cannot let a request through.
type Effect int

// The outcomes.
const (
	Deny Effect = iota
	Allow
	// SignIn asks who it is, or, where Decision.MaxAge is set, asks again.
	SignIn
	// ClientCertificate refuses a client for its certificate, or for having none.
	ClientCertificate
	// Device refuses a device that is not enrolled or not approved.
	Device

	// Effects is how many outcomes there are.
	Effects = iota
)

// String returns deny, allow, sign-in, client-certificate or device.
func (e Effect) String() string {
	switch e {
	case Allow:
		return "allow"
	case SignIn:
		return "sign-in"
	case ClientCertificate:
		return "client-certificate"
	case Device:
		return "device"
	default:
		return "deny"
	}
}

// MarshalText is String.
func (e Effect) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// Decision is an effect and why.
type Decision struct {
	Effect Effect `json:"effect"`
	// Reasons are in the order of the policy, those of allow rules first.
	Reasons []Reason `json:"reasons"`
	// Refusals are, unless Effect is Allow or asks a stranger to sign in, the
	// reasons that refused: the criteria that deny, or else those that allow and
	// were not met. They share memory with Reasons and are empty where no rule
	// allows anyone.
	Refusals []Reason `json:"refusals,omitempty"`
	// MaxAge is, where Effect is SignIn for a sign-in that is too old, how old it
	// may be; else 0.
	MaxAge time.Duration `json:"max_age,omitempty"`
}

// Reason is a criterion that had a part in a decision.
type Reason struct {
	// Code is the criterion's result, such as domain-ok.
	Code string `json:"code"`
	// Action is that of the rule, allow or deny.
	Action string `json:"action"`
	// Rule is what the criterion asks, such as "domain is example.com" or
	// "not (email is a@example.com)".
	Rule string `json:"rule"`
	// Told is what of Rule whoever was refused may be told. What a header, a
	// parameter, an address, a certificate or a record is compared with is not in
	// it: to know it may be all that it takes.
	Told string `json:"-"`
	// Line is where the criterion is written, 0 if nowhere.
	Line int `json:"line"`
	// Had is what the caller had instead of what Rule asks: an address, a domain, a
	// user id, a method or a path. It comes from the request or the identity
	// provider and is cut to 256 bytes. It is empty for groups, claims, records and
	// what else may be long or private.
	Had string `json:"had,omitempty"`
	// OfRequest is whether Had is of the request and not of who asks: the next
	// request of the same person may have had another.
	OfRequest bool `json:"-"`
}

// Codes are the codes of the reasons, each once, in order.
func (d Decision) Codes() []string {
	codes := make([]string, 0, len(d.Reasons))
	for _, r := range d.Reasons {
		if !slices.Contains(codes, r.Code) {
			codes = append(codes, r.Code)
		}
	}
	return codes
}

// Evaluator is a compiled policy. It may be used from many goroutines.
type Evaluator struct {
	query   *query
	policy  *Policy
	clauses []clause
	// asks are the criteria, by number less one, as reasons show them, and told as
	// they show them to whom they refused.
	asks, told []string
}

// query is what evaluators of equal policies share: it knows no lines.
type query struct {
	compiler    *ast.Compiler
	body        ast.Body
	store       storage.Store
	transaction storage.Transaction
	inputs      inputs
	truths      []truth
	cacheable   bool
	// foreign is whether people wrote some of the modules.
	foreign bool
	// asksAge is whether there is an auth_time.
	asksAge bool
	reads   Reads
}

// compileTimeout bounds what a policy can make a compiler do. Without rules in Rego
// a policy takes about a millisecond.
const compileTimeout = 10 * time.Second

// Compile prepares a policy for evaluation.
//
// The module already holds the policy's constants, so OPA's partial evaluation
// finds nothing to fold; on such modules it was measured to be slower.
func Compile(ctx context.Context, p *Policy) (*Evaluator, error) {
	if len(modules(p)) == 1 {
		return build(ctx, p)
	}
	// What people wrote in Rego may keep the compiler busy, which knows no context.
	// One that does not end is left to itself.
	type result struct {
		e   *Evaluator
		err error
	}
	done := make(chan result, 1)
	go func() {
		e, err := build(ctx, p)
		done <- result{e, err}
	}()
	limited, cancel := context.WithTimeout(ctx, compileTimeout)
	defer cancel()
	select {
	case r := <-done:
		return r.e, r.err
	case <-limited.Done():
		return nil, fmt.Errorf("compile policy module: it is too complex: %w", limited.Err())
	}
}

func build(ctx context.Context, p *Policy) (*Evaluator, error) {
	parsed := map[string]*ast.Module{}
	needed := capabilities()
	for i, m := range modules(p) {
		module, err := ast.ParseModuleWithOpts(m.name, m.source, ast.ParserOptions{RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, fmt.Errorf("parse policy module: %w", err)
		}
		parsed[m.name] = module
		if i > 0 {
			needed = ruleCapabilities()
		}
	}
	compiler := ast.NewCompiler().WithStrict(true).WithCapabilities(needed)
	compiler.Compile(parsed)
	if compiler.Failed() {
		return nil, fmt.Errorf("compile policy module: %w", compiler.Errors)
	}
	q := &query{compiler: compiler, store: inmem.New(), foreign: len(parsed) > 1}
	body, err := ast.ParseBody("data.countersign.policy.result = result")
	if err != nil {
		return nil, fmt.Errorf("parse policy query: %w", err)
	}
	if q.body, err = compiler.QueryCompiler().Compile(body); err != nil {
		return nil, fmt.Errorf("compile policy query: %w", err)
	}
	// The store is empty for good, so one transaction serves every evaluation.
	if q.transaction, err = q.store.NewTransaction(ctx); err != nil {
		return nil, fmt.Errorf("open policy store: %w", err)
	}
	q.inputs = readInputs(p)
	q.truths, q.cacheable = readTruths(p)
	q.reads = p.Reads()
	q.asksAge = q.reads.AuthTime
	return (&Evaluator{query: q}).For(p), nil
}

// capabilities are the built-in functions that criteria need. None reaches outside.
func capabilities() *ast.Capabilities {
	needed := []string{
		"eq", "assign", "equal", "neq", "lt", "lte", "gt", "gte", "plus", "minus", "mul", "rem", "count", "contains", "startswith", "endswith",
		"internal.member_2", "object.get", "net.cidr_contains", "time.clock", "time.weekday",
	}
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !slices.Contains(needed, b.Name) })
	c.AllowNet = []string{}
	return c
}

// For returns an evaluator that shares the compiled query of e and speaks with
// the lines of p, whose Key must be that of the policy e was compiled from.
func (e *Evaluator) For(p *Policy) *Evaluator {
	result := &Evaluator{query: e.query, policy: p, clauses: p.clauses()}
	for _, cl := range result.clauses {
		for i := range cl.criteria {
			asks, told := cl.criteria[i].String(), cl.criteria[i].told()
			if cl.inverts() {
				asks, told = "not ("+asks+")", "not ("+told+")"
			}
			result.asks, result.told = append(result.asks, asks), append(result.told, told)
		}
	}
	return result
}

// ReadsSession reports whether the decision can depend on who asks.
func (e *Evaluator) ReadsSession() bool { return e.query.inputs.session != nil }

// Foreign reports whether people wrote some of the policy's Rego: to evaluate it
// may take up to a second of a processor.
func (e *Evaluator) Foreign() bool { return e.query.foreign }

// Evaluate decides. An error, a context that has ended included, is never a
// decision: the caller cannot tell who may enter.
func (e *Evaluator) Evaluate(ctx context.Context, in *Input) (Decision, error) {
	r, err := e.run(ctx, in)
	if err != nil {
		return Decision{}, err
	}
	return e.decision(r, in), nil
}

// outcome is what the module says: what came out for each action, each criterion
// and each operator, the latter two in the order of clauses.
type outcome struct {
	allow, deny bool
	// elements hold, from the index criteria on, the codes of the criteria and,
	// from the index operators on, the truths of the operators.
	elements            *ast.Array
	criteria, operators int
}

func (o outcome) of(a action) bool {
	if a == deny {
		return o.deny
	}
	return o.allow
}

// code is the reason code of criterion i, counted from 0.
func (o outcome) code(i int) string {
	return string(o.elements.Elem(o.criteria + i).Value.(ast.String))
}

// truth is the result of operator i.
func (o outcome) truth(i int) bool { return bool(o.elements.Elem(o.operators + i).Value.(ast.Boolean)) }

// evaluateTimeout bounds what rules that people wrote in Rego may take.
const evaluateTimeout = time.Second

// mostForeign is the longest text of a request that a rule in Rego is given: what
// it makes of one may be many times as long.
const mostForeign = 8 << 10

// fit reports whether rules in Rego may be given what they read of a request.
func (e *Evaluator) fit(r *Request) bool {
	if len(r.Path) > mostForeign || len(e.query.reads.Query) > 0 && len(r.Query) > mostForeign {
		return false
	}
	for _, name := range e.query.reads.Headers {
		size := 0
		if r.Headers != nil {
			for _, value := range r.Headers.Values(name) {
				size += len(value)
			}
		}
		if size > mostForeign {
			return false
		}
	}
	return true
}

// withoutValues is an error of an evaluation as logs may have it: what Rego says of
// a function's mistake has the function's operands in it.
func withoutValues(err error) error {
	var rule *topdown.Error
	if !errors.As(err, &rule) || rule.Code != topdown.BuiltinErr {
		return err
	}
	function, _, _ := strings.Cut(rule.Message, ":")
	row := 0
	if rule.Location != nil {
		row = rule.Location.Row
	}
	return fmt.Errorf("%s: %s failed in line %d of the module", rule.Code, function, row)
}

func (e *Evaluator) run(ctx context.Context, in *Input) (outcome, error) {
	if e.query.foreign {
		if !e.fit(&in.Request) {
			return outcome{}, fmt.Errorf("evaluate policy: the request has a text of more than %d bytes, too long for a rule in Rego", mostForeign)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, evaluateTimeout)
		defer cancel()
	}
	q := topdown.NewQuery(e.query.body).
		WithCompiler(e.query.compiler).
		WithStore(e.query.store).
		WithTransaction(e.query.transaction).
		WithInput(e.query.inputs.term(in)).
		WithMetrics(metrics.NoOp()).
		WithStrictBuiltinErrors(true)
	if ctx.Done() != nil {
		cancel := topdown.NewCancel()
		q = q.WithCancel(cancel)
		stop := context.AfterFunc(ctx, cancel.Cancel)
		defer stop()
	}
	var result *ast.Term
	err := q.Iter(ctx, func(r topdown.QueryResult) error {
		result = r["result"]
		return nil
	})
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return outcome{}, fmt.Errorf("evaluate policy: %w", withoutValues(err))
	}
	o, ok := e.outcome(result)
	if !ok {
		return outcome{}, errors.New("evaluate policy: the module returned something unexpected")
	}
	return o, nil
}

// outcome checks the whole of a result, so that reading it cannot go wrong.
func (e *Evaluator) outcome(result *ast.Term) (o outcome, ok bool) {
	if result == nil {
		return o, false
	}
	const actions = 2
	elements, ok := result.Value.(*ast.Array)
	if !ok || elements.Len() != actions+len(e.asks)+len(e.clauses) {
		return o, false
	}
	allowed, ok1 := elements.Elem(0).Value.(ast.Boolean)
	denied, ok2 := elements.Elem(1).Value.(ast.Boolean)
	if !ok1 || !ok2 {
		return o, false
	}
	o = outcome{bool(allowed), bool(denied), elements, actions, actions + len(e.asks)}
	for i := range e.asks {
		if _, ok := elements.Elem(o.criteria + i).Value.(ast.String); !ok {
			return o, false
		}
	}
	for i := range e.clauses {
		if _, ok := elements.Elem(o.operators + i).Value.(ast.Boolean); !ok {
			return o, false
		}
	}
	return o, true
}
