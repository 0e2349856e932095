package idp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// documentWait is how long a discovery document or keys may take, and
	// providerWait anything else.
	documentWait = 5 * time.Second
	providerWait = 10 * time.Second
	// pause is between two fetches of what could not be had, or of keys for the sake
	// of tokens that anybody may bring.
	pause          = 5 * time.Second
	maxStale       = 24 * time.Hour
	maxProviderDoc = 1 << 20
)

// network is what providers are reached with.
type network struct {
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
	// background counts the fetches under way.
	background *sync.WaitGroup
}

func newNetwork(c Config, background *sync.WaitGroup) network {
	n := network{now: c.Now, log: c.Log, background: background}
	if n.now == nil {
		n.now = time.Now
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.background == nil {
		n.background = &sync.WaitGroup{}
	}
	n.client = &http.Client{Timeout: providerWait, CheckRedirect: checkRedirect}
	if c.HTTPClient != nil {
		n.client.Transport = c.HTTPClient.Transport
	}
	if n.client.Transport == nil {
		n.client.Transport = &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: providerWait, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 16, MaxResponseHeaderBytes: 64 << 10}
	}
	return n
}

// checkRedirect follows few redirects, none with a code or a secret in the body and
// none from https to http.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if via[0].Method != http.MethodGet {
		return http.ErrUseLastResponse
	}
	if len(via) > 3 || via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return errors.New("provider redirects too often, or to plain http")
	}
	return nil
}

// answered is an answer other than 200.
type answered struct{ status int }

func (a *answered) Error() string {
	return "provider answered " + strconv.Itoa(a.status) + " " + http.StatusText(a.status)
}

// kindOfFailure is Unavailable where asking again may help.
func kindOfFailure(err error) Kind {
	var e *Error
	var a *answered
	var transport *url.Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &a):
		return kindOfStatus(a.status)
	case errors.As(err, &transport), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		return Unavailable
	}
	return Unusable
}

func kindOfStatus(status int) Kind {
	if status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout {
		return Unavailable
	}
	return Unusable
}

// get returns the body of a document and its media type. The token is an access
// token, "" for none.
func (n *network) get(ctx context.Context, address, token string) (body []byte, mediaType string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, "", errors.New("address is no URL")
	}
	req.Header.Set("Accept", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, "", &answered{resp.StatusCode}
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxProviderDoc+1))
	if err != nil {
		return nil, "", fmt.Errorf("read answer: %w", err)
	}
	if len(body) > maxProviderDoc {
		return nil, "", errors.New("answer is larger than 1 MiB")
	}
	mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
	return body, strings.ToLower(strings.TrimSpace(mediaType)), nil
}

func (n *network) getJSON(ctx context.Context, address, token string, into any) error {
	body, _, err := n.get(ctx, address, token)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errors.New("answer is not the JSON that it should be")
	}
	return nil
}

// briefly keeps the start of an error's text: that of a provider may be long.
func briefly(err error) error { return &brief{err} }

type brief struct{ error }

func (b *brief) Error() string { return bounded(b.error.Error(), 300) }
func (b *brief) Unwrap() error { return b.error }

func bounded(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// remote is something that a provider publishes. It is fetched when it is first
// asked for. When it has grown old it is used on, up to maxStale, while it is
// fetched again; and there is one fetch at a time, whoever asks. After a fetch that
// failed there is none for a pause.
type remote[T any] struct {
	*network
	// name is for the log.
	name string
	// life is how long it is new.
	life time.Duration
	// fetch returns it anew; old is what is known, the zero value if nothing is.
	fetch func(ctx context.Context, old T) (T, error)

	mu sync.Mutex
	// serial is how often it was fetched: value and at are the last of those.
	serial int
	value  T
	at     time.Time
	// doubted is that it has led to a failure since.
	doubted  bool
	failure  error
	failedAt time.Time
	// underWay is closed when the fetch under way ends; nil if there is none.
	underWay chan struct{}
}

// get returns what is known, and its serial.
func (r *remote[T]) get(ctx context.Context) (T, int, error) {
	r.mu.Lock()
	value, serial, age := r.value, r.serial, r.now().Sub(r.at)
	usable := serial > 0 && age < maxStale
	if usable && (age >= r.life || r.doubted) {
		r.start()
	}
	r.mu.Unlock()
	if !usable {
		return r.next(ctx, serial)
	}
	return value, serial, nil
}

// busy reports whether a fetch is under way.
func (r *remote[T]) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.underWay != nil
}

// next waits for something newer than what had the serial.
func (r *remote[T]) next(ctx context.Context, serial int) (T, int, error) {
	var none T
	r.mu.Lock()
	if r.serial > serial {
		defer r.mu.Unlock()
		return r.value, r.serial, nil
	}
	done := r.start()
	r.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return none, 0, ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.serial > serial {
		return r.value, r.serial, nil
	}
	return none, 0, r.failure
}

// doubt has it fetched again, since it led to a failure.
func (r *remote[T]) doubt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubted = true
	r.start()
}

// start returns the fetch under way, which it begins unless one has just failed:
// then it is nil. Whoever calls holds the lock.
//
// The fetch is nobody's own: many may wait for it, so none can end it.
func (r *remote[T]) start() <-chan struct{} {
	if r.underWay != nil {
		return r.underWay
	}
	if r.failure != nil && r.now().Sub(r.failedAt) < pause {
		return nil
	}
	done, old := make(chan struct{}), r.value
	r.underWay = done
	r.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), documentWait)
		defer cancel()
		began := r.now()
		value, err := r.fetch(ctx, old)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.underWay = nil
		if err == nil {
			r.value, r.at, r.doubted, r.failure = value, began, false, nil
			r.serial++
		} else {
			r.failure, r.failedAt = &Error{kindOfFailure(err), fmt.Errorf("fetch %s: %w", r.name, briefly(err))}, r.now()
			if r.serial > 0 {
				r.log.Warn("identity provider: what is known is used on", "error", r.failure, "known_since", r.at)
			}
		}
		close(done)
	})
	return done
}
