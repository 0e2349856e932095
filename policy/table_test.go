package policy

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/internal/golden"
	"go.yaml.in/yaml/v3"
)

// tableInput is an input as the tables write it. Somebody is signed in if a field
// says who.
type tableInput struct {
	User, Email, Account string
	Groups               []string
	Claims               map[string]any
	SignedIn             string `yaml:"signed_in"`
	Devices              []EnrolledDevice

	Method, Path, Query, IP string
	Headers                 map[string][]string
	Preflight               bool
	Certificate             *Certificate
	Problem, Time           string
	Records                 []Record
}

func (ti *tableInput) input(t *testing.T) *Input {
	at := func(text string) time.Time {
		if text == "" {
			return time.Time{}
		}
		parsed, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	in := &Input{Time: at(ti.Time), Records: NewRecords(ti.Records), Request: Request{
		Method: ti.Method, Path: ti.Path, Query: ti.Query, Headers: headerMap(ti.Headers), Preflight: ti.Preflight,
		Certificate: ti.Certificate, CertificateProblem: ti.Problem,
	}}
	if ti.IP != "" {
		in.Request.IP = netip.MustParseAddr(ti.IP)
	}
	switch {
	case ti.Account != "":
		in.Principal = &Principal{ID: ti.Account, UserID: ti.Account, ServiceAccount: true, Groups: ti.Groups, Claims: ti.Claims}
	case ti.User != "" || ti.Email != "":
		in.Principal = &Principal{
			ID: "session", UserID: ti.User, Email: ti.Email, Groups: ti.Groups, Claims: ti.Claims,
			AuthTime: at(ti.SignedIn), Devices: ti.Devices,
		}
	}
	return in
}

func readInput(t *testing.T, text string) *Input {
	var ti tableInput
	strict := yaml.NewDecoder(strings.NewReader(text))
	strict.KnownFields(true)
	if err := strict.Decode(&ti); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return ti.input(t)
}

// table evaluates every criterion of a case on every input. Below each stand the
// results, and at the end of a result the inputs that have it. A criterion may be a
// list of several, to see what operators make of them.
func table(t *testing.T, c *golden.Case) map[string]string {
	var inputs yaml.Node
	if err := yaml.Unmarshal([]byte(c.Input(t, "inputs")), &inputs); err != nil {
		t.Fatal(err)
	}
	type member struct {
		name string
		in   *Input
	}
	var members []member
	for content := inputs.Content[0].Content; len(content) > 0; content = content[2:] {
		members = append(members, member{content[0].Value, readInput(t, encoded(t, content[1]))})
	}
	var b strings.Builder
	for line := range strings.Lines(c.Input(t, "criteria")) {
		criterion := strings.TrimSpace(line)
		row := compileRow(t, criterion)
		fmt.Fprintf(&b, "%s\n", criterion)
		var results []string
		names := map[string][]string{}
		for _, m := range members {
			result := row.on(t, m.in)
			if names[result] == nil {
				results = append(results, result)
			}
			names[result] = append(names[result], m.name)
		}
		for _, result := range results {
			fmt.Fprintf(&b, "  %s | %s\n", result, strings.Join(names[result], ", "))
		}
	}
	return map[string]string{"want": b.String()}
}

func encoded(t *testing.T, n *yaml.Node) string {
	text, err := yaml.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tableRow is a criterion, or a list of several, under operators: of each as an
// allow and as a deny beside an allow that holds.
type tableRow []struct {
	label string
	e     *Evaluator
}

func compileRow(t *testing.T, criterion string) tableRow {
	// Of one criterion "and" says what "or" does, and "nor" what "not" does.
	operators, list := []string{"or", "not"}, "\n    - "+criterion
	if strings.HasPrefix(criterion, "[") {
		operators, list = []string{"and", "or", "not", "nor"}, criterion
	}
	var row tableRow
	for _, action := range []string{"allow", "deny"} {
		for i, operator := range operators {
			text := fmt.Sprintf("%s:\n  %s: %s", action, operator, list)
			if action == "deny" {
				text += "\nallow: {or: [accept: 1]}"
			}
			row = append(row, struct {
				label string
				e     *Evaluator
			}{label(action, operator, i == 0), compile(t, parseUsable(t, text))})
		}
	}
	return row
}

// parseUsable reads a policy with which at most a warning is wrong.
func parseUsable(t *testing.T, text string) *Policy {
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	p, problems := Parse(&n, nil)
	if slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warning }) {
		t.Fatalf("%s: %v", text, problems)
	}
	return p
}

// on is what comes out on an input: the code of each criterion and the effects; an
// effect with ! is a sign-in that is too old.
func (row tableRow) on(t *testing.T, in *Input) string {
	codes, effects := "", ""
	for _, cell := range row {
		x, err := cell.e.Explain(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		effect := x.Decision.Effect.String()
		if x.Decision.MaxAge > 0 {
			effect += "!"
		}
		effects += fmt.Sprintf(" %s %-8s", cell.label, effect)
		if !truthful(cell.e, x, in) {
			t.Errorf("%s: Truths and Rego do not agree on %+v", cell.e.policy, in.Request)
		}
		codes = ""
		for _, c := range x.Rules[0].Operators[0].Criteria {
			codes += c.Code + " "
		}
	}
	return fmt.Sprintf("%-30s", codes) + effects
}

// truthful reports whether Truths say of the first criterion what Rego says, if it is
// about the request.
func truthful(e *Evaluator, x Explanation, in *Input) bool {
	first := slices.IndexFunc(e.clauses, func(cl clause) bool { return cl.rule == 0 })
	c := &e.clauses[first].criteria[0]
	bits, cacheable := e.Truths(in)
	return !c.aboutRequest() || cacheable && bits&1 == 1 == x.Rules[0].Operators[0].Criteria[0].Holds
}

// label is "| allow or" for the first operator of an action and "not" for another.
func label(action, operator string, first bool) string {
	if first {
		return "| " + action + " " + operator
	}
	return operator
}

func TestTable(t *testing.T) {
	golden.Run(t, "testdata/table", table)
	for _, k := range kinds() {
		if _, err := os.Stat("testdata/table/" + k.name + ".txtar"); err != nil {
			t.Errorf("a criterion without a table: %v", err)
		}
	}
}
