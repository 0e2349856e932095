package databroker_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/google/go-cmp/cmp"
)

// ofSchema returns a folder with a database that an older program left.
func ofSchema(t *testing.T, version int) string {
	t.Helper()
	dump, err := os.ReadFile(fmt.Sprintf("testdata/schema%d.sql", version))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	alter(t, dir, string(dump))
	return dir
}

func TestFileOfTheFirstSchemaKeepsItsData(t *testing.T) {
	dir := ofSchema(t, 1)
	at := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	session := &databroker.Session{
		ID: "s1", Version: 2, UserID: "alice", IDPID: "idp-1",
		Claims:    map[string]any{"email": "alice@example.com", "groups": []any{"staff"}},
		Tokens:    databroker.Tokens{AccessToken: "access-s1", ExpiresAt: at.Add(time.Hour)},
		CreatedAt: at, ExpiresAt: at.Add(14 * time.Hour),
	}
	alice := &databroker.User{
		ID: "alice", Version: 4, Email: "alice@example.com", Name: "Alice", CreatedAt: at, SignedInAt: at.Add(time.Minute),
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
		wantSame(t, "user", orError(f.User(t.Context(), "alice")), alice)
		wantSame(t, "service accounts", orError(f.ServiceAccounts(t.Context())), []*databroker.ServiceAccount{
			{ID: "a1", Version: 5, UserID: "robot", CreatedAt: at},
		})
		wantSame(t, "changes", orError(f.Changes(t.Context(), 0)), changes)

		changes = append(changes, writeNews(t, f, session, alice)...)
		closeStore(t, f)
	}
}

func TestFileOfTheSecondSchemaKeepsItsData(t *testing.T) {
	dir := ofSchema(t, 2)
	at := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	session := &databroker.Session{
		ID: "s1", Version: 2, UserID: "alice", IDPID: "idp-1",
		Claims:    map[string]any{"email": "alice@example.com", "groups": []any{"staff"}},
		Tokens:    databroker.Tokens{AccessToken: "access-s1", IDToken: "id-s1", ExpiresAt: at.Add(time.Hour)},
		Devices:   []databroker.DeviceCredential{{ID: "d1", Type: "any"}},
		CreatedAt: at, ExpiresAt: at.Add(14 * time.Hour),
	}
	alice := &databroker.User{
		ID: "alice", Version: 3, Email: "alice@example.com", Name: "Alice", CreatedAt: at, SignedInAt: at.Add(time.Minute),
	}
	changes := []databroker.Change{
		{Sequence: 1, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: 2, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: 3, Kind: databroker.KindUser, ID: "alice"},
		{Sequence: 4, Kind: databroker.KindServiceAccount, ID: "a1"},
		{Sequence: 5, Kind: databroker.KindRecord, Type: "t", ID: "r1"},
		{Sequence: 6, Kind: databroker.KindRecord, Type: "t", ID: "r2"},
		{Sequence: 7, Kind: databroker.KindRecord, Type: "t", ID: "r2", Deleted: true},
	}
	for range 2 { // once to bring it up to date, once as it is then
		f := openFile(t, dir)
		wantSame(t, "sessions", orError(f.Sessions(t.Context(), "")), []*databroker.Session{session})
		wantSame(t, "user", orError(f.User(t.Context(), "alice")), alice)
		wantSame(t, "service accounts", orError(f.ServiceAccounts(t.Context())), []*databroker.ServiceAccount{
			{ID: "a1", Version: 4, UserID: "robot", CreatedAt: at},
		})
		wantSame(t, "record", orError(f.Record(t.Context(), "t", "r1")), &databroker.Record{
			Type: "t", ID: "r1", Version: 5, Fields: map[string]any{"a": "b"}, UpdatedAt: time.UnixMicro(1795341201816835).UTC(),
		})
		wantSame(t, "changes", orError(f.Changes(t.Context(), 0)), changes)
		changes = append(changes, writeNews(t, f, session, alice)...)
		closeStore(t, f)
	}
}

// writeNews writes what older programs did not know of, reads it, and returns
// what changed.
func writeNews(t *testing.T, f *databroker.File, session *databroker.Session, user *databroker.User) []databroker.Change {
	t.Helper()
	last, err := f.Sequence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	session.Devices = append(session.Devices, databroker.DeviceCredential{ID: "d1", Type: "any"})
	session.ProviderSessionID, session.RefreshHash = "sid", []byte("hash")
	session.Origin = databroker.Origin{Method: "program", UserAgent: "Agent/1.0", Address: "192.0.2.1"}
	put(t, f, session)
	before := session.AccessedAt
	if before.IsZero() {
		before = session.CreatedAt
	}
	session.AccessedAt = session.CreatedAt.Add(time.Duration(last) * time.Hour)
	session.LongestGap = max(session.LongestGap, session.AccessedAt.Sub(before))
	if err := f.TouchSessions(t.Context(), map[string]databroker.Access{session.ID: {At: session.AccessedAt}}); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "sessions by sid", orError(f.ProviderSessions(t.Context(), session.IDPID, "sid")), []*databroker.Session{session})

	record := &databroker.Record{Type: "news", ID: "r", Fields: map[string]any{"a": "b"}}
	if err := f.PutRecord(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "records", orError(f.Records(t.Context(), "news")), []*databroker.Record{record})

	other := aSession("other")
	other.UserID, other.IDPID = user.ID, "another"
	put(t, f, other)
	if ended, err := f.RevokeUser(t.Context(), user.ID, other.IDPID); ended != 1 || err != nil {
		t.Errorf("revoked: got %d, %v, want one session", ended, err)
	}
	revoked, err := f.User(t.Context(), user.ID)
	if err != nil || revoked.RevokedAt.IsZero() {
		t.Fatalf("got %+v, %v, want a user who was revoked", revoked, err)
	}
	user.Version, user.RevokedAt = last+5, revoked.RevokedAt
	wantSame(t, "revoked user", revoked, user)

	ticket := &databroker.Ticket{ID: "t1", Data: []byte("data"), ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)}
	putTicket(t, f, ticket)
	wantSame(t, "ticket", orError(f.TakeTicket(t.Context(), "t1")), ticket)
	wantLease(t, f, "a", true)
	return []databroker.Change{
		{Sequence: last + 1, Kind: databroker.KindSession, ID: "s1"},
		{Sequence: last + 2, Kind: databroker.KindRecord, Type: "news", ID: "r"},
		{Sequence: last + 3, Kind: databroker.KindSession, ID: "other"},
		{Sequence: last + 4, Kind: databroker.KindSession, ID: "other", Deleted: true},
		{Sequence: last + 5, Kind: databroker.KindUser, ID: user.ID},
	}
}

// A refusal leaves the file to the program that wrote it.
func TestFileOfTheFirstSchemaIsNotChangedUnderAnotherKey(t *testing.T) {
	dir := ofSchema(t, 1)
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
