package refresh

import "sync/atomic"

// Stats says what a Refresher has done since it was made, and what it does now.
type Stats struct {
	// Holding is whether it has the lease; if not, Scheduled is 0.
	Holding bool
	// Scheduled is how many sessions it keeps fresh.
	Scheduled int64
	// Refreshed counts renewals that were written, LookedAt answers of userinfo,
	// Refused sessions that ended because the provider refused their tokens.
	Refreshed, LookedAt, Refused uint64
	// The rest counts attempts that failed, by why: the provider did not answer,
	// refuses us, answered what proves nothing, refuses the access token of a session
	// that has no refresh token, or the databroker did not answer.
	Unavailable, Misconfigured, Unusable, Frozen, StoreDown uint64
}

type counts struct {
	holding                      atomic.Bool
	scheduled                    atomic.Int64
	refreshed, lookedAt, refused atomic.Uint64
	failed                       [causes]atomic.Uint64
}

// Stats returns them. It may be called at any time.
func (r *Refresher) Stats() Stats {
	c := &r.counts
	return Stats{
		Holding: c.holding.Load(), Scheduled: c.scheduled.Load(),
		Refreshed: c.refreshed.Load(), LookedAt: c.lookedAt.Load(), Refused: c.refused.Load(),
		Unavailable: c.failed[unavailable].Load(), Misconfigured: c.failed[misconfigured].Load(),
		Unusable: c.failed[unusable].Load(), Frozen: c.failed[frozen].Load(), StoreDown: c.failed[storeDown].Load(),
	}
}
