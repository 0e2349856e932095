package authn_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/countersign/countersign/databroker"
)

// crowd is a store in which others sign in as the same person: each time
// somebody writes a user, one of them has just been faster.
type crowd struct {
	databroker.Store
	others atomic.Int64
}

func (c *crowd) PutUser(ctx context.Context, u *databroker.User) error {
	if c.others.Add(-1) >= 0 {
		faster := *u
		if err := c.Store.PutUser(ctx, &faster); err != nil {
			return err
		}
	}
	return c.Store.PutUser(ctx, u)
}

func TestSignInsOfOnePersonAtOnce(t *testing.T) {
	w := newWorld(t)
	c := &crowd{Store: w.store.Store}
	// As many as one browser may have under way besides this one.
	c.others.Store(23)
	w.store.Store = c
	w.browser().get(app+"/x").want(t, http.StatusOK, welcome)
	if n := c.others.Load(); n >= 0 {
		t.Errorf("%d others have not signed in", n+1)
	}
}
