package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/storage"
	"github.com/chromedp/chromedp"
)

// browserPatience bounds each wait for the browser. It is for machines that do
// many other things; nothing waits that long when all is well.
const browserPatience = 60 * time.Second

// chromium is one browser process, which tests share. It knows no
// certificates: that of a test is made moments before.
type chromium struct{ ctx context.Context }

func startChromium(t *testing.T) *chromium {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("there is no Chromium on PATH: install it (Debian: apt-get install chromium)")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		// Otherwise each tab of each site would be a process.
		chromedp.Flag("renderer-process-limit", "4"),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, _ := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		quit, cancel := context.WithTimeout(ctx, browserPatience)
		defer cancel()
		if err := chromedp.Cancel(quit); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("end Chromium: %v", err)
		}
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	return &chromium{ctx}
}

// profile opens a tab of a person of their own: nobody else's cookies. What
// ends up among them is secret in w, if that is not nil.
func (c *chromium) profile(t *testing.T, w *world) *tab {
	t.Helper()
	b := openTab(t, c.ctx, chromedp.WithNewBrowserContext())
	if w != nil {
		t.Cleanup(func() {
			for _, c := range b.jar() {
				w.secret(c.Value)
			}
		})
	}
	return b
}

// tab is one tab. What it shows is learnt from the browser's own events, so
// that nothing is asked of a page that is just going away.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced at each change
	id         cdp.FrameID
	loader     cdp.LoaderID
	url        string
	pages      int
	status     map[cdp.LoaderID]int64
	loaded     map[cdp.LoaderID]bool
	paused     *fetch.EventRequestPaused
	fetched    map[network.RequestID]string
	answers    map[network.RequestID][]int64
	violations []string
}

// visit is a page that has arrived.
type visit struct {
	url    string
	status int64
	// number counts the pages of a tab.
	number int
}

func openTab(t *testing.T, parent context.Context, options ...chromedp.ContextOption) *tab {
	t.Helper()
	b := &tab{
		t: t, changed: make(chan struct{}), status: map[cdp.LoaderID]int64{}, loaded: map[cdp.LoaderID]bool{},
		fetched: map[network.RequestID]string{}, answers: map[network.RequestID][]int64{},
	}
	ctx, cancel := chromedp.NewContext(parent, append(options, chromedp.WithListener(b.event))...)
	b.ctx = ctx
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	b.mu.Lock()
	b.id = cdp.FrameID(chromedp.FromContext(ctx).Target.TargetID)
	b.mu.Unlock()
	t.Cleanup(func() {
		b.mu.Lock()
		for _, v := range b.violations {
			t.Errorf("the browser reports a violation of a page's policy: %s", v)
		}
		b.mu.Unlock()
		cancel()
	})
	call(b, audits.Enable, cdp.Empty{})
	return b
}

// sibling opens another tab with the same cookies.
func (b *tab) sibling() *tab {
	b.t.Helper()
	return openTab(b.t, b.ctx)
}

func (b *tab) event(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch ev := ev.(type) {
	case *page.EventFrameNavigated:
		if ev.Frame.ParentID != "" {
			return
		}
		b.url, b.loader = ev.Frame.URL+ev.Frame.URLFragment, ev.Frame.LoaderID
		b.pages++
	case *network.EventResponseReceived:
		if ev.Type != network.ResourceTypeDocument {
			return
		}
		b.status[ev.LoaderID] = ev.Response.Status
	case *network.EventRequestWillBeSent:
		if ev.Type == network.ResourceTypeFetch {
			b.fetched[ev.RequestID] = ev.Request.URL
		}
	case *network.EventResponseReceivedExtraInfo:
		b.answers[ev.RequestID] = append(b.answers[ev.RequestID], ev.StatusCode)
	case *page.EventLifecycleEvent:
		if ev.Name != "load" {
			return
		}
		b.loaded[ev.LoaderID] = true
	case *fetch.EventRequestPaused:
		b.paused = ev
	case *log.EventEntryAdded:
		if ev.Entry.Source == log.EntrySourceSecurity || strings.Contains(ev.Entry.Text, "Content Security Policy") {
			b.violations = append(b.violations, ev.Entry.Text)
		}
	case *audits.EventIssueAdded:
		if d := ev.Issue.Details; d != nil && d.ContentSecurityPolicyIssueDetails != nil {
			b.violations = append(b.violations, d.ContentSecurityPolicyIssueDetails.ViolatedDirective+" "+d.ContentSecurityPolicyIssueDetails.BlockedURL)
		}
	case *runtime.EventExceptionThrown:
		b.violations = append(b.violations, "exception: "+ev.ExceptionDetails.Text)
	default:
		return
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// at is the page that has arrived, if one has.
func (b *tab) at() (visit, bool) {
	v := visit{url: b.url, status: b.status[b.loader], number: b.pages}
	return v, b.loaded[b.loader] && v.status != 0
}

// shown waits until a page has arrived that came after number others and whose
// URL begins so. Pages on the way there are passed over.
func (b *tab) shown(number int, prefix string) (v visit) {
	b.t.Helper()
	b.until("a page at "+prefix, func() bool {
		var ok bool
		v, ok = b.at()
		return ok && v.number > number && strings.HasPrefix(v.url, prefix)
	})
	return v
}

// until waits until a condition holds of what the events have told. It is
// checked under the lock, after each event.
func (b *tab) until(what string, condition func() bool) {
	b.t.Helper()
	late := time.NewTimer(browserPatience)
	defer late.Stop()
	for {
		b.mu.Lock()
		done, changed := condition(), b.changed
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-late.C:
			v := b.here()
			b.t.Fatalf("waited %v for %s; the last page is %s with status %d:\n%s", browserPatience, what, v.url, v.status, b.text("body"))
		}
	}
}

// here is the page that is shown now.
func (b *tab) here() visit {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, _ := b.at()
	return v
}

// open goes to an address, as typed or bookmarked, and waits for a page whose
// URL begins with prefix.
func (b *tab) open(address, prefix string) visit {
	b.t.Helper()
	number := b.here().number
	if r := call(b, page.Navigate, page.NavigateParams{URL: address}); r.ErrorText != "" {
		b.t.Fatalf("open %s: %s", address, r.ErrorText)
	}
	return b.shown(number, prefix)
}

// press clicks and waits for nothing.
func (b *tab) press(selector string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

// click presses on the element and waits for a page whose URL begins with
// prefix.
func (b *tab) click(selector, prefix string) visit {
	b.t.Helper()
	number := b.here().number
	b.press(selector)
	return b.shown(number, prefix)
}

// intercept presses on the element and waits until that leads to a request
// for a URL of this pattern, which is kept from being sent: it returns the URL,
// and a function that lets the request go.
func (b *tab) intercept(selector, pattern string) (address string, release func()) {
	b.t.Helper()
	call(b, fetch.Enable, fetch.EnableParams{Patterns: []*fetch.RequestPattern{{URLPattern: pattern}}})
	b.press(selector)
	var paused *fetch.EventRequestPaused
	b.until("a request for "+pattern, func() bool {
		paused = b.paused
		return paused != nil
	})
	return paused.Request.URL, func() {
		call(b, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: paused.RequestID})
	}
}

// statuses waits until everything that scripts fetched from an address has an
// answer, and returns the status of each, redirects among them, whether the
// script was let to see it or not.
func (b *tab) statuses(address string) (all []int64) {
	b.t.Helper()
	b.until("answers to "+address, func() bool {
		all = nil
		for id, u := range b.fetched {
			if u == address && len(b.answers[id]) == 0 {
				return false
			}
			if u == address {
				all = append(all, b.answers[id]...)
			}
		}
		return true
	})
	return all
}

// on makes the tab fail this test, a part of the one that opened it.
func (b *tab) on(t *testing.T) {
	old := b.t
	b.t = t
	t.Cleanup(func() { b.t = old })
}

// forgive returns the violations so far, and forgets them.
func (b *tab) forgive() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := b.violations
	b.violations = nil
	return found
}

// signIn chooses one of the provider's people and waits for a page whose URL
// begins with prefix.
func (b *tab) signIn(person, prefix string) visit {
	b.t.Helper()
	return b.click(`button[value="`+person+`"]`, prefix)
}

// text is what a reader sees of an element, "" without one.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return evaluate[string](b, `document.querySelector(`+quote(selector)+`)?.innerText ?? ""`)
}

// has fails unless the page shows every one of these texts.
func (b *tab) has(texts ...string) {
	b.t.Helper()
	body := b.text("body")
	for _, want := range texts {
		if !strings.Contains(body, want) {
			b.t.Errorf("%s does not show %q:\n%s", b.here().url, want, body)
		}
	}
}

// cookies are the names of what the profile holds for a host and its site.
func (b *tab) cookies(host string) []string {
	b.t.Helper()
	var names []string
	for _, c := range b.jar() {
		if domain := strings.TrimPrefix(c.Domain, "."); domain == host || c.Domain != domain && strings.HasSuffix(host, c.Domain) {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

// nobody fails if the profile holds a cookie of one of these hosts.
func (b *tab) nobody(hosts ...string) {
	b.t.Helper()
	for _, host := range hosts {
		if names := b.cookies(host); len(names) > 0 {
			b.t.Errorf("at %s the browser has cookies of %s: %v", b.here().url, host, names)
		}
	}
}

// jar is every cookie of the profile.
func (b *tab) jar() []*network.Cookie {
	b.t.Helper()
	ctx, cancel := b.patient()
	defer cancel()
	r, err := chromedp.CallBrowser(ctx, storage.GetCookies, storage.GetCookiesParams{BrowserContextID: chromedp.FromContext(b.ctx).BrowserContextID})
	if err != nil {
		b.t.Fatalf("read cookies: %v", err)
	}
	return r.Cookies
}

// cookie is one cookie of the profile, nil without it.
func (b *tab) cookie(host, name string) *network.Cookie {
	b.t.Helper()
	for _, c := range b.jar() {
		if c.Name == name && strings.TrimPrefix(c.Domain, ".") == host {
			return c
		}
	}
	return nil
}

func (b *tab) withoutScripts() {
	b.t.Helper()
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
}

func (b *tab) patient() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.ctx, browserPatience)
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := b.patient()
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatalf("at %s: %v", b.here().url, err)
	}
}

// evaluate runs JavaScript in the page, and waits for a promise.
func evaluate[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := b.patient()
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("at %s: evaluate %s: %v", b.here().url, expression, err)
	}
	return v
}

// call sends one command of the DevTools protocol to the tab.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := b.patient()
	defer cancel()
	r, err := chromedp.Call(ctx, command, params)
	if err != nil {
		b.t.Fatalf("at %s: %v", b.here().url, err)
	}
	return r
}

// quote makes a JavaScript string.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}
