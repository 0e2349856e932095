package storetest

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
)

func testSession(t *testing.T, s databroker.Store) {
	_, err := s.Session(t.Context(), "s1")
	wantError(t, "read an unknown session", err, databroker.ErrNotFound)
	wantError(t, "delete an unknown session", s.DeleteSession(t.Context(), "s1"), databroker.ErrNotFound)

	session := newSession("s1")
	must(t, s.PutSession(t.Context(), session))
	if session.Version == 0 {
		t.Error("the version of a new session is 0")
	}
	s = again(t, s)
	wantSession(t, s, session)

	first := session.Version
	session.Tokens = databroker.Tokens{}
	session.Claims = nil
	session.UserID, session.IDPID = "bob", ""
	session.ProviderSessionID, session.Origin = "", databroker.Origin{}
	session.RefreshHash, session.PriorRefreshHash = nil, nil
	session.RotatedAt, session.RefreshedAt = time.Time{}, time.Time{}
	must(t, s.PutSession(t.Context(), session))
	if session.Version <= first {
		t.Errorf("the version went from %d to %d", first, session.Version)
	}
	s = again(t, s)
	wantSession(t, s, session)

	must(t, s.DeleteSession(t.Context(), "s1"))
	s = again(t, s)
	_, err = s.Session(t.Context(), "s1")
	wantError(t, "read a deleted session", err, databroker.ErrNotFound)
	wantError(t, "delete a deleted session", s.DeleteSession(t.Context(), "s1"), databroker.ErrNotFound)
}

func testClaims(t *testing.T, s databroker.Store) {
	type named string
	deep := any("end")
	for range 10 {
		deep = []any{deep}
	}
	tests := []struct {
		name      string
		put, want map[string]any
	}{
		{"no claims", nil, nil},
		{"an empty object", map[string]any{}, map[string]any{}},
		{"numbers", map[string]any{"int": 7, "uint": uint8(8), "big": int64(1) << 53, "float": 1.5, "small": 5e-324, "max": math.MaxFloat64},
			map[string]any{"int": 7.0, "uint": 8.0, "big": 9007199254740992.0, "float": 1.5, "small": 5e-324, "max": math.MaxFloat64}},
		{"typed values", map[string]any{"strings": []string{"a"}, "named": named("n"), "map": map[string]int{"k": 1}, "bytes": []byte("hi")},
			map[string]any{"strings": []any{"a"}, "named": "n", "map": map[string]any{"k": 1.0}, "bytes": "aGk="}},
		{"null, true and nested", map[string]any{"null": nil, "true": true, "nested": map[string]any{"list": []any{nil, 1, "x"}}},
			map[string]any{"null": nil, "true": true, "nested": map[string]any{"list": []any{nil, 1.0, "x"}}}},
		{"text of every kind", map[string]any{"html": "<&>", "nul": "a\x00b", "broken": "a\xffb", "lines": "\u2028\r\n", "": "empty key", "\U0001f642": "\U0001f642"},
			map[string]any{"html": "<&>", "nul": "a\x00b", "broken": "a\ufffdb", "lines": "\u2028\r\n", "": "empty key", "\U0001f642": "\U0001f642"}},
		{"deep", map[string]any{"deep": deep}, map[string]any{"deep": deep}},
	}
	for _, tt := range tests {
		session := newSession("claims " + tt.name)
		session.Claims = tt.put
		must(t, s.PutSession(t.Context(), session))
	}
	s = again(t, s)
	for _, tt := range tests {
		got, err := s.Session(t.Context(), "claims "+tt.name)
		must(t, err)
		wantEqual(t, tt.name, got.Claims, tt.want)
	}
}

func testTimes(t *testing.T, s databroker.Store) {
	zone := time.FixedZone("east", 3600)
	session := newSession("s1")
	session.CreatedAt = time.Date(2030, 1, 1, 0, 30, 0, 1999, zone)
	session.ExpiresAt = time.Date(9999, 12, 31, 0, 0, 0, 0, zone)
	session.Tokens.ExpiresAt = time.Date(1900, 1, 1, 0, 0, 0, 1, time.UTC)
	session.Tokens.IDTokenExpiresAt = time.Date(2030, 1, 1, 0, 30, 0, 1999, zone)
	session.RotatedAt, session.RefreshedAt, session.AccessedAt = session.CreatedAt, session.CreatedAt, session.CreatedAt
	account := newAccount("a1")
	account.CreatedAt, account.ExpiresAt = time.Time{}, time.Time{}
	must(t, s.PutSession(t.Context(), session))
	must(t, s.CreateServiceAccount(t.Context(), account))

	s = again(t, s)
	session.CreatedAt = time.Date(2029, 12, 31, 23, 30, 0, 1000, time.UTC)
	session.ExpiresAt = time.Date(9999, 12, 30, 23, 0, 0, 0, time.UTC)
	session.Tokens.ExpiresAt = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	session.RotatedAt, session.RefreshedAt, session.AccessedAt = session.CreatedAt, session.CreatedAt, session.CreatedAt
	session.Tokens.IDTokenExpiresAt = session.CreatedAt
	wantSession(t, s, session)
	got, err := s.ServiceAccount(t.Context(), "a1")
	must(t, err)
	wantEqual(t, "service account", got, account)
}

func testCopies(t *testing.T, s databroker.Store) {
	given := newSession("s1")
	must(t, s.PutSession(t.Context(), given))
	want := newSession("s1")
	want.Version = given.Version

	given.UserID = "mallory"
	given.Claims["email"] = "mallory@example.com"
	given.Claims["groups"].([]any)[0] = "admin"
	given.RefreshHash[0], given.PriorRefreshHash[0] = 'x', 'x'
	wantSession(t, s, want)

	got, err := s.Session(t.Context(), "s1")
	must(t, err)
	got.Tokens.AccessToken = "stolen"
	got.RefreshHash[0], got.PriorRefreshHash[0] = 'x', 'x'
	got.Claims["groups"].([]any)[0] = "admin"
	wantSession(t, s, want)

	listed, err := s.Sessions(t.Context(), "alice")
	must(t, err)
	listed[0].Claims["groups"].([]any)[0] = "admin"
	listed[0].RefreshHash[0] = 'x'
	wantSession(t, s, want)

	empty := newSession("empty")
	empty.RefreshHash, empty.PriorRefreshHash = []byte{}, []byte{}
	must(t, s.PutSession(t.Context(), empty))
	empty.RefreshHash, empty.PriorRefreshHash = nil, nil // none is none
	wantSession(t, s, empty)

	user, account := newUser("u1"), newAccount("a1")
	must(t, s.PutUser(t.Context(), user))
	must(t, s.CreateServiceAccount(t.Context(), account))
	user.Email, account.UserID = "mallory@example.com", "mallory"
	gotUser, err := s.User(t.Context(), "u1")
	must(t, err)
	wantEqual(t, "email", gotUser.Email, "u1@example.com")
	gotUser.Email = "mallory@example.com"
	gotAccount, err := s.ServiceAccount(t.Context(), "a1")
	must(t, err)
	wantEqual(t, "user id", gotAccount.UserID, "a1-user")
	gotAccount.UserID = "mallory"
	gotUser, err = s.User(t.Context(), "u1")
	must(t, err)
	wantEqual(t, "email", gotUser.Email, "u1@example.com")
	accounts, err := s.ServiceAccounts(t.Context())
	must(t, err)
	wantEqual(t, "user id", accounts[0].UserID, "a1-user")
}

func testVersions(t *testing.T, s databroker.Store) {
	session := newSession("s1")
	must(t, s.PutSession(t.Context(), session))

	second := newSession("s1")
	wantError(t, "create one that exists", s.PutSession(t.Context(), second), databroker.ErrConflict)
	wantEqual(t, "version after a conflict", second.Version, uint64(0))

	stale := newSession("s1")
	stale.Version = session.Version
	must(t, s.PutSession(t.Context(), session))
	wantError(t, "replace an old version", s.PutSession(t.Context(), stale), databroker.ErrConflict)
	wantSession(t, s, session)

	gone := newSession("s2")
	gone.Version = session.Version
	wantError(t, "replace one that is not there", s.PutSession(t.Context(), gone), databroker.ErrConflict)

	// Made again, it is another record: whoever read the old one must notice.
	must(t, s.DeleteSession(t.Context(), "s1"))
	s = again(t, s)
	must(t, s.PutSession(t.Context(), newSession("s1")))
	wantError(t, "replace a version of before the deletion", s.PutSession(t.Context(), session), databroker.ErrConflict)
	wantError(t, "replace an older version of before the deletion", s.PutSession(t.Context(), stale), databroker.ErrConflict)
}

func testSessions(t *testing.T, s databroker.Store) {
	none, err := s.Sessions(t.Context(), "")
	must(t, err)
	if len(none) != 0 {
		t.Errorf("an empty store lists %d sessions", len(none))
	}
	for i, row := range []struct{ id, user string }{{"s3", "bob"}, {"s1", "alice"}, {"s2", "alice"}} {
		session := newSession(row.id)
		session.UserID = row.user
		session.CreatedAt = start().Add(-time.Duration(i) * time.Second)
		must(t, s.PutSession(t.Context(), session))
	}
	for _, id := range []string{"t2", "t1"} { // made at the same time
		session := newSession(id)
		session.CreatedAt = time.Time{}
		must(t, s.PutSession(t.Context(), session))
	}
	s = again(t, s)
	for _, tt := range []struct {
		user string
		want []string
	}{
		{"", []string{"t1", "t2", "s2", "s1", "s3"}},
		{"alice", []string{"t1", "t2", "s2", "s1"}},
		{"bob", []string{"s3"}},
		{"nobody", nil},
	} {
		sessions, err := s.Sessions(t.Context(), tt.user)
		must(t, err)
		var got []string
		for _, session := range sessions {
			got = append(got, session.ID)
			wantSession(t, s, session)
		}
		wantEqual(t, fmt.Sprintf("sessions of %q", tt.user), got, tt.want)
	}
}

func testUser(t *testing.T, s databroker.Store) {
	_, err := s.User(t.Context(), "alice")
	wantError(t, "read an unknown user", err, databroker.ErrNotFound)

	user := newUser("alice")
	must(t, s.PutUser(t.Context(), user))
	wantError(t, "create one that exists", s.PutUser(t.Context(), newUser("alice")), databroker.ErrConflict)
	first := *user
	user.Email, user.Name, user.SignedInAt = "a@example.org", "", start().Add(time.Hour)
	must(t, s.PutUser(t.Context(), user))
	if user.Version <= first.Version {
		t.Errorf("the version went from %d to %d", first.Version, user.Version)
	}
	wantError(t, "replace an old version", s.PutUser(t.Context(), &first), databroker.ErrConflict)

	s = again(t, s)
	got, err := s.User(t.Context(), "alice")
	must(t, err)
	wantEqual(t, "user", got, user)
}

func testServiceAccount(t *testing.T, s databroker.Store) {
	_, err := s.ServiceAccount(t.Context(), "a1")
	wantError(t, "read an unknown account", err, databroker.ErrNotFound)

	account := newAccount("a1")
	must(t, s.CreateServiceAccount(t.Context(), account))
	if account.Version == 0 {
		t.Error("the version of a new account is 0")
	}
	wantError(t, "create one that exists", s.CreateServiceAccount(t.Context(), newAccount("a1")), databroker.ErrConflict)
	older := newAccount("a2")
	older.UserID = account.UserID // two accounts may act as one user
	older.CreatedAt, older.ExpiresAt = start().Add(-time.Second), time.Time{}
	must(t, s.CreateServiceAccount(t.Context(), older))

	s = again(t, s)
	got, err := s.ServiceAccount(t.Context(), "a1")
	must(t, err)
	wantEqual(t, "service account", got, account)
	all, err := s.ServiceAccounts(t.Context())
	must(t, err)
	wantEqual(t, "service accounts", all, []*databroker.ServiceAccount{older, account})

	must(t, s.DeleteServiceAccount(t.Context(), "a1"))
	s = again(t, s)
	_, err = s.ServiceAccount(t.Context(), "a1")
	wantError(t, "read a deleted account", err, databroker.ErrNotFound)
	wantError(t, "delete a deleted account", s.DeleteServiceAccount(t.Context(), "a1"), databroker.ErrNotFound)
}

func testSharedID(t *testing.T, s databroker.Store) {
	user, account := newUser("alice"), newAccount("a1")
	must(t, s.PutUser(t.Context(), user))
	must(t, s.CreateServiceAccount(t.Context(), account))
	s = again(t, s)

	inherits := newAccount("a2")
	inherits.UserID = "alice"
	wantError(t, "create an account under a user's id", s.CreateServiceAccount(t.Context(), inherits), databroker.ErrConflict)
	wantEqual(t, "version after a conflict", inherits.Version, uint64(0))
	wantError(t, "sign in under an account's user id", s.PutUser(t.Context(), newUser("a1-user")), databroker.ErrConflict)
	must(t, s.PutUser(t.Context(), user))

	must(t, s.DeleteServiceAccount(t.Context(), "a1"))
	must(t, s.PutUser(t.Context(), newUser("a1-user")))
}

func testPrune(t *testing.T, s databroker.Store) {
	put := func(id string, expires time.Time) {
		session := newSession(id)
		session.ExpiresAt = expires
		must(t, s.PutSession(t.Context(), session))
		account := newAccount(id)
		account.ExpiresAt = expires
		must(t, s.CreateServiceAccount(t.Context(), account))
	}
	put("live", time.Now().Add(time.Hour))
	put("just expired", time.Now().Add(-time.Minute))
	put("long expired", time.Now().Add(-25*time.Hour))
	forever := newAccount("for ever")
	forever.ExpiresAt = time.Time{}
	must(t, s.CreateServiceAccount(t.Context(), forever))

	wantSession(t, s, func() *databroker.Session {
		got, err := s.Session(t.Context(), "long expired")
		must(t, err)
		return got
	}())
	before, err := s.Sequence(t.Context())
	must(t, err)
	removed, err := s.(Pruner).Prune(t.Context())
	must(t, err)
	wantEqual(t, "removed", removed, 2)

	s = again(t, s)
	for _, id := range []string{"live", "just expired"} {
		_, err := s.Session(t.Context(), id)
		must(t, err)
		_, err = s.ServiceAccount(t.Context(), id)
		must(t, err)
	}
	_, err = s.ServiceAccount(t.Context(), "for ever")
	must(t, err)
	_, err = s.Session(t.Context(), "long expired")
	wantError(t, "read a pruned session", err, databroker.ErrNotFound)
	_, err = s.ServiceAccount(t.Context(), "long expired")
	wantError(t, "read a pruned account", err, databroker.ErrNotFound)
	changes, err := s.Changes(t.Context(), before)
	must(t, err)
	wantEqual(t, "changes", changes, []databroker.Change{
		{Sequence: before + 1, Kind: databroker.KindSession, ID: "long expired", Deleted: true},
		{Sequence: before + 2, Kind: databroker.KindServiceAccount, ID: "long expired", Deleted: true},
	})
	removed, err = s.(Pruner).Prune(t.Context())
	must(t, err)
	wantEqual(t, "removed by a second prune", removed, 0)
}

func testPruneBounded(t *testing.T, s databroker.Store) {
	const n = 600
	for i := range n {
		session := newSession(fmt.Sprintf("s%d", i))
		session.ExpiresAt = time.Now().Add(-48 * time.Hour)
		must(t, s.PutSession(t.Context(), session))
	}
	total := 0
	for {
		removed, err := s.(Pruner).Prune(t.Context())
		must(t, err)
		if removed == n {
			t.Errorf("one prune removed all %d", n)
		}
		if total += removed; removed == 0 {
			break
		}
	}
	wantEqual(t, "removed", total, n)
}
