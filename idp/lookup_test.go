package idp_test

import (
	"context"
	"net/http"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/idp/idptest"
)

// Made-up tokens reach the provider no more often than they should, and keep out
// neither what it has signed nor what was good before.
func TestMadeUpTokensAreFew(t *testing.T) {
	w := newWorld(t)
	w.stop()
	verify := func(raw string) error {
		_, err := w.client.VerifyAccessToken(context.Background(), raw, nil)
		return err
	}
	good, signed := w.fake.OpaqueToken("user-alice"), w.fake.AccessToken("user-alice", "x")
	if err := verify(good); err != nil {
		t.Fatal(err)
	}
	junk := 0
	flood := func(n, asked int) {
		t.Helper()
		before := w.fake.Count("userinfo")
		for i := range n {
			junk++
			kind := idp.Invalid
			if i >= asked {
				kind = idp.Unavailable
			}
			w.wantKind(verify("junk-"+strconv.Itoa(junk)), kind, "")
		}
		if got := w.fake.Count("userinfo") - before; got != asked {
			t.Errorf("%d made-up tokens are %d requests, want %d", n, got, asked)
		}
	}
	flood(100, 40)
	for name, raw := range map[string]string{"one that was good": good, "a signed one": signed, "a signed one of a newcomer": w.fake.AccessToken("user-bob", "x")} {
		if err := verify(raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.wantKind(verify(w.fake.OpaqueToken("user-alice")), idp.Unavailable, "too many tokens have turned out to be no good")
	w.offset.Store(int64(time.Second))
	flood(30, 20)
	w.offset.Store(int64(time.Hour))
	flood(50, 40)
	w.offset.Store(int64(2 * time.Hour))
	for range 200 {
		if err := verify(w.fake.OpaqueToken("user-alice")); err != nil {
			t.Fatal(err)
		}
	}
	flood(50, 40)
	// One that was good and is so no more counts for no other.
	w.offset.Store(int64(3 * time.Hour))
	w.fake.Revoke()
	w.wantKind(verify(good), idp.Invalid, "401")
	flood(40, 40)
	w.wantKind(verify(good), idp.Unavailable, "")
}

// A provider that hangs for the sake of made-up tokens still answers for others.
func TestMadeUpTokensHoldNobodyUp(t *testing.T) {
	w := newWorld(t)
	good := w.fake.OpaqueToken("user-alice")
	if _, err := w.client.VerifyAccessToken(context.Background(), good, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.change(func(b *idptest.Behaviour) {
		b.OnRequest = func(_ string, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer made-up" {
				<-r.Context().Done()
			}
		}
	})
	before := w.fake.Count("userinfo")
	var g errgroup.Group
	for range 100 {
		g.Go(func() error {
			_, err := w.client.VerifyAccessToken(ctx, "made-up", nil)
			w.wantKind(err, idp.Unavailable, "")
			return nil
		})
	}
	eventually(t, "as many requests as there may be", func() bool { return w.fake.Count("userinfo")-before == 32 })
	// The others are given up after five seconds.
	soon, stop := context.WithTimeout(context.Background(), 3*time.Second)
	defer stop()
	for _, raw := range []string{good, w.fake.AccessToken("user-alice", "x")} {
		if _, err := w.client.VerifyAccessToken(soon, raw, nil); err != nil {
			t.Error(err)
		}
	}
	cancel()
	_ = g.Wait()
}
