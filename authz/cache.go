package authz

import (
	"maps"
	"sync"
	"sync/atomic"
)

// cache is a bounded map from text whose reads take no lock. When it is full,
// an entry that nobody has asked for since the hand last passed makes room
// (the clock algorithm).
type cache[V any] struct {
	limit   int
	entries sync.Map // string to *slot[V]

	mu   sync.Mutex
	ring []*slot[V]
	hand int
}

type slot[V any] struct {
	key   string
	value V
	used  atomic.Bool
	at    int // index in ring, guarded by mu
}

func newCache[V any](limit int) *cache[V] { return &cache[V]{limit: limit} }

func (c *cache[V]) get(key string) (v V, ok bool) {
	e, ok := c.entries.Load(key)
	if !ok {
		return v, false
	}
	s := e.(*slot[V])
	if !s.used.Load() {
		s.used.Store(true)
	}
	return s.value, true
}

// put keeps key, which must own its memory.
func (c *cache[V]) put(key string, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(key)
	s := &slot[V]{key: key, value: v}
	if len(c.ring) < c.limit {
		s.at = len(c.ring)
		c.ring = append(c.ring, s)
	} else {
		for c.ring[c.hand].used.Swap(false) {
			c.hand = (c.hand + 1) % len(c.ring)
		}
		c.entries.Delete(c.ring[c.hand].key)
		s.at = c.hand
		c.ring[c.hand] = s
		c.hand = (c.hand + 1) % len(c.ring)
	}
	c.entries.Store(key, s)
}

func (c *cache[V]) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(key)
}

// dropWhere drops every value that is what f asks for.
func (c *cache[V]) dropWhere(f func(V) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// What is removed is replaced by the last, which has been seen.
	for i := len(c.ring) - 1; i >= 0; i-- {
		if f(c.ring[i].value) {
			c.remove(c.ring[i].key)
		}
	}
}

func (c *cache[V]) remove(key string) {
	e, ok := c.entries.LoadAndDelete(key)
	if !ok {
		return
	}
	at, last := e.(*slot[V]).at, len(c.ring)-1
	c.ring[at] = c.ring[last]
	c.ring[at].at = at
	c.ring[last] = nil
	c.ring = c.ring[:last]
	if c.hand >= last {
		c.hand = 0
	}
}

func (c *cache[V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries.Clear()
	c.ring, c.hand = nil, 0
}

func (c *cache[V]) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ring)
}

// memo is a small map that is read without a lock and copied to be written.
// Beyond its limit it begins anew: what it holds can always be had again. The
// zero value is empty.
type memo[K comparable, V any] struct{ p atomic.Pointer[map[K]V] }

// memoLimit is how many values one memo keeps.
const memoLimit = 64

func (m *memo[K, V]) get(k K) (v V, ok bool) {
	if p := m.p.Load(); p != nil {
		v, ok = (*p)[k]
	}
	return v, ok
}

func (m *memo[K, V]) put(k K, v V) {
	for {
		old := m.p.Load()
		next := make(map[K]V, 4)
		if old != nil && len(*old) < memoLimit {
			next = maps.Clone(*old)
		}
		next[k] = v
		if m.p.CompareAndSwap(old, &next) {
			return
		}
	}
}
