package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/countersign/countersign/internal/golden"
	"go.yaml.in/yaml/v3"
)

func TestGolden(t *testing.T) {
	golden.Only(t, "testdata", "rego", "errors", "explain", "table", "lint")
	golden.Run(t, "testdata/rego", func(t *testing.T, c *golden.Case) map[string]string {
		p := parse(t, c.Input(t, "policy.yaml"))
		compile(t, p)
		return map[string]string{"want": Rego(p)}
	})
	golden.Run(t, "testdata/errors", func(t *testing.T, c *golden.Case) map[string]string {
		var n yaml.Node
		if err := yaml.Unmarshal([]byte(c.Input(t, "policy.yaml")), &n); err != nil {
			t.Fatal(err)
		}
		_, problems := Parse(&n, named(t, c))
		return map[string]string{"want": printProblems(problems)}
	})
	golden.Run(t, "testdata/explain", func(t *testing.T, c *golden.Case) map[string]string {
		e := compile(t, parseUsable(t, c.Input(t, "policy.yaml")))
		x, err := e.Explain(t.Context(), readInput(t, c.Input(t, "input.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"want": x.String()}
	})
	golden.Run(t, "testdata/lint", func(t *testing.T, c *golden.Case) map[string]string {
		return map[string]string{"want": printProblems(Lint(parseUsable(t, c.Input(t, "policy.yaml"))))}
	})
}

// named are the policies of the section named.yaml, if there is one.
func named(t *testing.T, c *golden.Case) map[string]*Policy {
	if !c.Has("named.yaml") {
		return nil
	}
	var nodes map[string]yaml.Node
	if err := yaml.Unmarshal([]byte(c.Input(t, "named.yaml")), &nodes); err != nil {
		t.Fatal(err)
	}
	policies := map[string]*Policy{}
	for name, n := range nodes {
		p, problems := Parse(&n, nil)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		policies[name] = p
	}
	return policies
}

func TestNamedPoliciesCountForAllTheyHold(t *testing.T) {
	text := "allow:\n  or:\n" + strings.Repeat("    - accept: 1\n", 3000)
	named := map[string]*Policy{"big": parse(t, text)}
	for names, want := range map[string]string{
		"[big, big, big]":      "",
		"[big, big, big, big]": "1:1: policy has 12004 rules and criteria, those of the policies it names included; at most 10000\n",
	} {
		var n yaml.Node
		if err := yaml.Unmarshal([]byte(names), &n); err != nil {
			t.Fatal(err)
		}
		p, problems := Parse(&n, named)
		if got := printProblems(problems); got != want || (want != "") == (len(p.clauses()) > 0) {
			t.Errorf("%s: %q and %d clauses, want %q", names, got, len(p.clauses()), want)
		}
	}
}

func printProblems(problems []Problem) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "%d:%d: ", p.Line, p.Column)
		if p.Warning {
			b.WriteString("warning: ")
		}
		b.WriteString(p.Message)
		if p.Hint != "" {
			fmt.Fprintf(&b, " (%s)", p.Hint)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
