package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"github.com/countersign/countersign/envoy/envoytest"
	"github.com/countersign/countersign/internal/signin"
)

// system is a whole deployment with a real Envoy, an upstream that counts, and
// people who have signed in. Its state folder outlives a stop.
type system struct {
	t      testing.TB
	dir    string
	path   string
	addr   string
	log    *logBuffer
	store  *databrokertest.Faulty
	authz  *switchable
	deploy *deployment
	// wrap puts s.store between the services and the store.
	wrap func(databroker.Store) databroker.Store

	upstream *httptest.Server
	// hits counts the requests that got through, pause delays their answers.
	hits  atomic.Int64
	pause atomic.Int64

	client *http.Client
	end    context.CancelFunc
	done   chan error
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newSystem writes a configuration with one route, app, for example.com.
func newSystem(t testing.TB) *system {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &system{t: t, dir: dir, path: filepath.Join(dir, "config.yaml"), addr: freeAddress(t), log: &logBuffer{}}
	s.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		wait(r.Context(), time.Duration(s.pause.Load()))
		_, _ = io.WriteString(w, "through")
	}))
	t.Cleanup(s.upstream.Close)
	s.wrap = func(store databroker.Store) databroker.Store {
		s.store = &databrokertest.Faulty{Store: store}
		return s.store
	}
	s.write(s.config())
	return s
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (s *system) config(more ...string) string {
	return fmt.Sprintf(`address: %s
databroker_storage_connection_string: file://%s/state
databroker_outage_grace: 3s
idp_provider_url: https://idp.example.com
idp_client_id: countersign
idp_client_secret: hidden
pass_identity_headers: true
%s
routes:
%s`, s.addr, s.dir, strings.Join(more, "\n"), s.route("app", "example.com"))
}

// route is a route for a domain.
func (s *system) route(name, domain string) string {
	return fmt.Sprintf(`
  - name: %s
    from: https://%s
    to: %s
    policy:
      - allow:
          and:
            - domain:
                is: %s
`, name, s.host(name), s.upstream.URL, domain)
}

// host is that of a route, with its port.
func (s *system) host(name string) string {
	_, port, _ := net.SplitHostPort(s.addr)
	return name + ".corp.localhost:" + port
}

func (s *system) write(text string) {
	s.t.Helper()
	if err := replaceFile(s.path, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *system) envoy() string { return envoytest.Path(s.t) }

func (s *system) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(s.log, nil)) }

func (s *system) state(name string) string { return filepath.Join(s.dir, "state", name) }

// start runs the deployment and waits until Envoy serves.
func (s *system) start() {
	s.t.Helper()
	began := time.Now()
	ready := make(chan struct{})
	s.authz = &switchable{}
	s.deploy = &deployment{
		ConfigPath: s.path, Envoy: s.envoy(), Log: s.logger(),
		Ready:     func(databroker.Store) { close(ready) },
		WrapStore: s.wrap,
	}
	s.deploy.ServeAuthz = s.authz.serve(s.deploy.serveAuthz)
	ctx, end := context.WithCancel(context.Background())
	s.end, s.done = end, make(chan error, 1)
	go func() { s.done <- s.deploy.serve(ctx) }()
	s.t.Cleanup(s.stop)
	select {
	case <-ready:
		s.t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	case err := <-s.done:
		s.done <- err
		s.t.Fatalf("serve ended: %v\n%s", err, s.log)
	case <-time.After(20 * time.Second):
		s.t.Fatalf("not ready\n%s", s.log)
	}
	s.client = s.newClient()
}

// stop ends the deployment if it runs.
func (s *system) stop() {
	if s.end == nil {
		return
	}
	s.end()
	s.end = nil
	if err := <-s.done; err != nil {
		s.t.Errorf("serve: %v", err)
	}
}

func (s *system) newClient() *http.Client {
	s.t.Helper()
	ca, err := os.ReadFile(s.state(caFile))
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.addr)
		},
		TLSClientConfig:     &tls.Config{RootCAs: roots},
		MaxIdleConnsPerHost: 64,
	}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// signIn makes a session of a person and returns its cookie.
func (s *system) signIn(id, email string) string {
	s.t.Helper()
	cfg, err := config.Load(s.path, loadOptions(nil))
	if err != nil {
		s.t.Fatal(err)
	}
	keys, err := signin.NewKeys(cfg.Secrets.Shared, cfg.Secrets.Cookie)
	if err != nil {
		s.t.Fatal(err)
	}
	now := time.Now()
	session := &databroker.Session{
		ID: id, UserID: "user-" + id, IDPID: cfg.IDPs[0].ID(), Claims: map[string]any{"email": email},
		CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	if err := s.store.PutSession(s.t.Context(), session); err != nil {
		s.t.Fatal(err)
	}
	token, err := keys.MintSession(signin.SessionToken{SessionID: id, IDPID: session.IDPID, IssuedAt: now, ExpiresAt: session.ExpiresAt})
	if err != nil {
		s.t.Fatal(err)
	}
	return "_pomerium=" + token
}

// reply is an answer as a browser that navigates gets it.
type reply struct {
	status int
	header http.Header
	body   string
}

// get asks for the front page of a route; err is that of the connection.
func (s *system) get(route, cookie string) (reply, error) {
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "https://"+s.host(route)+"/", nil)
	if err != nil {
		return reply{}, err
	}
	r.Header.Set("Accept", "text/html")
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body)}, err
}

// status is get for those who only want that; 0 if there was no answer.
func (s *system) status(route, cookie string) int {
	r, _ := s.get(route, cookie)
	return r.status
}

// until waits for a condition.
func (s *system) until(what string, reached func() bool) {
	s.t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !reached() {
		if time.Now().After(end) {
			s.t.Fatalf("never: %s\n%s", what, s.log)
		}
		wait(s.t.Context(), 10*time.Millisecond)
	}
}

// unavailable checks for an honest 503: nothing got through, and nobody is
// sent to sign in or signed out.
func (s *system) unavailable(what, cookie string) {
	s.t.Helper()
	hits := s.hits.Load()
	r, err := s.get("app", cookie)
	if err != nil {
		s.t.Errorf("%s: %v", what, err)
		return
	}
	if r.status != 503 || r.header.Get("Retry-After") == "" {
		s.t.Errorf("%s: status %d, Retry-After %q, want 503 with one", what, r.status, r.header.Get("Retry-After"))
	}
	if r.header.Get("Set-Cookie") != "" || r.header.Get("Location") != "" {
		s.t.Errorf("%s: an outage touches cookies or redirects: %v", what, r.header)
	}
	if s.hits.Load() != hits {
		s.t.Errorf("%s: the request got through", what)
	}
}

// load asks in a closed loop until its result is called, which returns how
// many requests were answered and what else happened.
func (s *system) load(workers int, cookie string) (end func() (answered int64, failures []string)) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var good atomic.Int64
	var mu sync.Mutex
	var bad []string
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := s.get("app", cookie)
				switch {
				case err == nil && r.status == 200 && r.body == "through":
					good.Add(1)
				default:
					mu.Lock()
					bad = append(bad, fmt.Sprintf("status %d, error %v, body %.80q", r.status, err, r.body))
					mu.Unlock()
					if err != nil {
						return // what cannot connect need not try again
					}
				}
			}
		})
	}
	return func() (int64, []string) {
		close(stop)
		wg.Wait()
		return good.Load(), bad
	}
}

// switchable is an authorization server that can be ended and begun again on
// its socket while everything else goes on.
type switchable struct {
	serveOn func(context.Context, net.Listener) error
	ctx     context.Context
	cancel  context.CancelFunc
	ended   chan error
}

func (a *switchable) serve(serveOn func(context.Context, net.Listener) error) func(context.Context, net.Listener) error {
	a.serveOn = serveOn
	return func(ctx context.Context, l net.Listener) error {
		a.ctx = ctx
		a.begin(l)
		<-ctx.Done()
		return a.end()
	}
}

func (a *switchable) begin(l net.Listener) {
	ctx, cancel := context.WithCancel(a.ctx)
	ended := make(chan error, 1)
	a.cancel, a.ended = cancel, ended
	go func() { ended <- a.serveOn(ctx, l) }()
}

func (a *switchable) end() error {
	a.cancel()
	err := <-a.ended
	a.ended <- nil // the end of an ended one is no news
	return err
}
