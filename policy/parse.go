package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A policy beyond these bounds is refused. Nodes count once for each place that
// an alias repeats them in.
const (
	maxDepth = 32
	maxNodes = 10000
	maxText  = 64 << 10
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
// Where a text stands for rules, it is the name of a policy in named. Parse
// reports every problem at once, in the order of the file. The policy is usable if
// no problem is more than a warning.
func Parse(n *yaml.Node, named map[string]*Policy) (*Policy, []Problem) {
	p := &parser{named: named}
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
	if criteria := max(policy.count(), p.rulesNamed); criteria > maxNodes {
		p.problem(n, "", "policy has %d rules and criteria, those of the policies it names included; at most %d", criteria, maxNodes)
		policy = &Policy{}
	}
	slices.SortStableFunc(p.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return policy, p.problems
}

// count is how many rules and criteria there are.
func (p *Policy) count() int {
	n := len(p.rules)
	for _, r := range p.rules {
		for _, o := range r.operators {
			n += len(o.criteria)
		}
	}
	return n
}

// parser collects problems. Its methods return what they could make sense of.
type parser struct {
	named    map[string]*Policy
	problems []Problem
	// rulesNamed counts the rules of the policies that were named.
	rulesNamed int
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
	case len(n.Value) > maxText:
		p.problem(n, "", "policy has a value of %d bytes; at most %d", len(n.Value), maxText)
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
	case isScalar(n):
		return p.reference(n)
	case n.Kind != yaml.SequenceNode:
		p.problem(n, `write "allow:" with an operator below it`, "expected rules (allow, deny) or a list of them, found %s", describe(n))
		return nil
	}
	var rules []rule
	for _, item := range n.Content {
		item = resolve(item)
		switch {
		case item.Kind == yaml.MappingNode:
			rules = append(rules, p.rules(item)...)
		case isScalar(item):
			rules = append(rules, p.reference(item)...)
		default:
			p.problem(item, `write "- allow:" or "- deny:"`, "expected allow, deny or the name of a policy, found %s", describe(item))
		}
	}
	return rules
}

// reference finds the rules of a policy that is named instead of written.
func (p *parser) reference(n *yaml.Node) []rule {
	if named, ok := p.named[n.Value]; ok {
		// What policies name policies for multiplies: the count refuses it in the
		// end, and must not come too late.
		if p.rulesNamed += len(named.rules); p.rulesNamed > maxNodes {
			return nil
		}
		return named.rules
	}
	const write = `write "allow:" with an operator below it`
	_, isKind := kindNamed(n.Value)
	if isKind || n.Value == string(allow) || n.Value == string(deny) || strings.ContainsAny(n.Value, " :") {
		p.problem(n, write, "expected rules (allow, deny) or the name of a policy, found %s", describe(n))
		return nil
	}
	names := slices.Sorted(maps.Keys(p.named))
	hint := suggest(n.Value, names)
	switch {
	case hint == "" && len(names) > 0:
		hint = "there are " + quoteSome(names)
	case hint == "":
		hint = write + ", or define the policy at the top of the file, below policies:"
	}
	p.problem(n, hint, "no policy is called %s", describe(n))
	return nil
}

func (p *parser) rules(n *yaml.Node) []rule {
	var rules []rule
	for _, e := range p.entries(n) {
		switch a := action(e.name); a {
		case allow, deny:
			rules = append(rules, rule{a, e.key.Line, p.body(e)})
		case "rego":
			rules = append(rules, p.module(e)...)
		default:
			hint := suggest(e.name, []string{string(allow), string(deny), "rego"})
			if _, ok := kindNamed(e.base()); ok || isOperator(e.name) {
				hint = `rules begin with "allow:" or "deny:", below which come an operator and its criteria`
			}
			if _, ok := p.named[e.name]; ok {
				hint = fmt.Sprintf("name the policy as a text: %s", plain(e.name))
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
	a := action(e.name)
	var operators []operator
	for _, e := range p.entries(e.value) {
		if e.name == "action" && isScalar(e.value) && e.value.Value == string(a) {
			continue // which Pomerium's own tools write
		}
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
				c.keepsOut = (a == deny) != o.inverts()
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
	c := criterion{kind: k, line: e.key.Line, column: e.key.Column}
	if k.takesPath() {
		_, c.path, _ = strings.Cut(e.name, "/")
	}
	switch k.name {
	case "header":
		c.path = strings.ToLower(c.path)
	case "user_agent":
		c.path = "user-agent"
	}
	c.operand, ok = p.operand(k, e)
	return c, ok
}

// kind finds what the key of a criterion names.
func (p *parser) kind(e entry) (kind, bool) {
	base, path, hasPath := strings.Cut(e.name, "/")
	k, ok := kindNamed(base)
	switch {
	case !ok && slices.Contains(unsupported(), base):
		p.problem(e.key, "", "criterion %s is not supported", base)
	case !ok && base == "rego":
		p.problem(e.key, "write it beside allow and deny, not below them", "rego is a rule and no criterion")
	case !ok:
		names := unsupported()
		for _, k := range kinds() {
			names = append(names, k.name)
		}
		p.problem(e.key, suggest(base, names), "unknown criterion %q", e.name)
	case k.takesPath() && path == "":
		examples := map[string]string{
			"claim":  `write "claim/" and the name of a claim, such as "claim/department"`,
			"header": `write "header/" and the name of a header, such as "header/x-team"`,
			"query":  `write "query/" and the name of a parameter, such as "query/tab"`,
		}
		p.problem(e.key, examples[base], "%s does not say which one", base)
		ok = false
	case k.name == "header" && !isToken(path):
		p.problem(e.key, "", "%q is no name of a header", path)
		ok = false
	case !k.takesPath() && hasPath:
		p.problem(e.key, fmt.Sprintf("write %q", base), "%s takes no path, found %q", base, e.name)
		ok = false
	}
	return k, ok
}

// isToken reports whether s can name a header (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) {
			return false
		}
	}
	return s != ""
}

// operand reads what stands behind the name of a criterion.
func (p *parser) operand(k kind, e entry) (operand, bool) {
	switch k.data {
	case text, repeated:
		tests, ok := p.tests(e, textMatchers())
		if k.name == "user" {
			p.warnOfAddresses(e)
		}
		return textTests(tests), ok
	case list:
		tests, ok := p.tests(e, listMatchers())
		return listTests(tests), ok
	case networks:
		return p.networks(e)
	case certificate:
		return p.certificate(e)
	case device:
		return p.device(e)
	case dates:
		return p.dates(e)
	case weekdays:
		return p.weekdays(e)
	case clock:
		return p.clock(e)
	case record:
		return p.record(e)
	case age:
		return p.age(e)
	}
	if isScalar(e.value) && strings.EqualFold(e.value.Value, "false") {
		p.warning(at(e), "remove the criterion to turn it off", "%s ignores its value, false too", k.name)
	}
	return nil, true
}

// tests reads a value or a mapping of matchers, whose names are given.
func (p *parser) tests(e entry, names []string) ([]test, bool) {
	expected := strings.Join(names, ", ")
	switch {
	case e.value.Kind == yaml.MappingNode:
	case isScalar(e.value):
		t, ok := p.test(entry{e.key, names[0], e.value}, names)
		return []test{t}, ok
	default:
		p.problem(at(e), listHint(e.name, names, e.value), "expected a value or a matcher (%s) for %s, found %s", expected, e.name, describe(e.value))
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
		t, good := p.test(m, names)
		tests = append(tests, t)
		ok = ok && good
	}
	return tests, ok
}

// test reads one matcher, whose name is known to be good.
func (p *parser) test(e entry, names []string) (test, bool) {
	values := []*yaml.Node{e.value}
	if takesList(e.name) {
		if e.value.Kind != yaml.SequenceNode {
			p.problem(at(e), fmt.Sprintf("write %s: [a, b]", e.name), "expected a list for %s, found %s", e.name, describe(e.value))
			return test{}, false
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
			p.problem(place, listHint(e.key.Value, names, n), "expected one value for %s, found %s", e.name, describe(n))
			ok = false
			continue
		}
		t.values = append(t.values, scalarText(n))
	}
	return t, ok
}

// scalarText is a scalar as it is compared.
func scalarText(n *yaml.Node) string {
	if n.Tag == "!!bool" {
		return strings.ToLower(n.Value)
	}
	return n.Value
}

// listHint is for whoever gave several values where one belongs.
func listHint(name string, names []string, found *yaml.Node) string {
	switch {
	case found.Kind != yaml.SequenceNode:
		return ""
	case slices.Contains(names, "in"):
		return "compare with several values by in: [a, b]"
	default:
		return "write one criterion for each value, below or: or and:"
	}
}

// warnOfAddresses looks for addresses where ids belong.
func (p *parser) warnOfAddresses(e entry) {
	check := func(n *yaml.Node) {
		if n = resolve(n); isScalar(n) && strings.Contains(n.Value, "@") {
			p.warning(n, fmt.Sprintf("write email in place of user to compare with an address: %q", n.Value),
				"user is compared with the id of a user, which is seldom an email address")
		}
	}
	if e.value.Kind != yaml.MappingNode {
		check(e.value)
		return
	}
	for i := 0; i+1 < len(e.value.Content); i += 2 {
		value := resolve(e.value.Content[i+1])
		switch resolve(e.value.Content[i]).Value {
		case "is":
			check(value)
		case "in":
			for _, n := range value.Content {
				check(n)
			}
		}
	}
}
