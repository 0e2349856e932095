package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/countersign/countersign/internal/golden"
	"go.yaml.in/yaml/v3"
)

func TestGolden(t *testing.T) {
	golden.Only(t, "testdata", "rego", "errors", "explain")
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
		_, problems := Parse(&n)
		return map[string]string{"want": printProblems(problems)}
	})
	golden.Run(t, "testdata/explain", func(t *testing.T, c *golden.Case) map[string]string {
		e := compile(t, parse(t, c.Input(t, "policy.yaml")))
		var in Input
		if err := json.Unmarshal([]byte(c.Input(t, "input.json")), &in); err != nil {
			t.Fatal(err)
		}
		x, err := e.Explain(t.Context(), &in)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"want": x.String()}
	})
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
