package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A policy beyond these bounds is refused. Nodes count once for each place that
// an alias repeats them in.
const (
	maxDepth = 32
	maxNodes = 10000
)

// Problem is one thing that is wrong with a policy.
type Problem struct {
	// Line and Column start at 1.
	Line, Column int
	// Warning is a problem with which the policy is still usable.
	Warning bool
	// Message says what was expected; Hint what to write instead, or nothing.
	Message, Hint string
}

// Parse reads the value of a route's policy key; nil is a policy without rules.
// It reports every problem at once, in the order of the file. The policy is
// usable if no problem is more than a warning.
func Parse(n *yaml.Node) (*Policy, []Problem) {
	p := &parser{}
	if n == nil {
		return &Policy{}, nil
	}
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	nodes := 0
	if !p.measure(n, 1, &nodes) {
		return &Policy{}, p.problems
	}
	policy := &Policy{rules: p.policy(n)}
	slices.SortStableFunc(p.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return policy, p.problems
}

// parser collects problems. Its methods return what they could make sense of.
type parser struct {
	problems []Problem
}

func (p *parser) problem(n *yaml.Node, hint, format string, args ...any) {
	p.problems = append(p.problems, Problem{Line: n.Line, Column: n.Column, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (p *parser) warning(n *yaml.Node, hint, format string, args ...any) {
	p.problem(n, hint, format, args...)
	p.problems[len(p.problems)-1].Warning = true
}

// measure reports whether n is within bounds. If so it is a finite tree, even
// where aliases refer to one another.
func (p *parser) measure(n *yaml.Node, depth int, nodes *int) bool {
	*nodes++
	switch {
	case depth > maxDepth:
		p.problem(n, "", "policy is nested more than %d levels deep", maxDepth)
		return false
	case *nodes > maxNodes:
		p.problem(n, "", "policy has more than %d values, repetitions by alias included", maxNodes)
		return false
	case n.Kind == yaml.AliasNode:
		return p.measure(n.Alias, depth+1, nodes)
	}
	for _, child := range n.Content {
		if !p.measure(child, depth+1, nodes) {
			return false
		}
	}
	return true
}

func (p *parser) policy(n *yaml.Node) []rule {
	n = resolve(n)
	switch {
	case isNull(n):
		return nil
	case n.Kind == yaml.MappingNode:
		return p.rules(n)
	case n.Kind != yaml.SequenceNode:
		p.problem(n, `write "allow:" with an operator below it`, "expected rules (allow, deny) or a list of them, found %s", describe(n))
		return nil
	}
	var rules []rule
	for _, item := range n.Content {
		item = resolve(item)
		if item.Kind != yaml.MappingNode {
			p.problem(item, `write "- allow:" or "- deny:"`, "expected allow or deny, found %s", describe(item))
			continue
		}
		rules = append(rules, p.rules(item)...)
	}
	return rules
}

func (p *parser) rules(n *yaml.Node) []rule {
	var rules []rule
	for _, e := range p.entries(n) {
		switch a := action(e.name); a {
		case allow, deny:
			rules = append(rules, rule{a, e.key.Line, p.body(e)})
		default:
			hint := suggest(e.name, []string{string(allow), string(deny)})
			if _, ok := kindNamed(e.base()); ok || isOperator(e.name) {
				hint = `rules begin with "allow:" or "deny:", below which come an operator and its criteria`
			}
			p.problem(e.key, hint, "expected allow or deny, found %q", e.name)
		}
	}
	return rules
}

func (p *parser) body(e entry) []operator {
	if e.value.Kind != yaml.MappingNode {
		hint := `write an operator first, such as "or:"`
		p.problem(at(e), hint, "expected and, or, not or nor below %s, found %s", e.name, describe(e.value))
		return nil
	}
	var operators []operator
	for _, e := range p.entries(e.value) {
		if !isOperator(e.name) {
			hint := suggest(e.name, operatorNames())
			if _, ok := kindNamed(e.base()); ok {
				hint = fmt.Sprintf(`write "or:" and below it "- %s: ..."`, e.name)
			}
			p.problem(e.key, hint, "expected and, or, not or nor, found %q", e.name)
			continue
		}
		if e.value.Kind != yaml.SequenceNode {
			hint := ""
			if e.value.Kind == yaml.MappingNode {
				hint = "begin each criterion with a dash"
			}
			p.problem(at(e), hint, "expected a list of criteria below %s, found %s", e.name, describe(e.value))
			continue
		}
		o := operator{name: e.name, line: e.key.Line}
		for _, item := range e.value.Content {
			if c, ok := p.criterion(resolve(item)); ok {
				o.criteria = append(o.criteria, c)
			}
		}
		if len(o.criteria) > 0 {
			operators = append(operators, o)
		}
	}
	return operators
}

func (p *parser) criterion(n *yaml.Node) (criterion, bool) {
	if n.Kind != yaml.MappingNode {
		hint := ""
		if _, ok := kindNamed(n.Value); ok && n.Kind == yaml.ScalarNode {
			hint = fmt.Sprintf(`write "- %s: ..."`, n.Value)
		}
		p.problem(n, hint, "expected a criterion with its value, found %s", describe(n))
		return criterion{}, false
	}
	before := len(p.problems)
	entries := p.entries(n)
	if len(p.problems) > before {
		return criterion{}, false
	}
	if len(entries) == 0 {
		p.problem(n, "", "expected a criterion, found an empty mapping")
		return criterion{}, false
	}
	if len(entries) > 1 {
		p.problem(n, "give each criterion a dash of its own", "expected one criterion, found %d", len(entries))
		return criterion{}, false
	}
	e := entries[0]
	k, ok := p.kind(e)
	if !ok {
		return criterion{}, false
	}
	c := criterion{kind: k, line: e.key.Line}
	if k.name == "claim" {
		_, c.path, _ = strings.Cut(e.name, "/")
	}
	if k.data == anything {
		if isScalar(e.value) && strings.EqualFold(e.value.Value, "false") {
			p.warning(at(e), "remove the criterion to turn it off", "%s ignores its value, false too", k.name)
		}
		return c, true
	}
	c.tests, ok = p.tests(k, e)
	return c, ok
}

// kind finds what the key of a criterion names.
func (p *parser) kind(e entry) (kind, bool) {
	base, path, hasPath := strings.Cut(e.name, "/")
	k, ok := kindNamed(base)
	switch {
	case !ok && slices.Contains(unsupported(), base):
		p.problem(e.key, "", "criterion %s is not supported yet", base)
	case !ok:
		names := unsupported()
		for _, k := range kinds() {
			names = append(names, k.name)
		}
		p.problem(e.key, suggest(base, names), "unknown criterion %q", e.name)
	case k.name == "claim" && path == "":
		p.problem(e.key, `write "claim/" and the name of a claim, such as "claim/department"`, "claim does not say which claim")
		ok = false
	case k.name != "claim" && hasPath:
		p.problem(e.key, fmt.Sprintf("write %q", base), "%s takes no path, found %q", base, e.name)
		ok = false
	}
	return k, ok
}

func (p *parser) tests(k kind, e entry) ([]test, bool) {
	names := k.data.matchers()
	expected := strings.Join(names, ", ")
	switch {
	case e.value.Kind == yaml.MappingNode:
	case isScalar(e.value):
		return p.test(k, entry{e.key, names[0], e.value})
	default:
		p.problem(at(e), listHint(k, e.value), "expected a value or a matcher (%s) for %s, found %s", expected, e.name, describe(e.value))
		return nil, false
	}
	before := len(p.problems)
	entries := p.entries(e.value)
	if len(entries) == 0 && len(p.problems) == before {
		p.problem(at(e), "", "expected a matcher (%s) for %s, found none", expected, e.name)
		return nil, false
	}
	var tests []test
	ok := len(p.problems) == before
	for _, m := range entries {
		if !slices.Contains(names, m.name) {
			p.problem(m.key, suggest(m.name, names), "unknown matcher %q for %s, expected one of %s", m.name, e.name, expected)
			ok = false
			continue
		}
		ts, good := p.test(k, m)
		tests = append(tests, ts...)
		ok = ok && good
	}
	return tests, ok
}

// test reads one matcher, whose name is known to be good.
func (p *parser) test(k kind, e entry) ([]test, bool) {
	values := []*yaml.Node{e.value}
	if takesList(e.name) {
		if e.value.Kind != yaml.SequenceNode {
			p.problem(at(e), fmt.Sprintf("write %s: [a, b]", e.name), "expected a list for %s, found %s", e.name, describe(e.value))
			return nil, false
		}
		values = e.value.Content
	}
	t := test{matcher: e.name}
	ok := true
	for _, n := range values {
		n = resolve(n)
		if !isScalar(n) {
			place := n
			if isNull(n) && !takesList(e.name) {
				place = at(e)
			}
			p.problem(place, listHint(k, n), "expected one value for %s, found %s", e.name, describe(n))
			ok = false
			continue
		}
		value := n.Value
		if n.Tag == "!!bool" {
			value = strings.ToLower(value)
		}
		if k.name == "user" && strings.Contains(value, "@") && (e.name == "is" || e.name == "in") {
			p.warning(n, fmt.Sprintf("write email in place of user to compare with an address: %q", value),
				"user is compared with the id of a user, which is seldom an email address")
		}
		t.values = append(t.values, value)
	}
	return []test{t}, ok
}

// listHint is for whoever gave several values where one belongs.
func listHint(k kind, found *yaml.Node) string {
	switch {
	case found.Kind != yaml.SequenceNode:
		return ""
	case k.data == text:
		return "compare with several values by in: [a, b]"
	default:
		return "write one " + k.name + " criterion for each value, below or: or and:"
	}
}
