package authz

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// slowStore answers about the records of some types only when it is told to, or not.
type slowStore struct {
	databroker.Store
	mu   sync.Mutex
	held map[string]chan struct{}
	err  map[string]error
}

func newSlow(w *world) *slowStore {
	s := &slowStore{Store: w.store, held: map[string]chan struct{}{}, err: map[string]error{}}
	w.server.identities.store, w.server.identities.records.store = s, s
	return s
}

// hold has questions about a type wait until the result is called.
func (s *slowStore) hold(typ string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make(chan struct{})
	s.held[typ] = held
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, typ)
		close(held)
	})
}

func (s *slowStore) fail(typ string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err[typ] = err
}

func (s *slowStore) wait(ctx context.Context, typ string) error {
	s.mu.Lock()
	held, err := s.held[typ], s.err[typ]
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (s *slowStore) Record(ctx context.Context, typ, id string) (*databroker.Record, error) {
	if err := s.wait(ctx, typ); err != nil {
		return nil, err
	}
	return s.Store.Record(ctx, typ, id)
}

func (s *slowStore) Records(ctx context.Context, typ string) ([]*databroker.Record, error) {
	if err := s.wait(ctx, typ); err != nil {
		return nil, err
	}
	return s.Store.Records(ctx, typ)
}

// TestABigTypeHoldsUpNothingElse: while one type of records is being read, for
// however long, people get in, revocations are seen, and so are other records.
func TestABigTypeHoldsUpNothingElse(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{
		"employees": {employeePolicy, false},
		"device":    {"allow: {and: [{device: {approved: true}}]}", false},
	})
	s := newSlow(w)
	release := s.hold("employee")
	defer release()
	alice, bob := w.session("alice", "alice@example.com", nil), w.session("bob", "bob@example.com", nil)
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	if got := w.asks("app", alice); got != 200 {
		t.Errorf("before there is a feed: status %d", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.server.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	defer running.Wait()
	defer cancel()
	w.until("the feed is in contact", func() bool { return w.server.identities.contact.Load() != 0 })
	if a, b := w.asks("app", alice), w.asks("app", bob); a != 200 || b != 200 {
		t.Errorf("while the type is first read: status %d and %d", a, b)
	}
	short, done := context.WithTimeout(ctx, 20*time.Millisecond)
	unavailable(t, "a policy that needs the type", w.checkCtx(short, call("employees", "GET", "/", "cookie: _pomerium="+alice)))
	done()
	release()
	w.until("the type is read", func() bool {
		return w.asks("employees", alice) == 200 && w.server.identities.records.behind.Load() == nil
	})

	release = s.hold("employee")
	defer release()
	var many []*databroker.Record
	for i := range 2000 {
		many = append(many, &databroker.Record{Type: "employee", ID: fmt.Sprint("user-", i), Fields: map[string]any{"team": "red"}})
	}
	if err := w.store.ReplaceRecords(ctx, "employee", many); err != nil {
		t.Fatal(err)
	}
	if err := w.store.DeleteSession(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	w.until("a revocation behind many records is seen", func() bool { return w.asks("app", bob) == 302 })
	w.device("alice", "key-1", "admin")
	w.until("a device behind them is seen", func() bool { return w.asks("device", alice) == 200 })
	if got := w.asks("employees", alice); got != 200 {
		t.Errorf("what was read before counts for a moment: status %d", got)
	}
	w.clock.Advance(w.config.Databroker.OutageGrace + time.Hour)
	w.until("the feed goes on", func() bool { return w.asks("app", alice) == 200 && w.server.identities.trusted(time.Second) })
	short, done = context.WithTimeout(ctx, 20*time.Millisecond)
	unavailable(t, "but not beyond the grace", w.checkCtx(short, call("employees", "GET", "/", "cookie: _pomerium="+alice)))
	done()
	release()
	w.until("the records are taken over", func() bool { return w.asks("employees", alice) == 403 })
}

// TestRecordsThatCannotBeRead: sessions made of them are used for the grace at most,
// and nothing that changed is forgotten.
func TestRecordsThatCannotBeRead(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"staff": {staffPolicy, false}})
	s := newSlow(w)
	w.record(policy.RecordDirectoryUser, "user-alice", map[string]any{"group_ids": []any{"staff"}})
	alice := w.session("alice", "alice@example.com", nil)
	account := w.account("acct", "api-access", time.Time{})
	w.follow()
	w.until("alice is remembered", func() bool {
		_, ok := w.server.identities.known.get("salice")
		return w.asks("staff", alice) == 200 && ok
	})
	s.fail(policy.RecordDirectoryUser, errDown)
	w.record(policy.RecordDirectoryUser, "user-alice", map[string]any{"group_ids": []any{"7"}})
	w.until("it is known to be behind", func() bool { return strings.Contains(w.log.String(), "records cannot be read") })
	w.record(policy.RecordDirectoryUser, "user-bob", map[string]any{"group_ids": []any{"staff"}})
	if got := w.asks("staff", alice); got != 200 {
		t.Errorf("within the grace: status %d", got)
	}
	w.clock.Advance(w.config.Databroker.OutageGrace + time.Second)
	w.until("the feed goes on", func() bool { return w.server.identities.trusted(time.Second) })
	unavailable(t, "beyond the grace", w.check(call("staff", "GET", "/", "cookie: _pomerium="+alice)))
	if r := w.check(call("api", "GET", "/", "x-pomerium-authorization: "+account)); !r.allowed {
		t.Errorf("an account, which is made of no records: status %d", r.status)
	}
	s.fail(policy.RecordDirectoryUser, nil)
	w.until("the change is seen", func() bool { return w.asks("staff", alice) == 403 })
	w.until("the other too", func() bool {
		_, ok := w.server.identities.records.current.Load().Find(policy.RecordDirectoryUser, "user-bob")
		return ok && w.server.identities.records.behind.Load() == nil
	})
	if !strings.Contains(w.log.String(), "records can be read again") {
		t.Error("that it is over is not logged")
	}
}

// TestOneChangeIndexesOneType holds that what did not change is not read or indexed
// anew, and that a set, once had, stays as it is.
func TestOneChangeIndexesOneType(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{
		"employees": {employeePolicy, false},
		"networks":  {"allow: {and: [{record: {type: network, by: request.ip, field: site, is: hq}}]}", false},
	})
	s := &countingStore{Store: w.store}
	c := w.server.identities.records
	w.server.identities.store, c.store = s, s
	f := feed{store: s, identities: w.server.identities, log: w.server.log}
	step := func() {
		t.Helper()
		if err := f.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.settle(t)
	}
	step()
	if n := s.all.Load(); n != 5 {
		t.Errorf("%d types were read, want 5", n)
	}
	w.record("network", "10.0.0.0/8", map[string]any{"site": "hq"})
	step()
	before, networks := c.current.Load(), c.current.Load().byType["network"]
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	step()
	after := c.current.Load()
	if after.byType["network"] != networks || after.byType["employee"] == before.byType["employee"] {
		t.Error("the wrong type was indexed anew")
	}
	if one, all := s.one.Load(), s.all.Load(); one != 2 || all != 5 {
		t.Errorf("two changes took %d readings of a record and %d of a type", one, all-5)
	}
	if _, ok := before.Find("employee", "user-alice"); ok {
		t.Error("a set changed under those who look at it")
	}
	if _, ok := after.Find("employee", "user-alice"); !ok {
		t.Error("the change is not there")
	}
	// What nobody looks at any more is not kept: it would not be kept up to date.
	w.config.Routes = w.config.Routes[:0]
	w.publish()
	w.server.Retire()
	if have := c.current.Load().byType; have["employee"] != nil || have[policy.RecordDevice] == nil {
		t.Errorf("kept %d types", len(have))
	}
}

// TestAReadingOvertakenByAChangeIsNotKept: the records that a check has read itself
// are not published over those that are newer.
func TestAReadingOvertakenByAChangeIsNotKept(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"employees": {employeePolicy, false}})
	s := newSlow(w)
	c := w.server.identities.records
	release := s.hold("employee")
	var reading sync.WaitGroup
	alice := w.session("alice", "alice@example.com", nil)
	reading.Go(func() { w.asks("employees", alice) })
	w.until("a check reads the type", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.flights["employee"] != nil
	})
	c.changed("employee", map[string]bool{"user-alice": true}, noon)
	release()
	reading.Wait()
	if c.current.Load().byType["employee"] != nil {
		t.Error("what was read before the change is kept")
	}
	c.settle(t)
	if c.current.Load().byType["employee"] == nil || c.behind.Load() != nil {
		t.Error("the type is still behind")
	}
}
