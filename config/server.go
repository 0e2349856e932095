package config

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// server reads what concerns the listeners.
func (l *loader) server(s settings) {
	server := &l.cfg.Server
	server.Address = ":443"
	l.cfg.LogLevel = "info"
	l.services(s)
	if v, ok := s["address"]; ok {
		server.Address = l.hostPort(v)
	}
	if v, ok := s["http_redirect_addr"]; ok && !v.empty() {
		server.HTTPRedirectAddress = l.hostPort(v)
		if server.HTTPRedirectAddress == server.Address && server.Address != "" {
			l.problem(v.at(), "give it a port of its own, such as :80", "http_redirect_addr is the same as address")
		}
	}
	if v, ok := s["insecure_server"]; ok {
		server.Insecure, _ = l.flag(v)
	}
	if v, ok := s["xff_num_trusted_hops"]; ok {
		server.XFFNumTrustedHops, _ = l.whole(v)
	}
	if v, ok := s["skip_xff_append"]; ok {
		server.SkipXFFAppend, _ = l.flag(v)
	}
	l.metrics(s)
	if v, ok := s["log_level"]; ok {
		l.cfg.LogLevel, _ = l.oneOf(v, "trace", "debug", "info", "warn", "error", "disabled")
	}
	l.certificates(s)
	l.hsts = len(server.Certificates) > 0
	l.responseHeaders = l.defaultResponseHeaders()
	if v, ok := s["set_response_headers"]; ok {
		set, off := l.responseHeaderMap(v)
		if l.responseHeaders = set; off {
			l.responseHeaders = nil
		}
	}
}

// metrics reads where metrics are served. They name routes and hosts, so other
// machines should not reach them by accident.
func (l *loader) metrics(s settings) {
	v, ok := s["metrics_address"]
	if !ok || v.empty() {
		return
	}
	address := l.hostPort(v)
	if address == "" {
		return
	}
	l.cfg.MetricsAddress = address
	if address == l.cfg.Server.Address || address == l.cfg.Server.HTTPRedirectAddress {
		l.problem(v.at(), "give it a port of its own, such as 127.0.0.1:9090", "metrics_address is the same as address or http_redirect_addr")
	} else if host, port, _ := net.SplitHostPort(address); !loopback(host) {
		l.warn(v.at(), "write 127.0.0.1:"+port+", or let a firewall keep strangers away", "metrics_address can be reached from other machines, and metrics name your routes")
	}
}

func (l *loader) services(s settings) {
	v, ok := s["services"]
	if !ok {
		return
	}
	for _, e := range l.items(v) {
		switch e.text {
		case "all":
		case "authenticate", "authorize", "proxy", "databroker", "cache":
			l.problem(e.at, "write services: all", "services: running %s on its own is not supported yet", e.text)
		default:
			l.problem(e.at, "write services: all", "services: unknown service %q", clip(e.text))
		}
	}
}

// hostPort reads an address to listen on.
func (l *loader) hostPort(v value) string {
	s, ok := l.text(v)
	if !ok {
		return ""
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		l.problem(v.at(), "write host:port, or :port for every address", "%s: %q is not host:port", v.key, clip(s))
		return ""
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		l.problem(v.at(), "a port is a number from 1 to 65535", "%s: bad port %q", v.key, clip(port))
		return ""
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if host != "" {
		ip, err := netip.ParseAddr(host)
		if err != nil {
			l.problem(v.at(), "a listener has an IP address, or none for every address", "%s: %q is not an IP address", v.key, clip(host))
			return ""
		}
		host = ip.String()
	}
	return net.JoinHostPort(host, port)
}

// certificates reads certificate_file with its key, then the list.
func (l *loader) certificates(s settings) {
	chain, hasChain := s["certificate_file"]
	key, hasKey := s["certificate_key_file"]
	switch {
	case hasChain && hasKey:
		l.certificate(chain, key)
	case hasChain:
		l.problem(chain.at(), "add certificate_key_file", "certificate_file without its key")
	case hasKey:
		l.problem(key.at(), "add certificate_file", "certificate_key_file without its certificate")
	}
	list, ok := s["certificates"]
	if !ok {
		return
	}
	for _, e := range l.elements(list) {
		pair := l.fields(e, "cert", "key")
		chain, hasChain := pair["cert"]
		key, hasKey := pair["key"]
		if hasChain && hasKey {
			l.certificate(chain, key)
		} else if e.node.Kind == yaml.MappingNode {
			l.problem(e.at(), "write cert: and key:, both paths of PEM files", "%s needs cert and key", e.key)
		}
	}
}

func (l *loader) certificate(chainPath, keyPath value) {
	chain, okChain := l.file(chainPath)
	key, okKey := l.file(keyPath)
	if !okChain || !okKey {
		return
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		l.problem(chainPath.at(), certificateHint(err), "%s: %s", chainPath.key, strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	l.validity(chainPath, pair.Leaf)
	l.cfg.Server.Certificates = append(l.cfg.Server.Certificates, Certificate{Chain: chain, Key: key, Position: chainPath.at()})
}

func certificateHint(err error) string {
	if strings.Contains(err.Error(), "does not match") {
		return "the key belongs to another certificate; the chain begins with the server's own"
	}
	return "both files are PEM: -----BEGIN CERTIFICATE----- and -----BEGIN PRIVATE KEY-----"
}

// validity warns of a certificate that no client will accept now.
func (l *loader) validity(v value, c *x509.Certificate) {
	const day = "2006-01-02"
	switch now := l.opts.Now(); {
	case now.After(c.NotAfter):
		l.warn(v.at(), "renew it", "%s: the certificate expired on %s", v.key, c.NotAfter.UTC().Format(day))
	case now.Before(c.NotBefore):
		l.warn(v.at(), "check the clock of this machine", "%s: the certificate is not valid before %s", v.key, c.NotBefore.UTC().Format(day))
	}
}

// resolvePath is where a file is that the configuration names.
func (l *loader) resolvePath(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(l.dir, name)
}

// file reads the file that a key names.
func (l *loader) file(v value) ([]byte, bool) {
	name, ok := l.text(v)
	if !ok {
		return nil, false
	}
	if name == "" {
		l.problem(v.at(), "write a path or remove the key", "%s is empty", v.key)
		return nil, false
	}
	content, err := l.files.read(l.resolvePath(name))
	if err != nil {
		hint := "paths are relative to the folder of the configuration"
		if filepath.IsAbs(name) {
			hint = "check the path and its permissions"
		}
		l.problem(v.at(), hint, "%s: read %s: %v", v.key, clip(name), err)
		return nil, false
	}
	return content, true
}

// authority is the checked content of a file of CA certificates.
type authority struct {
	certificates []*x509.Certificate
	err          error
}

// certificateAuthority reads a PEM file of roots.
func (l *loader) certificateAuthority(v value) []byte {
	content, ok := l.file(v)
	if !ok {
		return nil
	}
	path := l.resolvePath(v.node.Value)
	checked, seen := l.authorities[path]
	if !seen {
		checked.certificates, checked.err = policy.ParseCertificates(content)
		l.authorities[path] = checked
	}
	if checked.err != nil {
		l.problem(v.at(), "it holds one or more -----BEGIN CERTIFICATE----- blocks", "%s: %v", v.key, checked.err)
		return nil
	}
	l.anyValid(v, checked.certificates)
	return content
}

// anyValid warns where no authority of a list is one any more.
func (l *loader) anyValid(v value, list []*x509.Certificate) {
	now := l.opts.Now()
	if !slices.ContainsFunc(list, func(c *x509.Certificate) bool { return !now.After(c.NotAfter) }) {
		l.validity(v, list[0])
	}
}
