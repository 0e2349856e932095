package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
)

// stateConfig is a configuration that leaves everything to us.
func stateConfig(dir string, hosts ...string) string {
	text := "databroker_storage_connection_string: file://" + dir + "\nroutes:\n"
	for _, h := range hosts {
		text += "  - {from: 'https://" + h + "', to: 'http://127.0.0.1:1', allow_any_authenticated_user: true}\n"
	}
	return text
}

func load(t testing.TB, dir string, hosts ...string) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(stateConfig(dir, hosts...)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, loadOptions(nil))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func leafOf(t testing.TB, cfg *config.Config) *x509.Certificate {
	t.Helper()
	c := cfg.Server.Certificates[0]
	pair, err := tls.X509KeyPair(c.Chain, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestCommandsAtOnceAgreeOnSecrets(t *testing.T) {
	for range 5 {
		dir := filepath.Join(t.TempDir(), "state")
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(stateConfig(dir, "app.example.com")), 0o600); err != nil {
			t.Fatal(err)
		}
		got, errs := make([]*config.Config, 8), make([]error, 8)
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() { got[i], errs[i] = config.Load(path, loadOptions(nil)) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		for _, c := range got[1:] {
			if !bytes.Equal(c.Secrets.Shared, got[0].Secrets.Shared) || !bytes.Equal(c.Secrets.Cookie, got[0].Secrets.Cookie) ||
				!bytes.Equal(c.Secrets.SigningKey, got[0].Secrets.SigningKey) {
				t.Fatal("two commands made different secrets")
			}
			if !leafOf(t, c).Equal(leafOf(t, got[0])) {
				t.Fatal("two commands made different certificates")
			}
		}
	}
}

func TestStateIsForItsOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	load(t, dir, "app.example.com")
	want := map[string]os.FileMode{
		".": 0o700, secretsFile: 0o600, caFile: 0o644, caKeyFile: 0o600, certFile: 0o600, certKeyFile: 0o600, lockFile: 0o600,
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"."}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for _, name := range names {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want[name] {
			t.Errorf("%s has mode %o, want %o", name, got, want[name])
		}
	}
}

func TestNothingIsMadeThatIsConfigured(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(t.TempDir(), "config.yaml")
	secrets, err := newSecrets()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"shared": secrets.Shared, "cookie": secrets.Cookie, "key": secrets.SigningKey} {
		if name != "key" {
			content = []byte(encode(content))
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := stateConfig(dir, "app.example.com") + "insecure_server: true\nshared_secret_file: shared\ncookie_secret_file: cookie\nsigning_key_file: key\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path, loadOptions(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the state folder was made: %v", err)
	}
}

func TestCertificateFollowsTheHosts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first := load(t, dir, "app.example.com")
	if want := []string{"app.example.com", "authenticate.example.com"}; !slices.Equal(leafOf(t, first).DNSNames, want) {
		t.Errorf("hosts %v, want %v", leafOf(t, first).DNSNames, want)
	}
	again := load(t, dir, "app.example.com")
	if !leafOf(t, first).Equal(leafOf(t, again)) || first.Secrets.SigningKeyAt != again.Secrets.SigningKeyAt {
		t.Error("the same hosts got a new certificate")
	}
	more := load(t, dir, "app.example.com", "*.example.net", "a-*.example.org", "127.0.0.1")
	leaf := leafOf(t, more)
	for _, host := range []string{"app.example.com", "x.example.net", "127.0.0.1", "authenticate.example.com"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if !leaf.Equal(leafOf(t, load(t, dir, "app.example.com", "*.example.net", "a-*.example.org", "127.0.0.1"))) {
		t.Error("the same hosts got a new certificate")
	}
	ca, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, c := range []*config.Config{first, more} {
		if _, err := leafOf(t, c).Verify(x509.VerifyOptions{Roots: roots}); err != nil {
			t.Errorf("the authority was not kept: %v", err)
		}
	}
}

func TestCertificateIsMadeAnew(t *testing.T) {
	hosts := []string{"app.example.com", "authenticate.example.com"}
	write := func(t *testing.T, dir, name string, content []byte) {
		t.Helper()
		if err := replaceFile(filepath.Join(dir, name), content); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
	}{
		{"when it nears its end", func(t *testing.T, dir string) { age(t, dir, hosts) }},
		{"when its key is another's", func(t *testing.T, dir string) {
			_, key, err := issue(leaf(hosts, time.Now()), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, certKeyFile, key)
		}},
		{"when another authority signed it", func(t *testing.T, dir string) {
			chain, key, err := issue(leaf(hosts, time.Now()), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, certFile, chain)
			write(t, dir, certKeyFile, key)
		}},
		{"when it is damaged", func(t *testing.T, dir string) { write(t, dir, certFile, []byte("no certificate")) }},
		{"when it is gone", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, certFile)); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			before := leafOf(t, load(t, dir, "app.example.com"))
			tt.damage(t, dir)
			after := leafOf(t, load(t, dir, "app.example.com"))
			if after.Equal(before) || after.NotAfter.Before(time.Now().Add(certRenewAt)) {
				t.Errorf("not renewed: it ends at %s", after.NotAfter)
			}
		})
	}
}

// age puts a certificate in dir that ends within the month.
func age(t testing.TB, dir string, hosts []string) {
	t.Helper()
	now := time.Now()
	ca, caKey, err := keptAuthority(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	chain, key, err := issue(leaf(hosts, now.Add(certRenewAt-certLife-time.Hour)), ca, caKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(filepath.Join(dir, certFile), chain); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(filepath.Join(dir, certKeyFile), key); err != nil {
		t.Fatal(err)
	}
}

func TestAnAuthorityThatLeakedIsNotUsed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	load(t, dir, "app.example.com")
	if err := os.Chmod(filepath.Join(dir, caKeyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(stateConfig(dir, "app.example.com")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path, loadOptions(nil)); err == nil || !strings.Contains(err.Error(), "is open to every user of this machine") {
		t.Errorf("load: %v", err)
	}
}

// TestCertificateIsRenewedWhileRunning ages the certificate on disk, and looks
// at what Envoy serves.
func TestCertificateIsRenewedWhileRunning(t *testing.T) {
	s := newSystem(t)
	s.start()
	served := func() *x509.Certificate {
		r, err := s.newClient().Get("https://" + s.host("app") + "/ping")
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		return r.TLS.PeerCertificates[0]
	}
	before := served()
	s.deploy.renew(t.Context())
	if s.deploy.inForce().Version == "" || !served().Equal(before) {
		t.Error("a young certificate was renewed")
	}
	age(t, filepath.Join(s.dir, "state"), before.DNSNames)
	s.deploy.renew(t.Context())
	s.until("Envoy serves a new certificate", func() bool { return !served().Equal(before) })
	if got := served().NotAfter; got.Before(time.Now().Add(certRenewAt)) {
		t.Errorf("the new one ends at %s", got)
	}
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
