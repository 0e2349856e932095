package refresh

import (
	"container/heap"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
)

// What a session may be due for.
const (
	renew = iota // new tokens and claims
	look         // claims of userinfo alone
	kinds
)

const (
	// lead is how long before its tokens run out a session is renewed.
	lead = time.Minute
	// minLife is how long a session is left alone after it was renewed.
	minLife = 10 * time.Second
	// lookEvery is how old claims may grow before userinfo is looked at.
	lookEvery = 10 * time.Minute
	// maxJitter is how much earlier a session may come than it is due, so that
	// sessions that began together do not stay together.
	maxJitter = 30 * time.Second
)

// times are when a session is due for each kind; zero is never. Looked is when its
// claims were last looked at without being written.
func (r *Refresher) times(s *databroker.Session, looked time.Time) (at [kinds]time.Time) {
	if m := s.Origin.Method; m == "id_token" || m == "bearer" {
		return at
	}
	last := lastRenewed(s)
	if expires := tokensExpire(s); s.Tokens.RefreshToken != "" && !expires.IsZero() {
		jitter := r.part(max(0, min(maxJitter, expires.Sub(last)/10)))
		at[renew] = later(expires.Add(-lead-jitter), last.Add(minLife))
	}
	next := later(last, looked).Add(lookEvery - r.part(maxJitter))
	readable := s.Tokens.AccessToken != "" && (s.Tokens.ExpiresAt.IsZero() || next.Before(s.Tokens.ExpiresAt))
	if (readable || s.Tokens.RefreshToken != "") && (at[renew].IsZero() || next.Before(at[renew])) {
		at[look] = next
	}
	for kind := range at {
		if !at[kind].Before(s.ExpiresAt) {
			at[kind] = time.Time{}
		}
	}
	return at
}

// tooEarly reports whether a session that is about to be renewed need not be: it
// was, since it was put into the schedule.
func tooEarly(s *databroker.Session, now time.Time) bool {
	expires := tokensExpire(s)
	return now.Before(lastRenewed(s).Add(minLife)) || !expires.IsZero() && now.Before(expires.Add(-lead-maxJitter))
}

func lastRenewed(s *databroker.Session) time.Time { return later(s.CreatedAt, s.RefreshedAt) }

// tokensExpire is when the first of a session's tokens does, zero if that is not
// known. What was over already when the session was last renewed does not count: the
// provider gave nothing in its place, and would not the next time either.
func tokensExpire(s *databroker.Session) (first time.Time) {
	for _, at := range []time.Time{s.Tokens.ExpiresAt, s.Tokens.IDTokenExpiresAt} {
		if at.After(lastRenewed(s)) && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// schedule is all that is known of sessions: when they are due. It has one owner.
type schedule struct {
	entries map[string]*entry
	lanes   map[string]*lane
}

func newSchedule() *schedule {
	return &schedule{entries: map[string]*entry{}, lanes: map[string]*lane{}}
}

// entry is one session. There may be very many.
type entry struct {
	id      string
	version uint64
	lane    *lane
	at      [kinds]time.Time
	index   [kinds]int32 // in the queue of the lane, from 1; 0 is not there
	// failures are those since the last success, and frozen is that its claims were
	// found to be so.
	failures uint8
	frozen   bool
	// busy is set while somebody works on it; it is in no queue then. What happens
	// to the session meanwhile is noted: gone, or newer.
	busy, gone bool
	newer      *databroker.Session
}

// lane is the sessions of one provider.
type lane struct {
	idpID    string
	provider *idp.Provider
	queues   [kinds]queue
	busy     int
	// paused says how an endpoint of the provider is doing: that for tokens, and
	// userinfo.
	paused [kinds]backoff
	// notBefore keeps starts apart.
	notBefore time.Time
	// warned holds causes that were logged already.
	warned map[string]bool
}

// put schedules a session, or drops it if it is due for nothing.
func (s *schedule) put(session *databroker.Session, at [kinds]time.Time) *entry {
	e := s.entries[session.ID]
	if at == [kinds]time.Time{} {
		if e != nil {
			s.remove(e)
		}
		return nil
	}
	if e == nil {
		e = &entry{id: session.ID, lane: s.lane(session.IDPID)}
		s.entries[e.id] = e
	}
	e.version = session.Version
	e.set(at)
	return e
}

func (s *schedule) lane(idpID string) *lane {
	l := s.lanes[idpID]
	if l == nil {
		l = &lane{idpID: idpID, warned: map[string]bool{}}
		for kind := range l.queues {
			l.queues[kind].kind = kind
		}
		s.lanes[idpID] = l
	}
	return l
}

func (s *schedule) remove(e *entry) {
	e.set([kinds]time.Time{})
	delete(s.entries, e.id)
}

// set moves an entry in the queues of its lane.
func (e *entry) set(at [kinds]time.Time) {
	for kind := range at {
		q, queued := &e.lane.queues[kind], e.index[kind] > 0
		e.at[kind] = at[kind]
		switch {
		case at[kind].IsZero() && queued:
			heap.Remove(q, int(e.index[kind])-1)
		case at[kind].IsZero():
		case queued:
			heap.Fix(q, int(e.index[kind])-1)
		default:
			heap.Push(q, e)
		}
	}
}

// queue is a heap of entries by when they are due.
type queue struct {
	kind    int
	entries []*entry
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (q *queue) Len() int { return len(q.entries) }

func (q *queue) Less(i, j int) bool {
	return q.entries[i].at[q.kind].Before(q.entries[j].at[q.kind])
}

func (q *queue) Swap(i, j int) {
	q.entries[i], q.entries[j] = q.entries[j], q.entries[i]
	q.entries[i].index[q.kind], q.entries[j].index[q.kind] = int32(i+1), int32(j+1)
}

// Push appends an entry.
func (q *queue) Push(x any) {
	e := x.(*entry)
	q.entries = append(q.entries, e)
	e.index[q.kind] = int32(len(q.entries))
}

// Pop removes the last entry.
func (q *queue) Pop() any {
	last := len(q.entries) - 1
	e := q.entries[last]
	q.entries[last] = nil
	q.entries = q.entries[:last]
	e.index[q.kind] = 0
	return e
}

// The bounds on what is under way at once: in total, at one provider, and of that
// at its userinfo.
const (
	maxBusy     = 8
	maxLaneBusy = 4
	maxLooks    = 2
	// laneGap is the time between two starts at one provider.
	laneGap = 10 * time.Millisecond
)

// next returns the entry that may be started now, and for what. Without one it
// returns when to ask again, zero for not before something else happens.
func (l *lane) next(now time.Time) (e *entry, kind int, ask time.Time) {
	for kind := range l.queues {
		q := &l.queues[kind]
		if q.Len() == 0 || l.busy >= l.limit(kind) {
			continue
		}
		at := later(later(q.entries[0].at[kind], l.paused[renew].until), l.notBefore)
		at = later(at, l.paused[kind].until)
		if !at.After(now) {
			return q.entries[0], kind, time.Time{}
		}
		if ask.IsZero() || at.Before(ask) {
			ask = at
		}
	}
	return nil, 0, ask
}

// limit is how many may be under way at the provider for one more to start. While
// it is down one at a time finds out whether it is back.
func (l *lane) limit(kind int) int {
	switch {
	case l.paused[renew].failures > 0, l.paused[kind].failures > 0:
		return 1
	case kind == look:
		return maxLooks
	}
	return maxLaneBusy
}

// The pauses after failures.
const (
	firstPause = 5 * time.Second
	maxPause   = 5 * time.Minute
	// maxOwnPause is that of a session for which the provider's answers are no good.
	maxOwnPause = 10 * time.Minute
	// maxFrozenPause is that of a session whose claims are frozen.
	maxFrozenPause = 4 * time.Hour
)

// backoff is the pause of an endpoint that fails.
type backoff struct {
	failures      int
	failed, until time.Time
}

// fail notes a failure of what began at started, and reports whether it is the
// first. Those that were under way together count as one.
func (b *backoff) fail(r *Refresher, started, now time.Time) (first bool) {
	if b.failures > 0 && !started.After(b.failed) {
		return false
	}
	b.failures++
	b.failed, b.until = now, now.Add(r.spread(grow(firstPause, maxPause, b.failures)))
	return b.failures == 1
}
