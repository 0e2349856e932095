package idp_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// A provider that is down stops nothing, and is not asked by everybody.
func TestProviderIsDownAtStart(t *testing.T) {
	w := newWorld(t)
	w.change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 503 })
	if w.fake.Count("discovery") != 0 {
		t.Error("asked before anybody wanted something")
	}
	for range 20 {
		_, _, err := w.visit(idp.AuthRequest{MaxAge: -1})
		w.wantKind(err, idp.Unavailable, "503")
	}
	if got := w.fake.Count("discovery"); got != 1 {
		t.Errorf("%d discoveries in a pause, want 1", got)
	}
	w.change(func(b *idptest.Behaviour) { b.DiscoveryStatus = 0 })
	w.offset.Store(int64(6 * time.Second))
	_, err := w.signIn()
	w.wantKind(err, fine, "")
}

// Who asks a provider that hangs waits no longer than they like, and all of them
// are one request.
func TestProviderHangs(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	w.change(func(b *idptest.Behaviour) {
		b.OnRequest = func(endpoint string, r *http.Request) {
			if endpoint == "discovery" {
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	var g errgroup.Group
	for range 50 {
		g.Go(func() error {
			_, err := w.client.AuthURL(ctx, idp.AuthRequest{})
			w.wantKind(err, idp.Unavailable, "deadline")
			return nil
		})
	}
	_ = g.Wait()
	// Those who gave up have not ended it for those who come now.
	close(release)
	_, err := w.signIn()
	w.wantKind(err, fine, "")
	if got := w.fake.Count("discovery"); got != 1 {
		t.Errorf("%d discoveries, want 1", got)
	}
}

func TestSignInsAtOnceAreOneFetch(t *testing.T) {
	w := newWorld(t)
	const n = 50
	w.change(func(b *idptest.Behaviour) { b.OnRequest = together(n, "token") })
	var g errgroup.Group
	for range n {
		g.Go(func() error {
			_, err := w.signIn()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if d, k := w.fake.Count("discovery"), w.fake.Count("keys"); d != 1 || k != 1 {
		t.Errorf("%d discoveries and %d fetches of keys, want 1 and 1", d, k)
	}
	// Keys that change in the middle work at once, with one fetch more.
	w.fake.RotateKeys()
	w.change(func(b *idptest.Behaviour) { b.OnRequest = together(n, "token") })
	for range n {
		g.Go(func() error {
			_, err := w.signIn()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := w.fake.Count("keys"); got != 2 {
		t.Errorf("%d fetches of keys after a rotation, want 2", got)
	}
}

// together holds requests for an endpoint back until n of them are there.
func together(n int, endpoint string) func(string, *http.Request) {
	var all sync.WaitGroup
	all.Add(n)
	return func(name string, _ *http.Request) {
		if name == endpoint {
			all.Done()
			all.Wait()
		}
	}
}

func TestStaleWhileRevalidate(t *testing.T) {
	w := newWorld(t)
	if _, err := w.signIn(); err != nil {
		t.Fatal(err)
	}
	// It hangs: nobody waits, and what is known is used.
	release := make(chan struct{})
	var once sync.Once
	end := func() { once.Do(func() { close(release) }) }
	t.Cleanup(end)
	w.change(func(b *idptest.Behaviour) {
		b.OnRequest = func(endpoint string, r *http.Request) {
			if endpoint == "discovery" || endpoint == "keys" {
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
		}
	})
	w.offset.Store(int64(2 * time.Hour))
	w.change(func(b *idptest.Behaviour) { b.Now = w.now })
	for range 3 {
		if _, err := w.signIn(); err != nil {
			t.Fatalf("with what is known: %v", err)
		}
	}
	if d := w.fake.Count("discovery"); d > 2 {
		t.Errorf("%d discoveries, want one more at the most", d)
	}
	end()
	w.set.Wait()
	if d, k := w.fake.Count("discovery"), w.fake.Count("keys"); d != 2 || k != 2 {
		t.Errorf("%d discoveries and %d fetches of keys, want 2 and 2", d, k)
	}
	// It is down for ten minutes: what is known is used, and it is asked now and then.
	w.change(func(b *idptest.Behaviour) { b.OnRequest, b.DiscoveryStatus, b.KeysStatus = nil, 500, 500 })
	for i := range 100 {
		w.offset.Store(int64(4*time.Hour) + int64(i)*int64(6*time.Second))
		if _, err := w.signIn(); err != nil {
			t.Fatalf("while it is down: %v", err)
		}
		w.set.Wait()
	}
	if d := w.fake.Count("discovery"); d < 90 || d > 110 {
		t.Errorf("%d discoveries, want one for each pause", d)
	}
	if log := w.log.String(); !strings.Contains(log, "what is known is used on") || !strings.Contains(log, "500") {
		t.Errorf("log does not tell of it: %.500s", log)
	}
	// A day is too long.
	w.offset.Store(int64(30 * time.Hour))
	_, err := w.signIn()
	w.wantKind(err, idp.Unavailable, "500")
}

// Anybody can write a token with a kid that nobody knows.
func TestUnknownKeysDoNotAmplify(t *testing.T) {
	w := newWorld(t)
	if _, err := w.signIn(); err != nil {
		t.Fatal(err)
	}
	good := w.fake.IDToken("user-alice", idptest.ClientID)
	forged := func(i int) string {
		w.fake.Change(func(b *idptest.Behaviour) { b.WrongKey = true })
		raw := w.fake.IDToken("user-alice", idptest.ClientID, func(c map[string]any) { c["n"] = strconv.Itoa(i) })
		w.fake.Change(func(b *idptest.Behaviour) { b.WrongKey = false })
		return raw
	}
	before := w.fake.Count("keys")
	var g errgroup.Group
	for i := range 100 {
		raw := forged(i)
		g.Go(func() error {
			_, err := w.client.VerifyIDToken(context.Background(), raw, nil)
			w.wantKind(err, idp.Invalid, "not made with a key that the issuer publishes")
			return nil
		})
	}
	_ = g.Wait()
	if got := w.fake.Count("keys") - before; got != 1 {
		t.Errorf("a storm of forged tokens fetched the keys %d times, want 1", got)
	}
	_, err := w.client.VerifyIDToken(context.Background(), good, nil)
	w.wantKind(err, fine, "")
	// A sign-in is not kept from new keys by it.
	w.fake.RotateKeys()
	_, err = w.signIn()
	w.wantKind(err, fine, "")
	// And after a pause another may ask.
	w.fake.RotateKeys()
	w.offset.Store(int64(6 * time.Second))
	_, err = w.client.VerifyIDToken(context.Background(), w.fake.IDToken("user-alice", idptest.ClientID), nil)
	w.wantKind(err, fine, "")
}

// published has the provider's keys be what f makes of them.
func (w *world) published(f func(keys string) string) {
	mux := w.fake.Config.Handler.(*http.ServeMux)
	mux.HandleFunc("GET /other-keys", func(rw http.ResponseWriter, _ *http.Request) {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/keys", nil))
		_, _ = io.WriteString(rw, f(rec.Body.String()))
	})
	w.change(func(b *idptest.Behaviour) {
		b.Discovery = map[string]any{"jwks_uri": w.fake.URL + "/other-keys"}
	})
}

// An answer that was on its way when the keys changed is not the last word.
func TestKeysChangeWhileTheyAreFetched(t *testing.T) {
	w := newWorld(t)
	hold := make(chan chan struct{}, 1)
	w.published(func(keys string) string {
		select {
		case release := <-hold:
			<-release
		default:
		}
		return keys
	})
	old := w.signedIn()
	release := make(chan struct{})
	hold <- release
	w.offset.Store(int64(11 * time.Minute))
	if _, err := w.client.VerifyIDToken(context.Background(), old.Tokens.IDToken, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a fetch with the old keys", func() bool { return len(hold) == 0 && w.fake.Count("keys") == 2 })
	w.fake.RotateKeys()
	w.change(func(b *idptest.Behaviour) {
		b.Now = w.now
		b.OnToken = func(*http.Request) { time.AfterFunc(50*time.Millisecond, func() { close(release) }) }
	})
	_, err := w.signIn()
	w.wantKind(err, fine, "")
}

func TestPublishedKeys(t *testing.T) {
	for _, tt := range []struct {
		name string
		keys func(string) string
		kind idp.Kind
		text string
	}{
		{"beside others", func(keys string) string {
			return strings.Replace(keys, `{"keys":[`, `{"keys":[{"kty":"oct","kid":"1","k":"AAAA"},{"kty":"new","kid":"1"},7,{"kty":"RSA"},`, 1)
		}, fine, ""},
		{"without kid", func(keys string) string { return strings.Replace(keys, `"kid":"1",`, "", 1) }, fine, ""},
		{"for encryption", func(keys string) string { return strings.Replace(keys, `"use":"sig"`, `"use":"enc"`, 1) }, idp.Unusable, "not made with a key"},
		{"for another algorithm", func(keys string) string { return strings.Replace(keys, "RS256", "RS512", 1) }, idp.Unusable, "not made with a key"},
		{"with another kid", func(keys string) string { return strings.Replace(keys, `"kid":"1"`, `"kid":"2"`, 1) }, idp.Unusable, "not made with a key"},
		{"none", func(string) string { return `{"keys":[]}` }, idp.Unusable, "not made with a key"},
		{"no list", func(string) string { return `{}` }, idp.Unavailable, "no keys"},
		{"no JSON", func(string) string { return `<html>` }, idp.Unavailable, "not the JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.published(tt.keys)
			_, err := w.signIn()
			w.wantKind(err, tt.kind, tt.text)
		})
	}
}

// Keys that are gone are gone within minutes.
func TestOldKeysEnd(t *testing.T) {
	w := newWorld(t)
	old := w.fake.IDToken("user-alice", idptest.ClientID)
	if _, err := w.client.VerifyIDToken(context.Background(), old, nil); err != nil {
		t.Fatal(err)
	}
	w.fake.RotateKeys()
	w.offset.Store(int64(11 * time.Minute))
	_, _ = w.client.VerifyIDToken(context.Background(), old, nil)
	w.set.Wait()
	_, err := w.client.VerifyIDToken(context.Background(), old, nil)
	w.wantKind(err, idp.Invalid, "not made with a key")
}

func TestProviderMoves(t *testing.T) {
	w := newWorld(t)
	if _, err := w.signIn(); err != nil {
		t.Fatal(err)
	}
	// What is known leads nowhere, so it is asked for again without waiting for an hour.
	w.change(func(b *idptest.Behaviour) { b.TokenStatus = 404 })
	_, err := w.signIn()
	w.wantKind(err, idp.Unusable, "404")
	eventually(t, "another discovery", func() bool { return w.fake.Count("discovery") == 2 })
}

func TestProvidersAreTakenOver(t *testing.T) {
	w := newWorld(t)
	if _, err := w.signIn(); err != nil {
		t.Fatal(err)
	}
	id := w.client.ID()
	next := idp.NewSet(w.config(), w.cfg, w.set)
	if next.Get(id) != w.client {
		t.Error("the same settings made another provider")
	}
	changed := *w.cfg.IDPs[0]
	changed.ClientSecret = "x"
	cfg := *w.cfg
	cfg.IDPs = append(cfg.IDPs[:0:0], &changed)
	if next = idp.NewSet(w.config(), &cfg, w.set); next.Get(id) == w.client || next.Get(id) == nil || len(next.All()) != 1 {
		t.Error("another secret is another provider with the same ID")
	}
	if next.Get("x") != nil || (*idp.Set)(nil).Get(id) != nil {
		t.Error("got a provider that is not there")
	}
}
