package policytest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// A file beyond these bounds is refused. Nodes count once for each place that an
// alias repeats them in.
const (
	maxDepth = 64
	maxNodes = 1_000_000
)

// reader collects the problems of one file.
type reader struct {
	file     string
	problems []Problem
}

func (r *reader) problem(n *yaml.Node, hint, format string, args ...any) {
	r.problems = append(r.problems, Problem{r.file, policy.Problem{
		Line: n.Line, Column: n.Column, Message: fmt.Sprintf(format, args...), Hint: hint,
	}})
}

// sortProblems puts problems in the order of the file.
func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// document parses the file and returns its root, nil with a problem if it has none
// within bounds. It is then a finite tree, even where aliases refer to one another.
func (r *reader) document(content []byte) *yaml.Node {
	whole := &yaml.Node{}
	if len(content) > MaxFile {
		r.problem(whole, "split it", "the file is larger than %d MiB", MaxFile>>20)
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var doc, second yaml.Node
	err := decoder.Decode(&doc)
	if err == nil {
		if err = decoder.Decode(&second); err == nil {
			r.problem(&second, "remove the --- line", "a second YAML document")
			return nil
		}
	} else if errors.Is(err, io.EOF) {
		r.problem(whole, "write tests: and below it a list", "the file is empty")
		return nil
	}
	if !errors.Is(err, io.EOF) {
		r.syntax(err)
		return nil
	}
	nodes := 0
	if len(doc.Content) == 0 || !r.measure(doc.Content[0], 1, &nodes) {
		return nil
	}
	return resolve(doc.Content[0])
}

// syntax takes the line out of the text of a YAML error.
func (r *reader) syntax(err error) {
	at, message := &yaml.Node{}, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(message); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			at = &yaml.Node{Line: line, Column: 1}
			message = message[len(m[0]):]
		}
	}
	r.problem(at, "the mistake is in the block that begins here: look at indentation, colons and quotes", "not YAML: %s", message)
}

func (r *reader) measure(n *yaml.Node, depth int, nodes *int) bool {
	*nodes++
	switch {
	case depth > maxDepth:
		r.problem(n, "", "nested more than %d levels deep", maxDepth)
		return false
	case *nodes > maxNodes:
		r.problem(n, "", "more than %d values, repetitions by alias included", maxNodes)
		return false
	case n.Kind == yaml.AliasNode:
		return r.measure(n.Alias, depth+1, nodes)
	}
	for _, child := range n.Content {
		if !r.measure(child, depth+1, nodes) {
			return false
		}
	}
	return true
}

// value is what stands behind a key, aliases resolved.
type value struct {
	key  *yaml.Node
	node *yaml.Node
	// name is what messages call it: "as.groups".
	name string
}

// at is where to point for a wrong value: a null has no place of its own.
func (v value) at() *yaml.Node {
	if v.key != nil && v.node.ShortTag() == "!!null" {
		return v.key
	}
	return v.node
}

func (v value) null() bool { return v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!null" }

// element is an item of the list v.
func (v value) element(i int, n *yaml.Node) value {
	return value{nil, resolve(n), fmt.Sprintf("%s[%d]", v.name, i)}
}

// members are the keys of the mapping v, in order; ok is whether it is one and
// without mistakes. A value that is nothing is kept.
func (r *reader) members(v value) (members []value, ok bool) {
	if v.node.Kind != yaml.MappingNode {
		r.wrongType(v, "a mapping", "")
		return nil, false
	}
	lines := map[string]int{}
	ok = true
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := resolve(v.node.Content[i])
		line, twice := lines[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			r.problem(v.node.Content[i], "a key is a word and a colon", "a key must be text, not %s", describe(key))
		case key.ShortTag() == "!!merge":
			r.problem(key, "repeat the keys, or give the whole value an alias", "merge keys (<<) are not supported in a test")
		case twice:
			r.problem(key, fmt.Sprintf("it is already on line %d", line), "duplicate key %q", clip(key.Value))
		default:
			lines[key.Value] = key.Line
			members = append(members, value{key, resolve(v.node.Content[i+1]), joined(v.name, key.Value)})
			continue
		}
		ok = false
	}
	return members, ok
}

func joined(name, key string) string {
	if name == "" {
		return clip(key)
	}
	return name + "." + clip(key)
}

// fields are the values of the mapping v, whose keys are among the given ones. What
// names the mapping: "unknown test key".
func (r *reader) fields(v value, what string, keys ...string) (map[string]value, bool) {
	members, ok := r.members(v)
	fields := make(map[string]value, len(members))
	for _, m := range members {
		switch name := m.key.Value; {
		case !slices.Contains(keys, name):
			hint := "there are " + strings.Join(keys, ", ")
			if near := policy.Nearest(name, keys); near != "" {
				hint = "did you mean " + near + "?"
			}
			r.problem(m.key, hint, "unknown %s key %q", what, clip(name))
			ok = false
		case m.null():
			r.problem(m.key, "give it a value or remove it", "%s has no value", m.name)
			ok = false
		default:
			fields[name] = m
		}
	}
	return fields, ok
}

func (r *reader) wrongType(v value, want, hint string) {
	if v.name == "" {
		v.name = "the file"
	}
	r.problem(v.at(), hint, "%s: want %s, not %s", v.name, want, describe(v.node))
}

// text reads text that is not empty. Numbers and dates count as the text they are
// written as.
func (r *reader) text(v value) (string, bool) {
	if v.node.Kind == yaml.ScalarNode {
		switch v.node.ShortTag() {
		case "!!str", "!!int", "!!float", "!!timestamp":
			if v.node.Value == "" {
				r.problem(v.node, "give it a value or remove it", "%s is empty", v.name)
				return "", false
			}
			return v.node.Value, true
		case "!!bool":
			r.wrongType(v, "text", fmt.Sprintf("put it in quotes: %q", v.node.Value))
			return "", false
		}
	}
	r.wrongType(v, "text", "")
	return "", false
}

func (r *reader) flag(v value) bool {
	var on bool
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!bool" {
		r.wrongType(v, "true or false", "write it without quotes")
	} else if v.node.Decode(&on) != nil {
		r.problem(v.node, "write one of them", "%s: %q is neither true nor false", v.name, clip(v.node.Value))
	}
	return on
}

func (r *reader) list(v value) []value {
	if v.node.Kind != yaml.SequenceNode {
		hint := ""
		if v.node.Kind == yaml.ScalarNode {
			hint = fmt.Sprintf("write [%s]", clip(v.node.Value))
		}
		r.wrongType(v, "a list", hint)
		return nil
	}
	elements := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		elements[i] = v.element(i, n)
	}
	return elements
}

func (r *reader) texts(v value) []string {
	texts := []string{}
	for _, e := range r.list(v) {
		if text, ok := r.text(e); ok {
			texts = append(texts, text)
		}
	}
	return texts
}

func (r *reader) time(v value) (time.Time, bool) {
	text, ok := r.text(v)
	if !ok {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil:
		r.problem(v.node, "write it like 2026-01-02T15:04:05Z, with Z or an offset such as +01:00", "%s: %q is not a time of RFC 3339", v.name, clip(text))
	case t.IsZero():
		r.problem(v.node, "write a later one", "%s: the year 1 stands for no time", v.name)
		return t, false
	}
	return t, err == nil
}

// data is a value as decoded from JSON.
func (r *reader) data(v value) any {
	switch v.node.Kind {
	case yaml.MappingNode:
		result := map[string]any{}
		members, _ := r.members(v)
		for _, m := range members {
			result[m.key.Value] = r.data(m)
		}
		return result
	case yaml.SequenceNode:
		result := []any{}
		for i, n := range v.node.Content {
			result = append(result, r.data(v.element(i, n)))
		}
		return result
	}
	switch tag := v.node.ShortTag(); tag {
	case "!!null":
		return nil
	case "!!bool":
		return r.flag(v)
	case "!!int", "!!float":
		var number float64
		if err := v.node.Decode(&number); err != nil || math.IsNaN(number) || math.IsInf(number, 0) {
			r.problem(v.node, "", "%s: %s is not a number that JSON can hold", v.name, clip(v.node.Value))
		}
		return number
	case "!!str", "!!timestamp":
	default:
		r.problem(v.node, "write text, a number, true, false, a list or a mapping", "%s: %s is not a type that JSON has", v.name, clip(tag))
	}
	return v.node.Value
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	case "!!str":
		return "text"
	}
	return "something else"
}

// clip keeps a message short whatever the file holds.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
