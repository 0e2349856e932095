package authz

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// flights lets one of all who want the same thing at once ask for it, and the others
// wait for the answer. The zero value is ready. Those of sessions and of records are
// their own: they must know when the thing has changed meanwhile.
type flights[V any] struct {
	mu    sync.Mutex
	under map[string]*asking[V]
}

type asking[V any] struct {
	done  chan struct{}
	value V
	err   error
	// abandoned is as that of flight.
	abandoned bool
}

// do asks with a context that ends after fetchTimeout, too, or waits for who does.
func (f *flights[V]) do(ctx context.Context, key string, ask func(context.Context) (V, error)) (V, error) {
	for {
		f.mu.Lock()
		a, flying := f.under[key]
		if !flying {
			a = &asking[V]{done: make(chan struct{}), err: errors.New("no answer")}
			if f.under == nil {
				f.under = map[string]*asking[V]{}
			}
			f.under[key] = a
		}
		f.mu.Unlock()
		if !flying {
			f.fly(ctx, a, key, ask)
			return a.value, a.err
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			var none V
			return none, fmt.Errorf("wait for an answer: %w", ctx.Err())
		}
		if !a.abandoned {
			return a.value, a.err
		}
	}
}

func (f *flights[V]) fly(ctx context.Context, a *asking[V], key string, ask func(context.Context) (V, error)) {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.under, key)
		close(a.done)
	}()
	limited, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	a.value, a.err = ask(limited)
	a.abandoned = a.err != nil && ctx.Err() != nil
}
