package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

func wantTicket(t *testing.T, s databroker.Store, want *databroker.Ticket) {
	t.Helper()
	got, err := s.Ticket(t.Context(), want.ID)
	must(t, err)
	wantEqual(t, "ticket "+want.ID, got, want)
}

func testTicket(t *testing.T, s databroker.Store) {
	_, err := s.Ticket(t.Context(), "t1")
	wantError(t, "read an unknown ticket", err, databroker.ErrNotFound)
	_, err = s.TakeTicket(t.Context(), "t1")
	wantError(t, "take an unknown ticket", err, databroker.ErrNotFound)

	ticket, other := newTicket("t1"), newTicket("t2")
	other.Data = nil
	must(t, s.PutTicket(t.Context(), ticket))
	must(t, s.PutTicket(t.Context(), other))
	if ticket.Version == 0 || other.Version == 0 {
		t.Errorf("the versions of new tickets are %d and %d", ticket.Version, other.Version)
	}
	s = again(t, s)
	wantTicket(t, s, ticket)
	wantTicket(t, s, other)
	second := newTicket("t1")
	wantError(t, "create one that exists", s.PutTicket(t.Context(), second), databroker.ErrConflict)
	wantEqual(t, "version after a conflict", second.Version, uint64(0))

	first := *ticket
	ticket.Data, ticket.ExpiresAt = []byte("approved"), ticket.ExpiresAt.Add(time.Minute)
	must(t, s.PutTicket(t.Context(), ticket))
	if ticket.Version <= first.Version {
		t.Errorf("the version went from %d to %d", first.Version, ticket.Version)
	}
	s = again(t, s)
	wantTicket(t, s, ticket)
	wantError(t, "replace an old version", s.PutTicket(t.Context(), &first), databroker.ErrConflict)
	wantTicket(t, s, ticket)

	taken, err := s.TakeTicket(t.Context(), "t1")
	must(t, err)
	wantEqual(t, "what was taken", taken, ticket)
	s = again(t, s)
	_, err = s.TakeTicket(t.Context(), "t1")
	wantError(t, "take it again", err, databroker.ErrNotFound)
	_, err = s.Ticket(t.Context(), "t1")
	wantError(t, "read what was taken", err, databroker.ErrNotFound)
	wantError(t, "replace what was taken", s.PutTicket(t.Context(), ticket), databroker.ErrConflict)
	wantTicket(t, s, other)
}

func testExpiredTicket(t *testing.T, s databroker.Store) {
	over := newTicket("t1")
	over.ExpiresAt = time.Now().Add(-time.Microsecond)
	wantNone := func() {
		t.Helper()
		_, err := s.Ticket(t.Context(), "t1")
		wantError(t, "read an expired ticket", err, databroker.ErrNotFound)
		_, err = s.TakeTicket(t.Context(), "t1")
		wantError(t, "take an expired ticket", err, databroker.ErrNotFound)
	}
	must(t, s.PutTicket(t.Context(), over))
	wantNone()
	wantError(t, "replace an expired ticket", s.PutTicket(t.Context(), over), databroker.ErrConflict)
	s = again(t, s)
	wantNone()

	next := newTicket("t1")
	must(t, s.PutTicket(t.Context(), next))
	if next.Version <= over.Version {
		t.Errorf("the version went from %d to %d", over.Version, next.Version)
	}
	wantTicket(t, s, next)
	next.ExpiresAt = over.ExpiresAt // to end it now
	must(t, s.PutTicket(t.Context(), next))
	wantNone()
}

// Who holds an old version must not replace what was made anew under its id.
func testTicketVersions(t *testing.T, s databroker.Store) {
	seen := make(map[uint64]bool)
	for range 3 {
		ticket := newTicket("t1")
		for range 2 {
			must(t, s.PutTicket(t.Context(), ticket))
			if seen[ticket.Version] {
				t.Errorf("version %d was given twice", ticket.Version)
			}
			seen[ticket.Version] = true
			s = again(t, s)
		}
		_, err := s.TakeTicket(t.Context(), "t1")
		must(t, err)
		s = again(t, s)
	}
}

func testTicketCopies(t *testing.T, s databroker.Store) {
	given := newTicket("t1")
	must(t, s.PutTicket(t.Context(), given))
	want := *given
	want.Data = []byte(string(given.Data))
	given.Data[0] = 'x'
	wantTicket(t, s, &want)
	got, err := s.Ticket(t.Context(), "t1")
	must(t, err)
	got.Data[0] = 'x'
	wantTicket(t, s, &want)

	empty := newTicket("t2")
	empty.Data = []byte{}
	must(t, s.PutTicket(t.Context(), empty))
	empty.Data = nil // none is none
	wantTicket(t, s, empty)
}

func testTicketsFull(t *testing.T, s databroker.Store) {
	put := func(id string, expires time.Time) (*databroker.Ticket, error) {
		ticket := &databroker.Ticket{ID: id, ExpiresAt: expires}
		return ticket, s.PutTicket(t.Context(), ticket)
	}
	now := time.Now()
	over, err := put("over", now)
	must(t, err)
	soon := now.Add(time.Hour)
	for i := range MaxTickets {
		_, err := put(fmt.Sprint(i), soon)
		must(t, err)
	}
	ticket, err := put("one more", soon)
	wantError(t, "one more", err, databroker.ErrFull)
	wantEqual(t, "version of one too many", ticket.Version, uint64(0))
	s = again(t, s)
	_, err = s.Ticket(t.Context(), "one more")
	wantError(t, "read one too many", err, databroker.ErrNotFound)
	_, err = put("0", soon)
	wantError(t, "create one that exists in a full store", err, databroker.ErrConflict)
	_, err = put(over.ID, soon)
	wantError(t, "create one anew in a full store", err, databroker.ErrFull)

	// What exists can change, and what ends makes room: one for one.
	first, err := s.Ticket(t.Context(), "0")
	must(t, err)
	must(t, s.PutTicket(t.Context(), first))
	first.ExpiresAt = now
	must(t, s.PutTicket(t.Context(), first))
	_, err = put("instead of the first", soon)
	must(t, err)
	_, err = s.TakeTicket(t.Context(), "1")
	must(t, err)
	_, err = put("instead of the second", soon)
	must(t, err)
	_, err = put("one more", soon)
	wantError(t, "one more after two that made room", err, databroker.ErrFull)
}

func testTicketRace(t *testing.T, s databroker.Store) {
	const rivals = 8
	// only reports an error unless one rival did it and the others got lost.
	only := func(what string, lost error, do func() error) {
		t.Helper()
		var group errgroup.Group
		won := make(chan struct{}, rivals)
		for range rivals {
			group.Go(func() error {
				err := do()
				if err == nil {
					won <- struct{}{}
				}
				if errors.Is(err, lost) {
					return nil
				}
				return err
			})
		}
		must(t, group.Wait())
		if len(won) != 1 {
			t.Errorf("%d rivals could %s", len(won), what)
		}
	}
	for round := range 20 {
		id := fmt.Sprintf("t%d", round)
		only("make the ticket", databroker.ErrConflict, func() error { return s.PutTicket(t.Context(), newTicket(id)) })
		made, err := s.Ticket(t.Context(), id)
		must(t, err)
		only("replace the ticket", databroker.ErrConflict, func() error {
			mine := *made
			return s.PutTicket(t.Context(), &mine)
		})
		only("take the ticket", databroker.ErrNotFound, func() error { _, err := s.TakeTicket(t.Context(), id); return err })
	}
}

func testTicketsAreNoChanges(t *testing.T, s databroker.Store) {
	ticket := newTicket("t1")
	must(t, s.PutTicket(t.Context(), ticket))
	must(t, s.PutTicket(t.Context(), ticket))
	_, err := s.TakeTicket(t.Context(), "t1")
	must(t, err)
	wantLease(t, s, "l", "a", true)
	must(t, s.EndLease(t.Context(), "l", "a"))
	s = again(t, s)
	wantSequence(t, s, "tickets and leases", 0)
	session := newSession("s1")
	must(t, s.PutSession(t.Context(), session))
	wantEqual(t, "version of the first session", session.Version, uint64(1))
}

func wantLease(t *testing.T, s databroker.Store, name, owner string, want bool) {
	t.Helper()
	got, err := s.Lease(t.Context(), name, owner, time.Hour)
	must(t, err)
	if got != want {
		t.Errorf("lease of %s for %s: got %v, want %v", name, owner, got, want)
	}
}

func testLease(t *testing.T, s databroker.Store) {
	wantLease(t, s, "l", "a", true)
	s = again(t, s)
	wantLease(t, s, "l", "b", false)
	wantLease(t, s, "l", "a", true)
	wantLease(t, s, "other", "b", true)

	must(t, s.EndLease(t.Context(), "l", "b"))
	must(t, s.EndLease(t.Context(), "unknown", "b"))
	wantLease(t, s, "l", "b", false)
	must(t, s.EndLease(t.Context(), "l", "a"))
	s = again(t, s)
	wantLease(t, s, "l", "b", true)
	must(t, s.EndLease(t.Context(), "l", "a"))
	wantLease(t, s, "l", "a", false)
	wantLease(t, s, "other", "a", false)
}

func testLeaseRunsOut(t *testing.T, s databroker.Store) {
	before := time.Now()
	held, err := s.Lease(t.Context(), "l", "a", 50*time.Millisecond)
	must(t, err)
	wantEqual(t, "lease of a", held, true)
	s = again(t, s)
	for held = false; !held && time.Since(before) < time.Minute; {
		held, err = s.Lease(t.Context(), "l", "b", time.Hour)
		must(t, err)
	}
	if after := time.Since(before); !held || after < 50*time.Millisecond {
		t.Errorf("the next owner has it: %v, %v after it was given for 50ms", held, after)
	}
	wantLease(t, s, "l", "a", false) // too late to keep it
}

func testLeaseRace(t *testing.T, s databroker.Store) {
	const rivals = 8
	for round := range 20 {
		name := fmt.Sprintf("l%d", round)
		var group errgroup.Group
		won := make(chan string, rivals)
		for rival := range rivals {
			group.Go(func() error {
				owner := fmt.Sprintf("rival %d", rival)
				held, err := s.Lease(t.Context(), name, owner, time.Hour)
				if held {
					won <- owner
				}
				return err
			})
		}
		must(t, group.Wait())
		if len(won) != 1 {
			t.Fatalf("%d rivals have the lease", len(won))
		}
		wantLease(t, s, name, <-won, true)
	}
}

func testPruneTickets(t *testing.T, s databroker.Store) {
	live := newTicket("live")
	must(t, s.PutTicket(t.Context(), live))
	must(t, s.PutSession(t.Context(), newSession("s1")))
	over := newTicket("over")
	over.ExpiresAt = time.Now().Add(-time.Microsecond)
	must(t, s.PutTicket(t.Context(), over))
	wantLease(t, s, "live", "a", true)
	_, err := s.Lease(t.Context(), "over", "a", time.Nanosecond)
	must(t, err)

	s = again(t, s)
	removed := 0
	for deadline := time.Now().Add(time.Minute); removed < 2 && time.Now().Before(deadline); {
		n, err := s.(Pruner).Prune(t.Context())
		must(t, err)
		removed += n
	}
	wantEqual(t, "removed", removed, 2)
	removed, err = s.(Pruner).Prune(t.Context())
	must(t, err)
	wantEqual(t, "removed by another prune", removed, 0)
	s = again(t, s)
	wantTicket(t, s, live)
	wantLease(t, s, "live", "b", false)
	wantSequence(t, s, "what is no change", 1)
}
