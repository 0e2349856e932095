package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/idp/idptest"
)

const (
	benchSignIns = 400
	// benchPeople sign in at once.
	benchPeople = 8
)

// BenchmarkSignIn measures whole sign-ins through Envoy, from the first page to its
// content: how many a minute, how many redirects of ours, and the time of ours in
// each, which is what the browser waits for less what the provider took. The
// provider and the browsers take their part of the same cores.
func BenchmarkSignIn(b *testing.B) {
	provider := idptest.NewProvider(b)
	clock := &providerClock{next: provider.Config.Handler}
	provider.Config.Handler = clock
	w := newWorld(b, options{
		NoProvider: true,
		Settings: []string{
			"idp_provider_url: " + provider.URL, "idp_client_id: " + idptest.ClientID, "idp_client_secret: " + idptest.ClientSecret,
		},
		Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	app := w.url("app", "/")
	var mu sync.Mutex
	var redirects []int
	begun, group := time.Now(), errgroup.Group{}
	for range benchPeople {
		group.Go(func() error {
			for range benchSignIns / benchPeople {
				n, err := benchSignIn(b, w, app)
				if err != nil {
					return err
				}
				mu.Lock()
				redirects = append(redirects, n)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	perMinute := float64(len(redirects)) / time.Since(begun).Minutes()

	// One at a time: nobody waits for a core.
	var ours []time.Duration
	for range 50 {
		clock.reset()
		begun := time.Now()
		if _, err := benchSignIn(b, w, app); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(begun)-clock.spent())
	}
	slices.Sort(ours)
	fmt.Println()
	for _, f := range []figure{
		{"redirects of ours in a sign-in", float64(slices.Max(redirects)), 4, "", false},
		{"time of ours in a sign-in, median", float64(ours[len(ours)/2].Microseconds()) / 1000, 30, "ms", false},
		{"sign-ins, provider and browsers on the same cores", perMinute, 1000, "/min", true},
	} {
		fmt.Println(f)
	}
}

// benchSignIn signs a new browser in and returns how often we redirected it.
func benchSignIn(t testing.TB, w *world, app string) (redirects int, err error) {
	c := w.client()
	defer c.CloseIdleConnections()
	to := app
	for range 12 {
		a, err := c.try(request(t, http.MethodGet, to, "Accept", "text/html", "Sec-Fetch-Mode", "navigate"))
		if err != nil {
			return 0, err
		}
		if a.StatusCode != http.StatusFound {
			if a.StatusCode != http.StatusOK || to != app {
				return 0, fmt.Errorf("the sign-in ends at %s with %s: %.300s", a.Request.URL.Host, a.Status, a.Body)
			}
			return redirects, nil
		}
		if strings.HasSuffix(a.Request.URL.Hostname(), ".localhost") {
			redirects++
		}
		next, err := url.Parse(a.Header.Get("Location"))
		if err != nil {
			return 0, err
		}
		to = next.String()
	}
	return 0, fmt.Errorf("the sign-in does not end")
}

// providerClock adds up the time that a provider takes.
type providerClock struct {
	next http.Handler

	mu    sync.Mutex
	total time.Duration
}

func (p *providerClock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	p.next.ServeHTTP(w, r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total += time.Since(begun)
}

func (p *providerClock) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = 0
}

func (p *providerClock) spent() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}
