package idp_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

const (
	nonce    = "nonce-of-this-sign-in"
	verifier = "a-verifier-that-is-long-enough-for-pkce-0123456789"
	callback = "https://auth.example.com" + idp.CallbackPath
)

// world is a provider, and us as its client.
type world struct {
	t      testing.TB
	fake   *idptest.Provider
	client *idp.Provider
	set    *idp.Set
	cfg    *config.Config
	log    *logBuffer
	offset atomic.Int64
	// stopped is when the clock was, in nanoseconds; 0 while it goes.
	stopped atomic.Int64
}

// logBuffer is a log that tests read while it is written.
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

// newWorld has settings that each change may alter.
func newWorld(t testing.TB, change ...func(*config.IdentityProvider)) *world {
	t.Helper()
	return worldAt(t, idptest.NewProvider(t), change...)
}

// worldAt begins anew at a provider that is there already, since to make its keys
// takes long.
func worldAt(t testing.TB, fake *idptest.Provider, change ...func(*config.IdentityProvider)) *world {
	t.Helper()
	fake.Change(func(b *idptest.Behaviour) { *b = idptest.Alice() })
	w := &world{t: t, fake: fake, log: &logBuffer{}}
	settings := &config.IdentityProvider{Offered: true, Provider: "oidc", URL: w.fake.URL, ClientID: idptest.ClientID, ClientSecret: idptest.ClientSecret}
	for _, f := range change {
		f(settings)
	}
	w.cfg = &config.Config{AuthenticateURL: mustURL(t, "https://auth.example.com"), IDPs: []*config.IdentityProvider{settings}}
	w.set = idp.NewSet(w.config(), w.cfg, nil)
	w.client = w.set.Get(settings.ID())
	t.Cleanup(w.set.Wait)
	return w
}

// kindOf is a change to a kind whose URL is the fake's with a path.
func kindOf(name, path string) func(*config.IdentityProvider) {
	return func(s *config.IdentityProvider) { s.Provider, s.URL = name, s.URL+path }
}

func (w *world) config() idp.Config {
	return idp.Config{HTTPClient: w.fake.Client(), Now: w.now, Log: slog.New(slog.NewTextHandler(w.log, nil))}
}

func (w *world) now() time.Time {
	now := time.Now()
	if at := w.stopped.Load(); at != 0 {
		now = time.Unix(0, at)
	}
	return now.Add(time.Duration(w.offset.Load()))
}

// stop has the clock move by the offset alone.
func (w *world) stop() { w.stopped.Store(time.Now().UnixNano()) }

func (w *world) change(f func(*idptest.Behaviour)) { w.fake.Change(f) }

// visit takes a browser to the provider and returns what it comes back with.
func (w *world) visit(r idp.AuthRequest) (asked, back url.Values, err error) {
	w.t.Helper()
	r.State, r.Nonce, r.Verifier = "state", nonce, verifier
	to, err := w.client.AuthURL(context.Background(), r)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequest(http.MethodGet, to, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.fake.Client().Transport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		return mustURL(w.t, to).Query(), nil, nil
	}
	return mustURL(w.t, to).Query(), mustURL(w.t, resp.Header.Get("Location")).Query(), nil
}

func (w *world) signIn() (*idp.Identity, error) {
	w.t.Helper()
	_, back, err := w.visit(idp.AuthRequest{MaxAge: -1})
	if err != nil {
		return nil, err
	}
	return w.client.Exchange(context.Background(), back.Get("code"), nonce, verifier)
}

// signedIn is the session of a sign-in.
func (w *world) signedIn() *databroker.Session {
	w.t.Helper()
	who, err := w.signIn()
	if err != nil {
		w.t.Fatalf("sign in: %v", err)
	}
	return sessionOf(who)
}

func sessionOf(who *idp.Identity) *databroker.Session {
	return &databroker.Session{UserID: who.UserID, Claims: who.Claims, Tokens: who.Tokens, ProviderSessionID: who.SessionID}
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// fine is the kind of no error.
const fine idp.Kind = -1

// wantKind checks an error: its kind, that its text holds what it should, and
// that it is short and tells no secret.
func (w *world) wantKind(err error, kind idp.Kind, text string) {
	w.t.Helper()
	if kind == fine {
		if err != nil {
			w.t.Errorf("got %v, want no error", err)
		}
		return
	}
	var e *idp.Error
	if !errors.As(err, &e) {
		w.t.Errorf("got %v, want an error of kind %d", err, kind)
		return
	}
	if e.Kind != kind || !strings.Contains(e.Error(), text) {
		w.t.Errorf("got kind %d: %v\nwant kind %d with %q", e.Kind, e, kind, text)
	}
	if len(e.Error()) > 800 {
		w.t.Errorf("error of %d bytes: %v", len(e.Error()), e)
	}
	for _, s := range w.fake.Secrets() {
		if strings.Contains(e.Error(), s) || strings.Contains(w.log.String(), s) {
			w.t.Errorf("error or log tells the secret %q", s)
		}
	}
}

// eventually waits until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: has not come", what)
		}
	}
}
