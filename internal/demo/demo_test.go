package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
)

func get(t *testing.T, d *Demo, path string) (http.Header, string) {
	t.Helper()
	response, err := d.Client().Get(strings.TrimSuffix(d.AppURL(), "/") + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", path, response.Status)
	}
	return response.Header, string(body)
}

func TestHops(t *testing.T) {
	d, _ := start(t)
	d.SetTokens("app-token", "api-token")
	_, body := get(t, d, "/hops")
	var first Hop
	if err := json.Unmarshal([]byte(body), &first); err != nil {
		t.Fatal(err)
	}
	type seen struct {
		Service, Caller, CallerFor, User, UserFor string
		SameAsFirst                               bool
	}
	var got []seen
	for hop := &first; hop != nil; hop = hop.Next {
		s := seen{Service: hop.Service, SameAsFirst: hop.Original.Fingerprint == first.Assertion.Fingerprint}
		if c := hop.Assertion.Claims; c != nil && hop.Assertion.Verified {
			s.Caller, s.CallerFor = c.Who(), c.Audience
		}
		if c := hop.Original.Claims; c != nil && hop.Original.Verified {
			s.User, s.UserFor = c.Who(), c.Audience
		}
		if hop.NextError != "" {
			t.Errorf("%s: %s", hop.Service, hop.NextError)
		}
		got = append(got, s)
	}
	want := []seen{
		{"App", "Ana Alves", AppHost, "", "", false},
		{"API", "api-access", APIHost, "Ana Alves", AppHost, true},
		{"API2", "api2-access", API2Host, "Ana Alves", AppHost, true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	jwt := regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.`)
	if token := jwt.FindString(body); token != "" || strings.Contains(body, "-token\"") {
		t.Error("the answer holds a token")
	}
}

func TestPage(t *testing.T) {
	d, _ := start(t)
	_, body := get(t, d, "/")
	if !strings.Contains(body, "Hello, Ana Alves") || !strings.Contains(body, "token is not there yet") || strings.Contains(body, api2Box) {
		t.Errorf("before there are tokens: %s", body)
	}
	d.SetTokens("app-token", "stolen")
	_, body = get(t, d, "/")
	if !strings.Contains(body, "API2 was not reached: its policy refuses the service account.") {
		t.Errorf("with a token that API2 refuses: %s", body)
	}
	d.SetTokens("app-token", "api-token")
	header, body := get(t, d, "/")
	for _, want := range []string{"<h1 id=\"hello\">Hello, Ana Alves</h1>", "engineering", api2Box, "Byte for byte", `href="/.pomerium/"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	for _, never := range []string{"<script", "style=\"", "src=\"", "http://"} {
		if strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), never) {
			t.Errorf("the page holds %q", never)
		}
	}
	policy := header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("Content-Security-Policy: %s", policy)
	}
}

const api2Box = `</svg>API2</h3>`

// TestAppTrustsNothingElse calls App without the proxy.
func TestAppTrustsNothingElse(t *testing.T) {
	d, ring := start(t)
	d.SetTokens("app-token", "api-token")
	good := assertion.Claims{Audience: AppHost, Subject: "ana", Email: "ana@companydomain.com"}
	with := func(change func(*assertion.Claims)) string {
		c := good
		change(&c)
		return sign(ring, c)
	}
	token := sign(ring, good)
	now := time.Now()
	tests := []struct {
		name   string
		values []string
		want   string
	}{
		{"no assertion", nil, "the header is absent"},
		{"two of them", []string{token, token}, "the header came more than once"},
		{"noise", []string{"noise"}, assertion.ErrMalformed.Error()},
		{"another key", []string{sign(newRing(t), good)}, assertion.ErrUnknownKey.Error()},
		{"changed", []string{token[:len(token)-8] + "AAAAAAAA"}, assertion.ErrSignature.Error()},
		{"without a signature", []string{"eyJhbGciOiJub25lIn0." + strings.Split(token, ".")[1] + "."}, assertion.ErrAlgorithm.Error()},
		{"for another host", []string{with(func(c *assertion.Claims) { c.Audience = APIHost })}, assertion.ErrAudience.Error()},
		{"of another issuer", []string{with(func(c *assertion.Claims) { c.Issuer = "evil" })}, assertion.ErrIssuer.Error()},
		{"expired", []string{with(func(c *assertion.Claims) {
			c.IssuedAt, c.ExpiresAt = now.Add(-time.Hour), now.Add(-30*time.Minute)
		})}, assertion.ErrExpired.Error()},
		{"good", []string{token}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for path, wantName := range map[string]string{"/whoami": "App", "/hops": "App", "/": ""} {
				r, err := http.NewRequest("GET", "http://"+d.listenApp.Addr().String()+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header[assertion.HeaderAssertion] = test.values
				response, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				wantStatus := http.StatusUnauthorized
				if test.want == "" {
					wantStatus = http.StatusOK
				}
				if response.StatusCode != wantStatus {
					t.Errorf("%s: got %s, want %d", path, response.Status, wantStatus)
				}
				if wantName == "" {
					if greets := bytes.Contains(body, []byte("Hello, ")); greets != (test.want == "") {
						t.Errorf("the page greets somebody: %v", greets)
					}
					continue
				}
				var hop Hop
				if err := json.Unmarshal(body, &hop); err != nil {
					t.Fatal(err)
				}
				if hop.Assertion.Error != test.want || hop.Assertion.Verified != (test.want == "") || test.want != "" && (hop.Next != nil || hop.Assertion.Claims != nil) {
					t.Errorf("%s: got %+v, want error %q", path, hop, test.want)
				}
			}
		})
	}
}

// TestCall shows every way in which the next hop can fail to answer.
func TestCall(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	tests := []struct {
		name  string
		serve http.HandlerFunc
		want  string
	}{
		{"a refusal", status(403), "API was not reached: its policy refuses the service account."},
		{"an unknown account", status(401), "API was not reached: the proxy does not know the service account."},
		{"a sign-in", status(302), "API was not reached: the proxy does not know the service account."},
		{"no route", status(404), "API was not reached: the proxy has no route to it."},
		{"nothing behind the proxy", status(503), "API was not reached: the proxy answered 503. Reload in a moment."},
		{"something else", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "API gave an answer that is no description of a hop."},
		{"too much", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"service":"`+strings.Repeat("x", maxAnswer)+`"}`)
		}, "API gave an answer that is no description of a hop."},
		{"a closed connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "API could not be reached through the proxy."},
		{"a hop", func(w http.ResponseWriter, _ *http.Request) { answer(w, Hop{Service: "API"}) }, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(test.serve)
			defer server.Close()
			u := &upstream{name: "API", url: server.URL, token: func() string { return "t" }}
			client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			hop, trouble := u.call(httptest.NewRequest("GET", "/", nil), client)
			if trouble != test.want || (hop == nil) != (test.want != "") {
				t.Errorf("got %v, %q, want %q", hop, trouble, test.want)
			}
		})
	}
}

func TestConfigLoads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a folder: with # and %41 'quotes'")
	d, err := New(Config{
		Listen: "127.0.0.1:8443", Dir: dir, ProviderHost: "idp.other.localhost", AuthenticateHost: "authenticate.other.localhost",
		Settings: []string{"cookie_same_site: strict"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	cfg, err := config.Load(d.ConfigPath(), config.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range cfg.Warnings {
		t.Errorf("warning: %v", w)
	}
	type route struct{ Name, From, To string }
	var routes []route
	for _, r := range cfg.Routes {
		routes = append(routes, route{r.Name, r.From, r.To[0].URL.String()})
	}
	want := []route{
		{"App", "https://app.demo.localhost:8443", "http://" + d.listenApp.Addr().String()},
		{"API", "https://api.demo.localhost:8443", "http://" + d.listenAPI.Addr().String()},
		{"API2", "https://api2.demo.localhost:8443", "http://" + d.listen2.Addr().String()},
	}
	if diff := cmp.Diff(want, routes); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	issuer, err := url.Parse(cfg.IDPs[0].URL)
	if err != nil || issuer.Hostname() != "idp.other.localhost" || cfg.IDPs[0].URL != d.Issuer() {
		t.Errorf("provider is %s", cfg.IDPs[0].URL)
	}
	if cfg.AuthenticateURL.String() != "https://authenticate.other.localhost:8443" || cfg.Databroker.Dir != dir ||
		cfg.Cookie.SameSite != "strict" || len(cfg.Server.Certificates) != 1 {
		t.Errorf("got %s, %s, %s", cfg.AuthenticateURL, cfg.Databroker.Dir, cfg.Cookie.SameSite)
	}
	for _, private := range []string{d.ConfigPath(), filepath.Join(dir, caKeyFile), filepath.Join(dir, leafKeyFile)} {
		if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", private, info.Mode(), err)
		}
	}
}

func TestAuthority(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	hosts := []string{AppHost, "authenticate.other.localhost"}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	ensure := func(hosts []string, now time.Time) {
		t.Helper()
		if _, err := ensureCertificates(dir, hosts, now); err != nil {
			t.Fatal(err)
		}
	}
	ensure(hosts, now)
	ca, leaf := read(caFile), read(leafFile)
	ensure(hosts, now.Add(time.Hour))
	if read(caFile) != ca || read(leafFile) != leaf {
		t.Error("the certificates changed without need")
	}
	ensure(append(hosts, APIHost), now)
	if read(caFile) != ca || read(leafFile) == leaf {
		t.Error("for another host: want the same authority and another certificate")
	}
	leaf = read(leafFile)
	ensure(hosts, now.Add(leafLife-renewBefore+time.Hour))
	if read(caFile) != ca || read(leafFile) == leaf {
		t.Error("near its end: want the same authority and another certificate")
	}
	if _, err := ensureCertificates(dir, hosts, now.Add(caLife)); err == nil {
		t.Error("an authority at its end was used")
	}
	if err := os.WriteFile(filepath.Join(dir, caFile), []byte("noise"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ensureCertificates(dir, hosts, now); err == nil || read(caFile) != "noise" {
		t.Errorf("a broken authority: got %v, want an error and the file left alone", err)
	}
}

// TestAuthorityIsForLocalhostOnly matters to whoever trusts it.
func TestAuthorityIsForLocalhostOnly(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	roots, err := ensureCertificates(dir, []string{AppHost}, now)
	if err != nil {
		t.Fatal(err)
	}
	ca, key, err := loadPair(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{AppHost: true, "bank.example": false, "127.0.0.1": false} {
		template := &x509.Certificate{SerialNumber: serial(), DNSNames: []string{host}, NotAfter: now.Add(time.Hour)}
		if ip := net.ParseIP(host); ip != nil {
			template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
		}
		leaf, _, err := issue(template, ca, key, filepath.Join(dir, "x.pem"), filepath.Join(dir, "x-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: now})
		if (err == nil) != want {
			t.Errorf("a certificate for %s: %v, want trusted %v", host, err, want)
		}
	}
}

// TestPortTaken shows that the provider moves on, and that nothing is left open.
func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := taken.Addr().(*net.TCPAddr).Port
	d, err := New(Config{Listen: (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port - 1}).String(), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if got := d.listenProvider.Addr().(*net.TCPAddr).Port; got == port || !strings.HasSuffix(d.Issuer(), ":"+strings.Split(d.listenProvider.Addr().String(), ":")[1]) {
		t.Errorf("the provider is at %s", d.Issuer())
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", d.listenProvider.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("the provider is still listening")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no address":          {Dir: t.TempDir()},
		"a host on the net":   {Listen: "127.0.0.1:8443", Dir: t.TempDir(), ProviderHost: "idp.example.com"},
		"a file for a folder": {Listen: "127.0.0.1:8443", Dir: os.Args[0]},
	} {
		if d, err := New(cfg); err == nil {
			d.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func TestClientStaysHome(t *testing.T) {
	c := newClient("127.0.0.1:8443", x509.NewCertPool())
	response, err := c.Get("https://example.com/")
	if err == nil {
		_ = response.Body.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "only hosts of the demo") {
		t.Errorf("got %v", err)
	}
	if c.Transport.(*http.Transport).TLSClientConfig.MinVersion != tls.VersionTLS12 {
		t.Error("it speaks TLS below 1.2")
	}
}

func TestTrustCommand(t *testing.T) {
	only := func(path string) func(string) bool { return func(p string) bool { return p == path } }
	tests := []struct{ name, system, ca, have, want string }{
		{"Debian", "linux", "/a/ca.pem", "/usr/sbin/update-ca-certificates", "sudo cp /a/ca.pem /usr/local/share/ca-certificates/countersign-demo.crt && sudo update-ca-certificates && mkdir -p \"$HOME/.pki/nssdb\" && certutil -d \"sql:$HOME/.pki/nssdb\" -A -t C,, -n countersign-demo -i /a/ca.pem"},
		{"another Linux", "linux", "/a b/ca.pem", "", "mkdir -p \"$HOME/.pki/nssdb\" && certutil -d \"sql:$HOME/.pki/nssdb\" -A -t C,, -n countersign-demo -i '/a b/ca.pem'"},
		{"macOS", "darwin", "/it's/ca.pem", "", `security add-trusted-cert -r trustRoot -k "$HOME/Library/Keychains/login.keychain-db" '/it'\''s/ca.pem'`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := trustCommand(test.system, "sudo ", test.ca, only(test.have)); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}
