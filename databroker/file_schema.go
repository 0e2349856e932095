package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// schemas returns what each version of the schema, from 1, adds to the one before.
// PRAGMA user_version says which one a database has.
func schemas() []string { return []string{schema1, schema2, schema3} }

// schema1 was the first. Times are microseconds since 1970, NULL for the zero
// time. Claims are JSON, tokens sealed, NULL for none. AUTOINCREMENT never
// gives a number twice.
const schema1 = `
CREATE TABLE sessions (
	id         TEXT PRIMARY KEY,
	version    INTEGER NOT NULL,
	user_id    TEXT NOT NULL,
	idp_id     TEXT NOT NULL,
	claims     BLOB NOT NULL,
	tokens     BLOB,
	created_at INTEGER,
	expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE users (
	id           TEXT PRIMARY KEY,
	version      INTEGER NOT NULL,
	email        TEXT NOT NULL,
	name         TEXT NOT NULL,
	created_at   INTEGER,
	signed_in_at INTEGER
) STRICT;

CREATE TABLE service_accounts (
	id         TEXT PRIMARY KEY,
	version    INTEGER NOT NULL,
	user_id    TEXT NOT NULL,
	created_at INTEGER,
	expires_at INTEGER
) STRICT;
CREATE INDEX service_accounts_by_user ON service_accounts (user_id);

CREATE TABLE changes (
	sequence INTEGER PRIMARY KEY AUTOINCREMENT,
	kind     TEXT NOT NULL,
	id       TEXT NOT NULL,
	deleted  INTEGER NOT NULL
) STRICT;

CREATE TABLE seal (check_value BLOB NOT NULL) STRICT;
`

// schema2 adds records, and the devices of a session, in JSON, NULL for none.
const schema2 = `
ALTER TABLE sessions ADD COLUMN devices BLOB;
ALTER TABLE changes ADD COLUMN type TEXT NOT NULL DEFAULT '';

CREATE TABLE records (
	type       TEXT NOT NULL,
	id         TEXT NOT NULL,
	version    INTEGER NOT NULL,
	fields     BLOB NOT NULL,
	updated_at INTEGER NOT NULL,
	PRIMARY KEY (type, id)
) STRICT, WITHOUT ROWID;
`

// schema3 adds what sessions say of their origin, refreshes and use, revocation,
// tickets and leases. When a session was last used is in a table of its own, so
// that a row with tokens need not be written for it. A ticket's data are sealed.
const schema3 = `
ALTER TABLE sessions ADD COLUMN provider_session_id TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN origin_method TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN origin_user_agent TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN origin_address TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN refresh_hash BLOB;
ALTER TABLE sessions ADD COLUMN prior_refresh_hash BLOB;
ALTER TABLE sessions ADD COLUMN rotated_at INTEGER;
ALTER TABLE sessions ADD COLUMN refreshed_at INTEGER;
CREATE INDEX sessions_by_provider ON sessions (idp_id, provider_session_id) WHERE provider_session_id <> '';
ALTER TABLE users ADD COLUMN revoked_at INTEGER;

CREATE TABLE accesses (
	session_id  TEXT PRIMARY KEY,
	accessed_at INTEGER NOT NULL,
	longest_gap INTEGER NOT NULL -- microseconds
) STRICT, WITHOUT ROWID;
CREATE TRIGGER access_ends AFTER DELETE ON sessions BEGIN
	DELETE FROM accesses WHERE session_id = old.id;
END;

CREATE TABLE tickets (
	version    INTEGER PRIMARY KEY AUTOINCREMENT,
	id         TEXT NOT NULL UNIQUE,
	data       BLOB NOT NULL,
	expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX tickets_by_expiry ON tickets (expires_at);

CREATE TABLE leases (
	name       TEXT PRIMARY KEY,
	owner      TEXT NOT NULL,
	expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`

// sealedCheck is what every database holds sealed, so that a wrong key is
// noticed when the database is opened and not when someone comes back.
const sealedCheck = "countersign"

var (
	errDamaged = errors.New("integrity check")
	errNoKey   = errors.New("it was written under another key: restore the shared_secret it was made with, " +
		"or move it away to start empty (everyone signs in again, service accounts are gone)")
)

// checkDatabase looks at every page, because SQLite by itself notices damage
// only when it happens to read it.
func checkDatabase(ctx context.Context, db *sql.DB) error {
	var finding string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&finding); err != nil {
		return err
	}
	if finding != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, strings.Join(strings.Fields(finding), " "))
	}
	return nil
}

// prepareSchema makes the tables of a new database, brings those of an older one
// up to date, and checks that this program and this key are the ones to read it.
func prepareSchema(ctx context.Context, db *sql.DB, s *sealer) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := migrate(ctx, tx, s); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func migrate(ctx context.Context, tx *sql.Tx, s *sealer) error {
	var version int
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	all := schemas()
	if version < 0 || version > len(all) {
		return fmt.Errorf("it was written by a newer countersign (schema %d, this one knows %d): run that version, or restore a backup from before it",
			version, len(all))
	}
	if version == 0 {
		if err := create(ctx, tx, s); err != nil {
			return err
		}
		version = 1
	}
	if err := checkKey(ctx, tx, s); err != nil {
		return err
	}
	if version == len(all) {
		return nil
	}
	for _, schema := range all[version:] {
		if _, err := tx.ExecContext(ctx, schema); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, len(all)))
	return err
}

func checkKey(ctx context.Context, tx *sql.Tx, s *sealer) error {
	var sealed []byte
	if err := tx.QueryRowContext(ctx, `SELECT check_value FROM seal`).Scan(&sealed); err != nil {
		return err
	}
	if _, err := s.open(sealed, sealedCheck); err != nil {
		return errNoKey
	}
	return nil
}

func create(ctx context.Context, tx *sql.Tx, s *sealer) error {
	if _, err := tx.ExecContext(ctx, schema1); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO seal VALUES (?)`, s.seal(nil, sealedCheck))
	return err
}

// feedBounds returns the last change that is no longer kept, and the last one.
func feedBounds(ctx context.Context, db *sql.DB) (dropped, last uint64, err error) {
	// A table of AUTOINCREMENT that never had a row is not in sqlite_sequence.
	err = db.QueryRowContext(ctx, `
		SELECT coalesce((SELECT min(sequence) - 1 FROM changes), s.seq), s.seq
		FROM (SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS seq) AS s`,
	).Scan(&dropped, &last)
	return dropped, last, err
}
