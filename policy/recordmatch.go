package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/open-policy-agent/opa/v1/ast"
)

// recordKey is what a record's id is compared with.
type recordKey string

// The keys, as a policy writes them.
const (
	byUserID      recordKey = "user.id"
	byEmail       recordKey = "user.email"
	byAddress     recordKey = "request.ip"
	byFingerprint recordKey = "client_certificate.fingerprint"
)

func recordKeys() []string {
	return []string{string(byUserID), string(byEmail), string(byAddress), string(byFingerprint)}
}

// session reports whether the key is about who is asking.
func (k recordKey) session() bool { return k == byUserID || k == byEmail }

// ref is where the input document has the records of this key.
func (k recordKey) ref() string {
	if k.session() {
		return "session.records." + strings.ReplaceAll(string(k), ".", "_")
	}
	return "http.records." + strings.ReplaceAll(string(k), ".", "_")
}

// given is the Rego expression for whether the input has what the key is about.
// Nobody's and nothing's records cannot be said not to exist.
func (k recordKey) given() string {
	switch k {
	case byAddress:
		return "input.http.ip"
	case byFingerprint:
		return "input.http.client_certificate"
	case byEmail:
		return `input.session.email != ""`
	default:
		return `input.session.user_id != ""`
	}
}

// reads is what given looks at.
func (k recordKey) reads() string {
	return map[recordKey]string{
		byUserID: "session.user_id", byEmail: "session.email",
		byAddress: "http.ip", byFingerprint: "http.client_certificate",
	}[k]
}

// recordMatch is what a field of somebody's record must be.
type recordMatch struct {
	by         recordKey
	typ, field string
	// exists is "true" or "false", or "" where it is not asked.
	exists string
	texts  textTests
	lists  listTests
	// is must be the one text that the field has.
	is      []string
	numbers []numberTest
}

// numberTest compares with a number by an operator of Rego.
type numberTest struct {
	operator string
	value    float64
}

func (t numberTest) number() string { return strconv.FormatFloat(t.value, 'g', -1, 64) }

func (t numberTest) holds(v float64) bool {
	switch t.operator {
	case "<":
		return v < t.value
	case "<=":
		return v <= t.value
	case ">":
		return v > t.value
	case ">=":
		return v >= t.value
	default:
		return v == t.value
	}
}

func (m *recordMatch) phrase(name string) string {
	field := fmt.Sprintf("%s %s of %s: %s", name, plain(m.typ), m.by, plain(m.field))
	var parts []string
	switch m.exists {
	case "true":
		parts = append(parts, field+" exists")
	case "false":
		parts = append(parts, field+" does not exist")
	}
	for _, is := range m.is {
		parts = append(parts, field+" is "+plain(is))
	}
	if m.texts != nil {
		parts = append(parts, m.texts.phrase(field))
	}
	if m.lists != nil {
		parts = append(parts, m.lists.phrase(field))
	}
	for _, n := range m.numbers {
		parts = append(parts, field+" "+strings.Replace(n.operator, "==", "=", 1)+" "+n.number())
	}
	return strings.Join(parts, " and ")
}

func (m *recordMatch) key() string {
	return fmt.Sprintf("%q", []any{m.by, m.typ, m.field, m.exists, m.is, m.texts.key(), m.lists.key()}) + fmt.Sprint(m.numbers)
}

func (m *recordMatch) alternatives(_ *criterion, ref string) [][]string {
	var conditions []string
	switch m.exists {
	case "true":
		conditions = append(conditions, ref+".texts != null")
	case "false":
		conditions = append(conditions, m.by.given())
		conditions = append(conditions, "not "+ref+".texts")
	}
	for _, is := range m.is {
		conditions = append(conditions, fmt.Sprintf("%s.texts == [%s]", ref, quote(is)))
	}
	if m.texts != nil {
		conditions = append(conditions, m.texts.conditions(ref+".text")...)
	}
	if m.lists != nil {
		conditions = append(conditions, m.lists.alternatives(nil, ref+".texts")[0]...)
	}
	for _, n := range m.numbers {
		conditions = append(conditions, fmt.Sprintf("%s.number %s %s", ref, n.operator, n.number()))
	}
	return [][]string{conditions}
}

// id is what the key is in the input, "" where there is nothing.
func (k recordKey) id(in *Input) string {
	p := in.Principal
	switch {
	case k.session() && p == nil:
		return ""
	case k == byUserID:
		return p.UserID
	case k == byEmail:
		return p.Email
	case k == byAddress && in.Request.IP.IsValid():
		return in.Request.IP.String()
	case k == byFingerprint && in.Request.Certificate != nil:
		return in.Request.Certificate.Fingerprint
	}
	return ""
}

// value is the field of the record that the input leads to; ok is false where
// there is none.
func (m *recordMatch) value(in *Input) (value any, ok bool) {
	var fields map[string]any
	if m.by == byAddress {
		fields, ok = in.Records.FindAddress(m.typ, in.Request.IP)
	} else if id := m.by.id(in); id != "" {
		fields, ok = in.Records.Find(m.typ, id)
	}
	if !ok {
		return nil, false
	}
	value = fields[m.field]
	return value, value != nil
}

// term is the field in the forms that tests look at: its texts; of a scalar also
// its one text, and of a number the number.
func (m *recordMatch) term(in *Input) *ast.Term {
	value, ok := m.value(in)
	if !ok {
		return nil
	}
	values := textsOf(value)
	pairs := [][2]*ast.Term{{ast.StringTerm("texts"), texts(values)}}
	if isText(value) && len(values) == 1 {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm("text"), ast.StringTerm(values[0])})
	}
	if n, ok := value.(float64); ok {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm("number"), ast.FloatNumberTerm(n)})
	}
	return ast.ObjectTerm(pairs...)
}

// isText reports whether a value has one text.
func isText(value any) bool {
	switch value.(type) {
	case nil, map[string]any, []any, []string:
		return false
	}
	return true
}

func (m *recordMatch) hold(in *Input) bool {
	value, ok := m.value(in)
	if m.by.id(in) == "" {
		return false
	}
	if m.exists != "" && ok != (m.exists == "true") {
		return false
	}
	if m.is == nil && m.texts == nil && m.lists == nil && m.numbers == nil {
		return true
	}
	if !ok {
		return false
	}
	values := textsOf(value)
	number, isNumber := value.(float64)
	for _, is := range m.is {
		if !slices.Equal(values, []string{is}) {
			return false
		}
	}
	if m.texts != nil && !(isText(value) && len(values) == 1 && m.texts.hold(values[0])) {
		return false
	}
	for _, t := range m.lists {
		if slices.Contains(values, t.values[0]) != (t.matcher == "has") {
			return false
		}
	}
	for _, t := range m.numbers {
		if !isNumber || !t.holds(number) {
			return false
		}
	}
	return true
}

func numberOperators() map[string]string {
	return map[string]string{"<": "<", "<=": "<=", "=": "==", ">": ">", ">=": ">="}
}

func (p *parser) record(e entry) (operand, bool) {
	if e.value.Kind != yaml.MappingNode {
		p.problem(at(e), "write record: {type: employee, field: department, is: engineering}", "expected {type, field, …} for %s, found %s", e.name, describe(e.value))
		return nil, false
	}
	before := len(p.problems)
	m := &recordMatch{by: byUserID}
	for _, f := range p.entries(e.value) {
		p.recordField(e, f, m)
	}
	if len(p.problems) > before {
		return nil, false
	}
	switch {
	case m.typ == "":
		p.problem(at(e), "add type: and the type of the records", "%s has no type", e.name)
	case m.field == "":
		p.problem(at(e), "add field: and the name of a field", "%s has no field", e.name)
	case m.exists == "" && m.is == nil && m.texts == nil && m.lists == nil && m.numbers == nil:
		p.problem(at(e), "add exists: true, is: and a value, or another matcher", "%s does not say what the field must be", e.name)
	case m.exists == "false" && (m.is != nil || m.texts != nil || m.lists != nil || m.numbers != nil):
		p.problem(at(e), "remove exists: false or the other matchers", "%s can never be: a field that does not exist has no value", e.name)
	}
	return m, len(p.problems) == before
}

// recordField reads one key of a record's mapping.
func (p *parser) recordField(e, f entry, m *recordMatch) {
	names := []string{"type", "field", "by", "exists", "is", "not", "contains", "starts_with", "ends_with", "in", "not_in", "has", "exclude"}
	operator, isNumber := numberOperators()[f.name]
	switch {
	case isNumber:
		n, err := strconv.ParseFloat(f.value.Value, 64)
		if !isScalar(f.value) || err != nil || math.IsInf(n, 0) || math.IsNaN(n) {
			p.problem(at(f), "", "expected a number for %s, found %s", f.name, describe(f.value))
			return
		}
		m.numbers = append(m.numbers, numberTest{operator, n})
	case !slices.Contains(names, f.name):
		p.problem(f.key, suggest(f.name, names), "unknown key %q for %s, expected one of %s, <, <=, =, >, >=", f.name, e.name, strings.Join(names, ", "))
	case f.name == "has" || f.name == "exclude":
		if t, ok := p.test(f, listMatchers()); ok {
			m.lists = append(m.lists, t)
		}
	case slices.Contains(textMatchers()[1:], f.name):
		if t, ok := p.test(f, textMatchers()); ok {
			m.texts = append(m.texts, t)
		}
	case !isScalar(f.value):
		p.problem(at(f), "", "expected one value for %s, found %s", f.name, describe(f.value))
	case f.name == "type":
		m.typ = f.value.Value
	case f.name == "field":
		m.field = f.value.Value
	case f.name == "is":
		m.is = append(m.is, scalarText(f.value))
	case f.name == "by":
		m.by = recordKey(f.value.Value)
		if !slices.Contains(recordKeys(), f.value.Value) {
			p.problem(f.value, suggest(f.value.Value, recordKeys()), "by: %s is none of %s", plain(clip(f.value.Value)), strings.Join(recordKeys(), ", "))
		}
	default: // exists
		var ok bool
		if m.exists, ok = truthy(f.value); !ok {
			p.problem(f.value, "write true or false", "exists: %s is neither true nor false", plain(clip(f.value.Value)))
		}
	}
}
