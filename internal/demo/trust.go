package demo

import (
	"os"
	"runtime"
	"strings"
)

// TrustCommand is what makes this system trust the demo's authority, to be
// typed into a shell. A browser must be started again after it.
func (d *Demo) TrustCommand() string {
	sudo := "sudo "
	if os.Geteuid() == 0 {
		sudo = ""
	}
	return trustCommand(runtime.GOOS, sudo, d.CAPath(), exists)
}

// CurlCommand reads the demo's page of keys without trusting anything for good.
func (d *Demo) CurlCommand() string {
	return "curl --cacert " + quote(d.CAPath()) + " " + d.url(AppHost) + "/.well-known/pomerium/jwks.json"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// trustCommand names the system's own tool. Browsers on Linux do not look at
// the system's authorities, hence certutil for their own store.
func trustCommand(system, sudo, ca string, exists func(string) bool) string {
	ca = quote(ca)
	switch system {
	case "darwin":
		return `security add-trusted-cert -r trustRoot -k "$HOME/Library/Keychains/login.keychain-db" ` + ca
	case "windows":
		return "certutil -user -addstore Root " + ca
	}
	browsers := `mkdir -p "$HOME/.pki/nssdb" && certutil -d "sql:$HOME/.pki/nssdb" -A -t C,, -n countersign-demo -i ` + ca
	switch {
	case exists("/usr/sbin/update-ca-certificates"):
		return sudo + "cp " + ca + " /usr/local/share/ca-certificates/countersign-demo.crt && " + sudo + "update-ca-certificates && " + browsers
	case exists("/usr/bin/update-ca-trust"):
		return sudo + "cp " + ca + " /etc/pki/ca-trust/source/anchors/countersign-demo.pem && " + sudo + "update-ca-trust && " + browsers
	}
	return browsers
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
