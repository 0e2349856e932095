package databroker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

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
	held, err := holdSession(s)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		was, exists := m.sessions[s.ID]
		if was.Version != s.Version {
			return ErrConflict
		}
		if exists {
			held.AccessedAt = was.AccessedAt
		}
		held.LongestGap = was.LongestGap
		held.Version = m.record(KindSession, s.ID, false)
		m.sessions[s.ID] = held
		s.Version = held.Version
		return nil
	})
}

// DeleteSession implements Store.
func (m *Memory) DeleteSession(ctx context.Context, id string) error {
	return m.write(ctx, "delete session", func() error {
		_, err := m.dropSession(id)
		return err
	})
}

func (m *Memory) dropSession(id string) (heldSession, error) {
	held, err := find(m.sessions, id)
	if err == nil {
		delete(m.sessions, id)
		m.record(KindSession, id, true)
	}
	return held, err
}

// Sessions implements Store.
func (m *Memory) Sessions(ctx context.Context, userID string) ([]*Session, error) {
	return m.listSessions(ctx, func(s heldSession) bool { return userID == "" || s.UserID == userID })
}

// ProviderSessions implements Store.
func (m *Memory) ProviderSessions(ctx context.Context, idpID, sid string) ([]*Session, error) {
	return m.listSessions(ctx, func(s heldSession) bool {
		return sid != "" && s.ProviderSessionID == sid && s.IDPID == idpID
	})
}

func (m *Memory) listSessions(ctx context.Context, wanted func(heldSession) bool) ([]*Session, error) {
	var found []heldSession
	err := m.read(ctx, "list sessions", func() error {
		found = m.findSessions(wanted)
		return nil
	})
	if err != nil {
		return nil, err
	}
	sessions := make([]*Session, len(found))
	for i, held := range found {
		if sessions[i], err = held.open(); err != nil {
			return nil, err
		}
	}
	return sessions, nil
}

// findSessions returns those that are wanted, oldest first.
func (m *Memory) findSessions(wanted func(heldSession) bool) []heldSession {
	var found []heldSession
	for _, held := range m.sessions {
		if wanted(held) {
			found = append(found, held)
		}
	}
	slices.SortFunc(found, func(a, b heldSession) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return found
}

// RevokeSession implements Store.
func (m *Memory) RevokeSession(ctx context.Context, id string) error {
	return m.write(ctx, "revoke session", func() error {
		held, err := m.dropSession(id)
		if err == nil {
			m.markRevoked(held.UserID)
		}
		return err
	})
}

// RevokeUser implements Store.
func (m *Memory) RevokeUser(ctx context.Context, userID, idpID string) (ended int, err error) {
	err = m.write(ctx, "revoke user", func() error {
		sessions := m.findSessions(func(s heldSession) bool {
			return s.UserID == userID && (idpID == "" || s.IDPID == idpID)
		})
		for _, held := range sessions {
			_, _ = m.dropSession(held.ID) // which was found just now
		}
		if known := m.markRevoked(userID); !known && len(sessions) == 0 {
			return ErrNotFound
		}
		ended = len(sessions)
		return nil
	})
	return ended, err
}

// markRevoked sets RevokedAt of a user, if there is such a user.
func (m *Memory) markRevoked(id string) (known bool) {
	u, known := m.users[id]
	if known {
		u.RevokedAt = revokedAt(u.RevokedAt, m.now())
		u.Version = m.record(KindUser, id, false)
		m.users[id] = u
	}
	return known
}

// TouchSessions implements Store.
func (m *Memory) TouchSessions(ctx context.Context, accessed map[string]Access) error {
	return m.write(ctx, "touch sessions", func() error {
		for id, a := range accessed {
			if held, ok := m.sessions[id]; ok && instant(a.At).After(held.AccessedAt) {
				held.touch(a)
				m.sessions[id] = held
			}
		}
		return nil
	})
}

// touch notes a use later than AccessedAt.
func (h *heldSession) touch(a Access) {
	at, before := instant(a.At), h.AccessedAt
	if before.IsZero() {
		before = h.CreatedAt
	}
	if !before.IsZero() {
		h.LongestGap = max(h.LongestGap, min(a.gap(), at.Sub(before)))
	}
	h.AccessedAt = at
}
