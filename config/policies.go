package config

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// namedPolicy is an entry of policies:.
type namedPolicy struct {
	member
	policy *policy.Policy
	// allows is whether it has allow rules.
	allows, used bool
	lines        map[int]bool
	// within is how many different policies of routes it was linted in.
	within int
}

// policies reads policies:. Each may refer to those above it.
func (l *loader) policies(s settings) {
	v, ok := s["policies"]
	if !ok {
		return
	}
	l.cfg.Policies = map[string]*policy.Policy{}
	valid := regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	for _, m := range l.members(v) {
		switch {
		case !valid.MatchString(m.name):
			l.problem(m.at, "1 to 64 letters, digits, _, . or -", "policies: %q is not a name", clip(m.name))
			continue
		case m.node.Kind == yaml.ScalarNode && m.node.ShortTag() == "!!null":
			l.problem(m.at, "write rules below it or remove it", "%s has no value", m.key)
			continue
		}
		n := &namedPolicy{member: m, policy: l.parsePolicy(m.value), allows: l.allows(m.node), lines: lines(m.node)}
		l.cfg.Policies[m.name] = n.policy
		l.named[m.name] = n
	}
}

// unusedPolicies finds names that nothing refers to.
func (l *loader) unusedPolicies() {
	for name, n := range l.named {
		if !n.used {
			l.warn(n.at, "write policy: "+name+" in a route, or remove it", "policies: no route uses %s", name)
		}
	}
}

// parsePolicy reads a policy and finds what it asks of a request in vain.
func (l *loader) parsePolicy(v value) *policy.Policy {
	p, found := policy.Parse(v.node, l.cfg.Policies)
	for _, f := range found {
		l.problems = append(l.problems, Problem{
			Position: Position{v.file, f.Line, f.Column}, Warning: f.Warning,
			Message: v.key + ": " + f.Message, Hint: f.Hint,
		})
	}
	var named []policy.Reads
	for _, name := range references(v.node) {
		if n := l.named[name]; n != nil {
			n.used = true
			named = append(named, n.policy.Reads())
		}
	}
	// What a named policy reads was held against requests where it is written.
	reads := p.Reads()
	for _, header := range reads.Headers {
		if slices.ContainsFunc(named, func(r policy.Reads) bool { return slices.Contains(r.Headers, header) }) {
			continue
		}
		if why, hint := l.unseenHeader(header); why != "" {
			l.problem(criterionAt(v, "header/"+header), hint, "%s: header %s %s", v.key, clip(header), why)
		}
	}
	if reads.Certificate && l.cfg.DownstreamMTLS == nil && !slices.ContainsFunc(named, func(r policy.Reads) bool { return r.Certificate }) {
		l.problem(criterionAt(v, "client_certificate", "invalid_client_certificate"), "add downstream_mtls with the authority of the certificates",
			"%s: it looks at client certificates, and no client is ever asked for one", v.key)
	}
	return p
}

// references are the names that stand for rules in the value of a policy.
func references(n *yaml.Node) []string {
	nodes := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		nodes = n.Content
	}
	var names []string
	for _, n := range nodes {
		if n.Kind == yaml.ScalarNode {
			names = append(names, n.Value)
		}
	}
	return names
}

// allows reports whether the value of a policy has allow rules, rather than deny
// rules alone.
func (l *loader) allows(n *yaml.Node) bool {
	switch n.Kind {
	case yaml.ScalarNode:
		named := l.named[n.Value]
		return named != nil && named.allows
	case yaml.SequenceNode:
		return slices.ContainsFunc(n.Content, func(item *yaml.Node) bool { return item.Kind != yaml.SequenceNode && l.allows(item) })
	}
	return hasKey(n, "allow")
}

// criterionAt is where a policy first has one of these criteria, or the policy
// itself if that is nowhere to be seen.
func criterionAt(v value, criteria ...string) Position {
	var find func(n *yaml.Node) *yaml.Node
	find = func(n *yaml.Node) *yaml.Node {
		for i, child := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 0 && slices.Contains(criteria, strings.ToLower(child.Value)) {
				return child
			}
			if found := find(child); found != nil {
				return found
			}
		}
		return nil
	}
	if n := find(v.node); n != nil {
		return Position{v.file, n.Line, n.Column}
	}
	return v.at()
}
