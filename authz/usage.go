package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/databroker"
)

const (
	// useResolution is how finely uses of a session are told apart.
	useResolution = time.Second
	// flushEvery is how often uses that the store does not know are looked at, and
	// touchEvery how often at most it is told those of one session, unless some
	// route's idle timeout is so short that other replicas must know sooner.
	flushEvery = 5 * time.Second
	touchEvery = time.Minute
	// flushTimeout bounds the telling.
	flushTimeout = 5 * time.Second
	// maxPending bounds the sessions with uses that the store does not know.
	maxPending = 2 * maxIdentities
)

// usage is when a session was last used and how long it went unused at most, as far
// as we know. The identities of one session share it for as long as it knows more
// than the store. Requests read and write it without a lock, but for the first after
// the store was told, and the first after what looks like a long time unused.
//
// A gap is right to within useResolution where this server alone sees the session.
// Where others do, it can seem longer by as much as they tell the store later, which
// is every and flushEvery together at most, and so it can where a server dies and
// does not tell. That the store could not be told makes no gap: whoever tells it says
// how long the gaps were.
//
// Every request that a session comes with is a use where who asks matters, and a
// script's is as good as a person's: a page that is left open and fetches something
// every minute keeps its session from becoming idle.
type usage struct {
	id string
	// at is the last use, gap the longest time between two, stored what the store
	// knows of the last use, asked when the store was last asked; all are in
	// nanoseconds.
	at, gap, stored, asked atomic.Int64
	// queued is whether the uses have this one.
	queued atomic.Bool
}

// raise makes a the greater of what it is and to.
func raise(a *atomic.Int64, to int64) {
	for {
		is := a.Load()
		if to <= is || a.CompareAndSwap(is, to) {
			return
		}
	}
}

// advance notes a use unless a later one is known. The gap before it comes first, so
// that nobody sees the use without it.
func (u *usage) advance(to int64) {
	raise(&u.gap, to-u.at.Load())
	raise(&u.at, to)
}

// learn notes what the store says of a session. It has the gaps before its last use.
func (u *usage) learn(s *databroker.Session) {
	raise(&u.gap, int64(s.LongestGap))
	for _, at := range []time.Time{s.CreatedAt, s.AccessedAt} {
		if !at.IsZero() {
			raise(&u.at, at.UnixNano())
		}
	}
}

// unused is the longest time that the session went unused until now.
func (u *usage) unused(now time.Time) time.Duration {
	return time.Duration(max(u.gap.Load(), now.UnixNano()-u.at.Load()))
}

// access is what to tell the store. The gap is read last: that of a use has been
// noted before the use.
func (u *usage) access() databroker.Access {
	at := time.Unix(0, u.at.Load())
	return databroker.Access{At: at, Gap: time.Duration(u.gap.Load())}
}

// uses are those of sessions that the store does not know yet.
type uses struct {
	store databroker.Store
	// every is touchEvery or less, idle the shortest idle timeout of a route, 0 for
	// none.
	every, idle atomic.Int64
	// rereads are of sessions that look idle.
	rereads flights[*databroker.Session]

	mu      sync.Mutex
	pending map[string]*usage
}

func newUses(store databroker.Store) *uses {
	c := &uses{store: store, pending: map[string]*usage{}}
	c.every.Store(int64(touchEvery))
	return c
}

// of is the usage of a session as the store has it now.
func (c *uses) of(s *databroker.Session) *usage {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.pending[s.ID]
	if u == nil {
		u = &usage{id: s.ID}
		if !s.AccessedAt.IsZero() {
			u.stored.Store(s.AccessedAt.UnixNano())
		}
	}
	u.learn(s)
	return u
}

// touch notes a use now. Before a time unused is noted that some route minds, the
// store is asked whether another replica has seen the session; where it cannot say,
// we go by what we know.
func (c *uses) touch(ctx context.Context, u *usage, now time.Time) {
	unused := now.UnixNano() - u.at.Load()
	if unused < int64(useResolution) {
		return
	}
	if idle := c.idle.Load(); idle > 0 && unused > idle {
		if err := c.reread(ctx, u, now); err != nil && ctx.Err() != nil {
			return // so is the request's time
		}
	}
	u.advance(now.UnixNano())
	if u.queued.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch other := c.pending[u.id]; {
	case other != nil && other != u:
		other.advance(now.UnixNano())
	case other == nil && len(c.pending) >= maxPending:
		// The store is not told, which shortens an idle timeout on other replicas.
	default:
		c.pending[u.id] = u
		u.queued.Store(true)
	}
}

// reread asks the store, at most once in useResolution, when a session was last used:
// another replica may have seen it.
func (c *uses) reread(ctx context.Context, u *usage, now time.Time) error {
	asked := u.asked.Load()
	if d := now.UnixNano() - asked; asked != 0 && d >= 0 && d < int64(useResolution) {
		return nil
	}
	s, err := c.rereads.do(ctx, u.id, func(ctx context.Context) (*databroker.Session, error) { return c.store.Session(ctx, u.id) })
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil // nobody has used it since
	case err != nil:
		return fmt.Errorf("load session for its last use: %w", err)
	}
	u.learn(s)
	u.asked.Store(now.UnixNano())
	return nil
}

// flush tells the store, in one call, the uses of the sessions of which it was told
// nothing for a while.
func (c *uses) flush(ctx context.Context, now time.Time, while time.Duration) error {
	batch := map[string]databroker.Access{}
	c.mu.Lock()
	for id, u := range c.pending {
		if now.UnixNano()-u.stored.Load() >= int64(while) {
			batch[id] = u.access()
		}
	}
	c.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := c.store.TouchSessions(limited, batch); err != nil {
		return fmt.Errorf("write last uses of sessions: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, told := range batch {
		u, at := c.pending[id], told.At.UnixNano()
		if u == nil {
			continue // told by another flush
		}
		u.stored.Store(at)
		// In this order, so that a use between the two is queued by whoever made it.
		u.queued.Store(false)
		if u.at.Load() == at {
			delete(c.pending, id)
		} else {
			u.queued.Store(true)
		}
	}
	return nil
}

// follow tells the store until ctx is done, and then once more. That it cannot be
// told harms nobody at once: it is tried again.
func (c *uses) follow(ctx context.Context, now func() time.Time, log *slog.Logger) {
	failed := false
	report := func(err error) {
		switch {
		case err != nil && !failed:
			log.LogAttrs(ctx, slog.LevelWarn, "last uses of sessions cannot be written", slog.String("error", bounded(err.Error())))
		case err == nil && failed:
			log.LogAttrs(ctx, slog.LevelInfo, "last uses of sessions can be written again")
		}
		failed = err != nil
	}
	for ctx.Err() == nil {
		every := time.Duration(c.every.Load())
		wait(ctx, min(flushEvery, every))
		if ctx.Err() == nil {
			report(c.flush(ctx, now(), every))
		}
	}
	report(c.flush(context.WithoutCancel(ctx), now(), 0))
}

// within makes the store know uses soon enough for routes with this shortest idle
// timeout, 0 for none.
func (c *uses) within(idle time.Duration) {
	every := touchEvery
	if idle > 0 {
		every = min(every, max(useResolution, idle/2))
	}
	c.every.Store(int64(every))
	c.idle.Store(int64(idle))
}
