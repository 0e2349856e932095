package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	userColumns    = `SELECT id, version, email, name, created_at, signed_in_at, revoked_at FROM users`
	accountColumns = `SELECT id, version, user_id, created_at, expires_at FROM service_accounts`
)

// User implements Store.
func (f *File) User(ctx context.Context, id string) (*User, error) {
	return one(ctx, f, "read user", scanUser, f.reads.user, id)
}

// PutUser implements Store.
func (f *File) PutUser(ctx context.Context, u *User) error {
	const op = "write user"
	held, err := holdUser(u)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var version uint64
	err = f.write(ctx, op, func(w *writing) (err error) {
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
			version, held.Email, held.Name, stored(held.CreatedAt), stored(held.SignedInAt), held.ID)
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

// markRevoked sets RevokedAt of a user, if there is such a user.
func (w *writing) markRevoked(id string, now time.Time) (known bool, err error) {
	var before sql.NullInt64
	err = w.tx.QueryRowContext(w.ctx, `SELECT revoked_at FROM users WHERE id = ?`, id).Scan(&before)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	version, err := w.record(KindUser, id, false)
	if err != nil {
		return false, err
	}
	_, err = w.exec(`UPDATE users SET version = ?, revoked_at = ? WHERE id = ?`, version, stored(revokedAt(loaded(before), now)), id)
	return true, err
}

func scanUser(row scanner) (*User, error) {
	var u User
	var created, signedIn, revoked sql.NullInt64
	if err := row.Scan(&u.ID, &u.Version, &u.Email, &u.Name, &created, &signedIn, &revoked); err != nil {
		return nil, err
	}
	u.CreatedAt, u.SignedInAt, u.RevokedAt = loaded(created), loaded(signedIn), loaded(revoked)
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
