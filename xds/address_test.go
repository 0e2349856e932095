package xds

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestClientAddress shows whose address authorization is told: that of the peer,
// whatever a client writes, unless proxies before us are trusted to know better.
func TestClientAddress(t *testing.T) {
	tests := []struct {
		name string
		hops uint32
		skip bool
		sent []string
		// source is what authorization is told; forwarded how the X-Forwarded-For
		// begins or, with skip_xff_append, what it is, that the upstream gets.
		source, forwarded string
	}{
		{"nobody is trusted", 0, false, nil, "127.0.0.1", "OWN"},
		{"nobody is trusted, and the client claims", 0, false, []string{"203.0.113.9"}, "127.0.0.1", "203.0.113.9,OWN"},
		{"one proxy", 1, false, []string{"198.51.100.1, 203.0.113.9"}, "203.0.113.9", "198.51.100.1, 203.0.113.9,OWN"},
		{"one proxy, two headers", 1, false, []string{"198.51.100.1", "203.0.113.9"}, "203.0.113.9", "198.51.100.1,203.0.113.9,OWN"},
		{"two proxies", 2, false, []string{"198.51.100.1, 203.0.113.9, 192.0.2.77"}, "203.0.113.9", "198.51.100.1, 203.0.113.9, 192.0.2.77,OWN"},
		{"two proxies, and the client claims nothing", 2, false, []string{"203.0.113.9, 192.0.2.77"}, "203.0.113.9", "203.0.113.9, 192.0.2.77,OWN"},
		{"IPv6", 1, false, []string{"2001:db8::9"}, "2001:db8::9", "2001:db8::9,OWN"},
		{"a proxy that says nothing", 1, false, nil, "127.0.0.1", "OWN"},
		{"fewer proxies than are trusted", 2, false, []string{"203.0.113.9"}, "127.0.0.1", "203.0.113.9,OWN"},
		{"no address", 1, false, []string{"evil"}, "127.0.0.1", "evil,OWN"},
		{"nothing appended", 0, true, []string{"203.0.113.9"}, "127.0.0.1", "203.0.113.9"},
		{"nothing appended to nothing", 0, true, nil, "127.0.0.1", ""},
		{"one proxy, nothing appended", 1, true, []string{"198.51.100.1, 203.0.113.9"}, "203.0.113.9", "198.51.100.1, 203.0.113.9"},
	}
	s := newStack(t, ServerConfig{})
	for _, test := range tests {
		cfg := s.load(everyKind)
		cfg.Server.XFFNumTrustedHops, cfg.Server.SkipXFFAppend = test.hops, test.skip
		s.publish(s.build(cfg))
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/h2=%v", test.name, h2), func(t *testing.T) {
				header := http.Header{"X-Real-Ip": {"192.0.2.66"}, "X-Envoy-External-Address": {"192.0.2.66"}, "Forwarded": {"for=192.0.2.66"},
					"X-Countersign-Client-Address": {"192.0.2.66;hops=0", "192.0.2.66"}, "X.Countersign.Client.Address": {"192.0.2.66;hops=0"},
					"X-Forwarded-Proto": {"http"}}
				if test.sent != nil {
					header["X-Forwarded-For"] = test.sent
				}
				got := s.get(s.client(h2), "GET", "https://app.localhost/a", header)
				if want := fmt.Sprintf("%s;hops=%d", test.source, test.hops); s.authz.source() != want {
					t.Errorf("authorization is told %q, want %q", s.authz.source(), want)
				}
				// The machine's own address, which Envoy appends, is not known here.
				forwarded := regexp.MustCompile(`(^|,)[0-9a-f.:]+$`).ReplaceAllString(strings.Join(got.Header["X-Forwarded-For"], " and "), "${1}OWN")
				if test.skip {
					forwarded = strings.Join(got.Header["X-Forwarded-For"], " and ")
				}
				if forwarded != test.forwarded {
					t.Errorf("upstream got %q, want %q", got.Header["X-Forwarded-For"], test.forwarded)
				}
				if strings.Contains(fmt.Sprint(got.Header), "192.0.2.66") || got.Header["X-Countersign-Client-Address"] != nil {
					t.Errorf("upstream got %v", got.Header)
				}
				if saw := s.authz.saw(); fmt.Sprint(saw[":scheme"], saw["x-forwarded-proto"], got.Header["X-Forwarded-Proto"]) != "[https] [https] [https]" {
					t.Errorf("schemes %q %q %q", saw[":scheme"], saw["x-forwarded-proto"], got.Header["X-Forwarded-Proto"])
				}
			})
		}
	}
}
