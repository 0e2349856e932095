package policy

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// certificateMatch is what a client certificate must have. All that is set must
// hold.
type certificateMatch struct {
	// fingerprints and hashes are lists, one of which it must be.
	fingerprints, hashes []string
	// names are tests that one of its names of a type must pass.
	names []nameTests
}

type nameTests struct {
	key string // san_email, san_dns or san_uri
	textTests
}

func (m certificateMatch) phrase(name string) string {
	var parts []string
	add := func(what string, values []string) {
		if values != nil {
			parts = append(parts, what+" "+test{"in", values}.verb()+" "+quoteSome(values))
		}
	}
	add("fingerprint", m.fingerprints)
	add("spki_hash", m.hashes)
	for _, n := range m.names {
		parts = append(parts, n.phrase(n.key))
	}
	return name + ": " + strings.Join(parts, " and ")
}

func (m certificateMatch) key() string { return fmt.Sprintf("%q", m) }

func (m certificateMatch) alternatives(_ *criterion, ref string) [][]string {
	var conditions []string
	if m.fingerprints != nil {
		conditions = append(conditions, fmt.Sprintf("%s.fingerprint in %s", ref, set(m.fingerprints)))
	}
	if m.hashes != nil {
		conditions = append(conditions, fmt.Sprintf("%s.spki_hash in %s", ref, set(m.hashes)))
	}
	for _, n := range m.names {
		// Counted, so that one list is not gone through again for each name of another.
		tests := strings.Join(n.conditions("value"), "; ")
		conditions = append(conditions, fmt.Sprintf("count([value | some value in %s.%s; %s]) > 0", ref, n.key, tests))
	}
	return [][]string{conditions}
}

func (m certificateMatch) hold(c *Certificate) bool {
	if c == nil ||
		m.fingerprints != nil && !slices.Contains(m.fingerprints, c.Fingerprint) ||
		m.hashes != nil && !slices.Contains(m.hashes, c.SPKIHash) {
		return false
	}
	for _, n := range m.names {
		if !slices.ContainsFunc(c.names(n.key), n.hold) {
			return false
		}
	}
	return true
}

func (c *Certificate) names(key string) []string {
	switch key {
	case "san_email":
		return c.SANEmail
	case "san_dns":
		return c.SANDNS
	default:
		return c.SANURI
	}
}

func (p *parser) certificate(e entry) (operand, bool) {
	names := []string{"fingerprint", "spki_hash", "san_email", "san_dns", "san_uri"}
	if e.value.Kind != yaml.MappingNode {
		p.problem(at(e), "write fingerprint: and the SHA-256 of the certificate in hex", "expected what %s must have (%s), found %s", e.name, strings.Join(names, ", "), describe(e.value))
		return nil, false
	}
	before := len(p.problems)
	var m certificateMatch
	for _, f := range p.entries(e.value) {
		switch f.name {
		case "fingerprint":
			m.fingerprints = p.hashes(f, fingerprint, "write it as 64 lower-case hex digits, or as 32 upper-case pairs with colons between")
		case "spki_hash":
			m.hashes = p.hashes(f, spkiHash, "write the SHA-256 of the public key info in base64")
		case "san_email", "san_dns", "san_uri":
			tests, ok := p.tests(f, textMatchers())
			if ok {
				m.names = append(m.names, nameTests{f.name, tests})
			}
		default:
			p.problem(f.key, suggest(f.name, names), "unknown key %q for %s, expected one of %s", f.name, e.name, strings.Join(names, ", "))
		}
	}
	if m.fingerprints == nil && m.hashes == nil && m.names == nil && len(p.problems) == before {
		p.problem(at(e), "", "expected what %s must have, found nothing", e.name)
	}
	slices.SortFunc(m.names, func(a, b nameTests) int { return strings.Compare(a.key, b.key) })
	return m, len(p.problems) == before
}

// hashes reads one or several hashes in a form.
func (p *parser) hashes(e entry, form func(string) (string, bool), hint string) []string {
	nodes := []*yaml.Node{e.value}
	if e.value.Kind == yaml.SequenceNode {
		nodes = e.value.Content
	}
	hashes := []string{}
	for _, n := range nodes {
		n = resolve(n)
		place := n
		if isNull(n) && n == e.value {
			place = at(e)
		}
		if !isScalar(n) {
			p.problem(place, hint, "expected one value for %s, found %s", e.name, describe(n))
			continue
		}
		hash, ok := form(n.Value)
		if !ok {
			p.problem(n, hint, "%s is no %s", plain(clip(n.Value)), e.name)
			continue
		}
		hashes = append(hashes, hash)
	}
	if len(nodes) == 0 {
		p.problem(at(e), hint, "%s has no values", e.name)
	}
	return hashes
}

const hashBytes = 32

func fingerprint(s string) (string, bool) {
	if pairs := strings.Split(s, ":"); len(pairs) == hashBytes {
		if strings.ToUpper(s) != s || slices.ContainsFunc(pairs, func(pair string) bool { return len(pair) != 2 }) {
			return "", false
		}
		s = strings.ToLower(strings.Join(pairs, ""))
	}
	decoded, err := hex.DecodeString(s)
	return s, err == nil && len(decoded) == hashBytes && strings.ToLower(s) == s
}

// spkiHash writes a hash as that of a certificate is written: base64 has several
// ways for one value.
func spkiHash(s string) (string, bool) {
	decoded, err := base64.StdEncoding.DecodeString(s)
	return base64.StdEncoding.EncodeToString(decoded), err == nil && len(decoded) == hashBytes
}
