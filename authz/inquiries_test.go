package authz

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign/config"
)

// held is a check of a bearer token on a route, and how long its answer took.
func (w *world) held(route, token string) (r reply, took time.Duration) {
	w.t.Helper()
	begun := time.Now()
	return w.check(call(route, "GET", "/", bearer(token))), time.Since(begun)
}

// underWay is how many bearer tokens are being asked about.
func (w *world) underWay() int {
	q := &w.server.bearers.inquiries
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, of := range q.of {
		n += of
	}
	if n != len(q.under) {
		w.t.Errorf("%d are counted, %d are under way", n, len(q.under))
	}
	return n
}

func TestASlowProviderIsWaitedFor(t *testing.T) {
	for _, tt := range []struct {
		takes time.Duration
		token string
		// before are the answers while it takes that long, status the one after.
		before, status int
	}{
		{time.Second, "access.bob", 0, 200},
		{5 * time.Second, "access.bob", 2, 200},
		{5 * time.Second, "random", 2, 403},
		{9 * time.Second, "access.bob", 4, 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, i := newBearerWorld(t)
			i.hold = make(chan struct{})
			time.AfterFunc(tt.takes, func() { close(i.hold) })
			for range tt.before {
				r, took := w.held("access", tt.token)
				unavailable(t, "while the provider has not answered", r)
				if took != fetchTimeout {
					t.Errorf("a client waited %s", took)
				}
			}
			if r, _ := w.held("access", tt.token); r.status != tt.status || i.calls() != 1 {
				t.Errorf("a provider that takes %s: status %d, asked %d times", tt.takes, r.status, i.calls())
			}
		})
	}
	t.Run("nobody waits any more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, i := newBearerWorld(t)
			i.hold = make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			unavailable(t, "who left", w.checkCtx(ctx, call("access", "GET", "/", bearer("access.bob"))))
			close(i.hold)
			synctest.Wait()
			if r, took := w.held("access", "access.bob"); !r.allowed || took != 0 || i.calls() != 1 || w.underWay() != 0 {
				t.Errorf("who comes back: status %d after %s, asked %d times, %d under way", r.status, took, i.calls(), w.underWay())
			}
		})
	})
	t.Run("but not for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, i := newBearerWorld(t)
			i.hold = make(chan struct{})
			for range 7 {
				r, _ := w.held("access", "access.bob")
				unavailable(t, "while the provider hangs", r)
			}
			if i.calls() != 2 {
				t.Errorf("asked %d times, want again after %s", i.calls(), inquiryTimeout)
			}
			w.server.bearers.inquiries.finish()
		})
	})
}

func TestBearerTokensUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newBearerWorld(t)
		i.hold = make(chan struct{})
		var clients sync.WaitGroup
		for n := range maxInquiries {
			clients.Go(func() {
				if r, _ := w.held("access", fmt.Sprint("random", n)); r.status != 403 {
					t.Errorf("a token that is asked about: status %d", r.status)
				}
			})
		}
		synctest.Wait()
		for range 3 {
			r, took := w.held("access", "access.bob")
			unavailable(t, "one too many", r)
			if took != 0 || w.underWay() != maxInquiries {
				t.Errorf("it waited %s, and %d are under way", took, w.underWay())
			}
		}
		clients.Go(func() {
			if r, _ := w.held("other", "other.bob"); !r.allowed {
				t.Errorf("on a route with other settings: status %d", r.status)
			}
		})
		clients.Go(func() {
			if r, _ := w.held("access", "random0"); r.status != 403 {
				t.Errorf("one that is asked about already: status %d", r.status)
			}
		})
		synctest.Wait()
		if w.underWay() != maxInquiries+1 {
			t.Errorf("%d are under way", w.underWay())
		}
		close(i.hold)
		clients.Wait()
		if r, _ := w.held("access", "access.bob"); !r.allowed || w.underWay() != 0 {
			t.Errorf("afterwards: status %d, %d are under way", r.status, w.underWay())
		}
	})
}

func TestRunEndsQuestionsAboutBearerTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newBearerWorld(t)
		i.hold = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := w.server.Run(ctx); err != nil {
				t.Error(err)
			}
			if n := w.underWay(); n != 0 {
				t.Errorf("%d are under way", n)
			}
		})
		running.Go(func() {
			r, took := w.held("access", "access.bob")
			unavailable(t, "a server that ends", r)
			if took != 0 {
				t.Errorf("it took %s", took)
			}
		})
		synctest.Wait()
		if w.underWay() != 1 {
			t.Errorf("%d are under way", w.underWay())
		}
		cancel()
		running.Wait()
	})
}

// panics is a Bearer that does.
type panics struct{}

func (panics) BearerSession(context.Context, *config.Bearer, string) (string, error) {
	panic("a bug")
}

func TestABearerTokenThatPanics(t *testing.T) {
	w, _ := newBearerWorld(t)
	w.server.bearers.judge = panics{}
	for range 2 {
		r, _ := w.held("access", "access.bob")
		unavailable(t, "a panic", r)
	}
	if log := w.log.String(); !strings.Contains(log, "panics.BearerSession") || strings.Contains(log, "access.bob") {
		t.Errorf("the log says %s", log)
	}
}
