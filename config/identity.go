package config

import (
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"
)

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
