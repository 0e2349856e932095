package databroker

import (
	"context"
	"errors"
	"sync"
)

// errClosed is what calls after Close get.
var errClosed = errors.New("the store is closed")

// feed knows which changes a store keeps and wakes those who wait for more.
// It does not hold the changes.
type feed struct {
	mu      sync.Mutex
	dropped uint64 // the last change that is no longer kept
	last    uint64
	closed  bool
	more    chan struct{} // closed and replaced at each change
}

func newFeed(dropped, last uint64) *feed {
	return &feed{dropped: dropped, last: last, more: make(chan struct{})}
}

// publish says that the changes after dropped, up to last, can be read now.
func (f *feed) publish(dropped, last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped, f.last = dropped, last
	close(f.more)
	f.more = make(chan struct{})
}

// close wakes everyone who waits, with errClosed. It reports whether the feed
// was open.
func (f *feed) close() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.closed = true
	close(f.more)
	return true
}

func (f *feed) sequence() (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, errClosed
	}
	return f.last, nil
}

// await returns the last change that can be read, once there is one after the
// given one. A reader that went further than that would know changes that the
// feed does not know yet, and be taken for the reader of another store.
func (f *feed) await(ctx context.Context, after uint64) (last uint64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		more, last, err := f.check(after)
		if more == nil {
			return last, err
		}
		select {
		case <-more:
		case <-ctx.Done():
		}
	}
}

// check returns a channel to wait on, or nil and the outcome of await.
func (f *feed) check(after uint64) (more <-chan struct{}, last uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, 0, errClosed
	case after < f.dropped, after > f.last:
		return nil, 0, ErrTruncated
	case after < f.last:
		return nil, f.last, nil
	}
	return f.more, 0, nil
}
