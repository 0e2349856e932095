package authz

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
)

// touchStore notes what it is told of uses.
type touchStore struct {
	databroker.Store
	mu   sync.Mutex
	told []map[string]databroker.Access
	// during is called while it is told, if set.
	during func()
}

func (s *touchStore) TouchSessions(ctx context.Context, accessed map[string]databroker.Access) error {
	if s.during != nil {
		s.during()
	}
	s.mu.Lock()
	s.told = append(s.told, maps.Clone(accessed))
	s.mu.Unlock()
	return s.Store.TouchSessions(ctx, accessed)
}

func (s *touchStore) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.told)
}

func newTouched(t *testing.T) (*world, *uses, *touchStore) {
	w := newWorld(t, nil, nil)
	store := &touchStore{Store: w.store}
	w.server.identities.uses.store = store
	return w, w.server.identities.uses, store
}

func (w *world) accessed(id string) time.Time {
	w.t.Helper()
	s, err := w.store.Session(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.AccessedAt
}

func TestTheStoreIsToldOfUses(t *testing.T) {
	w, uses, store := newTouched(t)
	ctx := context.Background()
	alice, bob := "cookie: _pomerium="+w.session("alice", "alice@example.com", nil), "cookie: _pomerium="+w.session("bob", "bob@example.com", nil)
	flush := func() {
		t.Helper()
		if err := uses.flush(ctx, w.clock.Now(), touchEvery); err != nil {
			t.Fatal(err)
		}
	}
	use := func(cookies ...string) {
		for _, c := range cookies {
			w.check(call("app", "GET", "/", c))
		}
	}
	use(alice, bob) // just made: as good as used
	flush()
	if store.calls() != 0 {
		t.Fatalf("it was told of sessions that are new: %v", store.told)
	}
	w.clock.Advance(time.Second)
	use(alice, bob, alice)
	flush()
	if store.calls() != 1 || len(store.told[0]) != 2 || !w.accessed("alice").Equal(noon.Add(time.Second)) {
		t.Fatalf("told %v", store.told)
	}
	for range 50 {
		w.clock.Advance(time.Second)
		use(alice)
		flush()
	}
	if store.calls() != 1 {
		t.Fatalf("told %d times within a minute", store.calls())
	}
	w.clock.Advance(10 * time.Second)
	flush()
	if store.calls() != 2 || len(store.told[1]) != 1 || !w.accessed("alice").Equal(noon.Add(51*time.Second)) {
		t.Fatalf("after a minute: told %v", store.told)
	}
	w.clock.Advance(10 * time.Minute)
	flush()
	if store.calls() != 2 || len(uses.pending) != 0 {
		t.Errorf("with nothing to tell: %d calls, %d sessions pending", store.calls(), len(uses.pending))
	}
	use("cookie: _pomerium=x", "a: b")
	if len(uses.pending) != 0 {
		t.Errorf("nobody's requests are %d uses", len(uses.pending))
	}
}

func TestUsesSurviveAnOutage(t *testing.T) {
	w, uses, _ := newTouched(t)
	alice := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	w.check(call("app", "GET", "/", alice))
	w.clock.Advance(time.Minute)
	w.check(call("app", "GET", "/", alice))
	w.store.Break(errDown)
	if err := uses.flush(context.Background(), w.clock.Now(), touchEvery); err == nil {
		t.Fatal("the store is down and flush does not say so")
	}
	w.store.Heal()
	if err := uses.flush(context.Background(), w.clock.Now(), touchEvery); err != nil || !w.accessed("alice").Equal(noon.Add(time.Minute)) {
		t.Errorf("the use is lost: %v, %v", w.accessed("alice"), err)
	}
}

func TestAUseDuringAFlushIsNotLost(t *testing.T) {
	w, uses, store := newTouched(t)
	alice := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	w.server.identities.contact.Store(noon.Add(time.Hour).UnixNano())
	w.check(call("app", "GET", "/", alice))
	w.clock.Advance(time.Minute)
	w.check(call("app", "GET", "/", alice))
	store.during = func() {
		w.clock.Advance(time.Second)
		w.check(call("app", "GET", "/", alice))
	}
	ctx := context.Background()
	if err := uses.flush(ctx, w.clock.Now(), touchEvery); err != nil {
		t.Fatal(err)
	}
	store.during = nil
	if err := uses.flush(ctx, w.clock.Now(), 0); err != nil || !w.accessed("alice").Equal(noon.Add(61*time.Second)) {
		t.Errorf("got %v, %v", w.accessed("alice"), err)
	}
}

func TestTwoIdentitiesOfASessionShareItsUses(t *testing.T) {
	w, uses, _ := newTouched(t)
	w.session("alice", "alice@example.com", nil)
	s, err := w.store.Session(context.Background(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	// Both are read before either is used, as by two generations of a cache.
	old, next := uses.of(s), uses.of(s)
	w.clock.Advance(time.Minute)
	uses.touch(t.Context(), next, w.clock.Now())
	w.clock.Advance(time.Minute)
	uses.touch(t.Context(), old, w.clock.Now())
	if got := uses.of(s); got != next || !got.access().At.Equal(noon.Add(2*time.Minute)) {
		t.Errorf("the last use is %v", got.access().At)
	}
	if err := uses.flush(context.Background(), w.clock.Now(), 0); err != nil || !w.accessed("alice").Equal(noon.Add(2*time.Minute)) {
		t.Errorf("the store knows %v, %v", w.accessed("alice"), err)
	}
}

func TestUsesAreBounded(t *testing.T) {
	_, uses, _ := newTouched(t)
	for i := range maxPending + 100 {
		uses.touch(t.Context(), uses.of(&databroker.Session{ID: fmt.Sprint(i), CreatedAt: noon}), noon.Add(time.Hour))
	}
	if len(uses.pending) != maxPending {
		t.Errorf("%d sessions are pending", len(uses.pending))
	}
}

func TestRunTellsOfUsesWhenItEnds(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.server.Run(ctx) }()
	w.check(call("app", "GET", "/", alice))
	w.clock.Advance(30 * time.Second)
	w.check(call("app", "GET", "/", alice))
	cancel()
	if err := <-done; err != nil || !w.accessed("alice").Equal(noon.Add(30*time.Second)) {
		t.Errorf("got %v, %v", w.accessed("alice"), err)
	}
}

func TestShortIdleTimeoutsAreToldSooner(t *testing.T) {
	w := newWorld(t, nil, nil)
	for idle, want := range map[time.Duration]time.Duration{
		0: touchEvery, time.Hour: touchEvery, 2 * touchEvery: touchEvery, time.Minute: 30 * time.Second, time.Second: useResolution,
	} {
		routeNamed(w.config, "app").SessionIdleTimeout = idle
		w.publish()
		if got := time.Duration(w.server.identities.uses.every.Load()); got != want {
			t.Errorf("a timeout of %s: every %s, want %s", idle, got, want)
		}
	}
}

// TestUsesTogether is for the race detector: whatever the order, the store knows the
// last use in the end.
func TestUsesTogether(t *testing.T) {
	w, uses, _ := newTouched(t)
	ctx := context.Background()
	alice := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 200 {
				w.clock.Advance(time.Second)
				w.check(call("app", "GET", "/", alice))
				if i == 0 {
					w.server.identities.forget()
				}
				if i < 2 {
					_ = uses.flush(ctx, w.clock.Now(), 0)
				}
			}
		})
	}
	group.Wait()
	w.clock.Advance(time.Second)
	last := w.clock.Now()
	w.check(call("app", "GET", "/", alice))
	if err := uses.flush(ctx, last, 0); err != nil || !w.accessed("alice").Equal(last) || len(uses.pending) != 0 {
		t.Errorf("got %v, %v, want %v; %d pending", w.accessed("alice"), err, last, len(uses.pending))
	}
}

func TestWhoeverLeavesWhileTheStoreIsAskedHasNotUsedTheSession(t *testing.T) {
	w, uses, _ := newTouched(t)
	uses.within(15 * time.Minute)
	w.session("alice", "alice@example.com", nil)
	s, err := w.store.Session(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	u := uses.of(s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	uses.touch(ctx, u, noon.Add(time.Hour))
	if at := u.access().At; !at.Equal(noon) || len(uses.pending) != 0 {
		t.Errorf("the last use is %v, %d are pending", at, len(uses.pending))
	}
	w.store.Break(errDown)
	uses.touch(t.Context(), u, noon.Add(time.Hour))
	if got := u.access(); !got.At.Equal(noon.Add(time.Hour)) || got.Gap != time.Hour {
		t.Errorf("while the store is down: %+v", got)
	}
}
