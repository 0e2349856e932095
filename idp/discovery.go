package idp

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	discoveryLife = time.Hour
	keysLife      = 10 * time.Minute
)

// metadata is what we take of a discovery document (OpenID Connect Discovery 1.0,
// section 3, and RP-Initiated Logout 1.0, section 2.1).
type metadata struct {
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	UserInfo      string   `json:"userinfo_endpoint"`
	EndSession    string   `json:"end_session_endpoint"`
	JWKS          string   `json:"jwks_uri"`
	Scopes        []string `json:"scopes_supported"`
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
	Challenges    []string `json:"code_challenge_methods_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
}

// discovered is what is known of an issuer. It is immutable but for its keys.
type discovered struct {
	metadata
	algorithms []jose.SignatureAlgorithm
	keys       *keySet
}

// tenant stands for the id of any tenant in an issuer (azure).
const tenant = "{tenantid}"

// shared reports whether the issuer stands for those of many tenants.
func (d *discovered) shared() bool { return strings.Contains(d.Issuer, tenant) }

// newDiscovery makes the discovery of an issuer. With tenants the document may name
// another issuer on the same host; with keysOnly it needs no endpoints, as those of
// issuers at which nobody signs in have none.
func newDiscovery(n *network, issuer string, tenants, keysOnly bool) *remote[*discovered] {
	r := &remote[*discovered]{network: n, name: "discovery document of " + bounded(issuer, 200), life: discoveryLife}
	r.fetch = func(ctx context.Context, old *discovered) (*discovered, error) {
		d := &discovered{}
		if err := n.getJSON(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", "", &d.metadata); err != nil {
			return nil, err
		}
		if !sameIssuer(d.Issuer, issuer, tenants) {
			return nil, failed(Misconfigured, "it says that its issuer is %q, but the configured URL is %q: write that of the issuer", bounded(d.Issuer, 200), bounded(issuer, 200))
		}
		if err := d.checkEndpoints(!keysOnly, strings.HasPrefix(issuer, "http:")); err != nil {
			return nil, err
		}
		d.algorithms = asymmetric(d.Algorithms)
		// Keys outlive the document: those that are known are good until there are
		// newer ones.
		if d.keys = newKeySet(n, d.JWKS); old != nil && old.JWKS == d.JWKS {
			d.keys = old.keys
		}
		return d, nil
	}
	return r
}

// sameIssuer: some write a slash at the end that the other leaves out. With
// tenants any issuer will do that is on the same host.
func sameIssuer(discovered, configured string, tenants bool) bool {
	if strings.TrimSuffix(discovered, "/") == strings.TrimSuffix(configured, "/") {
		return discovered != ""
	}
	a, err := url.Parse(strings.Replace(discovered, tenant, "tenant", 1))
	if err != nil {
		return false
	}
	b, err := url.Parse(configured)
	return tenants && err == nil && a.Scheme == b.Scheme && a.Host == b.Host && a.User == nil
}

// checkEndpoints: what is behind https sends nobody to plain http. A client needs the
// endpoints of a sign-in.
func (m *metadata) checkEndpoints(client, plain bool) error {
	for _, e := range []struct {
		name, address string
		needed        bool
	}{
		{"authorization_endpoint", m.Authorization, client}, {"token_endpoint", m.Token, client}, {"jwks_uri", m.JWKS, true},
		{"userinfo_endpoint", m.UserInfo, false}, {"end_session_endpoint", m.EndSession, false},
	} {
		if e.address == "" && !e.needed {
			continue
		}
		u, err := url.Parse(e.address)
		if err != nil || u.Host == "" || u.Scheme != "https" && !(plain && u.Scheme == "http") {
			return fmt.Errorf("its %s is no https URL", e.name)
		}
	}
	return nil
}

// asymmetric are those of the algorithms that a public key verifies, RS256 if there
// is none (OpenID Connect Discovery 1.0, section 3).
func asymmetric(names []string) []jose.SignatureAlgorithm {
	var algorithms []jose.SignatureAlgorithm
	for _, a := range []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
	} {
		if slices.Contains(names, string(a)) {
			algorithms = append(algorithms, a)
		}
	}
	if len(algorithms) == 0 {
		algorithms = append(algorithms, jose.RS256)
	}
	return algorithms
}
