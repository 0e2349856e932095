package databroker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// MemoryConfig configures a Memory. Its zero value is useful.
type MemoryConfig struct {
	// Now is the store's clock, by which it revokes, prunes, and ends tickets and
	// leases; nil is time.Now.
	Now func() time.Time
	// KeepChanges is how many changes are kept for Changes; 0 is 100,000.
	KeepChanges int
	// MaxTickets is how many tickets there may be at once; 0 is 20,000.
	MaxTickets int
}

// Memory is a Store that ends with the process.
type Memory struct {
	now  func() time.Time
	keep int
	feed *feed

	mu       sync.RWMutex
	closed   bool
	last     uint64
	changes  []Change // the last len(changes), up to last
	sessions map[string]heldSession
	users    map[string]User
	accounts map[string]ServiceAccount
	records  map[string]map[string]heldRecord // by type and id
	leases   map[string]heldLease

	maxTickets int
	tickets    map[string]Ticket
	lastTicket uint64    // the version that was given last
	ticketsDue time.Time // no ticket expires before it
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory(c MemoryConfig) *Memory {
	return &Memory{
		now:      clock(c.Now),
		keep:     cmp.Or(c.KeepChanges, defaultKeepChanges),
		feed:     newFeed(0, 0),
		sessions: make(map[string]heldSession),
		users:    make(map[string]User),
		accounts: make(map[string]ServiceAccount),
		records:  make(map[string]map[string]heldRecord),
		leases:   make(map[string]heldLease),

		maxTickets: cmp.Or(c.MaxTickets, defaultMaxTickets),
		tickets:    make(map[string]Ticket),
	}
}

// Sequence implements Store.
func (m *Memory) Sequence(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return m.feed.sequence()
}

// Changes implements Store.
func (m *Memory) Changes(ctx context.Context, after uint64) ([]Change, error) {
	if _, err := m.feed.await(ctx, after); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	dropped := m.last - uint64(len(m.changes))
	if after < dropped {
		return nil, ErrTruncated
	}
	changes := m.changes[after-dropped:]
	return slices.Clone(changes[:min(len(changes), changesAtOnce)]), nil
}

// Prune removes sessions and service accounts that expired more than a day
// ago, and tickets and leases that are over, a bounded number at once, and
// returns how many it removed. Call it again while that is not 0.
func (m *Memory) Prune(ctx context.Context) (int, error) {
	removed := 0
	err := m.write(ctx, "prune", func() error {
		before := m.now().Add(-expiredFor)
		for id, s := range m.sessions {
			if removed < pruneAtOnce && s.ExpiresAt.Before(before) {
				delete(m.sessions, id)
				m.record(KindSession, id, true)
				removed++
			}
		}
		for id, a := range m.accounts {
			if removed < pruneAtOnce && !a.ExpiresAt.IsZero() && a.ExpiresAt.Before(before) {
				delete(m.accounts, id)
				m.record(KindServiceAccount, id, true)
				removed++
			}
		}
		now := m.now()
		for id, t := range m.tickets {
			if removed < pruneAtOnce && !t.ExpiresAt.After(now) {
				delete(m.tickets, id)
				removed++
			}
		}
		for name, l := range m.leases {
			if removed < pruneAtOnce && !l.expiresAt.After(now) {
				delete(m.leases, name)
				removed++
			}
		}
		return nil
	})
	return removed, err
}

// Close implements Store.
func (m *Memory) Close() error {
	m.feed.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *Memory) read(ctx context.Context, op string, do func() error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.call(ctx, op, do)
}

// write runs do, which must check before it changes anything, and publishes
// the changes that it recorded.
func (m *Memory) write(ctx context.Context, op string, do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.last
	if err := m.call(ctx, op, do); err != nil {
		return err
	}
	if m.last > before {
		m.feed.publish(m.last-uint64(len(m.changes)), m.last)
	}
	return nil
}

func (m *Memory) call(ctx context.Context, op string, do func() error) error {
	err := ctx.Err()
	switch {
	case err != nil:
	case m.closed:
		err = errClosed
	default:
		err = do()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// record notes a change and returns its number.
func (m *Memory) record(k Kind, id string, deleted bool) uint64 {
	return m.note(Change{Kind: k, ID: id, Deleted: deleted})
}

func (m *Memory) note(c Change) uint64 {
	m.last++
	c.Sequence = m.last
	m.changes = append(m.changes, c)
	m.changes = m.changes[max(0, len(m.changes)-m.keep):]
	return m.last
}

func find[R any](records map[string]R, id string) (R, error) {
	r, ok := records[id]
	if !ok {
		return r, ErrNotFound
	}
	return r, nil
}

// clock returns now, or the default for nil.
func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}
