package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

func testChanges(t *testing.T, s databroker.Store) {
	sequence, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence of an empty store", sequence, uint64(0))

	session, user, account := newSession("s1"), newUser("u1"), newAccount("a1")
	must(t, s.PutSession(t.Context(), session))
	must(t, s.PutUser(t.Context(), user))
	must(t, s.CreateServiceAccount(t.Context(), account))
	s = again(t, s)
	must(t, s.PutSession(t.Context(), session))
	must(t, s.DeleteSession(t.Context(), "s1"))
	must(t, s.DeleteServiceAccount(t.Context(), "a1"))
	must(t, s.PutRecord(t.Context(), newRecord("r1")))
	must(t, s.DeleteRecord(t.Context(), employee, "r1"))
	s = again(t, s)

	all := []databroker.Change{
		{Sequence: 1, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: 2, Kind: databroker.KindUser, ID: "u1"},
		{Sequence: 3, Kind: databroker.KindServiceAccount, ID: "a1"},
		{Sequence: 4, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: 5, Kind: databroker.KindSession, ID: "s1", Deleted: true},
		{Sequence: 6, Kind: databroker.KindServiceAccount, ID: "a1", Deleted: true},
		{Sequence: 7, Kind: databroker.KindRecord, Type: employee, ID: "r1"},
		{Sequence: 8, Kind: databroker.KindRecord, Type: employee, ID: "r1", Deleted: true},
	}
	for after := len(all) - 1; after >= 0; after-- {
		got, err := s.Changes(t.Context(), uint64(after))
		must(t, err)
		wantEqual(t, fmt.Sprintf("changes after %d", after), got, all[after:])
		got[0].ID = "overwritten" // ours: the next reader must not see it
	}
	sequence, err = s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence", sequence, uint64(len(all)))
	_, err = s.Changes(t.Context(), sequence+1)
	wantError(t, "changes after a number of another store", err, databroker.ErrTruncated)
}

func testNoChange(t *testing.T, s databroker.Store) {
	must(t, s.PutSession(t.Context(), newSession("s1")))
	must(t, s.PutUser(t.Context(), newUser("u1")))
	must(t, s.CreateServiceAccount(t.Context(), newAccount("a1")))
	before, err := s.Sequence(t.Context())
	must(t, err)

	inherits := newAccount("a2")
	inherits.UserID = "u1"
	for what, got := range map[string]error{
		"create a session that exists":  s.PutSession(t.Context(), newSession("s1")),
		"create a user that exists":     s.PutUser(t.Context(), newUser("u1")),
		"create an account that exists": s.CreateServiceAccount(t.Context(), newAccount("a1")),
		"create an account of a user":   s.CreateServiceAccount(t.Context(), inherits),
		"sign in as an account":         s.PutUser(t.Context(), newUser("a1-user")),
	} {
		wantError(t, what, got, databroker.ErrConflict)
	}
	wantError(t, "delete an unknown session", s.DeleteSession(t.Context(), "no"), databroker.ErrNotFound)
	wantError(t, "delete an unknown account", s.DeleteServiceAccount(t.Context(), "no"), databroker.ErrNotFound)
	wantError(t, "delete an unknown record", s.DeleteRecord(t.Context(), employee, "no"), databroker.ErrNotFound)

	s = again(t, s)
	after, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence", after, before)
	session := newSession("s2")
	must(t, s.PutSession(t.Context(), session))
	wantEqual(t, "version of the next write", session.Version, before+1)
}

// write makes n changes.
func write(t *testing.T, s databroker.Store, n int) {
	t.Helper()
	user := newUser("busy")
	got, err := s.User(t.Context(), user.ID)
	if err == nil {
		user = got
	}
	for range n {
		must(t, s.PutUser(t.Context(), user))
	}
}

func testChangesBounded(t *testing.T, s databroker.Store) {
	const n = 1200
	write(t, s, n)
	s = again(t, s)
	var seen []databroker.Change
	for len(seen) < n {
		changes, err := s.Changes(t.Context(), uint64(len(seen)))
		must(t, err)
		if len(changes) >= n {
			t.Fatalf("got %d changes at once", len(changes))
		}
		seen = append(seen, changes...)
	}
	for i, c := range seen {
		if c.Sequence != uint64(i)+1 {
			t.Fatalf("change %d has the number %d", i, c.Sequence)
		}
	}
}

func testTruncated(t *testing.T, s databroker.Store) {
	write(t, s, KeepChanges)
	if _, err := s.Changes(t.Context(), 0); err != nil {
		t.Errorf("%d changes are too many to keep: %v", KeepChanges, err)
	}
	write(t, s, 2)
	s = again(t, s)
	_, err := s.Changes(t.Context(), 0)
	wantError(t, "changes after 0", err, databroker.ErrTruncated)
	_, err = s.Changes(t.Context(), 1)
	wantError(t, "changes after 1", err, databroker.ErrTruncated)
	changes, err := s.Changes(t.Context(), 2)
	must(t, err)
	wantEqual(t, "first change that is kept", changes[0].Sequence, uint64(3))

	sequence, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence", sequence, uint64(KeepChanges+2))
	write(t, s, 1)
	changes, err = s.Changes(t.Context(), sequence)
	must(t, err)
	wantEqual(t, "changes after Sequence", changes,
		[]databroker.Change{{Sequence: sequence + 1, Kind: databroker.KindUser, ID: "busy"}})
}

func testWait(t *testing.T, s databroker.Store) {
	write(t, s, 1)
	const readers = 20
	var group errgroup.Group
	for range readers {
		group.Go(func() error {
			got, err := s.Changes(t.Context(), 1)
			if err == nil && (len(got) == 0 || got[0].Sequence != 2) {
				err = fmt.Errorf("got %v", got)
			}
			return err
		})
	}
	write(t, s, 1)
	must(t, group.Wait())
}

func testWaitCancelled(t *testing.T, s databroker.Store) {
	write(t, s, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	got, err := s.Changes(ctx, 1)
	if !errors.Is(err, context.DeadlineExceeded) || len(got) != 0 {
		t.Errorf("got %v, %v, want %v", got, err, context.DeadlineExceeded)
	}
}

func testWaitClosed(t *testing.T, s databroker.Store) {
	write(t, s, 1)
	var group errgroup.Group
	failed := make(chan error, 1)
	group.Go(func() error {
		_, err := s.Changes(t.Context(), 1)
		failed <- err
		return nil
	})
	must(t, s.Close())
	must(t, group.Wait())
	if err := <-failed; err == nil || errors.Is(err, databroker.ErrTruncated) {
		t.Errorf("got error %v, want that the store is closed", err)
	}
}

func testRace(t *testing.T, s databroker.Store) {
	const writers, rounds = 16, 10
	session := newSession("s1")
	for round := range rounds {
		var group errgroup.Group
		won := make(chan databroker.Session, writers)
		for writer := range writers {
			group.Go(func() error {
				mine := *session
				mine.Claims = map[string]any{"round": round, "writer": writer}
				err := s.PutSession(t.Context(), &mine)
				if err == nil {
					won <- mine
				}
				if errors.Is(err, databroker.ErrConflict) {
					return nil
				}
				return err
			})
		}
		must(t, group.Wait())
		if len(won) != 1 {
			t.Fatalf("round %d: %d writers won", round, len(won))
		}
		winner := <-won
		var err error
		session, err = s.Session(t.Context(), "s1")
		must(t, err)
		wantEqual(t, "writer", session.Claims["writer"], any(float64(winner.Claims["writer"].(int))))
		wantEqual(t, "version", session.Version, winner.Version)
	}
}

func testSharedIDRace(t *testing.T, s databroker.Store) {
	for round := range 20 {
		id := fmt.Sprintf("id-%d", round)
		account := newAccount("account-" + id)
		account.UserID = id
		var group errgroup.Group
		var asUser, asAccount error
		group.Go(func() error { asUser = s.PutUser(t.Context(), newUser(id)); return nil })
		group.Go(func() error { asAccount = s.CreateServiceAccount(t.Context(), account); return nil })
		must(t, group.Wait())
		if (asUser == nil) == (asAccount == nil) {
			t.Errorf("user: %v, service account: %v, want that one of them is made", asUser, asAccount)
		}
		for _, err := range []error{asUser, asAccount} {
			if err != nil {
				wantError(t, "the loser", err, databroker.ErrConflict)
			}
		}
	}
}

func testFollow(t *testing.T, s databroker.Store) {
	const writers, writes = 8, 60 // each write is followed by a replacement and some by a deletion
	group, ctx := errgroup.WithContext(t.Context())

	// The reader keeps copies as authz does: by reading what a change names.
	copies := make(map[string]uint64)
	group.Go(func() error {
		var after uint64
		for after < writers*writes*3 {
			changes, err := s.Changes(ctx, after)
			if err != nil {
				return err
			}
			for _, c := range changes {
				if after++; c.Sequence != after {
					return fmt.Errorf("change %d came after %d", c.Sequence, after-1)
				}
				session, err := s.Session(ctx, c.ID)
				switch {
				case errors.Is(err, databroker.ErrNotFound):
					delete(copies, c.ID)
				case err != nil:
					return err
				case session.Version < c.Sequence && !c.Deleted:
					return fmt.Errorf("change %d was announced before it could be read", c.Sequence)
				default:
					copies[c.ID] = session.Version
				}
			}
		}
		return nil
	})
	for writer := range writers {
		group.Go(func() error {
			for i := range writes {
				session := newSession(fmt.Sprintf("s-%d-%d", writer, i))
				if err := s.PutSession(ctx, session); err != nil {
					return err
				}
				if err := s.PutSession(ctx, session); err != nil {
					return err
				}
				last := func() error { return s.PutSession(ctx, session) }
				if i%2 == 0 {
					last = func() error { return s.DeleteSession(ctx, session.ID) }
				}
				if err := last(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, group.Wait())

	want := make(map[string]uint64)
	s = again(t, s)
	sessions, err := s.Sessions(t.Context(), "")
	must(t, err)
	for _, session := range sessions {
		want[session.ID] = session.Version
	}
	wantEqual(t, "number of sessions", len(want), writers*writes/2)
	wantEqual(t, "what the reader knows in the end", copies, want)
}

// everyCall calls every method but Close, in a way that succeeds on a store
// that has the records named "old".
func everyCall(ctx context.Context, s databroker.Store) map[string]error {
	calls := make(map[string]error)
	_, calls["Session"] = s.Session(ctx, "old")
	calls["PutSession"] = s.PutSession(ctx, newSession("new"))
	calls["DeleteSession"] = s.DeleteSession(ctx, "old")
	_, calls["Sessions"] = s.Sessions(ctx, "")
	_, calls["ProviderSessions"] = s.ProviderSessions(ctx, "idp-1", "sid")
	calls["RevokeSession"] = s.RevokeSession(ctx, "older")
	_, calls["RevokeUser"] = s.RevokeUser(ctx, "old", "")
	calls["TouchSessions"] = s.TouchSessions(ctx, map[string]databroker.Access{"new": {At: start()}})
	_, calls["User"] = s.User(ctx, "old")
	calls["PutUser"] = s.PutUser(ctx, newUser("new"))
	_, calls["ServiceAccount"] = s.ServiceAccount(ctx, "old")
	calls["CreateServiceAccount"] = s.CreateServiceAccount(ctx, newAccount("new"))
	calls["DeleteServiceAccount"] = s.DeleteServiceAccount(ctx, "old")
	_, calls["ServiceAccounts"] = s.ServiceAccounts(ctx)
	_, calls["Record"] = s.Record(ctx, employee, "old")
	calls["PutRecord"] = s.PutRecord(ctx, newRecord("new"))
	calls["DeleteRecord"] = s.DeleteRecord(ctx, employee, "old")
	_, calls["Records"] = s.Records(ctx, employee)
	calls["ReplaceRecords"] = s.ReplaceRecords(ctx, employee, []*databroker.Record{newRecord("newer")})
	_, calls["Ticket"] = s.Ticket(ctx, "old")
	calls["PutTicket"] = s.PutTicket(ctx, newTicket("new"))
	_, calls["TakeTicket"] = s.TakeTicket(ctx, "old")
	_, calls["Lease"] = s.Lease(ctx, "lease", "owner", time.Minute)
	calls["EndLease"] = s.EndLease(ctx, "lease", "owner")
	_, calls["Sequence"] = s.Sequence(ctx)
	_, calls["Changes"] = s.Changes(ctx, 0)
	_, calls["Prune"] = s.(Pruner).Prune(ctx)
	return calls
}

func putOld(t *testing.T, s databroker.Store) {
	t.Helper()
	must(t, s.PutSession(t.Context(), newSession("old")))
	must(t, s.PutSession(t.Context(), newSession("older")))
	must(t, s.PutUser(t.Context(), newUser("old")))
	must(t, s.CreateServiceAccount(t.Context(), newAccount("old")))
	must(t, s.PutRecord(t.Context(), newRecord("old")))
	must(t, s.PutTicket(t.Context(), newTicket("old")))
}

func testCancelled(t *testing.T, s databroker.Store) {
	putOld(t, s)
	before, err := s.Sequence(t.Context())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range everyCall(ctx, s) {
		wantError(t, name, err, context.Canceled)
	}
	s = again(t, s)
	after, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence", after, before)
	for name, err := range everyCall(t.Context(), s) {
		if err != nil {
			t.Errorf("%s after a cancelled one: %v", name, err)
		}
	}
}

// A caller that gives up learns what became of its write.
func testCancelledAmidst(t *testing.T, s databroker.Store) {
	session := newSession("s1")
	must(t, s.PutSession(t.Context(), session))

	// Others write all the time, so that some of ours end while they wait.
	var others errgroup.Group
	stop := make(chan struct{})
	for other := range 3 {
		others.Go(func() error {
			user := newUser(fmt.Sprintf("other-%d", other))
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				if err := s.PutUser(t.Context(), user); err != nil {
					return err
				}
			}
		})
	}
	for i := range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*30*time.Microsecond)
		before := session.Version
		session.Claims = map[string]any{"write": float64(i)}
		err := s.PutSession(ctx, session)
		cancel()
		got, readErr := s.Session(t.Context(), "s1")
		must(t, readErr)
		switch {
		case err == nil:
			wantEqual(t, "acknowledged session", got, session)
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("got error %v, want %v", err, context.DeadlineExceeded)
		default:
			wantEqual(t, "version in the store after a cancelled write", got.Version, before)
			wantEqual(t, "version in hand after a cancelled write", session.Version, before)
		}
	}
	close(stop)
	must(t, others.Wait())
	must(t, s.PutSession(t.Context(), session))
}

func testClosed(t *testing.T, s databroker.Store) {
	putOld(t, s)
	must(t, s.Close())
	for name, err := range everyCall(t.Context(), s) {
		if err == nil || errors.Is(err, databroker.ErrNotFound) || errors.Is(err, databroker.ErrConflict) || errors.Is(err, databroker.ErrTruncated) {
			t.Errorf("%s of a closed store: got error %v, want that it is closed", name, err)
		}
	}
	must(t, s.Close())
}
