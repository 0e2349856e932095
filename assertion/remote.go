package assertion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// freshFor is the age from which keys are fetched again, while the ones
	// there are go on being used, at most until they are staleFor old.
	freshFor, staleFor = 5 * time.Minute, time.Hour
	// fetchInterval is the least time between two fetches, whatever tokens
	// arrive and however the fetch ended.
	fetchInterval = 10 * time.Second
	fetchTimeout  = 10 * time.Second

	maxJWKS = 1 << 20
	// maxUnknown bounds the memory of key ids that do not exist.
	maxUnknown = 256
)

// RemoteKeys are keys published as a JSON Web Key Set. The first use fetches
// them; later they are renewed in the background, and what is there serves
// meanwhile. A key id that is not among them causes one fetch. There is never
// more than one fetch at a time, and callers share its result.
type RemoteKeys struct {
	url    string
	client *http.Client
	now    func() time.Time
	// life ends with Close.
	life    context.Context
	end     context.CancelFunc
	fetches sync.WaitGroup

	mu        sync.Mutex
	keys      []Key
	fetchedAt time.Time // of keys
	triedAt   time.Time
	lastErr   error
	inFlight  chan struct{} // closed when the fetch is over; nil if there is none
	unknown   map[string]time.Time
}

// NewRemoteKeys returns the keys published at an https URL; plain http is for
// loopback hosts. client may be nil; of another its transport is used. It
// fetches nothing yet.
func NewRemoteKeys(rawURL string, client *http.Client) (*RemoteKeys, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("remote keys: not an absolute URL")
	}
	if err := safeKeyURL(u); err != nil {
		return nil, fmt.Errorf("remote keys: %w", err)
	}
	own := &http.Client{Timeout: fetchTimeout, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) >= 3 {
			return errors.New("too many redirects")
		}
		if r.URL.Scheme == "http" && via[0].URL.Scheme == "https" {
			return errors.New("redirected from https to http")
		}
		return safeKeyURL(r.URL)
	}}
	if client != nil {
		own.Transport = client.Transport
	}
	k := &RemoteKeys{url: u.String(), client: own, now: time.Now, unknown: make(map[string]time.Time)}
	k.life, k.end = context.WithCancel(context.Background())
	k.lastErr = errors.New("not fetched yet")
	return k, nil
}

// Close ends a fetch under way, waits for it, and lets no other begin. It is for
// an orderly end: what is not closed holds nothing once its fetch is over.
func (k *RemoteKeys) Close() {
	k.end()
	k.fetches.Wait()
}

// Keys implements KeySource. It waits for a fetch only where there are no keys
// to answer from, and not longer than ctx.
func (k *RemoteKeys) Keys(ctx context.Context, id string) ([]Key, error) {
	found, wait, err := k.lookUp(id, true)
	if wait == nil {
		return found, err
	}
	select {
	case <-wait:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, ctx.Err())
	}
	found, _, err = k.lookUp(id, false)
	return found, err
}

// lookUp returns what it knows, or a fetch to wait for. mayFetch is false after
// such a wait, so that no caller waits twice.
func (k *RemoteKeys) lookUp(id string, mayFetch bool) (found []Key, wait <-chan struct{}, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	usable := !k.fetchedAt.IsZero() && now.Sub(k.fetchedAt) < staleFor
	if usable {
		if found, err = findKeys(k.keys, id); err == nil {
			if now.Sub(k.fetchedAt) >= freshFor {
				k.fetch(now)
			}
			return found, nil, nil
		}
		if seen, ok := k.unknown[id]; ok && now.Sub(seen) < freshFor {
			return nil, nil, err
		}
	}
	if mayFetch && k.fetch(now) {
		return nil, k.inFlight, nil
	}
	switch {
	case k.lastErr != nil:
		return nil, nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, k.lastErr)
	case !usable: // the clock has jumped
		return nil, nil, ErrKeysUnavailable
	}
	if !mayFetch {
		k.remember(id, now)
	}
	return nil, nil, err
}

// remember notes a key id that a fetch did not bring.
func (k *RemoteKeys) remember(id string, now time.Time) {
	if len(k.unknown) >= maxUnknown {
		clear(k.unknown)
	}
	k.unknown[id] = now
}

// fetch starts a fetch, unless one is under way or the last was too recent, and
// reports whether one is under way. The caller holds the lock.
func (k *RemoteKeys) fetch(now time.Time) bool {
	if k.inFlight != nil {
		return true
	}
	if !k.triedAt.IsZero() && now.Sub(k.triedAt) < fetchInterval {
		return false
	}
	if k.life.Err() != nil {
		k.lastErr = errors.New("closed")
		return false
	}
	done := make(chan struct{})
	k.inFlight, k.triedAt = done, now
	k.fetches.Go(func() {
		// Not the caller's context: others wait for the same fetch.
		ctx, cancel := context.WithTimeout(k.life, fetchTimeout)
		defer cancel()
		keys, err := k.get(ctx)

		k.mu.Lock()
		defer k.mu.Unlock()
		if k.lastErr = err; err == nil {
			k.keys, k.fetchedAt = keys, k.now()
		}
		k.inFlight = nil
		close(done)
	})
	return true
}

func (k *RemoteKeys) get(ctx context.Context) ([]Key, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch keys from %s: status %d", k.url, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	if err != nil {
		return nil, fmt.Errorf("fetch keys from %s: %w", k.url, err)
	}
	if len(body) > maxJWKS {
		return nil, fmt.Errorf("fetch keys from %s: more than %d MiB", k.url, maxJWKS>>20)
	}
	keys, err := parseJWKS(body)
	if err != nil {
		return nil, fmt.Errorf("fetch keys from %s: %w", k.url, err)
	}
	return keys, nil
}

// safeKeyURL keeps keys from being fetched in a way that lets others replace
// them: over plain http from anywhere but this machine.
func safeKeyURL(u *url.URL) error {
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		host := strings.ToLower(u.Hostname())
		ip := net.ParseIP(host)
		if host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback() {
			return nil
		}
		return errors.New("keys over plain http can be replaced on the way; use https")
	}
	return errors.New("the URL must be https")
}
