package e2e

import (
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// testPolicyPages is what people see whose certificate, device or sign-in is not
// what a policy asks for.
func testPolicyPages(t *testing.T, c *chromium) {
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, options{
		Upstreams: pages(),
		Settings:  []string{"downstream_mtls: {ca_file: client-ca.pem, enforcement: policy}"},
		Prepare: func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "client-ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600)
		},
		Routes: `
  - name: Vault
    from: {{url "vault"}}
    to: {{to "pages"}}
    policy:
      - allow: {or: [authenticated_user: true]}
      - deny: {or: [invalid_client_certificate: true]}
  - name: Laptops
    from: {{url "laptops"}}
    to: {{to "pages"}}
    policy:
      - allow: {and: [device: {approved: true}]}
  - name: Office
    from: {{url "office"}}
    to: {{to "pages"}}
    policy:
      - allow: {and: [{domain: companydomain.com}, {source_ip: 198.51.100.0/24}]}
  - name: Safe
    from: {{url "safe"}}
    to: {{to "pages"}}
    policy:
      - allow: {and: [{domain: companydomain.com}, {auth_time: 10m}]}
`})
	b := c.profile(t, w)
	if v := b.open(w.url("vault", "/"), w.url("vault", "/")); v.status != 495 {
		t.Errorf("without a certificate: status %d", v.status)
	}
	b.has("495", "certificate", "What you can do")
	b.photograph("client-certificate")

	b.open(w.url("laptops", "/"), w.provider.issuer)
	if v := b.signIn("ana", w.url("laptops", "/")); v.status != 450 {
		t.Errorf("on an unknown device: status %d", v.status)
	}
	b.has("450", "device", "What you can do")
	b.photograph("device")

	if v := b.open(w.url("office", "/"), w.url("office", "/")); v.status != http.StatusForbidden {
		t.Errorf("from elsewhere: status %d", v.status)
	}
	b.has("source_ip")
	b.photograph("forbidden-address")

	if v := b.open(w.url("safe", "/"), w.url("safe", "/")); v.status != http.StatusOK {
		t.Errorf("with a sign-in of this minute: status %d", v.status)
	}
	w.stop(t)
	w.ageSessions(t, time.Hour)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	b.open(w.url("safe", "/papers"), w.provider.issuer)
	if v := b.signIn("ana", w.url("safe", "/papers")); v.status != http.StatusOK {
		t.Errorf("after a fresh sign-in: status %d", v.status)
	}
}
