package authn_test

import (
	"bytes"
	"context"
	"errors"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

const (
	app     = "https://app.example.com"
	other   = "https://other.example.com"
	auth    = "https://auth.example.com"
	welcome = "the application"
)

// world is a deployment without Envoy: a gate stands for authz, and a browser
// reaches everything through a transport that knows the names.
type world struct {
	t      testing.TB
	cfg    *config.Config
	idp    *idptest.Provider
	keys   *signin.Keys
	ring   *assertion.KeyRing
	store  *databrokertest.Faulty
	rand   io.Reader
	log    *logBuffer
	offset atomic.Int64
	// idpID is what the gate asks for: the first provider, "" for any.
	idpID string
	// maxAge is how old a sign-in the gate lets pass; 0 for any.
	maxAge atomic.Int64

	server atomic.Pointer[authn.Server]
}

func newWorld(t testing.TB, change ...func(*config.Config)) *world {
	t.Helper()
	w := &world{t: t, idp: idptest.NewProvider(t), log: &logBuffer{}}
	w.store = &databrokertest.Faulty{Store: databroker.NewMemory(databroker.MemoryConfig{Now: w.now})}
	w.cfg = &config.Config{
		Cookie:          config.Cookie{Name: "_pomerium", HTTPOnly: true, Expire: 14 * time.Hour},
		Server:          config.Server{Address: ":443"},
		AuthenticateURL: mustURL(t, auth),
		IDPs: []*config.IdentityProvider{{Offered: true, Provider: "oidc", URL: w.idp.URL, ClientID: idptest.ClientID, ClientSecret: idptest.ClientSecret,
			Scopes: []string{"openid", "profile", "email", "offline_access"}}},
		Programs: config.Programs{RedirectDomains: []string{"localhost"}},
		Routes: []*config.Route{
			{ID: "1", From: app, Host: "app.example.com"},
			{ID: "2", From: other, Host: "other.example.com"},
			{ID: "3", From: "https://*.wild.example.com", Host: "*.wild.example.com"},
		},
	}
	for _, f := range change {
		f(w.cfg)
	}
	if len(w.cfg.IDPs) == 1 {
		w.idpID = w.cfg.IDPs[0].ID()
	}
	var err error
	if w.keys, err = signin.NewKeys(bytes.Repeat([]byte("s"), 32), bytes.Repeat([]byte("c"), 32)); err != nil {
		t.Fatal(err)
	}
	pem, err := assertion.GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	if w.ring, err = assertion.ParseSigningKey(pem); err != nil {
		t.Fatal(err)
	}
	w.restart()
	return w
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

// restart replaces the server by a new one with the same keys and store.
func (w *world) restart() {
	w.t.Helper()
	log := slog.New(slog.NewJSONHandler(w.log, nil))
	s := authn.New(authn.Config{Store: w.store, Log: log, Now: w.now, Rand: w.rand})
	g, err := s.Build(w.cfg, w.keys, w.ring, idp.NewSet(idp.Config{HTTPClient: w.idp.Client(), Now: w.now, Log: log}, w.cfg, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	s.Publish(g)
	w.server.Store(s)
}

// gate does what Envoy and authz do: internal paths and the authenticate host
// go to authn, and who has no session is sent to sign in.
func (w *world) gate(rw http.ResponseWriter, r *http.Request) {
	internal := r.URL.Path == "/ping" || r.URL.Path == "/healthz" || r.URL.Path == "/.pomerium" ||
		strings.HasPrefix(r.URL.Path, "/.pomerium/") || strings.HasPrefix(r.URL.Path, "/.well-known/pomerium")
	if internal || "https://"+r.Host == auth {
		w.server.Load().ServeHTTP(rw, r)
		return
	}
	if session := w.session(r); session != nil && w.youngEnough(session) {
		_, _ = io.WriteString(rw, welcome+" "+r.URL.RequestURI())
		return
	}
	flow, err := signin.NewFlow(strings.NewReader(strings.Repeat(randomText(), 3)), w.now())
	if err != nil {
		w.t.Error(err)
	}
	name := w.cfg.Cookie.Name
	for _, c := range signin.StaleFlows(name, r.Header["Cookie"], w.now(), signin.MaxPending-1) {
		http.SetCookie(rw, c)
	}
	http.SetCookie(rw, flow.Cookie(name))
	target := &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery}
	http.Redirect(rw, r, w.keys.SignInURL(signin.Link{
		Authenticate: w.cfg.AuthenticateURL, Redirect: target, IDPID: w.idpID, Flow: flow.Hash(), MaxAge: time.Duration(w.maxAge.Load()),
		AdditionalHosts: w.dependsOn(r.Host), Round: signin.Rounds(name, r.Header["Cookie"], w.now()),
	}, w.now()), http.StatusFound)
}

func (w *world) dependsOn(host string) []string {
	for _, route := range w.cfg.Routes {
		if route.Host == host {
			return route.DependsOn
		}
	}
	return nil
}

// session returns the live session that a request's cookies name; those of two
// sessions name none.
func (w *world) session(r *http.Request) *databroker.Session {
	found, err := signin.Choose(signin.Present(w.cfg.Cookie.Name, r.Header["Cookie"], "", "", ""), func(p signin.Presented) (*databroker.Session, error) {
		c, err := w.keys.OpenCredential(p.Token, w.now())
		if err != nil || !c.GoodFor(r.Host, w.cfg.Cookie.Domain) {
			return nil, nil
		}
		session, err := w.store.Store.Session(r.Context(), c.ID)
		if err != nil || !w.now().Before(session.ExpiresAt) || w.idpID != "" && session.IDPID != w.idpID {
			return nil, nil
		}
		return session, nil
	}, func(session *databroker.Session) string { return session.ID })
	if err != nil {
		w.t.Error(err)
	}
	return found
}

func (w *world) youngEnough(session *databroker.Session) bool {
	at, known := session.Claims["auth_time"].(float64)
	return w.maxAge.Load() == 0 || known && w.now().Sub(time.Unix(int64(at), 0)) <= time.Duration(w.maxAge.Load())
}

// RoundTrip serves our hosts in process and leaves the rest to the network.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Hostname(), ".example.com") {
		return w.idp.Client().Transport.RoundTrip(r)
	}
	in := r.Clone(r.Context())
	in.Host, in.RequestURI = r.URL.Host, r.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.Header.Set("X-Request-Id", "request-1")
	in.Header.Set("X-Forwarded-Proto", "https")
	rec := httptest.NewRecorder()
	w.gate(rec, in)
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// browser is one person's browser: a cookie jar that follows redirects.
type browser struct {
	*http.Client
	w *world
	// stop ends a walk of redirects before the first URL it likes.
	stop func(*url.URL) bool
}

func (w *world) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	b := &browser{w: w}
	b.Client = &http.Client{Jar: jar, Transport: w, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if b.stop != nil && b.stop(r.URL) || len(via) > 25 {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return b
}

// page is an answer with its body read.
type page struct {
	*http.Response
	body string
}

func (b *browser) get(to string, header ...string) page {
	b.w.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, to, nil)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return b.do(r, header...)
}

func (b *browser) post(to string, form url.Values, header ...string) page {
	b.w.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		b.w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return b.do(r, header...)
}

func (b *browser) do(r *http.Request, header ...string) page {
	b.w.t.Helper()
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := b.Do(r)
	if err != nil {
		b.w.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return page{resp, string(body)}
}

var refreshed = regexp.MustCompile(`http-equiv="refresh" content="0;url=([^"]+)"`)

// walk is get, and goes on where a page does so by itself.
func (b *browser) walk(to string) page {
	b.w.t.Helper()
	p := b.get(to)
	for range 20 {
		next := p.next()
		if next == "" || p.StatusCode != http.StatusOK {
			break
		}
		p = b.get(next)
	}
	return p
}

// next is where a page goes on by itself, "" for nowhere.
func (p page) next() string {
	if m := refreshed.FindStringSubmatch(p.body); m != nil {
		return html.UnescapeString(m[1])
	}
	return ""
}

// refusing is a jar that does not keep the cookies that it does not like.
type refusing struct {
	http.CookieJar
	refuses func(u *url.URL, c *http.Cookie) bool
}

func (j refusing) SetCookies(u *url.URL, cookies []*http.Cookie) {
	var kept []*http.Cookie
	for _, c := range cookies {
		if !j.refuses(u, c) {
			kept = append(kept, c)
		}
	}
	j.CookieJar.SetCookies(u, kept)
}

// refuse has the browser keep none of the cookies that refuses likes.
func (b *browser) refuse(refuses func(u *url.URL, c *http.Cookie) bool) {
	b.Jar = refusing{b.Jar, refuses}
}

// until follows redirects from to and returns the first URL whose path is
// path, without opening it.
func (b *browser) until(path, to string) string {
	b.w.t.Helper()
	b.stop = func(u *url.URL) bool { return u.Path == path }
	defer func() { b.stop = nil }()
	p := b.get(to)
	if p.StatusCode != http.StatusFound {
		b.w.t.Fatalf("from %s: got status %d, want a redirect to %s\n%s", to, p.StatusCode, path, p.body)
	}
	return p.Header.Get("Location")
}

func (b *browser) cookie(at, name string) *http.Cookie {
	for _, c := range b.Jar.Cookies(mustURL(b.w.t, at)) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (p page) want(t testing.TB, status int, texts ...string) {
	t.Helper()
	if p.StatusCode != status {
		t.Errorf("%s: got status %d, want %d\n%s", p.Request.URL, p.StatusCode, status, p.body)
	}
	for _, text := range texts {
		if !strings.Contains(p.body, text) {
			t.Errorf("%s: page lacks %q\n%s", p.Request.URL, text, p.body)
		}
	}
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

var errFault = errors.New("the disk is on fire")

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// damaged is s with one character changed, which is never the one that it was.
func damaged(s string) string {
	i, c := len(s)/2, "A"
	if s[i] == 'A' {
		c = "B"
	}
	return s[:i] + c + s[i+1:]
}
