// Package refresh keeps sessions fresh: before the tokens of a session run out it
// renews them at the identity provider, and writes what the provider says of the
// person now. Where tokens live long it looks at userinfo in between, so that claims
// are never much older than lookEvery. It is never on the path of a request.
//
// Of the Refreshers of many replicas one works at a time, the holder of a lease. It
// reads all sessions, follows the change feed, and keeps nothing of a session but
// its id and when it is due. A session is read again just before it is renewed, and
// what comes back is written only onto the version that it was renewed from, or onto
// a later one that still has the same refresh token: providers let each be used once.
//
// Only a provider that refuses the refresh token ends a session, or the access token
// where it never gives a refresh token; and only if nobody has renewed it meanwhile.
// Any other failure leaves the session as it is; it is tried again, ever more rarely,
// until it expires.
package refresh

import (
	"context"
	"crypto/rand"
	"log/slog"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
)

// Config is what a Refresher needs. Store is required.
type Config struct {
	Store databroker.Store
	// Log gets a line for each session that ends and each provider that fails; nil
	// for none.
	Log *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	// Rand spreads what is due over time: numbers from 0 to 1, those of math/rand
	// if nil.
	Rand func() float64
}

// Refresher renews the sessions of a store. Of the Refreshers of many replicas one
// works at a time; the others wait for its lease.
type Refresher struct {
	store databroker.Store
	log   *slog.Logger
	now   func() time.Time
	rand  func() float64
	// owner is who we are to the lease.
	owner     string
	providers atomic.Pointer[idp.Set]
	// woken holds a token if there is something new to look at.
	woken  chan struct{}
	counts counts
}

// New makes a Refresher that has no configuration yet.
func New(c Config) *Refresher {
	r := &Refresher{
		store: c.Store, log: c.Log, now: c.Now, rand: c.Rand,
		owner: rand.Text(), woken: make(chan struct{}, 1),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.rand == nil {
		r.rand = mathrand.Float64
	}
	return r
}

// Publish puts the providers of a configuration in force. Sessions of a provider
// that is no longer there rest until it is again.
func (r *Refresher) Publish(providers *idp.Set) {
	r.providers.Store(providers)
	r.wake()
}

func (r *Refresher) wake() {
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

const (
	leaseName = "refresh"
	leaseTTL  = 30 * time.Second
	// renewLeaseEvery and takeLeaseEvery are how often its holder asks for the lease
	// again, and how often the others try.
	renewLeaseEvery = 10 * time.Second
	takeLeaseEvery  = 5 * time.Second
	// storeWait is the time of one call to the store.
	storeWait = 5 * time.Second
	// shutdownWait is for what is under way when Run ends: a refresh token that the
	// provider has replaced is of no use until the new one is written.
	shutdownWait = 5 * time.Second
)

// Run renews sessions until ctx is done, and returns nil then, at the latest
// shutdownWait later.
func (r *Refresher) Run(ctx context.Context) error {
	retry := r.newRetry("take the lease")
	for ctx.Err() == nil {
		asked := r.now()
		held, err := r.takeLease(ctx)
		if err != nil {
			retry.pause(ctx, err)
			continue
		}
		retry.succeeded()
		if held {
			newTenure(r, asked.Add(leaseTTL)).serve(ctx)
			r.endLease(ctx)
		}
		pause(ctx, takeLeaseEvery)
	}
	return nil
}

func (r *Refresher) takeLease(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	return r.store.Lease(ctx, leaseName, r.owner, leaseTTL)
}

// endLease gives the lease back. If that fails it runs out by itself.
func (r *Refresher) endLease(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeWait)
	defer cancel()
	if err := r.store.EndLease(ctx, leaseName, r.owner); err != nil {
		r.log.Debug("give the refresh lease back", "error", err.Error())
	}
}

// retry waits between attempts at the store, longer each time.
type retry struct {
	r        *Refresher
	what     string
	failures int
}

func (r *Refresher) newRetry(what string) *retry { return &retry{r: r, what: what} }

// pause waits after a failure. The first of several is logged.
func (t *retry) pause(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if t.failures == 0 {
		t.r.log.Warn("sessions are not refreshed: the databroker is out of reach", "while", t.what, "error", err.Error())
	}
	t.failures++
	pause(ctx, t.r.spread(grow(time.Second, 15*time.Second, t.failures)))
}

func (t *retry) succeeded() {
	if t.failures > 0 {
		t.r.log.Info("the databroker is in reach again", "while", t.what)
	}
	t.failures = 0
}

// grow doubles first with each failure after the first, up to most.
func grow(first, most time.Duration, failures int) time.Duration {
	d := first
	for range failures - 1 {
		if d *= 2; d >= most {
			return most
		}
	}
	return d
}

// spread is between half of d and d.
func (r *Refresher) spread(d time.Duration) time.Duration {
	return d/2 + r.part(d/2)
}

// part is between 0 and d.
func (r *Refresher) part(d time.Duration) time.Duration {
	return time.Duration(r.rand() * float64(d))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
