package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

const (
	employeePolicy = "allow: {and: [{record: {type: employee, field: team, is: red}}]}"
	staffPolicy    = "allow: {and: [{groups: staff}]}"
)

func (w *world) asks(route, token string) int {
	w.t.Helper()
	return w.check(call(route, "GET", "/", "cookie: _pomerium="+token)).status
}

func TestRecordsFollowTheStore(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{
		"employees": {employeePolicy, false},
		"site":      {"allow: {and: [{record: {type: network, by: request.ip, field: site, is: hq}}]}", false},
	})
	w.follow()
	alice := w.session("alice", "alice@example.com", nil)
	here := from(call("site", "GET", "/"), "203.0.113.7")
	for range 2 {
		if got := w.asks("employees", alice); got != 403 {
			t.Fatalf("before there is a record: status %d", got)
		}
		if r := w.check(here); r.status != 403 {
			t.Fatalf("from an unknown network: status %d", r.status)
		}
	}
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	w.record("network", "203.0.113.0/24", map[string]any{"site": "hq"})
	w.until("the records are seen", func() bool { return w.asks("employees", alice) == 200 && w.check(here).allowed })
	w.record("employee", "user-alice", map[string]any{"team": "blue"})
	w.until("the changed record is seen", func() bool { return w.asks("employees", alice) == 403 })
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	w.until("the record is seen again", func() bool { return w.asks("employees", alice) == 200 })
	if err := w.store.DeleteRecord(context.Background(), "employee", "user-alice"); err != nil {
		t.Fatal(err)
	}
	w.until("the deleted record is gone", func() bool { return w.asks("employees", alice) == 403 })
}

func TestRecordsOfANewPolicyAreThereAtOnce(t *testing.T) {
	w := newWorld(t, nil, nil)
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	w.follow()
	alice := w.session("alice", "alice@example.com", nil)
	w.config.Routes = append(w.config.Routes, &config.Route{ID: "employees", Policy: parsePolicy(t, employeePolicy)})
	w.publish()
	if got := w.asks("employees", alice); got != 200 {
		t.Errorf("status %d", got)
	}
}

func TestDirectoryAndDevices(t *testing.T) {
	for _, following := range []bool{true, false} {
		t.Run(fmt.Sprintf("following=%v", following), func(t *testing.T) {
			w := newWorld(t, nil, map[string]routeDef{
				"staff":  {staffPolicy, true},
				"mail":   {"allow: {and: [{email: a@directory.org}]}", false},
				"device": {"allow: {and: [{device: {approved: true}}]}", false},
			})
			if following {
				w.follow()
			}
			alice := w.session("alice", "alice@example.com", map[string]any{"groups": []any{"staff"}})
			expect := func(what, route string, want int) {
				t.Helper()
				if following {
					w.until(what, func() bool { return w.asks(route, alice) == want })
				} else if got := w.asks(route, alice); got != want {
					t.Errorf("%s: status %d, want %d", what, got, want)
				}
			}
			expect("groups are the claim's", "staff", 200)
			w.record(policy.RecordDirectoryUser, "user-alice", map[string]any{"email": "a@directory.org", "group_ids": []any{"7"}})
			expect("a directory's groups replace them", "staff", 403)
			expect("its address too", "mail", 200)
			w.record(policy.RecordDirectoryUser, "user-alice", map[string]any{"group_ids": []any{"staff", "7"}})
			w.record(policy.RecordDirectoryGroup, "7", map[string]any{"name": "Engineering", "email": "eng@example.com"})
			expect("a directory without an address", "mail", 403)
			groups := func() []string {
				r := w.check(call("staff", "GET", "/", "cookie: _pomerium="+alice))
				if !r.allowed {
					return nil
				}
				return w.claims(r.header(headerAssertion)).Groups
			}
			w.until("the assertion has ids and then names", func() bool {
				return slices.Equal(groups(), []string{"staff", "7", "Engineering"})
			})
			w.record(policy.RecordDirectoryGroup, "7", map[string]any{"name": "Research"})
			w.until("a group's new name is seen", func() bool { return slices.Equal(groups(), []string{"staff", "7", "Research"}) })

			expect("no device", "device", 450)
			w.device("alice", "key-1", "")
			expect("a device that nobody approved", "device", 450)
			w.record(policy.RecordDevice, "key-1", map[string]any{"user_id": "user-alice", "approved_by": "admin"})
			expect("an approved device", "device", 200)
			w.record(policy.RecordDevice, "key-1", map[string]any{"user_id": "user-bob", "approved_by": "admin"})
			expect("somebody else's device", "device", 450)
		})
	}
}

func TestAnAccountHasNothingOfADirectory(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"staff": {"allow: {or: [{groups: staff}, {email: a@directory.org}]}", false}})
	token := w.account("acct", "bot", time.Time{})
	w.record(policy.RecordDirectoryUser, "bot", map[string]any{"email": "a@directory.org", "group_ids": []any{"staff"}})
	if got := w.asks("staff", token); got != 403 {
		t.Errorf("status %d, want 403", got)
	}
}

func TestWhenSomebodySignedIn(t *testing.T) {
	unknown := time.Time{}
	for name, tt := range map[string]struct {
		claim any
		want  time.Time
	}{
		"no claim": {nil, unknown}, "a number": {float64(noon.Unix()), noon}, "a text": {"1", unknown}, "nothing": {0.0, unknown},
		"the far future": {1e300, unknown}, "negative": {-5.0, unknown},
	} {
		got := sessionIdentity(&databroker.Session{CreatedAt: noon, Claims: map[string]any{"auth_time": tt.claim}}, &recordSet{Records: &policy.Records{}})
		if !got.principal.AuthTime.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", name, got.principal.AuthTime, tt.want)
		}
	}
}

func TestOutageOfRecords(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{
		"employees": {employeePolicy, false},
		"site":      {"allow: {and: [{record: {type: network, by: request.ip, field: site, exists: false}}]}", false},
	})
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	w.follow()
	alice := w.session("alice", "alice@example.com", nil)
	w.until("alice is remembered", func() bool {
		_, ok := w.server.identities.known.get("salice")
		return w.asks("employees", alice) == 200 && ok
	})
	w.store.Break(errDown)
	w.until("the feed has noticed", func() bool { return strings.Contains(w.log.String(), "databroker out of reach") })
	if got := w.asks("employees", alice); got != 200 {
		t.Errorf("at the start of an outage: status %d", got)
	}
	w.clock.Advance(w.config.Databroker.OutageGrace + time.Second)
	unavailable(t, "a policy about the person's records beyond the grace", w.check(call("employees", "GET", "/", "cookie: _pomerium="+alice)))
	unavailable(t, "a policy about records of nobody beyond the grace", w.check(from(call("site", "GET", "/"), "203.0.113.7")))
	if r := w.check(call("open", "GET", "/")); !r.allowed {
		t.Errorf("a policy without records: status %d", r.status)
	}
	w.store.Heal()
	w.until("it is over", func() bool { return w.asks("employees", alice) == 200 })
}

// countingStore counts the readings of records.
type countingStore struct {
	databroker.Store
	one, all atomic.Int64
}

func (s *countingStore) Record(ctx context.Context, typ, id string) (*databroker.Record, error) {
	s.one.Add(1)
	return s.Store.Record(ctx, typ, id)
}

func (s *countingStore) Records(ctx context.Context, typ string) ([]*databroker.Record, error) {
	s.all.Add(1)
	return s.Store.Records(ctx, typ)
}

func TestManyChangesAreTakenOverTogether(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"employees": {employeePolicy, false}})
	s := &countingStore{Store: w.store}
	w.server.identities.store, w.server.identities.records.store = s, s
	f := feed{store: s, identities: w.server.identities, log: w.server.log}
	ctx := context.Background()
	step := func() {
		t.Helper()
		if err := f.step(ctx); err != nil {
			t.Fatal(err)
		}
		w.server.identities.records.settle(t)
	}
	step()
	many := make([]*databroker.Record, 10_000)
	for i := range many {
		many[i] = &databroker.Record{Type: "employee", ID: fmt.Sprintf("user-%d", i), Fields: map[string]any{"team": "red"}}
	}
	if err := w.store.ReplaceRecords(ctx, "employee", many); err != nil {
		t.Fatal(err)
	}
	w.record("not-read", "x", nil)
	sequence, err := w.store.Sequence(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := w.server.identities.records.current.Load().revision
	s.one.Store(0)
	s.all.Store(0)
	for f.after < sequence {
		step()
	}
	rebuilt := w.server.identities.records.current.Load().revision - first
	if n := s.one.Load() + s.all.Load(); rebuilt > 20 || n > 20 {
		t.Errorf("10,000 changes took %d rebuilds and %d readings", rebuilt, n)
	}
	if _, ok := w.server.identities.records.current.Load().Find("employee", "user-9999"); !ok {
		t.Error("the last record is missing")
	}
	before := w.server.identities.records.current.Load()
	w.record("not-read", "y", nil)
	step()
	if w.server.identities.records.current.Load() != before {
		t.Error("a record that no policy looks at had them all indexed anew")
	}
}

func TestATruncatedFeedReloadsRecords(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"employees": {employeePolicy, false}})
	f := feed{store: w.store, identities: w.server.identities, log: w.server.log}
	ctx := context.Background()
	alice := w.session("alice", "alice@example.com", nil)
	if err := f.step(ctx); err != nil {
		t.Fatal(err)
	}
	w.server.identities.records.settle(t)
	w.record("employee", "user-alice", map[string]any{"team": "red"})
	f.began = false // as after ErrTruncated
	if got := w.asks("employees", alice); got != 403 {
		t.Fatalf("before: status %d", got)
	}
	if err := f.step(ctx); err != nil {
		t.Fatal(err)
	}
	w.server.identities.records.settle(t)
	if got := w.asks("employees", alice); got != 200 {
		t.Errorf("after: status %d", got)
	}
}

func TestAnUnchangedPolicyKeepsItsMemory(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"same": {appPolicy, false}, "moved": {"\n" + apiPolicy, false}})
	judgeOf := func(id string) *judge { return w.server.published.Load().route(id).judge }
	same, moved := judgeOf("same"), judgeOf("moved")
	if same != judgeOf("app") {
		t.Error("two routes with one policy have two memories")
	}
	if moved == judgeOf("api") {
		t.Error("policies on other lines share a memory, and would show each other's lines")
	}
	for _, r := range w.config.Routes {
		if r.ID == "moved" {
			r.Policy = parsePolicy(t, "\n\n"+apiPolicy)
		}
	}
	w.publish()
	if judgeOf("same") != same {
		t.Error("a reload lost the memory of a policy that did not change")
	}
	if judgeOf("moved") == moved {
		t.Error("a policy on another line kept its memory")
	}
}
