package config_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// mutual is a folder with an authority, its list and a configuration.
func mutual(t *testing.T, yaml string) (path string, ca, crl []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "config.yaml")
	ca, crl, _ = authority(t, "One")
	write(t, filepath.Join(filepath.Dir(path), "ca.pem"), ca)
	write(t, filepath.Join(filepath.Dir(path), "one.crl"), crl)
	write(t, path, []byte(yaml+"\nroutes: [{from: https://app.example.com, to: http://a, allowed_users: [a], policy_shadow: {allow: {or: [{user: {is: b}}]}}}]\n"))
	return path, ca, crl
}

// TestDownstreamMTLS shows what downstream_mtls becomes, from the file, from the
// environment and from both.
func TestDownstreamMTLS(t *testing.T) {
	const files = "downstream_mtls: {ca_file: ca.pem, crl_file: one.crl}"
	tests := []struct {
		name string
		yaml string
		env  []string // CA and CRL stand for base64 of the two
		want *config.DownstreamMTLS
	}{
		{"no certificates", "", nil, nil},
		{"files", files, nil, &config.DownstreamMTLS{Enforcement: config.EnforceDefaultDeny, ClientCAConfig: policy.ClientCAConfig{CA: []byte("CA"), CRL: []byte("CRL"), MaxVerifyDepth: 1}}},
		{"without an authority", "downstream_mtls: {enforcement: policy}", nil, &config.DownstreamMTLS{Enforcement: config.EnforcePolicy, ClientCAConfig: policy.ClientCAConfig{MaxVerifyDepth: 1}}},
		{"all of it", "downstream_mtls: {ca_file: ca.pem, enforcement: Reject_Connection, max_verify_depth: 0, match_subject_alt_names: [{dns: a.*}, {uri: b}]}", nil,
			&config.DownstreamMTLS{Enforcement: config.EnforceReject, ClientCAConfig: policy.ClientCAConfig{CA: []byte("CA"), MatchSubjectAltNames: []policy.SubjectAltNameMatch{{Type: "dns", Pattern: "a.*"}, {Type: "uri", Pattern: "b"}}}}},
		{"the environment alone", "", []string{"DOWNSTREAM_MTLS_CA=CA", "DOWNSTREAM_MTLS_CRL=CRL", "DOWNSTREAM_MTLS_MAX_VERIFY_DEPTH=3", "DOWNSTREAM_MTLS_ENFORCEMENT=policy", `DOWNSTREAM_MTLS_MATCH_SUBJECT_ALT_NAMES=[{"email": "x"}]`},
			&config.DownstreamMTLS{Enforcement: config.EnforcePolicy, ClientCAConfig: policy.ClientCAConfig{CA: []byte("CA"), CRL: []byte("CRL"), MaxVerifyDepth: 3, MatchSubjectAltNames: []policy.SubjectAltNameMatch{{Type: "email", Pattern: "x"}}}}},
		{"files in the environment", "", []string{"DOWNSTREAM_MTLS_CA_FILE=ca.pem", "DOWNSTREAM_MTLS_CRL_FILE=one.crl"},
			&config.DownstreamMTLS{Enforcement: config.EnforceDefaultDeny, ClientCAConfig: policy.ClientCAConfig{CA: []byte("CA"), CRL: []byte("CRL"), MaxVerifyDepth: 1}}},
		{"a variable overrides one key", files, []string{"DOWNSTREAM_MTLS_MAX_VERIFY_DEPTH=0"},
			&config.DownstreamMTLS{Enforcement: config.EnforceDefaultDeny, ClientCAConfig: policy.ClientCAConfig{CA: []byte("CA"), CRL: []byte("CRL")}}},
		{"and the other form of a key", "downstream_mtls: {ca_file: gone.pem, crl_file: gone.crl}", []string{"DOWNSTREAM_MTLS_CA=CA", "DOWNSTREAM_MTLS_CRL=CRL"},
			&config.DownstreamMTLS{Enforcement: config.EnforceDefaultDeny, ClientCAConfig: policy.ClientCAConfig{CA: []byte("CA"), CRL: []byte("CRL"), MaxVerifyDepth: 1}}},
		{"the whole as JSON", files, []string{`DOWNSTREAM_MTLS={"enforcement": "policy"}`}, &config.DownstreamMTLS{Enforcement: config.EnforcePolicy, ClientCAConfig: policy.ClientCAConfig{MaxVerifyDepth: 1}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path, ca, crl := mutual(t, test.yaml)
			encode := strings.NewReplacer("=CA", "="+base64.StdEncoding.EncodeToString(ca), "=CRL", "="+base64.StdEncoding.EncodeToString(crl))
			for i, e := range test.env {
				test.env[i] = encode.Replace(e)
			}
			cfg := reload(t, path, config.LoadOptions{Env: test.env})
			got := cfg.DownstreamMTLS
			if got != nil {
				if got.Position.File == "" {
					t.Error("it has no position")
				}
				got = &config.DownstreamMTLS{Enforcement: got.Enforcement, ClientCAConfig: got.ClientCAConfig}
				got.CA = bytes.Replace(got.CA, ca, []byte("CA"), 1)
				got.CRL = bytes.Replace(got.CRL, crl, []byte("CRL"), 1)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestMTLSVersion shows that the nested variables are part of a configuration.
func TestMTLSVersion(t *testing.T) {
	path, _, _ := mutual(t, "downstream_mtls: {ca_file: ca.pem}")
	without := reload(t, path, config.LoadOptions{}).Version
	if with := reload(t, path, config.LoadOptions{Env: []string{"DOWNSTREAM_MTLS_MAX_VERIFY_DEPTH=2"}}).Version; with == without {
		t.Error("the version does not follow DOWNSTREAM_MTLS_MAX_VERIFY_DEPTH")
	}
}

// TestRequireCertificate shows when policies deny whoever has no good certificate.
func TestRequireCertificate(t *testing.T) {
	for yaml, want := range map[string]bool{
		"":                                   false,
		"downstream_mtls: {ca_file: ca.pem}": true,
		"downstream_mtls: {ca_file: ca.pem, enforcement: policy}":            false,
		"downstream_mtls: {ca_file: ca.pem, enforcement: reject_connection}": true,
		"downstream_mtls: {enforcement: policy}":                             false,
		"insecure_server: true\ndownstream_mtls: {ca_file: ca.pem}":          true,
	} {
		path, _, _ := mutual(t, yaml)
		r := reload(t, path, config.LoadOptions{}).Routes[0]
		for what, p := range map[string]*policy.Policy{"policy": r.Policy, "shadow policy": r.ShadowPolicy} {
			if got := p.HasDeny() && p.Reads().Certificate; got != want {
				t.Errorf("%s: the %s demands a certificate: %v, want %v", yaml, what, got, want)
			}
		}
	}
}

// TestWatchAuthority rotates the files that downstream_mtls names.
func TestWatchAuthority(t *testing.T) {
	path, _, _ := mutual(t, "downstream_mtls: {ca_file: ca.pem, crl_file: one.crl}")
	cfg := reload(t, path, config.LoadOptions{})
	dir := filepath.Dir(path)
	if want := []string{path, dir + "/ca.pem", dir + "/one.crl"}; !slices.Equal(cfg.Files, want) {
		t.Fatalf("files: got %q", cfg.Files)
	}
	reports := watched(t, cfg)
	ca, crl, _ := authority(t, "Two")
	replace(t, filepath.Join(dir, "ca.pem"), ca)
	if r := next(t, reports); r.err != nil || string(r.cfg.DownstreamMTLS.CA) != string(ca) {
		t.Fatalf("a new authority: got %+v", r)
	}
	replace(t, filepath.Join(dir, "one.crl"), crl)
	if r := next(t, reports); r.err != nil || string(r.cfg.DownstreamMTLS.CRL) != string(crl) {
		t.Fatalf("a new list: got %+v", r)
	}
	replace(t, filepath.Join(dir, "one.crl"), []byte("nonsense"))
	if r := next(t, reports); r.err == nil || !strings.Contains(r.err.Error(), "config.yaml:1:46: downstream_mtls.crl_file: ") {
		t.Fatalf("a broken list: got %+v", r)
	}
}

// TestListeners shows what the settings about proxies and metrics become.
func TestListeners(t *testing.T) {
	tests := []struct {
		yaml, env, want, warning string
	}{
		{"", "", `0 false ""`, ""},
		{"xff_num_trusted_hops: 2\nskip_xff_append: true\nmetrics_address: localhost:9090", "", `2 true "127.0.0.1:9090"`, ""},
		{"metrics_address: '[::1]:9090'", "", `0 false "[::1]:9090"`, ""},
		{"metrics_address: ''", "", `0 false ""`, ""},
		{"metrics_address: :9090", "", `0 false ":9090"`, "metrics_address can be reached"},
		{"metrics_address: '[::]:9090'", "", `0 false "[::]:9090"`, "metrics_address can be reached"},
		{"", "XFF_NUM_TRUSTED_HOPS=1 SKIP_XFF_APPEND=true METRICS_ADDRESS=127.0.0.1:1", `1 true "127.0.0.1:1"`, ""},
	}
	for _, test := range tests {
		cfg := load(t, test.yaml+minimal, config.LoadOptions{Env: strings.Fields(test.env)})
		got := fmt.Sprintf("%d %v %q", cfg.Server.XFFNumTrustedHops, cfg.Server.SkipXFFAppend, cfg.MetricsAddress)
		if got != test.want {
			t.Errorf("%s %s: got %s, want %s", test.yaml, test.env, got, test.want)
		}
		if warnings := cfg.Warnings.Error(); strings.Contains(warnings, "metrics") != (test.warning != "") || !strings.Contains(warnings, test.warning) {
			t.Errorf("%s: got warnings\n%s", test.yaml, warnings)
		}
	}
}
