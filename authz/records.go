package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

const (
	// rereadAtOnce is how many records of a type are read one by one before it is
	// quicker to read the type.
	rereadAtOnce = 100
	// maxChanges is how many changed records of a type are told apart.
	maxChanges = 10_000
)

// records are what the store says of people and addresses, all in memory and for
// as long as the change feed vouches for them: a policy that looks a record up must
// not wait for the store. Each type is read and indexed on its own, so that none
// waits for a big one.
type records struct {
	store databroker.Store
	now   func() time.Time
	ids   *atomic.Uint64
	log   *slog.Logger
	// trusted is whether the feed has been in contact within a grace, told is
	// called with the changes that are in current now: nil ids are any of the type.
	trusted func(grace time.Duration) bool
	told    func(typ string, ids map[string]bool)
	// known are the types that say something about identities.
	known []string

	current atomic.Pointer[recordSet]
	// behind are the types of which something has changed that is not in current,
	// with a time before that was so. It is nil for none.
	behind atomic.Pointer[map[string]time.Time]
	woken  chan struct{}

	// mu guards what follows, and the writing of current and behind.
	mu      sync.Mutex
	wanted  []string
	flights map[string]*recordFlight
	pending map[string]*recordChanges
	// reading are the types that refresh is busy with.
	reading map[string]bool
}

// recordSet is immutable.
type recordSet struct {
	*policy.Records
	// revision stands for this very content.
	revision uint64
	byType   map[string]*typeRecords
}

// typeRecords are the records of one type, by id and indexed. They are immutable.
type typeRecords struct {
	byID  map[string]policy.Record
	index *policy.Records
}

// recordChanges are the ids of a type's changed records; nil are any.
type recordChanges struct{ ids map[string]bool }

func (ch *recordChanges) add(other *recordChanges) {
	if ch.ids == nil || other.ids == nil || len(ch.ids)+len(other.ids) > maxChanges {
		ch.ids = nil
		return
	}
	maps.Copy(ch.ids, other.ids)
}

// recordFlight is one reading of a type that several checks may wait for.
type recordFlight struct {
	done chan struct{}
	of   *typeRecords
	err  error
	// stale and abandoned are as those of flight.
	stale, abandoned bool
}

func newRecords(store databroker.Store, now func() time.Time, ids *atomic.Uint64) *records {
	c := &records{
		store: store, now: now, ids: ids, log: slog.New(slog.DiscardHandler),
		known:   []string{policy.RecordDevice, policy.RecordDirectoryGroup, policy.RecordDirectoryUser},
		woken:   make(chan struct{}, 1),
		flights: map[string]*recordFlight{}, pending: map[string]*recordChanges{}, reading: map[string]bool{},
	}
	c.current.Store(c.join(nil))
	c.want(nil)
	return c
}

// want sets the types to have besides those that we know. Those that are missing
// are read when they are first asked for, or by follow.
func (c *records) want(types []string) {
	all := append(slices.Clone(c.known), types...)
	slices.Sort(all)
	all = slices.Compact(all)
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(c.wanted, all) {
		return
	}
	c.wanted = all
	// What nobody wants is not kept up to date.
	unwanted := func(typ string) bool { return !slices.Contains(all, typ) }
	byType := maps.Clone(c.current.Load().byType)
	maps.DeleteFunc(byType, func(typ string, _ *typeRecords) bool { return unwanted(typ) })
	c.current.Store(c.join(byType))
	maps.DeleteFunc(c.pending, func(typ string, _ *recordChanges) bool { return unwanted(typ) })
	for typ := range c.flights {
		if unwanted(typ) {
			c.overtake(typ)
		}
	}
	for _, typ := range c.behindNow() {
		if unwanted(typ) {
			c.setBehind(typ, time.Time{})
		}
	}
	c.wake()
}

func (c *records) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

func (s *recordSet) covers(types []string) bool {
	for _, typ := range types {
		if s.byType[typ] == nil {
			return false
		}
	}
	return true
}

// vouched reports whether what is in memory of these types is no older than grace.
func (c *records) vouched(grace time.Duration, types ...string) bool {
	if !c.trusted(grace) {
		return false
	}
	behind := c.behind.Load()
	if behind == nil {
		return true
	}
	for _, typ := range types {
		if since, ok := (*behind)[typ]; ok && c.now().Sub(since) > max(grace, minGrace) {
			return false
		}
	}
	return true
}

// get returns the records of these types and maybe of others. An error means that
// the store could not be asked and that what is in memory, if anything, is older
// than grace.
func (c *records) get(ctx context.Context, grace time.Duration, types []string) (*recordSet, error) {
	set := c.current.Load()
	if set.covers(types) && c.vouched(grace, types...) {
		return set, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	byType := make(map[string]*typeRecords, len(types))
	for _, typ := range types {
		of := set.byType[typ]
		if of == nil || !c.vouched(grace, typ) {
			var err error
			if of, err = c.fetch(ctx, typ); err != nil {
				return nil, err
			}
		}
		byType[typ] = of
	}
	return c.join(byType), nil
}

// fetch reads a type, or waits for who does.
func (c *records) fetch(ctx context.Context, typ string) (*typeRecords, error) {
	for {
		c.mu.Lock()
		f, flying := c.flights[typ]
		if !flying {
			f = &recordFlight{done: make(chan struct{}), err: errors.New("store gave no answer")}
			c.flights[typ] = f
		}
		c.mu.Unlock()
		if !flying {
			c.fly(ctx, f, typ)
			return f.of, f.err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for records of type %s: %w", typ, ctx.Err())
		}
		if !f.abandoned {
			return f.of, f.err
		}
	}
}

// fly reads a type and publishes it, unless it changed meanwhile.
func (c *records) fly(ctx context.Context, f *recordFlight, typ string) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.flights[typ] == f {
			delete(c.flights, typ)
		}
		if f.err == nil && !f.stale {
			c.put(typ, f.of)
		}
		close(f.done)
	}()
	f.of, f.err = c.load(ctx, typ)
	f.abandoned = f.err != nil && ctx.Err() != nil
}

func (c *records) load(ctx context.Context, typ string) (*typeRecords, error) {
	found, err := c.store.Records(ctx, typ)
	if err != nil {
		return nil, fmt.Errorf("load records of type %s: %w", typ, err)
	}
	of := make(map[string]policy.Record, len(found))
	for _, r := range found {
		of[r.ID] = policy.Record{Type: r.Type, ID: r.ID, Fields: r.Fields}
	}
	return indexed(of), nil
}

func indexed(of map[string]policy.Record) *typeRecords {
	return &typeRecords{byID: of, index: policy.NewRecords(slices.Collect(maps.Values(of)))}
}

func (c *records) join(byType map[string]*typeRecords) *recordSet {
	sets := make([]*policy.Records, 0, len(byType))
	for _, of := range byType {
		sets = append(sets, of.index)
	}
	return &recordSet{Records: policy.JoinRecords(sets...), revision: c.ids.Add(1), byType: byType}
}

// put publishes a type that was read. The lock is held, as in all that follows
// until refresh.
func (c *records) put(typ string, of *typeRecords) {
	if !slices.Contains(c.wanted, typ) {
		return
	}
	byType := maps.Clone(c.current.Load().byType)
	if byType == nil {
		byType = map[string]*typeRecords{}
	}
	byType[typ] = of
	c.current.Store(c.join(byType))
}

// overtake keeps a reading under way from being published.
func (c *records) overtake(typ string) {
	if f := c.flights[typ]; f != nil {
		f.stale = true
		delete(c.flights, typ)
	}
}

func (c *records) behindNow() []string {
	if behind := c.behind.Load(); behind != nil {
		return slices.Collect(maps.Keys(*behind))
	}
	return nil
}

// setBehind notes since when a type is behind; the zero time is that it is not.
func (c *records) setBehind(typ string, since time.Time) {
	next := map[string]time.Time{}
	if behind := c.behind.Load(); behind != nil {
		maps.Copy(next, *behind)
	}
	if since.IsZero() {
		delete(next, typ)
	} else {
		next[typ] = since
	}
	if len(next) == 0 {
		c.behind.Store(nil)
		return
	}
	c.behind.Store(&next)
}

// due are the types to refresh now, those that we know first. They count as being
// read until refresh has succeeded.
func (c *records) due() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var due []string
	have := c.current.Load().byType
	for _, typ := range slices.Concat(c.known, c.wanted) {
		if (c.pending[typ] != nil || have[typ] == nil) && !c.reading[typ] {
			c.reading[typ] = true
			due = append(due, typ)
		}
	}
	return due
}

// changed notes changes of a type since a time; nil ids are any. Only follow takes
// them over: nothing that the feed has to tell waits for that.
func (c *records) changed(typ string, ids map[string]bool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(typ, ids, since)
	c.wake()
}

// restart notes that anything may have changed.
func (c *records) restart(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, typ := range c.wanted {
		c.note(typ, nil, since)
	}
	c.wake()
}

func (c *records) note(typ string, ids map[string]bool, since time.Time) {
	if !slices.Contains(c.wanted, typ) {
		return // no policy looks at it
	}
	c.overtake(typ)
	changes := &recordChanges{ids}
	if before := c.pending[typ]; before != nil {
		before.add(changes)
	} else {
		c.pending[typ] = changes
	}
	if !slices.Contains(c.behindNow(), typ) {
		c.setBehind(typ, since)
	}
}

// refresh reads what changed of a type, or all of it if it is missing, for however
// long that takes.
func (c *records) refresh(ctx context.Context, typ string) error {
	c.mu.Lock()
	changes, before, taken := c.pending[typ], c.current.Load().byType[typ], c.now()
	delete(c.pending, typ)
	wanted := slices.Contains(c.wanted, typ)
	if !wanted {
		delete(c.reading, typ)
	}
	c.mu.Unlock()
	if !wanted {
		return nil
	}
	if changes == nil {
		changes = &recordChanges{}
	}
	of, err := c.reread(ctx, typ, before, changes.ids)
	if err == nil {
		c.mu.Lock()
		c.overtake(typ)
		c.put(typ, of)
		c.mu.Unlock()
		c.told(typ, changes.ids)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	more := c.pending[typ]
	if err != nil {
		if more != nil {
			changes.add(more)
		}
		c.pending[typ] = changes
		return err
	}
	delete(c.reading, typ)
	if more == nil {
		taken = time.Time{}
	}
	c.setBehind(typ, taken)
	return nil
}

func (c *records) reread(ctx context.Context, typ string, before *typeRecords, ids map[string]bool) (*typeRecords, error) {
	if before == nil || ids == nil || len(ids) > rereadAtOnce {
		return c.load(ctx, typ)
	}
	of := maps.Clone(before.byID)
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
	return indexed(of), nil
}

// follow keeps the records up to date until ctx is done. Each type is read by
// itself: a small one does not wait for a big one.
func (c *records) follow(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	for ctx.Err() == nil {
		for _, typ := range c.due() {
			group.Go(func() { c.keep(ctx, typ) })
		}
		select {
		case <-c.woken:
		case <-ctx.Done():
		}
	}
}

// keep refreshes a type until that succeeds.
func (c *records) keep(ctx context.Context, typ string) {
	log := c.log.With(slog.String("type", bounded(typ)))
	failed := false
	for {
		err := c.refresh(ctx, typ)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			break
		}
		if !failed {
			failed = true
			log.LogAttrs(ctx, slog.LevelError, "records cannot be read", slog.String("error", bounded(err.Error())))
		}
		wait(ctx, heartbeat)
	}
	if failed {
		log.LogAttrs(ctx, slog.LevelInfo, "records can be read again")
	}
	c.wake() // for what changed meanwhile
}
