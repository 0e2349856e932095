package refresh

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// tenureOf has a lease that lasts, and starts only what a test starts.
func (w *world) tenureOf() *tenure {
	t := newTenure(New(Config{Store: w.memory, Rand: func() float64 { return 0 }}), time.Now().Add(24*time.Hour))
	t.Publish(w.set)
	return t
}

// dueIn is a session whose tokens are due after d, made now.
func (w *world) dueIn(id string, version uint64, d time.Duration) *databroker.Session {
	return &databroker.Session{
		ID: id, UserID: id, IDPID: w.cfg.IDPs[0].ID(), Version: version, CreatedAt: time.Now().Add(-time.Minute), ExpiresAt: time.Now().Add(14 * time.Hour),
		Tokens: databroker.Tokens{AccessToken: "a", RefreshToken: "r", ExpiresAt: time.Now().Add(d + lead)},
	}
}

func startAll(t *tenure) (started []work) {
	t.startDue(func(w work) { started = append(started, w) })
	return started
}

func TestBounds(t *testing.T) {
	t.Run("at one provider, and in total", func(t *testing.T) {
		others := []*idptest.Provider{idptest.NewProvider(t), idptest.NewProvider(t)}
		inWorld(t, func(t *testing.T, w *world) {
			w.configure(append(others, w.provider)...)
			te := w.tenureOf()
			for i := range 30 {
				s := w.dueIn(fmt.Sprint(i), uint64(i+1), 0)
				s.IDPID = w.cfg.IDPs[i%3].ID()
				te.hear(news{sessions: []*databroker.Session{s}})
			}
			busy := map[*idp.Provider]int{}
			total := 0
			for range 100 {
				for _, started := range startAll(te) {
					busy[started.provider]++
					total++
				}
				w.wait(laneGap)
			}
			for _, n := range busy {
				if n > maxLaneBusy {
					t.Errorf("%d attempts at one provider at once", n)
				}
			}
			if total != maxBusy {
				t.Errorf("%d attempts at once, want %d", total, maxBusy)
			}
		})
	})
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	down := backoff{failures: 1, until: noon.Add(time.Minute)}
	back := backoff{failures: 1, until: noon}
	tests := []struct {
		name         string
		busy         int
		paused       [kinds]backoff
		renew, looks bool // may a session start that is due for it
	}{
		{"idle", 0, [kinds]backoff{}, true, true},
		{"two under way leave room for tokens alone", 2, [kinds]backoff{}, true, false},
		{"four are all", 4, [kinds]backoff{}, false, false},
		{"the token endpoint is down", 0, [kinds]backoff{renew: down}, false, false},
		{"userinfo is down", 0, [kinds]backoff{look: down}, true, false},
		{"one finds out whether tokens are back", 0, [kinds]backoff{renew: back}, true, true},
		{"one at a time", 1, [kinds]backoff{renew: back}, false, false},
		{"one finds out whether userinfo is back", 0, [kinds]backoff{look: back}, true, true},
		{"one at a time, tokens apart", 1, [kinds]backoff{look: back}, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for kind, want := range [kinds]bool{test.renew, test.looks} {
				l := newSchedule().lane("p")
				l.busy, l.paused = test.busy, test.paused
				e := &entry{lane: l}
				var at [kinds]time.Time
				at[kind] = noon
				e.set(at)
				if got, _, _ := l.next(noon); (got != nil) != want {
					t.Errorf("kind %d may start: %t, want %t", kind, got != nil, want)
				}
			}
		})
	}
}

// Attempts that fail together are one failure, and the pause grows to five minutes.
func TestBackoff(t *testing.T) {
	r := New(Config{Rand: func() float64 { return 1 }})
	now := time.Now()
	var b backoff
	var pauses []time.Duration
	for i := range 9 {
		if first := b.fail(r, now, now.Add(time.Second)); first != (i == 0) {
			t.Errorf("failure %d is the first: %t", i, first)
		}
		pauses = append(pauses, b.until.Sub(now.Add(time.Second)))
		b.fail(r, now, now.Add(2*time.Second)) // was under way, too
		now = b.until
	}
	s := time.Second
	want := []time.Duration{5 * s, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 300 * s, 300 * s, 300 * s}
	if !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
}

// A success ends the pause of a provider and of the session.
func TestSuccessEndsThePause(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		te := w.tenureOf()
		s := w.dueIn("ana", 1, 0)
		te.hear(news{sessions: []*databroker.Session{s}})
		down := errors.New("down")
		for range 3 {
			started := startAll(te)
			if len(started) != 1 {
				t.Fatalf("%d attempts, want 1", len(started))
			}
			te.settle(result{work: started[0], session: s, answered: true, asked: renew, cause: unavailable, err: down})
			if again := startAll(te); len(again) != 0 {
				t.Fatal("tried again at once")
			}
			w.wait(maxPause)
		}
		started := startAll(te)
		te.settle(result{work: started[0], session: w.dueIn("ana", 2, time.Hour), answered: true, asked: renew})
		e := te.schedule.entries["ana"]
		if e.failures != 0 || e.lane.paused != [kinds]backoff{} {
			t.Errorf("%d failures, %+v", e.failures, e.lane.paused)
		}
	})
}

// The schedule takes the newest of what it hears, and hears it while it is busy.
func TestNewsMeanwhile(t *testing.T) {
	tests := []struct {
		name string
		news func(*world) news
		want time.Duration // when it is due then; 0 for not at all
	}{
		{"nothing", func(*world) news { return news{} }, 10 * time.Minute},
		{"a newer version", func(w *world) news {
			return news{sessions: []*databroker.Session{w.dueIn("ana", 3, 5*time.Minute)}}
		}, 5 * time.Minute},
		{"an older version", func(w *world) news {
			return news{sessions: []*databroker.Session{w.dueIn("ana", 1, 5*time.Minute)}}
		}, 10 * time.Minute},
		{"it is gone", func(*world) news { return news{gone: []string{"ana"}} }, 0},
		{"it is not among all", func(*world) news { return news{all: true} }, 0},
	}
	for _, test := range tests {
		for _, busy := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, busy: %t", test.name, busy), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					te := w.tenureOf()
					te.hear(news{sessions: []*databroker.Session{w.dueIn("ana", 1, 0)}})
					started := startAll(te)
					done := result{work: started[0], session: w.dueIn("ana", 2, 10*time.Minute), answered: true}
					if busy {
						te.hear(test.news(w))
						te.settle(done)
					} else {
						te.settle(done)
						te.hear(test.news(w))
					}
					e := te.schedule.entries["ana"]
					switch {
					case (e != nil) != (test.want > 0):
						t.Errorf("scheduled: %t", e != nil)
					case e != nil && !e.at[renew].Equal(time.Now().Add(test.want)):
						t.Errorf("due in %v, want %v", time.Until(e.at[renew]), test.want)
					}
				})
			})
		}
	}
}

// The store, not the schedule, says whether a session is to be renewed.
func TestVisitReadsAgain(t *testing.T) {
	tests := []struct {
		name   string
		change func(*tenure, *databroker.Session)
		asked  bool
		gone   bool
	}{
		{"as it was", func(*tenure, *databroker.Session) {}, true, false},
		{"it was renewed a moment ago", func(_ *tenure, s *databroker.Session) { s.RefreshedAt = time.Now() }, false, false},
		{"its tokens last longer now", func(_ *tenure, s *databroker.Session) { s.Tokens.ExpiresAt = time.Now().Add(time.Hour) }, false, false},
		{"it has expired", func(_ *tenure, s *databroker.Session) { s.ExpiresAt = time.Now() }, false, true},
		{"the lease will end", func(te *tenure, _ *databroker.Session) {
			until := time.Now().Add(attemptWait)
			te.until.Store(&until)
		}, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) { b.Lifetime, b.IDTokenLifetime = 5*time.Minute, 24*time.Hour })
				s := w.signIn(w.provider, "ana")
				w.wait(4 * time.Minute)
				te := w.tenureOf()
				test.change(te, s)
				w.put(s)
				done := te.visit(t.Context(), work{id: s.ID, kind: renew, provider: w.set.Get(s.IDPID)})
				if done.answered != test.asked || done.gone != test.gone || done.cause != none {
					t.Errorf("asked %t, gone %t, cause %d", done.answered, done.gone, done.cause)
				}
			})
		})
	}
}

// Without the lease nobody's session is ended: its holder may be renewing it.
func TestRefusedWithoutTheLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.signIn(w.provider, "ana")
		te := w.tenureOf()
		until := time.Now()
		te.until.Store(&until)
		done := te.end(t.Context(), result{work: work{provider: w.set.Get(s.IDPID)}, session: s})
		if done.gone || done.cause != none {
			t.Errorf("gone %t, cause %d", done.gone, done.cause)
		}
		w.session(s.ID)
	})
}

// Claims that the store does not take are left out, so that the tokens are kept.
func TestStoreRefusesTheClaims(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 5*time.Minute })
		s := w.signIn(w.provider, "ana")
		te := w.tenureOf()
		who := &idp.Identity{UserID: s.UserID, Claims: map[string]any{"bad": make(chan int)}, Tokens: s.Tokens}
		who.Tokens.RefreshToken = "newer"
		done := te.write(t.Context(), result{session: w.session(s.ID)}, who)
		if got := w.session(s.ID); done.cause != none || got.Tokens.RefreshToken != "newer" || got.Claims["name"] != "Alice" {
			t.Errorf("cause %d, claims %v", done.cause, got.Claims)
		}
		// Nor is there an end of it if it takes neither.
		who.Tokens.RefreshToken = string(make([]byte, 1<<20))
		if done = te.write(t.Context(), result{session: w.session(s.ID)}, who); done.cause != storeDown {
			t.Errorf("cause %d, want %d", done.cause, storeDown)
		}
	})
}

// Tokens that come with old claims are kept, and the claims looked at soon.
func TestStaleClaims(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.provider.Change(func(b *idptest.Behaviour) { b.RotateRefresh, b.Lifetime = true, 8*time.Minute })
		id := w.signIn(w.provider, "ana").ID
		w.replica()
		w.wait(time.Minute)
		w.provider.Change(func(b *idptest.Behaviour) {
			b.UserInfo, b.UserInfoStatus = map[string]any{"groups": []string{"staff"}}, 503
		})
		w.wait(6 * time.Minute)
		w.wantRefreshed(id, 7*time.Minute)
		w.provider.Change(func(b *idptest.Behaviour) { b.UserInfoStatus = 0 })
		w.wait(minLife)
		if got := fmt.Sprint(w.session(id).Claims["groups"]); got != "[staff]" {
			t.Errorf("groups %s, want [staff]\n%s", got, w.log.String())
		}
		w.wantCount("refresh", 1)
	})
}
