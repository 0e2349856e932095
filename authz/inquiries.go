package authz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// inquiryTimeout bounds one question about a bearer token: a provider may take
	// longer over it than a client may wait.
	inquiryTimeout = 10 * time.Second
	// maxInquiries bounds those under way for the same settings.
	maxInquiries = 64
)

var errBusy = errors.New("too many bearer tokens are being asked about")

// inquiries are the questions about bearer tokens that are under way. One goes on
// when whoever asked it has left: its answer is for those who come back. The zero
// value is ready.
type inquiries struct {
	mu    sync.Mutex
	under map[string]*inquiry
	// of counts them by settings.
	of map[string]int
}

type inquiry struct {
	done chan struct{}
	stop context.CancelFunc
	id   string
	err  error
}

// wait asks, or joins who does, and waits for the answer for fetchTimeout at most.
func (q *inquiries) wait(ctx context.Context, settings, key string, ask func(context.Context) (string, error)) (string, error) {
	a, err := q.join(ctx, settings, key, ask)
	if err != nil {
		return "", err
	}
	limited, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	select {
	case <-a.done:
		return a.id, a.err
	case <-limited.Done():
		return "", fmt.Errorf("wait for an answer: %w", limited.Err())
	}
}

// join returns the question about key, begun unless it is under way.
func (q *inquiries) join(ctx context.Context, settings, key string, ask func(context.Context) (string, error)) (*inquiry, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if a := q.under[key]; a != nil {
		return a, nil
	}
	if q.of[settings] >= maxInquiries {
		return nil, errBusy
	}
	if q.under == nil {
		q.under, q.of = map[string]*inquiry{}, map[string]int{}
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), inquiryTimeout)
	a := &inquiry{done: make(chan struct{}), stop: stop, err: errors.New("no answer")}
	q.under[key] = a
	q.of[settings]++
	go func() {
		defer q.end(a, settings, key)
		a.id, a.err = ask(ctx)
	}()
	return a, nil
}

func (q *inquiries) end(a *inquiry, settings, key string) {
	a.stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.under, key)
	if q.of[settings]--; q.of[settings] == 0 {
		delete(q.of, settings)
	}
	close(a.done)
}

// finish stops what is under way and waits for its end.
func (q *inquiries) finish() {
	q.mu.Lock()
	under := slices.Collect(maps.Values(q.under))
	q.mu.Unlock()
	for _, a := range under {
		a.stop()
		<-a.done
	}
}
