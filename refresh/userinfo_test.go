package refresh

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
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
	te.began = now
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
		d := e.at[look].Sub(now)
		if d < leaseTTL {
			t.Fatalf("a look after %v, within the lease of who had it before", d)
		}
		if d > leaseTTL+lookEvery/2 {
			late++
		}
	}
	if late < 400 || late > 600 {
		t.Errorf("%d of 1000 looks are in the second half, want about 500", late)
	}
}

// An access token that userinfo refuses, and no refresh token to replace it: the
// session stays, that is said once, and userinfo is asked ever more rarely.
func TestFrozenClaims(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) {
			b.NoRefreshToken, b.Lifetime, b.IDTokenLifetime = true, 24*time.Hour, 24*time.Hour
		})
		for _, subject := range []string{"ana", "bob"} {
			w.signIn(w.provider, subject)
		}
		asked := w.provider.Count("userinfo")
		r := w.replica()
		w.wait(time.Minute)
		w.provider.Revoke()
		w.wait(13 * time.Hour)
		for _, subject := range []string{"ana", "bob"} {
			w.session("session-" + subject)
			if got := strings.Count(w.log.String(), "user="+subject+" session=session-"+subject); got != 1 {
				t.Errorf("%s was logged %d times, want once:\n%s", subject, got, w.log.String())
			}
		}
		n := w.provider.Count("userinfo") - asked
		if n < 2*4 || n > 2*12 {
			t.Errorf("userinfo was asked %d times in 13 hours for two sessions", n)
		}
		if st := r.Stats(); st.Frozen != uint64(n) || st.Refused != 0 || st.Unusable != 0 || st.Scheduled != 2 {
			t.Errorf("%d requests to userinfo, stats %+v", n, st)
		}
		w.wantCount("token", 2)
	})
}

// Claims that can be read again after all are followed as before.
func TestFrozenClaimsThaw(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) {
			b.NoRefreshToken, b.Lifetime, b.IDTokenLifetime = true, 24*time.Hour, 24*time.Hour
		})
		id := w.signIn(w.provider, "ana").ID
		w.replica()
		w.provider.Change(func(b *idptest.Behaviour) { b.UserInfoStatus = 401 })
		w.wait(2 * time.Hour)
		w.provider.Change(func(b *idptest.Behaviour) { b.UserInfoStatus = 0 })
		w.wait(2 * time.Hour)
		w.provider.Change(func(b *idptest.Behaviour) { b.UserInfo = map[string]any{"groups": []string{"staff"}} })
		w.wait(10 * time.Minute)
		if got := fmt.Sprint(w.session(id).Claims["groups"]); got != "[staff]" {
			t.Errorf("groups %s, want [staff]", got)
		}
	})
}

// GitHub gives no refresh token: its access token is good until it is revoked, which
// ends the session. One answer that it is not is no proof.
func TestRevokedWithoutRefreshTokens(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.configureKind("github", w.provider)
		id := w.signIn(w.provider, "ana").ID
		r := w.replica()
		w.wait(time.Minute)
		refused := false
		w.provider.Change(func(b *idptest.Behaviour) {
			b.UserInfoStatus = 401
			b.OnRequest = func(string, *http.Request) {
				refused = true
				w.provider.Change(func(b *idptest.Behaviour) { b.UserInfoStatus, b.OnRequest = 0, nil })
			}
		})
		w.wait(12 * time.Minute)
		w.session(id)
		if !refused {
			t.Error("nobody was asked")
		}
		w.provider.Revoke()
		w.wait(12 * time.Minute)
		if _, err := w.memory.Session(t.Context(), id); !errors.Is(err, databroker.ErrNotFound) {
			t.Errorf("the session: %v, want %v", err, databroker.ErrNotFound)
		}
		if st := r.Stats(); st.Refused != 1 || st.Frozen != 0 || st.Scheduled != 0 {
			t.Errorf("stats %+v", st)
		}
		if log := w.log.String(); !strings.Contains(log, "user=ana session=session-ana") {
			t.Errorf("no line in the log:\n%s", log)
		}
	})
}

// Nothing is said, or counted, where there is no userinfo to refuse anything.
func TestNothingToLookAt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) {
			b.NoUserInfo, b.NoRefreshToken, b.Lifetime = true, true, 24*time.Hour
		})
		id := w.signIn(w.provider, "ana").ID
		r := w.replica()
		w.wait(2 * time.Hour)
		w.session(id)
		if st := r.Stats(); st.Frozen != 0 || strings.Contains(w.log.String(), id) {
			t.Errorf("stats %+v\n%s", st, w.log.String())
		}
	})
}

// A look whose session was written meanwhile is done again, and nothing is lost.
func TestChangedWhileLookedAt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = 24*time.Hour, 24*time.Hour })
		id := w.signIn(w.provider, "ana").ID
		w.provider.Change(func(b *idptest.Behaviour) {
			b.UserInfo = map[string]any{"groups": []string{"staff"}}
			b.OnRequest = func(endpoint string, _ *http.Request) {
				s := w.session(id)
				if endpoint != "userinfo" || len(s.Devices) > 0 {
					return
				}
				s.Devices = []databroker.DeviceCredential{{ID: "key", Type: "any"}}
				w.put(s)
			}
		})
		te, again := w.tenureOf(), work{id: id, kind: look, provider: w.set.Get(w.session(id).IDPID)}
		if done := te.visit(t.Context(), again); done.session != nil || !done.looked.IsZero() || done.cause != none {
			t.Errorf("the first look came to something: %+v", done)
		}
		te.visit(t.Context(), again)
		if s := w.session(id); fmt.Sprint(s.Claims["groups"]) != "[staff]" || len(s.Devices) != 1 {
			t.Errorf("groups %v, %d devices", s.Claims["groups"], len(s.Devices))
		}
	})
}

// The user's record follows the claims, whatever brings them and whichever changes,
// and is not written otherwise.
func TestUserRecord(t *testing.T) {
	tests := []struct {
		name, person, email string
		written             bool
	}{
		{"another name", "Ana", "alice@example.com", true},
		{"another address", "Alice", "ana@example.com", true},
		{"other groups alone", "Alice", "alice@example.com", false},
	}
	for _, test := range tests {
		for _, lifetime := range []time.Duration{5 * time.Minute, 24 * time.Hour} {
			t.Run(fmt.Sprintf("%s, tokens live for %v", test.name, lifetime), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = lifetime, 24*time.Hour })
					id := w.signIn(w.provider, "ana").ID
					before := &databroker.User{ID: "ana", Email: "alice@example.com", Name: "Alice"}
					if err := w.memory.PutUser(t.Context(), before); err != nil {
						t.Fatal(err)
					}
					w.provider.Change(func(b *idptest.Behaviour) {
						b.Claims = map[string]any{"name": test.person, "email": test.email, "email_verified": true, "groups": []string{"staff"}}
					})
					w.replica()
					w.wait(11 * time.Minute)
					if got := fmt.Sprint(w.session(id).Claims["groups"]); got != "[staff]" {
						t.Fatalf("groups %s, want [staff]", got)
					}
					user, err := w.memory.User(t.Context(), "ana")
					if err != nil || user.Name != test.person || user.Email != test.email || user.Version > before.Version != test.written {
						t.Errorf("user %+v, %v; before %+v", user, err, before)
					}
				})
			})
		}
	}
}
