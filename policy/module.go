package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
	"go.yaml.in/yaml/v3"
)

// moduleRule is a rule in Rego. Its module, of which an allow and a deny may be
// left, is a package of its own; what it looks at of the input is known before it
// runs.
type moduleRule struct {
	// source is the module as it is compiled, with its package line.
	source string
	// name is its package below data.countersign.rules.
	name string
	// rule is allow or deny.
	rule string
	// refs are the parts of the input that it looks at, as in "session.email".
	refs []string
}

func (m *moduleRule) phrase(string) string { return "rego " + m.rule }

func (m *moduleRule) key() string { return m.rule + " " + m.source }

func (m *moduleRule) alternatives(*criterion, string) [][]string {
	if m.readsSession() {
		return [][]string{{"input.session != null", m.holds()}}
	}
	return [][]string{{m.holds()}}
}

// holds is the Rego expression for whether the rule does. A value that is neither
// true nor false, which a compiler does not always see, keeps people out.
func (m *moduleRule) holds() string {
	if m.rule == string(deny) {
		return m.ref() + " != false"
	}
	return m.ref() + " == true"
}

// ref is the rule's place among the data.
func (m *moduleRule) ref() string { return "data.countersign.rules." + m.name + "." + m.rule }

// readsSession reports whether it matters who asks.
func (m *moduleRule) readsSession() bool {
	return slices.ContainsFunc(m.refs, func(r string) bool { return strings.HasPrefix(r, "session") })
}

// readsRequest reports whether it looks at anything that may change from one
// request of the same person to the next.
func (m *moduleRule) readsRequest() bool {
	return slices.ContainsFunc(m.refs, func(r string) bool { return !strings.HasPrefix(r, "session") })
}

// module reads a rule in Rego. It counts as one allow and one deny, as far as it
// defines them.
func (p *parser) module(e entry) []rule {
	if !isScalar(e.value) {
		p.problem(at(e), `write "rego: |" and below it the rules allow and deny`, "expected a module in Rego, found %s", describe(e.value))
		return nil
	}
	parsed, err := parseModule(e.value.Value)
	if err != nil {
		p.moduleProblem(e, err)
		return nil
	}
	before := len(p.problems)
	refs := p.moduleRefs(e, parsed)
	if len(p.problems) > before {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), compileTimeout)
	defer cancel()
	truths, err := compileModule(ctx, parsed)
	if err != nil {
		p.moduleProblem(e, err)
		return nil
	}
	sum := sha256.Sum256([]byte(e.value.Value))
	name := "r" + hex.EncodeToString(sum[:6])
	var rules []rule
	for _, a := range []action{allow, deny} {
		i := slices.IndexFunc(parsed.Rules, func(r *ast.Rule) bool { return r.Head.Ref()[0].Value.Compare(ast.Var(a)) == 0 })
		if i < 0 {
			continue
		}
		if !slices.Contains(truths, a) {
			message := fmt.Sprintf("%s must be true or false: write \"%s if { … }\"", a, a)
			p.moduleProblem(e, ast.Errors{{Message: message, Location: parsed.Rules[i].Location}})
			continue
		}
		m := &moduleRule{source: moduleSource(e.value.Value, name), name: name, rule: string(a), refs: refs}
		c := criterion{kind: regoKind(), operand: m, keepsOut: a == deny, line: e.key.Line}
		rules = append(rules, rule{a, e.key.Line, []operator{{"or", e.key.Line, []criterion{c}}}})
	}
	if rules == nil && len(p.problems) == before {
		p.problem(at(e), `define "allow if { … }", "deny if { … }" or both`, "the module defines neither allow nor deny")
	}
	return rules
}

// compileModule compiles a module on its own, for its errors, and says which of
// allow and deny may be true or false.
func compileModule(ctx context.Context, m *ast.Module) (truths []action, err error) {
	done := make(chan *ast.Compiler, 1)
	go func() {
		compiler := ast.NewCompiler().WithStrict(true).WithCapabilities(ruleCapabilities())
		compiler.Compile(map[string]*ast.Module{"rule.rego": m})
		done <- compiler
	}()
	select {
	case compiler := <-done:
		if compiler.Failed() {
			return nil, compiler.Errors
		}
		for _, a := range []action{allow, deny} {
			switch t := compiler.TypeEnv.GetByRef(m.Package.Path.Append(ast.StringTerm(string(a)))).(type) {
			case types.Boolean:
				truths = append(truths, a)
			case types.Any:
				if len(t) == 0 || t.Contains(types.B) {
					truths = append(truths, a)
				}
			}
		}
		return truths, nil
	case <-ctx.Done(): // what does not end is left to itself
		return nil, errors.New("it is too complex to compile")
	}
}

// moduleSource puts a module into its own package, in place of the one that it
// names or in a line before it.
func moduleSource(text, name string) string {
	header := "package countersign.rules." + name
	at := 0
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		rest := strings.TrimLeft(strings.TrimPrefix(trimmed, "package"), " \t")
		if strings.HasPrefix(trimmed, "package ") || strings.HasPrefix(trimmed, "package\t") {
			at += strings.Index(line, trimmed)
			behind := ""
			if i := strings.IndexAny(rest, " \t;#"); i >= 0 {
				behind = rest[i:]
			}
			return text[:at] + header + behind + text[at+len(trimmed):]
		}
		if trimmed != "" && !strings.HasPrefix(trimmed, "#") {
			break
		}
		at += len(line)
	}
	return header + "\n" + text
}

func parseModule(text string) (*ast.Module, error) {
	options := ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: ruleCapabilities()}
	m, err := ast.ParseModuleWithOpts("rule.rego", moduleSource(text, "rule"), options)
	if err != nil {
		return nil, err
	}
	if own := ast.MustParseRef("data.countersign.rules.rule"); !m.Package.Path.Equal(own) {
		return nil, errors.New("begin with the rules, or with a package in a line of its own")
	}
	return m, nil
}

// moduleProblem reports what the compiler said, with the line in the file.
func (p *parser) moduleProblem(e entry, err error) {
	var found ast.Errors
	if !errors.As(err, &found) {
		p.problem(at(e), "", "rego: %v", err)
		return
	}
	// A line that we put before the module is none of its author's.
	added := strings.Count(moduleSource(e.value.Value, ""), "\n") - strings.Count(e.value.Value, "\n")
	for i, one := range found {
		const most = 10
		if i == most {
			p.problem(at(e), "", "rego: there are more problems than the %d that are told", most)
			return
		}
		n := *at(e)
		where := ""
		if one.Location != nil {
			row := max(1, one.Location.Row-added)
			if e.value.Style == yaml.LiteralStyle {
				n.Line, n.Column = n.Line+row, 1
			}
			where = fmt.Sprintf(" (line %d of the module, column %d)", row, one.Location.Col)
		}
		message, _, _ := strings.Cut(one.Message, "\n")
		hint := ""
		if strings.HasPrefix(message, "undefined function") {
			hint = "rules call functions of their arguments alone, which neither reach outside nor tell the time: that is input.time"
		}
		p.problem(&n, hint, "rego: %s%s", message, where)
	}
}

// moduleRefs finds what a module looks at, and refuses what cannot be told or has
// no place here.
func (p *parser) moduleRefs(e entry, m *ast.Module) []string {
	var refs []string
	refuse := func(at *ast.Location, message string) {
		p.moduleProblem(e, ast.Errors{{Message: message, Location: at}})
	}
	for _, i := range m.Imports {
		if path := i.Path.String(); path != "rego.v1" && !strings.HasPrefix(path, "future.keywords") {
			refuse(i.Location, "nothing can be imported, found "+path)
		}
	}
	whole := comparesSession(m)
	var look func(t *ast.Term) bool
	look = func(t *ast.Term) bool {
		ref, ok := t.Value.(ast.Ref)
		if !ok {
			if v, ok := t.Value.(ast.Var); ok && v == "input" {
				refuse(t.Location, nameAPart)
			}
			return false
		}
		switch ref[0].String() {
		case "print":
			refuse(t.Location, "print has no place in a policy: policy explain shows what was looked at")
		case "data":
			refuse(t.Location, "there is no data: records are looked up by the criterion record")
		case "input":
			path, message := inputPath(ref)
			if path == "session" && !whole[t] {
				message = nameAPart + "; the whole of it can only be compared with null"
			}
			if message != "" {
				refuse(t.Location, message)
			} else if !slices.Contains(refs, path) {
				refs = append(refs, path)
			}
			for _, part := range ref[1:] {
				ast.WalkTerms(part, look)
			}
			return true
		}
		return false
	}
	for _, r := range m.Rules {
		ast.WalkTerms(r, look)
	}
	ast.WalkWiths(m, func(w *ast.With) bool {
		refuse(w.Location, "with has no place in a policy: it would make the input up")
		return false
	})
	moduleTypes(m, refuse)
	slices.Sort(refs)
	return refs
}

const nameAPart = "name the part of the input that is looked at, such as input.session.email"

// inputPath is the part of the input that a reference leads to, or why it does not
// lead to one.
func inputPath(ref ast.Ref) (path, problem string) {
	var parts []string
	for _, t := range ref[1:] {
		s, ok := t.Value.(ast.String)
		if !ok {
			break
		}
		parts = append(parts, string(s))
	}
	whole := strings.Join(parts, ".")
	if whole == "" {
		return "", nameAPart
	}
	for _, known := range modulePaths() {
		if whole == known || strings.HasPrefix(whole, known+".") {
			return known, partProblem(ref, known)
		}
	}
	for _, keyed := range append(keyedPaths(), "session") {
		depth := strings.Count(keyed, ".") + 1
		switch {
		case whole == "session" && len(ref) == 2:
			return whole, "" // to compare with null
		case whole == keyed:
			return "", fmt.Sprintf("input.%s needs a name written out, as in input.%s[\"x\"]", keyed, keyed)
		case keyed == "session" || len(parts) <= depth || strings.Join(parts[:depth], ".") != keyed:
		case len(parts) > depth+1:
			return "", fmt.Sprintf("input.%s[%q] is a list of texts and has no %s; a claim within another is named as in input.session.claims[\"a/b\"]",
				keyed, parts[depth], parts[depth+1])
		default:
			return keyed + "/" + parts[depth], ""
		}
	}
	all := append(modulePaths(), keyedPaths()...)
	message := fmt.Sprintf("there is no input.%s; there are input.session and input.%s", whole, strings.Join(all, ", input."))
	if near := Nearest(whole, all); near != "" {
		message = fmt.Sprintf("there is no input.%s; did you mean input.%s?", whole, near)
	}
	return "", message
}

// partProblem says which part of something known a reference names in vain.
func partProblem(ref ast.Ref, known string) string {
	var parts []string
	names := ref[2+strings.Count(known, "."):]
	switch {
	case known == "http.client_certificate":
		parts = []string{"fingerprint", "spki_hash", "san_email", "san_dns", "san_uri"}
	case known == "session.devices" && len(names) > 1:
		names, parts = names[1:], []string{"id", "type", "approved"}
	}
	if len(names) == 0 {
		return ""
	}
	name, ok := names[0].Value.(ast.String)
	if !ok || slices.Contains(parts, string(name)) {
		return ""
	}
	return fmt.Sprintf("input.%s has no %s", known, string(name))
}

// modulePaths are what a module may look at, and keyedPaths what it may look at
// with a name written out.
func modulePaths() []string {
	return []string{
		"session.id", "session.user_id", "session.email", "session.domain", "session.groups", "session.acr", "session.amr",
		"session.auth_time", "session.devices", "session.service_account",
		"http.method", "http.path", "http.cors_preflight", "http.ip", "http.client_certificate", "http.client_certificate_problem",
		"time",
	}
}

func keyedPaths() []string { return []string{"session.claims", "http.headers", "http.query"} }

// ruleCapabilities are what a rule may call: functions of their arguments alone,
// none of which reaches outside, tells the time, draws lots, or makes much of
// little.
func ruleCapabilities() *ast.Capabilities {
	allowed := strings.Fields(`
		eq assign equal neq lt lte gt gte plus minus mul div rem abs ceil floor round
		and or minus count sum product max min sort all any internal.member_2 internal.member_3
		array.reverse array.slice intersection union
		object.get object.keys object.union object.subset object.filter object.remove
		concat contains endswith startswith indexof indexof_n lower upper split substring
		trim trim_left trim_prefix trim_right trim_space trim_suffix strings.any_prefix_match strings.any_suffix_match
		strings.count strings.reverse format_int to_number
		regex.match regex.is_valid regex.split regex.find_n glob.match glob.quote_meta
		base64.decode base64.is_valid base64url.decode hex.decode json.unmarshal json.is_valid
		crypto.sha256 is_array is_boolean is_null is_number is_object is_set is_string type_name
		net.cidr_contains net.cidr_intersects net.cidr_is_valid
		semver.compare semver.is_valid time.clock time.date time.weekday time.parse_rfc3339_ns time.parse_duration_ns time.add_date time.diff
		units.parse units.parse_bytes cast_array cast_string`)
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !slices.Contains(allowed, b.Name) })
	c.AllowNet = []string{}
	return c
}
