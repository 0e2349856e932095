package databroker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
)

type prunable interface {
	databroker.Store
	Prune(context.Context) (int, error)
}

// eachByClock runs a test on each back end, whose clock is at *now.
func eachByClock(t *testing.T, test func(t *testing.T, s prunable, now *time.Time)) {
	t.Run("memory", func(t *testing.T) {
		now := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
		m := databroker.NewMemory(databroker.MemoryConfig{Now: func() time.Time { return now }})
		t.Cleanup(func() { closeStore(t, m) })
		test(t, m, &now)
	})
	t.Run("file", func(t *testing.T) {
		now := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
		config := fileConfig(t.TempDir())
		config.Now = func() time.Time { return now }
		config.MaxTickets = 0
		f, err := databroker.OpenFile(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeStore(t, f) })
		test(t, f, &now)
	})
}

func wantPruned(t *testing.T, s prunable, want int) {
	t.Helper()
	if removed, err := s.Prune(t.Context()); removed != want || err != nil {
		t.Errorf("pruned: got %d, %v, want %d", removed, err, want)
	}
}

func TestPruneGoesByTheClock(t *testing.T) {
	eachByClock(t, func(t *testing.T, s prunable, now *time.Time) {
		session := aSession("s1")
		session.ExpiresAt = now.Add(time.Hour)
		put(t, s, session)
		putTicket(t, s, &databroker.Ticket{ID: "t1", ExpiresAt: now.Add(2 * time.Hour)})
		wantLease(t, s, "a", true)
		for _, step := range []struct {
			wait time.Duration
			want int
		}{
			{time.Minute - time.Microsecond, 0}, {time.Microsecond, 1}, // the lease
			{2*time.Hour - time.Minute - time.Microsecond, 0}, {time.Microsecond, 1}, // the ticket
			{23 * time.Hour, 0}, {time.Microsecond, 1}, // the session
			{1000 * time.Hour, 0},
		} {
			*now = now.Add(step.wait)
			wantPruned(t, s, step.want)
		}
	})
}

// wantLease asks for a minute.
func wantLease(t *testing.T, s databroker.Store, owner string, want bool) {
	t.Helper()
	if got, err := s.Lease(t.Context(), "l", owner, time.Minute); got != want || err != nil {
		t.Errorf("lease for %s: got %v, %v, want %v", owner, got, err, want)
	}
}

func TestLeaseGoesByTheClock(t *testing.T) {
	eachByClock(t, func(t *testing.T, s prunable, now *time.Time) {
		wantLease(t, s, "a", true)
		*now = now.Add(30 * time.Second)
		wantLease(t, s, "a", true) // for a minute from now
		*now = now.Add(time.Minute - time.Microsecond)
		wantLease(t, s, "b", false)
		*now = now.Add(time.Microsecond)
		wantLease(t, s, "b", true)
		wantLease(t, s, "a", false)
		*now = now.Add(time.Hour)
		wantLease(t, s, "b", true) // nobody took it meanwhile
	})
}

func TestTicketGoesByTheClock(t *testing.T) {
	eachByClock(t, func(t *testing.T, s prunable, now *time.Time) {
		ticket := &databroker.Ticket{ID: "t1", ExpiresAt: now.Add(time.Minute)}
		putTicket(t, s, ticket)
		*now = now.Add(time.Minute - time.Microsecond)
		if _, err := s.Ticket(t.Context(), "t1"); err != nil {
			t.Errorf("just before it ends: %v", err)
		}
		*now = now.Add(time.Microsecond)
		if _, err := s.Ticket(t.Context(), "t1"); !errors.Is(err, databroker.ErrNotFound) {
			t.Errorf("just as it ends: got error %v, want %v", err, databroker.ErrNotFound)
		}
		if err := s.PutTicket(t.Context(), ticket); !errors.Is(err, databroker.ErrConflict) {
			t.Errorf("replace it then: got error %v, want %v", err, databroker.ErrConflict)
		}
	})
}

// A clock that is set back makes nothing good again that was revoked.
func TestRevokedAtNeverGoesBack(t *testing.T) {
	eachByClock(t, func(t *testing.T, s prunable, now *time.Time) {
		if err := s.PutUser(t.Context(), &databroker.User{ID: "alice"}); err != nil {
			t.Fatal(err)
		}
		first := *now
		for _, step := range []struct {
			by   time.Duration
			want time.Time
		}{
			{0, first}, {-time.Hour, first}, {2 * time.Hour, first.Add(time.Hour)},
		} {
			*now = now.Add(step.by)
			put(t, s, aSession("s1"))
			if err := s.RevokeSession(t.Context(), "s1"); err != nil {
				t.Fatal(err)
			}
			if u, err := s.User(t.Context(), "alice"); err != nil || !u.RevokedAt.Equal(step.want) {
				t.Errorf("the clock at %v: got %+v, %v, want it revoked at %v", *now, u, err, step.want)
			}
		}
	})
}

// Tickets that are never taken cost a bounded space, and no more than their time.
func TestTicketsAreBoundedByDefault(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	m := databroker.NewMemory(databroker.MemoryConfig{Now: func() time.Time { return now }})
	defer closeStore(t, m)
	for round := range 3 {
		for i := range 20_000 {
			putTicket(t, m, &databroker.Ticket{ID: fmt.Sprintf("%d-%d", round, i), ExpiresAt: now.Add(time.Duration(i+1) * time.Second)})
		}
		err := m.PutTicket(t.Context(), &databroker.Ticket{ID: "one more", ExpiresAt: now.Add(time.Hour)})
		if !errors.Is(err, databroker.ErrFull) {
			t.Errorf("got error %v, want %v", err, databroker.ErrFull)
		}
		now = now.Add(20_000 * time.Second)
	}
}
