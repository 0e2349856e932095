package signin

import (
	"errors"
	"net/url"
	"strings"
)

// MaxRedirect is the longest redirect target that SafeRedirect reads.
const MaxRedirect = 8 << 10

// ErrRedirect reports a redirect target that might leave our hosts. What was
// wrong with it is not told: it comes from a stranger and goes nowhere.
var ErrRedirect = errors.New("redirect target not allowed")

// SafeRedirect parses a redirect target that came from outside. It accepts an
// absolute http or https URL whose host is allowed, and a path that begins with
// a single slash; anything that a browser may read as something else (//evil,
// /\evil, https:evil, user info, control characters, backslashes, a host that
// is not plain ASCII) is ErrRedirect. allowed gets the host in lower case, with
// its port unless that is the scheme's own; it is not called for a path. The
// URL returned has its scheme and host in that same form.
func SafeRedirect(raw string, allowed func(host string) bool) (*url.URL, error) {
	if raw == "" || len(raw) > MaxRedirect || strings.ContainsFunc(raw, unsafeInURL) {
		return nil, ErrRedirect
	}
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" {
		return nil, ErrRedirect
	}
	if u.Scheme == "" && u.Host == "" {
		// What is written out counts as well as what came in: url.URL spells
		// /%2f" as //%22.
		if raw[0] != '/' || strings.HasPrefix(raw, "//") || strings.HasPrefix(u.EscapedPath(), "//") {
			return nil, ErrRedirect
		}
		return u, nil
	}
	// url.Parse has put the scheme in lower case.
	if u.Scheme != "https" && u.Scheme != "http" {
		return nil, ErrRedirect
	}
	u.Host = canonicalHost(u)
	if u.Hostname() == "" || strings.ContainsFunc(u.Host, notInHost) || !allowed(u.Host) {
		return nil, ErrRedirect
	}
	return u, nil
}

func unsafeInURL(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }

func notInHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:[]", r))
}
