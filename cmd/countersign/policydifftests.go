package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy/policytest"
)

// testsDiff is what both configurations make of policy tests.
type testsDiff struct {
	Tests   int            `json:"tests"`
	Changed []*changedTest `json:"changed"`
}

// changedTest is a test that is decided otherwise.
type changedTest struct {
	Name    string `json:"name"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	Route   string `json:"route,omitempty"`
	Person  string `json:"person"`
	Request string `json:"request"`
	// From and To are effects, or impossible for a test that the configuration has
	// no use for; Because says why To.
	From    string   `json:"from"`
	To      string   `json:"to"`
	Because []string `json:"because"`
}

const impossible = "impossible"

// diffTests lets both configurations decide the tests of files.
func (f *diffFlags) diffTests(c *cobra.Command, before, after *config.Config) (*testsDiff, error) {
	files, err := parseTests(c.ErrOrStderr(), f.tests)
	if err != nil {
		return nil, err
	}
	old, err := newWorld(before, f.old)
	if err != nil {
		return nil, err
	}
	now, err := newWorld(after, f.now)
	if err != nil {
		return nil, err
	}
	d := &testsDiff{Changed: []*changedTest{}}
	runner := &policytest.Runner{}
	for _, file := range files {
		olds, news := file.Bind(old), file.Bind(now)
		for i := range olds {
			if err := d.add(c.Context(), runner, olds[i], news[i]); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

func (d *testsDiff) add(ctx context.Context, runner *policytest.Runner, was, now *policytest.Case) error {
	if !was.Runs() && !now.Runs() {
		return usageError{fmt.Errorf("--tests: neither configuration can run it: %s", firstError(now))}
	}
	d.Tests++
	from, _, err := decideTest(ctx, runner, was)
	if err != nil {
		return err
	}
	to, why, err := decideTest(ctx, runner, now)
	if err != nil || from == to {
		return err
	}
	d.Changed = append(d.Changed, &changedTest{
		Name: now.Name, File: now.File, Line: now.Line, Route: now.RouteName(), Person: now.Person(), Request: now.Asks(),
		From: from, To: to, Because: why,
	})
	return nil
}

func decideTest(ctx context.Context, runner *policytest.Runner, c *policytest.Case) (effect string, why []string, err error) {
	if !c.Runs() {
		return impossible, []string{firstError(c)}, nil
	}
	d, err := runner.Decide(ctx, c)
	return d.Effect.String(), because(d), err
}

// firstError is what keeps a test from running.
func firstError(c *policytest.Case) string {
	for _, p := range c.Problems {
		if !p.Warning {
			return p.String()
		}
	}
	return ""
}

// print is for a terminal: what changes, by route and person.
func (d *testsDiff) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s, decided by both:\n", count(d.Tests, "test"))
	whose := func(t *changedTest) string { return cmp.Or(t.Route, "inline policy") + ": " + t.Person }
	changed := slices.SortedStableFunc(slices.Values(d.Changed), func(a, b *changedTest) int {
		return strings.Compare(whose(a), whose(b))
	})
	for i, t := range changed {
		if i == 0 || whose(t) != whose(changed[i-1]) {
			fmt.Fprintf(w, "  %s\n", shown(whose(t)))
		}
		fmt.Fprintf(w, "    %s:%d: %s: %s → %s, because %s\n", t.File, t.Line, shown(t.Name), t.From, t.To, strings.Join(t.Because, "; "))
	}
	fmt.Fprintf(w, "  %d changed, %d the same\n", len(d.Changed), d.Tests-len(d.Changed))
}
