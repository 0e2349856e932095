package demo

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	caFile, caKeyFile     = "ca.pem", "ca-key.pem"
	leafFile, leafKeyFile = "demo.pem", "demo-key.pem"

	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
	// renewBefore keeps a demo that is left running from expiring.
	renewBefore = 30 * 24 * time.Hour
)

// ensureCertificates makes sure that dir holds an authority and a certificate
// of it for hosts. An authority that is there is kept, since people may have
// told their browser to trust it.
func ensureCertificates(dir string, hosts []string, now time.Time) (*x509.CertPool, error) {
	ca, key, err := loadPair(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if ca, key, err = newAuthority(dir, now); err != nil {
			return nil, fmt.Errorf("make certificate authority: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("read certificate authority in %s: %w; remove %s and %s to make another", dir, err, caFile, caKeyFile)
	case now.Add(leafLife).After(ca.NotAfter):
		return nil, fmt.Errorf("the certificate authority in %s ends on %s; remove %s and %s to make another",
			dir, ca.NotAfter.Format(time.DateOnly), caFile, caKeyFile)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	leaf, _, err := loadPair(filepath.Join(dir, leafFile), filepath.Join(dir, leafKeyFile))
	if err == nil && serves(leaf, roots, hosts, now) {
		return roots, nil
	}
	if err := newLeaf(dir, hosts, ca, key, now); err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return roots, nil
}

func serves(leaf *x509.Certificate, roots *x509.CertPool, hosts []string, now time.Time) bool {
	for _, host := range hosts {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: now}); err != nil {
			return false
		}
	}
	return now.Add(renewBefore).Before(leaf.NotAfter)
}

func newAuthority(dir string, now time.Time) (*x509.Certificate, crypto.Signer, error) {
	everyIPv4 := &net.IPNet{IP: make(net.IP, 4), Mask: make(net.IPMask, 4)}
	everyIPv6 := &net.IPNet{IP: make(net.IP, 16), Mask: make(net.IPMask, 16)}
	template := &x509.Certificate{
		SerialNumber: serial(),
		// The date tells apart the authorities of several folders.
		Subject:               pkix.Name{Organization: []string{"Countersign demo"}, CommonName: "Countersign demo CA, made " + now.UTC().Format("2006-01-02 15:04:05")},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// Whoever trusts this authority trusts it for names that never leave
		// the machine, and for nothing else (RFC 5280, section 4.2.1.10).
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost"},
		ExcludedIPRanges:            []*net.IPNet{everyIPv4, everyIPv6},
	}
	return issue(template, nil, nil, filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
}

func newLeaf(dir string, hosts []string, ca *x509.Certificate, caKey crypto.Signer, now time.Time) error {
	_, _, err := issue(&x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"Countersign demo"}, CommonName: hosts[0]},
		DNSNames:              hosts,
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(leafLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey, filepath.Join(dir, leafFile), filepath.Join(dir, leafKeyFile))
	return err
}

// issue makes a key and its certificate, signed by parent or by itself, and
// writes both. The key comes first: a certificate without one is of no use.
func issue(template, parent *x509.Certificate, parentKey crypto.Signer, path, keyPath string) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := writeFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return nil, nil, err
	}
	if err := writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	return certificate, key, nil
}

func loadPair(path, keyPath string) (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.LoadX509KeyPair(path, keyPath)
	if err != nil {
		return nil, nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, errors.New("the key cannot sign")
	}
	return pair.Leaf, key, nil
}

// writeFile replaces a file as a whole, whatever mode an old one had, and
// leaves one that would not change alone.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	old, err := os.ReadFile(path)
	info, statErr := os.Lstat(path)
	if err == nil && statErr == nil && info.Mode() == mode && bytes.Equal(old, content) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
