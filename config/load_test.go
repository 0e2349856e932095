package config_test

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

const minimal = `
routes:
  - from: https://app.localhost
    to: http://127.0.0.1:3000
    allow_any_authenticated_user: true
`

// load writes a configuration into a folder of its own and loads it.
func load(t testing.TB, yaml string, opts config.LoadOptions) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, []byte(yaml))
	return reload(t, path, opts)
}

func reload(t testing.TB, path string, opts config.LoadOptions) *config.Config {
	t.Helper()
	opts.Now = now
	cfg, err := config.Load(path, opts)
	if err != nil {
		t.Fatalf("load:\n%v", err)
	}
	return cfg
}

func TestDefaults(t *testing.T) {
	cfg := load(t, minimal, config.LoadOptions{})
	want := &config.Config{
		Server:     config.Server{Address: ":443"},
		Cookie:     config.Cookie{Name: "_pomerium", HTTPOnly: true, Expire: 14 * time.Hour},
		Assertion:  config.Assertion{Reuse: 30 * time.Second, OriginalUserContext: "verified"},
		Databroker: config.Databroker{StorageType: "file", OutageGrace: time.Minute},

		Programs: config.Programs{RedirectDomains: []string{"localhost"}},
		LogLevel: "info",
		Routes: []*config.Route{{
			Name: "https://app.localhost", From: "https://app.localhost", Host: "app.localhost",
			SetResponseHeaders: []config.Header{{Name: "X-Frame-Options", Value: "SAMEORIGIN"}, {Name: "X-XSS-Protection", Value: "1; mode=block"}},
			Timeout:            30 * time.Second,
		}},
	}
	options := []cmp.Option{
		cmpopts.IgnoreFields(config.Config{}, "Path", "Version", "Files", "Warnings", "AuthenticateURL"),
		cmpopts.IgnoreFields(config.Route{}, "ID", "Position", "To", "Policy"),
	}
	if diff := cmp.Diff(want, cfg, options...); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	r := cfg.Routes[0]
	if len(r.To) != 1 || r.To[0].URL.String() != "http://127.0.0.1:3000" || r.To[0].Weight != 0 {
		t.Errorf("to: got %v", r.To)
	}
	if got := cfg.AuthenticateURL.String(); got != "https://authenticate.localhost" {
		t.Errorf("authenticate URL: got %s", got)
	}
	if diff := cmp.Diff([]string{"idp_provider_url", "idp_client_id", "idp_client_secret"}, (&config.IdentityProvider{}).Missing()); diff != "" {
		t.Errorf("missing: -want +got:\n%s", diff)
	}
	if len(r.ID) != 16 || !filepath.IsAbs(cfg.Path) || !cmp.Equal(cfg.Files, []string{cfg.Path}) {
		t.Errorf("id %q, path %q, files %q", r.ID, cfg.Path, cfg.Files)
	}
}

// TestRoutes shows what a route becomes. Each row is the inside of a route on
// https://app.example.com.
func TestRoutes(t *testing.T) {
	zero, minute := time.Duration(0), time.Minute
	tests := []struct {
		name string
		yaml string
		got  func(r *config.Route) any
		want any
	}{
		{"a prefix of / is no prefix", "to: http://a\nprefix: /", func(r *config.Route) any { return r.Prefix }, ""},
		{"a regex stays as written", "to: http://a\nregex: ^/x/\\d+$", func(r *config.Route) any { return r.Regex }, `^/x/\d+$`},
		{"hosts are lower case and ASCII", "from: https://BÜCHER.Example.com\nto: http://a", func(r *config.Route) any { return r.Host }, "xn--bcher-kva.example.com"},
		{"the default port is none", "from: https://a.example.com:443\nto: http://a", func(r *config.Route) any { return r.Port }, ""},
		{"another port stays", "from: https://a.example.com:8443\nto: http://a", func(r *config.Route) any { return r.Port }, "8443"},
		{"wildcards stay", "from: https://*.a-*.example.com\nto: http://a", func(r *config.Route) any { return r.Host }, "*.a-*.example.com"},
		{"the path of the first to is the rewrite", "prefix: /a/\nto: [http://a/b/, http://c/b/]", func(r *config.Route) any { return r.PrefixRewrite }, "/b/"},
		{"an escaped path stays escaped", "prefix: /a/\nto: http://a/b%20c/", func(r *config.Route) any { return r.PrefixRewrite }, "/b%20c/"},
		{"prefix_rewrite wins over the path of to", "prefix: /a/\nprefix_rewrite: /c/\nto: http://a/b/", func(r *config.Route) any { return r.PrefixRewrite }, "/c/"},
		{"a slash after the host rewrites nothing without a prefix", "to: http://a/", func(r *config.Route) any { return r.PrefixRewrite }, ""},
		{"weights", "to: ['http://a,3', 'http://b,1']", func(r *config.Route) any { return []uint32{r.To[0].Weight, r.To[1].Weight} }, []uint32{3, 1}},
		{"IPv6 upstreams", "to: h2c://[::1]:80", func(r *config.Route) any { return r.To[0].URL.String() }, "h2c://[::1]:80"},
		{"timeout", "to: http://a\ntimeout: 5s", func(r *config.Route) any { return r.Timeout }, 5 * time.Second},
		{"timeout 0 is none", "to: http://a\ntimeout: 0", func(r *config.Route) any { return r.Timeout }, zero},
		{"the default timeout", "to: http://a", func(r *config.Route) any { return r.Timeout }, minute},
		{"websockets have no timeout", "to: http://a\nallow_websockets: true", func(r *config.Route) any { return []any{r.Timeout, *r.IdleTimeout} }, []any{zero, zero}},
		{"but one that is written counts", "to: http://a\nallow_websockets: true\ntimeout: 5s\nidle_timeout: 1m", func(r *config.Route) any { return []any{r.Timeout, *r.IdleTimeout} }, []any{5 * time.Second, minute}},
		{"identity headers are inherited", "to: http://a", func(r *config.Route) any { return r.PassIdentityHeaders }, true},
		{"and can be turned off", "to: http://a\npass_identity_headers: false", func(r *config.Route) any { return r.PassIdentityHeaders }, false},
		{"dollars are doubled", "to: http://a\nset_request_headers: {X-B: $$5, X-A: 5 $}", func(r *config.Route) any { return r.SetRequestHeaders }, []config.Header{{Name: "X-A", Value: "5 $"}, {Name: "X-B", Value: "$5"}}},
		{"numbers are texts", "to: http://a\nset_request_headers: {X-A: 1.50}", func(r *config.Route) any { return r.SetRequestHeaders }, []config.Header{{Name: "X-A", Value: "1.50"}}},
		{"response headers merge over the global ones", "to: http://a\nset_response_headers: {x-global: r, X-Own: o}", func(r *config.Route) any { return r.SetResponseHeaders }, []config.Header{{Name: "X-Own", Value: "o"}, {Name: "X-Second", Value: "s"}, {Name: "x-global", Value: "r"}}},
		{"disable turns them all off", "to: http://a\nset_response_headers: {disable: true}", func(r *config.Route) any { return len(r.SetResponseHeaders) }, 0},
		{"one user may be a text", "to: http://a\nremove_request_headers: x-a, x-b", func(r *config.Route) any { return r.RemoveRequestHeaders }, []string{"x-a", "x-b"}},
		{"what the portal shows", "to: http://a\ndescription: What it is\nlogo_url: /a.png", func(r *config.Route) any { return []string{r.Description, r.LogoURL} }, []string{"What it is", "/a.png"}},
		{"a picture elsewhere", "to: http://a\nlogo_url: https://x.example.com/a.png?b", func(r *config.Route) any { return r.LogoURL }, "https://x.example.com/a.png?b"},
		{"a picture in place", "to: http://a\nlogo_url: data:image/png;base64,AAAA", func(r *config.Route) any { return r.LogoURL }, "data:image/png;base64,AAAA"},
		{"a name", "to: http://a\nname: The app", func(r *config.Route) any { return r.Name }, "The app"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inside := test.yaml + "\nallow_any_authenticated_user: true"
			if !strings.Contains(inside, "from:") {
				inside = "from: https://app.example.com\n" + inside
			}
			cfg := load(t, `
default_upstream_timeout: 1m
pass_identity_headers: true
set_response_headers: {X-Global: g, X-Second: s}
routes:
  - `+strings.ReplaceAll(inside, "\n", "\n    "), config.LoadOptions{})
			if diff := cmp.Diff(test.want, test.got(cfg.Routes[0])); diff != "" {
				t.Errorf("%s\n-want +got:\n%s", test.yaml, diff)
			}
		})
	}
}

// TestGlobal shows what global settings become.
func TestGlobal(t *testing.T) {
	tests := []struct {
		name string
		yaml string
		env  []string
		got  func(c *config.Config) any
		want any
	}{
		{"localhost is an address", "address: localhost:8443", nil, func(c *config.Config) any { return c.Server.Address }, "127.0.0.1:8443"},
		{"the environment wins", "address: :1", []string{"ADDRESS=:2"}, func(c *config.Config) any { return c.Server.Address }, ":2"},
		{"an empty variable does not", "address: :1", []string{"ADDRESS="}, func(c *config.Config) any { return c.Server.Address }, ":1"},
		{"bools", "", []string{"COOKIE_HTTP_ONLY=False"}, func(c *config.Config) any { return c.Cookie.HTTPOnly }, false},
		{"durations", "", []string{"COOKIE_EXPIRE=30m"}, func(c *config.Config) any { return c.Cookie.Expire }, 30 * time.Minute},
		{"lists with commas", "", []string{"IDP_SCOPES=openid, email"}, func(c *config.Config) any { return c.IDPs[0].Scopes }, []string{"openid", "email"}},
		{"lists as JSON", "", []string{`IDP_SCOPES=["openid","email"]`}, func(c *config.Config) any { return c.IDPs[0].Scopes }, []string{"openid", "email"}},
		{"claims with commas", "", []string{"JWT_CLAIMS_HEADERS=email,org/unit"}, func(c *config.Config) any { return c.Assertion.ClaimHeaders },
			[]config.ClaimHeader{{Header: "X-Pomerium-Claim-email", Claim: "email"}, {Header: "X-Pomerium-Claim-org-unit", Claim: "org/unit"}}},
		{"claims as JSON", "", []string{`JWT_CLAIMS_HEADERS={"X-Email":"email"}`}, func(c *config.Config) any { return c.Assertion.ClaimHeaders },
			[]config.ClaimHeader{{Header: "X-Email", Claim: "email"}}},
		{"a variable overrides the other form of a secret", "idp_client_secret_file: gone", []string{"IDP_CLIENT_SECRET=s"}, func(c *config.Config) any { return c.IDPs[0].ClientSecret }, "s"},
		{"HEADERS", "", []string{"HEADERS=X-A:b,X-C: d"}, func(c *config.Config) any { return c.Routes[0].SetResponseHeaders }, []config.Header{{Name: "X-A", Value: "b"}, {Name: "X-C", Value: "d"}}},
		{"POLICY", "", []string{"POLICY=" + base64.StdEncoding.EncodeToString([]byte("- {from: https://p.example.com, to: http://a, allowed_users: [a]}"))},
			func(c *config.Config) any { return []string{c.Routes[0].Host, c.Routes[1].Host} }, []string{"p.example.com", "app.example.com"}},
		{"same site", "cookie_same_site: Strict", nil, func(c *config.Config) any { return c.Cookie.SameSite }, "strict"},
		{"a dot before the domain", "cookie_domain: .Example.com", nil, func(c *config.Config) any { return c.Cookie.Domain }, "example.com"},
		{"issuer format", "jwt_issuer_format: hostonly", nil, func(c *config.Config) any { return c.Assertion.IssuerFormat }, "hostOnly"},
		{"no reuse", "jwt_assertion_reuse: 0s", nil, func(c *config.Config) any { return c.Assertion.Reuse }, time.Duration(0)},
		{"the folder of the store", "databroker_storage_connection_string: file:///var/lib/x/", nil, func(c *config.Config) any { return c.Databroker.Dir }, "/var/lib/x"},
		{"disable", "set_response_headers: {disable: 1}", nil, func(c *config.Config) any { return len(c.Routes[0].SetResponseHeaders) }, 0},
		{"policy comes before routes", "policy: [{from: https://p.example.com, to: http://a, allowed_users: [a]}]", nil,
			func(c *config.Config) any { return c.Routes[0].Host }, "p.example.com"},
		{"an address for signing in", "authenticate_service_url: https://Auth.example.com:443/", nil, func(c *config.Config) any { return c.AuthenticateURL.String() }, "https://auth.example.com"},
		{"where a sign-out leads is a host of its own", "signout_redirect_url: https://WWW.example.com/bye?x=y\nsignout_redirect_domain_whitelist: [a.example.com]", nil,
			func(c *config.Config) any { return append(c.SignOutRedirectDomains, c.SignOutRedirectURL.String()) }, []string{"a.example.com", "www.example.com", "https://WWW.example.com/bye?x=y"}},
		{"and may be on this machine", "signout_redirect_url: http://localhost:3000/", nil, func(c *config.Config) any { return c.SignOutRedirectDomains }, []string{"localhost"}},
		{"audiences of programs", "", []string{"PROGRAMMATIC_ALLOWED_AUDIENCES=a,b"}, func(c *config.Config) any { return c.Programs.Audiences }, []string{"a", "b"}},
		{"parameters as pairs", "", []string{"IDP_REQUEST_PARAMS=b:2,a:1"}, func(c *config.Config) any { return c.IDPs[0].RequestParams }, []config.Parameter{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}},
		{"parameters as JSON", "", []string{`IDP_REQUEST_PARAMS={"a":"1,2"}`}, func(c *config.Config) any { return c.IDPs[0].RequestParams }, []config.Parameter{{Name: "a", Value: "1,2"}}},
		{"providers as JSON", "", []string{`IDPS=[{"name":"a","provider":"github","client_id":"b","client_secret":"c"}]`}, func(c *config.Config) any { return c.IDPs[0].Name }, "a"},
		{"the environment chooses a kind", "idp_provider: google", []string{"IDP_PROVIDER=github"}, func(c *config.Config) any { return c.IDPs[0].URL }, "https://github.com"},
		{"issuers and a format", "", []string{`IDENTITY_PROVIDERS={"a":{"issuer":"https://a","audiences":["x"]}}`, "BEARER_TOKEN_FORMAT=jwt"}, func(c *config.Config) any { return c.Routes[0].Bearer.Issuers[0].Name }, "a"},
		{"ages of sessions", "", []string{"SESSION_LIFETIME=1h", "SESSION_IDLE_TIMEOUT=5m"}, func(c *config.Config) any { return []any{c.Routes[0].SessionLifetime, c.Routes[0].SessionIdleTimeout} }, []any{time.Hour, 5 * time.Minute}},
		{"a trusted issuer", "original_user_context_issuers: [{issuer: i, jwks_url: 'https://i.example.com/k', audiences: [a]}]", nil,
			func(c *config.Config) any { return c.Assertion.OriginalUserContextIssuers },
			[]config.TrustedIssuer{{Issuer: "i", JWKSURL: "https://i.example.com/k", Audiences: []string{"a"}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := load(t, test.yaml+"\nroutes: [{from: https://app.example.com, to: http://a, allowed_users: [a]}]\n", config.LoadOptions{Env: test.env})
			if diff := cmp.Diff(test.want, test.got(cfg)); diff != "" {
				t.Errorf("%s %s\n-want +got:\n%s", test.yaml, test.env, diff)
			}
		})
	}
}

// TestAuthenticateURL shows that the default is never in a domain that
// strangers can register in.
func TestAuthenticateURL(t *testing.T) {
	for from, want := range map[string]string{
		"https://app.example.com":      "https://authenticate.example.com",
		"https://app.example.com:8443": "https://authenticate.example.com:8443",
		"https://a.b.example.com":      "https://authenticate.b.example.com",
		"https://example.com":          "https://authenticate.example.com",
		"https://example.co.uk":        "https://authenticate.example.co.uk",
		"https://team.github.io":       "https://authenticate.team.github.io",
		"https://app.localhost":        "https://authenticate.localhost",
		"https://app.internal":         "https://authenticate.app.internal",
		"https://*.example.com":        "https://authenticate.example.com",
		"https://a.*.example.com":      "https://authenticate.example.com",
		"https://app-*.example.com":    "https://authenticate.example.com",
		"https://*.com":                "https://authenticate.localhost",
		"https://*":                    "https://authenticate.localhost",
		"https://app":                  "https://authenticate.localhost",
		"https://localhost":            "https://authenticate.localhost",
		"https://[2001:db8::1]":        "https://authenticate.localhost",
	} {
		cfg := load(t, "routes: [{from: '"+from+"', to: http://a, allowed_users: [a]}]", config.LoadOptions{})
		if got := cfg.AuthenticateURL.String(); got != want {
			t.Errorf("%s: got %s, want %s", from, got, want)
		}
	}
}

func TestSecrets(t *testing.T) {
	_, key := keyPair(t, "x", time.Hour)
	scalar := strings.Repeat("k", 32)
	wrap := func(s string) string {
		var b strings.Builder
		for ; len(s) > 76; s = s[76:] {
			b.WriteString(s[:76] + "\n")
		}
		return b.String() + s + "\n"
	}
	encoded := base64.StdEncoding.EncodeToString(key)
	tests := []struct {
		name, key, text, want string
	}{
		{"base64 of PEM", "signing_key", encoded, string(key)},
		{"base64 wrapped in lines", "signing_key", wrap(encoded), string(key)},
		{"base64 of a scalar", "signing_key", base64.StdEncoding.EncodeToString([]byte(scalar)), scalar},
		{"a file of PEM", "signing_key_file", string(key), string(key)},
		{"a file of several blocks", "signing_key_file", string(key) + "\n" + string(key), string(key) + "\n" + string(key)},
		{"a file of base64", "signing_key_file", wrap(encoded), string(key)},
		{"a file of a scalar", "signing_key_file", base64.StdEncoding.EncodeToString([]byte(scalar)) + "\n", scalar},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			text := "|\n  " + strings.ReplaceAll(test.text, "\n", "\n  ")
			if strings.HasSuffix(test.key, "_file") {
				write(t, filepath.Join(dir, "key"), []byte(test.text))
				text = "key"
			}
			path := filepath.Join(dir, "config.yaml")
			write(t, path, []byte(test.key+": "+text+minimal))
			got := reload(t, path, config.LoadOptions{}).Secrets.SigningKey
			if strings.TrimSpace(string(got)) != strings.TrimSpace(test.want) {
				t.Errorf("got %d bytes, want %d", len(got), len(test.want))
			}
		})
	}
	if b, _ := pem.Decode(key); b == nil {
		t.Fatal("the test's key is no PEM")
	}
}

// TestNoSecretInProblems breaks each secret and looks for it in the messages.
func TestNoSecretInProblems(t *testing.T) {
	const secret = "aHVudGVyMmh1bnRlcjI"
	for _, line := range []string{
		"shared_secret: " + secret, "cookie_secret: " + secret, "signing_key: " + secret,
		"shared_secret: [" + secret + "]", "signing_key: {" + secret + ": 1}",
		"idp_client_secret: [" + secret + "]", "idp_client_secret: true",
		"idp_provider_url: https://u:" + secret + "@idp\nidp_client_secret: " + secret,
		"idps: [{name: a, client_id: [x], client_secret: " + secret + "}]", "idps: [{name: a, client_secret: [" + secret + "]}]",
		"idps: [{name: a, provider_url: 'https://u:" + secret + "@idp'}]", "idp_request_params: {client_secret: " + secret + "}",
		"idp_client_id: a\nidp_client_secret: b\nidp_provider: google\nroutes: [{from: 'https://a', to: 'http://b', idp_client_id: a, idp_client_secret: " + secret + "}]",
		"identity_providers: {a: {issuer: 'https://u:" + secret + "@a', audiences: [b]}}", "signout_redirect_url: https://u:" + secret + "@b",
		"databroker_storage_connection_string: postgres://u:" + secret + "@db",
		"routes: [{from: 'https://u:" + secret + "@a', to: 'http://u:" + secret + "@b'}]",
		"authenticate_service_url: 'https://u:" + secret + "@[::1'",
		"routes: [{from: 'https://u:" + secret + "@a:b', to: 'http://u:" + secret + "@b:c'}]",
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		write(t, path, []byte(line))
		_, err := config.Load(path, config.LoadOptions{})
		if err == nil {
			t.Errorf("%s loads", line)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the message tells the secret:\n%v", line, err)
		}
	}
}

// TestGenerate shows that only what is missing is taken, from a function that
// sees the rest.
func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	chain, key := keyPair(t, "app.localhost", time.Hour)
	own := strings.Repeat("o", 32)
	path := filepath.Join(dir, "config.yaml")
	write(t, path, []byte("shared_secret: "+base64.StdEncoding.EncodeToString([]byte(own))+minimal))
	opts := config.LoadOptions{Generate: func(cfg *config.Config) (*config.Generated, error) {
		return &config.Generated{
			Shared: []byte("generated"), Cookie: []byte(cfg.Routes[0].Host), SigningKey: key,
			Certificates: []config.Certificate{{Chain: chain, Key: key}},
		}, nil
	}}
	cfg := reload(t, path, opts)
	if string(cfg.Secrets.Shared) != own || string(cfg.Secrets.Cookie) != "app.localhost" || len(cfg.Server.Certificates) != 1 {
		t.Errorf("got shared %q, cookie %q, %d certificates", cfg.Secrets.Shared, cfg.Secrets.Cookie, len(cfg.Server.Certificates))
	}
	if headers := cfg.Routes[0].SetResponseHeaders; len(headers) != 2 {
		t.Errorf("a generated certificate must not make browsers insist on TLS: %v", headers)
	}

	insecure := filepath.Join(dir, "insecure.yaml")
	write(t, insecure, []byte("insecure_server: true"+minimal))
	if got := reload(t, insecure, opts).Server.Certificates; got != nil {
		t.Errorf("an insecure server was given %d certificates", len(got))
	}

	opts.Generate = func(*config.Config) (*config.Generated, error) { return nil, errors.New("disk full") }
	if _, err := config.Load(path, opts); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v", err)
	}
}

// TestFiles shows which files a configuration depends on, and that its version
// follows their content and the environment, not their names.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	chain, key := keyPair(t, "app.example.com", time.Hour)
	path := filepath.Join(dir, "config.yaml")
	write(t, filepath.Join(dir, "tls", "chain.pem"), chain)
	write(t, filepath.Join(dir, "tls", "key.pem"), key)
	write(t, filepath.Join(dir, "secret"), []byte("one"))
	write(t, path, []byte(`
certificates: [{cert: tls/chain.pem, key: tls/key.pem}]
idp_client_secret_file: `+dir+`/secret
routes:
  - {from: https://app.example.com, to: https://a, allowed_users: [a], tls_custom_ca_file: tls/chain.pem}
`))
	first := reload(t, path, config.LoadOptions{})
	want := []string{path, dir + "/tls/chain.pem", dir + "/tls/key.pem", dir + "/secret"}
	if diff := cmp.Diff(want, first.Files); diff != "" {
		t.Errorf("files: -want +got:\n%s", diff)
	}
	if h := first.Routes[0].SetResponseHeaders; len(h) != 3 || h[0].Name != "Strict-Transport-Security" {
		t.Errorf("headers with a certificate: got %v", h)
	}
	if string(first.Routes[0].TLSCustomCA) != string(chain) {
		t.Error("tls_custom_ca_file was not read")
	}
	again := reload(t, path, config.LoadOptions{Env: []string{"HOME=/", "ADDRESS="}})
	if again.Version != first.Version {
		t.Error("the version changed without reason")
	}
	if other := reload(t, path, config.LoadOptions{Env: []string{"ADDRESS=:1"}}); other.Version == first.Version {
		t.Error("the version does not follow the environment")
	}
	write(t, filepath.Join(dir, "secret"), []byte("two"))
	if changed := reload(t, path, config.LoadOptions{}); changed.Version == first.Version || changed.Routes[0].ID != first.Routes[0].ID {
		t.Error("the version follows the files, the id of a route does not")
	}
}

// TestPolicy shows what the keys of a route become.
func TestPolicy(t *testing.T) {
	cfg := load(t, `
routes:
  - {from: https://a.example.com, to: http://a, allow_public_unauthenticated_access: true, cors_allow_preflight: true}
  - {from: https://b.example.com, to: http://a, allowed_users: [u@example.com], allowed_domains: [example.org], policy: {deny: {or: [reject: true]}}}
  - {from: https://c.example.com, to: http://a, allow_any_authenticated_user: false}
`, config.LoadOptions{})
	own := policy.Legacy(policy.LegacyKeys{Public: &policy.Setting{}, CORSPreflight: &policy.Setting{}})
	if got := cfg.Routes[0]; got.Policy.Key() != own.Key() || !got.CORSAllowPreflight {
		t.Errorf("public with preflight: got %v", got.Policy)
	}
	if got := cfg.Routes[1].Policy; !got.HasDeny() {
		t.Errorf("the deny rule was lost: %v", got)
	}
	if got, want := cfg.Routes[2].Policy.Key(), (&policy.Policy{}).Key(); got != want {
		t.Error("a key that is false lets someone in")
	}
}

// TestAnchors shows that aliases and merge keys are carried out.
func TestAnchors(t *testing.T) {
	cfg := load(t, `
routes:
  - &base
    from: https://a.example.com
    to: http://a
    policy: &staff {allow: {or: [domain: {is: example.com}]}}
  - {<<: *base, from: https://b.example.com}
  - {from: https://c.example.com, to: http://c, policy: *staff}
`, config.LoadOptions{})
	var got []string
	for _, r := range cfg.Routes {
		got = append(got, r.Host+" "+r.To[0].URL.Host+" "+r.Policy.Key()[:4])
	}
	key := cfg.Routes[0].Policy.Key()[:4]
	if diff := cmp.Diff([]string{"a.example.com a " + key, "b.example.com a " + key, "c.example.com c " + key}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestKeys holds the list of keys against what Load accepts.
func TestKeys(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range config.Keys() {
		id := fmt.Sprint(k.Route, k.Name)
		if seen[id] || k.Type == "" || k.Doc == "" || k.Route == (k.Env != "") && k.Name != "routes" {
			t.Errorf("bad entry %+v", k)
		}
		seen[id] = true
		yaml := k.Name + ": {}\n"
		if k.Route {
			yaml = "routes: [{" + k.Name + ": {}}]\n"
		}
		path := filepath.Join(t.TempDir(), "config.yaml")
		write(t, path, []byte(yaml))
		if _, err := config.Load(path, config.LoadOptions{}); err != nil && (strings.Contains(err.Error(), "unknown") || strings.Contains(err.Error(), "not supported")) {
			t.Errorf("%s is listed and refused:\n%v", k.Name, err)
		}
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	write(t, big, make([]byte, 4<<20+1))
	for path, want := range map[string]string{
		filepath.Join(dir, "gone.yaml"): "no such file",
		dir:                             "not a regular file",
		big:                             "larger than 4 MiB",
		os.DevNull:                      "not a regular file",
	} {
		if _, err := config.Load(path, config.LoadOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

// many is a configuration of n routes, several on each host.
func many(n int) string {
	var b strings.Builder
	b.WriteString("routes:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - from: https://app-%d.example.com\n    to: http://10.0.0.1:3000\n    prefix: /p%d/\n    allowed_domains: [example.com]\n    policy:\n      - allow: {and: [{email: {ends_with: '@example.com'}}]}\n", i/10, i)
	}
	return b.String()
}

func BenchmarkLoad10000Routes(b *testing.B) {
	for _, shape := range []struct{ name, yaml string }{
		{"ten on a host", many(10_000)},
		{"all on one host", oneHost(10_000)},
	} {
		b.Run(shape.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "config.yaml")
			write(b, path, []byte(shape.yaml))
			for b.Loop() {
				if _, err := config.Load(path, config.LoadOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func oneHost(n int) string {
	var b strings.Builder
	b.WriteString("routes:\n")
	for i := range n {
		match := fmt.Sprintf("path: /p/%d", i)
		if i%2 == 0 {
			match = fmt.Sprintf("regex: '/r/%d/[a-z]+'", i)
		}
		fmt.Fprintf(&b, "  - {from: https://app.example.com, to: 'http://10.0.0.1:3000', %s, allowed_users: [a]}\n", match)
	}
	return b.String()
}

// FuzzLoad holds that no content makes Load panic or run away, and that what
// loads keeps its promises.
func FuzzLoad(f *testing.F) {
	f.Add(minimal)
	f.Add("a: &a [*a]\n<<: {b: c}\nroutes: &r\n - {<<: *r}\n")
	f.Add("policy:\n- from: https://*.a\n  to: [http://a,1]\n  regex: (a|b)*\n  policy: {allow: {or: [user: {is: x}]}}\n")
	f.Add("set_response_headers: {disable: 1}\ncookie_expire: 1e9h\ncertificates: [{cert: x, key: y}]\n---\n")
	f.Add(many(3))
	f.Add(manyProviders)
	f.Add(manyBearers)
	cases, err := filepath.Glob(filepath.Join("testdata", "problems", "*.txtar"))
	if err != nil || len(cases) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, c := range cases {
		content, err := os.ReadFile(c)
		if err != nil {
			f.Fatal(err)
		}
		_, yaml, _ := strings.Cut(string(content), "-- config.yaml --\n")
		yaml, _, _ = strings.Cut(yaml, "\n-- ")
		f.Add(yaml)
	}
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, yaml string) {
		write(t, path, []byte(yaml))
		cfg, err := config.Load(path, config.LoadOptions{})
		if err != nil {
			if problems := (config.Problems)(nil); !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("the error is %T of %d problems", err, len(problems))
			}
			return
		}
		ids := map[string]bool{}
		for _, r := range cfg.Routes {
			if r.Host == "" || r.Policy == nil || len(r.To) == 0 || ids[r.ID] {
				t.Fatalf("bad route %+v", r)
			}
			ids[r.ID] = true
			if r.IDP != "" && cfg.FindIDP(r.IDP) == nil || len(r.DependsOn) > 5 || r.Bearer != nil && len(r.Bearer.IDPs)+len(r.Bearer.Issuers) == 0 && len(cfg.OfferedIDPs()) > 0 {
				t.Fatalf("bad sign-in of route %+v", r)
			}
		}
		for _, p := range cfg.IDPs {
			if ids[p.ID()] || p.Provider == "" || p.Name != "" && len(p.Missing()) > 0 {
				t.Fatalf("bad provider %+v", p)
			}
			ids[p.ID()] = true
		}
	})
}
