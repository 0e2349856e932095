package authz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

const (
	// loadTimeout bounds the feed's reading of all records: checks do not wait
	// for it.
	loadTimeout = 10 * time.Second
	// rereadAtOnce is how many records of a type are read one by one before it is
	// quicker to read the type.
	rereadAtOnce = 100
)

// records are what the store says of people and addresses, all in memory and for
// as long as the change feed vouches for them: a policy that looks a record up must
// not wait for the store.
type records struct {
	store databroker.Store
	now   func() time.Time
	ids   *atomic.Uint64
	// trusted is whether the feed has been in contact within a grace.
	trusted func(grace time.Duration) bool

	current atomic.Pointer[recordSet]
	// wanted are the types to have, sorted, and replaced whole.
	wanted atomic.Pointer[[]string]

	mu     sync.Mutex
	flight *recordFlight
}

// recordSet is immutable.
type recordSet struct {
	*policy.Records
	// revision stands for this very content.
	revision uint64
	// types is what was wanted, byType what there is: by type and id.
	types  *[]string
	byType map[string]map[string]policy.Record
}

// recordFlight is one reading of all records that several checks may wait for.
type recordFlight struct {
	done chan struct{}
	set  *recordSet
	err  error
	// stale and abandoned are as those of flight.
	stale, abandoned bool
}

// knownRecords are the types that say something about identities.
func knownRecords() []string {
	return []string{databroker.RecordDevice, databroker.RecordDirectoryGroup, databroker.RecordDirectoryUser}
}

func newRecords(store databroker.Store, now func() time.Time, ids *atomic.Uint64, trusted func(time.Duration) bool) *records {
	r := &records{store: store, now: now, ids: ids, trusted: trusted}
	r.want(nil)
	return r
}

// want sets the types to have besides those that we know. Those that are missing
// are read when they are first asked for, or by the feed.
func (c *records) want(types []string) {
	all := append(knownRecords(), types...)
	slices.Sort(all)
	all = slices.Compact(all)
	if now := c.wanted.Load(); now == nil || !slices.Equal(*now, all) {
		c.wanted.Store(&all)
	}
}

// have returns the records in memory if they are all that is wanted, however old.
func (c *records) have() *recordSet {
	if set := c.current.Load(); set != nil && set.types == c.wanted.Load() {
		return set
	}
	return nil
}

func (s *recordSet) covers(types []string) bool {
	for _, typ := range types {
		if s.byType[typ] == nil {
			return false
		}
	}
	return true
}

// get returns records, among them those of the types given and those we know. An
// error means that the store could not be asked and that what is in memory, if
// anything, is older than grace.
func (c *records) get(ctx context.Context, grace time.Duration, types ...string) (*recordSet, error) {
	if set := c.current.Load(); set != nil && set.covers(types) && c.trusted(grace) {
		return set, nil
	}
	for {
		c.mu.Lock()
		f, flying := c.flight, c.flight != nil
		if !flying {
			f = &recordFlight{done: make(chan struct{}), err: errors.New("store gave no answer")}
			c.flight = f
		}
		c.mu.Unlock()
		if !flying {
			c.fly(ctx, f)
			return f.set, f.err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for records: %w", ctx.Err())
		}
		if !f.abandoned {
			return f.set, f.err
		}
	}
}

// fly reads everything and publishes it, unless it changed meanwhile.
func (c *records) fly(ctx context.Context, f *recordFlight) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.flight == f {
			c.flight = nil
		}
		if f.err == nil && !f.stale {
			c.current.Store(f.set)
		}
		close(f.done)
	}()
	limited, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	f.set, f.err = c.load(limited)
	f.abandoned = f.err != nil && ctx.Err() != nil
}

func (c *records) load(ctx context.Context) (*recordSet, error) {
	types := c.wanted.Load()
	byType := make(map[string]map[string]policy.Record, len(*types))
	for _, typ := range *types {
		of, err := c.loadType(ctx, typ)
		if err != nil {
			return nil, err
		}
		byType[typ] = of
	}
	return c.index(types, byType), nil
}

func (c *records) loadType(ctx context.Context, typ string) (map[string]policy.Record, error) {
	found, err := c.store.Records(ctx, typ)
	if err != nil {
		return nil, fmt.Errorf("load records of type %s: %w", typ, err)
	}
	of := make(map[string]policy.Record, len(found))
	for _, r := range found {
		of[r.ID] = policy.Record{Type: r.Type, ID: r.ID, Fields: r.Fields}
	}
	return of, nil
}

func (c *records) index(types *[]string, byType map[string]map[string]policy.Record) *recordSet {
	var all []policy.Record
	for _, of := range byType {
		all = slices.AppendSeq(all, maps.Values(of))
	}
	return &recordSet{Records: policy.NewRecords(all), revision: c.ids.Add(1), types: types, byType: byType}
}

// replace publishes a set that the feed has read.
func (c *records) replace(set *recordSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight != nil {
		c.flight.stale = true
		c.flight = nil
	}
	c.current.Store(set)
}

// reload reads everything.
func (c *records) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	set, err := c.load(ctx)
	if err == nil {
		c.replace(set)
	}
	return err
}

// recordChanges are the ids of changed records by type.
type recordChanges map[string]map[string]bool

func (ch recordChanges) add(typ, id string) {
	if ch[typ] == nil {
		ch[typ] = map[string]bool{}
	}
	ch[typ][id] = true
}

// apply reads what changed and publishes it, all of it at once.
func (c *records) apply(ctx context.Context, changes recordChanges) error {
	before := c.have()
	if before == nil {
		return c.reload(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	byType, changed := maps.Clone(before.byType), false
	for typ, ids := range changes {
		if byType[typ] == nil {
			continue // no policy looks at it
		}
		of, err := c.reread(ctx, typ, byType[typ], ids)
		if err != nil {
			return err
		}
		byType[typ], changed = of, true
	}
	if changed {
		c.replace(c.index(before.types, byType))
	}
	return nil
}

func (c *records) reread(ctx context.Context, typ string, before map[string]policy.Record, ids map[string]bool) (map[string]policy.Record, error) {
	if len(ids) > rereadAtOnce {
		return c.loadType(ctx, typ)
	}
	of := maps.Clone(before)
	for id := range ids {
		r, err := c.store.Record(ctx, typ, id)
		switch {
		case err == nil:
			of[id] = policy.Record{Type: typ, ID: id, Fields: r.Fields}
		case errors.Is(err, databroker.ErrNotFound):
			delete(of, id)
		default:
			return nil, fmt.Errorf("load record of type %s: %w", typ, err)
		}
	}
	return of, nil
}
