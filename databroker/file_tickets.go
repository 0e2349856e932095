package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const ticketColumns = `id, version, data, expires_at`

// Ticket implements Store.
func (f *File) Ticket(ctx context.Context, id string) (*Ticket, error) {
	return one(ctx, f, "read ticket", f.scanTicket, f.reads.ticket, id, stored(f.now()))
}

// PutTicket implements Store.
func (f *File) PutTicket(ctx context.Context, t *Ticket) error {
	const op = "write ticket"
	held, err := holdTicket(t)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	data := f.sealer.seal(held.Data, ticketBox(held.ID))
	var version int64
	err = f.write(ctx, op, func(w *writing) error {
		if err := w.makeWay(held, stored(f.now())); err != nil {
			return err
		}
		result, err := w.tx.ExecContext(w.ctx, `INSERT INTO tickets (id, data, expires_at) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			held.ID, data, stored(held.ExpiresAt))
		if err != nil {
			return err
		}
		written, err := result.RowsAffected()
		switch {
		case err != nil:
			return err
		case written == 0:
			return ErrConflict
		case held.Version == 0:
			if err := w.checkTickets(f.most); err != nil {
				return err
			}
		}
		version, err = result.LastInsertId()
		return err
	})
	if err == nil {
		t.Version = uint64(version)
	}
	return err
}

// makeWay removes what a ticket takes the place of: the version that it was made
// from or, for a new one, whatever has expired.
func (w *writing) makeWay(t Ticket, now sql.NullInt64) error {
	if t.Version == 0 {
		_, err := w.exec(`DELETE FROM tickets WHERE expires_at <= ?`, now)
		return err
	}
	removed, err := w.exec(`DELETE FROM tickets WHERE id = ? AND version = ? AND expires_at > ?`, t.ID, t.Version, now)
	if err == nil && removed == 0 {
		err = ErrConflict
	}
	return err
}

func (w *writing) checkTickets(most int) error {
	var n int
	if err := w.tx.QueryRowContext(w.ctx, `SELECT count(*) FROM tickets`).Scan(&n); err != nil {
		return err
	}
	if n > most {
		return ErrFull
	}
	return nil
}

// TakeTicket implements Store.
func (f *File) TakeTicket(ctx context.Context, id string) (*Ticket, error) {
	var t *Ticket
	err := f.write(ctx, "take ticket", func(w *writing) (err error) {
		t, err = f.scanTicket(w.tx.QueryRowContext(w.ctx,
			`DELETE FROM tickets WHERE id = ? AND expires_at > ? RETURNING `+ticketColumns, id, stored(f.now())))
		if errors.Is(err, sql.ErrNoRows) {
			err = ErrNotFound
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (f *File) scanTicket(row scanner) (*Ticket, error) {
	var t Ticket
	var data []byte
	var expires sql.NullInt64
	if err := row.Scan(&t.ID, &t.Version, &data, &expires); err != nil {
		return nil, err
	}
	opened, err := f.sealer.open(data, ticketBox(t.ID))
	if err != nil {
		return nil, fmt.Errorf("ticket: %w", err)
	}
	t.Data, t.ExpiresAt = copied(opened), loaded(expires)
	return &t, nil
}

// Lease implements Store.
func (f *File) Lease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	const op = "take lease"
	if err := checkLease(name, owner, ttl); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	var written int64
	err := f.write(ctx, op, func(w *writing) (err error) {
		now := f.now()
		written, err = w.exec(`INSERT INTO leases (name, owner, expires_at) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
			WHERE owner = excluded.owner OR expires_at <= ?`,
			name, owner, stored(now.Add(ttl)), stored(now))
		return err
	})
	return err == nil && written == 1, err
}

// EndLease implements Store.
func (f *File) EndLease(ctx context.Context, name, owner string) error {
	return f.write(ctx, "end lease", func(w *writing) error {
		_, err := w.exec(`DELETE FROM leases WHERE name = ? AND owner = ?`, name, owner)
		return err
	})
}
