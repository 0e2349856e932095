package refresh

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
)

func TestTimes(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	const never = time.Duration(-1)
	at := func(d time.Duration) time.Time {
		if d == 0 {
			return time.Time{}
		}
		return noon.Add(d)
	}
	tests := []struct {
		name              string
		access, id        time.Duration // expiry after noon, 0 for unknown
		refreshed, expire time.Duration
		method            string
		noRefresh         bool
		rand              float64
		wantRenew         time.Duration
		wantLook          time.Duration
	}{
		{name: "a minute before the access token ends", access: 5 * time.Minute, id: time.Hour, wantRenew: 4 * time.Minute, wantLook: never},
		{name: "a minute before the ID token ends", access: time.Hour, id: 5 * time.Minute, wantRenew: 4 * time.Minute, wantLook: never},
		{name: "the ID token's end is unknown", access: 5 * time.Minute, wantRenew: 4 * time.Minute, wantLook: never},
		{name: "the access token's end is unknown", id: 5 * time.Minute, wantRenew: 4 * time.Minute, wantLook: never},
		{name: "long-lived tokens: userinfo in between", access: time.Hour, id: time.Hour, wantRenew: 59 * time.Minute, wantLook: 10 * time.Minute},
		{name: "tokens of unknown life: userinfo", wantRenew: never, wantLook: 10 * time.Minute},
		{name: "it counts from the last refresh", access: 2 * time.Hour, refreshed: 30 * time.Minute, wantRenew: 119 * time.Minute, wantLook: 40 * time.Minute},
		{name: "a life of less than a minute", access: 30 * time.Second, wantRenew: 10 * time.Second, wantLook: never},
		{name: "never within 10 s of the last refresh", access: 65 * time.Second, wantRenew: 10 * time.Second, wantLook: never},
		{name: "an ID token that had ended before the last refresh does not count", access: 2 * time.Hour, id: 30 * time.Minute, refreshed: time.Hour, wantRenew: 119 * time.Minute, wantLook: 70 * time.Minute},
		{name: "nor does an access token", access: 30 * time.Minute, id: 2 * time.Hour, refreshed: time.Hour, wantRenew: 119 * time.Minute, wantLook: 70 * time.Minute},
		{name: "nor do both", access: time.Minute, id: time.Minute, refreshed: time.Hour, wantRenew: never, wantLook: 70 * time.Minute},
		{name: "nor what ended with it", access: time.Hour, id: 2 * time.Hour, refreshed: time.Hour, wantRenew: 119 * time.Minute, wantLook: 70 * time.Minute},
		{name: "jitter is a tenth of a short life", access: 200 * time.Second, rand: 1, wantRenew: 120 * time.Second, wantLook: never},
		{name: "and half a minute of a long one", access: time.Hour, rand: 1, wantRenew: 59*time.Minute - 30*time.Second, wantLook: 9*time.Minute + 30*time.Second},
		{name: "jitter does not come within 10 s", access: 75 * time.Second, rand: 1, wantRenew: 10 * time.Second, wantLook: never},
		{name: "no refresh token: userinfo while the access token is good", access: time.Hour, id: time.Hour, noRefresh: true, wantRenew: never, wantLook: 10 * time.Minute},
		{name: "no refresh token and a short life: nothing", access: 5 * time.Minute, noRefresh: true, wantRenew: never, wantLook: never},
		{name: "made of an ID token: nothing", access: time.Hour, method: "id_token", wantRenew: never, wantLook: never},
		{name: "made of a bearer token: nothing", access: time.Hour, method: "bearer", wantRenew: never, wantLook: never},
		{name: "made by a device: as any", access: 5 * time.Minute, method: "device", wantRenew: 4 * time.Minute, wantLook: never},
		{name: "the session ends first", access: time.Hour, expire: 30 * time.Minute, wantRenew: never, wantLook: 10 * time.Minute},
		{name: "and before anything is due", access: time.Hour, expire: 5 * time.Minute, wantRenew: never, wantLook: never},
		{name: "the session ends when it is due", access: 5 * time.Minute, expire: 4 * time.Minute, wantRenew: never, wantLook: never},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &databroker.Session{
				ID: "s", CreatedAt: noon, RefreshedAt: at(test.refreshed), ExpiresAt: noon.Add(14 * time.Hour), Origin: databroker.Origin{Method: test.method},
				Tokens: databroker.Tokens{AccessToken: "a", RefreshToken: "r", ExpiresAt: at(test.access), IDTokenExpiresAt: at(test.id)},
			}
			if test.noRefresh {
				s.Tokens.RefreshToken = ""
			}
			if test.expire != 0 {
				s.ExpiresAt = noon.Add(test.expire)
			}
			got := New(Config{Rand: func() float64 { return test.rand }}).times(s, time.Time{})
			for kind, want := range [kinds]time.Duration{test.wantRenew, test.wantLook} {
				name := [kinds]string{"renewal", "look"}[kind]
				switch {
				case want == never && !got[kind].IsZero():
					t.Errorf("%s after %v, want never", name, got[kind].Sub(noon))
				case want != never && !got[kind].Equal(noon.Add(want)):
					t.Errorf("%s after %v, want %v", name, got[kind].Sub(noon), want)
				}
			}
		})
	}
}

// The queues give what is due in order, whatever was moved and removed before.
func TestScheduleOrder(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	random := rand.New(rand.NewPCG(1, 2))
	s := newSchedule()
	for range 20_000 {
		id := fmt.Sprint(random.IntN(500))
		if e := s.entries[id]; e != nil && random.IntN(3) == 0 {
			s.remove(e)
			continue
		}
		var at [kinds]time.Time
		for kind := range at {
			if random.IntN(4) > 0 {
				at[kind] = noon.Add(time.Duration(random.IntN(100_000)) * time.Second)
			}
		}
		s.put(&databroker.Session{ID: id, IDPID: "p"}, at)
	}
	l := s.lane("p")
	for kind := range l.queues {
		last := time.Time{}
		want := 0
		for _, e := range s.entries {
			if !e.at[kind].IsZero() {
				want++
			}
		}
		got := 0
		for l.queues[kind].Len() > 0 {
			e := l.queues[kind].entries[0]
			if e.at[kind].Before(last) {
				t.Fatalf("%v comes after %v", e.at[kind], last)
			}
			last = e.at[kind]
			at := e.at
			at[kind] = time.Time{}
			e.set(at)
			got++
		}
		if got != want || got == 0 {
			t.Errorf("%d entries were queued, want %d", got, want)
		}
	}
}

// A scheduled session costs a few hundred bytes, whatever its claims and tokens
// weigh.
func TestScheduleMemory(t *testing.T) {
	const n, most = 20_000, 400
	var before, after runtime.MemStats
	te := newTenure(New(Config{}), time.Time{})
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		claims := map[string]any{"email": fmt.Sprintf("user-%d@example.com", i), "groups": make([]any, 100)}
		te.hear(news{sessions: []*databroker.Session{{
			ID: fmt.Sprintf("session-%024d", i), IDPID: fmt.Sprintf("%016d", i%3), UserID: fmt.Sprintf("user-%d", i), Version: uint64(i + 1), Claims: claims,
			Tokens:    databroker.Tokens{AccessToken: string(make([]byte, 2000)), RefreshToken: "r", ExpiresAt: time.Now().Add(time.Duration(i) * time.Second)},
			CreatedAt: time.Now(), ExpiresAt: time.Now().Add(14 * time.Hour),
		}}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes for each session", each)
	if len(te.schedule.entries) != n || each > most {
		t.Errorf("%d entries of %d bytes each, want %d of at most %d", len(te.schedule.entries), each, n, most)
	}
	runtime.KeepAlive(te)
}
