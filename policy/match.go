package policy

import (
	"fmt"
	"slices"
	"strings"
)

// test is one matcher of a criterion and what it compares with: one value, or
// any number for in and not_in.
type test struct {
	matcher string
	values  []string
}

// textTests compare one text, or each of the texts that a client repeats. All of
// them must hold, of the same text.
type textTests []test

// listTests compare a list of texts. All of them must hold.
type listTests []test

// textMatchers and listMatchers are the names of the tests; the first is what a
// bare value means.
func textMatchers() []string {
	return []string{"is", "not", "contains", "starts_with", "ends_with", "in", "not_in"}
}

func listMatchers() []string { return []string{"has", "is", "exclude"} }

// takesList reports whether a matcher compares with a list of values.
func takesList(matcher string) bool { return matcher == "in" || matcher == "not_in" }

func (ts textTests) phrase(name string) string {
	return joinPhrases(ts, name, func(t test) string {
		return strings.ReplaceAll(t.verb(), "_", " ")
	})
}

func (ts listTests) phrase(name string) string {
	return joinPhrases(ts, name, func(t test) string {
		switch t.matcher {
		case "is":
			return "is only"
		case "exclude":
			return "has no"
		default:
			return t.matcher
		}
	})
}

func joinPhrases(ts []test, name string, verb func(test) string) string {
	parts := make([]string, len(ts))
	for i, t := range ts {
		parts[i] = name + " " + verb(t) + " " + quoteSome(t.values)
	}
	return strings.Join(parts, " and ")
}

func (t test) verb() string {
	switch t.matcher {
	case "not":
		return "is not"
	case "in":
		return "is one of"
	case "not_in":
		return "is none of"
	default:
		return t.matcher
	}
}

// quoteSome is values for a sentence, which names the first few.
func quoteSome(values []string) string {
	const named = 5
	if len(values) == 0 {
		return "(nothing)"
	}
	parts := make([]string, 0, named+1)
	for i, v := range values {
		if i == named {
			parts = append(parts, fmt.Sprintf("and %d more", len(values)-named))
			break
		}
		parts = append(parts, plain(v))
	}
	return strings.Join(parts, ", ")
}

func (ts textTests) key() string { return fmt.Sprintf("%q", []test(ts)) }
func (ts listTests) key() string { return fmt.Sprintf("%q", []test(ts)) }

func (ts textTests) alternatives(c *criterion, ref string) [][]string {
	if c.kind.data != repeated {
		return [][]string{ts.conditions(ref)}
	}
	body := strings.Join(ts.conditions("value"), "; ")
	if c.keepsOut {
		keys := c.place()
		last := len(keys) - 1
		values := fmt.Sprintf("object.get(input.%s, %s, [\"\"])", strings.Join(keys[:last], "."), quote(keys[last]))
		return [][]string{{"some value in " + values, body}}
	}
	return [][]string{{"values := " + ref, "every value in values { " + body + " }"}}
}

// conditions hold of a text at ref if all tests do. A negation names a variable,
// so that it is undefined and not true where there is no text.
func (ts textTests) conditions(ref string) []string {
	var conditions []string
	for _, t := range ts {
		var e string
		switch t.matcher {
		case "is":
			e = fmt.Sprintf("%s == %s", ref, quote(t.values[0]))
		case "not":
			e = fmt.Sprintf("%s != %s", ref, quote(t.values[0]))
		case "contains":
			e = fmt.Sprintf("contains(%s, %s)", ref, quote(t.values[0]))
		case "starts_with":
			e = fmt.Sprintf("startswith(%s, %s)", ref, quote(t.values[0]))
		case "ends_with":
			e = fmt.Sprintf("endswith(%s, %s)", ref, quote(t.values[0]))
		case "in":
			e = fmt.Sprintf("%s in %s", ref, set(t.values))
		case "not_in":
			if ref != "value" {
				conditions = append(conditions, "value := "+ref)
				ref = "value"
			}
			e = fmt.Sprintf("not value in %s", set(t.values))
		}
		conditions = append(conditions, e)
	}
	return conditions
}

func (ts listTests) alternatives(_ *criterion, ref string) [][]string {
	var conditions []string
	bound := false
	for _, t := range ts {
		switch t.matcher {
		case "has":
			conditions = append(conditions, fmt.Sprintf("%s in %s", quote(t.values[0]), ref))
		case "is":
			conditions = append(conditions, fmt.Sprintf("%s == [%s]", ref, quote(t.values[0])))
		case "exclude":
			if !bound {
				conditions = append(conditions, "values := "+ref)
				bound = true
			}
			conditions = append(conditions, fmt.Sprintf("not %s in values", quote(t.values[0])))
		}
	}
	return [][]string{conditions}
}

// hold compares one text as Rego does.
func (ts textTests) hold(value string) bool {
	for _, t := range ts {
		if !t.holds(value) {
			return false
		}
	}
	return true
}

func (t test) holds(value string) bool {
	switch t.matcher {
	case "is":
		return value == t.values[0]
	case "not":
		return value != t.values[0]
	case "contains":
		return strings.Contains(value, t.values[0])
	case "starts_with":
		return strings.HasPrefix(value, t.values[0])
	case "ends_with":
		return strings.HasSuffix(value, t.values[0])
	case "in":
		return slices.Contains(t.values, value)
	case "not_in":
		return !slices.Contains(t.values, value)
	default:
		return false
	}
}

// holdAll compares what a client repeats: every text, or one where that keeps the
// client out. What it leaves out counts as empty there, and nowhere else: neither
// way may it get in.
func (ts textTests) holdAll(values []string, keepsOut bool) bool {
	if keepsOut {
		return slices.ContainsFunc(values, ts.hold) || len(values) == 0 && ts.hold("")
	}
	return len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return !ts.hold(v) })
}
