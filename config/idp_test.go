package config_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign/countersign/config"
)

// ignored is what comparisons of providers leave out.
func ignored() cmp.Option {
	return cmp.Options{
		cmpopts.IgnoreFields(config.IdentityProvider{}, "Position"),
		cmpopts.IgnoreUnexported(config.IdentityProvider{}),
	}
}

// TestKinds shows what each kind of provider needs no words for.
func TestKinds(t *testing.T) {
	const own = "https://own.example.com/x"
	for kind, want := range map[string]struct{ url, label string }{
		"oidc":     {"", "own.example.com"},
		"google":   {"https://accounts.google.com", "Google"},
		"azure":    {"https://login.microsoftonline.com/common/v2.0", "Microsoft"},
		"okta":     {"", "Okta"},
		"auth0":    {"", "Auth0"},
		"cognito":  {"", "Amazon Cognito"},
		"ping":     {"", "Ping Identity"},
		"onelogin": {"", "OneLogin"},
		"gitlab":   {"https://gitlab.com", "GitLab"},
		"keycloak": {"", "Keycloak"},
		"github":   {"https://github.com", "GitHub"},
		"apple":    {"https://appleid.apple.com", "Apple"},
	} {
		got := load(t, "idp_provider: "+kind+minimal, config.LoadOptions{}).IDPs[0]
		if got.Provider != kind || got.URL != want.url || got.Scopes != nil || !got.Offered {
			t.Errorf("%s: got %+v, want the URL %q", kind, got, want.url)
		}
		if missing := slices.Contains(got.Missing(), "idp_provider_url"); missing != (want.url == "") {
			t.Errorf("%s: idp_provider_url missing: %t", kind, missing)
		}
		got = load(t, "idp_provider_url: "+own+"\nidp_provider: "+strings.ToUpper(kind)+minimal, config.LoadOptions{}).IDPs[0]
		if got.Provider != kind || got.URL != own || got.Label != want.label {
			t.Errorf("%s with a URL: got %+v, want the label %q", kind, got, want.label)
		}
	}
}

const manyProviders = `
idp_provider: google
idp_client_id: global
idp_client_secret: s0
idp_scopes: [openid, email]
idp_request_params: {prompt: login, hd: example.com}
idp_access_token_allowed_audiences: [aud]
idps:
  - {name: staff, provider: keycloak, provider_url: "https://kc.example.com/realms/staff", client_id: app, client_secret_file: secret}
  - name: corp
    label: The company
    provider_url: https://corp.example.com
    client_id: app
    client_secret: s2
    scopes: openid, groups
    request_params: {ui_locales: de}
    access_token_allowed_audiences: [a, b]
routes:
  - {from: https://any.example.com, to: http://a, allowed_users: [u]}
  - {from: https://global.example.com, to: http://a, allowed_users: [u], idp: default}
  - {from: https://staff.example.com, to: http://a, allowed_users: [u], idp: staff}
  - {from: https://own.example.com, to: http://a, allowed_users: [u], idp_client_id: own, idp_client_secret: s3}
  - {from: https://corp.example.com, to: http://a, allowed_users: [u], idp: corp, idp_client_id: own, idp_client_secret_file: secret}
  - {from: https://again.example.com, to: http://a, allowed_users: [u], idp_client_id: own, idp_client_secret: s3}
  - {from: https://same.example.com, to: http://a, allowed_users: [u], idp_client_id: global, idp_client_secret: s0}
`

// TestProviders shows all providers of a configuration, and which of them the
// routes take.
func TestProviders(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "secret"), []byte("s1\n"))
	write(t, filepath.Join(dir, "config.yaml"), []byte(manyProviders))
	cfg := reload(t, filepath.Join(dir, "config.yaml"), config.LoadOptions{})

	global := config.IdentityProvider{
		Label: "Google", Offered: true, Provider: "google", URL: "https://accounts.google.com", ClientID: "global", ClientSecret: "s0",
		Scopes: []string{"openid", "email"}, RequestParams: []config.Parameter{{Name: "hd", Value: "example.com"}, {Name: "prompt", Value: "login"}},
		AccessTokenAudiences: []string{"aud"},
	}
	staff := config.IdentityProvider{
		Name: "staff", Label: "Keycloak", Offered: true, Provider: "keycloak", URL: "https://kc.example.com/realms/staff", ClientID: "app", ClientSecret: "s1",
	}
	corp := config.IdentityProvider{
		Name: "corp", Label: "The company", Offered: true, Provider: "oidc", URL: "https://corp.example.com", ClientID: "app", ClientSecret: "s2",
		Scopes: []string{"openid", "groups"}, RequestParams: []config.Parameter{{Name: "ui_locales", Value: "de"}}, AccessTokenAudiences: []string{"a", "b"},
	}
	own, corpOwn := global, corp
	own.Offered, own.ClientID, own.ClientSecret = false, "own", "s3"
	corpOwn.Offered, corpOwn.ClientID, corpOwn.ClientSecret = false, "own", "s1"
	want := []*config.IdentityProvider{&global, &staff, &corp, &own, &corpOwn}
	if diff := cmp.Diff(want, cfg.IDPs, ignored()); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(want[:3], cfg.OfferedIDPs(), ignored()); diff != "" {
		t.Errorf("offered: -want +got:\n%s", diff)
	}
	for i, p := range want {
		if got := cfg.IDPs[i]; got.ID() != p.ID() || cfg.FindIDP(p.ID()) != got || got.Position.Line == 0 {
			t.Errorf("%s: the ID is %s, want %s; position %s", p.Label, got.ID(), p.ID(), got.Position)
		}
	}
	takes := map[string][]bool{
		"any.example.com":    {true, true, true, false, false},
		"global.example.com": {true, false, false, false, false},
		"staff.example.com":  {false, true, false, false, false},
		"own.example.com":    {false, false, false, true, false},
		"corp.example.com":   {false, false, false, false, true},
		"again.example.com":  {false, false, false, true, false},
		"same.example.com":   {true, false, false, false, false},
	}
	for _, r := range cfg.Routes {
		for i, p := range cfg.IDPs {
			if got := r.Takes(cfg, p.ID()); got != takes[r.Host][i] {
				t.Errorf("%s takes sessions of %s, client %s: %t", r.Host, p.Label, p.ClientID, got)
			}
		}
		if r.Takes(cfg, "") || r.Takes(cfg, "unknown") {
			t.Errorf("%s takes sessions of nobody", r.Host)
		}
	}
}

// TestNoProvider shows that there is none without any key of one.
func TestNoProvider(t *testing.T) {
	if got := load(t, minimal, config.LoadOptions{}).IDPs; len(got) != 0 {
		t.Errorf("got %+v", got[0])
	}
	// In a mapping the names are the keys.
	cfg := load(t, "idps: {staff: {provider: google, client_id: a, client_secret: b}}"+minimal, config.LoadOptions{})
	if got := cfg.IDPs; len(got) != 1 || got[0].Name != "staff" || len(cfg.Warnings) != 0 {
		t.Errorf("got %+v, %v", got, cfg.Warnings)
	}
}

// TestHalfProvider shows that what cannot be used is offered only if there is
// nothing else, to say what it lacks.
func TestHalfProvider(t *testing.T) {
	if got := load(t, "idp_provider: google"+minimal, config.LoadOptions{}).OfferedIDPs(); len(got) != 1 {
		t.Errorf("alone: %d are offered", len(got))
	}
	got := load(t, "idp_provider: google\nidps: [{name: a, provider: github, client_id: a, client_secret: b}]"+minimal, config.LoadOptions{}).OfferedIDPs()
	if len(got) != 1 || got[0].Name != "a" {
		t.Errorf("beside another: %d are offered", len(got))
	}
}

const manyBearers = `
idp_provider: google
idp_client_id: global
idp_client_secret: s0
idp_access_token_allowed_audiences: [aud]
bearer_token_format: idp_access_token
identity_providers:
  b: {issuer: "https://b.example.com", jwks_url: "http://127.0.0.1/keys", audiences: [x, y], supported_algs: [ES384, RS256, ES384]}
  a: {issuer: "http://localhost:8080", audiences: x}
idps:
  - {name: corp, provider: gitlab, client_id: app, client_secret: s2, access_token_allowed_audiences: [aud]}
routes:
  - {from: https://r0.example.com, to: http://a, allowed_users: [u]}
  - {from: https://r1.example.com, to: http://a, allowed_users: [u]}
  - {from: https://r2.example.com, to: http://a, allowed_users: [u], idp: corp}
  - {from: https://r3.example.com, to: http://a, allowed_users: [u], idp_access_token_allowed_audiences: [own]}
  - {from: https://r4.example.com, to: http://a, allowed_users: [u], bearer_token_format: idp_identity_token}
  - {from: https://r5.example.com, to: http://a, allowed_users: [u], bearer_token_format: JWT}
  - {from: https://r6.example.com, to: http://a, allowed_users: [u], bearer_token_format: jwt, identity_providers: [b, a, b]}
  - {from: https://r7.example.com, to: http://a, allowed_users: [u], bearer_token_format: jwt, identity_providers: b}
  - {from: https://r8.example.com, to: http://a, allowed_users: [u], bearer_token_format: default}
  - {from: https://r9.example.com, to: http://a, allowed_users: [u], idp_client_id: own, idp_client_secret: s}
`

// TestBearer shows whose bearer tokens routes take, and that routes share settings
// if and only if they are equal.
func TestBearer(t *testing.T) {
	cfg := load(t, manyBearers, config.LoadOptions{})
	a := &config.TokenIssuer{Name: "a", Issuer: "http://localhost:8080", Algorithms: []string{"RS256", "ES256", "EdDSA"}, Audiences: []string{"x"}}
	b := &config.TokenIssuer{Name: "b", Issuer: "https://b.example.com", JWKSURL: "http://127.0.0.1/keys", Algorithms: []string{"ES384", "RS256"}, Audiences: []string{"x", "y"}}
	access := func(audience string, idps ...*config.IdentityProvider) *config.Bearer {
		return &config.Bearer{Format: config.BearerAccessToken, IDPs: idps, Audiences: []string{audience}}
	}
	global, corp, own := cfg.IDPs[0], cfg.IDPs[1], cfg.IDPs[2]
	want := []*config.Bearer{
		access("aud", global, corp), access("aud", global, corp), access("aud", corp), access("own", global, corp),
		{Format: config.BearerIdentityToken, IDPs: []*config.IdentityProvider{global, corp}},
		{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{a, b}},
		{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{a, b}},
		{Format: config.BearerJWT, Issuers: []*config.TokenIssuer{b}},
		nil, access("aud", own),
	}
	for i, r := range cfg.Routes {
		if diff := cmp.Diff(want[i], r.Bearer, ignored(), cmpopts.IgnoreFields(config.Bearer{}, "ID")); diff != "" {
			t.Errorf("%s: -want +got:\n%s", r.Host, diff)
		}
		for j, other := range cfg.Routes {
			shared := i == j || i+j == 1 || i+j == 11 && (i == 5 || i == 6)
			if (r.Bearer == other.Bearer) != shared || r.Bearer != nil && other.Bearer != nil && (r.Bearer.ID == other.Bearer.ID) != shared {
				t.Errorf("%s and %s share settings: %t", r.Host, other.Host, !shared)
			}
		}
	}
}

// TestBearerID shows that a token's worth is known by everything that decides it.
func TestBearerID(t *testing.T) {
	id := func(yaml string) string {
		b := load(t, yaml, config.LoadOptions{}).Routes[7].Bearer
		if len(b.ID) != 32 {
			t.Errorf("the ID is %q", b.ID)
		}
		return b.ID
	}
	first := id(manyBearers)
	for _, edit := range [][2]string{
		{`"https://b.example.com"`, `"https://b.example.org"`},
		{"/keys", "/keys2"},
		{"[x, y]", "[x]"},
		{"[x, y]", "[xy]"},
		{"supported_algs: [ES384, RS256, ES384]", "supported_algs: [RS256]"},
		{"  b: {", "  c: {"},
	} {
		edited := strings.Replace(manyBearers, edit[0], edit[1], 1)
		if edit[1] == "  c: {" {
			edited = strings.NewReplacer("[b, a, b]", "[c]", "identity_providers: b", "identity_providers: c").Replace(edited)
		}
		if id(edited) == first {
			t.Errorf("%s for %s changes nothing", edit[1], edit[0])
		}
	}
	if id(strings.Replace(manyBearers, "client_secret: s0", "client_secret: s1", 1)) != first {
		t.Error("the ID follows a secret")
	}
	identity := func(audiences string) string {
		return load(t, audiences+manyBearers, config.LoadOptions{}).Routes[4].Bearer.ID
	}
	two := identity("programmatic_allowed_audiences: [p, q]\n")
	if two == identity("programmatic_allowed_audiences: [p]\n") || two == identity("") {
		t.Error("the ID does not follow programmatic_allowed_audiences")
	}
	if two != identity("programmatic_allowed_audiences: [q, p, q]\n") {
		t.Error("the ID follows the order of programmatic_allowed_audiences")
	}
	if id("programmatic_allowed_audiences: [p]\n"+manyBearers) != first {
		t.Error("the ID of other formats follows programmatic_allowed_audiences")
	}
	provider := func(yaml string) string { return load(t, yaml, config.LoadOptions{}).Routes[2].Bearer.ID }
	if provider(manyBearers) == provider(strings.Replace(manyBearers, "client_id: app", "client_id: other", 1)) {
		t.Error("the ID does not follow the provider")
	}
}

// TestSessionSettings shows what of a route's sessions is its own and what it
// inherits.
func TestSessionSettings(t *testing.T) {
	cfg := load(t, `
session_lifetime: 8h
session_idle_timeout: 30m
address: :8443
routes:
  - {from: https://a.example.com, to: http://a, allowed_users: [u], depends_on: ["B.example.com:8443", c.example.com, x.y.wild.example.com, app-1.example.com, "b.example.com:443"]}
  - {from: https://b.example.com, to: http://a, allowed_users: [u], session_lifetime: 0, session_idle_timeout: 1m}
  - {from: "https://c.example.com:9443", to: http://a, allowed_users: [u], session_lifetime: 1h, session_idle_timeout: 0s, depends_on: a.example.com}
  - {from: "https://*.wild.example.com", to: http://a, allowed_users: [u], depends_on: [y.wild.example.com, "c.example.com:9443", c.example.com]}
  - {from: "https://app-*.example.com", to: http://a, allowed_users: [u]}
`, config.LoadOptions{})
	type ages struct{ Lifetime, Idle time.Duration }
	want := []ages{{8 * time.Hour, 30 * time.Minute}, {0, time.Minute}, {time.Hour, 0}, {8 * time.Hour, 30 * time.Minute}, {8 * time.Hour, 30 * time.Minute}}
	depends := [][]string{
		{"b.example.com:8443", "c.example.com:9443", "x.y.wild.example.com", "app-1.example.com", "b.example.com"}, nil, {"a.example.com"},
		{"y.wild.example.com", "c.example.com:9443"}, nil,
	}
	for i, r := range cfg.Routes {
		if got := (ages{r.SessionLifetime, r.SessionIdleTimeout}); got != want[i] {
			t.Errorf("%s: got %v, want %v", r.Host, got, want[i])
		}
		if diff := cmp.Diff(depends[i], r.DependsOn); diff != "" {
			t.Errorf("%s depends on: -want +got:\n%s", r.Host, diff)
		}
	}
}
