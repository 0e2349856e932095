package refresh

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
)

const (
	// attemptWait is how long the provider has for one answer. An attempt begins
	// only if the lease outlasts it.
	attemptWait = 15 * time.Second
	// maxSleep is how long the schedule goes unwatched: clocks are set, and
	// machines sleep.
	maxSleep = 10 * time.Second
)

// tenure is the time for which a Refresher has the lease.
type tenure struct {
	*Refresher
	// until is when the lease ends, by our clock, and began when it was taken.
	until atomic.Pointer[time.Time]
	began time.Time
	// news goes from the follower of the change feed to the schedule, and results
	// from the workers; there is room for one of each.
	news    chan news
	results chan result

	schedule *schedule
	busy     int
}

// news is what has become of some sessions, or of all.
type news struct {
	all      bool
	sessions []*databroker.Session
	gone     []string
}

func newTenure(r *Refresher, until time.Time) *tenure {
	t := &tenure{Refresher: r, news: make(chan news), results: make(chan result, maxBusy), schedule: newSchedule()}
	t.until.Store(&until)
	return t
}

// serve renews sessions until the lease is lost or ctx is done, and returns when
// nothing is under way any more.
func (t *tenure) serve(ctx context.Context) {
	t.log.Info("this replica keeps sessions fresh")
	t.began = t.now()
	t.counts.holding.Store(true)
	holding, lose := context.WithCancel(ctx)
	// What is under way goes on when the lease is lost, and for a while when ctx is
	// done.
	working, abandon := context.WithCancel(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	group.Go(func() { defer lose(); t.keepLease(holding) })
	group.Go(func() { t.follow(holding) })
	t.run(holding, func(w work) { group.Go(func() { t.results <- t.visit(working, w) }) })
	lose()
	t.counts.holding.Store(false)
	t.counts.scheduled.Store(0)
	t.finish(ctx, abandon)
	abandon()
	group.Wait()
}

// keepLease returns when the lease is lost.
func (t *tenure) keepLease(ctx context.Context) {
	wait := renewLeaseEvery
	for {
		pause(ctx, wait)
		asked := t.now()
		held, err := t.takeLease(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && held:
			until := asked.Add(leaseTTL)
			t.until.Store(&until)
			t.wake()
			wait = renewLeaseEvery
		case err == nil:
			t.log.Warn("another replica keeps sessions fresh now: the lease of this one had run out")
			return
		case !t.outlasts(0):
			t.log.Warn("sessions are not refreshed: the lease ran out while the databroker was out of reach", "error", err.Error())
			return
		default:
			wait = time.Second
		}
	}
}

// soonest is when a session may be worked on. Who had the lease before us may have
// new tokens of it that the databroker has not taken yet, and the old refresh token
// is used up then: to send it may end the sign-in. So a session that nobody has
// written since is left to them for as long as a lease lasts.
func (t *tenure) soonest(s *databroker.Session) time.Time {
	last := lastRenewed(s)
	if last.Before(t.began) {
		return t.began.Add(leaseTTL)
	}
	return last.Add(minLife)
}

// due is when a session is due for each kind, by its times and soonest.
func (t *tenure) due(s *databroker.Session, looked time.Time) [kinds]time.Time {
	at := t.times(s, looked)
	for kind := range at {
		if !at[kind].IsZero() {
			at[kind] = later(at[kind], t.soonest(s))
		}
	}
	return at
}

// outlasts reports whether the lease is ours for d.
func (t *tenure) outlasts(d time.Duration) bool { return t.now().Add(d).Before(*t.until.Load()) }

// follow sends news of all sessions, and then of each that changes.
func (t *tenure) follow(ctx context.Context) {
	retry := t.newRetry("follow changes")
	var after uint64
	known := false
	for ctx.Err() == nil {
		var err error
		if !known {
			after, err = t.readAll(ctx)
			known = err == nil
		} else {
			after, err = t.readChanges(ctx, after)
			known = !errors.Is(err, databroker.ErrTruncated)
		}
		switch {
		case err == nil:
			retry.succeeded()
		case known || !errors.Is(err, databroker.ErrTruncated):
			retry.pause(ctx, err)
		}
	}
}

func (t *tenure) readAll(ctx context.Context) (after uint64, err error) {
	if after, err = t.store.Sequence(ctx); err != nil {
		return 0, err
	}
	sessions, err := t.store.Sessions(ctx, "")
	if err != nil {
		return 0, err
	}
	t.tell(ctx, news{all: true, sessions: sessions})
	return after, nil
}

func (t *tenure) readChanges(ctx context.Context, after uint64) (uint64, error) {
	changes, err := t.store.Changes(ctx, after)
	if err != nil || len(changes) == 0 {
		return after, err
	}
	deleted := map[string]bool{}
	for _, c := range changes {
		if c.Kind == databroker.KindSession {
			deleted[c.ID] = c.Deleted
		}
	}
	var n news
	for id, gone := range deleted {
		if !gone {
			s, err := t.read(ctx, id)
			switch {
			case err == nil:
				n.sessions = append(n.sessions, s)
			case errors.Is(err, databroker.ErrNotFound):
				gone = true
			default:
				return after, err
			}
		}
		if gone {
			n.gone = append(n.gone, id)
		}
	}
	if len(deleted) > 0 {
		t.tell(ctx, n)
	}
	return changes[len(changes)-1].Sequence, nil
}

func (t *tenure) tell(ctx context.Context, n news) {
	select {
	case t.news <- n:
	case <-ctx.Done():
	}
}

// run keeps the schedule until ctx is done.
func (t *tenure) run(ctx context.Context, start func(work)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(t.startDue(start))
		t.counts.scheduled.Store(int64(len(t.schedule.entries)))
		select {
		case n := <-t.news:
			t.hear(n)
		case done := <-t.results:
			t.settle(done)
		case <-t.woken:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// finish waits for what is under way, when ctx is done at most shutdownWait.
func (t *tenure) finish(ctx context.Context, abandon func()) {
	ended := ctx.Done()
	var enough <-chan time.Time
	for t.busy > 0 {
		select {
		case done := <-t.results:
			t.settle(done)
		case <-ended:
			ended, enough = nil, time.After(shutdownWait)
		case <-enough:
			abandon()
		}
	}
}

// startDue starts what is due and may be, and returns how long to wait for the
// next.
func (t *tenure) startDue(start func(work)) time.Duration {
	if !t.outlasts(attemptWait) {
		return maxSleep // the lease wakes us
	}
	now, sleep := t.now(), maxSleep
	providers := t.providers.Load()
	for _, l := range t.schedule.lanes {
		p := providers.Get(l.idpID)
		if p == nil {
			continue
		}
		if p != l.provider { // other settings, other troubles
			l.provider, l.paused, l.warned = p, [kinds]backoff{}, map[string]bool{}
		}
		for t.busy < maxBusy {
			e, kind, ask := l.next(now)
			if e == nil {
				if !ask.IsZero() {
					sleep = min(sleep, ask.Sub(now))
				}
				break
			}
			t.begin(e)
			l.notBefore = now.Add(laneGap)
			start(work{entry: e, id: e.id, kind: kind, provider: p, started: now})
		}
	}
	return sleep
}

func (t *tenure) begin(e *entry) {
	e.set([kinds]time.Time{})
	e.busy = true
	e.lane.busy++
	t.busy++
}

// hear puts what the change feed says into the schedule.
func (t *tenure) hear(n news) {
	now := t.now()
	known := map[string]bool{}
	for i, s := range n.sessions {
		n.sessions[i] = nil // there may be very many: only what is kept stays in memory
		known[s.ID] = true
		e := t.schedule.entries[s.ID]
		switch {
		case e == nil || !e.busy && e.version < s.Version:
			at := t.due(s, time.Time{})
			if from := later(now, t.soonest(s)); n.all && !at[look].IsZero() && !at[look].After(from) {
				// Nobody knows when the holder before us looked at these.
				at[look] = from.Add(t.part(lookEvery))
			}
			t.schedule.put(s, at)
		case e.busy:
			e.newer = s
		}
	}
	for _, id := range n.gone {
		t.forget(t.schedule.entries[id])
	}
	if n.all {
		for id, e := range t.schedule.entries {
			if !known[id] {
				t.forget(e)
			}
		}
	}
}

// forget removes the entry of a session that is gone; nil is none.
func (t *tenure) forget(e *entry) {
	switch {
	case e == nil:
	case e.busy:
		e.gone = true
	default:
		t.schedule.remove(e)
	}
}

// settle puts the session that a worker is done with back into the schedule.
func (t *tenure) settle(done result) {
	e, now := done.entry, t.now()
	gone := done.gone || e.gone
	newer := e.newer
	e.busy, e.gone, e.newer = false, false, nil
	e.lane.busy--
	t.busy--
	t.judge(done, now)
	if gone {
		t.schedule.remove(e)
		return
	}
	switch {
	case done.cause == none && !done.stale:
		e.failures, e.frozen = 0, false
	case e.failures < 20:
		e.failures++
	}
	e.frozen = e.frozen || done.cause == frozen
	s := done.session
	if newer != nil && (s == nil || newer.Version > s.Version) {
		s = newer
	}
	var at [kinds]time.Time
	if s == nil { // the store could not say
		at[done.kind] = now
	} else {
		at = t.due(s, done.looked)
		// Often the next look mends it. Where it has to renew again it does not.
		soon := now.Add(grow(minLife, lookEvery, int(e.failures)))
		if done.stale && soon.Before(s.ExpiresAt) {
			at[look] = soon
		}
	}
	if done.cause != none && !at[done.kind].IsZero() {
		at[done.kind] = later(at[done.kind], now.Add(t.ownPause(done.cause, int(e.failures))))
	}
	if s == nil {
		e.set(at)
		return
	}
	t.schedule.put(s, at)
}

// ownPause is how long one session waits after a failure.
func (t *tenure) ownPause(c cause, failures int) time.Duration {
	first, most := firstPause, maxPause
	switch c {
	case frozen:
		first, most = 2*lookEvery, maxFrozenPause
	case unusable:
		most = maxOwnPause
	}
	return t.spread(grow(first, most, failures))
}

// judge draws conclusions on the provider.
func (t *tenure) judge(done result, now time.Time) {
	l := done.entry.lane
	if done.cause != none {
		t.counts.failed[done.cause].Add(1)
	}
	if !done.answered || l.provider != done.provider {
		return
	}
	log := t.log.With("provider", providerName(done.provider), "endpoint", [kinds]string{"token", "userinfo"}[done.asked])
	paused := &l.paused[done.asked]
	switch done.cause {
	case none, unusable, frozen, storeDown:
		if paused.failures > 0 {
			log.Info("the identity provider answers again")
		}
		*paused = backoff{}
		switch {
		case done.stale && l.warn(done.err):
			log.Warn("the identity provider gives new tokens but no claims that can be used: those of before stay", "error", done.err.Error())
		case done.cause == frozen && !done.entry.frozen:
			log.Warn("the claims of a session stay as they are until it expires: the identity provider refuses its access token and gave no refresh token; most give one for the scope offline_access",
				"user", done.session.UserID, "session", done.session.ID)
		case done.cause == unusable && l.warn(done.err):
			log.Warn("an answer of the identity provider is of no use; the sessions concerned stay as they are", "error", done.err.Error())
		}
	case unavailable, misconfigured:
		first := paused.fail(t.Refresher, done.started, now)
		switch {
		case done.cause == misconfigured && l.warn(done.err):
			log.Warn("the identity provider refuses our client: check idp_client_id and idp_client_secret; its sessions stay as they are", "error", done.err.Error())
		case first && done.cause == unavailable:
			log.Warn("the identity provider does not answer; its sessions stay as they are", "error", done.err.Error())
		}
	}
}

// warn reports whether a cause is new.
func (l *lane) warn(err error) bool {
	const most = 32
	cause := err.Error()
	if l.warned[cause] || len(l.warned) >= most {
		return false
	}
	l.warned[cause] = true
	return true
}

// providerName is what the operator knows a provider by.
func providerName(p *idp.Provider) string {
	if name := p.Settings().Name; name != "" {
		return name
	}
	return p.Host()
}
