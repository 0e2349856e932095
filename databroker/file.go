package databroker

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrInUse reports that another process has the store open.
var ErrInUse = errors.New("in use by another process")

// FileConfig says where a File is and how to read it.
type FileConfig struct {
	// Dir is the folder of the database. It is made, for its owner alone, if
	// it does not exist; one that exists keeps its mode.
	Dir string
	// SealKey is 32 secret bytes. Tokens and tickets are encrypted under a key
	// derived from it, for this purpose alone.
	SealKey []byte
	// Now is the store's clock, by which it revokes, prunes, and ends tickets and
	// leases; nil is time.Now.
	Now func() time.Time
	// KeepChanges is how many changes are kept for Changes; 0 is 100,000.
	KeepChanges int
	// MaxTickets is how many tickets there may be at once; 0 is 20,000.
	MaxTickets int
}

// File is a Store in an SQLite database. What was acknowledged is on disk: it
// survives the death of the process and of the machine.
type File struct {
	path   string
	now    func() time.Time
	keep   uint64
	most   int // tickets at once
	sealer *sealer
	feed   *feed
	lock   *os.File
	db     *sql.DB
	reads  statements
	// writer holds one token, which a write takes: SQLite has one writer.
	writer chan struct{}

	// life is held for reading by every use of db, and taken by Close.
	life   sync.RWMutex
	closed bool
}

var _ Store = (*File)(nil)

// databaseName is the database within FileConfig.Dir.
const databaseName = "databroker.db"

// readers is how many reads go on at once.
const readers = 4

// busyTimeout is how long to wait for another program, such as a backup, that
// has the database locked.
const busyTimeout = 2 * time.Second

// OpenFile opens the database in c.Dir or makes it. One process at a time may
// have it open; a second one gets ErrInUse at once.
func OpenFile(ctx context.Context, c FileConfig) (*File, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil || c.Dir == "" {
		return nil, fmt.Errorf("open databroker: the folder %q is no path", c.Dir)
	}
	f := &File{
		path:   filepath.Join(dir, databaseName),
		now:    clock(c.Now),
		keep:   uint64(cmp.Or(c.KeepChanges, defaultKeepChanges)),
		most:   cmp.Or(c.MaxTickets, defaultMaxTickets),
		writer: make(chan struct{}, 1),
	}
	if f.sealer, err = newSealer(c.SealKey); err != nil {
		return nil, fmt.Errorf("open databroker %s: %w", f.path, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open databroker: %w", err)
	}
	if f.lock, err = lockDir(dir); err != nil {
		return nil, fmt.Errorf("open databroker %s: %w", f.path, err)
	}
	if err := f.open(ctx); err != nil {
		return nil, errors.Join(f.explain("open databroker", err), f.release())
	}
	return f, nil
}

func (f *File) open(ctx context.Context) error {
	if err := ownerOnly(f.path); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dataSource(f.path))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(readers + 1)
	db.SetMaxIdleConns(readers + 1)
	f.db = db
	if err := checkDatabase(ctx, db); err != nil {
		return err
	}
	if err := prepareSchema(ctx, db, f.sealer); err != nil {
		return err
	}
	if f.reads, err = prepareReads(ctx, db); err != nil {
		return err
	}
	dropped, last, err := feedBounds(ctx, db)
	if err != nil {
		return err
	}
	f.feed = newFeed(dropped, last)
	return nil
}

// ownerOnly sees to it that the database exists and that only its owner can
// read it. SQLite gives its other files the mode of this one.
func ownerOnly(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Chmod(0o600), file.Close())
}

func dataSource(path string) string {
	pragmas := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
			"journal_mode(WAL)",
			"synchronous(FULL)",
			"trusted_schema(OFF)",
		},
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: pragmas.Encode()}
	return u.String()
}

// Close implements Store. It waits for calls that are under way.
func (f *File) Close() error {
	if !f.feed.close() {
		return nil
	}
	f.life.Lock()
	defer f.life.Unlock()
	f.closed = true
	if err := f.release(); err != nil {
		return f.explain("close databroker", err)
	}
	return nil
}

// release gives back the database and then, last, the lock.
func (f *File) release() error {
	var err error
	if f.db != nil {
		err = f.db.Close()
	}
	// A child that was forked just now has the file too, until it executes: to close
	// our own would leave the folder locked that long.
	unlocked := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_UN)
	return errors.Join(err, unlocked, f.lock.Close())
}

// read runs do while the database is open.
func (f *File) read(ctx context.Context, op string, do func() error) error {
	f.life.RLock()
	defer f.life.RUnlock()
	if f.closed {
		return fmt.Errorf("%s: %w", op, errClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := do(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // not what SQLite says when it is interrupted
		}
		return f.explain(op, err)
	}
	return nil
}

// write runs do in a transaction and publishes the changes that it recorded.
// ctx ends the wait for other writers; what has begun is brought to its end, so
// that the caller is never in doubt.
func (f *File) write(ctx context.Context, op string, do func(w *writing) error) error {
	select {
	case f.writer <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	defer func() { <-f.writer }()
	return f.read(ctx, op, func() error {
		ctx := context.WithoutCancel(ctx)
		tx, err := f.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		w := &writing{ctx: ctx, tx: tx}
		if err := do(w); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if w.last == 0 {
			return tx.Commit() // what it wrote is no change
		}
		dropped := w.last - min(w.last, f.keep)
		if _, err := w.exec(`DELETE FROM changes WHERE sequence <= ?`, dropped); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		f.feed.publish(dropped, w.last)
		return nil
	})
}

// writing is a transaction that notes what it changes.
type writing struct {
	ctx  context.Context
	tx   *sql.Tx
	last uint64 // the last change of this transaction
}

// record notes a change and returns its number.
func (w *writing) record(k Kind, id string, deleted bool) (uint64, error) {
	return w.note(Change{Kind: k, ID: id, Deleted: deleted})
}

const noteChange = `INSERT INTO changes (kind, type, id, deleted) VALUES (?, ?, ?, ?)`

// note is record for a change of any kind.
func (w *writing) note(c Change) (uint64, error) {
	return w.noted(w.tx.ExecContext(w.ctx, noteChange, string(c.Kind), c.Type, c.ID, c.Deleted))
}

// noteBy is note with the statement noteChange, prepared.
func (w *writing) noteBy(statement *sql.Stmt, c Change) (uint64, error) {
	return w.noted(statement.ExecContext(w.ctx, string(c.Kind), c.Type, c.ID, c.Deleted))
}

func (w *writing) noted(result sql.Result, err error) (uint64, error) {
	if err != nil {
		return 0, err
	}
	sequence, err := result.LastInsertId()
	w.last = uint64(sequence)
	return w.last, err
}

// exec returns how many rows the statement wrote.
func (w *writing) exec(statement string, args ...any) (int64, error) {
	result, err := w.tx.ExecContext(w.ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// explain adds to err what the operation was and, where SQLite's own words
// would leave the operator helpless, which file it is about and what to do.
func (f *File) explain(op string, err error) error {
	if remedy := remedy(err); remedy != "" {
		return fmt.Errorf("%s: %s %s (%w)", op, f.path, remedy, err)
	}
	if op == "open databroker" {
		return fmt.Errorf("%s %s: %w", op, f.path, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func remedy(err error) string {
	if errors.Is(err, errDamaged) {
		return remedyDamaged
	}
	var failure *sqlite.Error
	if !errors.As(err, &failure) {
		return ""
	}
	switch failure.Code() & 0xff { // the rest is detail
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return remedyDamaged
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "is locked by another program: close that program"
	case sqlite3.SQLITE_FULL:
		return "cannot grow: free some disk space"
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return "cannot be written: let this user write to the file and its folder"
	}
	return ""
}

const remedyDamaged = "is damaged: restore a backup of it, or move it away to start empty (everyone signs in again, service accounts are gone)"
