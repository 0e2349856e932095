package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Rego returns the module that decides for the policy, one rule for each criterion,
// with its line in the YAML as a comment, and behind it the modules of its rules in
// Rego. It is what Compile compiles.
//
// The input holds what the policy reads and no more. input.session is null where
// nobody is signed in, and what somebody or some request does not have is
// undefined; of an email address without exactly one @ that is the domain. Times
// are nanoseconds since 1970.
func Rego(p *Policy) string {
	var b strings.Builder
	for i, m := range modules(p) {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(strings.TrimRight(m.source, "\n"))
		b.WriteByte('\n')
	}
	return b.String()
}

// moduleText is a module with the name that its errors have.
type moduleText struct{ name, source string }

// modules are the policy's own and those of its rules in Rego, each once.
func modules(p *Policy) []moduleText {
	all := []moduleText{{"policy.rego", policyModule(p)}}
	for _, cl := range p.clauses() {
		m, ok := cl.criteria[0].operand.(*moduleRule)
		if ok && !slices.ContainsFunc(all, func(other moduleText) bool { return other.name == m.name }) {
			all = append(all, moduleText{m.name, m.source})
		}
	}
	return all
}

func policyModule(p *Policy) string {
	w := &moduleWriter{}
	w.line("package countersign.policy")
	w.line("")
	w.line("import rego.v1")
	clauses := p.clauses()
	for _, c := range clauses {
		for i := range c.criteria {
			w.criterion(c, &c.criteria[i], c.first+i)
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
func (w *moduleWriter) criterion(cl clause, c *criterion, number int) {
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
	if c.aboutSession() {
		w.line("%s := %s if input.session == null", name, quote(unauthenticated))
	}
	if m, ok := c.operand.(deviceMatch); ok {
		none := fmt.Sprintf("count([device | %s]) == 0", strings.Join(m.ofType(c.ref()), "; "))
		w.rule(name, deviceUnauthenticated, []string{"input.session != null", none})
	}
	if c.kind.name == "invalid_client_certificate" {
		problem := c.ref() + ` != ""`
		w.rule(name, c.kind.pass, []string{problem, "input.http.client_certificate"})
		w.rule(name, certificateRequired, []string{problem, "not input.http.client_certificate"})
		return
	}
	for _, conditions := range c.alternatives() {
		w.rule(name, c.kind.pass, conditions)
	}
}

// rule writes that name has a code where all conditions hold.
func (w *moduleWriter) rule(name, code string, conditions []string) {
	if len(conditions) == 1 {
		w.line("%s := %s if %s", name, quote(code), conditions[0])
		return
	}
	w.line("%s := %s if {", name, quote(code))
	for _, condition := range conditions {
		w.line("\t%s", condition)
	}
	w.line("}")
}

func ruleName(c *criterion, number int) string {
	return fmt.Sprintf("%s_%d", c.kind.name, number)
}

// alternatives are lists of Rego expressions; if all of one list hold, so does the
// criterion. None does where the input lacks what the criterion looks at.
func (c *criterion) alternatives() [][]string {
	switch c.kind.name {
	case "authenticated_user":
		return [][]string{{c.ref() + ` != ""`}}
	case "cors_preflight":
		return [][]string{{c.ref()}}
	}
	return c.operand.alternatives(c, c.ref())
}

// truth is the Rego expression for whether the criterion counts as true to its
// operator.
func (cl clause) truth(i int) string {
	c := &cl.criteria[i]
	equals, code := "==", c.kind.pass
	if !c.kind.holds("") {
		if cl.inverts() {
			equals = "!="
		}
	} else if code = c.kind.fail; !cl.inverts() {
		equals = "!="
	}
	return fmt.Sprintf("%s %s %s", ruleName(c, cl.first+i), equals, quote(code))
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
		for j := range c.criteria {
			elements = append(elements, ruleName(&c.criteria[j], c.first+j))
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
