package policy

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// entry is a key of a mapping with its value, aliases resolved.
type entry struct {
	key   *yaml.Node
	name  string
	value *yaml.Node
}

// base is the name up to its path: claim of claim/department.
func (e entry) base() string {
	base, _, _ := strings.Cut(e.name, "/")
	return base
}

// at is where to point for a wrong value: a null has no place of its own.
func at(e entry) *yaml.Node {
	if isNull(e.value) {
		return e.key
	}
	return e.value
}

// entries are the keys of a mapping whose names can be told.
func (p *parser) entries(n *yaml.Node) []entry {
	var entries []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := resolve(n.Content[i])
		e := entry{key, key.Value, resolve(n.Content[i+1])}
		switch {
		case key.Kind != yaml.ScalarNode:
			p.problem(n.Content[i], "", "expected a name, found %s", describe(key))
		case key.Tag == "!!merge":
			p.problem(key, "repeat the keys, or give the whole value an alias", "merge keys (<<) are not supported in a policy")
		case slices.ContainsFunc(entries, func(other entry) bool { return other.name == e.name }):
			p.problem(key, "give both in a list, or remove one", "duplicate key %q", e.name)
		default:
			entries = append(entries, e)
		}
	}
	return entries
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// isScalar reports whether n is something that can be compared as text.
func isScalar(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag != "!!null" && n.Tag != "!!binary"
}

func isOperator(name string) bool { return slices.Contains(operatorNames(), name) }

func operatorNames() []string { return []string{"and", "or", "not", "nor"} }

// describe names what n is, for "found ...".
func describe(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.ScalarNode:
		const most = 60
		if len(n.Value) > most {
			return fmt.Sprintf("%q...", strings.ToValidUTF8(n.Value[:most], ""))
		}
		return fmt.Sprintf("%q", n.Value)
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	default:
		return "something else"
	}
}

// suggest is a hint with the name nearest to the one found, if one is near.
func suggest(found string, names []string) string {
	if best := Nearest(found, names); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return ""
}

// Nearest is the one of names, which are lower case, at the smallest edit
// distance from found: of several the first, and "" if all are too far to be a
// slip of the keyboard. It is here for whoever reads the keys around a policy.
func Nearest(found string, names []string) string {
	if len(found) > 64 {
		return ""
	}
	best, least := "", len(found)/3+2
	for _, name := range names {
		if d := distance(strings.ToLower(found), name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is how many letters to add, drop or change to get from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
