package databroker_test

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/google/go-cmp/cmp"
)

// ofSchema1 returns a folder with a database that an older program left.
func ofSchema1(t *testing.T) string {
	t.Helper()
	dump, err := os.ReadFile("testdata/schema1.sql")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	alter(t, dir, string(dump))
	return dir
}

func TestFileOfTheFirstSchemaKeepsItsData(t *testing.T) {
	dir := ofSchema1(t)
	at := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	session := &databroker.Session{
		ID: "s1", Version: 2, UserID: "alice", IDPID: "idp-1",
		Claims:    map[string]any{"email": "alice@example.com", "groups": []any{"staff"}},
		Tokens:    databroker.Tokens{AccessToken: "access-s1", ExpiresAt: at.Add(time.Hour)},
		CreatedAt: at, ExpiresAt: at.Add(14 * time.Hour),
	}
	changes := []databroker.Change{
		{Sequence: 1, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: 2, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: 3, Kind: databroker.KindSession, ID: "s2"},
		{Sequence: 4, Kind: databroker.KindUser, ID: "alice"},
		{Sequence: 5, Kind: databroker.KindServiceAccount, ID: "a1"},
		{Sequence: 6, Kind: databroker.KindSession, ID: "s2", Deleted: true},
	}
	for range 2 { // once to bring it up to date, once as it is then
		f := openFile(t, dir)
		wantSame(t, "sessions", orError(f.Sessions(t.Context(), "")), []*databroker.Session{session})
		wantSame(t, "user", orError(f.User(t.Context(), "alice")), &databroker.User{
			ID: "alice", Version: 4, Email: "alice@example.com", Name: "Alice", CreatedAt: at, SignedInAt: at.Add(time.Minute),
		})
		wantSame(t, "service accounts", orError(f.ServiceAccounts(t.Context())), []*databroker.ServiceAccount{
			{ID: "a1", Version: 5, UserID: "robot", CreatedAt: at},
		})
		wantSame(t, "changes", orError(f.Changes(t.Context(), 0)), changes)

		// What the older program did not know of can be kept now.
		session.Devices = append(session.Devices, databroker.DeviceCredential{ID: "d1", Type: "any"})
		put(t, f, session)
		record := &databroker.Record{Type: "t", ID: "r", Fields: map[string]any{"a": "b"}}
		if err := f.PutRecord(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		next := uint64(len(changes))
		changes = append(changes,
			databroker.Change{Sequence: next + 1, Kind: databroker.KindSession, ID: "s1"},
			databroker.Change{Sequence: next + 2, Kind: databroker.KindRecord, Type: "t", ID: "r"})
		wantSame(t, "records", orError(f.Records(t.Context(), "t")), []*databroker.Record{record})
		closeStore(t, f)
	}
}

// A refusal leaves the file to the program that wrote it.
func TestFileOfTheFirstSchemaIsNotChangedUnderAnotherKey(t *testing.T) {
	dir := ofSchema1(t)
	config := fileConfig(dir)
	config.SealKey = bytes.Repeat([]byte{8}, 32)
	if f, err := databroker.OpenFile(t.Context(), config); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("got %v, %v, want a refusal", f, err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "databroker.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, db) })
	var version, records int
	err = db.QueryRow(`SELECT user_version, (SELECT count(*) FROM sqlite_schema WHERE name = 'records') FROM pragma_user_version`).Scan(&version, &records)
	if err != nil || version != 1 || records != 0 {
		t.Errorf("got version %d, %d tables of records, %v, want the first schema", version, records, err)
	}
}

// orError returns what was read, or the error instead.
func orError[R any](r R, err error) any {
	if err != nil {
		return err
	}
	return r
}

func wantSame(t *testing.T, what string, got, want any) {
	t.Helper()
	if err, failed := got.(error); failed {
		t.Fatalf("%s: %v", what, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
