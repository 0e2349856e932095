package config

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// value is what stands behind one key.
type value struct {
	node *yaml.Node
	// file is the path, or the name of the environment variable.
	file string
	// key is what messages call it: "timeout", "certificates[1].key".
	key string
	// env marks plain text from the environment: it has no line, and stands
	// for whatever type the key has.
	env bool
}

func (v value) at() Position {
	if v.env {
		return Position{File: v.file}
	}
	return Position{v.file, v.node.Line, v.node.Column}
}

// settings are the values of a mapping by key.
type settings map[string]value

// problem records an error; hint may be empty.
func (l *loader) problem(at Position, hint, format string, args ...any) {
	l.problems = append(l.problems, Problem{Position: at, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// warn records a problem that does not stop a start.
func (l *loader) warn(at Position, hint, format string, args ...any) {
	l.problems = append(l.problems, Problem{Position: at, Warning: true, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// wrongType records that a value is not of the type that its key takes.
func (l *loader) wrongType(v value, want, hint string) {
	key := v.key
	if key == "" {
		key = "the configuration"
	}
	if hint == "" {
		hint = "look at the indentation, too"
	}
	l.problem(v.at(), hint, "%s: want %s, not %s", key, want, describe(v.node))
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
		return "a bool"
	case "!!int", "!!float":
		return "a number"
	case "!!str":
		return "text"
	}
	return "a " + strings.TrimLeft(n.ShortTag(), "!")
}

// empty reports text without a letter, which for some keys stands for none.
func (v value) empty() bool { return v.node.Kind == yaml.ScalarNode && v.node.Value == "" }

// text reads text. Numbers and dates count as the text they are written as.
func (l *loader) text(v value) (string, bool) {
	if v.node.Kind == yaml.ScalarNode {
		switch v.node.ShortTag() {
		case "!!str", "!!int", "!!float", "!!timestamp":
			return v.node.Value, true
		case "!!bool":
			l.wrongType(v, "text", fmt.Sprintf("put it in quotes: %q", v.node.Value))
			return "", false
		}
	}
	l.wrongType(v, "text", "")
	return "", false
}

func (l *loader) flag(v value) (bool, bool) {
	if v.node.Kind == yaml.ScalarNode && (v.env || v.node.ShortTag() == "!!bool") {
		if b, err := strconv.ParseBool(strings.ToLower(v.node.Value)); err == nil {
			return b, true
		}
	}
	l.wrongType(v, "true or false", "write true or false without quotes")
	return false, false
}

// whole reads a whole number from 0.
func (l *loader) whole(v value) (uint32, bool) {
	if v.node.Kind == yaml.ScalarNode && (v.env || v.node.ShortTag() == "!!int") {
		if n, err := strconv.ParseUint(v.node.Value, 10, 31); err == nil {
			return uint32(n), true
		}
		l.problem(v.at(), "write 0 or a small number", "%s: %q is not a whole number from 0", v.key, clip(v.node.Value))
		return 0, false
	}
	l.wrongType(v, "a whole number", "write 0 or a small number without quotes")
	return 0, false
}

// duration reads a Go duration; a bare 0 counts as one.
func (l *loader) duration(v value) (time.Duration, bool) {
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() == "!!null" {
		l.wrongType(v, "a duration such as 30s", "")
		return 0, false
	}
	d, err := time.ParseDuration(v.node.Value)
	switch {
	case err != nil && v.node.ShortTag() == "!!int":
		l.problem(v.at(), fmt.Sprintf("write %ss for seconds", v.node.Value), "%s: the duration has no unit", v.key)
	case err != nil:
		l.problem(v.at(), "write a number and ms, s, m or h: 30s, 1h30m", "%s: %q is not a duration", v.key, clip(v.node.Value))
	case d < 0:
		l.problem(v.at(), "0 means none", "%s: the duration is negative", v.key)
	default:
		return d, true
	}
	return 0, false
}

// oneOf reads one of a few words, whatever their case, and returns it as it
// stands in words.
func (l *loader) oneOf(v value, words ...string) (string, bool) {
	s, ok := l.text(v)
	if !ok {
		return "", false
	}
	for _, w := range words {
		if strings.EqualFold(s, w) {
			return w, true
		}
	}
	l.problem(v.at(), "it is one of "+strings.Join(words, ", "), "%s: unknown value %q", v.key, clip(s))
	return "", false
}

// item is an element of a list.
type item struct {
	text string
	at   Position
}

// items reads a list of texts; a single text is split at its commas.
func (l *loader) items(v value) []item {
	var list []item
	if v.node.Kind != yaml.SequenceNode {
		if v.node.Kind == yaml.MappingNode {
			l.wrongType(v, "a list", "")
			return nil
		}
		s, ok := l.text(v)
		if !ok || strings.TrimSpace(s) == "" {
			return nil
		}
		for _, part := range strings.Split(s, ",") {
			list = append(list, item{strings.TrimSpace(part), v.at()})
		}
	} else {
		for i, n := range v.node.Content {
			e := value{node: n, file: v.file, key: fmt.Sprintf("%s[%d]", v.key, i)}
			if s, ok := l.text(e); ok {
				list = append(list, item{s, e.at()})
			}
		}
	}
	for _, e := range list {
		if e.text == "" {
			l.problem(e.at, "remove it", "%s: an empty entry", v.key)
			return nil
		}
	}
	return list
}

// texts is the text of items.
func (l *loader) texts(v value) []string {
	var out []string
	for _, e := range l.items(v) {
		out = append(out, e.text)
	}
	return out
}

// elements are the values of a list.
func (l *loader) elements(v value) []value {
	if v.node.Kind != yaml.SequenceNode {
		l.wrongType(v, "a list", "")
		return nil
	}
	list := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		list[i] = value{node: n, file: v.file, key: fmt.Sprintf("%s[%d]", v.key, i)}
	}
	return list
}

// member is one key of a mapping and its value.
type member struct {
	name string
	at   Position
	value
}

// members reads a mapping whose keys are texts, in order; it reports keys that
// occur twice and leaves them out.
func (l *loader) members(v value) []member {
	if v.node.Kind != yaml.MappingNode {
		l.wrongType(v, "a mapping", "")
		return nil
	}
	seen := make(map[string]int, len(v.node.Content)/2)
	list := make([]member, 0, len(v.node.Content)/2)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k, n := v.node.Content[i], v.node.Content[i+1]
		at := Position{v.file, k.Line, k.Column}
		if k.Kind != yaml.ScalarNode {
			l.problem(at, "a key is a word and a colon", "a key must be text, not %s", describe(k))
			continue
		}
		if line, twice := seen[k.Value]; twice {
			l.problem(at, fmt.Sprintf("it is already on line %d", line), "duplicate key %q", clip(k.Value))
			continue
		}
		seen[k.Value] = k.Line
		key := k.Value
		if v.key != "" {
			key = v.key + "." + k.Value
		}
		list = append(list, member{k.Value, at, value{node: n, file: v.file, key: key}})
	}
	return list
}

// settings reads a mapping whose keys are those of a table.
func (l *loader) settings(v value, t table) settings {
	s := settings{}
	for _, m := range l.members(v) {
		if !l.known(m, t) {
			continue
		}
		if m.node.Kind == yaml.ScalarNode && m.node.ShortTag() == "!!null" {
			// "routes:" with nothing below it is a list that is still empty.
			if t.what != "" || m.name != "routes" && m.name != "policy" {
				l.problem(m.at, "give it a value or remove it", "%s has no value", m.name)
			}
			continue
		}
		m.key = m.name
		s[m.name] = m.value
	}
	return s
}

// known reports a key that is not among the supported ones.
func (l *loader) known(m member, t table) bool {
	if t.supported[m.name] {
		return true
	}
	what := "key"
	if t.what != "" {
		what = t.what + " key"
	}
	if hint, ok := t.unsupported[m.name]; ok {
		l.problem(m.at, cmp.Or(hint, "remove it"), "%s %s is not supported yet", what, m.name)
	} else if hint, ok := t.removed[m.name]; ok {
		l.problem(m.at, hint, "%s %s was removed from Pomerium and is not supported", what, m.name)
	} else if _, ok := t.ignored[m.name]; ok {
		l.warn(m.at, "it changes nothing about who gets in", "%s %s is not supported and has no effect", what, m.name)
	} else if hint, ok := t.elsewhere[m.name]; ok {
		l.problem(m.at, hint, "unknown %s %q", what, m.name)
	} else if near := t.nearest(m.name); near != "" {
		l.problem(m.at, "did you mean "+near+"?", "unknown %s %q", what, clip(m.name))
	} else {
		l.problem(m.at, "remove it", "unknown %s %q", what, clip(m.name))
	}
	return false
}

// fields reads a small mapping with the given keys, such as {cert, key}.
func (l *loader) fields(v value, keys ...string) settings {
	supported := map[string]bool{}
	for _, k := range keys {
		supported[k] = true
	}
	s := l.settings(v, table{what: strings.TrimRight(v.key, "[]0123456789"), supported: supported})
	for k, m := range s {
		m.key = v.key + "." + k
		s[k] = m
	}
	return s
}

// clip keeps a message short whatever the operator wrote.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
