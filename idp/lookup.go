package idp

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// maxLookups is how many tokens of either sort may be asked about at once.
	maxLookups = 32
	// failuresPerSecond is how many tokens that anybody brought may turn out to be
	// no good, and failuresAtOnce how many after a time without any.
	failuresPerSecond = 20
	failuresAtOnce    = 40
	// maxGood is how many tokens are remembered twice over.
	maxGood = 4096
)

// lookups bounds what a provider is asked about the tokens that anybody may bring.
// Those that it has signed, or that were good before, have room of their own, so
// that made-up ones do not keep them out.
type lookups struct {
	known, others chan struct{}

	mu sync.Mutex
	// left is how many of the others may still fail, as of at.
	left float64
	at   time.Time
	// good are digests of tokens that were good, and older those of before good was
	// full.
	good, older map[digest]bool
}

type digest = [sha256.Size]byte

func newLookups() *lookups {
	return &lookups{known: make(chan struct{}, maxLookups), others: make(chan struct{}, maxLookups), left: failuresAtOnce, good: map[digest]bool{}}
}

// lookUp asks the provider whose an access token is. A subject, if there is one, is
// from a signature of the provider.
func (p *Provider) lookUp(ctx context.Context, d *discovered, access, subject string) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, documentWait)
	defer cancel()
	l, id := p.lookups, sha256.Sum256([]byte(access))
	known := subject != "" || l.wasGood(id)
	room := l.others
	if known {
		room = l.known
	}
	if !known && !l.spend(p.now(), 0) {
		return nil, errTooManyFail()
	}
	select {
	case room <- struct{}{}:
		defer func() { <-room }()
	case <-ctx.Done():
		return nil, failed(Unavailable, "too many tokens are being asked about")
	}
	if !known && !l.spend(p.now(), 1) {
		return nil, errTooManyFail()
	}
	claims, err := p.ask(ctx, d, access, subject)
	l.learn(id, known, err == nil)
	return claims, err
}

func errTooManyFail() error {
	return failed(Unavailable, "too many tokens have turned out to be no good just now, so the provider is not asked about one more")
}

func (p *Provider) ask(ctx context.Context, d *discovered, access, subject string) (map[string]any, error) {
	if p.kind.profile != nil {
		return p.kind.profile(p, ctx, access)
	}
	return p.userinfo(ctx, d, access, subject)
}

// spend takes n failures off those that are left, and reports whether there is one
// left at all.
func (l *lookups) spend(now time.Time, n float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A clock may be set back.
	passed := max(0, now.Sub(l.at).Seconds())
	l.left, l.at = min(failuresAtOnce, l.left+passed*failuresPerSecond), now
	if l.left < 1 {
		return false
	}
	l.left -= n
	return true
}

func (l *lookups) wasGood(id digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.good[id] || l.older[id]
}

// learn notes what came of a token. A good one gives back what was spent on it.
func (l *lookups) learn(id digest, known, good bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !good {
		delete(l.good, id)
		delete(l.older, id)
		return
	}
	if !known {
		l.left = min(failuresAtOnce, l.left+1)
	}
	if len(l.good) >= maxGood {
		l.good, l.older = map[digest]bool{}, l.good
	}
	l.good[id] = true
}
