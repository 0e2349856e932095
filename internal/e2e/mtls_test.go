package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// client makes a certificate for a client, good for some time from now.
func (a *authority) client(t testing.TB, email string, life time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: email}, EmailAddresses: []string{email},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// with is a client that presents a certificate.
func (w *world) with(certificate tls.Certificate) *agent {
	c := w.client()
	c.Transport.(watched).TLSClientConfig.Certificates = []tls.Certificate{certificate}
	return c
}

// TestClientCertificates: whose certificate is good gets to the policy, whose is
// not gets 495 whatever the policy says, and no header of a client passes for a
// certificate.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ours, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	good, bad := ours.client(t, "ana@companydomain.com", time.Hour), theirs.client(t, "ana@companydomain.com", time.Hour)
	late, other := ours.client(t, "ana@companydomain.com", -time.Hour), ours.client(t, "eve@companydomain.com", time.Hour)
	print := sha256.Sum256(good.Certificate[0])
	w := newWorld(t, options{
		Settings: []string{"downstream_mtls: {ca_file: client-ca.pem}"},
		Prepare: func(dir string) error {
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ours.cert.Raw})
			return os.WriteFile(filepath.Join(dir, "client-ca.pem"), ca, 0o600)
		},
		Routes: `
  - name: Open
    from: {{url "open"}}
    to: {{to "app"}}
    allow_public_unauthenticated_access: true
  - name: Hers
    from: {{url "hers"}}
    to: {{to "app"}}
    policy:
      - allow: {and: [client_certificate: {san_email: {is: ana@companydomain.com}}]}
  - name: Pinned
    from: {{url "pinned"}}
    to: {{to "app"}}
    policy:
      - allow: {and: [client_certificate: {fingerprint: ` + hex.EncodeToString(print[:]) + `}]}
`})
	encoded := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate[0]})))
	forged := []string{"X-Forwarded-Client-Cert", `Hash=` + hex.EncodeToString(print[:]) + `;Cert="` + encoded + `";Chain="` + encoded + `"`}
	const required = 495
	for _, test := range []struct {
		name   string
		client *agent
		host   string
		header []string
		want   int
	}{
		{"a good certificate", w.with(good), "open", nil, http.StatusOK},
		{"none", w.client(), "open", nil, required},
		{"none, over HTTP/1.1", w.client1(), "open", nil, required},
		{"one of a foreign authority", w.with(bad), "open", nil, required},
		{"one that has expired", w.with(late), "open", nil, required},
		{"none but in a header", w.client(), "open", forged, required},
		{"a foreign one and a good one in a header", w.with(bad), "open", forged, required},
		{"a good one for whom it names", w.with(good), "hers", nil, http.StatusOK},
		{"a good one for somebody else", w.with(other), "hers", nil, http.StatusForbidden},
		{"somebody else's and hers in a header", w.with(other), "hers", forged, http.StatusForbidden},
		{"the one that is pinned", w.with(good), "pinned", nil, http.StatusOK},
		{"another than is pinned", w.with(other), "pinned", nil, http.StatusForbidden},
	} {
		a := test.client.fetch(t, w.url(test.host, "/"), test.header...)
		if a.StatusCode != test.want {
			t.Errorf("%s: %s, want %d: %s", test.name, a.Status, test.want, a.Body)
		}
		if a.StatusCode == http.StatusOK && strings.Contains(a.Body, "-Client-Cert") {
			t.Errorf("%s: the application sees how it was checked: %s", test.name, a.Body)
		}
		if test.want == required && (a.Header.Get("Location") != "" || !strings.Contains(a.Body, "certificate")) {
			t.Errorf("%s: location %q, %s", test.name, a.Header.Get("Location"), a.Body)
		}
	}

	// A revocation list that comes later is felt on connections that are open.
	client := w.with(good)
	client.fetch(t, w.url("open", "/")).echo(t)
	serial := new(big.Int)
	if leaf, err := x509.ParseCertificate(good.Certificate[0]); err == nil {
		serial = leaf.SerialNumber
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: serial, RevocationTime: time.Now().Add(-time.Minute)}},
	}, ours.cert, ours.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "crl.pem"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}), 0o600); err != nil {
		t.Fatal(err)
	}
	w.change(t, "configuration reloaded", func() error {
		content, err := os.ReadFile(w.config)
		if err != nil {
			return err
		}
		return w.write(strings.Replace(string(content), "{ca_file: client-ca.pem}", "{ca_file: client-ca.pem, crl_file: crl.pem}", 1))
	})
	eventually(t, 2*time.Second, "the revoked certificate is refused", func() bool { return client.status(t, w.url("open", "/")) == required })
	w.with(other).fetch(t, w.url("open", "/")).echo(t)
}
