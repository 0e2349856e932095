package authz

import (
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

func TestWhereARequestCameFrom(t *testing.T) {
	const told = headerAddress + ": 198.51.100.7"
	for _, tt := range []struct {
		name    string
		hops    uint32
		peer    string
		headers []string
		want    int
	}{
		{"our peer", 0, "198.51.100.7", nil, 200},
		{"our peer, mapped", 0, "::ffff:198.51.100.7", nil, 200},
		{"another peer", 0, "203.0.113.7", nil, 403},
		{"a client that says so", 0, "203.0.113.7", []string{told}, 403},
		{"behind a proxy", 1, "10.0.0.1", []string{told}, 200},
		{"a proxy's own address", 1, "198.51.100.7", nil, 403},
		{"told twice", 1, "198.51.100.7", []string{told, told}, 403},
		{"no address", 1, "198.51.100.7", []string{headerAddress + ": x"}, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *config.Config) { c.Server.XFFNumTrustedHops = tt.hops },
				map[string]routeDef{"near": {"allow: {and: [{source_ip: 198.51.100.0/24}]}", false}})
			m := call("near", "GET", "/", tt.headers...)
			m.Attributes.Source = &authv3.AttributeContext_Peer{Address: address(tt.peer, 1)}
			if r := w.check(m); r.status != tt.want {
				t.Errorf("status %d, want %d", r.status, tt.want)
			}
			if ip := w.lines()[0].IP; (tt.want == 200) != strings.HasSuffix(ip, "198.51.100.7") && tt.name != "told twice" {
				t.Errorf("the log has %q", ip)
			}
		})
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
