package databroker

import (
	"context"
	"fmt"
	"maps"
	"time"
)

// heldLease is who has a lease, and until when.
type heldLease struct {
	owner     string
	expiresAt time.Time
}

// Ticket implements Store.
func (m *Memory) Ticket(ctx context.Context, id string) (*Ticket, error) {
	var t Ticket
	err := m.read(ctx, "read ticket", func() (err error) {
		t, err = m.liveTicket(id)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Data = copied(t.Data)
	return &t, nil
}

// PutTicket implements Store.
func (m *Memory) PutTicket(ctx context.Context, t *Ticket) error {
	const op = "write ticket"
	held, err := holdTicket(t)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		if was, _ := m.liveTicket(t.ID); was.Version != t.Version {
			return ErrConflict
		}
		if t.Version == 0 && m.ticketsFull() {
			return ErrFull
		}
		m.lastTicket++
		held.Version = m.lastTicket
		m.tickets[t.ID] = held
		if m.ticketsDue.IsZero() || held.ExpiresAt.Before(m.ticketsDue) {
			m.ticketsDue = held.ExpiresAt
		}
		t.Version = held.Version
		return nil
	})
}

// TakeTicket implements Store.
func (m *Memory) TakeTicket(ctx context.Context, id string) (*Ticket, error) {
	var t Ticket
	err := m.write(ctx, "take ticket", func() (err error) {
		if t, err = m.liveTicket(id); err == nil {
			delete(m.tickets, id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &t, nil
}

func (m *Memory) liveTicket(id string) (Ticket, error) {
	if t := m.tickets[id]; t.ExpiresAt.After(m.now()) {
		return t, nil
	}
	return Ticket{}, ErrNotFound
}

// ticketsFull reports whether there are too many, after those that expired have
// made room. It looks for them only when there are some.
func (m *Memory) ticketsFull() bool {
	now := m.now()
	if len(m.tickets) < m.maxTickets || m.ticketsDue.After(now) {
		return len(m.tickets) >= m.maxTickets
	}
	m.ticketsDue = time.Time{}
	maps.DeleteFunc(m.tickets, func(_ string, t Ticket) bool {
		live := t.ExpiresAt.After(now)
		if live && (m.ticketsDue.IsZero() || t.ExpiresAt.Before(m.ticketsDue)) {
			m.ticketsDue = t.ExpiresAt
		}
		return !live
	})
	return len(m.tickets) >= m.maxTickets
}

// Lease implements Store.
func (m *Memory) Lease(ctx context.Context, name, owner string, ttl time.Duration) (held bool, err error) {
	const op = "take lease"
	if err := checkLease(name, owner, ttl); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	err = m.write(ctx, op, func() error {
		now := m.now()
		was := m.leases[name]
		if held = was.owner == owner || !was.expiresAt.After(now); held {
			m.leases[name] = heldLease{owner, now.Add(ttl)}
		}
		return nil
	})
	return held, err
}

// EndLease implements Store.
func (m *Memory) EndLease(ctx context.Context, name, owner string) error {
	return m.write(ctx, "end lease", func() error {
		if m.leases[name].owner == owner {
			delete(m.leases, name)
		}
		return nil
	})
}
