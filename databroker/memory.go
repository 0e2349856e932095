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
	// Now is the clock that Prune goes by; nil is time.Now.
	Now func() time.Time
	// KeepChanges is how many changes are kept for Changes; 0 is 100,000.
	KeepChanges int
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
	facts    map[string]map[string]heldRecord // by type and id
}

// heldSession keeps the claims encoded: to decode them anew for each reader is
// the copy that the contract asks for.
type heldSession struct {
	Session // without Claims
	claims  []byte
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
		facts:    make(map[string]map[string]heldRecord),
	}
}

// Session implements Store.
func (m *Memory) Session(ctx context.Context, id string) (*Session, error) {
	var held heldSession
	err := m.read(ctx, "read session", func() (err error) {
		held, err = find(m.sessions, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return held.open()
}

// PutSession implements Store.
func (m *Memory) PutSession(ctx context.Context, s *Session) error {
	const op = "write session"
	if err := checkSession(s); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	claims, err := encodeClaims(s.Claims)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	held := heldSession{Session: *s, claims: claims}
	held.Claims, held.Devices = nil, copyDevices(s.Devices)
	held.CreatedAt, held.ExpiresAt = instant(s.CreatedAt), instant(s.ExpiresAt)
	held.Tokens.ExpiresAt = instant(s.Tokens.ExpiresAt)

	return m.write(ctx, op, func() error {
		if m.sessions[s.ID].Version != s.Version {
			return ErrConflict
		}
		held.Version = m.record(KindSession, s.ID, false)
		m.sessions[s.ID] = held
		s.Version = held.Version
		return nil
	})
}

// DeleteSession implements Store.
func (m *Memory) DeleteSession(ctx context.Context, id string) error {
	return m.write(ctx, "delete session", func() error {
		if _, err := find(m.sessions, id); err != nil {
			return err
		}
		delete(m.sessions, id)
		m.record(KindSession, id, true)
		return nil
	})
}

// Sessions implements Store.
func (m *Memory) Sessions(ctx context.Context, userID string) ([]*Session, error) {
	var found []heldSession
	err := m.read(ctx, "list sessions", func() error {
		for _, held := range m.sessions {
			if userID == "" || held.UserID == userID {
				found = append(found, held)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b heldSession) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	sessions := make([]*Session, len(found))
	for i, held := range found {
		if sessions[i], err = held.open(); err != nil {
			return nil, err
		}
	}
	return sessions, nil
}

// User implements Store.
func (m *Memory) User(ctx context.Context, id string) (*User, error) {
	var u User
	err := m.read(ctx, "read user", func() (err error) {
		u, err = find(m.users, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &u, nil
}

// PutUser implements Store.
func (m *Memory) PutUser(ctx context.Context, u *User) error {
	const op = "write user"
	if err := checkUser(u); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		if m.users[u.ID].Version != u.Version {
			return ErrConflict
		}
		for _, a := range m.accounts {
			if a.UserID == u.ID {
				return fmt.Errorf("%w: a service account has this user id", ErrConflict)
			}
		}
		u.Version = m.record(KindUser, u.ID, false)
		held := *u
		held.CreatedAt, held.SignedInAt = instant(u.CreatedAt), instant(u.SignedInAt)
		m.users[u.ID] = held
		return nil
	})
}

// ServiceAccount implements Store.
func (m *Memory) ServiceAccount(ctx context.Context, id string) (*ServiceAccount, error) {
	var a ServiceAccount
	err := m.read(ctx, "read service account", func() (err error) {
		a, err = find(m.accounts, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// CreateServiceAccount implements Store.
func (m *Memory) CreateServiceAccount(ctx context.Context, a *ServiceAccount) error {
	const op = "create service account"
	if err := checkServiceAccount(a); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		if _, taken := m.accounts[a.ID]; taken {
			return ErrConflict
		}
		if _, taken := m.users[a.UserID]; taken {
			return fmt.Errorf("%w: a user has this user id", ErrConflict)
		}
		a.Version = m.record(KindServiceAccount, a.ID, false)
		held := *a
		held.CreatedAt, held.ExpiresAt = instant(a.CreatedAt), instant(a.ExpiresAt)
		m.accounts[a.ID] = held
		return nil
	})
}

// DeleteServiceAccount implements Store.
func (m *Memory) DeleteServiceAccount(ctx context.Context, id string) error {
	return m.write(ctx, "delete service account", func() error {
		if _, err := find(m.accounts, id); err != nil {
			return err
		}
		delete(m.accounts, id)
		m.record(KindServiceAccount, id, true)
		return nil
	})
}

// ServiceAccounts implements Store.
func (m *Memory) ServiceAccounts(ctx context.Context) ([]*ServiceAccount, error) {
	var accounts []*ServiceAccount
	err := m.read(ctx, "list service accounts", func() error {
		for _, a := range m.accounts {
			accounts = append(accounts, &a)
		}
		return nil
	})
	slices.SortFunc(accounts, func(a, b *ServiceAccount) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return accounts, err
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
// ago, a bounded number at once, and returns how many it removed. Call it
// again while that is not 0.
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

func (h heldSession) open() (*Session, error) {
	claims, err := decodeClaims(h.claims)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	s := h.Session
	s.Claims, s.Devices = claims, copyDevices(h.Devices)
	return &s, nil
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

// copyDevices returns nil for no devices.
func copyDevices(devices []DeviceCredential) []DeviceCredential {
	return append([]DeviceCredential(nil), devices...)
}
