package xds

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// valid is a configuration with one good route, for tests to spoil.
func valid(t testing.TB, ca *authority) *config.Config {
	t.Helper()
	return &config.Config{
		Path: "config.yaml",
		Server: config.Server{
			Address: ":443", Certificates: []config.Certificate{ca.issue(t, "one", "a.example.com")},
		},
		Routes: []*config.Route{{
			ID: "0123456789abcdef", Name: "a", From: "https://a.example.com", Host: "a.example.com",
			Position: config.Position{File: "config.yaml", Line: 7, Column: 3},
			To:       []config.Upstream{upstream(t, "http://127.0.0.1:8000")}, Policy: &policy.Policy{},
		}},
	}
}

func upstream(t testing.TB, raw string) config.Upstream {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return config.Upstream{URL: u}
}

// TestBuildRefuses shows that Build does not rely on anyone to have checked
// before, and says where the fault is.
func TestBuildRefuses(t *testing.T) {
	ca := newAuthority(t)
	other := ca.issue(t, "two", "b.example.com")
	minus := -time.Second
	asking := func(spoil func(*config.DownstreamMTLS)) func(*config.Config, *config.Route) {
		return func(c *config.Config, _ *config.Route) {
			c.DownstreamMTLS = &config.DownstreamMTLS{
				Position: config.Position{File: "config.yaml", Line: 3, Column: 1}, Enforcement: config.EnforceReject,
				ClientCAConfig: policy.ClientCAConfig{CA: bytes.Clone(ca.pem), MatchSubjectAltNames: []policy.SubjectAltNameMatch{{Type: "dns", Pattern: "a"}}},
			}
			spoil(c.DownstreamMTLS)
		}
	}
	tests := []struct {
		name  string
		spoil func(*config.Config, *config.Route)
		want  string
	}{
		{"no upstream", func(_ *config.Config, r *config.Route) { r.To = nil }, "config.yaml:7:3: route a leads nowhere"},
		{"a scheme that is none", func(_ *config.Config, r *config.Route) { r.To = []config.Upstream{upstream(t, "ftp://x")} }, `config.yaml:7:3: the upstream x has the scheme "ftp"`},
		{"two schemes", func(_ *config.Config, r *config.Route) { r.To = append(r.To, upstream(t, "https://x")) }, "config.yaml:7:3: upstreams of one route have different schemes, http and https"},
		{"half of the weights", func(_ *config.Config, r *config.Route) {
			r.To = append(r.To, upstream(t, "http://x"))
			r.To[0].Weight = 1
		}, "config.yaml:7:3: either all upstreams of a route have a weight or none"},
		{"a bad port", func(_ *config.Config, r *config.Route) { r.To = []config.Upstream{upstream(t, "http://x:99999")} }, "config.yaml:7:3: the upstream x:99999 has a port that does not exist"},
		{"websockets over h2c", func(_ *config.Config, r *config.Route) {
			r.To = []config.Upstream{upstream(t, "h2c://x")}
			r.AllowWebsockets = true
		}, "config.yaml:7:3: allow_websockets needs HTTP/1.1"},
		{"a regex", func(_ *config.Config, r *config.Route) { r.Regex = "(" }, "config.yaml:7:3: regex: "},
		{"a timeout", func(_ *config.Config, r *config.Route) { r.Timeout = minus }, "config.yaml:7:3: a timeout is negative"},
		{"an idle timeout", func(_ *config.Config, r *config.Route) { r.IdleTimeout = &minus }, "config.yaml:7:3: a timeout is negative"},
		{"a header name", func(_ *config.Config, r *config.Route) { r.SetRequestHeaders = []config.Header{{Name: "a b"}} }, `config.yaml:7:3: set_request_headers: "a b" is not a header name`},
		{"a header value", func(_ *config.Config, r *config.Route) {
			r.SetResponseHeaders = []config.Header{{Name: "A", Value: "secret\r\nX: y"}}
		}, "config.yaml:7:3: set_response_headers: the value of A holds a control character"},
		{"Host", func(_ *config.Config, r *config.Route) {
			r.SetRequestHeaders = []config.Header{{Name: "Host", Value: "x"}}
		}, "config.yaml:7:3: set_request_headers cannot set Host"},
		{"removing Host", func(_ *config.Config, r *config.Route) { r.RemoveRequestHeaders = []string{"host"} }, "config.yaml:7:3: remove_request_headers: "},
		{"bytes that are no text", func(_ *config.Config, r *config.Route) { r.Prefix = "/\xff" }, "config.yaml:7:3: "},
		{"a claim header that is needed", func(c *config.Config, _ *config.Route) {
			c.Assertion.ClaimHeaders = []config.ClaimHeader{{Header: "Cookie", Claim: "x"}}
		}, `config.yaml: jwt_claims_headers: "Cookie" cannot carry a claim`},
		{"no certificate", func(c *config.Config, _ *config.Route) { c.Server.Certificates = nil }, "config.yaml: there is no certificate"},
		{"another key", func(c *config.Config, _ *config.Route) {
			c.Server.Certificates[0].Key = other.Key
			c.Server.Certificates[0].Position = config.Position{File: "config.yaml", Line: 2, Column: 1}
		}, "config.yaml:2:1: certificate and key cannot be used together"},
		{"an address", func(c *config.Config, _ *config.Route) { c.Server.Address = "example.com:443" }, "config.yaml: address: "},
		{"rejection without an authority", asking(func(m *config.DownstreamMTLS) { m.CA = nil }), "config.yaml:3:1: downstream_mtls: reject_connection without an authority"},
		{"no authority in the file", asking(func(m *config.DownstreamMTLS) { m.CA = []byte("secret") }), "config.yaml:3:1: downstream_mtls: ca: nothing is in it"},
		{"a key among authorities", asking(func(m *config.DownstreamMTLS) { m.CA = append(m.CA, other.Key...) }), "config.yaml:3:1: downstream_mtls: ca: a block of another type"},
		{"an authority as a list", asking(func(m *config.DownstreamMTLS) {
			m.CRL = bytes.ReplaceAll(m.CA, []byte("CERTIFICATE"), []byte("X509 CRL"))
		}), "config.yaml:3:1: downstream_mtls: crl: block cannot be read"},
		{"a type of name", asking(func(m *config.DownstreamMTLS) { m.MatchSubjectAltNames[0].Type = "fax" }), `config.yaml:3:1: downstream_mtls: unknown type of name "fax"`},
		{"an expression", asking(func(m *config.DownstreamMTLS) { m.MatchSubjectAltNames[0].Pattern = "a)|(b" }), "config.yaml:3:1: downstream_mtls: match_subject_alt_names: "},
		{"two routes to one host and port by different schemes", func(c *config.Config, r *config.Route) {
			twin := *r
			twin.ID, twin.From, twin.Port = "f", "http://a.example.com:443", "443"
			c.Routes = append(c.Routes, &twin)
		}, "config.yaml:7:3: a.example.com and a.example.com:443 both claim the host a.example.com:443"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := valid(t, ca)
			test.spoil(cfg, cfg.Routes[0])
			_, err := Build(cfg, Sockets{Authz: "/run/authz", Authn: "/run/authn", SystemRoots: "testdata/roots.pem"})
			var problems config.Problems
			if !errors.As(err, &problems) || !strings.HasPrefix(problems[0].String(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("the error quotes a value: %v", err)
			}
		})
	}
}

// TestVersions shows that versions are content: equal configurations are equal
// on the wire, and one changed route changes one resource.
func TestVersions(t *testing.T) {
	cfg := valid(t, newAuthority(t))
	sockets := Sockets{Authz: "/run/authz", Authn: "/run/authn"}
	build := func() *Resources {
		t.Helper()
		r, err := Build(cfg, sockets)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first, again := build(), build()
	if first.Version != again.Version || first.Version == "" {
		t.Errorf("versions %q and %q of one configuration", first.Version, again.Version)
	}
	changed := *cfg.Routes[0]
	changed.Prefix = "/x"
	cfg.Routes = []*config.Route{&changed}
	second := build()
	for kind, resources := range second.tables {
		for name, r := range resources {
			same := r.version == first.tables[kind][name].version
			if same == (name == routeTableName) {
				t.Errorf("%s: same version %v", name, same)
			}
		}
	}
	if second.Version == first.Version {
		t.Error("a changed route has the old version")
	}
}

// BenchmarkBuild builds 1,000 routes.
func BenchmarkBuild(b *testing.B) {
	cfg := valid(b, newAuthority(b))
	route := cfg.Routes[0]
	for i := range 1000 {
		r := *route
		r.ID, r.Host = fmt.Sprintf("%016x", i), fmt.Sprintf("h%d.example.com", i)
		r.To = []config.Upstream{upstream(b, fmt.Sprintf("http://127.0.0.1:%d", 10000+i))}
		cfg.Routes = append(cfg.Routes, &r)
	}
	for b.Loop() {
		if _, err := Build(cfg, Sockets{Authz: "/run/authz", Authn: "/run/authn"}); err != nil {
			b.Fatal(err)
		}
	}
}
