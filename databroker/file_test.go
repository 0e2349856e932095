package databroker_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
)

func aSession(id string) *databroker.Session {
	return &databroker.Session{
		ID:        id,
		UserID:    "alice",
		Claims:    map[string]any{"email": "alice@example.com"},
		CreatedAt: time.Now(),
		ExpiresAt: time.Now().Add(time.Hour),
	}
}

func put(t testing.TB, s databroker.Store, session *databroker.Session) {
	t.Helper()
	if err := s.PutSession(t.Context(), session); err != nil {
		t.Fatal(err)
	}
}

// alter runs a statement on a database that no File has open.
func alter(t *testing.T, dir, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "databroker.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(statement, args...)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// filled returns a folder with a closed database of some hundred pages.
func filled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	f := openFile(t, dir)
	for _, id := range []string{"s1", "s2", "s3", "s4"} {
		session := aSession(id)
		session.Claims["padding"] = strings.Repeat("x", 100<<10)
		put(t, f, session)
	}
	closeStore(t, f)
	return dir
}

func TestOpenFileRefuses(t *testing.T) {
	database := func(dir string) string { return filepath.Join(dir, "databroker.db") }
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir string)
		change  func(c *databroker.FileConfig)
		want    []string
	}{
		{"a file that is no database", func(t *testing.T, dir string) {
			write(t, database(dir), bytes.Repeat([]byte("not a database. "), 1000))
		}, nil, []string{"is damaged", "restore a backup"}},
		{"a file that was cut off", func(t *testing.T, dir string) {
			if err := os.Truncate(database(dir), 100<<10); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"is damaged", "restore a backup"}},
		{"a file with a damaged page", func(t *testing.T, dir string) {
			content := read(t, database(dir))
			copy(content[4096:], bytes.Repeat([]byte{0xa5}, 4096))
			write(t, database(dir), content)
		}, nil, []string{"is damaged", "restore a backup"}},
		{"a newer schema", func(t *testing.T, dir string) {
			alter(t, dir, `PRAGMA user_version = 99`)
		}, nil, []string{"newer countersign", "schema 99", "restore a backup"}},
		{"no schema", func(t *testing.T, dir string) {
			alter(t, dir, `PRAGMA user_version = -1`)
		}, nil, []string{"schema -1", "restore a backup"}},
		{"another key", nil, func(c *databroker.FileConfig) {
			c.SealKey = bytes.Repeat([]byte{8}, 32)
		}, []string{"another key", "restore the shared_secret"}},
		{"a short key", nil, func(c *databroker.FileConfig) {
			c.SealKey = []byte("short")
		}, []string{"seal key is 5 bytes long, not 32"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filled(t)
			config := fileConfig(dir)
			if tt.prepare != nil {
				tt.prepare(t, dir)
			}
			if tt.change != nil {
				tt.change(&config)
			}
			// Twice: a refusal must not keep the lock, nor change the file.
			for range 2 {
				f, err := databroker.OpenFile(t.Context(), config)
				if err == nil {
					closeStore(t, f)
					t.Fatal("opened")
				}
				for _, want := range append(tt.want, "open databroker", database(dir)) {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("got %q, want it to contain %q", err, want)
					}
				}
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("got %q, want one line", err)
				}
			}
		})
	}
}

func TestOpenFileRefusesWithoutFolder(t *testing.T) {
	if _, err := databroker.OpenFile(t.Context(), fileConfig("")); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("got error %v, want one about the folder", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	if _, err := databroker.OpenFile(t.Context(), fileConfig(file)); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got error %v, want one that names %s", err, file)
	}
}

func TestOpenFileWhileAnotherProgramHasItLocked(t *testing.T) {
	dir := filled(t)
	db, err := sql.Open("sqlite", filepath.Join(dir, "databroker.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, db) })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, conn) })
	for _, statement := range []string{`PRAGMA locking_mode = EXCLUSIVE`, `BEGIN EXCLUSIVE`} {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	_, err = databroker.OpenFile(t.Context(), fileConfig(dir))
	if err == nil || !strings.Contains(err.Error(), "locked by another program: close that program") {
		t.Errorf("got error %v, want one that says that it is locked", err)
	}
}

func TestFileDamagedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	f := openFile(t, dir)
	session := aSession("s1")
	session.Tokens.AccessToken = "the-access-token"
	put(t, f, session)
	alter(t, dir, `UPDATE sessions SET tokens = CAST(x'00' || tokens AS BLOB)`)
	_, err := f.Session(t.Context(), "s1")
	if err == nil || errors.Is(err, databroker.ErrNotFound) {
		t.Errorf("got error %v, want one about the tokens", err)
	}
}

// The sealed tokens of one session must not do for another.
func TestFileTokensBelongToTheirSession(t *testing.T) {
	dir := t.TempDir()
	f := openFile(t, dir)
	for _, id := range []string{"s1", "s2"} {
		session := aSession(id)
		session.Tokens.AccessToken = "access-" + id
		put(t, f, session)
	}
	alter(t, dir, `UPDATE sessions SET tokens = (SELECT tokens FROM sessions WHERE id = 's1')`)
	got, err := f.Session(t.Context(), "s2")
	if err == nil {
		t.Errorf("got %q, want an error", got.Tokens.AccessToken)
	}
	if got, err := f.Session(t.Context(), "s1"); err != nil || got.Tokens.AccessToken != "access-s1" {
		t.Errorf("got %v, %v, want the session", got, err)
	}
}

// The data of one ticket must not do for another.
func TestFileTicketsBelongToTheirID(t *testing.T) {
	dir := t.TempDir()
	f := openFile(t, dir)
	for _, id := range []string{"t1", "t2"} {
		putTicket(t, f, &databroker.Ticket{ID: id, Data: []byte("data of " + id), ExpiresAt: time.Now().Add(time.Hour)})
	}
	alter(t, dir, `UPDATE tickets SET data = (SELECT data FROM tickets WHERE id = 't1')`)
	if got, err := f.Ticket(t.Context(), "t2"); err == nil || errors.Is(err, databroker.ErrNotFound) {
		t.Errorf("read: got %v, %v, want an error about the data", got, err)
	}
	if got, err := f.TakeTicket(t.Context(), "t2"); err == nil || errors.Is(err, databroker.ErrNotFound) {
		t.Errorf("take: got %v, %v, want an error about the data", got, err)
	}
	if got, err := f.TakeTicket(t.Context(), "t1"); err != nil || string(got.Data) != "data of t1" {
		t.Errorf("got %v, %v, want the ticket", got, err)
	}
}

func putTicket(t *testing.T, s databroker.Store, ticket *databroker.Ticket) {
	t.Helper()
	if err := s.PutTicket(t.Context(), ticket); err != nil {
		t.Fatal(err)
	}
}

func TestFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "store")
	f := openFile(t, dir)
	put(t, f, aSession("s1"))
	want := map[string]fs.FileMode{
		".": 0o700, "databroker.db": 0o600, "databroker.db-wal": 0o600, "databroker.db-shm": 0o600, "lock": 0o600,
	}
	wantModes := func() {
		t.Helper()
		for name, want := range want {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s: got mode %o, want %o", name, got, want)
			}
		}
	}
	wantModes()

	closeStore(t, f)
	if err := os.Chmod(filepath.Join(dir, "databroker.db"), 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, openFile(t, dir), aSession("s2"))
	wantModes()
}

func TestFilePathsThatLookLikeAddresses(t *testing.T) {
	for _, name := range []string{"a b", "q?mode=memory", "h#ash", "100%25", "file:x", "ü"} {
		dir := filepath.Join(t.TempDir(), name)
		f := openFile(t, dir)
		put(t, f, aSession("s1"))
		closeStore(t, f)
		if info, err := os.Stat(filepath.Join(dir, "databroker.db")); err != nil || info.Size() == 0 {
			t.Errorf("%s: got %v, %v, want a database", name, info, err)
		}
	}
}

func TestFileHoldsNoTokenInClear(t *testing.T) {
	dir := t.TempDir()
	f := openFile(t, dir)
	secrets := []string{"ACCESS-TOKEN-93a1", "REFRESH-TOKEN-5c7e", "ID-TOKEN-d20b", "TICKET-41cc"}
	session := aSession("s1")
	session.Tokens = databroker.Tokens{
		AccessToken: secrets[0], RefreshToken: secrets[1], TokenType: "Bearer", IDToken: secrets[2],
		ExpiresAt: time.Now().Add(time.Hour),
	}
	put(t, f, session)
	put(t, f, session)
	putTicket(t, f, &databroker.Ticket{ID: "t1", Data: []byte(secrets[3]), ExpiresAt: time.Now().Add(time.Hour)})
	wantAbsent := func(when string) {
		t.Helper()
		paths, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		claims := false
		for _, path := range paths {
			content := read(t, path)
			claims = claims || bytes.Contains(content, []byte("alice@example.com"))
			for _, secret := range append(secrets, string(bytes.Repeat([]byte{7}, 32))) {
				if bytes.Contains(content, []byte(secret)) {
					t.Errorf("%s: %s contains a secret", when, path)
				}
			}
		}
		if !claims {
			t.Errorf("%s: the claims are in none of %v, so this looks in the wrong place", when, paths)
		}
	}
	wantAbsent("open")
	closeStore(t, f)
	wantAbsent("closed")
}

func TestFileInUse(t *testing.T) {
	dir := t.TempDir()
	first := openFile(t, dir)
	_, err := databroker.OpenFile(t.Context(), fileConfig(dir))
	if !errors.Is(err, databroker.ErrInUse) || !strings.Contains(err.Error(), "pid") {
		t.Errorf("got error %v, want %v and the process", err, databroker.ErrInUse)
	}
	put(t, first, aSession("s1"))
	closeStore(t, first)
	if _, err := openFile(t, dir).Session(t.Context(), "s1"); err != nil {
		t.Errorf("after the first was closed: %v", err)
	}
}

func TestOpenFileCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := databroker.OpenFile(ctx, fileConfig(dir)); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
	put(t, openFile(t, dir), aSession("s1"))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
