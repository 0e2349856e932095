package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	sessionFields = `version, user_id, idp_id, claims, tokens, devices, provider_session_id,
		origin_method, origin_user_agent, origin_address, refresh_hash, prior_refresh_hash, rotated_at,
		created_at, refreshed_at, expires_at`
	sessionColumns = `SELECT id, ` + sessionFields + `, accessed_at, longest_gap
		FROM sessions LEFT JOIN accesses ON session_id = id`
	insertSession = `INSERT INTO sessions (` + sessionFields + `, id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`
	updateSession = `UPDATE sessions SET (` + sessionFields + `)
		= (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ? AND version = ?`
	// That there is a sid is what the index asks for.
	providerSessions = sessionColumns +
		` WHERE idp_id = ? AND provider_session_id = ? AND provider_session_id <> ''` + oldestFirst
	deleteSession = `DELETE FROM sessions WHERE id = ?`
	newAccess     = `INSERT INTO accesses (session_id, accessed_at, longest_gap) VALUES (?, ?, 0)`
	touchSession  = `INSERT INTO accesses (session_id, accessed_at, longest_gap)
			SELECT id, ?2, max(0, min(?3, ?2 - coalesce(created_at, ?2))) FROM sessions WHERE id = ?1
		ON CONFLICT DO UPDATE SET
			accessed_at = excluded.accessed_at,
			longest_gap = max(longest_gap, min(?3, excluded.accessed_at - accessed_at))
			WHERE excluded.accessed_at > accessed_at`
)

// Session implements Store.
func (f *File) Session(ctx context.Context, id string) (*Session, error) {
	return one(ctx, f, "read session", f.scanSession, f.reads.session, id)
}

// PutSession implements Store.
func (f *File) PutSession(ctx context.Context, s *Session) error {
	const op = "write session"
	held, err := holdSession(s)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	tokens, err := f.sealer.sealTokens(held.Tokens, held.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	devices, err := encodeDevices(held.Devices)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var version uint64
	err = f.write(ctx, op, func(w *writing) (err error) {
		if version, err = w.record(KindSession, held.ID, false); err != nil {
			return err
		}
		err = w.replace(held.Version, insertSession, updateSession,
			version, held.UserID, held.IDPID, held.claims, tokens, devices, held.ProviderSessionID,
			held.Origin.Method, held.Origin.UserAgent, held.Origin.Address,
			held.RefreshHash, held.PriorRefreshHash, stored(held.RotatedAt),
			stored(held.CreatedAt), stored(held.RefreshedAt), stored(held.ExpiresAt), held.ID)
		if err != nil || held.Version != 0 || held.AccessedAt.IsZero() {
			return err
		}
		_, err = w.exec(newAccess, held.ID, stored(held.AccessedAt))
		return err
	})
	if err == nil {
		s.Version = version
	}
	return err
}

// DeleteSession implements Store.
func (f *File) DeleteSession(ctx context.Context, id string) error {
	return f.write(ctx, "delete session", func(w *writing) error {
		return w.remove(KindSession, deleteSession, id)
	})
}

// Sessions implements Store.
func (f *File) Sessions(ctx context.Context, userID string) ([]*Session, error) {
	if userID == "" {
		return list(ctx, f, "list sessions", f.scanSession, sessionColumns+oldestFirst)
	}
	return list(ctx, f, "list sessions", f.scanSession, sessionColumns+` WHERE user_id = ?`+oldestFirst, userID)
}

// ProviderSessions implements Store.
func (f *File) ProviderSessions(ctx context.Context, idpID, sid string) ([]*Session, error) {
	return list(ctx, f, "list sessions", f.scanSession, providerSessions, idpID, sid)
}

// RevokeSession implements Store.
func (f *File) RevokeSession(ctx context.Context, id string) error {
	return f.write(ctx, "revoke session", func(w *writing) error {
		var userID string
		err := w.tx.QueryRowContext(w.ctx, `SELECT user_id FROM sessions WHERE id = ?`, id).Scan(&userID)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		if err := w.remove(KindSession, deleteSession, id); err != nil {
			return err
		}
		_, err = w.markRevoked(userID, f.now())
		return err
	})
}

// RevokeUser implements Store.
func (f *File) RevokeUser(ctx context.Context, userID, idpID string) (ended int, err error) {
	err = f.write(ctx, "revoke user", func(w *writing) error {
		rows, err := w.tx.QueryContext(w.ctx, `SELECT id FROM sessions WHERE user_id = ? AND ? IN ('', idp_id)`+oldestFirst, userID, idpID)
		if err != nil {
			return err
		}
		ids, err := collect(rows, func(row scanner) (id string, err error) { return id, row.Scan(&id) })
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := w.remove(KindSession, deleteSession, id); err != nil {
				return err
			}
		}
		known, err := w.markRevoked(userID, f.now())
		if err == nil && !known && len(ids) == 0 {
			err = ErrNotFound
		}
		ended = len(ids)
		return err
	})
	if err != nil {
		return 0, err
	}
	return ended, nil
}

// TouchSessions implements Store.
func (f *File) TouchSessions(ctx context.Context, accessed map[string]Access) error {
	return f.write(ctx, "touch sessions", func(w *writing) (err error) {
		touch, err := w.tx.PrepareContext(w.ctx, touchSession)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, touch.Close()) }()
		for id, a := range accessed {
			if a.At.IsZero() {
				continue
			}
			if _, err := touch.ExecContext(w.ctx, id, stored(a.At), a.gap().Microseconds()); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *File) scanSession(row scanner) (*Session, error) {
	var s Session
	var claims, tokens, devices []byte
	var rotated, created, refreshed, accessed, gap, expires sql.NullInt64
	err := row.Scan(&s.ID, &s.Version, &s.UserID, &s.IDPID, &claims, &tokens, &devices, &s.ProviderSessionID,
		&s.Origin.Method, &s.Origin.UserAgent, &s.Origin.Address, &s.RefreshHash, &s.PriorRefreshHash,
		&rotated, &created, &refreshed, &expires, &accessed, &gap)
	if err != nil {
		return nil, err
	}
	s.RotatedAt, s.CreatedAt, s.RefreshedAt = loaded(rotated), loaded(created), loaded(refreshed)
	s.AccessedAt, s.ExpiresAt = loaded(accessed), loaded(expires)
	s.LongestGap = time.Duration(gap.Int64) * time.Microsecond
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
