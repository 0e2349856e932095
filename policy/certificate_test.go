package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// certificatesAt is when certificates of these tests are looked at. They are valid
// from a day before to a day after.
var certificatesAt = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// issuer is an authority of a test.
type issuer struct {
	t      testing.TB
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial *int64
	above  *issuer
}

func newIssuer(t testing.TB, name string, change ...func(*x509.Certificate)) *issuer {
	t.Helper()
	i := &issuer{t: t, serial: new(int64)}
	return i.sign(name, append([]func(*x509.Certificate){authority}, change...)...)
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
}

// under is an authority below i.
func (i *issuer) under(name string, change ...func(*x509.Certificate)) *issuer {
	return i.sign(name, append([]func(*x509.Certificate){authority}, change...)...)
}

// leaf is a client's certificate and those above it, without the one at the end.
func (i *issuer) leaf(change ...func(*x509.Certificate)) []*x509.Certificate {
	chain := []*x509.Certificate{i.sign("client", change...).cert}
	for ; i.above != nil; i = i.above {
		chain = append(chain, i.cert)
	}
	return chain
}

// sign makes a certificate; without a certificate of its own the issuer signs with
// the new key.
func (i *issuer) sign(name string, change ...func(*x509.Certificate)) *issuer {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	*i.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(*i.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: certificatesAt.Add(-day), NotAfter: certificatesAt.Add(day),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range change {
		c(template)
	}
	parent, signer, above := i.cert, i.key, i
	if parent == nil {
		parent, signer, above = template, key, nil
	}
	var public any = &key.PublicKey
	if template.PublicKey != nil {
		public = template.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		i.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return &issuer{t: i.t, cert: cert, key: key, serial: i.serial, above: above}
}

func (i *issuer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// list is a revocation list that is good for an hour unless changed.
func (i *issuer) list(revoked []*x509.Certificate, change ...func(*x509.RevocationList)) []byte {
	i.t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: certificatesAt.Add(-day), NextUpdate: certificatesAt.Add(time.Hour)}
	for _, c := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: certificatesAt})
	}
	for _, c := range change {
		c(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, i.cert, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// forged is a list in i's name that a key signed whatever the certificate says.
func (i *issuer) forged(key *ecdsa.PrivateKey, revoked []*x509.Certificate) []byte {
	cert := *i.cert
	cert.PublicKey, cert.KeyUsage = &key.PublicKey, x509.KeyUsageCRLSign
	return (&issuer{t: i.t, cert: &cert, key: key}).list(revoked)
}

func outdated(l *x509.RevocationList) { l.NextUpdate = certificatesAt.Add(-time.Minute) }

func critical(id ...int) pkix.Extension {
	return pkix.Extension{Id: id, Critical: true, Value: []byte{asn1.TagNull, 0}}
}

// withPrincipalName is the extension with a name of Active Directory.
func withPrincipalName(t testing.TB, name string) pkix.Extension {
	t.Helper()
	text, err := asn1.MarshalWithParams(name, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	other, err := asn1.MarshalWithParams(struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}{
		asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3},
		asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: text},
	}, "tag:0")
	if err != nil {
		t.Fatal(err)
	}
	names, err := asn1.Marshal([]asn1.RawValue{{FullBytes: other}, {Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("host.example.com")}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, []byte("text between\n")) }

func TestClientCA(t *testing.T) {
	root, foreign := newIssuer(t, "root"), newIssuer(t, "foreign")
	twin := newIssuer(t, "root") // the same name, another key
	one := root.under("one")
	two := one.under("two")
	expiredOne := root.under("expired one", func(c *x509.Certificate) { c.NotAfter = certificatesAt.Add(-time.Hour) })
	expiredRoot := newIssuer(t, "old root", func(c *x509.Certificate) { c.NotAfter = certificatesAt.Add(-time.Hour) })
	narrow := root.under("narrow", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} })
	mute := root.under("mute", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	selfSigned := (&issuer{t: t, serial: new(int64)}).sign("self")
	named := func(c *x509.Certificate) {
		c.DNSNames, c.EmailAddresses = []string{"laptop.example.com"}, []string{"ana@example.com"}
		c.URIs, c.IPAddresses = []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/ana"}}, []net.IP{net.IPv4(192, 0, 2, 7)}
	}
	good, stolen, below := root.leaf(), root.leaf(), one.leaf()
	principal := root.leaf(func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{withPrincipalName(t, "ana@corp.example")}
	})
	match := func(typ, pattern string) []SubjectAltNameMatch { return []SubjectAltNameMatch{{typ, pattern}} }
	// Two authorities vouch for the key of "one", and the second calls it otherwise.
	cross := *one
	cross.cert = foreign.sign("one", authority, func(c *x509.Certificate) { c.PublicKey, c.SubjectKeyId = &one.key.PublicKey, []byte("other") }).cert
	detour := append(cross.leaf(), one.cert)
	// The key of "root" signs in another name.
	renamed := *root
	renamed.cert = foreign.sign("renamed", authority, func(c *x509.Certificate) { c.PublicKey, c.SubjectKeyId = &root.key.PublicKey, root.cert.SubjectKeyId }).cert

	tests := []struct {
		name   string
		config ClientCAConfig
		chain  []*x509.Certificate
		want   string
	}{
		{"good", ClientCAConfig{CA: root.pem()}, good, ""},
		{"good by the second authority", ClientCAConfig{CA: join(foreign.pem(), root.pem())}, good, ""},
		{"without an authority all are good", ClientCAConfig{MaxVerifyDepth: 1}, foreign.leaf(), ""},
		{"without an authority none is good too", ClientCAConfig{}, nil, ""},
		{"none", ClientCAConfig{CA: root.pem()}, nil, "no client certificate was presented"},
		{"expired", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.NotAfter = certificatesAt.Add(-time.Second) }), "it expired on 2026-01-02"},
		{"not yet valid", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.NotBefore = certificatesAt.Add(time.Second) }), "it is not valid before 2026-01-02"},
		{"in its last second", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.NotAfter = certificatesAt }), ""},
		{"in its first second", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.NotBefore = certificatesAt }), ""},
		{"a server's", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "it was not issued for use by clients"},
		{"of no stated use", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), ""},
		{"below an authority for servers", ClientCAConfig{CA: root.pem()}, root.under("servers", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }).leaf(), "it was not issued for use by clients"},
		{"foreign", ClientCAConfig{CA: root.pem()}, foreign.leaf(), "it is not signed by an authority that we trust"},
		{"foreign, with its authority in the chain", ClientCAConfig{CA: root.pem()}, append(foreign.leaf(), foreign.cert), "it is not signed by an authority that we trust"},
		{"of an authority by the same name", ClientCAConfig{CA: root.pem()}, twin.leaf(), "it is not signed by an authority that we trust"},
		{"signed by a client", ClientCAConfig{CA: root.pem()}, root.sign("client").leaf(), "it is not signed by an authority that we trust"},
		{"self-signed", ClientCAConfig{CA: root.pem()}, []*x509.Certificate{selfSigned.cert}, "it is not signed by an authority that we trust"},
		{"self-signed and trusted as it is", ClientCAConfig{CA: selfSigned.pem(), MaxVerifyDepth: 1}, []*x509.Certificate{selfSigned.cert}, ""},
		{"intermediates missing", ClientCAConfig{CA: root.pem()}, two.leaf()[:2], "it is not signed by an authority that we trust"},
		{"intermediates in another order", ClientCAConfig{CA: root.pem()}, []*x509.Certificate{two.leaf()[0], one.cert, root.cert, two.cert}, ""},
		{"unused certificates in the chain", ClientCAConfig{CA: root.pem()}, append(root.leaf(), foreign.cert, two.cert, expiredOne.cert), ""},
		{"an expired intermediate", ClientCAConfig{CA: root.pem()}, expiredOne.leaf(), "the certificate of its authority expired on 2026-01-02"},
		{"an expired authority", ClientCAConfig{CA: expiredRoot.pem()}, expiredRoot.leaf(), "the certificate of its authority expired on 2026-01-02"},
		{"an intermediate of the future", ClientCAConfig{CA: root.pem()}, root.under("early", func(c *x509.Certificate) { c.NotBefore = certificatesAt.Add(day) }).leaf(), "the certificate of its authority is not valid before 2026-01-03"},
		{"names that the authority may not issue", ClientCAConfig{CA: root.pem()}, narrow.leaf(named), "its authority may not issue one with such names"},
		{"a critical extension", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical(1, 2, 3)} }), "it demands a check that we do not know"},

		{"depth 1, direct", ClientCAConfig{CA: root.pem(), MaxVerifyDepth: 1}, good, ""},
		{"depth 1, one between", ClientCAConfig{CA: root.pem(), MaxVerifyDepth: 1}, below, "too many certificates stand between it and the authority"},
		{"depth 2, one between", ClientCAConfig{CA: root.pem(), MaxVerifyDepth: 2}, below, ""},
		{"depth 2, two between", ClientCAConfig{CA: root.pem(), MaxVerifyDepth: 2}, two.leaf(), "too many certificates stand between it and the authority"},
		{"any depth, two between", ClientCAConfig{CA: root.pem()}, two.leaf(), ""},
		{"depth 1, an authority in the middle", ClientCAConfig{CA: one.pem(), MaxVerifyDepth: 1}, below, ""},
		{"depth 1, one in the middle and the one above", ClientCAConfig{CA: join(one.pem(), root.pem()), MaxVerifyDepth: 1}, below, ""},
		{"too long for the authority", ClientCAConfig{CA: root.pem()}, root.under("last", func(c *x509.Certificate) { c.MaxPathLenZero = true }).under("beyond").leaf(), "too many certificates stand between it and the authority"},

		{"revoked", ClientCAConfig{CA: root.pem(), CRL: root.list(stolen)}, stolen, "it was revoked"},
		{"another is revoked", ClientCAConfig{CA: root.pem(), CRL: root.list(stolen)}, good, ""},
		{"revoked by the second list", ClientCAConfig{CA: root.pem(), CRL: join(root.list(good), root.list(stolen))}, stolen, "it was revoked"},
		{"revoked by an older list", ClientCAConfig{CA: root.pem(), CRL: join(root.list(stolen, outdated), root.list(nil))}, stolen, "it was revoked"},
		{"revoked by a list without end", ClientCAConfig{CA: root.pem(), CRL: root.list(stolen, func(l *x509.RevocationList) { l.NextUpdate = certificatesAt.Add(1000 * day) })}, stolen, "it was revoked"},
		{"revoked below an intermediate", ClientCAConfig{CA: root.pem(), CRL: one.list(below)}, below, "it was revoked"},
		{"revoked, and expired besides", ClientCAConfig{CA: root.pem(), CRL: root.list(stolen, outdated)}, stolen, "it was revoked"},
		{"the intermediate is revoked, which is not asked", ClientCAConfig{CA: root.pem(), CRL: root.list([]*x509.Certificate{one.cert})}, below, ""},
		{"no list of its issuer", ClientCAConfig{CA: root.pem(), CRL: root.list(stolen)}, below, ""},
		{"a list of another issuer with its serial number", ClientCAConfig{CA: root.pem(), CRL: foreign.list(good)}, good, ""},
		{"a list of the older key of its issuer", ClientCAConfig{CA: root.pem(), CRL: twin.list(good)}, good, ""},
		{"a forged list", ClientCAConfig{CA: root.pem(), CRL: one.forged(foreign.key, nil)}, below, "the revocation list of its issuer is not signed by the issuer"},
		{"a forged list that revokes", ClientCAConfig{CA: root.pem(), CRL: one.forged(foreign.key, below)}, below, "the revocation list of its issuer is not signed by the issuer"},
		{"a list of an issuer that may sign none", ClientCAConfig{CA: root.pem(), CRL: mute.forged(mute.key, nil)}, mute.leaf(), "the revocation list of its issuer is not signed by the issuer"},
		{"a list out of date", ClientCAConfig{CA: root.pem(), CRL: root.list(nil, outdated)}, good, "the revocation list of its issuer is out of date"},
		{"a list out of date, and a newer one", ClientCAConfig{CA: root.pem(), CRL: join(root.list(nil, outdated), root.list(nil))}, good, ""},
		{"a list in its last second", ClientCAConfig{CA: root.pem(), CRL: root.list(nil, func(l *x509.RevocationList) { l.NextUpdate = certificatesAt })}, good, ""},
		{"another issuer's list out of date", ClientCAConfig{CA: root.pem(), CRL: root.list(nil, outdated)}, below, ""},
		{"a list of some certificates", ClientCAConfig{CA: root.pem(), CRL: root.list(stolen, func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{critical(2, 5, 29, 28)} })}, stolen, "it was revoked"},
		{"revoked on one way of two", ClientCAConfig{CA: join(root.pem(), foreign.pem()), CRL: one.list(detour)}, detour, "it was revoked"},
		{"a list of the issuer's key in another name", ClientCAConfig{CA: root.pem(), CRL: renamed.list(good)}, good, ""},

		{"dns", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", `.*\.example\.com`)}, root.leaf(named), ""},
		{"email", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("email", `.*@example\.com`)}, root.leaf(named), ""},
		{"uri", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("uri", `spiffe://example\.com/.*`)}, root.leaf(named), ""},
		{"ip_address", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("ip_address", `192\.0\.2\.\d+`)}, root.leaf(named), ""},
		{"user_principal_name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("user_principal_name", `ana@corp\.example`)}, principal, ""},
		{"dns beside a user_principal_name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", `host\.example\.com`)}, principal, ""},
		{"another user_principal_name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("user_principal_name", `bob@corp\.example`)}, principal, "none of its names matches"},
		{"the second expression", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: append(match("dns", "other"), match("email", "ana.*")...)}, root.leaf(named), ""},
		{"another name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", "other")}, root.leaf(named), "none of its names matches"},
		{"no name at all", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", ".*")}, good, "none of its names matches"},
		{"the right name of another type", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("email", `laptop\.example\.com`)}, root.leaf(named), "none of its names matches"},
		{"the beginning of a name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", "laptop")}, root.leaf(named), "none of its names matches"},
		{"the end of a name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", `example\.com`)}, root.leaf(named), "none of its names matches"},
		{"the beginning or the end of a name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", `laptop|.*m`)}, root.leaf(named), ""},
		{"one line of a name", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", `(?m:^a$)`)}, root.leaf(func(c *x509.Certificate) { c.DNSNames = []string{"a\nb"} }), "none of its names matches"},
		{"the right name of a stranger", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: match("dns", ".*")}, foreign.leaf(named), "it is not signed by an authority that we trust"},

		{"ten in the chain", ClientCAConfig{CA: root.pem()}, slices.Concat(good, slices.Repeat([]*x509.Certificate{foreign.cert}, 9)), ""},
		{"eleven in the chain", ClientCAConfig{CA: root.pem()}, slices.Concat(good, slices.Repeat([]*x509.Certificate{foreign.cert}, 10)), "it comes in a chain of more than 10 certificates"},
		{"1001 names", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) { c.DNSNames = slices.Repeat([]string{"a.example.com"}, 1001) }), "it has more than 1000 names"},
		{"a giant key", ClientCAConfig{CA: root.pem()}, root.leaf(func(c *x509.Certificate) {
			c.PublicKey = &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 9000, 1), E: 65537}
		}), "a key in its chain is longer than 8192 bits"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ca, err := NewClientCA(test.config)
			if err != nil {
				t.Fatal(err)
			}
			got, until := ca.Check(test.chain, certificatesAt)
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if !until.IsZero() && !until.After(certificatesAt) {
				t.Errorf("the answer may change at %v, which is past", until)
			}
		})
	}
}

func TestNewClientCARefuses(t *testing.T) {
	root, one := newIssuer(t, "root"), newIssuer(t, "one")
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")})
	tests := []struct {
		name   string
		config ClientCAConfig
		want   string
	}{
		{"a list without an authority", ClientCAConfig{CRL: root.list(nil)}, "ca: there is none, and without it nothing else is checked"},
		{"names without an authority", ClientCAConfig{MatchSubjectAltNames: []SubjectAltNameMatch{{"dns", "a"}}}, "ca: there is none, and without it nothing else is checked"},
		{"text", ClientCAConfig{CA: []byte("hello")}, "ca: no -----BEGIN CERTIFICATE----- in it"},
		{"a key", ClientCAConfig{CA: join(root.pem(), key)}, "ca: block 2 is not a -----BEGIN CERTIFICATE----- but another"},
		{"a damaged certificate", ClientCAConfig{CA: join(root.pem(), bytes.Replace(one.pem(), []byte("M"), []byte("!"), 1))}, "ca: 1 of its 2 blocks cannot be read"},
		{"a cut certificate", ClientCAConfig{CA: join(root.pem(), one.pem()[:100])}, "ca: 1 of its 2 blocks cannot be read"},
		{"a certificate of nonsense", ClientCAConfig{CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})}, "ca: certificate 1: x509: malformed certificate"},
		{"too many certificates", ClientCAConfig{CA: bytes.Repeat([]byte("-----BEGIN CERTIFICATE-----\n"), 1001)}, "ca: more than 1000 blocks"},
		{"too large", ClientCAConfig{CA: make([]byte, 1<<20+1)}, "ca: larger than 1 MiB"},
		{"lists of text", ClientCAConfig{CA: root.pem(), CRL: []byte("x")}, "crl: no -----BEGIN X509 CRL----- in it"},
		{"a certificate as a list", ClientCAConfig{CA: root.pem(), CRL: root.pem()}, "crl: block 1 is not a -----BEGIN X509 CRL----- but another"},
		{"a damaged list", ClientCAConfig{CA: root.pem(), CRL: join(root.list(nil), root.list(nil)[:100])}, "crl: 1 of its 2 blocks cannot be read"},
		{"a forged list", ClientCAConfig{CA: root.pem(), CRL: root.forged(one.key, nil)}, `crl: list 1: the authority "CN=root" did not sign it, or may not sign such lists`},
		{"a delta list", ClientCAConfig{CA: root.pem(), CRL: root.list(nil, func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{critical(2, 5, 29, 27)} })}, "crl: list 1: delta and indirect lists are not supported, only complete ones"},
		{"an indirect list", ClientCAConfig{CA: root.pem(), CRL: root.list([]*x509.Certificate{one.cert}, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{critical(2, 5, 29, 29)}
		})}, "crl: list 1: delta and indirect lists are not supported, only complete ones"},
		{"a type", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: []SubjectAltNameMatch{{"fax", "a"}}}, `match_subject_alt_names: unknown type "fax"`},
		{"an expression", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: []SubjectAltNameMatch{{"dns", "a("}}}, "match_subject_alt_names: dns: error parsing regexp: "},
		{"an expression that leaves its group", ClientCAConfig{CA: root.pem(), MatchSubjectAltNames: []SubjectAltNameMatch{{"dns", "a)|(?:b"}}}, "match_subject_alt_names: dns: error parsing regexp: "},
		{"a depth", ClientCAConfig{CA: root.pem(), MaxVerifyDepth: -1}, "max_verify_depth: it is negative"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewClientCA(test.config)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("the error quotes a key: %v", err)
			}
		})
	}
}

// TestUntil steps from one announced change to the next and shows that the answer
// changes there and nowhere between.
func TestUntil(t *testing.T) {
	root := newIssuer(t, "root", func(c *x509.Certificate) { c.NotAfter = certificatesAt.Add(9 * time.Hour) })
	one := root.under("one", func(c *x509.Certificate) { c.NotBefore = certificatesAt.Add(time.Hour) })
	chain := one.leaf(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = certificatesAt.Add(2*time.Hour), certificatesAt.Add(7*time.Hour)
	})
	ca, err := NewClientCA(ClientCAConfig{CA: root.pem(), CRL: one.list(nil, func(l *x509.RevocationList) { l.NextUpdate = certificatesAt.Add(5 * time.Hour) })})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for now := certificatesAt; !now.IsZero(); {
		problem, until := ca.Check(chain, now)
		got = append(got, fmt.Sprintf("%s: %s", now.Sub(certificatesAt), problem))
		if until.IsZero() {
			if problem, _ := ca.Check(chain, now.Add(1000*day)); !strings.HasSuffix(got[len(got)-1], problem) {
				t.Errorf("never to change, and later it is %q", problem)
			}
			break
		}
		if before, again := ca.Check(chain, until.Add(-1)); before != problem || !again.Equal(until) {
			t.Errorf("until %v it is %q and then, before that time, %q until %v", until, problem, before, again)
		}
		now = until
	}
	want := []string{
		"0s: it is not valid before 2026-01-02",
		"1h0m0s: it is not valid before 2026-01-02",
		"2h0m0s: ",
		"5h0m0.000000001s: the revocation list of its issuer is out of date",
		"7h0m0.000000001s: it expired on 2026-01-02",
		"9h0m0.000000001s: it expired on 2026-01-02",
		"24h0m0.000000001s: it expired on 2026-01-02",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestListWithoutEnd shows that a list that does not say when the next one comes is
// never out of date.
func TestListWithoutEnd(t *testing.T) {
	root := newIssuer(t, "root")
	stolen, good := root.leaf(), root.leaf()
	ca, err := NewClientCA(ClientCAConfig{CA: root.pem(), CRL: root.list(stolen)})
	if err != nil {
		t.Fatal(err)
	}
	ca.lists[0].NextUpdate = time.Time{} // crypto/x509 makes none without, but reads them
	later := certificatesAt.Add(2 * time.Hour)
	if problem, until := ca.Check(good, later); problem != "" || !until.Equal(certificatesAt.Add(day+1)) {
		t.Errorf("good: %q until %v", problem, until)
	}
	if problem, _ := ca.Check(stolen, later); problem != "it was revoked" {
		t.Errorf("revoked: %q", problem)
	}
}

// TestCheckWithoutTime shows that the zero time is not taken for the present.
func TestCheckWithoutTime(t *testing.T) {
	root := newIssuer(t, "root", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(1000 * day) })
	ca, err := NewClientCA(ClientCAConfig{CA: root.pem()})
	if err != nil {
		t.Fatal(err)
	}
	chain := root.leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(1000 * day) })
	if problem, _ := ca.Check(chain, time.Now()); problem != "" {
		t.Fatalf("now: %s", problem)
	}
	if problem, _ := ca.Check(chain, time.Time{}); problem != "it is not valid before 2026-01-01" {
		t.Errorf("at the zero time: %q", problem)
	}
	var none *ClientCA
	if problem, until := none.Check(chain, certificatesAt); problem != "" || !until.IsZero() {
		t.Errorf("without an authority: %q until %v", problem, until)
	}
}

// TestNewCertificate compares with what openssl says of the certificate.
func TestNewCertificate(t *testing.T) {
	const encoded = `-----BEGIN CERTIFICATE-----
MIIB2jCCAYCgAwIBAgIUYwYcs35aie8eGDxoDNlFGPIbn+YwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDYW5hMB4XDTI2MTEyMjA3MzEzNVoXDTM2MTExOTA3MzEzNVow
DjEMMAoGA1UEAwwDYW5hMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE6p5fcqqK
7kIE2AFrhHHru4zWf1S3dAJbCfJQtILEMrlNe/Gympm6kp9P4ZIl4W9mIIJRbTNi
Tps7EpfL1mL8XKOBuzCBuDCBgQYDVR0RBHoweIEPYW5hQGV4YW1wbGUuY29tgQ9h
bmFAZXhhbXBsZS5vcmeCEmxhcHRvcC5leGFtcGxlLmNvbYYYc3BpZmZlOi8vZXhh
bXBsZS5jb20vYW5hhwTAAAIHoCAGCisGAQQBgjcUAgOgEgwQYW5hQGNvcnAuZXhh
bXBsZTATBgNVHSUEDDAKBggrBgEFBQcDAjAdBgNVHQ4EFgQUX83Fck8Ch+GcP2+b
Sk0oZ7MDXqUwCgYIKoZIzj0EAwIDSAAwRQIhAKiE2EfB6kbYicv/hPAEZGJxwycl
2w/ZRI516NDhpfcVAiBV25K2rljeUdw/8ZT1u8XtTU1ud79P9bZGF+QjkkR3sA==
-----END CERTIFICATE-----`
	chain, err := ParseCertificates([]byte(encoded))
	if err != nil {
		t.Fatal(err)
	}
	got := NewCertificate(chain[0])
	want := &Certificate{
		Fingerprint: "51d91976ef67cb79ca9cc13e63b3e3b4b8a9c854c631b7173012af5d8865133a",
		SPKIHash:    "Zoi+wx5lo5vsegG5fBwWqf34zUwfuR9jM6ZWL0VXFts=",
		SANEmail:    []string{"ana@example.com", "ana@example.org"},
		SANDNS:      []string{"laptop.example.com"},
		SANURI:      []string{"spiffe://example.com/ana"},
	}
	if fmt.Sprint(*got) != fmt.Sprint(*want) {
		t.Errorf("got %v\nwant %v", *got, *want)
	}
	if names := principalNames(chain[0]); fmt.Sprint(names) != "[ana@corp.example]" {
		t.Errorf("user principal names %v", names)
	}
}

// FuzzParseCertificates shows that no text makes the parser or the checks panic, and
// that what it returns is within bounds and not good.
func FuzzParseCertificates(f *testing.F) {
	root := newIssuer(f, "root")
	ca, err := NewClientCA(ClientCAConfig{CA: root.pem(), CRL: root.list(nil), MatchSubjectAltNames: []SubjectAltNameMatch{{"user_principal_name", ".*"}}, MaxVerifyDepth: 1})
	if err != nil {
		f.Fatal(err)
	}
	other := newIssuer(f, "other")
	encode := func(chain []*x509.Certificate) (text []byte) {
		for _, c := range chain {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		return text
	}
	f.Add(encode(other.under("one").leaf()))
	f.Add(encode(root.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = nil })))
	f.Add(encode(root.leaf(func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{withPrincipalName(f, "ana@corp.example")}
	}))[:500])
	f.Add(encode(other.leaf(func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{withPrincipalName(f, "ana@corp.example")}
	})))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := ParseCertificates(text)
		if err != nil {
			if len(chain) > 0 || err.Error() == "" {
				t.Errorf("%d certificates with error %q", len(chain), err)
			}
			return
		}
		if len(chain) == 0 || len(chain) > maxCertificates {
			t.Errorf("%d certificates", len(chain))
		}
		c := NewCertificate(chain[0])
		if len(c.SANDNS)+len(c.SANEmail)+len(c.SANURI) > maxNames || len(principalNames(chain[0])) > maxNames {
			t.Errorf("more than %d names", maxNames)
		}
		if problem, _ := ca.Check(chain, certificatesAt); problem == "" {
			t.Error("the certificate is good")
		}
		again, err := ParseCertificates(encode(chain))
		if err != nil || len(again) != len(chain) || !bytes.Equal(again[0].Raw, chain[0].Raw) {
			t.Errorf("encoded again it is not the same: %v", err)
		}
	})
}

// FuzzPrincipalNames shows that no extension makes the reader of other names panic.
func FuzzPrincipalNames(f *testing.F) {
	f.Add(withPrincipalName(f, "ana@corp.example").Value)
	f.Add(withPrincipalName(f, "\xff").Value)
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0xa0, 0x80})
	f.Fuzz(func(t *testing.T, value []byte) {
		c := &x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}}
		names := principalNames(c)
		for _, name := range names {
			if !utf8.ValidString(name) || !bytes.Contains(value, []byte(name)) {
				t.Errorf("name %q of %x", name, value)
			}
		}
		if len(names) > maxNames {
			t.Errorf("%d names", len(names))
		}
	})
}
