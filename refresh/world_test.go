package refresh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// world is a store, a provider and Refreshers between them. Its clock stands still
// but in wait, and runs at any speed there (see testing/synctest).
type world struct {
	*testing.T
	memory   *databroker.Memory
	provider *idptest.Provider
	cfg      *config.Config
	set      *idp.Set
	log      *lockedBuffer
	began    time.Time
}

// inWorld runs a test in a world of its own.
func inWorld(t *testing.T, test func(*testing.T, *world)) {
	t.Helper()
	provider := idptest.NewProvider(t) // waits for connections, which no clock may wait for
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, provider: provider, memory: databroker.NewMemory(databroker.MemoryConfig{}), log: &lockedBuffer{}, began: time.Now()}
		w.configure(provider)
		test(t, w)
		for _, s := range provider.Secrets() {
			if strings.Contains(w.log.String(), s) {
				t.Errorf("the log holds a secret:\n%s", w.log.String())
				break
			}
		}
	})
}

func (w *world) configure(providers ...*idptest.Provider) { w.configureKind("oidc", providers...) }

func (w *world) configureKind(kind string, providers ...*idptest.Provider) {
	w.cfg = &config.Config{AuthenticateURL: &url.URL{Scheme: "https", Host: "authenticate.example.com"}}
	for _, p := range providers {
		w.cfg.IDPs = append(w.cfg.IDPs, &config.IdentityProvider{
			Provider: kind, URL: p.URL, ClientID: idptest.ClientID, ClientSecret: idptest.ClientSecret,
			Scopes: []string{"openid", "email", "offline_access"}, Offered: true,
		})
	}
	w.set = idp.NewSet(idp.Config{HTTPClient: &http.Client{Transport: direct(providers)}}, w.cfg, w.set)
}

// direct reaches providers without a network: a bubble's clock stands still for as
// long as anybody waits for one.
type direct []*idptest.Provider

func (d direct) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if e := recover(); e != nil {
			resp, err = nil, fmt.Errorf("the connection broke: %v", e)
		}
	}()
	for _, p := range d {
		if strings.HasSuffix(p.URL, r.URL.Host) {
			in := r.Clone(r.Context())
			if in.Body == nil {
				in.Body = http.NoBody
			}
			out := httptest.NewRecorder()
			p.Config.Handler.ServeHTTP(out, in)
			if err := r.Context().Err(); err != nil {
				return nil, err
			}
			return out.Result(), nil
		}
	}
	return nil, fmt.Errorf("no such host")
}

// wait lets time pass until everybody waits for more of it.
func (w *world) wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// replica starts a Refresher with its own connection to the store.
func (w *world) replica() *replica {
	store := &databrokertest.Faulty{Store: w.memory}
	r := &replica{
		store:     store,
		Refresher: New(Config{Store: store, Log: slog.New(slog.NewTextHandler(w.log, nil)), Rand: func() float64 { return 0 }}),
	}
	r.Publish(w.set)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("Run: %v", err)
		}
	})
	w.Cleanup(r.stop)
	return r
}

type replica struct {
	*Refresher
	store *databrokertest.Faulty
	stop  func()
}

// signIn makes a session of somebody who signs in at a provider now.
func (w *world) signIn(p *idptest.Provider, subject string) *databroker.Session {
	w.Helper()
	p.Change(func(b *idptest.Behaviour) { b.Subject = subject })
	const verifier = "a-verifier-of-at-least-43-characters-a-verifier"
	for _, settings := range w.cfg.IDPs {
		if settings.URL != p.URL {
			continue
		}
		id := settings.ID()
		to, err := w.set.Get(id).AuthURL(w.Context(), idp.AuthRequest{State: "state", Nonce: "nonce", Verifier: verifier, MaxAge: -1})
		if err != nil {
			w.Fatalf("authorization URL: %v", err)
		}
		out := httptest.NewRecorder()
		p.Config.Handler.ServeHTTP(out, httptest.NewRequest(http.MethodGet, to, nil))
		back, err := url.Parse(out.Header().Get("Location"))
		if err != nil {
			w.Fatalf("sign in: %v", err)
		}
		who, err := w.set.Get(id).Exchange(w.Context(), back.Query().Get("code"), "nonce", verifier)
		if err != nil {
			w.Fatalf("exchange code: %v", err)
		}
		return w.put(&databroker.Session{
			ID: "session-" + subject, UserID: who.UserID, IDPID: id, Claims: who.Claims, Tokens: who.Tokens,
			Origin: databroker.Origin{Method: "browser"}, CreatedAt: time.Now(), ExpiresAt: time.Now().Add(14 * time.Hour),
		})
	}
	w.Fatalf("no such provider: %s", p.URL)
	return nil
}

func (w *world) put(s *databroker.Session) *databroker.Session {
	w.Helper()
	if err := w.memory.PutSession(w.Context(), s); err != nil {
		w.Fatalf("write session: %v", err)
	}
	return s
}

// session is what the store has.
func (w *world) session(id string) *databroker.Session {
	w.Helper()
	s, err := w.memory.Session(w.Context(), id)
	if err != nil {
		w.Fatalf("session %s after %v: %v\n%s", id, time.Since(w.began), err, w.log.String())
	}
	return s
}

func (w *world) wantCount(endpoint string, want int) {
	w.Helper()
	if got := w.provider.Count(endpoint); got != want {
		w.Fatalf("after %v: %d requests for %s, want %d\n%s", time.Since(w.began), got, endpoint, want, w.log.String())
	}
}

// wantRefreshed checks that a session was renewed, and when.
func (w *world) wantRefreshed(id string, at time.Duration) *databroker.Session {
	w.Helper()
	s := w.session(id)
	if got := s.RefreshedAt.Sub(w.began); s.RefreshedAt.IsZero() || got != at {
		w.Fatalf("after %v: %s was refreshed after %v, want %v\n%s", time.Since(w.began), id, got, at, w.log.String())
	}
	return s
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*lockedBuffer)(nil)

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
