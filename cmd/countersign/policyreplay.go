package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
	"github.com/countersign/countersign/policy/policytest"
)

// maxChanges bounds the groups of changed decisions, which strangers can make
// many: every route times every person.
const maxChanges = 10_000

// replayed is what both configurations make of the decisions of a log.
type replayed struct {
	Log       string `json:"log"`
	Decisions int    `json:"decisions"`
	// Changed is how many would be decided otherwise, Same how many not.
	Changed int `json:"changed"`
	Same    int `json:"same"`
	// Undecidable are decisions that depend on what the log does not hold, by what
	// that is.
	Undecidable map[string]int `json:"undecidable"`
	// Neither are requests to routes that neither configuration has.
	Neither int `json:"neither"`
	// Unlike are decisions that the old configuration would have made otherwise:
	// the log is another one's. FirstUnlike is the request id of one.
	Unlike      int    `json:"unlike_old"`
	FirstUnlike string `json:"first_unlike_old,omitempty"`
	// Broken are lines that cannot be read.
	Broken  int             `json:"broken"`
	Changes []*changedGroup `json:"changes"`
	// More are changed decisions of groups beyond those listed.
	More int `json:"more"`

	brokenBy error
	groups   map[groupKey]*changedGroup
}

func (r *replayed) changed() bool { return r.Changed > 0 }

type groupKey struct{ route, person, from, to string }

// changedGroup are the decisions of a route about a person that change in the
// same way.
type changedGroup struct {
	Route    string       `json:"route"`
	Person   string       `json:"person"`
	From     string       `json:"from"`
	To       string       `json:"to"`
	Requests int          `json:"requests"`
	First    firstRequest `json:"first"`
	// Because says what decides the first now.
	Because []string `json:"because"`
}

type firstRequest struct {
	Time      time.Time `json:"time"`
	Method    string    `json:"method"`
	Host      string    `json:"host"`
	Path      string    `json:"path"`
	RequestID string    `json:"request_id"`
}

// replay lets both configurations decide what a log has.
func replay(c *cobra.Command, name string, before, after *config.Config) (*replayed, error) {
	sides, err := newSides(before, after)
	if err != nil {
		return nil, err
	}
	log, err := openLog(c, name)
	if err != nil {
		return nil, err
	}
	r := &replayed{Log: log.name, Undecidable: map[string]int{}, Changes: []*changedGroup{}, groups: map[groupKey]*changedGroup{}}
	err = log.each(c.Context(), nil, func(check *authz.LoggedCheck) error { return r.add(c.Context(), check, sides) })
	if err != nil {
		return nil, err
	}
	r.Decisions, r.Broken, r.brokenBy = log.decisions, log.broken, log.brokenBy
	slices.SortStableFunc(r.Changes, func(a, b *changedGroup) int {
		return cmp.Or(strings.Compare(a.Route, b.Route), cmp.Compare(b.Requests, a.Requests))
	})
	return r, nil
}

// add lets both sides decide one request.
func (r *replayed) add(ctx context.Context, check *authz.LoggedCheck, sides [2]*side) error {
	if slices.Contains(check.Deny, "malformed-path") { // whatever the policy
		r.Same++
		return nil
	}
	before, after := sides[0].place(check), sides[1].place(check)
	if before.route == nil && after.route == nil && check.RouteID != "" {
		r.Neither++
		return nil
	}
	was, err := sides[0].decide(ctx, check, before)
	if err != nil {
		return err
	}
	logged := effectOf(check)
	if len(was.unknown) == 0 && was.effect != logged && logged != "unavailable" {
		if r.Unlike++; r.FirstUnlike == "" {
			r.FirstUnlike = check.RequestID
		}
	}
	if sameVerdicts(sides, before, after) {
		r.Same++
		return nil
	}
	now, err := sides[1].decide(ctx, check, after)
	if err != nil {
		return err
	}
	unknown := slices.Compact(slices.Sorted(slices.Values(slices.Concat(was.unknown, now.unknown))))
	switch {
	case len(unknown) > 0:
		r.Undecidable[strings.Join(unknown, ", ")]++
	case was.effect == now.effect:
		r.Same++
	default:
		r.Changed++
		r.group(check, before, after, was, now)
	}
	return nil
}

// group counts a changed decision.
func (r *replayed) group(check *authz.LoggedCheck, before, after place, was, now verdict) {
	route := check.Host // of a request that had no route and has one now, or the reverse
	if before.route != nil {
		route = before.route.Name
	}
	if after.route != nil {
		route = after.route.Name
	}
	key := groupKey{route, personOf(check), was.effect, now.effect}
	g := r.groups[key]
	if g == nil {
		if len(r.groups) == maxChanges {
			r.More++
			return
		}
		g = &changedGroup{
			Route: route, Person: key.person, From: was.effect, To: now.effect, Because: now.because,
			First: firstRequest{check.Time, check.Method, check.Host, check.Path, check.RequestID},
		}
		r.groups[key] = g
		r.Changes = append(r.Changes, g)
	}
	g.Requests++
}

// sameVerdicts reports whether both sides must decide alike, whatever the input.
func sameVerdicts(sides [2]*side, before, after place) bool {
	if before.route == nil || after.route == nil {
		return before == after
	}
	a, b := sides[0].judge(before.route), sides[1].judge(after.route)
	return a.key == b.key && (!a.reads.Certificate || reflect.DeepEqual(sides[0].cfg.DownstreamMTLS, sides[1].cfg.DownstreamMTLS))
}

// side is one of the two configurations, ready to decide.
type side struct {
	cfg    *config.Config
	table  *routeTable
	judges map[*config.Route]*judge
	// runner compiles the policies of both sides.
	runner *policytest.Runner
}

// judge is what is known of a route's policy before it decides.
type judge struct {
	key   string
	reads policy.Reads
}

func newSides(before, after *config.Config) (sides [2]*side, err error) {
	runner := &policytest.Runner{}
	for i, cfg := range []*config.Config{before, after} {
		s := &side{cfg: cfg, judges: map[*config.Route]*judge{}, runner: runner}
		if s.table, err = newRouteTable(cfg); err != nil {
			return sides, err
		}
		sides[i] = s
	}
	return sides, nil
}

func (s *side) judge(r *config.Route) *judge {
	j := s.judges[r]
	if j == nil {
		j = &judge{key: r.Policy.Key(), reads: r.Policy.Reads()}
		s.judges[r] = j
	}
	return j
}

// maxPath is where the log cuts paths.
const maxPath = 1 << 10

// place is where a request of the log ends. The log knows the whole of its path,
// or else at least the route.
func (s *side) place(check *authz.LoggedCheck) place {
	if len(check.Path) > maxPath {
		if r := byIDOrName(s.cfg.Routes, check); r != nil {
			return place{route: r}
		}
	}
	return s.table.find(check.Host, check.Path)
}

// verdict is what a side makes of a request.
type verdict struct {
	// effect is that of a policy, or no-route.
	effect  string
	because []string
	// unknown is what the decision depends on and the log does not hold.
	unknown []string
}

func (s *side) decide(ctx context.Context, check *authz.LoggedCheck, end place) (verdict, error) {
	if end.route == nil {
		return verdict{effect: "no-route", because: []string{end.why}}, nil
	}
	v := verdict{unknown: check.Unknown(s.judge(end.route).reads)}
	if len(v.unknown) > 0 {
		return v, nil
	}
	e, err := s.runner.Evaluator(ctx, end.route.Policy)
	if err != nil {
		return verdict{}, fmt.Errorf("the policy of %s: %w", end.route.Name, err)
	}
	d, err := e.Evaluate(ctx, check.Input())
	if err != nil {
		return verdict{}, fmt.Errorf("evaluate the policy of %s: %w", end.route.Name, err)
	}
	v.effect, v.because = d.Effect.String(), because(d)
	return v, nil
}

// maxBecause is how many reasons a change is given.
const maxBecause = 5

// because says in words what made a decision.
func because(d policy.Decision) []string {
	reasons := d.Reasons
	if d.Effect == policy.Deny {
		if reasons = d.Refusals; len(reasons) == 0 {
			return []string{"no rule allows anyone"}
		}
	}
	said := []string{}
	for i, reason := range reasons {
		if i == maxBecause {
			return append(said, fmt.Sprintf("and %d more", len(reasons)-i))
		}
		text := fmt.Sprintf("%s: %s (line %d)", reason.Code, reason.Rule, reason.Line)
		if reason.Had != "" {
			text += ", had " + shown(reason.Had)
		}
		said = append(said, text)
	}
	return said
}

// print is for a terminal.
func (r *replayed) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s of %s, decided by both:\n", count(r.Decisions, "decision"), r.Log)
	for _, g := range r.Changes {
		fmt.Fprintf(w, "  %s: %s: %s → %s, %s, first %s %s at %s, because %s\n", shown(g.Route), shown(g.Person), g.From, g.To,
			count(g.Requests, "request"), shown(g.First.Method), shown(g.First.Path), g.First.Time.UTC().Format(time.RFC3339), strings.Join(g.Because, "; "))
	}
	if r.More > 0 {
		fmt.Fprintf(w, "  and %d more changed, on other routes or for other people\n", r.More)
	}
	fmt.Fprintf(w, "  %d changed, %d the same\n", r.Changed, r.Same)
	for _, what := range slices.Sorted(maps.Keys(r.Undecidable)) {
		fmt.Fprintf(w, "  %d cannot be decided: the log does not hold %s\n", r.Undecidable[what], what)
	}
	if r.Neither > 0 {
		fmt.Fprintf(w, "  %d went to routes that neither configuration has\n", r.Neither)
	}
	if r.Unlike > 0 {
		fmt.Fprintf(w, "  %d were decided otherwise than OLD decides, the first with request id %s: the log is of another configuration, or of other times\n", r.Unlike, shown(r.FirstUnlike))
	}
	if r.Broken > 0 {
		fmt.Fprintf(w, "  %d cannot be read, the first: %v\n", r.Broken, r.brokenBy)
	}
}
