package authz

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/countersign/countersign/config"
)

const certificatePolicy = "{allow: {or: [{accept: true}]}, deny: {or: [{invalid_client_certificate: true}]}}"

func TestClientCertificates(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	day := 24 * time.Hour
	good, expired := a.client("ana@example.com", noon.Add(-day), noon.Add(day)), a.client("old@example.com", noon.Add(-day), noon.Add(-time.Hour))
	foreign := other.client("eve@example.com", noon.Add(-day), noon.Add(day))
	w := newWorld(t, func(c *config.Config) { c.DownstreamMTLS = a.asked() }, map[string]routeDef{
		"needs": {certificatePolicy, false},
		"ana":   {"allow: {and: [{client_certificate: {san_email: ana@example.com}}]}", false},
	})
	tests := []struct {
		name    string
		headers []string
		needs   int
		ana     int
	}{
		{"none", nil, 495, 403},
		{"a good one", []string{presented(good)}, 200, 200},
		{"a good one with its authority", []string{presented(good, a.certificate)}, 200, 200},
		{"a good one that Envoy wrote without its chain", []string{`Cert="` + escaped(good) + `"`}, 200, 200},
		{"one that has expired", []string{presented(expired)}, 495, 403},
		{"somebody else's authority", []string{presented(foreign)}, 495, 403},
		{"the header twice", []string{presented(good), presented(good)}, 495, 403},
		{"two elements", []string{presented(good) + "," + presented(good)}, 495, 403},
		{"a foreign one with a good one in its names", []string{presented(foreign) + `spiffe://x;Chain="` + escaped(good) + `"`}, 495, 403},
		{"the same where Envoy wrote no chain", []string{"Hash=" + fingerprint(foreign) + `;Cert="` + escaped(foreign) + `";URI=x;Chain="` + escaped(good) + `"`}, 495, 403},
		{"two chains and no digest", []string{`Chain="` + escaped(foreign) + `";URI=x;Chain="` + escaped(good) + `"`}, 495, 403},
		{"a second digest", []string{presented(foreign) + "x;hash=" + fingerprint(good)}, 495, 403},
		{"a chain that begins with another", []string{"Hash=" + fingerprint(foreign) + `;Chain="` + escaped(good, foreign) + `"`}, 495, 403},
		{"an empty header", []string{""}, 495, 403},
		{"an empty chain", []string{`Chain=""`}, 495, 403},
		{"nonsense", []string{"x"}, 495, 403},
		{"an open quote", []string{`Chain="` + escaped(good)}, 495, 403},
		{"a bad escape", []string{`Chain="%zz"`}, 495, 403},
		{"no certificate in it", []string{`Chain="x"`}, 495, 403},
		{"a huge one", []string{`Chain="` + strings.Repeat(escaped(good), 1000) + `"`}, 495, 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var headers []string
			for _, h := range tt.headers {
				headers = append(headers, headerCertificate+": "+h)
			}
			for range 2 { // what is remembered is the same
				if r := w.check(call("needs", "GET", "/", headers...)); r.status != tt.needs {
					t.Errorf("a route that needs a good certificate: status %d, want %d", r.status, tt.needs)
				}
				if r := w.check(call("ana", "GET", "/", headers...)); r.status != tt.ana {
					t.Errorf("ana's route: status %d, want %d", r.status, tt.ana)
				}
			}
		})
	}
}

func TestCertificatesAreNotBelievedWhereNoneIsAskedFor(t *testing.T) {
	a := newAuthority(t)
	good := a.client("ana@example.com", noon, noon.Add(time.Hour))
	w := newWorld(t, nil, map[string]routeDef{
		"needs": {certificatePolicy, false},
		"ana":   {"allow: {and: [{client_certificate: {san_email: ana@example.com}}]}", false},
	})
	header := headerCertificate + ": " + presented(good)
	if r := w.check(call("ana", "GET", "/", header)); r.status != 403 {
		t.Errorf("a header that a client sent lets it in: status %d", r.status)
	}
	if r := w.check(call("needs", "GET", "/", header)); !r.allowed {
		t.Errorf("no authority can call a certificate bad: status %d", r.status)
	}
}

func TestNoCertificateIsSeenBehindAnotherTerminator(t *testing.T) {
	a := newAuthority(t)
	good := a.client("ana@example.com", noon, noon.Add(time.Hour))
	w := newWorld(t, func(c *config.Config) { c.DownstreamMTLS = a.asked() }, map[string]routeDef{"needs": {certificatePolicy, false}})
	m := call("needs", "GET", "/", headerCertificate+": "+presented(good))
	if r := w.check(m); !r.allowed {
		t.Fatalf("with TLS of our own: status %d", r.status)
	}
	w.config.Server.Insecure = true
	w.publish()
	if r := w.check(m); r.status != 495 {
		t.Errorf("a header that a client sent lets it in: status %d", r.status)
	}
}

// TestWhereARequestCameFrom: only Envoy's header counts, and only if it is by the
// rule of the configuration in force. Without an address that is known, a policy that
// looks at it lets nobody in, neither by an allow rule nor past a deny rule.
func TestWhereARequestCameFrom(t *testing.T) {
	for _, tt := range []struct {
		name string
		hops uint32
		peer string
		told []string
		// near and far are the statuses of routes for, and for all but, the
		// network 198.51.100.0/24.
		near, far int
	}{
		{"our peer", 0, "198.51.100.7", []string{"198.51.100.7;hops=0"}, 200, 403},
		{"our peer, mapped", 0, "::ffff:198.51.100.7", []string{"::ffff:198.51.100.7;hops=0"}, 200, 403},
		{"another peer", 0, "203.0.113.7", []string{"203.0.113.7;hops=0"}, 403, 200},
		{"nothing told", 0, "198.51.100.7", nil, 0, 0},
		{"an earlier listener, which trusted a proxy", 0, "10.0.0.1", []string{"198.51.100.7;hops=1"}, 0, 0},
		{"behind a proxy", 1, "10.0.0.1", []string{"198.51.100.7;hops=1"}, 200, 403},
		{"another behind a proxy", 1, "10.0.0.1", []string{"203.0.113.7;hops=1"}, 403, 200},
		{"a proxy that does not tell", 1, "198.51.100.7", []string{"198.51.100.7;hops=1"}, 0, 0},
		{"a proxy that does not tell, mapped", 1, "::ffff:198.51.100.7", []string{"198.51.100.7;hops=1"}, 0, 0},
		{"nothing told behind a proxy", 1, "198.51.100.7", nil, 0, 0},
		{"an earlier listener, which trusted none", 1, "203.0.113.7", []string{"198.51.100.7;hops=0"}, 0, 0},
		{"an earlier listener, which trusted more", 1, "10.0.0.1", []string{"198.51.100.7;hops=2"}, 0, 0},
		{"told twice", 1, "10.0.0.1", []string{"198.51.100.7;hops=1", "198.51.100.7;hops=1"}, 0, 0},
		{"no address", 1, "10.0.0.1", []string{"-;hops=1"}, 0, 0},
		{"no number", 0, "198.51.100.7", []string{"198.51.100.7"}, 0, 0},
		{"a number too large", 0, "198.51.100.7", []string{"198.51.100.7;hops=4294967296"}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *config.Config) { c.Server.XFFNumTrustedHops = tt.hops }, map[string]routeDef{
				"near": {"allow: {and: [{source_ip: 198.51.100.0/24}]}", false},
				"far":  {"{allow: {or: [{accept: true}]}, deny: {or: [{source_ip: 198.51.100.0/24}]}}", false},
				"new":  {"allow: {and: [{record: {type: blocked, by: request.ip, field: why, exists: false}}]}", false},
			})
			for route, want := range map[string]int{"near": tt.near, "far": tt.far, "new": min(tt.near, tt.far)} {
				m := call(route, "GET", "/", "accept: application/json")
				for _, told := range tt.told {
					via(m, told)
				}
				m.Attributes.Source = &authv3.AttributeContext_Peer{Address: address(tt.peer, 1)}
				r := w.check(m)
				if unknown := strings.Contains(r.body, `"unknown-address"`); unknown != (want == 0) || r.status != max(want, 403) && r.status != want {
					t.Errorf("%s: status %d, want %d: %s", route, r.status, want, r.body)
				}
			}
			for _, line := range w.lines() {
				if (line.IP == "") != (tt.near == 0) {
					t.Errorf("the log has %q", line.IP)
				}
			}
		})
	}
	w := newWorld(t, nil, nil)
	if r := w.check(call("open", "GET", "/")); !r.allowed {
		t.Errorf("a policy that does not look at the address: status %d", r.status)
	}
}

func TestRememberedCertificatesExpire(t *testing.T) {
	a := newAuthority(t)
	good := a.client("ana@example.com", noon.Add(time.Minute), noon.Add(time.Hour))
	w := newWorld(t, func(c *config.Config) { c.DownstreamMTLS = a.asked() }, map[string]routeDef{"needs": {certificatePolicy, false}})
	m := call("needs", "GET", "/", headerCertificate+": "+presented(good))
	for _, step := range []struct {
		at   time.Duration
		want int
	}{{0, 495}, {time.Minute, 200}, {time.Hour, 200}, {time.Hour + time.Second, 495}, {time.Minute, 200}, {0, 495}} {
		w.clock.Set(noon.Add(step.at))
		if r := w.check(m); r.status != step.want {
			t.Errorf("after %s: status %d, want %d", step.at, r.status, step.want)
		}
	}
	if n := w.server.published.Load().clients.seen.len(); n != 1 {
		t.Errorf("%d certificates are remembered, want 1", n)
	}
	// Another authority knows nothing of what this one found.
	w.clock.Set(noon.Add(2 * time.Minute))
	w.config.DownstreamMTLS = newAuthority(t).asked()
	w.publish()
	if r := w.check(m); r.status != 495 {
		t.Errorf("under another authority: status %d", r.status)
	}
}

// FuzzCertificateText holds that no header whatsoever is a panic, and that
// whatever it says is in it: nothing is made up.
func FuzzCertificateText(f *testing.F) {
	a := newAuthority(f)
	f.Add(presented(a.client("ana@example.com", noon, noon.Add(time.Hour)), a.certificate))
	f.Add(`By=spiffe://x;Hash=00;Cert="%41";URI=a,URI=b`)
	f.Add(`chain=a;Subject="O=\"x\\";DNS=y`)
	f.Add(`Chain="";Chain=`)
	f.Fuzz(func(t *testing.T, value string) {
		text, digest, err := certificateText(value)
		if err != nil && text+digest != "" {
			t.Errorf("an error and a result: %q %q", text, digest)
		}
		if err == nil && (text == "" || len(text) > len(value) || !strings.Contains(value, digest)) {
			t.Errorf("%q: text %q, digest %q", value, text, digest)
		}
		if n := len(pairsOf(value, "chain")); err == nil && n > 1 && !strings.Contains(value, `"`) {
			t.Errorf("%q: %d chains are one", value, n)
		}
		ca := &clients{seen: newCache[*client](maxClients)}
		if got := ca.find([]string{value}, noon, true); err != nil && (got.certificate != nil || got.problem == "") {
			t.Errorf("%q: %+v", value, got)
		}
	})
}

// pairsOf are the pairs of a name in a header without quotes.
func pairsOf(value, name string) []string {
	var found []string
	for pair := range strings.SplitSeq(value, ";") {
		if n, _, ok := strings.Cut(pair, "="); ok && strings.EqualFold(n, name) {
			found = append(found, pair)
		}
	}
	return found
}

// TestLongCertificatesAreRememberedToo: to send a long header must not cost us the
// verification of it each time, and nobody can have us parse more than a chain.
func TestLongCertificatesAreRememberedToo(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t, func(c *config.Config) { c.DownstreamMTLS = a.asked() }, map[string]routeDef{"needs": {certificatePolicy, false}})
	var names []string
	for i := range 500 {
		names = append(names, fmt.Sprintf("name-%d.%s.example.com", i, strings.Repeat("x", 40)))
	}
	long, _ := a.make(&x509.Certificate{
		SerialNumber: big.NewInt(7), DNSNames: names, NotBefore: noon, NotAfter: noon.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	good := a.client("ana@example.com", noon, noon.Add(time.Hour))
	chain := func(n int) []*x509.Certificate {
		return append([]*x509.Certificate{good}, slices.Repeat([]*x509.Certificate{a.certificate}, n-1)...)
	}
	for _, tt := range []struct {
		name  string
		value string
		want  int
	}{
		{"more than 16 KiB", presented(long), 200},
		{"ten certificates", presented(chain(10)...), 200},
		{"eleven certificates", presented(chain(11)...), 495},
		{"a hundred certificates", presented(chain(100)...), 495},
	} {
		before := w.server.published.Load().clients.seen.len()
		for range 3 {
			if r := w.check(call("needs", "GET", "/", headerCertificate+": "+tt.value)); r.status != tt.want {
				t.Errorf("%s: status %d, want %d", tt.name, r.status, tt.want)
			}
		}
		seen := w.server.published.Load().clients.seen
		if seen.len() != before+1 {
			t.Errorf("%s: %d more are remembered, want 1", tt.name, seen.len()-before)
		}
		for _, s := range seen.ring {
			if len(s.key) != sha256.Size {
				t.Errorf("%s: remembered under %d bytes", tt.name, len(s.key))
			}
		}
	}
	ca := w.server.published.Load().clients
	if got := ca.find([]string{presented(chain(11)...)}, noon, false); got.certificate != nil || !strings.Contains(got.problem, "more than 10") {
		t.Errorf("eleven certificates: %+v", got)
	}
	if got := ca.find([]string{strings.Repeat("x", maxClientElement+1)}, noon, true); got.problem == "" || ca.seen.len() != 4 {
		t.Errorf("too long to be read: %+v, %d remembered", got, ca.seen.len())
	}
}
