package e2e

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// maxPending is how many sign-ins a browser may have under way at one host.
const maxPending = 24

// pending counts the cookies of sign-ins that are under way.
func (b *tab) pending(w *world) (application, authenticate int) {
	b.t.Helper()
	for _, name := range b.cookies(w.host("app")) {
		if strings.Contains(name, "_flow_") {
			application++
		}
	}
	for _, name := range b.cookies(w.options.AuthenticateHost) {
		if strings.Contains(name, "_signin_") {
			authenticate++
		}
	}
	return application, authenticate
}

func testTabs(t *testing.T, c *chromium) {
	const count = 20
	w := newWorld(t, options{Routes: pageRoutes, Upstreams: pages()})
	tabs := []*tab{c.profile(t, w)}
	for len(tabs) < count {
		tabs = append(tabs, tabs[0].sibling())
	}
	target := func(i int) string { return w.url("app", fmt.Sprintf("/deep/%d?tab=%d", i, i)) }

	var opening errgroup.Group
	for i, b := range tabs {
		opening.Go(func() error {
			ctx, cancel := b.patient()
			defer cancel()
			_, err := chromedp.Call(ctx, page.Navigate, page.NavigateParams{URL: target(i)})
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, b := range tabs {
		b.shown(0, w.provider.issuer)
	}
	if a, b := tabs[0].pending(w); a != count || b != count {
		t.Errorf("%d tabs have %d and %d cookies of sign-ins under way", count, a, b)
	}

	// They go on in another order, and nobody waits for anybody.
	numbers := make([]int, count)
	for i := range tabs {
		i = (i*7 + 3) % count
		numbers[i] = tabs[i].here().number
		tabs[i].press(`button[value="ana"]`)
	}
	for i, b := range tabs {
		if v := b.shown(numbers[i], w.url("app", "/deep/")); v.status != 200 || v.url != target(i) {
			t.Errorf("tab %d ends at %s with status %d, want 200 at %s", i, v.url, v.status, target(i))
		}
		b.has(fmt.Sprintf("page /deep/%d", i))
	}
	if a, b := tabs[0].pending(w); a != 0 || b != 0 {
		t.Errorf("after all have signed in, %d and %d cookies of sign-ins are left", a, b)
	}

	// Who never finishes does not fill the browser.
	b := c.profile(t, w)
	for i := range maxPending + 6 {
		b.open(target(i), w.provider.issuer)
	}
	if a, s := b.pending(w); a != maxPending || s != maxPending {
		t.Errorf("%d sign-ins begun and given up leave %d and %d cookies, want %d of each", maxPending+6, a, s, maxPending)
	}
	b.signIn("ana", target(maxPending+5))
}
