package refresh

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
)

// The databroker is away, longer than a lease lasts, from when the provider has
// replaced a refresh token. Whichever replica finds it back first, the one that has
// the new token writes it before anybody sends the old one.
func TestTakeoverWithTokensUnwritten(t *testing.T) {
	for _, healed := range []time.Duration{0, 1, 2, 3, 4, 5, 6, 7, 8, 9} {
		t.Run(fmt.Sprintf("back after 5 min and %d s", healed), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) {
					b.RotateRefresh, b.Lifetime, b.IDTokenLifetime = true, 5*time.Minute, 5*time.Minute
				})
				id := w.signIn(w.provider, "ana").ID
				first := w.replica()
				w.wait(time.Second)
				second := w.replica()
				w.provider.Change(func(b *idptest.Behaviour) {
					b.OnToken = func(*http.Request) { first.store.Break(errBroken); second.store.Break(errBroken) }
				})
				w.wait(5*time.Minute + healed*time.Second)
				w.wantCount("refresh", 1)
				w.provider.Change(func(b *idptest.Behaviour) { b.OnToken = nil })
				first.store.Heal()
				second.store.Heal()
				w.wait(time.Hour)
				w.wantCount("reuse", 0)
				if age := time.Since(w.session(id).RefreshedAt); age > 5*time.Minute {
					t.Errorf("the session was refreshed %v ago", age)
				}
			})
		})
	}
}

// Who takes over leaves what may be under way for as long as a lease lasts, be it due
// for new tokens or for a look that may come to that; then a refusal ends a session
// as ever. What is written meanwhile is nobody else's.
func TestTakeoverWaits(t *testing.T) {
	tests := []struct {
		name     string
		lifetime time.Duration
		since    bool // it was written since
		first    time.Duration
	}{
		{"due for new tokens", 5 * time.Minute, false, leaseTTL},
		{"due for a look", 24 * time.Hour, false, leaseTTL},
		{"written since", 5 * time.Minute, true, minLife},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = test.lifetime, 24*time.Hour })
				s := w.signIn(w.provider, "ana")
				w.provider.Revoke()
				w.wait(time.Hour)
				token, userinfo := w.provider.Count("token"), w.provider.Count("userinfo")
				w.replica()
				if test.since {
					w.wait(time.Second)
					s.RefreshedAt, s.Tokens.ExpiresAt = time.Now(), time.Now().Add(time.Second)
					w.put(s)
				}
				w.wait(test.first - 1)
				w.wantCount("token", token)
				w.wantCount("userinfo", userinfo)
				w.session(s.ID)
				w.wait(1)
				if _, err := w.memory.Session(t.Context(), s.ID); !errors.Is(err, databroker.ErrNotFound) {
					t.Errorf("the session: %v, want %v", err, databroker.ErrNotFound)
				}
			})
		})
	}
}

// So it is for what is heard later, and for what a look comes to.
func TestSoonest(t *testing.T) {
	tests := []struct {
		name  string
		began time.Duration // when we took over, after the session was renewed
		now   time.Duration
		want  bool
	}{
		{"just renewed", -time.Hour, minLife - 1, false},
		{"renewed a while ago", -time.Hour, minLife, true},
		{"taken over just now", time.Hour, time.Hour + leaseTTL - 1, false},
		{"taken over a while ago", time.Hour, time.Hour + leaseTTL, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = 24*time.Hour, 24*time.Hour })
				s := w.signIn(w.provider, "ana")
				s.Tokens.AccessToken = "forgotten" // userinfo refuses it
				w.put(s)
				te := w.tenureOf()
				te.began = w.began.Add(test.began)
				for kind, at := range te.due(s, time.Time{}) {
					if !at.IsZero() && at.Before(te.soonest(s)) {
						t.Errorf("due for %d after %v", kind, at.Sub(w.began))
					}
				}
				w.wait(test.now)
				done := te.visit(t.Context(), work{id: s.ID, kind: look, provider: w.set.Get(s.IDPID)})
				if got := done.asked == renew; got != test.want || done.cause != none {
					t.Errorf("renewed: %t, want %t; cause %d", got, test.want, done.cause)
				}
			})
		})
	}
}

// Nobody works with a lease that has run out, which it does from when it was asked
// for, however slow the answer: the first lease, and one that was renewed.
func TestLeaseEnds(t *testing.T) {
	for _, brokenAfter := range []time.Duration{5 * time.Second, 16 * time.Second} {
		t.Run(fmt.Sprint("cut off after ", brokenAfter), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				const slow = 3 * time.Second
				r := New(Config{Store: &slowLease{Store: w.memory, answers: slow, until: time.Now().Add(brokenAfter)}})
				r.Publish(w.set)
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- r.Run(ctx) }()
				end := leaseTTL // of the lease asked for at once
				if brokenAfter > slow+renewLeaseEvery {
					end += slow + renewLeaseEvery
				}
				w.wait(end - 1)
				if !r.Stats().Holding {
					t.Error("the lease is not held until its end")
				}
				w.wait(2 * time.Second)
				if r.Stats().Holding {
					t.Error("the lease is held beyond its end")
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// slowLease gives leases, but says so late, and none after a while.
type slowLease struct {
	databroker.Store
	answers time.Duration
	until   time.Time
}

func (s *slowLease) Lease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	if time.Now().After(s.until) {
		return false, errBroken
	}
	held, err := s.Store.Lease(ctx, name, owner, ttl)
	pause(ctx, s.answers)
	return held, err
}

// A lease that is given back is another's at once, whoever held it and however long
// it would have lasted.
func TestLeaseIsGivenBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first := w.replica()
		w.wait(time.Second)
		first.stop()
		if held, err := w.memory.Lease(t.Context(), leaseName, "another", time.Second); !held || err != nil {
			t.Errorf("held %t, %v", held, err)
		}
	})
}

// Of a session that was listed nothing is kept once it is in the schedule.
func TestTakeoverKeepsNoSessions(t *testing.T) {
	te := newTenure(New(Config{}), time.Time{})
	s := &databroker.Session{ID: "s", IDPID: "p", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), Tokens: databroker.Tokens{AccessToken: "a"}}
	list := []*databroker.Session{s}
	freed := make(chan struct{})
	runtime.AddCleanup(s, func(freed chan struct{}) { close(freed) }, freed)
	te.hear(news{all: true, sessions: list})
	runtime.GC()
	select {
	case <-freed:
	case <-time.After(5 * time.Second):
		t.Error("the session is still in memory")
	}
	if len(te.schedule.entries) != 1 {
		t.Error("it is not in the schedule")
	}
	runtime.KeepAlive(list)
}
