package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
// of sessions is used for databroker_outage_grace at most.
func (s *Server) Run(ctx context.Context) error {
	f := feed{store: s.identities.store, identities: s.identities, log: s.log}
	f.follow(ctx)
	return nil
}

// feed is the state of one follower.
type feed struct {
	store      databroker.Store
	identities *identities
	log        *slog.Logger
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
				f.log.LogAttrs(ctx, slog.LevelError, "databroker out of reach", slog.String("error", err.Error()))
			} else {
				f.log.LogAttrs(ctx, slog.LevelInfo, "databroker in reach again")
			}
		}
		if err != nil {
			wait(ctx, heartbeat)
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
	if f.identities.records.have() == nil { // a new policy looks at other types
		if err := f.identities.records.reload(ctx); err != nil {
			return err
		}
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
		return f.apply(ctx, changes, asked)
	case waited:
		return f.beat(ctx)
	}
	return fmt.Errorf("follow changes: %w", err)
}

// apply takes changes over: the revocations first, for which the store need not be
// asked. Where the records cannot be read, all of it is to be done again.
func (f *feed) apply(ctx context.Context, changes []databroker.Change, asked time.Time) error {
	changed := recordChanges{}
	for _, c := range changes {
		if c.Kind == databroker.KindRecord {
			changed.add(c.Type, c.ID)
		} else {
			f.identities.changed(c.Kind, c.ID)
		}
	}
	if len(changed) > 0 {
		if err := f.identities.records.apply(ctx, changed); err != nil {
			return err
		}
		f.identities.recordsChanged(changed)
	}
	f.behind = false
	if len(changes) > 0 {
		f.after = changes[len(changes)-1].Sequence
	}
	f.seen(asked)
	return nil
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
	if err := f.identities.records.reload(ctx); err != nil {
		return err
	}
	f.identities.forget()
	f.after, f.began, f.behind = sequence, true, false
	return nil
}

func (f *feed) seen(at time.Time) { f.identities.contact.Store(at.UnixNano()) }

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
