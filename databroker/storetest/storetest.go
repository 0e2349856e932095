// Package storetest holds every back end of databroker.Store to the contract:
// one suite, run over each of them.
package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/google/go-cmp/cmp"
)

// What the stores under test must be opened with: how many changes they keep and
// how many tickets.
const (
	KeepChanges = 1500
	MaxTickets  = 50
)

// Reopener is a store that lasts. Where a store is one, the suite reopens it
// between what it writes and what it then expects to read.
type Reopener interface {
	databroker.Store
	// Reopen closes the store and returns what was in it.
	Reopen(t *testing.T) databroker.Store
}

// Pruner is a store that removes what expired long ago. Every back end is one.
type Pruner interface {
	Prune(ctx context.Context) (removed int, err error)
}

// Run holds stores to the contract. Each call of open returns an empty store
// that keeps KeepChanges changes and MaxTickets tickets and goes by the real clock; open sees to it
// that the store is closed after the test.
func Run(t *testing.T, open func(t *testing.T) databroker.Store) {
	t.Helper()
	for _, part := range []struct {
		name string
		test func(t *testing.T, s databroker.Store)
	}{
		{"a session is written, replaced and deleted", testSession},
		{"claims come back as JSON values", testClaims},
		{"times come back in UTC, cut to the microsecond", testTimes},
		{"records are copied in and out", testCopies},
		{"a write replaces the version that was read", testVersions},
		{"sessions are listed oldest first", testSessions},
		{"sessions are found by what the provider calls them", testProviderSessions},
		{"a session says when it was last used", testTouchSessions},
		{"a session says how long it went unused at most", testLongestGap},
		{"many sessions are touched at once", testTouchManySessions},
		{"a revoked session is gone and its user marked", testRevokeSession},
		{"a revoked user has no sessions", testRevokeUser},
		{"nobody but the store says when a user was revoked", testRevokedAt},
		{"a refresh brings no revoked session back", testRevokedSessionStaysGone},
		{"a revocation misses no older session", testRevokeRace},
		{"a revocation ends a session amidst its refreshes", testRevokeRefreshRace},
		{"a user is written and replaced", testUser},
		{"a service account is created and deleted", testServiceAccount},
		{"a user and a service account never share an id", testSharedID},
		{"a record of a type is written over and deleted", testRecord},
		{"type and id name a record together", testRecordNames},
		{"fields come back as JSON values", testFields},
		{"a record knows when it was written", testRecordTimes},
		{"records of a type are copied in and out", testRecordCopies},
		{"a session keeps its devices", testDevices},
		{"the records of a type are replaced", testReplaceRecords},
		{"to replace records with the same is no change", testReplaceRecordsWithTheSame},
		{"a replacement with one bad record is refused whole", testReplaceRecordsRefused},
		{"a replacement may exceed the changes that are kept", testReplaceRecordsBeyondTheFeed},
		{"a reader sees a replacement whole", testReplaceRecordsAtOnce},
		{"a session out of bounds is refused", testSessionBounds},
		{"a record out of bounds is refused", testBounds},
		{"a ticket is written, replaced and taken", testTicket},
		{"an expired ticket is none", testExpiredTicket},
		{"a version of a ticket is given once", testTicketVersions},
		{"tickets are copied in and out", testTicketCopies},
		{"tickets are bounded", testTicketsFull},
		{"one of many takes a ticket, one of many makes it", testTicketRace},
		{"tickets and leases are no changes", testTicketsAreNoChanges},
		{"a lease has one owner until it ends", testLease},
		{"a lease runs out", testLeaseRunsOut},
		{"one of many gets a lease", testLeaseRace},
		{"what expired long ago is pruned", testPrune},
		{"tickets and leases that are over are pruned", testPruneTickets},
		{"prune is bounded", testPruneBounded},
		{"every write is a change", testChanges},
		{"a refused write is no change", testNoChange},
		{"changes come a bounded number at once", testChangesBounded},
		{"changes that are no longer kept are truncated", testTruncated},
		{"a reader waits for the next change", testWait},
		{"a context ends a wait", testWaitCancelled},
		{"closing ends a wait", testWaitClosed},
		{"one of many writers wins", testRace},
		{"one of user and service account wins", testSharedIDRace},
		{"a reader sees every change in order", testFollow},
		{"a cancelled call does nothing", testCancelled},
		{"a write that is cancelled amidst is done or not done", testCancelledAmidst},
		{"a closed store refuses every call", testClosed},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
	}
}

// start is when the records under test were made.
func start() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC) }

func newSession(id string) *databroker.Session {
	return &databroker.Session{
		ID:     id,
		UserID: "alice",
		IDPID:  "idp-1",
		Claims: map[string]any{"email": "alice@example.com", "groups": []any{"staff", "ops"}},
		Tokens: databroker.Tokens{
			AccessToken: "access-" + id, RefreshToken: "refresh-" + id, TokenType: "Bearer", IDToken: "id-" + id,
			ExpiresAt: start().Add(time.Hour), IDTokenExpiresAt: start().Add(time.Minute),
		},
		ProviderSessionID: "sid-" + id,
		Origin:            databroker.Origin{Method: "browser", UserAgent: "Agent \u00c4/1.0", Address: "2001:db8::1"},
		RefreshHash:       []byte("\x00digest\xff"),
		PriorRefreshHash:  []byte("the digest before"),
		RotatedAt:         start().Add(2 * time.Minute),
		CreatedAt:         start(),
		RefreshedAt:       start().Add(3 * time.Minute),
		AccessedAt:        start().Add(4 * time.Minute),
		ExpiresAt:         start().Add(14 * time.Hour),
	}
}

func newUser(id string) *databroker.User {
	return &databroker.User{
		ID: id, Email: id + "@example.com", Name: "Alice \u00c4rm",
		CreatedAt: start(), SignedInAt: start().Add(time.Minute),
	}
}

func newAccount(id string) *databroker.ServiceAccount {
	return &databroker.ServiceAccount{
		ID: id, UserID: id + "-user", CreatedAt: start(), ExpiresAt: start().Add(24 * time.Hour),
	}
}

// newTicket returns one that is good for an hour, as the store counts it.
func newTicket(id string) *databroker.Ticket {
	return &databroker.Ticket{ID: id, Data: []byte("\x00data of " + id + "\xff"), ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)}
}

// again returns s, reopened if it lasts.
func again(t *testing.T, s databroker.Store) databroker.Store {
	t.Helper()
	if r, ok := s.(Reopener); ok {
		return r.Reopen(t)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func wantEqual(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func wantSession(t *testing.T, s databroker.Store, want *databroker.Session) {
	t.Helper()
	got, err := s.Session(t.Context(), want.ID)
	must(t, err)
	wantEqual(t, "session "+want.ID, got, want)
}
