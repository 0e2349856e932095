package config

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// The values of downstream_mtls.enforcement.
const (
	// EnforceDefaultDeny has every policy deny a client without a good certificate.
	EnforceDefaultDeny = "policy_with_default_deny"
	// EnforcePolicy leaves certificates to the criteria of policies.
	EnforcePolicy = "policy"
	// EnforceReject has connections refused without a good certificate.
	EnforceReject = "reject_connection"
)

// mtlsKeys are the keys of downstream_mtls. The environment has a form of each,
// which environment puts among the settings as "downstream_mtls." and the key.
func mtlsKeys() []string {
	return []string{"ca", "ca_file", "crl", "crl_file", "enforcement", "match_subject_alt_names", "max_verify_depth"}
}

// downstreamMTLS reads what is asked of client certificates.
func (l *loader) downstreamMTLS(s settings) {
	before := len(l.problems)
	v, given := s["downstream_mtls"]
	mtls := &DownstreamMTLS{Enforcement: EnforceDefaultDeny}
	mtls.MaxVerifyDepth = 1
	own := settings{}
	if given {
		mtls.Position = v.at()
		own = l.fields(v, mtlsKeys()...)
	}
	for _, key := range mtlsKeys() {
		if override, ok := s["downstream_mtls."+key]; ok {
			if !given {
				v, given, mtls.Position = override, true, override.at()
			}
			if sibling := sibling(override.key); sibling != "" && !s[sibling].env {
				delete(own, strings.TrimPrefix(sibling, "downstream_mtls."))
			}
			own[key] = override
		}
	}
	if !given {
		return
	}
	l.cfg.DownstreamMTLS = mtls
	if e, ok := own["enforcement"]; ok {
		mtls.Enforcement, _ = l.oneOf(e, EnforceDefaultDeny, EnforcePolicy, EnforceReject)
	}
	if e, ok := own["max_verify_depth"]; ok {
		depth, _ := l.whole(e)
		mtls.MaxVerifyDepth = int(depth)
	}
	l.clientCA(own, mtls)
	if e, ok := own["match_subject_alt_names"]; ok {
		mtls.MatchSubjectAltNames = l.subjectAltNames(e)
	}
	if l.failedSince(before) {
		return
	}
	if mtls.CA == nil {
		l.withoutCA(v, own, mtls)
	} else if _, err := policy.NewClientCA(mtls.ClientCAConfig); err != nil {
		l.problem(v.at(), "check the files and the expressions", "downstream_mtls: %v", err)
	}
	if l.cfg.Server.Insecure {
		l.warn(v.at(), "remove insecure_server, or downstream_mtls", "downstream_mtls: no client certificate can arrive, because insecure_server leaves TLS to others")
	}
}

// clientCA reads the authority and its revocation lists.
func (l *loader) clientCA(own settings, mtls *DownstreamMTLS) {
	var authorities []*x509.Certificate
	if v, content, ok := l.pem(own, "ca"); ok {
		var err error
		if authorities, err = policy.ParseCertificates(content); err != nil {
			l.problem(v.at(), "it holds one or more -----BEGIN CERTIFICATE----- blocks", "%s: %v", v.key, err)
			return
		}
		l.anyValid(v, authorities)
		mtls.CA = content
	}
	v, content, ok := l.pem(own, "crl")
	if mtls.CRL = content; !ok || mtls.CA == nil {
		return
	}
	// With an authority that is good, the lists are all that can be wrong.
	if _, err := policy.NewClientCA(policy.ClientCAConfig{CA: mtls.CA, CRL: content}); err != nil {
		l.problem(v.at(), "it holds one or more -----BEGIN X509 CRL----- blocks", "%s: %s", v.key, strings.TrimPrefix(err.Error(), "crl: "))
		return
	}
	l.currentLists(v, content, authorities)
}

// currentLists warns of revocation lists that refuse everyone or, most likely,
// nobody.
func (l *loader) currentLists(v value, content []byte, authorities []*x509.Certificate) {
	for n := 1; ; n++ {
		block, rest := pem.Decode(content)
		if block == nil {
			return
		}
		content = rest
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			continue // NewClientCA has read it
		}
		if next := list.NextUpdate; !next.IsZero() && l.opts.Now().After(next) {
			l.warn(v.at(), "fetch a new one: until then clients with a certificate of its issuer are refused", "%s: list %d is out of date since %s", v.key, n, next.UTC().Format(time.DateOnly))
		}
		if !slices.ContainsFunc(authorities, func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, list.RawIssuer) }) {
			l.warn(v.at(), "check that it is the list of the authority in ca", "%s: list %d is of an issuer that is not in ca: it counts only for clients that send that issuer's certificate with their own", v.key, n)
		}
	}
}

// withoutCA refuses what would go unchecked for want of an authority.
func (l *loader) withoutCA(v value, own settings, mtls *DownstreamMTLS) {
	if mtls.Enforcement != EnforcePolicy {
		l.problem(v.at(), "add ca_file, or write enforcement: policy", "downstream_mtls: %s needs ca or ca_file", mtls.Enforcement)
	}
	for _, key := range []string{"crl", "crl_file", "match_subject_alt_names", "max_verify_depth"} {
		if v, ok := own[key]; ok {
			l.problem(v.at(), "add ca_file, or remove it", "%s has no effect without ca or ca_file", v.key)
		}
	}
}

// pem reads a key that holds base64 of PEM, or, with _file, the path of PEM.
func (l *loader) pem(own settings, key string) (v value, content []byte, ok bool) {
	inline, hasInline := own[key]
	file, hasFile := own[key+"_file"]
	switch {
	case hasInline && hasFile:
		l.problem(file.at(), "keep one of them", "%s and %s are both set", inline.key, file.key)
		return file, nil, false
	case hasFile:
		content, ok = l.file(file)
		return file, content, ok
	case !hasInline:
		return value{}, nil, false
	}
	text, ok := l.text(inline)
	if !ok {
		return inline, nil, false
	}
	content, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil || len(content) == 0 {
		l.problem(inline.at(), "make it with base64 -w0 "+key+".pem, or name the file with "+key+"_file", "%s is not base64 of PEM", inline.key)
		return inline, nil, false
	}
	return inline, content, true
}

// subjectAltNames reads a list of mappings with one key each: a type and an
// expression.
func (l *loader) subjectAltNames(v value) []policy.SubjectAltNameMatch {
	types := []string{"dns", "email", "ip_address", "uri", "user_principal_name"}
	const hint = "write - dns: '.*\\.example\\.com'"
	if v.env {
		l.problem(v.at(), `write JSON: [{"dns": ".*[.]example[.]com"}]`, "%s: want a list, not text", v.key)
		return nil
	}
	var list []policy.SubjectAltNameMatch
	for _, e := range l.elements(v) {
		if e.node.Kind != yaml.MappingNode || len(e.node.Content) != 2 {
			l.problem(e.at(), hint, "%s: want one type and its expression", e.key)
			continue
		}
		for _, m := range l.members(e) {
			text, ok := l.text(m.value)
			switch {
			case !ok:
				continue
			case !slices.Contains(types, m.name):
				l.problem(m.at, "it is one of "+strings.Join(types, ", "), "%s: unknown type %q", e.key, clip(m.name))
				continue
			case text == "":
				l.problem(m.value.at(), hint, "%s is empty", m.key)
				continue
			case len(text) > longestMatch:
				l.problem(m.value.at(), "at most 4096 characters", "%s is too long", m.key)
				continue
			}
			if _, err := regexp.Compile(text); err != nil {
				l.problem(m.value.at(), "the syntax is RE2: no look-around, no back references", "%s: %s", m.key, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
				continue
			}
			list = append(list, policy.SubjectAltNameMatch{Type: m.name, Pattern: text})
		}
	}
	if len(v.node.Content) == 0 && v.node.Kind == yaml.SequenceNode {
		l.problem(v.at(), "list names, or remove it", "%s is empty", v.key)
	}
	return list
}
