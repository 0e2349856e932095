package refresh

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
)

var errBroken = errors.New("broken for the test")

// Each refresh token is good for one use, and a second one ends all.
func TestRotation(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) {
			b.RotateRefresh, b.Lifetime, b.IDTokenLifetime = true, 5*time.Minute, time.Hour
		})
		first := w.signIn(w.provider, "ana")
		w.replica()
		w.wait(3*time.Minute + 59*time.Second)
		w.wantCount("refresh", 0)
		w.wait(time.Second)
		w.wantCount("refresh", 1)
		s := w.wantRefreshed(first.ID, 4*time.Minute)
		if s.Tokens.RefreshToken == first.Tokens.RefreshToken || s.Tokens.AccessToken == first.Tokens.AccessToken || !s.Tokens.ExpiresAt.Equal(w.began.Add(9*time.Minute)) {
			t.Errorf("the tokens are those of before, or have another end: %v", s.Tokens.ExpiresAt.Sub(w.began))
		}
		w.wait(13*time.Hour + 54*time.Minute)
		w.wantRefreshed(first.ID, 13*time.Hour+56*time.Minute)
		w.wantCount("refresh", 209)
		w.wantCount("reuse", 0)
		w.wait(24 * time.Hour)
		w.wantCount("refresh", 209) // not past the session's end
	})
}

// Of three Refreshers one asks the provider, once for each session, while all that
// are open look at theirs all the time.
func TestReplicas(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const n = 200
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
		var ids []string
		for i := range n {
			ids = append(ids, w.signIn(w.provider, fmt.Sprint("user-", i)).ID)
		}
		w.wait(5 * time.Minute) // all of them are due at once
		reading, stop := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		for _, id := range ids {
			readers.Go(func() {
				for reading.Err() == nil {
					s, err := w.memory.Session(t.Context(), id)
					if err != nil || !s.ExpiresAt.After(time.Now()) {
						t.Errorf("read session: %v", err)
						return
					}
					pause(reading, 20*time.Millisecond)
				}
			})
		}
		replicas := []*replica{w.replica(), w.replica(), w.replica()}
		w.wait(leaseTTL + 5*time.Second)
		stop()
		readers.Wait()
		w.wantCount("refresh", n)
		w.wantCount("reuse", 0)
		holding, refreshed := 0, uint64(0)
		for _, r := range replicas {
			if r.Stats().Holding {
				holding++
			}
			refreshed += r.Stats().Refreshed
		}
		if holding != 1 || refreshed != n {
			t.Errorf("%d replicas work and have refreshed %d sessions, want 1 and %d", holding, refreshed, n)
		}
		for _, id := range ids {
			if w.session(id).RefreshedAt.IsZero() {
				t.Fatalf("%s was not refreshed", id)
			}
		}
	})
}

// A holder that is cut off stops by itself before another takes over, and one that
// ends gives the lease back.
func TestHandover(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 90*time.Second })
		id := w.signIn(w.provider, "ana").ID
		first := w.replica()
		w.wait(time.Second)
		second := w.replica()
		w.wait(35 * time.Second)
		w.wantRefreshed(id, 30*time.Second)
		if !first.Stats().Holding || second.Stats().Holding {
			t.Fatal("the first does not hold the lease alone")
		}
		first.store.Break(errBroken)
		for range 60 {
			w.wait(time.Second)
			if first.Stats().Holding && second.Stats().Holding {
				t.Fatal("both hold the lease")
			}
		}
		if first.Stats().Holding || !second.Stats().Holding {
			t.Fatal("the second has not taken over")
		}
		w.wantCount("refresh", 2) // the second leaves the session to the first for a while
		first.store.Heal()
		w.wait(time.Minute)
		if first.Stats().Holding || first.Stats().Scheduled != 0 {
			t.Error("the first works again")
		}
		second.stop()
		w.wait(takeLeaseEvery)
		if !first.Stats().Holding {
			t.Error("the lease was not given back")
		}
		w.wait(time.Hour)
		w.session(id)
		w.wantCount("reuse", 0)
	})
}

// An attempt does not begin with a lease that may end before it does.
func TestLeaseOutlastsAttempts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 82 * time.Second })
		w.signIn(w.provider, "ana")
		r := w.replica()
		w.wait(time.Second)
		te := newTenure(r.Refresher, time.Now().Add(attemptWait))
		if te.outlasts(attemptWait) || !te.outlasts(attemptWait-1) {
			t.Error("the lease outlasts what is as long as it")
		}
		te.hear(news{sessions: []*databroker.Session{w.session("session-ana")}})
		started := 0
		w.wait(time.Minute)
		te.startDue(func(work) { started++ })
		until := time.Now().Add(attemptWait + 1)
		te.until.Store(&until)
		if started != 0 {
			t.Error("started with a lease that ends")
		}
		if te.startDue(func(work) { started++ }); started != 1 {
			t.Error("not started with a lease that lasts")
		}
	})
}

func TestOutageSignsNobodyOut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const n = 300
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
		var ids []string
		for i := range n {
			ids = append(ids, w.signIn(w.provider, fmt.Sprint("user-", i)).ID)
		}
		r := w.replica()
		w.wait(3 * time.Minute)
		w.provider.Change(func(b *idptest.Behaviour) {
			b.TokenStatus, b.DiscoveryStatus = http.StatusServiceUnavailable, http.StatusServiceUnavailable
		})
		before := w.provider.Count("token")
		w.wait(10 * time.Minute)
		if got := w.provider.Count("token") - before; got < 5 || got > 20 {
			t.Errorf("%d token requests while the provider is down, want a few", got)
		}
		for _, id := range ids {
			w.session(id)
		}

		var mu sync.Mutex
		perSecond := map[int64]int{}
		w.provider.Change(func(b *idptest.Behaviour) {
			b.TokenStatus, b.DiscoveryStatus = 0, 0
			b.OnToken = func(*http.Request) {
				mu.Lock()
				defer mu.Unlock()
				perSecond[time.Now().Unix()]++
			}
		})
		w.wait(maxPause + time.Minute)
		for _, id := range ids {
			if w.session(id).RefreshedAt.IsZero() {
				t.Fatalf("%s was not refreshed after the outage", id)
			}
		}
		for second, got := range perSecond {
			if got > 101 {
				t.Errorf("%d requests in second %d", got, second)
			}
		}
		w.wantCount("reuse", 0)
		if st := r.Stats(); st.Unavailable == 0 || st.Refused != 0 || st.Scheduled != n {
			t.Errorf("stats %+v", st)
		}
		if got := strings.Count(w.log.String(), "does not answer"); got != 1 {
			t.Errorf("the outage was logged %d times:\n%s", got, w.log.String())
		}
	})
}

// A provider that is down, or that hangs, delays nobody at another.
func TestProvidersFailApart(t *testing.T) {
	other := idptest.NewProvider(t)
	inWorld(t, func(t *testing.T, w *world) {
		w.configure(w.provider, other)
		for _, p := range []*idptest.Provider{w.provider, other} {
			p.Change(func(b *idptest.Behaviour) { b.Lifetime = 2 * time.Minute })
		}
		for i := range 50 {
			w.signIn(w.provider, fmt.Sprint("user-", i))
		}
		id := w.signIn(other, "bob").ID
		w.provider.Change(func(b *idptest.Behaviour) { b.OnToken = func(r *http.Request) { <-r.Context().Done() } })
		w.replica()
		w.wait(time.Minute)
		w.wantRefreshed(id, time.Minute)
		w.wait(time.Hour)
		w.wantRefreshed(id, time.Hour+time.Minute)
	})
}

// One session that a provider always fails for is not in the way of the others.
func TestOneSessionFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 5 * time.Minute })
		bad := w.signIn(w.provider, "bad").Tokens.RefreshToken
		good := w.signIn(w.provider, "good").ID
		w.provider.Change(func(b *idptest.Behaviour) {
			b.OnToken = func(r *http.Request) {
				if r.FormValue("refresh_token") == bad {
					panic(http.ErrAbortHandler)
				}
			}
		})
		r := w.replica()
		w.wait(2 * time.Hour)
		if age := time.Since(w.session(good).RefreshedAt); age > 6*time.Minute {
			t.Errorf("the other session was refreshed %v ago", age)
		}
		w.session("session-bad")
		if n := r.Stats().Unavailable; n < 10 || n > 60 {
			t.Errorf("%d attempts at the bad session", n)
		}
	})
}

func TestRefusedEndsTheSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.signIn(w.provider, "ana").ID
		w.provider.Revoke()
		r := w.replica()
		w.wait(2 * time.Hour)
		if _, err := w.memory.Session(t.Context(), id); !errors.Is(err, databroker.ErrNotFound) {
			t.Errorf("the session: %v, want %v", err, databroker.ErrNotFound)
		}
		if st := r.Stats(); st.Refused != 1 || st.Scheduled != 0 {
			t.Errorf("stats %+v", st)
		}
		if log := w.log.String(); !strings.Contains(log, "user=ana session=session-ana") {
			t.Errorf("no line in the log:\n%s", log)
		}
	})
}

// A refresh token that is refused because somebody else has used it ends nothing.
func TestRefusedAfterSuccessElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 5 * time.Minute })
		old := w.signIn(w.provider, "ana")
		w.provider.Change(func(b *idptest.Behaviour) {
			b.TokenError = "invalid_grant"
			b.OnToken = func(*http.Request) {
				s := w.session(old.ID)
				s.Tokens.RefreshToken, s.RefreshedAt = "newer", time.Now()
				s.Tokens.ExpiresAt = time.Now().Add(5 * time.Minute)
				w.put(s)
			}
		})
		r := w.replica()
		w.wait(4 * time.Minute)
		w.wantCount("token", 2)
		if s := w.session(old.ID); s.Tokens.RefreshToken != "newer" {
			t.Error("the newer token was lost")
		}
		w.wait(4*time.Minute - time.Second)
		w.wantCount("token", 2)
		if st := r.Stats(); st.Refused != 0 || st.Scheduled != 1 {
			t.Errorf("stats %+v", st)
		}
	})
}

// A session that is revoked while it is refreshed stays revoked; one that is written
// meanwhile keeps what was written, and gets its tokens.
func TestChangedMeanwhile(t *testing.T) {
	tests := []struct {
		name   string
		change func(*world, *databroker.Session)
		check  func(*testing.T, *databroker.Session, error)
	}{
		{"revoked", func(w *world, s *databroker.Session) {
			if err := w.memory.RevokeSession(w.Context(), s.ID); err != nil {
				w.Errorf("revoke: %v", err)
			}
		}, func(t *testing.T, _ *databroker.Session, err error) {
			if !errors.Is(err, databroker.ErrNotFound) {
				t.Errorf("the session: %v, want %v", err, databroker.ErrNotFound)
			}
		}},
		{"a device was shown", func(w *world, s *databroker.Session) {
			s.Devices = []databroker.DeviceCredential{{ID: "key", Type: "any"}}
			w.put(s)
		}, func(t *testing.T, s *databroker.Session, err error) {
			if err != nil || len(s.Devices) != 1 {
				t.Errorf("the device is lost: %v", err)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
				id := w.signIn(w.provider, "ana").ID
				var once sync.Once
				w.provider.Change(func(b *idptest.Behaviour) {
					b.OnToken = func(*http.Request) { once.Do(func() { test.change(w, w.session(id)) }) }
				})
				w.replica()
				w.wait(time.Hour)
				s, err := w.memory.Session(t.Context(), id)
				test.check(t, s, err)
				w.wantCount("reuse", 0)
				if err == nil {
					w.wantRefreshed(id, time.Hour)
				}
			})
		})
	}
}

// What the provider answered is written when the store is back, and nobody is asked
// again meanwhile.
func TestStoreFailsBeforeTheWrite(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
		id := w.signIn(w.provider, "ana").ID
		r := w.replica()
		w.provider.Change(func(b *idptest.Behaviour) { b.OnToken = func(*http.Request) { r.store.Break(errBroken) } })
		w.wait(14 * time.Minute)
		w.wantCount("refresh", 1)
		w.provider.Change(func(b *idptest.Behaviour) { b.OnToken = nil })
		r.store.Heal()
		w.wait(time.Minute)
		w.wantCount("refresh", 2)
		w.wait(time.Hour)
		w.wantCount("reuse", 0)
		if time.Since(w.session(id).RefreshedAt) > 5*time.Minute {
			t.Error("the session is refreshed no more")
		}
	})
}

// A write that was said to have failed, but did not, is not undone.
func TestStoreLiesAboutTheWrite(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
		s := w.signIn(w.provider, "ana")
		te := newTenure(New(Config{Store: &liar{Store: w.memory}}), time.Now().Add(time.Hour))
		te.Publish(w.set)
		w.wait(4 * time.Minute)
		done := te.visit(t.Context(), work{id: s.ID, kind: renew, provider: w.set.Get(s.IDPID)})
		if done.cause != none || done.session == nil || done.session.Version != w.session(s.ID).Version {
			t.Errorf("result %+v", done)
		}
		w.wantRefreshed(s.ID, 4*time.Minute)
	})
}

// liar writes sessions and says that it could not.
type liar struct{ databroker.Store }

func (l *liar) PutSession(ctx context.Context, s *databroker.Session) error {
	written := *s
	return errors.Join(l.Store.PutSession(ctx, &written), errBroken)
}

// The groups of a person follow the provider's.
func TestClaimsFollowTheProvider(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 5 * time.Minute })
		id := w.signIn(w.provider, "ana").ID
		if err := w.memory.PutUser(t.Context(), &databroker.User{ID: "ana", Email: "alice@example.com", Name: "Alice"}); err != nil {
			t.Fatal(err)
		}
		w.replica()
		w.provider.Change(func(b *idptest.Behaviour) {
			b.SessionID = "sid-2"
			b.Claims = map[string]any{"name": "Ana", "email": "ana@example.com", "email_verified": true, "groups": []string{"staff"}}
		})
		w.wait(4 * time.Minute)
		if got := fmt.Sprint(w.session(id).Claims["groups"]); got != "[staff]" {
			t.Errorf("groups %s, want [staff]", got)
		}
		if got := w.session(id).ProviderSessionID; got != "sid-2" {
			t.Errorf("the provider's session is %q, want sid-2", got)
		}
		user, err := w.memory.User(t.Context(), "ana")
		if err != nil || user.Name != "Ana" || user.Email != "ana@example.com" {
			t.Errorf("user %+v, %v", user, err)
		}
	})
}

// Sessions of a provider that is no longer configured rest, and go on when it is
// again.
func TestProviderRemoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 5 * time.Minute })
		id := w.signIn(w.provider, "ana").ID
		r := w.replica()
		w.wait(time.Minute)
		w.configure()
		r.Publish(w.set)
		w.wait(time.Hour)
		w.wantCount("refresh", 0)
		w.session(id)
		w.configure(w.provider)
		r.Publish(w.set)
		w.wait(time.Second)
		w.wantRefreshed(id, time.Hour+time.Minute)
	})
}

func TestShortLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Second })
		id := w.signIn(w.provider, "ana").ID
		w.replica()
		w.wait(time.Minute)
		w.wantRefreshed(id, time.Minute)
		w.wantCount("refresh", 6)
	})
}

// A session that is made, or written, later is scheduled, too; one that is gone is
// forgotten. The same holds if the feed was lost.
func TestFollowsTheFeed(t *testing.T) {
	for _, keep := range []int{0, 1} {
		t.Run(fmt.Sprintf("keeping %d changes", keep), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.memory = databroker.NewMemory(databroker.MemoryConfig{KeepChanges: keep})
				w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 5 * time.Minute })
				r := w.replica()
				w.wait(time.Minute)
				r.store.Break(errBroken)
				var ids []string
				for i := range 3 {
					ids = append(ids, w.signIn(w.provider, fmt.Sprint("user-", i)).ID)
				}
				r.store.Heal()
				w.wait(10 * time.Second)
				if n := r.Stats().Scheduled; n != 3 {
					t.Fatalf("%d sessions are scheduled, want 3", n)
				}
				if err := w.memory.DeleteSession(t.Context(), ids[0]); err != nil {
					t.Fatal(err)
				}
				s := w.session(ids[1])
				s.Tokens.ExpiresAt = time.Now().Add(2 * time.Minute)
				w.put(s)
				w.wait(time.Minute)
				if n := r.Stats().Scheduled; n != 2 {
					t.Errorf("%d sessions are scheduled, want 2", n)
				}
				w.wantRefreshed(ids[1], time.Minute+10*time.Second+time.Minute)
			})
		})
	}
}

// Run waits for an answer that is under way, but not long.
func TestEnd(t *testing.T) {
	for _, answer := range []time.Duration{shutdownWait / 2, time.Minute} {
		t.Run(fmt.Sprint("the provider takes ", answer), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
				id := w.signIn(w.provider, "ana").ID
				asked := make(chan struct{}, 1)
				w.provider.Change(func(b *idptest.Behaviour) {
					b.OnToken = func(r *http.Request) {
						asked <- struct{}{}
						pause(r.Context(), answer)
					}
				})
				r := w.replica()
				<-asked
				ended := time.Now()
				r.stop()
				if took, want := time.Since(ended), min(answer, shutdownWait); took != want {
					t.Errorf("Run ended after %v, want %v", took, want)
				}
				if s := w.session(id); s.RefreshedAt.IsZero() != (answer > shutdownWait) {
					t.Errorf("refreshed at %v", s.RefreshedAt)
				}
				if held, err := w.memory.Lease(t.Context(), leaseName, "another", time.Second); !held || err != nil {
					t.Errorf("the lease was not given back: %v", err)
				}
			})
		})
	}
}

// Answers that prove nothing, and a client that is refused, end nothing and are said
// once.
func TestUselessAnswers(t *testing.T) {
	tests := []struct {
		name    string
		wrong   func(*idptest.Behaviour)
		message string
	}{
		{"another client's secret", func(b *idptest.Behaviour) { b.TokenStatus, b.TokenError = http.StatusUnauthorized, "invalid_client" }, "refuses our client"},
		{"no token at all", func(b *idptest.Behaviour) {
			b.OnToken = func(*http.Request) {}
			b.TokenStatus, b.TokenError = http.StatusBadRequest, "invalid_request"
		}, "of no use"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime = 5 * time.Minute })
				for i := range 5 {
					w.signIn(w.provider, fmt.Sprint("user-", i))
				}
				w.provider.Change(test.wrong)
				w.replica()
				w.wait(2 * time.Hour)
				if got := strings.Count(w.log.String(), test.message); got != 1 {
					t.Errorf("%q was logged %d times:\n%s", test.message, got, w.log.String())
				}
				if n := w.provider.Count("token") - 5; n < 12 || n > 170 {
					t.Errorf("%d token requests in two hours", n)
				}
				w.provider.Change(func(b *idptest.Behaviour) { b.TokenStatus, b.TokenError = 0, "" })
				w.wait(maxOwnPause)
				for i := range 5 {
					if w.session(fmt.Sprint("session-user-", i)).RefreshedAt.IsZero() {
						t.Errorf("user-%d was not refreshed", i)
					}
				}
			})
		})
	}
}
