package signin

import (
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestSafeRedirect(t *testing.T) {
	allowed := func(host string) bool { return host == "app.example.com" || host == "app.example.com:8443" }
	const refused = ""
	tests := []struct {
		name, raw, want string
	}{
		{"a route's host", "https://app.example.com/a/b?c=d&e#f", "https://app.example.com/a/b?c=d&e#f"},
		{"a host without a path", "https://app.example.com", "https://app.example.com"},
		{"another case", "HTTPS://APP.Example.COM/A", "https://app.example.com/A"},
		{"the default port", "https://app.example.com:443/", "https://app.example.com/"},
		{"an empty port", "https://app.example.com:/", "https://app.example.com/"},
		{"a port that is allowed", "https://app.example.com:8443/", "https://app.example.com:8443/"},
		{"plain http", "http://app.example.com/", "http://app.example.com/"},
		{"an at sign in the query", "https://app.example.com/?u=a@evil.com", "https://app.example.com/?u=a@evil.com"},
		{"a URL in the query", "https://app.example.com/?u=https://evil.com", "https://app.example.com/?u=https://evil.com"},
		{"escaped slashes in the path", "https://app.example.com/%2f%2fevil.com/%5c", "https://app.example.com/%2f%2fevil.com/%5c"},
		{"a path", "/a?b#c", "/a?b#c"},
		{"the root", "/", "/"},
		{"a path with two slashes later", "/a//evil.com", "/a//evil.com"},
		{"a path that begins escaped", "/%2fevil.com", "/%2fevil.com"},
		{"letters beyond ASCII in the path", "/zoë", "/zo%C3%AB"},

		{"nothing", "", refused},
		{"another host", "https://evil.com/", refused},
		{"a host that begins like ours", "https://app.example.com.evil.com/", refused},
		{"a host that ends like ours", "https://evilapp.example.com/", refused},
		{"a trailing dot", "https://app.example.com./", refused},
		{"another port", "https://app.example.com:9443/", refused},
		{"http's port on https", "https://app.example.com:80/", refused},
		{"a port that is no number", "https://app.example.com:8443evil/", refused},
		{"no scheme", "//evil.com/", refused},
		{"no scheme, our host", "//app.example.com/", refused},
		{"three slashes", "///evil.com", refused},
		{"a slash and a backslash", `/\evil.com`, refused},
		{"a backslash and a slash", `\/evil.com`, refused},
		{"two backslashes", `\\evil.com`, refused},
		{"a backslash after our host", `https://app.example.com\@evil.com/`, refused},
		{"escaped slashes that lose their escape", "/%2f\"evil.com", refused},
		{"a backslash in the path", `/a\b`, refused},
		{"no slashes", "https:evil.com", refused},
		{"no slashes, our host", "https:app.example.com", refused},
		{"one slash", "https:/evil.com", refused},
		{"three slashes after the scheme", "https:///evil.com", refused},
		{"user info", "https://app.example.com@evil.com/", refused},
		{"user info before our host", "https://evil.com@app.example.com/", refused},
		{"empty user info", "https://@app.example.com/", refused},
		{"a password", "https://a:b@app.example.com/", refused},
		{"an escaped at sign", "https://app.example.com%40evil.com/", refused},
		{"an escaped dot", "https://app%2eexample.com/", refused},
		{"an escaped line break in the host", "https://app.example.com%0d%0a.evil.com/", refused},
		{"CR", "https://app.example.com/\r", refused},
		{"LF", "/a\nSet-Cookie: x", refused},
		{"NUL", "/a\x00", refused},
		{"DEL", "/a\x7f", refused},
		{"a tab in a scheme-less URL", "/\t/evil.com", refused},
		{"a space before", " https://app.example.com/", refused},
		{"a space within", "https://app.example.com/a b", refused},
		{"a script", "javascript:alert(1)", refused},
		{"a script in another case", "JaVaScRiPt://app.example.com/%0aalert(1)", refused},
		{"data", "data:text/html,x", refused},
		{"another scheme", "ftp://app.example.com/", refused},
		{"a websocket", "wss://app.example.com/", refused},
		{"a relative path", "a/b", refused},
		{"a dot path", "./a", refused},
		{"only a query", "?a", refused},
		{"only a fragment", "#a", refused},
		{"a letter that looks like ours", "https://аpp.example.com/", refused},
		{"a full-width dot", "https://app．example.com/", refused},
		{"a soft hyphen", "https://app\u00ad.example.com/", refused},
		{"punycode of something else", "https://xn--pp-7lc.example.com/", refused},
		{"a bad escape", "/%zz", refused},
		{"an address", "https://[::1]/", refused},
		{"a zone", "https://[fe80::1%25eth0]/", refused},
		{"9 KiB", "/" + strings.Repeat("a", 9<<10), refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := SafeRedirect(tt.raw, allowed)
			got := refused
			if err == nil {
				got = u.String()
			} else if !errors.Is(err, ErrRedirect) || err.Error() != ErrRedirect.Error() {
				t.Errorf("the error is %v", err)
			}
			if got != tt.want {
				t.Errorf("%q: got %q, want %q", tt.raw, got, tt.want)
			}
		})
	}
}

func TestSafeRedirectRefusesOddHostsWhateverIsAllowed(t *testing.T) {
	anything := func(string) bool { return true }
	for _, raw := range []string{
		"https://аpp.example.com/", "https://app．example.com/", "https://app%E3%80%82example.com/", "https://a,b/", "https://a*b/",
		"https://[fe80::1%25eth0]/", "https://:8443/", "https://a;b/", "https://a'b/",
	} {
		if u, err := SafeRedirect(raw, anything); err == nil {
			t.Errorf("%s: got %s", raw, u)
		}
	}
}

func FuzzSafeRedirect(f *testing.F) {
	for _, s := range []string{
		"https://app.example.com/a?b#c", "//evil", `/\evil`, "https:evil", "/a", "https://app.example.com:443@evil.com", "/%2f%2e",
		"https://app.example.com:8443/", "javascript:x", "https://[::1]/",
	} {
		f.Add(s)
	}
	allowed := func(host string) bool { return host == "app.example.com" }
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := SafeRedirect(raw, allowed)
		if err != nil {
			return
		}
		// What goes into a Location header, as a browser at the host reads it.
		text := u.String()
		if strings.ContainsAny(text, "\\\r\n\t\x00 ") || strings.HasPrefix(text, "//") {
			t.Errorf("%q gives %q", raw, text)
		}
		base := &url.URL{Scheme: "https", Host: "app.example.com", Path: "/x/y"}
		at, err := base.Parse(text)
		if err != nil || at.Host != "app.example.com" || at.User != nil || at.Scheme != "https" && at.Scheme != "http" {
			t.Errorf("%q leads to %v, %v", raw, at, err)
		}
		if again, err := SafeRedirect(text, allowed); len(text) <= MaxRedirect && (err != nil || again.String() != text) {
			t.Errorf("%q gives %q, which gives %v, %v", raw, text, again, err)
		}
	})
}
