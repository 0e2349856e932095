package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/golden"
)

// now is the time of all tests.
func now() time.Time { return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC) }

// keyPair makes a certificate that ends after the given time from now.
func keyPair(t testing.TB, host string, ends time.Duration) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now().Add(-1000 * time.Hour), NotAfter: now().Add(ends),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// authority makes a certificate authority with its revocation list and the one
// before.
func authority(t testing.TB, name string) (ca, crl, old []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, SubjectKeyId: []byte(name),
		NotBefore: now().Add(-time.Hour), NotAfter: now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	list := func(until time.Time) []byte {
		list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: until.Add(-time.Hour), NextUpdate: until,
		}, template, private)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), list(now().Add(time.Minute)), list(now().Add(-time.Minute))
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestProblems shows what each mistake is answered with: config.yaml and the
// environment (env) go in, the full list of problems comes out. The folder
// also holds good, other and expired, each a .pem with its .key, and damaged.pem,
// in which the second of two certificates ends too soon.
func TestProblems(t *testing.T) {
	files := map[string][]byte{}
	for name, ends := range map[string]time.Duration{"good": time.Hour, "other": time.Hour, "expired": -time.Hour} {
		files[name+".pem"], files[name+".key"] = keyPair(t, name+".example.com", ends)
	}
	files["damaged.pem"] = append(slices.Clone(files["good.pem"]), files["other.pem"][:100]...)
	files["ca.pem"], files["good.crl"], files["old.crl"] = authority(t, "One")
	_, files["other.crl"], _ = authority(t, "Other")
	golden.Only(t, "testdata", "problems")
	dir, err := filepath.Abs(filepath.Join("testdata", "problems"))
	if err != nil {
		t.Fatal(err)
	}
	golden.Run(t, dir, func(t *testing.T, c *golden.Case) map[string]string {
		t.Chdir(t.TempDir())
		for name, content := range files {
			write(t, name, content)
		}
		write(t, "config.yaml", []byte(c.Input(t, "config.yaml")))
		for _, name := range []string{"secret.txt", "empty.txt"} {
			if c.Has(name) {
				write(t, name, []byte(c.Input(t, name)))
			}
		}
		opts := config.LoadOptions{Now: now}
		if c.Has("env") {
			opts.Env = strings.Split(strings.TrimSpace(c.Input(t, "env")), "\n")
		}
		cfg, err := config.Load("config.yaml", opts)
		if problems := (config.Problems)(nil); errors.As(err, &problems) {
			for _, p := range problems {
				if p.Hint == "" {
					t.Errorf("no hint: %s", p)
				}
			}
			return map[string]string{"want": err.Error()}
		}
		return map[string]string{"want": "it loads\n" + cfg.Warnings.Error()}
	})
}
