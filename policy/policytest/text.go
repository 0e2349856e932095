package policytest

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/countersign/countersign/policy"
)

// WriteText writes the report for people: a line for each test, below a failed one
// why it failed, then the count and the coverage.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	for i := range r.Tests {
		t := &r.Tests[i]
		if t.Passed {
			fmt.Fprintf(&b, "ok    %s (%s)\n", plain(t.Name), t.place())
			continue
		}
		fmt.Fprintf(&b, "FAIL  %s (%s)\n", plain(t.Name), t.place())
		for line := range strings.Lines(t.failure()) {
			b.WriteString("      " + line)
		}
	}
	fmt.Fprintf(&b, "\n%d passed, %d failed\n", r.Passed, r.Failed)
	r.writeCoverage(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *Result) place() string { return fmt.Sprintf("%s:%d", t.File, t.Line) }

// summary is the failure in one line.
func (t *Result) summary() string {
	if t.Want != t.Got {
		return fmt.Sprintf("wanted %s, got %s", t.Want, t.Got)
	}
	return fmt.Sprintf("got %s as wanted, but for other reasons", t.Got)
}

// failure says what was wanted, what came and why, in lines.
func (t *Result) failure() string {
	var b strings.Builder
	fmt.Fprintln(&b, t.summary())
	fmt.Fprintf(&b, "%s asked for %s", plain(t.Person), plain(t.Request))
	if t.Route != "" {
		fmt.Fprintf(&b, " of route %s", plain(t.Route))
	}
	b.WriteByte('\n')
	if t.WantReasons != nil {
		fmt.Fprintf(&b, "wanted the reasons %s, got %s\n", listed(t.WantReasons), listed(policy.Decision{Reasons: t.Reasons}.Codes()))
	}
	if len(t.Reasons) == 0 {
		b.WriteString("no rule of the policy gave a reason\n")
	} else {
		b.WriteString("the reasons:\n")
	}
	for _, reason := range t.Reasons {
		fmt.Fprintf(&b, "  %s: %s%s", reason.Code, reason.Rule, at(t.PolicyFile, reason.Line))
		if reason.Had != "" {
			fmt.Fprintf(&b, ", had %s", plain(reason.Had))
		}
		b.WriteByte('\n')
	}
	if len(t.Rules) > 0 {
		b.WriteString("each rule:\n")
		// Its first line is the effect, which has been said.
		_, tree, _ := strings.Cut(policy.Explanation{Rules: t.Rules}.String(), "\n")
		b.WriteString(tree)
	}
	return b.String()
}

func listed(words []string) string {
	if len(words) == 0 {
		return "(none)"
	}
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = plain(word)
	}
	return strings.Join(quoted, ", ")
}

// at is a place for the end of a phrase; "" where a rule is written nowhere.
func at(file string, line int) string {
	switch {
	case line == 0:
		return ""
	case file == "":
		return fmt.Sprintf(" (line %d)", line)
	}
	return fmt.Sprintf(" (%s:%d)", file, line)
}

func (r *Report) writeCoverage(b *strings.Builder) {
	if r.Coverage == nil {
		return
	}
	rules, never := 0, 0
	for _, c := range r.Coverage {
		rules += c.Rules
		never += len(c.Never)
	}
	fmt.Fprintf(b, "coverage: %d of %d rules decided a test\n", rules-never, rules)
	if never > 0 {
		b.WriteString("the others could be turned round, and no test would notice:\n")
	}
	for _, c := range r.Coverage {
		if len(c.Never) == 0 {
			continue
		}
		fmt.Fprintf(b, "  %s\n", c.title())
		for _, rule := range c.Never {
			fmt.Fprintf(b, "    %s %s: %s%s\n", rule.Action, rule.Operator, rule.Text, at(c.PolicyFile, rule.Line))
		}
	}
	if len(r.Untested) > 0 {
		fmt.Fprintf(b, "no test reached the policy of %s\n", some("route ", r.Untested))
	}
}

// title names the routes that share the policy, or the places that have it inline.
func (c *Coverage) title() string {
	if len(c.Routes) == 0 {
		return some("inline policy ", c.Inline)
	}
	return some("route ", c.Routes)
}

// some names the first few things of a kind.
func some(kind string, names []string) string {
	const named = 10
	var b strings.Builder
	for i, name := range names {
		if i == named {
			fmt.Fprintf(&b, " and %d more", len(names)-named)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(kind + plain(name))
	}
	return b.String()
}

// graphic writes out what could move the cursor of a terminal.
func graphic(s string) string {
	var b strings.Builder
	for _, c := range s {
		if strconv.IsGraphic(c) {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToGraphic(c), "'"))
		}
	}
	return b.String()
}

// plain is a name or a value: as it is, or in quotes if it is not all graphic.
func plain(s string) string {
	if quoted := strconv.QuoteToGraphic(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}
