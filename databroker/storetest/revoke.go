package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

// putSessions writes sessions of alice, each a second younger than the one before.
func putSessions(t *testing.T, s databroker.Store, ids ...string) []*databroker.Session {
	t.Helper()
	sessions := make([]*databroker.Session, len(ids))
	for i, id := range ids {
		sessions[i] = newSession(id)
		sessions[i].CreatedAt = start().Add(time.Duration(i) * time.Second)
		must(t, s.PutSession(t.Context(), sessions[i]))
	}
	return sessions
}

// wantSessions looks at the ids alone.
func wantSessions(t *testing.T, what string, got []*databroker.Session, err error, want ...string) {
	t.Helper()
	must(t, err)
	var ids []string
	for _, session := range got {
		ids = append(ids, session.ID)
	}
	wantEqual(t, what, ids, want)
}

func wantSequence(t *testing.T, s databroker.Store, what string, want uint64) {
	t.Helper()
	got, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence after "+what, got, want)
}

func testProviderSessions(t *testing.T, s databroker.Store) {
	for i, of := range [][2]string{{"idp-1", "sid"}, {"idp-1", "other"}, {"idp-2", "sid"}, {"idp-1", ""}, {"", "sid"}, {"idp-1", "sid"}} {
		session := newSession(fmt.Sprintf("s%d", i))
		session.IDPID, session.ProviderSessionID = of[0], of[1]
		session.CreatedAt = start().Add(-time.Duration(i) * time.Second)
		must(t, s.PutSession(t.Context(), session))
	}
	s = again(t, s)
	for of, want := range map[[2]string][]string{
		{"idp-1", "sid"}:   {"s5", "s0"},
		{"idp-1", "other"}: {"s1"},
		{"idp-2", "sid"}:   {"s2"},
		{"", "sid"}:        {"s4"},
		{"idp-1", "SID"}:   nil,
		{"idp-1", "%"}:     nil,
		{"idp-1", ""}:      nil, // it named none, which is no name
	} {
		got, err := s.ProviderSessions(t.Context(), of[0], of[1])
		wantSessions(t, fmt.Sprintf("sessions of %q", of), got, err, want...)
	}

	moved, err := s.Session(t.Context(), "s0")
	must(t, err)
	moved.ProviderSessionID = "new"
	must(t, s.PutSession(t.Context(), moved))
	got, err := s.ProviderSessions(t.Context(), "idp-1", "new")
	wantSessions(t, "sessions of the new sid", got, err, "s0")
	wantEqual(t, "what is listed", got[0], moved)
	must(t, s.DeleteSession(t.Context(), "s5"))
	got, err = s.ProviderSessions(t.Context(), "idp-1", "sid")
	wantSessions(t, "sessions of the old sid", got, err)
}

func testTouchSessions(t *testing.T, s databroker.Store) {
	session, unused := newSession("s1"), newSession("unused")
	unused.AccessedAt = time.Time{}
	must(t, s.PutSession(t.Context(), session))
	must(t, s.PutSession(t.Context(), unused))
	first := session.AccessedAt
	s = again(t, s)
	wantSession(t, s, unused)

	touch := func(at time.Time) {
		must(t, s.TouchSessions(t.Context(), map[string]databroker.Access{"s1": {At: at}, "gone": {At: start()}}))
		s = again(t, s)
		wantSession(t, s, session)
	}
	must(t, s.TouchSessions(t.Context(), nil))
	touch(time.Time{})
	touch(first.Add(-time.Second))
	session.AccessedAt, session.LongestGap = first.Add(time.Minute), time.Minute
	touch(session.AccessedAt.Add(999).In(time.FixedZone("east", 3600)))
	unused.AccessedAt = start()
	must(t, s.TouchSessions(t.Context(), map[string]databroker.Access{"unused": {At: start()}}))
	wantSession(t, s, unused)
	_, err := s.Session(t.Context(), "gone")
	wantError(t, "read one that was gone", err, databroker.ErrNotFound)
	wantSequence(t, s, "nothing but use", 2)

	// Who writes a session knows no better when it was used.
	for _, at := range []time.Time{{}, first, start().Add(time.Hour)} {
		written := *session
		written.AccessedAt, written.LongestGap = at, at.Sub(start())
		must(t, s.PutSession(t.Context(), &written))
		session.Version = written.Version
		s = again(t, s)
		wantSession(t, s, session)
	}
	listed, err := s.Sessions(t.Context(), "alice")
	must(t, err)
	wantEqual(t, "listed sessions", listed, []*databroker.Session{session, unused})

	// A session of that id that is made later was not used yet.
	must(t, s.DeleteSession(t.Context(), "s1"))
	session.Version, session.AccessedAt = 0, time.Time{}
	must(t, s.PutSession(t.Context(), session))
	session.LongestGap = 0
	s = again(t, s)
	wantSession(t, s, session)
}

func testLongestGap(t *testing.T, s databroker.Store) {
	const m = time.Minute
	steps := []struct {
		name    string
		at, gap time.Duration // since the session was made
		want    time.Duration
	}{
		{"the first use, after the session was made", 3 * m, 0, 3 * m},
		{"a shorter gap", 5 * m, 0, 3 * m},
		{"a longer one", 9 * m, 0, 4 * m},
		{"a use from before", 7 * m, 0, 4 * m},
		{"uses that nobody told of, by one who saw them", 60 * m, 2 * m, 4 * m},
		{"by one who saw a longer gap", 90 * m, 5*m + 999, 5 * m},
		{"by one who did not see uses that others told of", 96 * m, 60 * m, 6 * m},
		{"by one who saw nothing", 110 * m, -m, 14 * m},
		{"before the session was made, by a clock that is behind", -m, 0, 14 * m},
	}
	session, behind := newSession("s1"), newSession("behind")
	session.AccessedAt, behind.AccessedAt = time.Time{}, time.Time{}
	must(t, s.PutSession(t.Context(), session))
	must(t, s.PutSession(t.Context(), behind))
	for _, step := range steps {
		at := start().Add(step.at)
		must(t, s.TouchSessions(t.Context(), map[string]databroker.Access{"s1": {At: at, Gap: step.gap}}))
		s = again(t, s)
		if at.After(session.AccessedAt) {
			session.AccessedAt = at
		}
		session.LongestGap = step.want
		got, err := s.Session(t.Context(), "s1")
		must(t, err)
		wantEqual(t, step.name, got, session)
	}
	behind.AccessedAt = start().Add(-m)
	must(t, s.TouchSessions(t.Context(), map[string]databroker.Access{"behind": {At: behind.AccessedAt}}))
	wantSession(t, s, behind)
}

func testTouchManySessions(t *testing.T, s databroker.Store) {
	const n = 300
	accessed := make(map[string]databroker.Access)
	for i := range 2 * n {
		id := fmt.Sprintf("s%d", i)
		accessed[id] = databroker.Access{At: start().Add(time.Duration(i+1000) * time.Hour)}
		if i < n {
			must(t, s.PutSession(t.Context(), newSession(id)))
		}
	}
	must(t, s.TouchSessions(t.Context(), accessed))
	s = again(t, s)
	sessions, err := s.Sessions(t.Context(), "")
	must(t, err)
	wantEqual(t, "number of sessions", len(sessions), n)
	for _, session := range sessions {
		wantEqual(t, session.ID, session.AccessedAt, accessed[session.ID].At)
	}
}

// wantRevoked returns the user, who must have been revoked since before.
func wantRevoked(t *testing.T, s databroker.Store, id string, before time.Time) *databroker.User {
	t.Helper()
	got, err := s.User(t.Context(), id)
	must(t, err)
	if got.RevokedAt.Before(before.Add(-time.Microsecond)) || got.RevokedAt.After(time.Now()) || got.RevokedAt.Location() != time.UTC {
		t.Errorf("user %s was revoked at %v, want between %v and now, in UTC", id, got.RevokedAt, before)
	}
	return got
}

func testRevokeSession(t *testing.T, s databroker.Store) {
	alice := newUser("alice")
	must(t, s.PutUser(t.Context(), alice))
	sessions := putSessions(t, s, "s1", "s2")
	s = again(t, s)
	wantError(t, "revoke an unknown session", s.RevokeSession(t.Context(), "no"), databroker.ErrNotFound)
	wantSequence(t, s, "nothing but a refusal", 3)

	before := time.Now()
	must(t, s.RevokeSession(t.Context(), "s1"))
	s = again(t, s)
	_, err := s.Session(t.Context(), "s1")
	wantError(t, "read a revoked session", err, databroker.ErrNotFound)
	wantError(t, "revoke a revoked session", s.RevokeSession(t.Context(), "s1"), databroker.ErrNotFound)
	wantSession(t, s, sessions[1])
	got := wantRevoked(t, s, "alice", before)
	alice.RevokedAt, alice.Version = got.RevokedAt, 5
	wantEqual(t, "the user", got, alice)
	changes, err := s.Changes(t.Context(), 3)
	must(t, err)
	wantEqual(t, "changes", changes, []databroker.Change{
		{Sequence: 4, Kind: databroker.KindSession, ID: "s1", Deleted: true},
		{Sequence: 5, Kind: databroker.KindUser, ID: "alice"},
	})

	stranger := newSession("s3")
	stranger.UserID = "stranger"
	must(t, s.PutSession(t.Context(), stranger))
	must(t, s.RevokeSession(t.Context(), "s3"))
	_, err = s.User(t.Context(), "stranger")
	wantError(t, "read the user of a session that was revoked without one", err, databroker.ErrNotFound)
	_, err = s.Session(t.Context(), "s3")
	wantError(t, "read the session of a user that is unknown", err, databroker.ErrNotFound)
}

func testRevokeUser(t *testing.T, s databroker.Store) {
	must(t, s.PutUser(t.Context(), newUser("alice")))
	must(t, s.PutUser(t.Context(), newUser("bob")))
	putSessions(t, s, "s2", "s1")
	for id, of := range map[string][2]string{"bob's": {"bob", "idp-1"}, "of idp-2": {"alice", "idp-2"}, "of none": {"alice", ""}} {
		session := newSession(id)
		session.UserID, session.IDPID = of[0], of[1]
		session.CreatedAt = start().Add(time.Hour)
		must(t, s.PutSession(t.Context(), session))
	}
	s = again(t, s)
	revoke := func(userID, idpID string, want int, left ...string) {
		t.Helper()
		before := time.Now()
		ended, err := s.RevokeUser(t.Context(), userID, idpID)
		must(t, err)
		wantEqual(t, "sessions that ended", ended, want)
		s = again(t, s)
		wantRevoked(t, s, userID, before)
		got, err := s.Sessions(t.Context(), "")
		wantSessions(t, "what is left", got, err, left...)
	}
	revoke("alice", "idp-3", 0, "s2", "s1", "bob's", "of idp-2", "of none")
	revoke("alice", "idp-1", 2, "bob's", "of idp-2", "of none")
	changes, err := s.Changes(t.Context(), 8)
	must(t, err)
	wantEqual(t, "changes", changes, []databroker.Change{
		{Sequence: 9, Kind: databroker.KindSession, ID: "s2", Deleted: true},
		{Sequence: 10, Kind: databroker.KindSession, ID: "s1", Deleted: true},
		{Sequence: 11, Kind: databroker.KindUser, ID: "alice"},
	})
	revoke("alice", "", 2, "bob's")
	revoke("alice", "", 0, "bob's")
	sequence, err := s.Sequence(t.Context())
	must(t, err)
	bob, err := s.User(t.Context(), "bob")
	must(t, err)
	wantEqual(t, "when another user was revoked", bob.RevokedAt, time.Time{})

	ended, err := s.RevokeUser(t.Context(), "no", "")
	wantError(t, "revoke an unknown user", err, databroker.ErrNotFound)
	wantEqual(t, "sessions of an unknown user", ended, 0)
	_, err = s.RevokeUser(t.Context(), "", "")
	wantError(t, "revoke the user without a name", err, databroker.ErrNotFound)
	wantSequence(t, s, "a refusal", sequence)

	// Who has no record may still have sessions, and they end.
	stranger := newSession("stranger's")
	stranger.UserID = "stranger"
	must(t, s.PutSession(t.Context(), stranger))
	ended, err = s.RevokeUser(t.Context(), "stranger", "")
	must(t, err)
	wantEqual(t, "sessions of a user without a record", ended, 1)
	listed, err := s.Sessions(t.Context(), "")
	wantSessions(t, "what is left in the end", listed, err, "bob's")
}

func testRevokedAt(t *testing.T, s databroker.Store) {
	alice := newUser("alice")
	alice.RevokedAt = start()
	must(t, s.PutUser(t.Context(), alice))
	got, err := s.User(t.Context(), "alice")
	must(t, err)
	wantEqual(t, "when a new user was revoked", got.RevokedAt, time.Time{})

	_, err = s.RevokeUser(t.Context(), "alice", "")
	must(t, err)
	wantError(t, "sign in from before the revocation", s.PutUser(t.Context(), alice), databroker.ErrConflict)
	s = again(t, s)
	revoked, err := s.User(t.Context(), "alice")
	must(t, err)
	if revoked.Version <= alice.Version {
		t.Errorf("the version went from %d to %d", alice.Version, revoked.Version)
	}
	for _, at := range []time.Time{{}, start(), revoked.RevokedAt.Add(-time.Hour)} {
		next, err := s.User(t.Context(), "alice")
		must(t, err)
		next.RevokedAt = at
		must(t, s.PutUser(t.Context(), next))
		s = again(t, s)
		got, err := s.User(t.Context(), "alice")
		must(t, err)
		wantEqual(t, fmt.Sprintf("revoked, after a writer said %v", at), got.RevokedAt, revoked.RevokedAt)
	}
}

func testRevokedSessionStaysGone(t *testing.T, s databroker.Store) {
	must(t, s.PutUser(t.Context(), newUser("alice")))
	for what, revoke := range map[string]func(id string) error{
		"its revocation":           func(id string) error { return s.RevokeSession(t.Context(), id) },
		"the user's revocation":    func(string) error { _, err := s.RevokeUser(t.Context(), "alice", ""); return err },
		"the provider's end of it": func(string) error { _, err := s.RevokeUser(t.Context(), "alice", "idp-1"); return err },
	} {
		inHand := putSessions(t, s, "s1")[0] // as a refresher has read it
		must(t, revoke("s1"))
		s = again(t, s)
		wantError(t, "refresh after "+what, s.PutSession(t.Context(), inHand), databroker.ErrConflict)
		must(t, s.TouchSessions(t.Context(), map[string]databroker.Access{"s1": {At: start().Add(time.Hour)}}))
		_, err := s.Session(t.Context(), "s1")
		wantError(t, "read after "+what, err, databroker.ErrNotFound)
	}
}

// Whatever was written before the user's revocation is gone.
func testRevokeRace(t *testing.T, s databroker.Store) {
	const rounds, writers = 10, 6
	must(t, s.PutUser(t.Context(), newUser("alice")))
	survivors := 0
	for round := range rounds {
		var group errgroup.Group
		for writer := range writers {
			group.Go(func() error {
				for i := range 3 {
					if err := s.PutSession(t.Context(), newSession(fmt.Sprintf("s-%d-%d-%d", round, writer, i))); err != nil {
						return err
					}
				}
				return nil
			})
		}
		group.Go(func() error { _, err := s.RevokeUser(t.Context(), "alice", ""); return err })
		must(t, group.Wait())
		alice, err := s.User(t.Context(), "alice")
		must(t, err)
		sessions, err := s.Sessions(t.Context(), "alice")
		must(t, err)
		survivors += len(sessions)
		for _, session := range sessions {
			if session.Version < alice.Version {
				t.Errorf("session %s of version %d survived the revocation that was change %d", session.ID, session.Version, alice.Version)
			}
		}
	}
	if survivors == 0 || survivors == rounds*writers*3 {
		t.Logf("%d sessions were younger than the revocation: it raced with none", survivors)
	}
}

func testRevokeRefreshRace(t *testing.T, s databroker.Store) {
	must(t, s.PutUser(t.Context(), newUser("alice")))
	for round := range 20 {
		session := putSessions(t, s, fmt.Sprintf("s%d", round))[0]
		refreshed := make(chan struct{}, 1)
		var group errgroup.Group
		group.Go(func() error {
			for {
				err := s.PutSession(t.Context(), session)
				if errors.Is(err, databroker.ErrConflict) {
					return nil
				}
				if err != nil {
					return err
				}
				select {
				case refreshed <- struct{}{}:
				default:
				}
			}
		})
		group.Go(func() error {
			<-refreshed
			if round%2 == 0 {
				return s.RevokeSession(t.Context(), session.ID)
			}
			_, err := s.RevokeUser(t.Context(), "alice", "")
			return err
		})
		must(t, group.Wait())
		_, err := s.Session(t.Context(), session.ID)
		wantError(t, "read a session that was revoked amidst its refreshes", err, databroker.ErrNotFound)
	}
}
