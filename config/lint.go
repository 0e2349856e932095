package config

import (
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// lint is what was found in policies that is legal and most likely not meant.
type lint struct {
	// linted are the keys of the policies that were looked at: each is looked at
	// once, however many routes share it.
	linted map[string]bool
	// places are the findings, in order and each once.
	places []policy.Problem
	found  map[policy.Problem]*finding
}

type finding struct {
	file string
	// named is the named policy that the finding is in, nil for none, and times
	// how many policies of routes have it.
	named *namedPolicy
	times int
}

// lint looks at the policy of a route, which is written at v.
func (l *loader) lint(v value, p *policy.Policy) {
	key := p.Key()
	if l.lints.linted[key] {
		return
	}
	l.lints.linted[key] = true
	named := l.used(v.node)
	for _, n := range named {
		n.within++
	}
	for _, problem := range policy.Lint(p) {
		f := l.lints.found[problem]
		if f == nil {
			f = &finding{file: v.file}
			for _, n := range named {
				if n.lines[problem.Line] {
					f.named, f.file = n, n.file
				}
			}
			l.lints.places = append(l.lints.places, problem)
			l.lints.found[problem] = f
		}
		f.times++
	}
}

// reportLints warns of what lint has found. What stands in a named policy may
// well be of no use in one route and of use in another: it counts where it was
// found in all of them.
func (l *loader) reportLints() {
	for _, p := range l.lints.places {
		f := l.lints.found[p]
		if f.named == nil || f.times == f.named.within {
			l.warn(Position{f.file, p.Line, p.Column}, p.Hint, "%s", p.Message)
		}
	}
}

// used are the named policies that the value of a policy refers to, and those that
// they refer to.
func (l *loader) used(n *yaml.Node) []*namedPolicy {
	var list []*namedPolicy
	seen := map[string]bool{}
	var add func(n *yaml.Node)
	add = func(n *yaml.Node) {
		for _, name := range references(n) {
			if named := l.named[name]; named != nil && !seen[name] {
				seen[name] = true
				list = append(list, named)
				add(named.node)
			}
		}
	}
	add(n)
	return list
}

// lines are those on which a value is written.
func lines(n *yaml.Node) map[int]bool {
	all := map[int]bool{}
	seen := map[*yaml.Node]bool{}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		all[n.Line] = true
		for _, child := range n.Content {
			walk(child)
		}
	}
	walk(n)
	return all
}
