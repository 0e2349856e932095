package authz

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// world is a server with everything around it: a store that can break, a clock
// that can be set, a log that can be read.
type world struct {
	t      testing.TB
	clock  *clock
	store  *databrokertest.Faulty
	server *Server
	config *config.Config
	keys   *signin.Keys
	ring   *assertion.KeyRing
	log    *logBuffer
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type clock struct{ ns atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) Set(t time.Time)         { c.ns.Store(t.UnixNano()) }
func (c *clock) Advance(d time.Duration) { c.ns.Add(int64(d)) }

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

// routeDef is a route as tests write it.
type routeDef struct {
	policy string
	pass   bool
}

const (
	appPolicy = "allow: {or: [{domain: {is: example.com}}]}"
	apiPolicy = "allow: {or: [{user: {is: api-access}}]}"
	anyPolicy = "allow: {or: [{accept: true}]}"
)

// newWorld has a public route "open", "app" for example.com, and "api" for the
// account api-access, besides those given.
func newWorld(t testing.TB, change func(*config.Config), routes map[string]routeDef) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{}, log: &logBuffer{}}
	w.clock.Set(noon)
	w.store = &databrokertest.Faulty{Store: databroker.NewMemory(databroker.MemoryConfig{Now: w.clock.Now})}
	var err error
	if w.keys, err = signin.NewKeys(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)); err != nil {
		t.Fatal(err)
	}
	if w.ring, err = assertion.ParseSigningKey(bytes.Repeat([]byte{3}, 32)); err != nil {
		t.Fatal(err)
	}
	w.config = &config.Config{
		IDPs:            []*config.IdentityProvider{{Offered: true, Provider: "oidc", URL: "https://idp.example.com", ClientID: "countersign"}},
		Cookie:          config.Cookie{Name: "_pomerium"},
		AuthenticateURL: &url.URL{Scheme: "https", Host: "authenticate.example.com"},
		Assertion:       config.Assertion{Reuse: 30 * time.Second, OriginalUserContext: "verified"},
		Databroker:      config.Databroker{OutageGrace: time.Minute},
	}
	all := map[string]routeDef{"open": {anyPolicy, false}, "app": {appPolicy, true}, "api": {apiPolicy, true}}
	for id, r := range routes {
		all[id] = r
	}
	for id, r := range all {
		w.config.Routes = append(w.config.Routes, &config.Route{
			ID: id, Name: id + "-route", Policy: parsePolicy(t, r.policy), PassIdentityHeaders: r.pass,
		})
	}
	if change != nil {
		change(w.config)
	}
	w.server = New(Config{
		Store: w.store,
		Log:   slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{ReplaceAttr: withoutTime})),
		Now:   w.clock.Now,
		Rand:  rand.NewChaCha8([32]byte{}),
	})
	w.publish()
	return w
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func parsePolicy(t testing.TB, text string) *policy.Policy {
	t.Helper()
	var node yaml.Node
	if err := yaml.Unmarshal([]byte(text), &node); err != nil {
		t.Fatal(err)
	}
	var n *yaml.Node
	if len(node.Content) > 0 {
		n = node.Content[0]
	}
	p, problems := policy.Parse(n, nil)
	for _, problem := range problems {
		if !problem.Warning {
			t.Fatalf("policy %q: %s", text, problem.Message)
		}
	}
	return p
}

// publish builds the configuration as it is now and puts it in force.
func (w *world) publish() {
	w.t.Helper()
	g, err := w.server.Build(context.Background(), w.config, w.keys, w.ring)
	if err != nil {
		w.t.Fatal(err)
	}
	w.server.Publish(g)
}

// follow runs the change feed until the test ends, and returns when it is in
// contact with the store.
func (w *world) follow() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.server.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.until("the feed is in contact", func() bool {
		return w.server.identities.contact.Load() != 0 && w.server.identities.records.behind.Load() == nil
	})
}

// settle reads the records that are due, as follow does.
func (c *records) settle(t testing.TB) {
	t.Helper()
	for _, typ := range c.due() {
		if err := c.refresh(context.Background(), typ); err != nil {
			t.Fatal(err)
		}
	}
}

// until waits for a condition that another goroutine brings about.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// session stores a session and returns its token.
func (w *world) session(id, email string, more map[string]any) string {
	w.t.Helper()
	claims := map[string]any{"email": email}
	for k, v := range more {
		claims[k] = v
	}
	s := &databroker.Session{
		ID: id, UserID: "user-" + id, IDPID: w.config.IDPs[0].ID(), Claims: claims,
		CreatedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(14 * time.Hour),
	}
	if err := w.store.PutSession(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
	return w.sessionToken(id)
}

// device enrols one for the user of a session, which has shown it.
func (w *world) device(session, id, approvedBy string) {
	w.t.Helper()
	ctx := context.Background()
	s, err := w.store.Session(ctx, session)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Devices = append(s.Devices, databroker.DeviceCredential{ID: id, Type: "any"})
	if err := w.store.PutSession(ctx, s); err != nil {
		w.t.Fatal(err)
	}
	w.record(policy.RecordDevice, id, map[string]any{"user_id": s.UserID, "type": "enclave_only", "approved_by": approvedBy})
}

func (w *world) record(typ, id string, fields map[string]any) {
	w.t.Helper()
	if err := w.store.PutRecord(context.Background(), &databroker.Record{Type: typ, ID: id, Fields: fields}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) sessionToken(id string) string {
	w.t.Helper()
	token, err := w.keys.MintSession(signin.SessionToken{
		SessionID: id, IDPID: w.config.IDPs[0].ID(), IssuedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(24 * time.Hour),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// account stores a service account and returns its token.
func (w *world) account(id, user string, expires time.Time) string {
	w.t.Helper()
	a := &databroker.ServiceAccount{ID: id, UserID: user, CreatedAt: w.clock.Now(), ExpiresAt: expires}
	if err := w.store.CreateServiceAccount(context.Background(), a); err != nil {
		w.t.Fatal(err)
	}
	token, err := w.keys.MintAccount(signin.AccountToken{AccountID: id, UserID: user, IssuedAt: w.clock.Now(), ExpiresAt: expires})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// call is a check as tests write it: headers are "Name: value" lines.
func call(route, method, path string, headers ...string) *authv3.CheckRequest {
	return callHost(route, "app.example.com", method, path, headers...)
}

func callHost(route, host, method, path string, headers ...string) *authv3.CheckRequest {
	m := &corev3.HeaderMap{}
	for _, h := range append([]string{":path: " + path, "x-request-id: req-1"}, headers...) {
		i := strings.Index(h[1:], ":") + 1
		m.Headers = append(m.Headers, &corev3.HeaderValue{
			Key: strings.ToLower(h[:i]), RawValue: []byte(strings.TrimPrefix(h[i+1:], " ")),
		})
	}
	var extensions map[string]string
	if route != "" {
		extensions = map[string]string{routeKey: route}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: extensions,
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "stream-1", Method: method, Path: strings.ToValidUTF8(path, "!"), Host: host, Scheme: "https", HeaderMap: m,
		}},
	}}
}

// reply is an answer as tests read it.
type reply struct {
	*authv3.CheckResponse
	allowed bool
	status  int
	// set are the headers for the upstream, or those of the denial.
	set     map[string][]string
	removed []string
	body    string
}

func (w *world) check(m *authv3.CheckRequest) reply { return w.checkCtx(context.Background(), m) }

func (w *world) checkCtx(ctx context.Context, m *authv3.CheckRequest) reply {
	w.t.Helper()
	resp, err := w.server.Check(ctx, m)
	if err != nil {
		w.t.Fatalf("Check: %v", err)
	}
	return read(w.t, resp)
}

func read(t testing.TB, resp *authv3.CheckResponse) reply {
	t.Helper()
	r := reply{CheckResponse: resp, set: map[string][]string{}}
	headers := resp.GetDeniedResponse().GetHeaders()
	if ok := resp.GetOkResponse(); ok != nil {
		if resp.GetStatus().GetCode() != 0 {
			t.Fatalf("an ok response with status %v", resp.GetStatus())
		}
		r.allowed, r.status = true, 200
		headers, r.removed = ok.GetHeaders(), ok.GetHeadersToRemove()
	} else {
		if resp.GetDeniedResponse() == nil || resp.GetStatus().GetCode() == 0 {
			t.Fatalf("neither a clear yes nor a clear no: %v", resp)
		}
		r.status = int(resp.GetDeniedResponse().GetStatus().GetCode())
		r.body = resp.GetDeniedResponse().GetBody()
	}
	for _, h := range headers {
		r.set[h.GetHeader().GetKey()] = append(r.set[h.GetHeader().GetKey()], h.GetHeader().GetValue())
	}
	for _, name := range r.removed {
		if _, both := r.set[name]; both {
			t.Errorf("%s is both set and removed, so it would be lost", name)
		}
	}
	return r
}

// header is the one value of a header, or "".
func (r reply) header(name string) string {
	if len(r.set[name]) != 1 {
		return ""
	}
	return r.set[name][0]
}

// claims verifies an assertion's signature and returns what it says.
func (w *world) claims(token string) *assertion.Claims {
	w.t.Helper()
	c, err := assertion.NewVerifier(assertion.VerifierConfig{Keys: w.ring, Now: w.clock.Now}).Verify(context.Background(), token)
	if err != nil {
		w.t.Fatalf("assertion: %v", err)
	}
	return c
}
