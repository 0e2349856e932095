package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

const (
	// maxIdentities bounds the sessions and accounts kept in memory.
	maxIdentities = 10_000
	// fetchTimeout bounds one question to the store, or for an issuer's keys, so
	// that a client gets our answer and not Envoy's timeout.
	fetchTimeout = 2 * time.Second
	// minGrace is how long the feed may be silent before we stop to trust what
	// we remember, however short databroker_outage_grace is. It spans several
	// heartbeats.
	minGrace = time.Second
)

// identity is one session or service account as the store last had it. It is
// immutable but for what is remembered about it, and is replaced whole when its
// record changes: whatever hangs on it is about this revision.
type identity struct {
	// missing remembers that the store has no such record.
	missing bool

	principal policy.Principal
	name      string
	// groups are those of the assertion: the principal's and, of those that a
	// directory knows, the names.
	groups []string
	// devices are the ids of those that the session was used from, known or not.
	devices []string
	// idpID and createdAt are those of a session.
	idpID     string
	createdAt time.Time
	// expiresAt is zero for an account that does not expire.
	expiresAt time.Time
	// usage is nil but for a session.
	usage *usage

	verdicts   memo[verdictKey, *verdict]
	assertions memo[assertionKey, *minted]
	line       atomic.Pointer[identityLine]
}

func (i *identity) live(now time.Time) bool {
	return !i.missing && (i.expiresAt.IsZero() || now.Before(i.expiresAt))
}

// sessionIdentity is a session with what the records say of its user: where a
// directory knows them, its groups and its address count.
func sessionIdentity(s *databroker.Session, known *recordSet) *identity {
	p := policy.Principal{ID: s.ID, UserID: s.UserID, Claims: s.Claims, AuthTime: authTime(s)}
	p.Know(known.Records)
	i := &identity{name: joined(s.Claims["name"]), idpID: s.IDPID, createdAt: s.CreatedAt, expiresAt: s.ExpiresAt, groups: p.Groups}
	if _, ok := known.Find(policy.RecordDirectoryUser, s.UserID); ok {
		i.groups = slices.Clone(p.Groups)
		for _, id := range p.Groups {
			group, _ := known.Find(policy.RecordDirectoryGroup, id)
			if name, _ := group["name"].(string); name != "" {
				i.groups = append(i.groups, name)
			}
		}
	}
	for _, d := range s.Devices {
		i.devices = append(i.devices, d.ID)
		device, ok := known.Find(policy.RecordDevice, d.ID)
		if owner, _ := device["user_id"].(string); !ok || owner != s.UserID {
			continue // nobody's, or somebody else's
		}
		enrolled := policy.EnrolledDevice{ID: d.ID, Type: d.Type}
		if typ, _ := device["type"].(string); typ != "" {
			enrolled.Type = typ
		}
		approver, _ := device["approved_by"].(string)
		enrolled.Approved = approver != ""
		p.Devices = append(p.Devices, enrolled)
	}
	i.principal = p
	return i
}

// authTime is when the person last proved who they are, the zero time where the
// provider does not say: that a session is new proves nothing, for a provider may
// have known the browser. A fresh sign-in always has a time (package authn).
func authTime(s *databroker.Session) time.Time {
	if seconds, ok := s.Claims["auth_time"].(float64); ok && seconds > 0 && seconds < 1<<37 {
		return time.Unix(int64(seconds), 0).UTC()
	}
	return time.Time{}
}

// madeOf reports whether one of these records is what i is made of.
func (i *identity) madeOf(typ string, ids map[string]bool) bool {
	in := func(id string) bool { return ids[id] }
	switch typ {
	case policy.RecordDirectoryUser:
		return in(i.principal.UserID)
	case policy.RecordDirectoryGroup:
		return slices.ContainsFunc(i.principal.Groups, in)
	case policy.RecordDevice:
		return slices.ContainsFunc(i.devices, in)
	}
	return false
}

// accountIdentity has no address, groups or claims: an account inherits nothing
// from a user of the same id.
func accountIdentity(a *databroker.ServiceAccount) *identity {
	return &identity{
		principal: policy.Principal{ID: a.ID, UserID: a.UserID, ServiceAccount: true},
		expiresAt: a.ExpiresAt,
	}
}

// identities remembers what the store said, for as long as the change feed
// vouches for it.
type identities struct {
	store   databroker.Store
	now     func() time.Time
	records *records
	known   *cache[*identity]
	uses    *uses
	// uncached remembers nothing; only tests set it.
	uncached bool
	// contact is when the feed last knew that it had missed nothing, in
	// nanoseconds; 0 for never.
	contact atomic.Int64

	mu      sync.Mutex
	flights map[string]*flight
}

// flight is one question to the store that several requests may wait for.
type flight struct {
	done chan struct{}
	id   *identity
	err  error
	// stale is set, under the lock of identities, when the record changed
	// while the store was being asked: the answer may be the old one.
	stale bool
	// abandoned is set where the time of whoever asked was over: that is no
	// answer to the others.
	abandoned bool
}

func newIdentities(store databroker.Store, now func() time.Time, ids *atomic.Uint64) *identities {
	c := &identities{
		store:   store,
		now:     now,
		known:   newCache[*identity](maxIdentities),
		uses:    newUses(store),
		flights: map[string]*flight{},
	}
	c.records = newRecords(store, now, ids)
	c.records.trusted, c.records.told = c.trusted, c.recordsChanged
	return c
}

// recordKey names a record in the cache.
func recordKey(kind databroker.Kind, id string) string {
	if kind == databroker.KindServiceAccount {
		return "a" + id
	}
	return "s" + id
}

// lookup returns the record that a credential names; one that the store does
// not have is an identity too, a missing one. An error means that the store
// could not be asked and that what we remember, if anything, is older than grace.
func (c *identities) lookup(ctx context.Context, kind signin.Kind, id string, grace time.Duration) (*identity, error) {
	record := databroker.KindSession
	if kind == signin.KindServiceAccount {
		record = databroker.KindServiceAccount
	}
	key := recordKey(record, id)
	if known, ok := c.known.get(key); ok && c.vouched(record, grace) {
		return known, nil
	}
	return c.fetch(ctx, record, id, key, grace)
}

// vouched reports whether what is remembered of a kind is no older than grace. A
// session is made of records too.
func (c *identities) vouched(kind databroker.Kind, grace time.Duration) bool {
	if kind == databroker.KindSession {
		return !c.uncached && c.records.vouched(grace, c.records.known...)
	}
	return c.trusted(grace)
}

func (c *identities) trusted(grace time.Duration) bool {
	contact := c.contact.Load()
	return !c.uncached && contact != 0 && c.now().Sub(time.Unix(0, contact)) <= max(grace, minGrace)
}

func (c *identities) fetch(ctx context.Context, kind databroker.Kind, id, key string, grace time.Duration) (*identity, error) {
	for {
		c.mu.Lock()
		f, flying := c.flights[key]
		if !flying {
			f = &flight{done: make(chan struct{}), err: errors.New("store gave no answer")}
			c.flights[key] = f
		}
		c.mu.Unlock()
		if !flying {
			c.fly(ctx, f, kind, id, key, grace)
			return f.id, f.err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", kind, ctx.Err())
		}
		if !f.abandoned {
			return f.id, f.err
		}
	}
}

// fly asks the store and remembers its answer unless the record changed
// meanwhile.
func (c *identities) fly(ctx context.Context, f *flight, kind databroker.Kind, id, key string, grace time.Duration) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.flights[key] == f {
			delete(c.flights, key)
		}
		if f.err == nil && !f.stale {
			c.known.put(key, f.id)
		}
		close(f.done)
	}()
	limited, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	f.id, f.err = c.load(limited, kind, id, grace)
	f.abandoned = f.err != nil && ctx.Err() != nil
}

func (c *identities) load(ctx context.Context, kind databroker.Kind, id string, grace time.Duration) (*identity, error) {
	var found *identity
	var err error
	if kind == databroker.KindServiceAccount {
		var a *databroker.ServiceAccount
		if a, err = c.store.ServiceAccount(ctx, id); err == nil {
			found = accountIdentity(a)
		}
	} else {
		var s *databroker.Session
		if s, err = c.store.Session(ctx, id); err == nil {
			var known *recordSet
			if known, err = c.records.get(ctx, grace, c.records.known); err == nil {
				found = sessionIdentity(s, known)
				found.usage = c.uses.of(s)
			}
		}
	}
	if errors.Is(err, databroker.ErrNotFound) {
		found, err = &identity{missing: true}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", kind, err)
	}
	return found, nil
}

// changed forgets a record.
func (c *identities) changed(kind databroker.Kind, id string) {
	if kind == databroker.KindUser {
		return // sessions carry their own claims
	}
	key := recordKey(kind, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[key]; f != nil {
		f.stale = true
		delete(c.flights, key)
	}
	c.known.drop(key)
}

// recordsChanged forgets the sessions that records of a type say something else of
// now; nil ids are any. The new records are published already.
func (c *identities) recordsChanged(typ string, ids map[string]bool) {
	switch {
	case !slices.Contains(c.records.known, typ):
		return
	case ids == nil:
		c.forget()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, f := range c.flights {
		f.stale = true
		delete(c.flights, key)
	}
	c.known.dropWhere(func(i *identity) bool { return i.madeOf(typ, ids) })
}

// forget forgets every record.
func (c *identities) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, f := range c.flights {
		f.stale = true
		delete(c.flights, key)
	}
	c.known.clear()
}
