package databroker

import "context"

// Sequence implements Store.
func (f *File) Sequence(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return f.feed.sequence()
}

// Changes implements Store.
func (f *File) Changes(ctx context.Context, after uint64) ([]Change, error) {
	last, err := f.feed.await(ctx, after)
	if err != nil {
		return nil, err
	}
	var changes []Change
	err = f.read(ctx, "read changes", func() error {
		rows, err := f.reads.changes.QueryContext(ctx, after, last, changesAtOnce)
		if err != nil {
			return err
		}
		changes, err = collect(rows, func(row scanner) (c Change, err error) {
			return c, row.Scan(&c.Sequence, &c.Kind, &c.Type, &c.ID, &c.Deleted)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	// Numbers have no gaps: if the next one is not there, it was dropped while
	// we were on the way to it.
	if len(changes) == 0 || changes[0].Sequence != after+1 {
		return nil, ErrTruncated
	}
	return changes, nil
}

// Prune removes sessions and service accounts that expired more than a day
// ago, and tickets and leases that are over, a bounded number at once, and
// returns how many it removed. Call it again while that is not 0.
func (f *File) Prune(ctx context.Context) (int, error) {
	removed := 0
	err := f.write(ctx, "prune", func(w *writing) error {
		now := f.now()
		before := stored(now.Add(-expiredFor))
		for _, table := range []struct {
			kind   Kind
			remove string
		}{
			{KindSession, `DELETE FROM sessions WHERE id IN
				(SELECT id FROM sessions WHERE expires_at < ? ORDER BY expires_at LIMIT ?) RETURNING id`},
			{KindServiceAccount, `DELETE FROM service_accounts WHERE id IN
				(SELECT id FROM service_accounts WHERE expires_at < ? LIMIT ?) RETURNING id`},
		} {
			rows, err := w.tx.QueryContext(w.ctx, table.remove, before, pruneAtOnce)
			if err != nil {
				return err
			}
			ids, err := collect(rows, func(row scanner) (id string, err error) { return id, row.Scan(&id) })
			if err != nil {
				return err
			}
			for _, id := range ids {
				if _, err := w.record(table.kind, id, true); err != nil {
					return err
				}
			}
			removed += len(ids)
		}
		for _, remove := range []string{
			`DELETE FROM tickets WHERE id IN (SELECT id FROM tickets WHERE expires_at <= ? LIMIT ?)`,
			`DELETE FROM leases WHERE name IN (SELECT name FROM leases WHERE expires_at <= ? LIMIT ?)`,
		} {
			n, err := w.exec(remove, stored(now), pruneAtOnce)
			if err != nil {
				return err
			}
			removed += int(n)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return removed, nil
}
