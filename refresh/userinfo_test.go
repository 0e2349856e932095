package refresh

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
)

// Where tokens live long, userinfo says every ten minutes what has changed.
func TestUserInfo(t *testing.T) {
	staff := func(b *idptest.Behaviour) { b.UserInfo = map[string]any{"groups": []string{"staff"}} }
	tests := []struct {
		name      string
		before    func(*idptest.Behaviour)
		after     func(*idptest.Behaviour)
		groups    string
		refreshed int
		atLeast   int // requests to userinfo after the sign-in
	}{
		{"a new group", nil, staff, "[staff]", 0, 3},
		{"without a refresh token", func(b *idptest.Behaviour) { b.NoRefreshToken = true }, staff, "[staff]", 0, 3},
		{"userinfo is down", nil, func(b *idptest.Behaviour) { b.UserInfoStatus = 503 }, "[eng ops]", 0, 3},
		{"there is no userinfo: a refresh in its place", func(b *idptest.Behaviour) { b.NoUserInfo = true },
			func(b *idptest.Behaviour) { b.Claims = map[string]any{"groups": []string{"staff"}} }, "[staff]", 3, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = 24*time.Hour, 24*time.Hour })
				if test.before != nil {
					w.provider.Change(test.before)
				}
				id := w.signIn(w.provider, "ana").ID
				asked := w.provider.Count("userinfo")
				w.provider.Change(test.after)
				r := w.replica()
				w.wait(10*time.Minute - time.Second)
				w.wantCount("userinfo", asked)
				w.wait(21 * time.Minute)
				if got := fmt.Sprint(w.session(id).Claims["groups"]); got != test.groups {
					t.Errorf("groups %s, want %s\n%s", got, test.groups, w.log.String())
				}
				w.wantCount("refresh", test.refreshed)
				if got := w.provider.Count("userinfo") - asked; got < test.atLeast || got > test.atLeast+12 {
					t.Errorf("userinfo was asked %d times, want about %d", got, test.atLeast)
				}
				if st := r.Stats(); st.Scheduled != 1 || st.Refused != 0 {
					t.Errorf("stats %+v", st)
				}
			})
		})
	}
}

// An access token that userinfo refuses is replaced; if the refresh token is no good
// either the session ends.
func TestUserInfoRefuses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = 24*time.Hour, 24*time.Hour })
		id := w.signIn(w.provider, "ana").ID
		var seen *databroker.Session
		w.provider.Change(func(b *idptest.Behaviour) {
			b.OnRequest = func(endpoint string, _ *http.Request) {
				if endpoint == "userinfo" && seen == nil {
					seen = w.session(id)
					w.provider.Revoke()
				}
			}
		})
		r := w.replica()
		w.wait(11 * time.Minute)
		if _, err := w.memory.Session(t.Context(), id); err == nil || r.Stats().Refused != 1 {
			t.Errorf("the session is still there: %v, %+v", err, r.Stats())
		}
	})
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = 24*time.Hour, 24*time.Hour })
		id := w.signIn(w.provider, "ana").ID
		s := w.session(id)
		s.Tokens.AccessToken = "forgotten"
		w.put(s)
		w.replica()
		w.wait(11 * time.Minute)
		w.wantRefreshed(id, 10*time.Minute)
		w.wantCount("refresh", 1)
	})
}

// Who takes over spreads the looks that are due over the time between two.
func TestLooksAreSpread(t *testing.T) {
	te := newTenure(New(Config{}), time.Time{})
	now := time.Now()
	var n news
	for i := range 1000 {
		n.sessions = append(n.sessions, &databroker.Session{
			ID: fmt.Sprint(i), IDPID: "p", Version: uint64(i + 1), CreatedAt: now.Add(-time.Hour), ExpiresAt: now.Add(time.Hour),
			Tokens: databroker.Tokens{AccessToken: "a"},
		})
	}
	n.all = true
	te.hear(n)
	late := 0
	for _, e := range te.schedule.entries {
		if d := e.at[look].Sub(now); d > lookEvery/2 {
			late++
		}
	}
	if late < 400 || late > 600 {
		t.Errorf("%d of 1000 looks are in the second half, want about 500", late)
	}
}
