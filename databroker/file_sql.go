package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// oldestFirst orders what has a created_at and an id.
const oldestFirst = ` ORDER BY coalesce(created_at, -9223372036854775808), id`

// statements are the reads that come often enough to be parsed once.
type statements struct {
	session, user, account, record, ticket, changes *sql.Stmt
}

func prepareReads(ctx context.Context, db *sql.DB) (statements, error) {
	var s statements
	for _, p := range []struct {
		statement **sql.Stmt
		text      string
	}{
		{&s.session, sessionColumns + ` WHERE id = ?`},
		{&s.user, userColumns + ` WHERE id = ?`},
		{&s.account, accountColumns + ` WHERE id = ?`},
		{&s.record, recordColumns + ` WHERE type = ? AND id = ?`},
		{&s.ticket, `SELECT ` + ticketColumns + ` FROM tickets WHERE id = ? AND expires_at > ?`},
		{&s.changes, `SELECT sequence, kind, type, id, deleted FROM changes WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?`},
	} {
		var err error
		if *p.statement, err = db.PrepareContext(ctx, p.text); err != nil {
			return s, err // closing db closes the statements
		}
	}
	return s, nil
}

// replace runs insert for the version 0 and else update, which gets the version
// as its last argument, and returns ErrConflict if that wrote nothing.
func (w *writing) replace(version uint64, insert, update string, args ...any) error {
	statement := insert
	if version != 0 {
		statement, args = update, append(args, version)
	}
	written, err := w.exec(statement, args...)
	if err == nil && written == 0 {
		err = ErrConflict
	}
	return err
}

func (w *writing) remove(k Kind, statement, id string) error {
	written, err := w.exec(statement, id)
	if err != nil {
		return err
	}
	if written == 0 {
		return ErrNotFound
	}
	_, err = w.record(k, id, true)
	return err
}

// refuse returns ErrConflict with the reason if the query finds something.
func (w *writing) refuse(query, id, reason string) error {
	var found int
	err := w.tx.QueryRowContext(w.ctx, query+` LIMIT 1`, id).Scan(&found)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: %s", ErrConflict, reason)
}

// scanner is the part of sql.Row and sql.Rows that reads the columns.
type scanner interface{ Scan(...any) error }

// one returns the record with this key, or ErrNotFound.
func one[R any](ctx context.Context, f *File, op string, scan func(scanner) (R, error), query *sql.Stmt, key ...any) (R, error) {
	var record R
	err := f.read(ctx, op, func() (err error) {
		record, err = scan(query.QueryRowContext(ctx, key...))
		if errors.Is(err, sql.ErrNoRows) {
			err = ErrNotFound
		}
		return err
	})
	return record, err
}

func list[R any](ctx context.Context, f *File, op string, scan func(scanner) (R, error), query string, args ...any) ([]R, error) {
	var records []R
	err := f.read(ctx, op, func() error {
		rows, err := f.db.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		records, err = collect(rows, scan)
		return err
	})
	return records, err
}

func collect[R any](rows *sql.Rows, scan func(scanner) (R, error)) ([]R, error) {
	defer func() { _ = rows.Close() }() // rows.Err has what matters
	var records []R
	for rows.Next() {
		record, err := scan(rows)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, rows.Err()
}

func stored(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func loaded(t sql.NullInt64) time.Time {
	if !t.Valid {
		return time.Time{}
	}
	return time.UnixMicro(t.Int64).UTC()
}
