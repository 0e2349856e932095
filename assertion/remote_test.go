package assertion

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keyServer publishes a key set that a test can change, hold back or break.
type keyServer struct {
	*httptest.Server
	fetches atomic.Int64

	mu     sync.Mutex
	body   []byte
	status int
	// gate, if set, is what a fetch waits for.
	gate chan struct{}
}

func newKeyServer(t *testing.T, body []byte) *keyServer {
	t.Helper()
	s := &keyServer{body: body, status: http.StatusOK}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetches.Add(1)
		s.mu.Lock()
		body, status, gate := s.body, s.status, s.gate
		s.mu.Unlock()
		if gate != nil {
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) set(body []byte, status int, gate chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.body, s.status, s.gate = body, status, gate
}

// remote is RemoteKeys by a clock that the test moves.
func remote(t *testing.T, s *keyServer) (*RemoteKeys, func(time.Duration)) {
	t.Helper()
	k, err := NewRemoteKeys(s.URL, s.Client())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	var offset atomic.Int64
	k.now = func() time.Time { return noon.Add(time.Duration(offset.Load())) }
	return k, func(d time.Duration) { offset.Add(int64(d)) }
}

// has checks what Keys says about an id, and how many fetches there were.
func has(t *testing.T, k *RemoteKeys, s *keyServer, id string, want error, fetches int64) {
	t.Helper()
	if _, err := k.Keys(t.Context(), id); !errors.Is(err, want) {
		t.Errorf("key id %.8s: got %v, want %v", id, err, want)
	}
	if got := s.fetches.Load(); got != fetches {
		t.Errorf("%d fetches, want %d", got, fetches)
	}
}

func TestRemoteKeysAreFetchedOnce(t *testing.T) {
	ring := newRing(t)
	s := newKeyServer(t, ring.JWKS())
	k, forward := remote(t, s)
	if s.fetches.Load() != 0 {
		t.Error("fetched before the first use")
	}
	for range 100 {
		has(t, k, s, ring.KeyID(), nil, 1)
	}
	forward(freshFor - time.Second)
	has(t, k, s, ring.KeyID(), nil, 1)
	has(t, k, s, "", nil, 1)
}

func TestRemoteKeysShareAFetch(t *testing.T) {
	ring := newRing(t)
	s := newKeyServer(t, ring.JWKS())
	gate := make(chan struct{})
	s.set(ring.JWKS(), http.StatusOK, gate)
	k, _ := remote(t, s)
	results := make(chan error)
	for range 50 {
		go func() {
			_, err := k.Keys(context.Background(), ring.KeyID())
			results <- err
		}()
	}
	close(gate)
	for range 50 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := s.fetches.Load(); got != 1 {
		t.Errorf("%d fetches", got)
	}
}

func TestStaleRemoteKeysServeWhileTheyAreRenewed(t *testing.T) {
	old, renewed := newRing(t), newRing(t)
	s := newKeyServer(t, old.JWKS())
	k, forward := remote(t, s)
	has(t, k, s, old.KeyID(), nil, 1)

	gate := make(chan struct{})
	s.set(renewed.JWKS(), http.StatusOK, gate)
	forward(freshFor)
	for range 10 { // none waits for the gate
		if _, err := k.Keys(t.Context(), old.KeyID()); err != nil {
			t.Fatal(err)
		}
	}
	close(gate)
	k.fetches.Wait()
	has(t, k, s, renewed.KeyID(), nil, 2)
	has(t, k, s, old.KeyID(), ErrUnknownKey, 2)
}

func TestAnUnknownKeyIDCausesOneFetch(t *testing.T) {
	first, second := newRing(t), newRing(t)
	s := newKeyServer(t, first.JWKS())
	k, forward := remote(t, s)
	has(t, k, s, first.KeyID(), nil, 1)

	// Too soon after the last fetch, whatever is asked for.
	has(t, k, s, second.KeyID(), ErrUnknownKey, 1)
	// The key is published; the next token with it brings it in.
	s.set(second.JWKS(), http.StatusOK, nil)
	forward(fetchInterval)
	has(t, k, s, second.KeyID(), nil, 2)

	// An id that no fetch brings is not asked for again.
	forward(fetchInterval)
	has(t, k, s, "nobody", ErrUnknownKey, 3)
	forward(fetchInterval)
	has(t, k, s, "nobody", ErrUnknownKey, 3)
	// Another is, and then neither.
	has(t, k, s, "stranger", ErrUnknownKey, 4)
	forward(fetchInterval)
	has(t, k, s, "nobody", ErrUnknownKey, 4)
	has(t, k, s, "stranger", ErrUnknownKey, 4)
	// Not for ever.
	forward(freshFor)
	has(t, k, s, "nobody", ErrUnknownKey, 5)
}

func TestManyUnknownKeyIDsCostLittle(t *testing.T) {
	ring := newRing(t)
	s := newKeyServer(t, ring.JWKS())
	k, forward := remote(t, s)
	has(t, k, s, ring.KeyID(), nil, 1)
	forward(fetchInterval)
	for i := range 1000 {
		if _, err := k.Keys(t.Context(), strings.Repeat("x", i%200+1)); !errors.Is(err, ErrUnknownKey) {
			t.Fatal(err)
		}
	}
	if got := s.fetches.Load(); got != 2 {
		t.Errorf("%d fetches", got)
	}
	for i := range 2 * maxUnknown {
		k.remember(strings.Repeat("y", i), noon)
	}
	if len(k.unknown) > maxUnknown {
		t.Errorf("%d unknown ids are kept", len(k.unknown))
	}
}

func TestRemoteKeysOutliveAnOutage(t *testing.T) {
	ring := newRing(t)
	s := newKeyServer(t, ring.JWKS())
	k, forward := remote(t, s)
	has(t, k, s, ring.KeyID(), nil, 1)
	s.set(nil, http.StatusInternalServerError, nil)
	forward(freshFor)
	has(t, k, s, "new", ErrKeysUnavailable, 2)
	has(t, k, s, ring.KeyID(), nil, 2)
	forward(staleFor - freshFor - time.Second)
	if _, err := k.Keys(t.Context(), ring.KeyID()); err != nil {
		t.Error(err)
	}
	k.fetches.Wait()
	forward(fetchInterval)
	has(t, k, s, ring.KeyID(), ErrKeysUnavailable, 4)
	has(t, k, s, ring.KeyID(), ErrKeysUnavailable, 4)
	// Back again.
	s.set(ring.JWKS(), http.StatusOK, nil)
	forward(fetchInterval)
	has(t, k, s, ring.KeyID(), nil, 5)
}

func TestRemoteKeysRefuseBadAnswers(t *testing.T) {
	good := newRing(t)
	for name, answer := range map[string]struct {
		body   string
		status int
	}{
		"not found":       {string(good.JWKS()), http.StatusNotFound},
		"no content":      {"", http.StatusNoContent},
		"a page":          {"<html>", http.StatusOK},
		"an empty set":    {`{"keys":[]}`, http.StatusOK},
		"more than 1 MiB": {string(good.JWKS()) + strings.Repeat(" ", maxJWKS), http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			s := newKeyServer(t, nil)
			s.set([]byte(answer.body), answer.status, nil)
			k, _ := remote(t, s)
			has(t, k, s, "x", ErrKeysUnavailable, 1)
			has(t, k, s, "x", ErrKeysUnavailable, 1)
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		s := newKeyServer(t, good.JWKS())
		k, _ := remote(t, s)
		s.Close()
		has(t, k, s, "x", ErrKeysUnavailable, 0)
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	ring := newRing(t)
	s := newKeyServer(t, nil)
	gate := make(chan struct{})
	s.set(ring.JWKS(), http.StatusOK, gate)
	k, _ := remote(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Keys(ctx, ring.KeyID()); !errors.Is(err, ErrKeysUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// The fetch goes on for others.
	close(gate)
	k.fetches.Wait()
	has(t, k, s, ring.KeyID(), nil, 1)
}

func TestCloseEndsAFetch(t *testing.T) {
	s := newKeyServer(t, nil)
	gate := make(chan struct{})
	defer close(gate)
	s.set(nil, http.StatusOK, gate)
	k, forward := remote(t, s)
	done := make(chan error)
	go func() {
		_, err := k.Keys(context.Background(), "x")
		done <- err
	}()
	for s.fetches.Load() == 0 {
		select {
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		default:
		}
	}
	k.Close()
	if err := <-done; !errors.Is(err, ErrKeysUnavailable) {
		t.Errorf("got %v", err)
	}
	forward(fetchInterval)
	has(t, k, s, "x", ErrKeysUnavailable, 1)
}

func TestRemoteKeysURL(t *testing.T) {
	for raw, want := range map[string]bool{
		"https://app.example.com/.well-known/pomerium/jwks.json": true,
		"http://127.0.0.1:8080/jwks":                             true,
		"http://[::1]/jwks":                                      true,
		"http://localhost/jwks":                                  true,
		"http://app.LOCALHOST:8080/jwks":                         true,
		"http://app.example.com/jwks":                            false,
		"http://localhost.example.com/jwks":                      false,
		"http://10.0.0.1/jwks":                                   false,
		"https://user:pass@app.example.com/jwks":                 false,
		"file:///etc/jwks":                                       false,
		"ftp://localhost/jwks":                                   false,
		"/jwks":                                                  false,
		"":                                                       false,
		"https://%zz":                                            false,
	} {
		if _, err := NewRemoteKeys(raw, nil); (err == nil) != want {
			t.Errorf("%s: got %v", raw, err)
		} else if err != nil && strings.Contains(err.Error(), "pass") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func TestRemoteKeysAreNotRedirectedToWhereOthersWrite(t *testing.T) {
	ring := newRing(t)
	target := newKeyServer(t, ring.JWKS())
	to := "http://keys.example.com/"
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, to, http.StatusFound)
	}))
	t.Cleanup(secure.Close)
	for _, to = range []string{"http://keys.example.com/", target.URL, "/again"} {
		k, err := NewRemoteKeys(secure.URL, secure.Client())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Keys(t.Context(), ring.KeyID()); !errors.Is(err, ErrKeysUnavailable) {
			t.Errorf("to %s: got %v", to, err)
		}
		k.Close()
	}
	if target.fetches.Load() != 0 {
		t.Error("keys were fetched over plain http after a redirect from https")
	}
}
