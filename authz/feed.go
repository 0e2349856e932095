package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/countersign/countersign/databroker"
)

const (
	// heartbeat is how often we ask the store for its sequence when it has no
	// changes to tell.
	heartbeat = 250 * time.Millisecond
	// feedTimeout bounds a heartbeat's question.
	feedTimeout = time.Second
)

// Run follows the databroker's change feed until ctx is done, and returns nil
// then. While it does not run, or cannot reach the store, what is remembered
// of sessions is used for databroker_outage_grace at most. It also tells the store
// when sessions were last used, once more before it returns, and ends the questions
// about bearer tokens that are under way then.
func (s *Server) Run(ctx context.Context) error {
	f := feed{store: s.identities.store, identities: s.identities, log: s.log}
	var group sync.WaitGroup
	defer group.Wait()
	defer s.bearers.inquiries.finish()
	// What it would read before, the feed would have it read again.
	f.started = sync.OnceFunc(func() { group.Go(func() { s.identities.records.follow(ctx) }) })
	group.Go(func() { s.identities.uses.follow(ctx, s.now, s.log) })
	f.follow(ctx)
	return nil
}

// feed is the state of one follower.
type feed struct {
	store      databroker.Store
	identities *identities
	log        *slog.Logger
	// started is called when the feed is in contact.
	started func()
	// after is the sequence of the last change applied.
	after uint64
	began bool
	down  bool
	// behind is set while the sequence was ahead of what Changes told.
	behind bool
}

func (f *feed) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.step(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != f.down {
			f.down = err != nil
			if f.down {
				f.log.LogAttrs(ctx, slog.LevelError, "databroker out of reach", slog.String("error", bounded(err.Error())))
			} else {
				f.log.LogAttrs(ctx, slog.LevelInfo, "databroker in reach again")
			}
		}
		if err != nil {
			wait(ctx, heartbeat)
		} else {
			f.started()
		}
	}
}

// step waits for changes for one heartbeat at most and applies them. Contact
// counts from before the question: what happened since, we may not know.
func (f *feed) step(ctx context.Context) error {
	asked := f.identities.now()
	if !f.began {
		if err := f.restart(ctx); err != nil {
			return err
		}
		f.seen(asked)
		return nil
	}
	wctx, cancel := context.WithTimeout(ctx, heartbeat)
	changes, err := f.store.Changes(wctx, f.after)
	// Waiting in vain is no error, but a store that hangs looks the same.
	waited := err != nil && wctx.Err() != nil
	cancel()
	switch {
	case errors.Is(err, databroker.ErrTruncated):
		f.began = false
		return nil
	case err == nil:
		f.apply(changes, asked)
		return nil
	case waited:
		return f.beat(ctx)
	}
	return fmt.Errorf("follow changes: %w", err)
}

// apply takes changes over. Records are only noted: to read them takes time, and a
// revocation behind them must not wait.
func (f *feed) apply(changes []databroker.Change, asked time.Time) {
	changed := map[string]map[string]bool{}
	for _, c := range changes {
		if c.Kind != databroker.KindRecord {
			f.identities.changed(c.Kind, c.ID)
			continue
		}
		if changed[c.Type] == nil {
			changed[c.Type] = map[string]bool{}
		}
		changed[c.Type][c.ID] = true
	}
	for typ, ids := range changed {
		f.identities.records.changed(typ, ids, f.lastContact())
	}
	f.behind = false
	if len(changes) > 0 {
		f.after = changes[len(changes)-1].Sequence
	}
	f.seen(asked)
}

// beat asks the store whether there is anything that we have not been told.
func (f *feed) beat(ctx context.Context) error {
	asked := f.identities.now()
	ctx, cancel := context.WithTimeout(ctx, feedTimeout)
	defer cancel()
	sequence, err := f.store.Sequence(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("read sequence: %w", err)
	case sequence == f.after:
		f.behind = false
		f.seen(asked)
	case sequence < f.after || f.behind:
		// The store was put back to an earlier state, or does not tell us what
		// changed: nothing we know holds.
		f.began = false
	default:
		f.behind = true // by a change since, which the next Changes tells
	}
	return nil
}

// restart forgets everything and goes on from the store's present.
func (f *feed) restart(ctx context.Context) error {
	asked, cancel := context.WithTimeout(ctx, feedTimeout)
	defer cancel()
	sequence, err := f.store.Sequence(asked)
	if err != nil {
		return fmt.Errorf("read sequence: %w", err)
	}
	f.identities.records.restart(f.lastContact())
	f.identities.forget()
	f.after, f.began, f.behind = sequence, true, false
	return nil
}

// lastContact is a time at which everything was known, in the far past if there
// was none.
func (f *feed) lastContact() time.Time { return time.Unix(0, f.identities.contact.Load()) }

func (f *feed) seen(at time.Time) { f.identities.contact.Store(at.UnixNano()) }

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
