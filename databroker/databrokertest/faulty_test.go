package databrokertest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"golang.org/x/sync/errgroup"
)

func TestFaulty(t *testing.T) {
	errDown := errors.New("down")
	s := &databrokertest.Faulty{Store: databroker.NewMemory(databroker.MemoryConfig{})}
	session := &databroker.Session{ID: "s1", UserID: "alice", ExpiresAt: time.Now().Add(time.Hour)}
	if err := s.PutSession(t.Context(), session); err != nil {
		t.Fatal(err)
	}

	s.Break(errDown)
	for name, err := range everyCall(t.Context(), s) {
		if !errors.Is(err, errDown) {
			t.Errorf("%s while broken: got error %v, want %v", name, err, errDown)
		}
	}
	s.Heal()
	if got, err := s.Session(t.Context(), "s1"); err != nil || got.Version != session.Version {
		t.Errorf("healed: got %v, %v, want the session as it was", got, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFaultyEndsCallsUnderWay(t *testing.T) {
	errDown := errors.New("down")
	entered := make(chan struct{})
	s := &databrokertest.Faulty{Store: announcing{databroker.NewMemory(databroker.MemoryConfig{}), entered}}
	var group errgroup.Group
	group.Go(func() error {
		_, err := s.Changes(t.Context(), 0)
		return err
	})
	<-entered
	s.Break(errDown)
	if err := group.Wait(); !errors.Is(err, errDown) {
		t.Errorf("got error %v, want %v", err, errDown)
	}

	// A caller who gives up by itself gets its own error.
	s.Heal()
	ctx, cancel := context.WithCancel(t.Context())
	group.Go(func() error {
		<-entered
		cancel()
		return nil
	})
	if _, err := s.Changes(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}

// announcing says when Changes is entered.
type announcing struct {
	databroker.Store
	entered chan struct{}
}

func (a announcing) Changes(ctx context.Context, after uint64) ([]databroker.Change, error) {
	a.entered <- struct{}{}
	return a.Store.Changes(ctx, after)
}

func everyCall(ctx context.Context, s databroker.Store) map[string]error {
	calls := make(map[string]error)
	_, calls["Session"] = s.Session(ctx, "s1")
	calls["PutSession"] = s.PutSession(ctx, &databroker.Session{})
	calls["DeleteSession"] = s.DeleteSession(ctx, "s1")
	_, calls["Sessions"] = s.Sessions(ctx, "")
	_, calls["ProviderSessions"] = s.ProviderSessions(ctx, "idp-1", "sid")
	calls["RevokeSession"] = s.RevokeSession(ctx, "s1")
	_, calls["RevokeUser"] = s.RevokeUser(ctx, "u1", "")
	calls["TouchSessions"] = s.TouchSessions(ctx, nil)
	_, calls["User"] = s.User(ctx, "u1")
	calls["PutUser"] = s.PutUser(ctx, &databroker.User{})
	_, calls["ServiceAccount"] = s.ServiceAccount(ctx, "a1")
	calls["CreateServiceAccount"] = s.CreateServiceAccount(ctx, &databroker.ServiceAccount{})
	calls["DeleteServiceAccount"] = s.DeleteServiceAccount(ctx, "a1")
	_, calls["ServiceAccounts"] = s.ServiceAccounts(ctx)
	_, calls["Record"] = s.Record(ctx, "t", "r1")
	calls["PutRecord"] = s.PutRecord(ctx, &databroker.Record{})
	calls["DeleteRecord"] = s.DeleteRecord(ctx, "t", "r1")
	_, calls["Records"] = s.Records(ctx, "t")
	calls["ReplaceRecords"] = s.ReplaceRecords(ctx, "t", nil)
	_, calls["Ticket"] = s.Ticket(ctx, "t1")
	calls["PutTicket"] = s.PutTicket(ctx, &databroker.Ticket{})
	_, calls["TakeTicket"] = s.TakeTicket(ctx, "t1")
	_, calls["Lease"] = s.Lease(ctx, "l1", "o1", time.Minute)
	calls["EndLease"] = s.EndLease(ctx, "l1", "o1")
	_, calls["Sequence"] = s.Sequence(ctx)
	_, calls["Changes"] = s.Changes(ctx, 0)
	return calls
}
