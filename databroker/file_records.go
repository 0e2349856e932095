package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	sessionColumns = `SELECT id, version, user_id, idp_id, claims, tokens, devices, created_at, expires_at FROM sessions`
	userColumns    = `SELECT id, version, email, name, created_at, signed_in_at FROM users`
	accountColumns = `SELECT id, version, user_id, created_at, expires_at FROM service_accounts`
	oldestFirst    = ` ORDER BY coalesce(created_at, -9223372036854775808), id`
)

// statements are the reads that come often enough to be parsed once.
type statements struct {
	session, user, account, record, changes *sql.Stmt
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
		{&s.changes, `SELECT sequence, kind, type, id, deleted FROM changes WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?`},
	} {
		var err error
		if *p.statement, err = db.PrepareContext(ctx, p.text); err != nil {
			return s, err // closing db closes the statements
		}
	}
	return s, nil
}

// Session implements Store.
func (f *File) Session(ctx context.Context, id string) (*Session, error) {
	return one(ctx, f, "read session", f.scanSession, f.reads.session, id)
}

// PutSession implements Store.
func (f *File) PutSession(ctx context.Context, s *Session) error {
	const op = "write session"
	if err := checkSession(s); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	claims, err := encodeClaims(s.Claims)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	tokens, err := f.sealer.sealTokens(s.Tokens, s.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	devices, err := encodeDevices(s.Devices)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var version uint64
	err = f.write(ctx, op, func(w *writing) (err error) {
		if version, err = w.record(KindSession, s.ID, false); err != nil {
			return err
		}
		return w.replace(s.Version,
			`INSERT INTO sessions (version, user_id, idp_id, claims, tokens, devices, created_at, expires_at, id)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			`UPDATE sessions SET version = ?, user_id = ?, idp_id = ?, claims = ?, tokens = ?, devices = ?, created_at = ?, expires_at = ?
				WHERE id = ? AND version = ?`,
			version, s.UserID, s.IDPID, claims, tokens, devices, stored(s.CreatedAt), stored(s.ExpiresAt), s.ID)
	})
	if err == nil {
		s.Version = version
	}
	return err
}

// DeleteSession implements Store.
func (f *File) DeleteSession(ctx context.Context, id string) error {
	return f.write(ctx, "delete session", func(w *writing) error {
		return w.remove(KindSession, `DELETE FROM sessions WHERE id = ?`, id)
	})
}

// Sessions implements Store.
func (f *File) Sessions(ctx context.Context, userID string) ([]*Session, error) {
	if userID == "" {
		return list(ctx, f, "list sessions", f.scanSession, sessionColumns+oldestFirst)
	}
	return list(ctx, f, "list sessions", f.scanSession, sessionColumns+` WHERE user_id = ?`+oldestFirst, userID)
}

// User implements Store.
func (f *File) User(ctx context.Context, id string) (*User, error) {
	return one(ctx, f, "read user", scanUser, f.reads.user, id)
}

// PutUser implements Store.
func (f *File) PutUser(ctx context.Context, u *User) error {
	const op = "write user"
	if err := checkUser(u); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var version uint64
	err := f.write(ctx, op, func(w *writing) (err error) {
		if err := w.refuse(`SELECT 1 FROM service_accounts WHERE user_id = ?`, u.ID, "a service account has this user id"); err != nil {
			return err
		}
		if version, err = w.record(KindUser, u.ID, false); err != nil {
			return err
		}
		return w.replace(u.Version,
			`INSERT INTO users (version, email, name, created_at, signed_in_at, id)
				VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			`UPDATE users SET version = ?, email = ?, name = ?, created_at = ?, signed_in_at = ?
				WHERE id = ? AND version = ?`,
			version, u.Email, u.Name, stored(u.CreatedAt), stored(u.SignedInAt), u.ID)
	})
	if err == nil {
		u.Version = version
	}
	return err
}

// ServiceAccount implements Store.
func (f *File) ServiceAccount(ctx context.Context, id string) (*ServiceAccount, error) {
	return one(ctx, f, "read service account", scanAccount, f.reads.account, id)
}

// CreateServiceAccount implements Store.
func (f *File) CreateServiceAccount(ctx context.Context, a *ServiceAccount) error {
	const op = "create service account"
	if err := checkServiceAccount(a); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var version uint64
	err := f.write(ctx, op, func(w *writing) (err error) {
		if err := w.refuse(`SELECT 1 FROM users WHERE id = ?`, a.UserID, "a user has this user id"); err != nil {
			return err
		}
		if version, err = w.record(KindServiceAccount, a.ID, false); err != nil {
			return err
		}
		written, err := w.exec(`INSERT INTO service_accounts (version, user_id, created_at, expires_at, id)
			VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			version, a.UserID, stored(a.CreatedAt), stored(a.ExpiresAt), a.ID)
		if err == nil && written == 0 {
			err = ErrConflict
		}
		return err
	})
	if err == nil {
		a.Version = version
	}
	return err
}

// DeleteServiceAccount implements Store.
func (f *File) DeleteServiceAccount(ctx context.Context, id string) error {
	return f.write(ctx, "delete service account", func(w *writing) error {
		return w.remove(KindServiceAccount, `DELETE FROM service_accounts WHERE id = ?`, id)
	})
}

// ServiceAccounts implements Store.
func (f *File) ServiceAccounts(ctx context.Context) ([]*ServiceAccount, error) {
	return list(ctx, f, "list service accounts", scanAccount, accountColumns+oldestFirst)
}

// Sequence implements Store.
func (f *File) Sequence(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return f.feed.sequence()
}

// Changes implements Store.
func (f *File) Changes(ctx context.Context, after uint64) ([]Change, error) {
	last, err := f.feed.await(ctx, after)
	if err != nil {
		return nil, err
	}
	var changes []Change
	err = f.read(ctx, "read changes", func() error {
		rows, err := f.reads.changes.QueryContext(ctx, after, last, changesAtOnce)
		if err != nil {
			return err
		}
		changes, err = collect(rows, func(row scanner) (c Change, err error) {
			return c, row.Scan(&c.Sequence, &c.Kind, &c.Type, &c.ID, &c.Deleted)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	// Numbers have no gaps: if the next one is not there, it was dropped while
	// we were on the way to it.
	if len(changes) == 0 || changes[0].Sequence != after+1 {
		return nil, ErrTruncated
	}
	return changes, nil
}

// Prune removes sessions and service accounts that expired more than a day
// ago, a bounded number at once, and returns how many it removed. Call it
// again while that is not 0.
func (f *File) Prune(ctx context.Context) (int, error) {
	removed := 0
	err := f.write(ctx, "prune", func(w *writing) error {
		before := stored(f.now().Add(-expiredFor))
		for _, table := range []struct {
			kind   Kind
			remove string
		}{
			{KindSession, `DELETE FROM sessions WHERE id IN
				(SELECT id FROM sessions WHERE expires_at < ? ORDER BY expires_at LIMIT ?) RETURNING id`},
			{KindServiceAccount, `DELETE FROM service_accounts WHERE id IN
				(SELECT id FROM service_accounts WHERE expires_at < ? LIMIT ?) RETURNING id`},
		} {
			rows, err := w.tx.QueryContext(w.ctx, table.remove, before, pruneAtOnce)
			if err != nil {
				return err
			}
			ids, err := collect(rows, func(row scanner) (id string, err error) { return id, row.Scan(&id) })
			if err != nil {
				return err
			}
			for _, id := range ids {
				if _, err := w.record(table.kind, id, true); err != nil {
					return err
				}
			}
			removed += len(ids)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return removed, nil
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

func (f *File) scanSession(row scanner) (*Session, error) {
	var s Session
	var claims, tokens, devices []byte
	var created, expires sql.NullInt64
	err := row.Scan(&s.ID, &s.Version, &s.UserID, &s.IDPID, &claims, &tokens, &devices, &created, &expires)
	if err != nil {
		return nil, err
	}
	s.CreatedAt, s.ExpiresAt = loaded(created), loaded(expires)
	if s.Claims, err = decodeClaims(claims); err != nil {
		return nil, err
	}
	if s.Tokens, err = f.sealer.openTokens(tokens, s.ID); err != nil {
		return nil, err
	}
	if s.Devices, err = decodeDevices(devices); err != nil {
		return nil, err
	}
	return &s, nil
}

func scanUser(row scanner) (*User, error) {
	var u User
	var created, signedIn sql.NullInt64
	if err := row.Scan(&u.ID, &u.Version, &u.Email, &u.Name, &created, &signedIn); err != nil {
		return nil, err
	}
	u.CreatedAt, u.SignedInAt = loaded(created), loaded(signedIn)
	return &u, nil
}

func scanAccount(row scanner) (*ServiceAccount, error) {
	var a ServiceAccount
	var created, expires sql.NullInt64
	if err := row.Scan(&a.ID, &a.Version, &a.UserID, &created, &expires); err != nil {
		return nil, err
	}
	a.CreatedAt, a.ExpiresAt = loaded(created), loaded(expires)
	return &a, nil
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
