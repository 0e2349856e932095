package demo

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/assertion"
)

// proxy stands for Countersign: it signs who calls, by the Authorization
// header or else as Ana, and passes the original assertion on.
type proxy struct {
	ring  *assertion.KeyRing
	hosts map[string]http.Handler
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.Host)
	if r.URL.Path == "/.well-known/pomerium/jwks.json" {
		_, _ = w.Write(p.ring.JWKS())
		return
	}
	upstream, ok := p.hosts[host]
	if !ok {
		http.NotFound(w, r)
		return
	}
	c := assertion.Claims{Audience: host, Subject: "ana", User: "ana", Email: "ana@companydomain.com", Name: "Ana Alves", Groups: []string{"staff", "engineering"}}
	switch token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer Pomerium-"); {
	case token == "app-token" && host == APIHost:
		c = assertion.Claims{Audience: host, Subject: AppAccount, User: AppAccount}
	case token == "api-token" && host == API2Host:
		c = assertion.Claims{Audience: host, Subject: APIAccount, User: APIAccount}
	case host != AppHost:
		http.Error(w, "refused", http.StatusForbidden)
		return
	}
	if r.Header.Get(assertion.HeaderOriginal) == "" && r.Header.Get(assertion.HeaderAssertion) != "" {
		r.Header.Set(assertion.HeaderOriginal, r.Header.Get(assertion.HeaderAssertion))
	}
	r.Header.Set(assertion.HeaderAssertion, sign(p.ring, c))
	r.Header.Del("Authorization")
	upstream.ServeHTTP(w, r)
}

func sign(ring *assertion.KeyRing, c assertion.Claims) string {
	now := time.Now()
	if c.Issuer == "" {
		c.Issuer = "pomerium-proxy"
	}
	if c.IssuedAt.IsZero() {
		c.IssuedAt, c.ExpiresAt = now, now.Add(assertion.Lifetime)
	}
	token, err := ring.Sign(c)
	if err != nil {
		panic(err)
	}
	return token
}

func newRing(t testing.TB) *assertion.KeyRing {
	t.Helper()
	pem, err := assertion.GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := assertion.ParseSigningKey(pem)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// start runs a demo behind the stand-in for the proxy.
func start(t *testing.T) (*Demo, *assertion.KeyRing) {
	t.Helper()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d, err := New(Config{Listen: front.Addr().String(), Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ring := newRing(t)
	p := &proxy{ring: ring, hosts: map[string]http.Handler{}}
	for host, l := range map[string]net.Listener{AppHost: d.listenApp, APIHost: d.listenAPI, API2Host: d.listen2} {
		p.hosts[host] = httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: l.Addr().String()})
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, leafFile), filepath.Join(dir, leafKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: p, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}
	go func() { _ = server.ServeTLS(front, "", "") }()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx) }()
	t.Cleanup(func() {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("ending took %v", took)
		}
		_ = server.Close()
	})
	return d, ring
}
