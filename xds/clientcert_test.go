package xds

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// issueClient makes a certificate for a client, changed as the test needs it, with the
// chain up to but without the authority at its end.
func (a *authority) issueClient(t testing.TB, name string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	out := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for ; a.parent != nil; a = a.parent {
		out.Certificate = append(out.Certificate, a.cert.Raw)
	}
	return out
}

// under is an authority below a.
func (a *authority) under(t testing.TB, name string) *authority {
	t.Helper()
	issued := a.issueClient(t, name, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	})
	cert, err := x509.ParseCertificate(issued.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: issued.PrivateKey.(*ecdsa.PrivateKey), parent: a}
}

func (a *authority) encoded() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// revoke is a list of what a has revoked.
func (a *authority) revoke(t testing.TB, nextUpdate time.Time, revoked ...tls.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: nextUpdate}
	for _, c := range revoked {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: leaf.SerialNumber, RevocationTime: time.Now().Add(-time.Minute),
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// with is a client that has certificates to offer; it offers the first whoever the
// server says that it trusts.
func (s *stack) with(http2 bool, certificates ...tls.Certificate) *http.Client {
	client := s.client(http2)
	if len(certificates) > 0 {
		client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &certificates[0], nil
		}
	}
	return client
}

func (s *stack) applyMTLS(yaml string, m *config.DownstreamMTLS) {
	s.t.Helper()
	cfg := s.load(yaml)
	cfg.DownstreamMTLS = m
	s.publish(s.build(cfg))
}

// certificateSeen takes apart what authorization was told: the fingerprint and the chain.
func certificateSeen(t *testing.T, values []string) (hash string, chain [][]byte) {
	t.Helper()
	if len(values) != 1 {
		t.Fatalf("authorization saw %d headers: %q", len(values), values)
	}
	parts := regexp.MustCompile(`^Hash=([0-9a-f]{64});Chain="([^";,]+)"$`).FindStringSubmatch(values[0])
	if parts == nil {
		t.Fatalf("authorization saw %q", values[0])
	}
	decoded, err := url.PathUnescape(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := policy.ParseCertificates([]byte(decoded))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range certificates {
		chain = append(chain, c.Raw)
	}
	return parts[1], chain
}

// forgeries are ways to claim a certificate.
func forgeries() map[string]http.Header {
	return map[string]http.Header{
		"plain":                {"X-Forwarded-Client-Cert": {"Hash=" + strings.Repeat("0", 64) + ";evil"}},
		"twice":                {"X-Forwarded-Client-Cert": {"evil", "Hash=evil"}, "x-fOrwarded-client-CERT": {"evil"}},
		"dots":                 {"X.Forwarded.Client.Cert": {"evil"}, "X-Forwarded.Client-Cert": {"evil"}},
		"RFC 9440":             {"Client-Cert": {"evil"}, "Client-Cert-Chain": {"evil"}, "Client.Cert": {"evil"}},
		"by way of Connection": {"X-Forwarded-Client-Cert": {"evil"}, "Connection": {"x-forwarded-client-cert"}},
		"kept":                 {"X-Countersign-Keep-X-Forwarded-Client-Cert": {"evil"}},
	}
}

// TestCertificateSeen shows that authorization is told which certificate each
// connection has presented, whoever issued it, and that no client can say so itself.
func TestCertificateSeen(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.applyMTLS(everyKind, &config.DownstreamMTLS{Enforcement: config.EnforcePolicy, ClientCAConfig: policy.ClientCAConfig{CA: s.ca.pem}})
	clients := []struct {
		name         string
		certificates []tls.Certificate
	}{
		{"issued by the authority", []tls.Certificate{s.ca.issueClient(t, "ana", nil)}},
		{"with intermediates", []tls.Certificate{s.ca.under(t, "a").under(t, "b").issueClient(t, "bob", nil)}},
		{"of someone else", []tls.Certificate{newAuthority(t).under(t, "c").issueClient(t, "eve", nil)}},
		{"expired", []tls.Certificate{s.ca.issueClient(t, "old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}},
		{"none", nil},
	}
	for _, h2 := range []bool{false, true} {
		for _, c := range clients {
			client := s.with(h2, c.certificates...)
			for forgery, header := range forgeries() {
				if h2 && header["Connection"] != nil {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/h2=%v", c.name, forgery, h2), func(t *testing.T) {
					got := s.get(client, "GET", "https://app.localhost/a", header)
					saw := s.authz.saw()
					if strings.Contains(fmt.Sprint(got.Header, saw), "evil") {
						t.Errorf("the forgery arrived: %v, authorization saw %v", got.Header, saw)
					}
					if got.Status != 200 || got.Header["X-Forwarded-Client-Cert"] != nil {
						t.Errorf("upstream got %d %v", got.Status, got.Header)
					}
					if c.certificates == nil {
						if saw[headerClientCert] != nil {
							t.Errorf("authorization saw %q", saw[headerClientCert])
						}
						return
					}
					hash, chain := certificateSeen(t, saw[headerClientCert])
					want := c.certificates[0].Certificate
					sum := sha256.Sum256(want[0])
					if hash != hex.EncodeToString(sum[:]) || fmt.Sprint(chain) != fmt.Sprint(want) {
						t.Errorf("authorization saw hash %s and %d certificates, want %x and %d", hash, len(chain), sum, len(want))
					}
				})
			}
		}
	}
}

// TestCertificateStaysHere shows that no kind of route passes a header about the
// certificate on, true or forged.
func TestCertificateStaysHere(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.applyMTLS(everyKind, &config.DownstreamMTLS{Enforcement: config.EnforcePolicy, ClientCAConfig: policy.ClientCAConfig{CA: s.ca.pem}})
	preflight := http.Header{"Origin": {"https://x.localhost"}, "Access-Control-Request-Method": {"PUT"}}
	certificate := s.ca.issueClient(t, "ana", nil)
	for _, kind := range []struct {
		name, method, url, by string
		extra                 http.Header
	}{
		{"protected", "GET", "https://app.localhost/", "upstream", nil},
		{"HTTP/2 behind", "GET", "https://h2.localhost/", "upstream", nil},
		{"public", "GET", "https://public.localhost/", "upstream", nil},
		{"preflight", "OPTIONS", "https://app.localhost/", "upstream", preflight},
		{"internal", "GET", "https://app.localhost/.pomerium/", "authn", nil},
		{"authenticate", "GET", "https://authenticate.localhost/", "authn", nil},
	} {
		for _, h2 := range []bool{false, true} {
			for name, client := range map[string]*http.Client{"certificate": s.with(h2, certificate), "none": s.with(h2)} {
				t.Run(fmt.Sprintf("%s/%s/h2=%v", kind.name, name, h2), func(t *testing.T) {
					header := http.Header{"X-Forwarded-Client-Cert": {"evil"}}
					for name, values := range kind.extra {
						header[name] = values
					}
					got := s.get(client, kind.method, kind.url, header)
					if got.By != kind.by || got.Header["X-Forwarded-Client-Cert"] != nil {
						t.Errorf("%q got %v", got.By, got.Header)
					}
				})
			}
		}
	}
}

// TestNoCertificateAskedFor shows that a claim to have one goes nowhere where nobody
// asks for certificates, behind another TLS terminator included.
func TestNoCertificateAskedFor(t *testing.T) {
	for _, test := range []struct {
		name, settings, scheme string
		m                      *config.DownstreamMTLS
	}{
		{"TLS", "", "https", nil},
		{"plain", "insecure_server: true\n", "http", nil},
		{"plain, and asked for in vain", "insecure_server: true\n", "http", &config.DownstreamMTLS{Enforcement: config.EnforcePolicy}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStack(t, ServerConfig{})
			s.applyMTLS(test.settings+everyKind, test.m)
			client := s.with(false, s.ca.issueClient(t, "ana", nil))
			for forgery, header := range forgeries() {
				got := s.get(client, "GET", test.scheme+"://app.localhost/a", header)
				saw := s.authz.saw()
				if got.Status != 200 || strings.Contains(fmt.Sprint(got.Header, saw), "evil") || saw[headerClientCert] != nil {
					t.Errorf("%s: %d, upstream got %v, authorization saw %v", forgery, got.Status, got.Header, saw)
				}
			}
		})
	}
}

// connects reports whether a client gets an answer from a new connection.
func (s *stack) connects(certificates ...tls.Certificate) bool {
	s.t.Helper()
	res, err := s.with(false, certificates...).Get("https://app.localhost/")
	if err != nil {
		return false
	}
	return res.Body.Close() == nil
}

// TestRejectConnection shows that Envoy refuses in the handshake whom ClientCA finds
// at fault, and nobody else: the two count and compare alike.
func TestRejectConnection(t *testing.T) {
	s := newStack(t, ServerConfig{})
	one, other := s.ca.under(t, "one"), newAuthority(t)
	two := one.under(t, "two")
	named := func(c *x509.Certificate) {
		c.DNSNames, c.EmailAddresses = []string{"laptop.example.com"}, []string{"ana@example.com"}
		c.URIs, c.IPAddresses = []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/ana"}}, []net.IP{net.IPv4(192, 0, 2, 7)}
		c.ExtraExtensions = nil
	}
	principal := func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{principalName(t, "ana@corp.example")} }
	presented := []struct {
		name         string
		certificates []tls.Certificate
	}{
		{"none", nil},
		{"direct", []tls.Certificate{s.ca.issueClient(t, "direct", named)}},
		{"one below", []tls.Certificate{one.issueClient(t, "one below", named)}},
		{"two below", []tls.Certificate{two.issueClient(t, "two below", named)}},
		{"foreign", []tls.Certificate{other.issueClient(t, "foreign", named)}},
		{"expired", []tls.Certificate{s.ca.issueClient(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}},
		{"early", []tls.Certificate{s.ca.issueClient(t, "early", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })}},
		{"a server's", []tls.Certificate{s.ca.issueClient(t, "server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}},
		{"revoked", []tls.Certificate{s.ca.issueClient(t, "revoked", named)}},
		{"principal", []tls.Certificate{s.ca.issueClient(t, "principal", principal)}},
	}
	certificate := func(name string) tls.Certificate {
		for _, p := range presented {
			if p.name == name {
				return p.certificates[0]
			}
		}
		t.Fatal(name)
		return tls.Certificate{}
	}
	soon := time.Now().Add(time.Hour)
	name := func(typ, pattern string) []policy.SubjectAltNameMatch {
		return []policy.SubjectAltNameMatch{{Type: typ, Pattern: pattern}}
	}
	tests := []struct {
		name   string
		config policy.ClientCAConfig
		good   string
		// strict is whom Envoy refuses although we would not.
		strict string
	}{
		{"any depth", policy.ClientCAConfig{}, "[direct one below two below revoked principal]", "[]"},
		{"depth 1", policy.ClientCAConfig{MaxVerifyDepth: 1}, "[direct revoked principal]", "[]"},
		{"depth 2", policy.ClientCAConfig{MaxVerifyDepth: 2}, "[direct one below revoked principal]", "[]"},
		{"depth 3", policy.ClientCAConfig{MaxVerifyDepth: 3}, "[direct one below two below revoked principal]", "[]"},
		{"an authority in the middle", policy.ClientCAConfig{CA: one.encoded(), MaxVerifyDepth: 1}, "[one below]", "[]"},
		{"one in the middle and the one above", policy.ClientCAConfig{CA: append(one.encoded(), s.ca.pem...), MaxVerifyDepth: 1}, "[direct one below revoked principal]", "[]"},
		{"a list", policy.ClientCAConfig{CRL: s.ca.revoke(t, soon, certificate("revoked"))}, "[direct one below two below principal]", "[one below two below]"},
		{"lists of all", policy.ClientCAConfig{CRL: bytes.Join([][]byte{s.ca.revoke(t, soon, certificate("revoked")), one.revoke(t, soon), two.revoke(t, soon, certificate("two below"))}, nil)}, "[direct one below principal]", "[]"},
		{"a list out of date", policy.ClientCAConfig{CRL: bytes.Join([][]byte{s.ca.revoke(t, time.Now().Add(-time.Minute)), one.revoke(t, soon), two.revoke(t, soon)}, nil)}, "[one below two below]", "[]"},
		{"dns", policy.ClientCAConfig{MatchSubjectAltNames: name("dns", `[a-z]+\.example\.com`)}, "[direct one below two below revoked]", "[]"},
		{"part of a name", policy.ClientCAConfig{MatchSubjectAltNames: name("dns", `laptop|example`)}, "[]", "[]"},
		{"email", policy.ClientCAConfig{MatchSubjectAltNames: name("email", `.*@example\.com`)}, "[direct one below two below revoked]", "[]"},
		{"uri", policy.ClientCAConfig{MatchSubjectAltNames: name("uri", `spiffe://example\.com/ana`)}, "[direct one below two below revoked]", "[]"},
		{"ip_address", policy.ClientCAConfig{MatchSubjectAltNames: name("ip_address", `192\.0\.2\..*`)}, "[direct one below two below revoked]", "[]"},
		{"user_principal_name", policy.ClientCAConfig{MatchSubjectAltNames: name("user_principal_name", `.*@corp\.example`)}, "[principal]", "[]"},
		{"either", policy.ClientCAConfig{MatchSubjectAltNames: append(name("user_principal_name", `.*`), name("dns", "other")...)}, "[principal]", "[]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.config.CA == nil {
				test.config.CA = s.ca.pem
			}
			ca, err := policy.NewClientCA(test.config)
			if err != nil {
				t.Fatal(err)
			}
			s.t = t
			s.applyMTLS(everyKind, &config.DownstreamMTLS{Enforcement: config.EnforceReject, ClientCAConfig: test.config})
			good, strict := []string{}, []string{}
			for _, p := range presented {
				var chain []*x509.Certificate
				for _, c := range p.certificates {
					for _, der := range c.Certificate {
						parsed, err := x509.ParseCertificate(der)
						if err != nil {
							t.Fatal(err)
						}
						chain = append(chain, parsed)
					}
				}
				problem, _ := ca.Check(chain, time.Now())
				if problem == "" {
					good = append(good, p.name)
				}
				admitted := s.connects(p.certificates...)
				if admitted && problem != "" {
					t.Errorf("Envoy admits %q: %s", p.name, problem)
				}
				if !admitted && problem == "" {
					strict = append(strict, p.name)
				}
			}
			if fmt.Sprint(good) != test.good || fmt.Sprint(strict) != test.strict {
				t.Errorf("good %v, want %v; refused by Envoy alone %v, want %v", good, test.good, strict, test.strict)
			}
		})
	}
	s.t = t
}

// principalName is the extension of alternative names with the one by which Active
// Directory knows a person.
func principalName(t testing.TB, name string) pkix.Extension {
	t.Helper()
	text, err := asn1.MarshalWithParams(name, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	value, err := asn1.Marshal(struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: text}})
	if err != nil {
		t.Fatal(err)
	}
	value[0] = 0xa0 // [0] IMPLICIT SEQUENCE
	names, err := asn1.Marshal([]asn1.RawValue{{FullBytes: value}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}
}

// visit opens a connection of its own and reports whether it resumed an earlier one,
// and whether the handshake failed.
func (s *stack) visit(cache tls.ClientSessionCache, version uint16, certificate tls.Certificate) (resumed bool, err error) {
	s.t.Helper()
	client := s.with(false, certificate)
	transport := client.Transport.(*http.Transport)
	transport.TLSClientConfig.ClientSessionCache = cache
	transport.TLSClientConfig.MaxVersion = version
	transport.DisableKeepAlives = true
	res, err := client.Get("https://app.localhost/")
	if err != nil {
		return false, err
	}
	return res.TLS.DidResume, res.Body.Close()
}

// TestResumedSession shows that authorization is told of the certificate of a resumed
// session as of a new one, and that reject_connection, where nobody else would look at
// it again, resumes none.
func TestResumedSession(t *testing.T) {
	s := newStack(t, ServerConfig{})
	certificate := s.ca.under(t, "one").issueClient(t, "ana", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, enforcement := range []string{config.EnforcePolicy, config.EnforceReject} {
			t.Run(tls.VersionName(version)+" "+enforcement, func(t *testing.T) {
				s.applyMTLS(everyKind, &config.DownstreamMTLS{Enforcement: enforcement, ClientCAConfig: policy.ClientCAConfig{CA: s.ca.pem}})
				cache := tls.NewLRUClientSessionCache(1)
				var resumed [3]bool
				for i := range resumed {
					var err error
					if resumed[i], err = s.visit(cache, version, certificate); err != nil {
						t.Fatal(err)
					}
					if _, chain := certificateSeen(t, s.authz.saw()[headerClientCert]); fmt.Sprint(chain) != fmt.Sprint(certificate.Certificate) {
						t.Errorf("visit %d: authorization saw %d certificates", i, len(chain))
					}
				}
				if want := [3]bool{false, enforcement == config.EnforcePolicy, enforcement == config.EnforcePolicy}; resumed != want {
					t.Errorf("resumed %v, want %v", resumed, want)
				}
			})
		}
	}
}

// TestNewAuthorityIsGentle shows that a new authority or list counts in the next
// handshake, and that connections stay open, because no listener changes.
func TestNewAuthorityIsGentle(t *testing.T) {
	s := newStack(t, ServerConfig{})
	next := newAuthority(t)
	ana, bob := s.ca.issueClient(t, "ana", nil), next.issueClient(t, "bob", nil)
	cfg := s.load(everyKind)
	publish := func(ca policy.ClientCAConfig) *Resources {
		cfg.DownstreamMTLS = &config.DownstreamMTLS{Enforcement: config.EnforceReject, ClientCAConfig: ca}
		r := s.build(cfg)
		s.publish(r)
		return r
	}
	before := publish(policy.ClientCAConfig{CA: s.ca.pem})
	open, address := s.with(false, ana), ""
	through := func() string {
		req, err := http.NewRequest("GET", "https://app.localhost/", nil)
		if err != nil {
			t.Fatal(err)
		}
		var local string
		trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { local = c.Conn.LocalAddr().String() }}
		if got := s.do(open, req.WithContext(httptrace.WithClientTrace(req.Context(), trace))); got.Status != 200 {
			t.Errorf("answered %d", got.Status)
		}
		return local
	}
	address = through()
	for _, step := range []struct {
		name     string
		ca       policy.ClientCAConfig
		ana, bob bool
	}{
		{"both authorities", policy.ClientCAConfig{CA: append(next.encoded(), s.ca.pem...)}, true, true},
		{"a list revokes ana", policy.ClientCAConfig{CA: append(next.encoded(), s.ca.pem...), CRL: append(s.ca.revoke(t, time.Now().Add(time.Hour), ana), next.revoke(t, time.Now().Add(time.Hour))...)}, false, true},
		{"the new one alone", policy.ClientCAConfig{CA: next.encoded()}, false, true},
	} {
		t.Run(step.name, func(t *testing.T) {
			s.t = t
			after := publish(step.ca)
			for kind, resources := range after.tables {
				for name, r := range resources {
					if same := r.version == before.tables[kind][name].version; same == (name == clientAuthorityName) {
						t.Errorf("%s: same version %v", name, same)
					}
				}
			}
			if a, b := s.connects(ana), s.connects(bob); a != step.ana || b != step.bob {
				t.Errorf("ana %v, bob %v", a, b)
			}
			if now := through(); now != address {
				t.Errorf("the connection was closed: %s is now %s", address, now)
			}
			before = after
		})
	}
	s.t = t
}
