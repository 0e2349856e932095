package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// What an operator's file may hold at most. The bounds keep a hostile or
// broken file from costing more than reading it.
const (
	maxFile  = 4 << 20
	maxDepth = 64
	// maxNodes counts nodes as often as aliases repeat them.
	maxNodes = 2_000_000
)

// document parses YAML into a tree without aliases and merge keys: a value
// that an alias repeats is shared. It returns nil for an empty document.
func document(file string, content []byte) (*yaml.Node, *Problem) {
	if len(content) > maxFile {
		return nil, &Problem{Position: Position{File: file}, Message: fmt.Sprintf("larger than %d MiB", maxFile>>20), Hint: "split it over several deployments"}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var doc, second yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, syntaxProblem(file, err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, &Problem{
			Position: Position{file, second.Line, second.Column},
			Message:  "a second YAML document",
			Hint:     "the whole configuration is one document: remove the --- line",
		}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxProblem(file, err)
	}
	r := resolver{file: file, sizes: map[*yaml.Node]int{}}
	r.resolve(&doc, 0)
	if r.problem != nil {
		return nil, r.problem
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	return root, nil
}

// syntaxProblem takes the line out of the text of a YAML error.
func syntaxProblem(file string, err error) *Problem {
	p := &Problem{Position: Position{File: file}, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(p.Message); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			p.Position.Line, p.Position.Column = line, 1
		}
		p.Message = strings.TrimPrefix(p.Message, m[0])
	}
	p.Message = "not YAML: " + p.Message
	p.Hint = "the mistake is in the block that begins here: look at indentation, colons and quotes"
	return p
}

// resolver replaces aliases by what they stand for and carries out merge keys.
type resolver struct {
	file string
	// sizes holds, for each node done, how many nodes a walk over it meets; 0
	// while it is being resolved, so that an anchor inside itself is found.
	sizes   map[*yaml.Node]int
	problem *Problem
}

func (r *resolver) fail(n *yaml.Node, message, hint string) int {
	if r.problem == nil {
		r.problem = &Problem{Position: Position{r.file, n.Line, n.Column}, Message: message, Hint: hint}
	}
	return 1
}

func (r *resolver) resolve(n *yaml.Node, depth int) int {
	if size, seen := r.sizes[n]; seen {
		if size == 0 {
			return r.fail(n, "an anchor holds an alias of itself", "repeat the values in place of the alias")
		}
		return size
	}
	if depth > maxDepth {
		return r.fail(n, fmt.Sprintf("nested deeper than %d levels", maxDepth), "look for an unclosed bracket or runaway indentation")
	}
	r.sizes[n] = 0
	size := 1
	for i, child := range n.Content {
		if child.Kind == yaml.AliasNode {
			child = child.Alias
			n.Content[i] = child
		}
		size += r.resolve(child, depth+1)
		if r.problem != nil {
			return size
		}
		if size > maxNodes {
			return r.fail(n, fmt.Sprintf("more than %d values, counting aliases", maxNodes), "aliases multiply what they repeat: use fewer")
		}
	}
	if n.Kind == yaml.MappingNode {
		size += r.merge(n)
	}
	r.sizes[n] = size
	return size
}

// merge carries out the << keys of a mapping: keys that are written out win,
// then those of earlier merges. It returns how many nodes that added.
func (r *resolver) merge(n *yaml.Node) int {
	var own, merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!merge" {
			own = append(own, key, value)
			continue
		}
		sources := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			sources = value.Content
		}
		for _, s := range sources {
			if s.Kind != yaml.MappingNode {
				return r.fail(value, "<< takes a mapping or a list of mappings", "write <<: *anchor")
			}
			merged = append(merged, s.Content...)
		}
	}
	if merged == nil {
		return 0
	}
	seen := map[string]bool{}
	for i := 0; i < len(own); i += 2 {
		seen[own[i].Value] = true
	}
	size := 0
	for i := 0; i+1 < len(merged); i += 2 {
		if key := merged[i].Value; !seen[key] {
			seen[key] = true
			own = append(own, merged[i], merged[i+1])
			size += 1 + r.sizes[merged[i+1]]
		}
	}
	n.Content = own
	return size
}
