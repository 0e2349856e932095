package authn

import (
	"net/url"
	"testing"

	"github.com/countersign/countersign/config"
)

func TestHosts(t *testing.T) {
	h := newHosts(&config.Config{
		Server:          config.Server{Address: ":8443"},
		AuthenticateURL: &url.URL{Scheme: "https", Host: "auth.example.com"},
		Routes: []*config.Route{
			{Host: "plain.example.com"}, {Host: "port.example.com", Port: "9443"}, {Host: "std.example.com", Port: "443"},
			{Host: "*.wild.example.com"}, {Host: "a*b*c.example.com"}, {Host: "*.example.com", Port: "7443"}, {Host: "::1"},
		},
	})
	tests := []struct {
		host string
		want bool
	}{
		{"plain.example.com", true}, {"PLAIN.example.com", true}, {"plain.example.com:443", true}, {"plain.example.com:8443", true},
		{"plain.example.com:80", false}, {"plain.example.com:", false}, {"plain.example.com:443:443", false}, {"plain.example.com.", false},
		{"port.example.com:9443", true}, {"port.example.com", false}, {"port.example.com:7443", true},
		{"std.example.com", true}, {"std.example.com:8443", false},
		{"x.wild.example.com", true}, {"x.y.wild.example.com", true}, {".wild.example.com", false}, {"wild.example.com", false},
		{"a1b2c.example.com", true}, {"abc.example.com", false}, {"a1bc.example.com", false},
		{"auth.example.com", false}, {"auth.example.com:7443", true}, {"[::1]", true}, {"[::1]:8443", true}, {"::1", false},
		{"", false}, {"evil.example", false}, {"plain.example.com/evil", false}, {"evil@plain.example.com", false}, {"plain.example.com\n", false},
	}
	for _, tt := range tests {
		if got := h.isRoute(tt.host); got != tt.want {
			t.Errorf("isRoute(%q) = %v, want %v", tt.host, got, tt.want)
		}
	}
}

func TestGlob(t *testing.T) {
	tests := []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a", true}, {"*", "", false}, {"*.x", "a.x", true}, {"*.x", ".x", false}, {"a*", "ab", true}, {"a*", "a", false},
		{"a*b*c", "a1b2c", true}, {"a*b*c", "abbbc", true}, {"a*b*c", "abc", false}, {"a**c", "a12c", true},
	}
	for _, tt := range tests {
		if got := glob(tt.pattern, tt.host); got != tt.want {
			t.Errorf("glob(%q, %q) = %v, want %v", tt.pattern, tt.host, got, tt.want)
		}
	}
}
