package authz

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
)

var errDown = errors.New("store is down")

func TestOutage(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"public": {anyPolicy, true}})
	w.follow()
	alice, carol := w.session("alice", "alice@example.com", nil), w.session("carol", "carol@example.com", nil)
	known := call("app", "GET", "/", "cookie: _pomerium="+alice)
	unknown := call("app", "GET", "/", "cookie: _pomerium="+carol)
	w.until("alice is remembered", func() bool {
		_, ok := w.server.identities.known.get("salice")
		return w.check(known).allowed && ok
	})

	w.store.Break(errDown)
	w.until("the feed has noticed", func() bool { return strings.Contains(w.log.String(), "databroker out of reach") })
	if r := w.check(known); !r.allowed {
		t.Errorf("known session at the start of an outage: status %d", r.status)
	}
	unavailable(t, "unknown session", w.check(unknown))
	unavailable(t, "unknown session on a public route that passes identity",
		w.check(call("public", "GET", "/", "cookie: _pomerium="+carol)))
	if r := w.check(call("open", "GET", "/", "cookie: _pomerium="+carol)); !r.allowed {
		t.Errorf("a route that needs no session: status %d", r.status)
	}
	if r := w.check(call("app", "GET", "/")); r.status != 302 {
		t.Errorf("nobody, about whom the store need not be asked: status %d, want 302", r.status)
	}

	w.clock.Advance(time.Minute)
	if r := w.check(known); !r.allowed {
		t.Errorf("known session within the grace: status %d", r.status)
	}
	w.clock.Advance(time.Second)
	unavailable(t, "known session beyond the grace", w.check(known))

	w.store.Heal()
	w.until("both get in again", func() bool { return w.check(known).allowed && w.check(unknown).allowed })
	w.until("the feed is back", func() bool { return strings.Contains(w.log.String(), "databroker in reach again") })
}

// unavailable checks for an honest 503: nobody is let in, sent to sign in, or
// signed out.
func unavailable(t *testing.T, what string, r reply) {
	t.Helper()
	if r.allowed || r.status != 503 || r.header("retry-after") == "" {
		t.Errorf("%s: status %d, retry-after %q, want 503", what, r.status, r.header("retry-after"))
	}
	if len(r.set["set-cookie"])+len(r.set["location"]) > 0 {
		t.Errorf("%s: an outage touches cookies or redirects: %v", what, r.set)
	}
}

func TestOutageOfAGraceOfNothing(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Databroker.OutageGrace = 0 }, nil)
	w.follow()
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	w.until("alice gets in", func() bool { return w.check(alice).allowed })
	w.store.Break(errDown)
	w.clock.Advance(2 * time.Second)
	unavailable(t, "known session", w.check(alice))
}

func TestRevocationIsSeenWithinASecond(t *testing.T) {
	w := newWorld(t, nil, nil)
	w.follow()
	ctx := context.Background()
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	api := call("api", "GET", "/", "authorization: Bearer Pomerium-"+w.account("acct", "api-access", time.Time{}))
	for range 3 {
		if !w.check(alice).allowed || !w.check(api).allowed {
			t.Fatal("both should get in")
		}
	}
	start := time.Now()
	if err := w.store.DeleteSession(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	if err := w.store.DeleteServiceAccount(ctx, "acct"); err != nil {
		t.Fatal(err)
	}
	w.until("neither gets in", func() bool { return !w.check(alice).allowed && !w.check(api).allowed })
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %s", d)
	}
}

func TestChangedClaimsReplaceTheOldOnes(t *testing.T) {
	w := newWorld(t, nil, nil)
	w.follow()
	ctx := context.Background()
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	if !w.check(alice).allowed {
		t.Fatal("alice should get in")
	}
	s, err := w.store.Session(ctx, "alice")
	if err != nil {
		t.Fatal(err)
	}
	s.Claims["email"] = "alice@elsewhere.org"
	if err := w.store.PutSession(ctx, s); err != nil {
		t.Fatal(err)
	}
	w.until("alice is refused", func() bool { return w.check(alice).status == 403 })
}

func TestWithoutTheFeedNothingIsRemembered(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	if !w.check(alice).allowed {
		t.Fatal("alice should get in")
	}
	if err := w.store.DeleteSession(context.Background(), "alice"); err != nil {
		t.Fatal(err)
	}
	if r := w.check(alice); r.allowed {
		t.Error("a revoked session gets in")
	}
}

// stalledStore holds each session read between reading and answering.
type stalledStore struct {
	databroker.Store
	// reading gets a channel for each read; closing it lets the answer go.
	reading chan chan struct{}
	// deaf ignores the end of the context.
	deaf bool
}

func (s *stalledStore) Session(ctx context.Context, id string) (*databroker.Session, error) {
	got, err := s.Store.Session(ctx, id)
	release := make(chan struct{})
	s.reading <- release
	if s.deaf {
		<-release
		return got, err
	}
	select {
	case <-release:
		return got, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newStalled(t *testing.T) (*world, *stalledStore) {
	w := newWorld(t, nil, nil)
	s := &stalledStore{Store: w.store, reading: make(chan chan struct{})}
	w.server.identities.store = s
	return w, s
}

func TestAnAnswerOvertakenByAChangeIsNotRemembered(t *testing.T) {
	w, s := newStalled(t)
	s.deaf = true
	w.follow()
	ids := w.server.identities
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	var early, late sync.WaitGroup
	early.Go(func() { w.check(alice) })
	old := <-s.reading // the old record is on its way
	ids.mu.Lock()
	f := ids.flights["salice"]
	ids.mu.Unlock()
	if err := w.store.DeleteSession(context.Background(), "alice"); err != nil {
		t.Fatal(err)
	}
	w.until("the feed has told", func() bool {
		ids.mu.Lock()
		defer ids.mu.Unlock()
		return f == nil || f.stale
	})
	// Whoever asks now does not share the old question.
	var r reply
	late.Go(func() { r = w.check(alice) })
	close(<-s.reading)
	late.Wait()
	if r.allowed {
		t.Error("a request after the revocation got in")
	}
	close(old)
	early.Wait()
	if who, ok := ids.known.get("salice"); ok && !who.missing {
		t.Error("the old record is remembered")
	}
}

func TestAStalledStoreNeverLetsAnyoneIn(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		w, s := newStalled(t)
		s.deaf = deaf
		alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		replies := make([]reply, 4)
		for i := range replies {
			wg.Go(func() { replies[i] = w.checkCtx(ctx, alice) })
		}
		release := <-s.reading
		cancel()
		if deaf {
			close(release)
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		for waiting := true; waiting; {
			select {
			case release := <-s.reading: // one that was no waiter asks for itself
				close(release)
			case <-done:
				waiting = false
			}
		}
		for _, r := range replies {
			unavailable(t, "stalled store", r)
		}
	}
}

func TestWaitersOutliveWhoAskedFirst(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	ids := w.server.identities
	f := &flight{done: make(chan struct{}), err: context.Canceled, abandoned: true}
	ids.flights["salice"] = f
	var wg sync.WaitGroup
	var r reply
	wg.Go(func() { r = w.check(alice) })
	f.done <- struct{}{} // alice waits for that question, whose asker went away
	ids.mu.Lock()
	delete(ids.flights, "salice")
	ids.mu.Unlock()
	close(f.done)
	wg.Wait()
	if !r.allowed {
		t.Errorf("who stayed: status %d", r.status)
	}
}

type panickyStore struct{ databroker.Store }

func (panickyStore) Session(context.Context, string) (*databroker.Session, error) { panic("boom") }

func TestAPanicIsUnavailable(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := w.session("alice", "alice@example.com", nil)
	w.server.identities.store = panickyStore{w.store}
	for range 2 { // and nothing is left locked
		unavailable(t, "panic", w.check(call("app", "GET", "/", "cookie: _pomerium="+alice)))
	}
	if !strings.Contains(w.log.String(), "authorize check panicked") {
		t.Error("the panic is not logged")
	}
}

func TestAnEndedContextIsUnavailable(t *testing.T) {
	w := newWorld(t, nil, nil)
	w.follow()
	alice := w.session("alice", "alice@example.com", nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, route := range []string{"app", "open"} {
		m := call(route, "GET", "/", "cookie: _pomerium="+alice)
		unavailable(t, route+" cold", w.checkCtx(ctx, m))
		if !w.check(m).allowed {
			t.Fatalf("%s: alice should get in", route)
		}
		unavailable(t, route+" warm", w.checkCtx(ctx, m))
	}
}

// truncatedStore says once that changes are no longer kept.
type truncatedStore struct {
	databroker.Store
	mu   sync.Mutex
	once bool
}

func (s *truncatedStore) Changes(ctx context.Context, after uint64) ([]databroker.Change, error) {
	s.mu.Lock()
	truncated := s.once
	s.once = false
	s.mu.Unlock()
	if truncated {
		return nil, databroker.ErrTruncated
	}
	return s.Store.Changes(ctx, after)
}

func TestATruncatedFeedForgetsEverything(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := call("app", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
	s := &truncatedStore{Store: w.store}
	w.server.identities.store = s
	w.follow()
	w.until("alice is remembered", func() bool { w.check(alice); return w.server.Stats().Identities == 1 })
	s.mu.Lock()
	s.once = true
	s.mu.Unlock()
	w.until("alice is forgotten", func() bool { return w.server.Stats().Identities == 0 })
}

// muteStore has changes and does not tell them.
type muteStore struct {
	databroker.Store
	sequence atomic.Uint64
}

func (s *muteStore) Changes(ctx context.Context, _ uint64) ([]databroker.Change, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (*muteStore) Records(context.Context, string) ([]*databroker.Record, error) { return nil, nil }

func (s *muteStore) Sequence(context.Context) (uint64, error) {
	return s.sequence.Load(), nil
}

func TestAFeedThatTellsNothingIsNotTrusted(t *testing.T) {
	ctx := context.Background()
	s := &muteStore{}
	s.sequence.Store(7)
	c := &clock{}
	c.Set(noon)
	ids := newIdentities(s, c.Now, new(atomic.Uint64))
	f := feed{store: s, identities: ids, log: slog.New(slog.DiscardHandler)}
	step := func() {
		t.Helper()
		if err := f.step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	step()
	c.Advance(time.Minute)
	step()
	if !ids.trusted(time.Second) {
		t.Fatal("a store without changes should be in contact")
	}
	for name, sequence := range map[string]uint64{"behind": 9, "put back": 3} {
		f.began, f.after, f.behind = true, 7, false
		s.sequence.Store(sequence)
		c.Advance(time.Minute)
		ids.known.put("salice", &identity{})
		step()
		if ids.trusted(time.Second) {
			t.Errorf("%s: trusted at once", name)
		}
		step()
		step()
		if ids.known.len() != 0 {
			t.Errorf("%s: what was known is still believed", name)
		}
	}
}

func TestCacheStaysBounded(t *testing.T) {
	c := newCache[int](100)
	for i := range 1000 {
		key := time.Duration(i).String()
		c.put(key, i)
		if v, ok := c.get(key); !ok || v != i {
			t.Fatalf("%s: %d, %v", key, v, ok)
		}
		c.get("999999h") // a miss changes nothing
		if i%7 == 0 {
			c.drop(key)
		}
		n := 0
		c.entries.Range(func(any, any) bool { n++; return true })
		if n != c.len() || n > 100 {
			t.Fatalf("%d entries, %d in the ring", n, c.len())
		}
	}
	var m memo[int, int]
	for i := range 1000 {
		m.put(i, i)
		if v, ok := m.get(i); !ok || v != i {
			t.Fatalf("memo lost %d", i)
		}
	}
	if n := len(*m.p.Load()); n > memoLimit {
		t.Errorf("memo holds %d", n)
	}
}
