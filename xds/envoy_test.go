package xds

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/countersign/countersign/config"
)

const patience = 15 * time.Second

// findEnvoy is the binary that tests run: $ENVOY, PATH, or .tools of the module.
func findEnvoy(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("ENVOY"); path != "" {
		return path
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return path
	}
	path, err := filepath.Abs("../.tools/envoy")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal("this test needs an Envoy: run make, which fetches one to .tools/envoy, or set ENVOY")
	}
	return path
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("after %v still not so: %s", patience, what)
		}
	}
}

// stack is an Envoy, its management server, and what stands around them.
type stack struct {
	t        testing.TB
	dir      string
	sockets  Sockets
	port     int // of the main listener
	redirect int
	xds      *Server
	authz    *authzStub
	upstream *httptest.Server
	ca       *authority
	log      *syncBuffer
	stderr   *syncBuffer
}

// newStack starts everything but a configuration: call apply.
func newStack(t testing.TB, cfg ServerConfig) *stack {
	t.Helper()
	s := &stack{}
	s.start(t, cfg)
	t.Cleanup(s.stop(s.serve(), s.startEnvoy()))
	return s
}

// start starts everything around the management server and Envoy.
func (s *stack) start(t testing.TB, cfg ServerConfig) {
	t.Helper()
	dir, err := os.MkdirTemp("", "xds")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	*s = stack{
		t: t, dir: dir, port: freePort(t), redirect: freePort(t),
		sockets: Sockets{Authz: filepath.Join(dir, "authz"), Authn: filepath.Join(dir, "authn")},
		ca:      newAuthority(t), log: &syncBuffer{}, stderr: &syncBuffer{},
	}
	cfg.Log = slog.New(slog.NewTextHandler(s.log, nil))
	s.xds = NewServer(cfg)
	s.authz = &authzStub{}
	s.authz.start(t, s.sockets.Authz)
	serveUnix(t, s.sockets.Authn, echo("authn"))
	s.upstream = startUpstream(t)
}

// serve runs the management server until the returned function is called.
func (s *stack) serve() (stop func()) {
	path := filepath.Join(s.dir, "xds")
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.xds.Serve(ctx, l) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	}
}

func (s *stack) startEnvoy() (stop func()) {
	bootstrap := filepath.Join(s.dir, "bootstrap.json")
	writeFile(s.t, bootstrap, bootstrapFor(filepath.Join(s.dir, "xds"), filepath.Join(s.dir, "admin")))
	cmd := exec.Command(findEnvoy(s.t), "-c", bootstrap, "--disable-hot-restart", "--concurrency", "2", "-l", "warn", "--drain-time-s", "1")
	cmd.Stderr = s.stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func (s *stack) stop(parts ...func()) func() {
	return func() {
		for _, stop := range parts {
			defer stop()
		}
		if s.t.Failed() {
			s.t.Logf("envoy: %s\nxds: %s", s.stderr.String(), s.log.String())
		}
	}
}

func bootstrapFor(xds, admin string) string {
	return `{"node": {"id": "` + NodeID + `", "cluster": "countersign"},
"admin": {"address": {"pipe": {"path": "` + admin + `", "mode": 384}}},
"dynamic_resources": {
  "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
  "cds_config": {"ads": {}, "resource_api_version": "V3"},
  "lds_config": {"ads": {}, "resource_api_version": "V3"}},
"static_resources": {"clusters": [{"name": "xds", "type": "STATIC", "connect_timeout": "1s",
  "typed_extension_protocol_options": {"` + httpProtocolOptions + `": {
    "@type": "type.googleapis.com/` + httpProtocolOptions + `", "explicit_http_config": {"http2_protocol_options": {}}}},
  "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "` + xds + `"}}}}]}]}}]}}`
}

// load reads routes (and more) under the settings that every test shares.
func (s *stack) load(yaml string) *config.Config {
	s.t.Helper()
	return loadConfig(s.t, s.dir, s.ca, fmt.Sprintf("address: 127.0.0.1:%d\nhttp_redirect_addr: 127.0.0.1:%d\n", s.port, s.redirect)+
		strings.ReplaceAll(yaml, "UPSTREAM", strings.TrimPrefix(s.upstream.URL, "http://")))
}

func loadConfig(t testing.TB, dir string, ca *authority, yaml string) *config.Config {
	t.Helper()
	path := filepath.Join(dir, "config.yaml")
	writeFile(t, path, yaml)
	cfg, err := config.Load(path, config.LoadOptions{Generate: func(*config.Config) (*config.Generated, error) {
		out := &config.Generated{Shared: make([]byte, 32), Cookie: make([]byte, 32)}
		if ca != nil {
			out.Certificates = []config.Certificate{ca.issue(t, "one", "*.localhost", "*.example.com", "localhost")}
		}
		return out, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// apply publishes a configuration and waits until Envoy holds it.
func (s *stack) apply(yaml string) { s.t.Helper(); s.publish(s.build(s.load(yaml))) }

func (s *stack) build(cfg *config.Config) *Resources {
	s.t.Helper()
	r, err := Build(cfg, s.sockets)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *stack) publish(r *Resources) {
	s.t.Helper()
	select {
	case <-s.xds.Publish(r):
	case <-time.After(patience):
		s.t.Fatalf("Envoy did not accept: %+v", s.xds.Status())
	}
	eventually(s.t, "the listener is open", func() bool {
		c, err := net.Dial("tcp", s.address())
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func (s *stack) address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// client talks to Envoy whatever the host name, and follows no redirect.
func (s *stack) client(http2 bool) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.address())
		},
		TLSClientConfig:   &tls.Config{RootCAs: s.ca.pool},
		ForceAttemptHTTP2: http2,
	}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// seen is what a server behind Envoy received.
type seen struct {
	By       string
	Status   int `json:"-"`
	Response http.Header
	Method   string
	Path     string
	Host     string
	Header   http.Header
	Trailer  http.Header
}

func (s *stack) get(client *http.Client, method, url string, header http.Header) seen {
	s.t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	return s.do(client, req)
}

func (s *stack) do(client *http.Client, req *http.Request) seen {
	s.t.Helper()
	res, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	out := seen{}
	if json.Unmarshal(body, &out) != nil {
		out.Path = string(body)
	}
	out.Status, out.Response = res.StatusCode, res.Header
	return out
}

// echo answers with what it received.
func echo(by string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Envoy-Told", "by upstream")
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(seen{
			By: by, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Header: r.Header, Trailer: r.Trailer,
		})
	})
}

func startUpstream(t testing.TB) *httptest.Server {
	s := httptest.NewUnstartedServer(echo("upstream"))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func serveUnix(t testing.TB, path string, h http.Handler) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: patience}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
}

// authzStub allows what has a route id, as the real server does, and answers
// 404 to the rest. It replaces the assertion and says whom it saw.
type authzStub struct {
	authzv3.UnimplementedAuthorizationServer
	mu     sync.Mutex
	last   *authzv3.CheckRequest
	checks int
	// hold delays the answer about a path until the channel is closed.
	hold   map[string]chan struct{}
	server *grpc.Server
	done   chan error
}

func (a *authzStub) start(t testing.TB, path string) {
	t.Helper()
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	// Whoever stops last would otherwise take the successor's socket away.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	server, done := grpc.NewServer(), make(chan error, 1)
	authzv3.RegisterAuthorizationServer(server, a)
	a.server, a.done = server, done
	go func() { done <- server.Serve(l) }()
	t.Cleanup(server.Stop)
}

func (a *authzStub) Check(_ context.Context, r *authzv3.CheckRequest) (*authzv3.CheckResponse, error) {
	a.mu.Lock()
	a.last = r
	a.checks++
	hold := a.hold[r.GetAttributes().GetRequest().GetHttp().GetPath()]
	a.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if r.GetAttributes().GetContextExtensions()[RouteExtension] == "" {
		return &authzv3.CheckResponse{
			Status: &status.Status{Code: int32(codes.PermissionDenied)},
			HttpResponse: &authzv3.CheckResponse_DeniedResponse{DeniedResponse: &authzv3.DeniedHttpResponse{
				Status: &typev3.HttpStatus{Code: typev3.StatusCode_NotFound}, Body: "no such route, says authz",
			}},
		}, nil
	}
	return &authzv3.CheckResponse{
		Status: &status.Status{},
		HttpResponse: &authzv3.CheckResponse_OkResponse{OkResponse: &authzv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{
				Header: &corev3.HeaderValue{Key: headerAssertion, Value: "ours"},
				Append: wrapperspb.Bool(false),
			}},
			HeadersToRemove: []string{headerOriginal},
		}},
	}, nil
}

// saw is the headers of the last check, with all values of each.
func (a *authzStub) saw() map[string][]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string][]string{}
	for _, h := range a.last.GetAttributes().GetRequest().GetHttp().GetHeaderMap().GetHeaders() {
		out[h.GetKey()] = append(out[h.GetKey()], string(h.GetRawValue()))
	}
	return out
}

// source is the address that the last check gave as the client's.
func (a *authzStub) source() string {
	return strings.Join(a.saw()[headerClientAddress], " and ")
}

func (a *authzStub) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.checks
}

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	pem  []byte
	// parent is nil for the authority at the end of the chain.
	parent *authority
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue makes a certificate whose common name tells it from others.
func (a *authority) issue(t testing.TB, name string, hosts ...string) config.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return config.Certificate{
		Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// syncBuffer collects the output of several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
