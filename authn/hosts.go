package authn

import (
	"errors"
	"net"
	"net/url"
	"strings"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

var errTarget = errors.New("redirect target is not on a host of ours")

// hosts knows which names are ours: those of routes and the authenticate host.
type hosts struct {
	authenticate *url.URL
	exact        map[string][]port
	wildcards    []wildcard
	// listen is the port that Envoy listens on; a route without a port also
	// answers there.
	listen   string
	insecure bool
}

// port is what a route says about its port: "" for nothing.
type port string

type wildcard struct {
	pattern string
	port    port
}

func newHosts(cfg *config.Config) *hosts {
	h := &hosts{authenticate: cfg.AuthenticateURL, exact: map[string][]port{}, insecure: cfg.Server.Insecure}
	if _, p, err := net.SplitHostPort(cfg.Server.Address); err == nil {
		h.listen = p
	}
	seen := map[wildcard]bool{}
	for _, r := range cfg.Routes {
		entry := wildcard{strings.ToLower(r.Host), port(r.Port)}
		if seen[entry] {
			continue
		}
		seen[entry] = true
		if strings.Contains(entry.pattern, "*") {
			h.wildcards = append(h.wildcards, entry)
		} else {
			h.exact[entry.pattern] = append(h.exact[entry.pattern], entry.port)
		}
	}
	return h
}

// isAuthenticate reports whether a Host header names the authenticate host.
func (h *hosts) isAuthenticate(hostport string) bool {
	if h.authenticate == nil {
		return false
	}
	host, p, ok := splitHost(hostport)
	return ok && host == strings.ToLower(h.authenticate.Hostname()) && h.accepts(port(h.authenticate.Port()), p)
}

// isRoute reports whether a Host header, or the host of a URL, names a host of
// a route. The authenticate host is none, even under a wildcard.
func (h *hosts) isRoute(hostport string) bool {
	host, p, ok := splitHost(hostport)
	if !ok || h.isAuthenticate(hostport) {
		return false
	}
	for _, want := range h.exact[host] {
		if h.accepts(want, p) {
			return true
		}
	}
	for _, w := range h.wildcards {
		if glob(w.pattern, host) && h.accepts(w.port, p) {
			return true
		}
	}
	return false
}

// accepts compares ports; "" is the scheme's own.
func (h *hosts) accepts(want port, got string) bool {
	standard := got == "" || got == "443" || h.insecure && got == "80"
	if want == "" {
		return standard || got == h.listen
	}
	return string(want) == got || standard && (want == "443" || h.insecure && want == "80")
}

// target parses a redirect target and refuses one that leaves our route hosts.
func (h *hosts) target(raw string) (*url.URL, error) {
	u, err := signin.SafeRedirect(raw, h.isRoute)
	if err != nil || u.Host == "" || !h.schemeOK(u.Scheme) {
		return nil, errTarget
	}
	return u, nil
}

func (h *hosts) schemeOK(scheme string) bool {
	return scheme == "https" || h.insecure && scheme == "http"
}

// splitHost splits and lower-cases a Host header; ok is false for anything but
// a plain name or address with an optional port.
func splitHost(hostport string) (host, p string, ok bool) {
	if hostport == "" || len(hostport) > 260 {
		return "", "", false
	}
	u := url.URL{Host: hostport}
	host, p = strings.ToLower(u.Hostname()), u.Port()
	switch {
	case strings.HasPrefix(hostport, "["):
		if net.ParseIP(host) == nil {
			return "", "", false
		}
		host = "[" + host + "]"
	case strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "":
		return "", "", false
	}
	rest := strings.ToLower(hostport)
	if rest != host && (p == "" || rest != host+":"+p) {
		return "", "", false
	}
	return strings.Trim(host, "[]"), p, host != ""
}

// glob matches host against a pattern whose "*" stands for one or more
// characters, dots included, as in Envoy's virtual hosts.
func glob(pattern, host string) bool {
	parts := strings.Split(pattern, "*")
	first, last := parts[0], parts[len(parts)-1]
	if len(host) < len(first)+len(last)+1 || !strings.HasPrefix(host, first) || !strings.HasSuffix(host, last) {
		return false
	}
	rest := host[len(first) : len(host)-len(last)]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(rest[1:], p)
		if i < 0 {
			return false
		}
		rest = rest[1+i+len(p):]
		if rest == "" {
			return false
		}
	}
	return rest != ""
}

// sameHost compares two hosts with the default ports taken away.
func sameHost(a, b string) bool {
	ah, ap, aok := splitHost(a)
	bh, bp, bok := splitHost(b)
	if ap == "443" {
		ap = ""
	}
	if bp == "443" {
		bp = ""
	}
	return aok && bok && ah == bh && ap == bp
}
