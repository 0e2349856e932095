package policy

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"
)

const (
	maxCertificatesSize = 1 << 20
	maxCertificates     = 1000
	maxListsSize        = 16 << 20
	maxLists            = 100
	// maxChain, maxNames and maxRSABits bound what a stranger can make us verify.
	maxChain   = 10
	maxNames   = 1000
	maxRSABits = 8192

	tooDeep = "too many certificates stand between it and the authority"
)

// ClientCAConfig is what downstream_mtls says of client certificates.
type ClientCAConfig struct {
	// CA and CRL are PEM, several blocks each. Without CA every certificate,
	// and none, is good.
	CA, CRL []byte
	// MatchSubjectAltNames must have one that matches, unless it is empty.
	MatchSubjectAltNames []SubjectAltNameMatch
	// MaxVerifyDepth is how many certificates may stand above the client's own;
	// 0 is any number.
	MaxVerifyDepth int
}

// SubjectAltNameMatch is an expression over one type of name.
type SubjectAltNameMatch struct {
	// Type is dns, email, ip_address, uri or user_principal_name.
	Type string
	// Pattern is RE2 and must match the whole name.
	Pattern string
}

// ClientCA tells which client certificates are good. It is immutable. Without an
// authority, as nil and the zero value are, every certificate, and none, is good.
type ClientCA struct {
	authorities []*x509.Certificate
	roots       *x509.CertPool
	lists       []revocationList
	names       []nameMatch
	depth       int
}

// revocationList is a CRL with what it revokes by serial number.
type revocationList struct {
	*x509.RevocationList
	revoked map[string]bool
}

type nameMatch struct {
	typ     string
	pattern *regexp.Regexp
}

// NewClientCA reads the authority's certificates and revocation lists. An error
// begins with the key that is at fault: ca, crl, match_subject_alt_names or
// max_verify_depth.
func NewClientCA(c ClientCAConfig) (*ClientCA, error) {
	a := &ClientCA{depth: c.MaxVerifyDepth}
	if a.depth < 0 {
		return nil, errors.New("max_verify_depth: it is negative")
	}
	for _, m := range c.MatchSubjectAltNames {
		match, err := newNameMatch(m)
		if err != nil {
			return nil, fmt.Errorf("match_subject_alt_names: %w", err)
		}
		a.names = append(a.names, match)
	}
	if len(c.CA) == 0 {
		if len(c.CRL) > 0 || len(c.MatchSubjectAltNames) > 0 {
			return nil, errors.New("ca: there is none, and without it nothing else is checked")
		}
		return &ClientCA{}, nil
	}
	var err error
	if a.authorities, err = ParseCertificates(c.CA); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	a.roots = x509.NewCertPool()
	for _, authority := range a.authorities {
		a.roots.AddCert(authority)
	}
	if len(c.CRL) > 0 {
		if err := a.readLists(c.CRL); err != nil {
			return nil, fmt.Errorf("crl: %w", err)
		}
	}
	return a, nil
}

func newNameMatch(m SubjectAltNameMatch) (nameMatch, error) {
	types := []string{"dns", "email", "ip_address", "uri", "user_principal_name"}
	if !slices.Contains(types, m.Type) {
		return nameMatch{}, fmt.Errorf("unknown type %q", m.Type)
	}
	// On its own first: "a)|(b" would slip out of the group.
	if _, err := regexp.Compile(m.Pattern); err != nil {
		return nameMatch{}, fmt.Errorf("%s: %w", m.Type, err)
	}
	pattern, err := regexp.Compile(`\A(?:` + m.Pattern + `)\z`)
	if err != nil {
		return nameMatch{}, fmt.Errorf("%s: %w", m.Type, err)
	}
	return nameMatch{typ: m.Type, pattern: pattern}, nil
}

func (a *ClientCA) readLists(content []byte) error {
	blocks, err := decodePEM(content, "X509 CRL", maxListsSize, maxLists)
	if err != nil {
		return err
	}
	for i, der := range blocks {
		parsed, err := x509.ParseRevocationList(der)
		if err != nil {
			return fmt.Errorf("list %d: %w", i+1, err)
		}
		list := revocationList{RevocationList: parsed, revoked: map[string]bool{}}
		for _, entry := range parsed.RevokedCertificateEntries {
			list.revoked[entry.SerialNumber.String()] = true
		}
		if !list.understood() {
			return fmt.Errorf("list %d: delta and indirect lists are not supported, only complete ones", i+1)
		}
		parsed.RevokedCertificateEntries = nil // they are in revoked
		for _, authority := range a.authorities {
			if list.isOf(authority) && parsed.CheckSignatureFrom(authority) != nil {
				return fmt.Errorf("list %d: the authority %q did not sign it, or may not sign such lists", i+1, authority.Subject)
			}
		}
		a.lists = append(a.lists, list)
	}
	return nil
}

// understood reports whether the list means what it seems to: a critical extension
// may change that (RFC 5280, section 5.2). The scope of a list, which is one, may
// stay unread: we know of what it revokes by that.
func (l revocationList) understood() bool {
	scope := asn1.ObjectIdentifier{2, 5, 29, 28} // issuing distribution point
	for _, e := range l.Extensions {
		if e.Critical && !e.Id.Equal(scope) {
			return false
		}
	}
	for _, revoked := range l.RevokedCertificateEntries {
		for _, e := range revoked.Extensions {
			if e.Critical {
				return false
			}
		}
	}
	return true
}

// isOf reports whether the list claims to come from issuer. Where both say which
// key they mean, an authority's older key of the same name is another issuer.
func (l revocationList) isOf(issuer *x509.Certificate) bool {
	if !bytes.Equal(l.RawIssuer, issuer.RawSubject) {
		return false
	}
	return len(l.AuthorityKeyId) == 0 || len(issuer.SubjectKeyId) == 0 || bytes.Equal(l.AuthorityKeyId, issuer.SubjectKeyId)
}

// Check says why a chain, the client's own certificate first, is not good at a
// time, or "" for a good one: it completes "The certificate is not good: …" and is
// fit for strangers. An empty chain is that of a client without a certificate. Until
// is when the answer may change, always after now, the zero time for never.
//
// A good chain leads to an authority, at each step for use by clients, over no more
// certificates than allowed; one of the client's names matches, where names are
// asked for; and no list of the issuer of the client's certificate revokes it. Lists
// of other issuers say nothing, and an issuer may have none. An issuer whose lists
// are all past their next update refuses everyone: a list is there so that the
// revoked stay out, and who was revoked since it does not say. Envoy and other
// servers do the same.
func (a *ClientCA) Check(chain []*x509.Certificate, now time.Time) (problem string, until time.Time) {
	switch {
	case a == nil || a.roots == nil:
		return "", time.Time{}
	case len(chain) == 0:
		return "no client certificate was presented", time.Time{}
	case len(chain) > maxChain:
		return fmt.Sprintf("it comes in a chain of more than %d certificates", maxChain), time.Time{}
	case nameCount(chain[0]) > maxNames:
		return fmt.Sprintf("it has more than %d names", maxNames), time.Time{}
	case slices.ContainsFunc(chain, oversized):
		return fmt.Sprintf("a key in its chain is longer than %d bits", maxRSABits), time.Time{}
	}
	if now.IsZero() {
		now = now.Add(1) // to crypto/x509 the zero time is the present
	}
	return a.verify(chain, now), a.nextEdge(chain, now)
}

func oversized(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	return ok && key.N.BitLen() > maxRSABits
}

func (a *ClientCA) verify(presented []*x509.Certificate, now time.Time) (problem string) {
	leaf, intermediates := presented[0], x509.NewCertPool()
	for _, c := range presented[1:] {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return chainProblem(err, leaf, now)
	}
	// Another way to the same authority does not undo a revocation.
	for _, chain := range chains {
		if problem := a.revocation(chain, now); problem != "" {
			return problem
		}
	}
	short := func(chain []*x509.Certificate) bool { return a.depth == 0 || len(chain)-1 <= a.depth }
	if !slices.ContainsFunc(chains, short) {
		return tooDeep
	}
	if len(a.names) > 0 && !slices.ContainsFunc(a.names, func(m nameMatch) bool { return slices.ContainsFunc(namesOf(leaf, m.typ), m.pattern.MatchString) }) {
		return "none of its names matches"
	}
	return ""
}

// revocation says why lists of the issuer speak against a certificate.
func (a *ClientCA) revocation(chain []*x509.Certificate, now time.Time) (problem string) {
	leaf, issuer := chain[0], chain[min(1, len(chain)-1)]
	var listed, current bool
	for _, list := range a.lists {
		if !list.isOf(issuer) {
			continue
		}
		if list.CheckSignatureFrom(issuer) != nil {
			return "the revocation list of its issuer is not signed by the issuer"
		}
		if list.revoked[leaf.SerialNumber.String()] {
			return "it was revoked"
		}
		listed, current = true, current || list.NextUpdate.IsZero() || !now.After(list.NextUpdate)
	}
	if listed && !current {
		return "the revocation list of its issuer is out of date"
	}
	return ""
}

// chainProblem words an error of crypto/x509.
func chainProblem(err error, leaf *x509.Certificate, now time.Time) string {
	if text := validity(leaf, now); text != "" {
		return "it " + text
	}
	var critical x509.UnhandledCriticalExtension
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &critical):
		return "it demands a check that we do not know"
	case !errors.As(err, &invalid):
		return "it is not signed by an authority that we trust"
	}
	switch invalid.Reason {
	case x509.Expired: // or not yet valid
		return "the certificate of its authority " + validity(invalid.Cert, now)
	case x509.IncompatibleUsage:
		return "it was not issued for use by clients"
	case x509.CANotAuthorizedForThisName:
		return "its authority may not issue one with such names"
	case x509.TooManyIntermediates:
		return tooDeep
	}
	return "it breaks a rule for certificates"
}

func validity(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "expired on " + c.NotAfter.UTC().Format(time.DateOnly)
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.DateOnly)
	}
	return ""
}

// nextEdge is when a certificate or a list begins or ceases to be valid.
func (a *ClientCA) nextEdge(chain []*x509.Certificate, now time.Time) time.Time {
	var next time.Time
	edge := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, c := range slices.Concat(chain, a.authorities) {
		edge(c.NotBefore)
		edge(c.NotAfter.Add(1)) // which is itself still inside
	}
	for _, list := range a.lists {
		if !list.NextUpdate.IsZero() {
			edge(list.NextUpdate.Add(1))
		}
	}
	return next
}

// NewCertificate is what policies see of a certificate. Of each type of name it
// has at most 1,000: ParseCertificates lets none with more pass.
func NewCertificate(leaf *x509.Certificate) *Certificate {
	fingerprint, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return &Certificate{
		Fingerprint: hex.EncodeToString(fingerprint[:]),
		SPKIHash:    base64.StdEncoding.EncodeToString(key[:]),
		SANEmail:    namesOf(leaf, "email"),
		SANDNS:      namesOf(leaf, "dns"),
		SANURI:      namesOf(leaf, "uri"),
	}
}

// nameCount leaves other names out, of which a certificate has no list.
func nameCount(c *x509.Certificate) int {
	return len(c.EmailAddresses) + len(c.DNSNames) + len(c.URIs) + len(c.IPAddresses)
}

// namesOf are the subject alternative names of a type, at most maxNames.
func namesOf(c *x509.Certificate, typ string) []string {
	var names []string
	switch typ {
	case "dns":
		names = slices.Clone(c.DNSNames)
	case "email":
		names = slices.Clone(c.EmailAddresses)
	case "uri":
		for _, u := range c.URIs {
			names = append(names, u.String())
		}
	case "ip_address":
		for _, ip := range c.IPAddresses {
			names = append(names, ip.String())
		}
	case "user_principal_name":
		names = principalNames(c)
	}
	return names[:min(len(names), maxNames)]
}

// principalNames are the names by which Active Directory knows a person, which
// crypto/x509 leaves unread: GeneralName.otherName of RFC 5280, section 4.2.1.6.
func principalNames(c *x509.Certificate) []string {
	subjectAltName := asn1.ObjectIdentifier{2, 5, 29, 17}
	var names []string
	for _, e := range c.Extensions {
		if !e.Id.Equal(subjectAltName) {
			continue
		}
		var all asn1.RawValue
		if _, err := asn1.Unmarshal(e.Value, &all); err != nil {
			return nil
		}
		for rest := all.Bytes; len(rest) > 0 && len(names) < maxNames; {
			var name asn1.RawValue
			var err error
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil
			}
			if text, ok := principalName(name); ok {
				names = append(names, text)
			}
		}
	}
	return names
}

func principalName(name asn1.RawValue) (string, bool) {
	if name.Class != asn1.ClassContextSpecific || name.Tag != 0 {
		return "", false
	}
	var id asn1.ObjectIdentifier
	var value asn1.RawValue // [0] EXPLICIT
	rest, err := asn1.Unmarshal(name.Bytes, &id)
	if err != nil || !id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}) {
		return "", false
	}
	if _, err := asn1.Unmarshal(rest, &value); err != nil || value.Class != asn1.ClassContextSpecific || value.Tag != 0 {
		return "", false
	}
	var text asn1.RawValue
	if _, err := asn1.Unmarshal(value.Bytes, &text); err != nil || text.Class != asn1.ClassUniversal || text.Tag != asn1.TagUTF8String || !utf8.Valid(text.Bytes) {
		return "", false
	}
	return string(text.Bytes), true
}

// ParseCertificates reads PEM, as files of certificates hold it and, once its
// escapes are undone, the Chain of X-Forwarded-Client-Cert. It fails if there is no
// certificate, if anything else is among them or damaged, and beyond 1 MiB, 1,000
// certificates or 1,000 names of one.
func ParseCertificates(content []byte) ([]*x509.Certificate, error) {
	blocks, err := decodePEM(content, "CERTIFICATE", maxCertificatesSize, maxCertificates)
	if err != nil {
		return nil, err
	}
	certificates := make([]*x509.Certificate, len(blocks))
	for i, der := range blocks {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i+1, err)
		}
		if nameCount(c) > maxNames {
			return nil, fmt.Errorf("certificate %d: more than %d names", i+1, maxNames)
		}
		certificates[i] = c
	}
	return certificates, nil
}

// decodePEM returns the content of every block, all of which are of one type.
func decodePEM(content []byte, typ string, maxSize, maxBlocks int) ([][]byte, error) {
	if len(content) > maxSize {
		return nil, fmt.Errorf("larger than %d MiB", maxSize>>20)
	}
	// pem.Decode passes over a damaged block without a word.
	want := bytes.Count(content, []byte("-----BEGIN "))
	if want > maxBlocks {
		return nil, fmt.Errorf("more than %d blocks", maxBlocks)
	}
	var blocks [][]byte
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != typ {
			return nil, fmt.Errorf("block %d is not a -----BEGIN %s----- but another", len(blocks)+1, typ)
		}
		blocks = append(blocks, block.Bytes)
	}
	switch {
	case want == 0:
		return nil, fmt.Errorf("no -----BEGIN %s----- in it", typ)
	case len(blocks) != want:
		return nil, fmt.Errorf("%d of its %d blocks cannot be read", want-len(blocks), want)
	}
	return blocks, nil
}
