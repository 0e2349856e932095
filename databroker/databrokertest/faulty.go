// Package databrokertest holds a store that can be made to fail, for the tests
// of those who must live through it.
package databrokertest

import (
	"context"
	"sync"
	"time"

	"github.com/countersign/countersign/databroker"
)

// Faulty passes calls on to Store until Break, and again after Heal. Set Store
// and nothing else. Close always reaches Store.
type Faulty struct {
	databroker.Store

	mu     sync.Mutex
	broken error
	calls  map[*inFlight]struct{}
}

// inFlight is a call under way.
type inFlight struct {
	end    context.CancelFunc
	broken error
}

var _ databroker.Store = (*Faulty)(nil)

// Break makes every call fail with err, those under way included.
func (f *Faulty) Break(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
	for c := range f.calls {
		c.broken = err
		c.end()
	}
}

// Heal undoes Break.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = nil
}

// Session implements databroker.Store.
func (f *Faulty) Session(ctx context.Context, id string) (*databroker.Session, error) {
	return call(ctx, f, func(ctx context.Context) (*databroker.Session, error) { return f.Store.Session(ctx, id) })
}

// PutSession implements databroker.Store.
func (f *Faulty) PutSession(ctx context.Context, s *databroker.Session) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.PutSession(ctx, s) })
}

// DeleteSession implements databroker.Store.
func (f *Faulty) DeleteSession(ctx context.Context, id string) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.DeleteSession(ctx, id) })
}

// Sessions implements databroker.Store.
func (f *Faulty) Sessions(ctx context.Context, userID string) ([]*databroker.Session, error) {
	return call(ctx, f, func(ctx context.Context) ([]*databroker.Session, error) { return f.Store.Sessions(ctx, userID) })
}

// ProviderSessions implements databroker.Store.
func (f *Faulty) ProviderSessions(ctx context.Context, idpID, sid string) ([]*databroker.Session, error) {
	return call(ctx, f, func(ctx context.Context) ([]*databroker.Session, error) {
		return f.Store.ProviderSessions(ctx, idpID, sid)
	})
}

// RevokeSession implements databroker.Store.
func (f *Faulty) RevokeSession(ctx context.Context, id string) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.RevokeSession(ctx, id) })
}

// RevokeUser implements databroker.Store.
func (f *Faulty) RevokeUser(ctx context.Context, userID, idpID string) (int, error) {
	return call(ctx, f, func(ctx context.Context) (int, error) { return f.Store.RevokeUser(ctx, userID, idpID) })
}

// TouchSessions implements databroker.Store.
func (f *Faulty) TouchSessions(ctx context.Context, accessed map[string]databroker.Access) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.TouchSessions(ctx, accessed) })
}

// User implements databroker.Store.
func (f *Faulty) User(ctx context.Context, id string) (*databroker.User, error) {
	return call(ctx, f, func(ctx context.Context) (*databroker.User, error) { return f.Store.User(ctx, id) })
}

// PutUser implements databroker.Store.
func (f *Faulty) PutUser(ctx context.Context, u *databroker.User) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.PutUser(ctx, u) })
}

// ServiceAccount implements databroker.Store.
func (f *Faulty) ServiceAccount(ctx context.Context, id string) (*databroker.ServiceAccount, error) {
	return call(ctx, f, func(ctx context.Context) (*databroker.ServiceAccount, error) { return f.Store.ServiceAccount(ctx, id) })
}

// CreateServiceAccount implements databroker.Store.
func (f *Faulty) CreateServiceAccount(ctx context.Context, a *databroker.ServiceAccount) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.CreateServiceAccount(ctx, a) })
}

// DeleteServiceAccount implements databroker.Store.
func (f *Faulty) DeleteServiceAccount(ctx context.Context, id string) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.DeleteServiceAccount(ctx, id) })
}

// ServiceAccounts implements databroker.Store.
func (f *Faulty) ServiceAccounts(ctx context.Context) ([]*databroker.ServiceAccount, error) {
	return call(ctx, f, f.Store.ServiceAccounts)
}

// Record implements databroker.Store.
func (f *Faulty) Record(ctx context.Context, typ, id string) (*databroker.Record, error) {
	return call(ctx, f, func(ctx context.Context) (*databroker.Record, error) { return f.Store.Record(ctx, typ, id) })
}

// PutRecord implements databroker.Store.
func (f *Faulty) PutRecord(ctx context.Context, r *databroker.Record) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.PutRecord(ctx, r) })
}

// DeleteRecord implements databroker.Store.
func (f *Faulty) DeleteRecord(ctx context.Context, typ, id string) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.DeleteRecord(ctx, typ, id) })
}

// Records implements databroker.Store.
func (f *Faulty) Records(ctx context.Context, typ string) ([]*databroker.Record, error) {
	return call(ctx, f, func(ctx context.Context) ([]*databroker.Record, error) { return f.Store.Records(ctx, typ) })
}

// ReplaceRecords implements databroker.Store.
func (f *Faulty) ReplaceRecords(ctx context.Context, typ string, records []*databroker.Record) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.ReplaceRecords(ctx, typ, records) })
}

// Ticket implements databroker.Store.
func (f *Faulty) Ticket(ctx context.Context, id string) (*databroker.Ticket, error) {
	return call(ctx, f, func(ctx context.Context) (*databroker.Ticket, error) { return f.Store.Ticket(ctx, id) })
}

// PutTicket implements databroker.Store.
func (f *Faulty) PutTicket(ctx context.Context, t *databroker.Ticket) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.PutTicket(ctx, t) })
}

// TakeTicket implements databroker.Store.
func (f *Faulty) TakeTicket(ctx context.Context, id string) (*databroker.Ticket, error) {
	return call(ctx, f, func(ctx context.Context) (*databroker.Ticket, error) { return f.Store.TakeTicket(ctx, id) })
}

// Lease implements databroker.Store.
func (f *Faulty) Lease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	return call(ctx, f, func(ctx context.Context) (bool, error) { return f.Store.Lease(ctx, name, owner, ttl) })
}

// EndLease implements databroker.Store.
func (f *Faulty) EndLease(ctx context.Context, name, owner string) error {
	return do(ctx, f, func(ctx context.Context) error { return f.Store.EndLease(ctx, name, owner) })
}

// Sequence implements databroker.Store.
func (f *Faulty) Sequence(ctx context.Context) (uint64, error) {
	return call(ctx, f, f.Store.Sequence)
}

// Changes implements databroker.Store.
func (f *Faulty) Changes(ctx context.Context, after uint64) ([]databroker.Change, error) {
	return call(ctx, f, func(ctx context.Context) ([]databroker.Change, error) { return f.Store.Changes(ctx, after) })
}

func do(ctx context.Context, f *Faulty, pass func(context.Context) error) error {
	_, err := call(ctx, f, func(ctx context.Context) (struct{}, error) { return struct{}{}, pass(ctx) })
	return err
}

// call passes a call on, under a context that Break ends.
func call[T any](ctx context.Context, f *Faulty, pass func(context.Context) (T, error)) (T, error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	c := &inFlight{end: end}
	if err := f.enter(c); err != nil {
		var none T
		return none, err
	}
	result, err := pass(ctx)
	if broken := f.leave(c); err != nil && broken != nil {
		err = broken
	}
	return result, err
}

func (f *Faulty) enter(c *inFlight) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	if f.calls == nil {
		f.calls = make(map[*inFlight]struct{})
	}
	f.calls[c] = struct{}{}
	return nil
}

// leave returns the error of the Break that ended the call, if one did.
func (f *Faulty) leave(c *inFlight) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.calls, c)
	return c.broken
}
