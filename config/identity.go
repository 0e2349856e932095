package config

import (
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Missing are the keys without which nobody can sign in, in the order of the
// reference; it is empty where the provider is complete.
func (p *IdentityProvider) Missing() []string {
	var missing []string
	for _, k := range []struct{ key, text string }{
		{"idp_provider_url", p.URL},
		{"idp_client_id", p.ClientID},
		{"idp_client_secret", p.ClientSecret},
	} {
		if k.text == "" {
			missing = append(missing, k.key)
		}
	}
	return missing
}

func (l *loader) provider(s settings) {
	before := len(l.problems)
	idp := &IdentityProvider{Offered: true, Position: Position{File: l.path}}
	idp.Provider = "oidc"
	idp.Scopes = []string{"openid", "profile", "email", "offline_access"}
	given := false
	for _, key := range []string{"idp_provider", "idp_provider_url", "idp_client_id", "idp_client_secret", "idp_client_secret_file", "idp_scopes"} {
		_, ok := s[key]
		given = given || ok
	}
	if given {
		l.cfg.IDPs = []*IdentityProvider{idp}
	}
	if v, ok := s["idp_provider"]; ok {
		l.providerKind(v)
	}
	if v, ok := s["idp_provider_url"]; ok {
		idp.URL = l.providerURL(v, "anyone on the way to it can read the client secret and sign in as anybody")
	}
	if v, ok := s["idp_client_id"]; ok {
		idp.ClientID, _ = l.text(v)
	}
	_, idp.ClientSecret, _ = l.secretText(s, "idp_client_secret")
	if v, ok := s["idp_scopes"]; ok {
		idp.Scopes = l.texts(v)
		if !slices.Contains(idp.Scopes, "openid") {
			l.problem(v.at(), "add openid: without it the provider says nothing about the user", "idp_scopes lacks openid")
		}
		for _, e := range idp.Scopes {
			if strings.ContainsFunc(e, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
				l.problem(v.at(), "write a list, one scope an entry", "idp_scopes: %q is not a scope", clip(e))
			}
		}
	}
	if missing := idp.Missing(); len(missing) > 0 && !l.failedSince(before) {
		l.warn(Position{File: l.path}, "routes that need a user answer 503", "nobody can sign in: %s %s not set", strings.Join(missing, ", "), areIs(len(missing)))
	}
}

func areIs(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func (l *loader) providerKind(v value) {
	s, ok := l.text(v)
	if !ok {
		return
	}
	switch strings.ToLower(s) {
	case "oidc":
	case "google", "azure", "okta", "ping", "auth0", "cognito", "gitlab", "onelogin", "github", "apple", "hosted":
		l.problem(v.at(), "most providers work as oidc, with idp_provider_url", "idp_provider: %s is not supported yet", s)
	default:
		l.problem(v.at(), "write oidc", "idp_provider: unknown provider %q", clip(s))
	}
}

// providerURL reads the URL of something that we trust to say who people are:
// https, or http where nobody can listen in. Exposed says what http elsewhere
// costs. No message repeats the URL.
func (l *loader) providerURL(v value, exposed string) string {
	u, ok := l.url(v)
	if !ok {
		return ""
	}
	switch {
	case u.RawQuery != "" || u.Fragment != "":
		l.problem(v.at(), "remove what follows ? or #", "%s has a query or a fragment", v.key)
		return ""
	case u.Scheme == "http" && !loopback(u.Hostname()):
		l.warn(v.at(), "use https", "%s is plain http: %s", v.key, exposed)
	}
	text, _ := l.text(v)
	return text
}

// url reads an absolute http or https URL without user information.
func (l *loader) url(v value) (*url.URL, bool) {
	s, ok := l.text(v)
	if !ok {
		return nil, false
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		l.problem(v.at(), "write https://host", "%s is not a URL", v.key)
	case u.Scheme != "https" && u.Scheme != "http":
		l.problem(v.at(), "write https://host", "%s is not an https URL", v.key)
	case u.User != nil:
		l.problem(v.at(), "remove what stands before the @", "%s holds a user name or a password", v.key)
	case u.Hostname() == "" || !validPort(u):
		l.problem(v.at(), "write https://host", "%s has no valid host and port", v.key)
	default:
		return u, true
	}
	return nil, false
}

// loopback reports whether a host name can only mean this machine.
func loopback(host string) bool {
	if host = strings.ToLower(host); host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func (l *loader) cookie(s settings) {
	c := &l.cfg.Cookie
	c.Name, c.HTTPOnly, c.Expire = "_pomerium", true, 14*time.Hour
	if v, ok := s["cookie_name"]; ok {
		c.Name, ok = l.text(v)
		if ok && (&http.Cookie{Name: c.Name}).Valid() != nil {
			l.problem(v.at(), "letters, digits, - and _", "cookie_name: %q is not a cookie name", clip(c.Name))
		} else if len(c.Name) > 64 {
			l.problem(v.at(), "at most 64 characters", "cookie_name is too long")
		}
	}
	if v, ok := s["cookie_domain"]; ok && !v.empty() {
		c.Domain = l.cookieDomain(v)
		if strings.HasPrefix(c.Name, "__Host-") {
			l.problem(v.at(), "browsers refuse a __Host- cookie with a domain: rename it or remove cookie_domain", "cookie_domain does not go with cookie_name %s", clip(c.Name))
		}
	}
	if v, ok := s["cookie_http_only"]; ok {
		c.HTTPOnly, _ = l.flag(v)
	}
	if v, ok := s["cookie_expire"]; ok {
		if c.Expire, ok = l.duration(v); ok && c.Expire < time.Second {
			l.problem(v.at(), "a session needs a lifetime, such as 14h", "cookie_expire is less than a second")
		}
	}
	if v, ok := s["cookie_same_site"]; ok && !v.empty() {
		c.SameSite, _ = l.oneOf(v, "strict", "lax", "none")
	}
}

func (l *loader) cookieDomain(v value) string {
	s, ok := l.text(v)
	if !ok {
		return ""
	}
	domain, err := hostname(strings.TrimPrefix(s, "."), false)
	if err != nil {
		l.problem(v.at(), "write a domain such as example.com", "cookie_domain: %v", err)
		return ""
	}
	if _, err := netip.ParseAddr(domain); err == nil {
		l.problem(v.at(), "remove it: a cookie of an address has no domain", "cookie_domain is an IP address")
		return ""
	}
	if !ownDomain(domain) {
		l.problem(v.at(), "write your own domain", "cookie_domain: browsers refuse cookies for all of %s", domain)
		return ""
	}
	return domain
}

func (l *loader) databroker(s settings) {
	d := &l.cfg.Databroker
	d.StorageType, d.OutageGrace = "file", time.Minute
	if v, ok := s["databroker_storage_type"]; ok {
		if v.node.Value == "postgres" {
			l.problem(v.at(), "write file or memory", "databroker_storage_type: postgres is not supported yet")
		} else {
			d.StorageType, _ = l.oneOf(v, "file", "memory")
		}
	}
	if v, ok := s["databroker_outage_grace"]; ok {
		d.OutageGrace, _ = l.duration(v)
	}
	v, ok := s["databroker_storage_connection_string"]
	if !ok {
		return
	}
	text, ok := l.text(v)
	if !ok {
		return
	}
	u, err := url.Parse(text)
	switch {
	case d.StorageType == "memory":
		l.problem(v.at(), "remove it, or write databroker_storage_type: file", "databroker_storage_connection_string does not go with databroker_storage_type memory")
	case err != nil || u.Scheme != "file" || u.Host != "" || u.User != nil || u.RawQuery != "" || !strings.HasPrefix(u.Path, "/") || path.Clean(u.Path) == "/":
		l.problem(v.at(), "write file:///dir", "databroker_storage_connection_string is not the URL of a folder")
	default:
		d.ConnectionString, d.Dir = text, filepath.Clean(u.Path)
	}
}
