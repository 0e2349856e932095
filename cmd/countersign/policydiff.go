package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// diffFlags say what to compare two configurations by.
type diffFlags struct {
	// old and now are the files, as they were given.
	old, now       string
	replay, output string
	tests          []string
	exitCode       bool
}

func newPolicyDiff() *cobra.Command {
	var f diffFlags
	c := &cobra.Command{
		Use:   "diff OLD NEW [--replay LOG] [--tests FILE]",
		Short: "Show what a change of the configuration does to who gets in where",
		Long: "Compare the policies of two configurations, OLD and NEW: routes that were added or\n" +
			"removed, and what their policies have or have no more. With --replay, also each\n" +
			"decision of the log that would change, by route and person. With --tests, also each\n" +
			"policy test whose decision would. Exit code 0, whatever they say; with --exit-code it\n" +
			"is 1 if anything has changed.",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			f.old, f.now = args[0], args[1]
			before, err := check(c.Context(), f.old)
			if err != nil {
				return err
			}
			after, err := check(c.Context(), f.now)
			if err != nil {
				return err
			}
			return f.run(c, before, after)
		},
	}
	outputFlag(c, &f.output)
	flags := c.Flags()
	flags.StringVar(&f.replay, "replay", "", "a decision log, JSON lines as run writes them, or - for stdin")
	flags.StringArrayVar(&f.tests, "tests", nil, "a file of policy tests; may be repeated")
	flags.BoolVar(&f.exitCode, "exit-code", false, "end with exit code 1 if anything has changed")
	return c
}

// policyDiff is all that has changed.
type policyDiff struct {
	Routes []*routeDiff `json:"routes"`
	// Same is how many routes have the same policies in both.
	Same   int        `json:"same"`
	Replay *replayed  `json:"replay,omitempty"`
	Tests  *testsDiff `json:"tests,omitempty"`
}

func (d *policyDiff) changed() bool {
	return len(d.Routes) > 0 || d.Replay != nil && d.Replay.changed() || d.Tests != nil && len(d.Tests.Changed) > 0
}

func (f *diffFlags) run(c *cobra.Command, before, after *config.Config) error {
	d := diffRoutes(before, after)
	var err error
	if f.replay != "" {
		if d.Replay, err = replay(c, f.replay, before, after); err != nil {
			return err
		}
	}
	if len(f.tests) > 0 {
		if d.Tests, err = f.diffTests(c, before, after); err != nil {
			return err
		}
	}
	if f.output == "json" {
		err = printJSON(c.OutOrStdout(), d)
	} else {
		err = d.print(c.OutOrStdout())
	}
	if err == nil && f.exitCode && d.changed() {
		return errors.New("the policies differ")
	}
	return err
}

// routeDiff is a route that is not the same in both.
type routeDiff struct {
	Name string `json:"name"`
	// Change is added, removed or policy.
	Change string `json:"change"`
	Old    string `json:"old,omitempty"`
	New    string `json:"new,omitempty"`
	// Policy and Shadow are the lines that differ, marked.
	Policy []string `json:"policy,omitempty"`
	Shadow []string `json:"shadow,omitempty"`
}

// routePair is a route in both configurations. One is nil where it was added or
// removed.
type routePair struct{ before, after *config.Route }

func diffRoutes(before, after *config.Config) *policyDiff {
	d := &policyDiff{Routes: []*routeDiff{}}
	for _, pair := range pairRoutes(before.Routes, after.Routes) {
		if r := pair.diff(); r != nil {
			d.Routes = append(d.Routes, r)
		} else {
			d.Same++
		}
	}
	return d
}

// pairRoutes finds each route again: by its id, else by its name where that is
// clear, else by what it matches. Pairs are in the order of after, removed
// routes last.
func pairRoutes(before, after []*config.Route) []*routePair {
	partner := map[*config.Route]*config.Route{}
	taken := map[*config.Route]bool{}
	for _, key := range []func(*config.Route) string{
		func(r *config.Route) string { return r.ID },
		func(r *config.Route) string { return r.Name },
		matchOf,
	} {
		old := map[string][]*config.Route{}
		for _, r := range before {
			if !taken[r] {
				old[key(r)] = append(old[key(r)], r)
			}
		}
		rivals := map[string]int{}
		for _, r := range after {
			if partner[r] == nil {
				rivals[key(r)]++
			}
		}
		for _, r := range after {
			if candidates := old[key(r)]; partner[r] == nil && len(candidates) == 1 && rivals[key(r)] == 1 {
				partner[r] = candidates[0]
				taken[candidates[0]] = true
			}
		}
	}
	var pairs []*routePair
	for _, r := range after {
		pairs = append(pairs, &routePair{partner[r], r})
	}
	for _, r := range before {
		if !taken[r] {
			pairs = append(pairs, &routePair{before: r})
		}
	}
	return pairs
}

// matchOf is equal for routes that take the same requests.
func matchOf(r *config.Route) string {
	return fmt.Sprintf("%q %q %q %q %q", r.Host, r.Port, r.Prefix, r.Path, r.Regex)
}

// diff is nil for a route whose policies are the same.
func (p *routePair) diff() *routeDiff {
	d := &routeDiff{Change: "policy"}
	var old, now, oldShadow, nowShadow *policy.Policy
	if p.before != nil {
		d.Name, d.Old = p.before.Name, p.before.Position.String()
		old, oldShadow = p.before.Policy, p.before.ShadowPolicy
	} else {
		d.Change = "added"
	}
	if p.after != nil {
		d.Name, d.New = p.after.Name, p.after.Position.String()
		now, nowShadow = p.after.Policy, p.after.ShadowPolicy
	} else {
		d.Change = "removed"
	}
	if d.Change == "policy" && samePolicy(old, now) && samePolicy(oldShadow, nowShadow) {
		return nil
	}
	d.Policy, d.Shadow = diffPolicies(old, now), diffPolicies(oldShadow, nowShadow)
	return d
}

func samePolicy(a, b *policy.Policy) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Key() == b.Key()
}

func diffPolicies(a, b *policy.Policy) []string { return diffLines(policyText(a), policyText(b)) }

// policyText is a policy as lines, with the text of its rules in Rego behind them.
func policyText(p *policy.Policy) string {
	if p == nil {
		return ""
	}
	text := p.String()
	_, modules, _ := strings.Cut(policy.Rego(p), "\npackage countersign.rules.")
	for module := range strings.SplitSeq(modules, "\npackage countersign.rules.") {
		_, rules, ok := strings.Cut(module, "\n") // the package is called by a hash
		if ok {
			text += "rego:\n  " + strings.ReplaceAll(strings.TrimSpace(rules), "\n", "\n  ") + "\n"
		}
	}
	return text
}

// print is for a terminal.
func (d *policyDiff) print(w io.Writer) error {
	var b strings.Builder
	for _, r := range d.Routes {
		switch r.Change {
		case "added":
			fmt.Fprintf(&b, "route %s was added (%s)\n", r.Name, r.New)
		case "removed":
			fmt.Fprintf(&b, "route %s was removed (%s)\n", r.Name, r.Old)
		default:
			fmt.Fprintf(&b, "route %s has changed (%s, now %s)\n", r.Name, r.Old, r.New)
		}
		for _, line := range r.Policy {
			fmt.Fprintf(&b, "  %s\n", line)
		}
		if len(r.Shadow) > 0 {
			b.WriteString("  its shadow policy:\n")
		}
		for _, line := range r.Shadow {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	fmt.Fprintf(&b, "%s with the same policy in both\n", count(d.Same, "route"))
	if d.Replay != nil {
		d.Replay.print(&b)
	}
	if d.Tests != nil {
		d.Tests.print(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
