package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Rego returns the module that decides for the policy, one rule for each criterion,
// with its line in the YAML as a comment. It is what Compile compiles.
//
// The input holds what the policy reads and no more. input.session is null
// where nobody is signed in; of an email address without exactly one @,
// input.session.domain is undefined.
func Rego(p *Policy) string {
	w := &moduleWriter{}
	w.line("package countersign.policy")
	w.line("")
	w.line("import rego.v1")
	clauses := p.clauses()
	for _, c := range clauses {
		for i, criterion := range c.criteria {
			w.criterion(c, criterion, c.first+i)
		}
	}
	for _, a := range []action{allow, deny} {
		w.action(a, clauses)
	}
	w.result(clauses)
	return w.String()
}

type moduleWriter struct{ strings.Builder }

func (w *moduleWriter) line(format string, args ...any) {
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

// criterion writes a rule whose value is the reason code of the criterion.
func (w *moduleWriter) criterion(cl clause, c criterion, number int) {
	name := ruleName(c, number)
	w.line("")
	w.line("# line %d: %s %s: %s", c.line, cl.action, cl.name, c)
	switch c.kind.name {
	case "accept":
		w.line("%s := %s", name, quote(c.kind.pass))
		return
	case "reject":
		w.line("%s := %s", name, quote(c.kind.fail))
		return
	}
	w.line("default %s := %s", name, quote(c.kind.fail))
	if c.kind.session {
		w.line("%s := %s if input.session == null", name, quote(unauthenticated))
	}
	conditions := c.conditions()
	if len(conditions) == 1 {
		w.line("%s := %s if %s", name, quote(c.kind.pass), conditions[0])
		return
	}
	w.line("%s := %s if {", name, quote(c.kind.pass))
	for _, condition := range conditions {
		w.line("\t%s", condition)
	}
	w.line("}")
}

func ruleName(c criterion, number int) string {
	return fmt.Sprintf("%s_%d", c.kind.name, number)
}

// conditions are Rego expressions that all hold if the criterion does. None
// holds where the input lacks what the criterion looks at: a negated one names
// a variable, so that it is undefined there and not true.
func (c criterion) conditions() []string {
	switch c.kind.name {
	case "authenticated_user":
		return []string{c.kind.input + ` != ""`}
	case "cors_preflight":
		return []string{c.kind.input}
	}
	input := c.kind.input
	if c.path != "" {
		input += "[" + quote(c.path) + "]"
	}
	var conditions []string
	bound := false
	bind := func() string {
		if !bound {
			conditions = append(conditions, "value := "+input)
			bound = true
		}
		return "value"
	}
	for _, t := range c.tests {
		var e string
		switch {
		case t.matcher == "is" && c.kind.data == list:
			e = fmt.Sprintf("%s == [%s]", input, quote(t.values[0]))
		case t.matcher == "has":
			e = fmt.Sprintf("%s in %s", quote(t.values[0]), input)
		case t.matcher == "exclude":
			e = fmt.Sprintf("not %s in %s", quote(t.values[0]), bind())
		case t.matcher == "is":
			e = fmt.Sprintf("%s == %s", input, quote(t.values[0]))
		case t.matcher == "not":
			e = fmt.Sprintf("%s != %s", input, quote(t.values[0]))
		case t.matcher == "contains":
			e = fmt.Sprintf("contains(%s, %s)", input, quote(t.values[0]))
		case t.matcher == "starts_with":
			e = fmt.Sprintf("startswith(%s, %s)", input, quote(t.values[0]))
		case t.matcher == "ends_with":
			e = fmt.Sprintf("endswith(%s, %s)", input, quote(t.values[0]))
		case t.matcher == "in":
			e = fmt.Sprintf("%s in %s", input, set(t.values))
		case t.matcher == "not_in":
			e = fmt.Sprintf("not %s in %s", bind(), set(t.values))
		}
		conditions = append(conditions, e)
	}
	return conditions
}

// truth is the Rego expression for whether the criterion counts as true to its
// operator.
func (cl clause) truth(i int) string {
	equals := "=="
	if cl.inverts() {
		equals = "!="
	}
	c := cl.criteria[i]
	return fmt.Sprintf("%s %s %s", ruleName(c, cl.first+i), equals, quote(c.kind.pass))
}

// names are the rules that hold the operators' results: the action's own name
// where it has one operator, else one for each.
func names(clauses []clause) []string {
	count := map[action]int{}
	for _, c := range clauses {
		count[c.action]++
	}
	seen := map[action]int{}
	result := make([]string, len(clauses))
	for i, c := range clauses {
		seen[c.action]++
		result[i] = string(c.action)
		if count[c.action] > 1 {
			result[i] = fmt.Sprintf("%s_%d", c.action, seen[c.action])
		}
	}
	return result
}

// action writes allow or deny, if any criterion has to do with it.
func (w *moduleWriter) action(a action, clauses []clause) {
	if !slices.ContainsFunc(clauses, func(c clause) bool { return c.action == a }) {
		return
	}
	w.line("")
	w.line("default %s := false", a)
	names := names(clauses)
	for i, c := range clauses {
		if c.action == a && names[i] != string(a) {
			w.line("%s if %s", a, names[i])
		}
	}
	for i, c := range clauses {
		if c.action != a {
			continue
		}
		if names[i] != string(a) {
			w.line("")
			w.line("# line %d: %s", c.line, c.name)
			w.line("default %s := false", names[i])
		}
		if !c.all() || len(c.criteria) == 1 {
			for j := range c.criteria {
				w.line("%s if %s", names[i], c.truth(j))
			}
			continue
		}
		w.line("%s if {", names[i])
		for j := range c.criteria {
			w.line("\t%s", c.truth(j))
		}
		w.line("}")
	}
}

// result writes what Evaluator reads: allow, deny, the code of every criterion and
// the truth of every operator.
func (w *moduleWriter) result(clauses []clause) {
	elements := []string{"false", "false"}
	for _, c := range clauses {
		for j, criterion := range c.criteria {
			elements = append(elements, ruleName(criterion, c.first+j))
		}
		if c.action == allow {
			elements[0] = string(allow)
		} else {
			elements[1] = string(deny)
		}
	}
	elements = append(elements, names(clauses)...)
	w.line("")
	w.line("# whether to allow, whether to deny, each criterion, each operator")
	w.line("result := [%s]", strings.Join(elements, ", "))
}

func set(values []string) string {
	if len(values) == 0 {
		return "set()"
	}
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = quote(v)
	}
	return "{" + strings.Join(quoted, ", ") + "}"
}

// quote writes a Rego string, which has the escapes of JSON. What cannot be seen
// is escaped, so that a module reads as what it does.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
