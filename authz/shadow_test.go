package authz

import (
	"context"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// newShaded is a world whose route "open" has a shadow policy.
func newShaded(t *testing.T, shadow string) *world {
	return newWorld(t, func(c *config.Config) {
		for _, r := range c.Routes {
			if r.ID == "open" {
				r.ShadowPolicy = parsePolicy(t, shadow)
			}
		}
	}, nil)
}

func TestShadowsAreCounted(t *testing.T) {
	w := newShaded(t, appPolicy)
	alice, mallory := w.session("alice", "alice@example.com", nil), w.session("mallory", "mallory@elsewhere.org", nil)
	ask := func() {
		t.Helper()
		for _, cookie := range []string{"cookie: _pomerium=" + alice, "cookie: _pomerium=" + mallory, "cookie: _pomerium=" + mallory, "x: y"} {
			if r := w.check(call("open", "GET", "/", cookie)); !r.allowed {
				t.Fatalf("the shadow policy changed the answer: status %d", r.status)
			}
		}
	}
	want := []ShadowStats{{RouteID: "open", Route: "open-route", Evaluated: 4, Different: []ShadowDifference{
		{Policy: policy.Allow, Shadow: policy.Deny, Count: 2}, {Policy: policy.Allow, Shadow: policy.SignIn, Count: 1},
	}}}
	ask()
	if got := w.server.Stats().Shadows; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	w.publish()
	ask()
	if got := w.server.Stats().Shadows; got[0].Evaluated != 8 || got[0].Different[0].Count != 4 {
		t.Errorf("after a reload: %+v", got)
	}
}

func TestAShadowNeitherFailsNorDelaysAnswers(t *testing.T) {
	for name, broken := range map[string]func(databroker.Store) databroker.Store{
		"a store that panics": func(s databroker.Store) databroker.Store { return panickyStore{s} },
		"a store that hangs": func(s databroker.Store) databroker.Store {
			return &stalledStore{Store: s, reading: make(chan chan struct{}, 1000)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newShaded(t, appPolicy)
			alice := call("open", "GET", "/", "cookie: _pomerium="+w.session("alice", "alice@example.com", nil))
			w.server.identities.store = broken(w.store)
			start := time.Now()
			const many = 200
			for range many {
				if r := w.check(alice); !r.allowed {
					t.Fatalf("status %d", r.status)
				}
			}
			if d := time.Since(start); d > many*shadowTimeout/2 {
				t.Errorf("%d answers took %s: each waited for the shadow", many, d)
			}
			if st := w.server.Stats().Shadows[0]; st.Failed != many || st.Evaluated != 0 {
				t.Errorf("%+v", st)
			}
			if !strings.Contains(w.log.String(), `"shadow-error":`) {
				t.Error("the log does not say that the shadow failed")
			}
			w.clock.Advance(shadowRest + time.Second)
			w.server.identities.store = w.store
			w.check(alice)
			if st := w.server.Stats().Shadows[0]; st.Evaluated != 1 {
				t.Errorf("it is not asked again after a rest: %+v", st)
			}
		})
	}
}

// TestAShadowsLookupIsNobodyElses holds that a request of another route, which
// waits for the same session, does not get the shadow's short deadline.
func TestAShadowsLookupIsNobodyElses(t *testing.T) {
	w := newShaded(t, appPolicy)
	s := &stalledStore{Store: w.store, reading: make(chan chan struct{})}
	w.server.identities.store = s
	token := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	var wg sync.WaitGroup
	wg.Go(func() { w.check(call("open", "GET", "/", token)) })
	<-s.reading // the shadow asks, and gets no answer
	var r reply
	wg.Go(func() { r = w.check(call("app", "GET", "/", token)) })
	close(<-s.reading) // the other asks again
	wg.Wait()
	if !r.allowed {
		t.Errorf("status %d", r.status)
	}
}

func TestAShadowThatDoesNotCompileIsReported(t *testing.T) {
	w := newShaded(t, appPolicy)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.config.Routes[0].ShadowPolicy = parsePolicy(t, "allow: {or: [{user: another}]}")
	if _, err := w.server.Build(ctx, w.config, w.keys, w.ring); err == nil {
		t.Error("a build that was cancelled is a build")
	}
}
