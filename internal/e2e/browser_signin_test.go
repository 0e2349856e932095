package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/network"
)

// pageRoutes is an application with pages.
const pageRoutes = `
  - name: App
    from: {{url "app"}}
    to: {{to "pages"}}
    pass_identity_headers: true
    policy:
      - allow:
          and:
            - domain:
                is: companydomain.com
`

// pages is an application that says which page it shows, and links to others.
func pages() map[string]upstreamHandler {
	return map[string]upstreamHandler{"pages": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(w, `<!doctype html><title>page</title><link rel="icon" href="data:,"><h1>page %s</h1><a href="/next">next</a>`, r.URL.EscapedPath())
	})}
}

// elsewhere serves one page on a site of its own, and returns its URL.
func elsewhere(t *testing.T, header, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if header != "" {
			w.Header().Set("Content-Security-Policy", header)
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprint(w, `<!doctype html><title>elsewhere</title><link rel="icon" href="data:,">`+body)
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return "http://elsewhere.localhost:" + u.Port() + "/"
}

func testOtherSite(t *testing.T, c *chromium) {
	for _, test := range []struct {
		setting string
		want    network.CookieSameSite
	}{
		{`cookie_same_site: strict`, network.CookieSameSiteStrict},
		{`cookie_same_site: lax`, network.CookieSameSiteLax},
		{`cookie_same_site: ""`, ""},
	} {
		t.Run(test.setting, func(t *testing.T) {
			w := newWorld(t, options{
				AuthenticateHost: "authenticate.other.localhost", ProviderHost: "idp.other.localhost",
				Settings: []string{test.setting}, Routes: pageRoutes, Upstreams: pages(),
			})
			b := c.profile(t, w)
			target := w.url("app", "/deep/a%20b?x=1&y=%2F")
			b.open(target, w.provider.issuer)
			if v := b.signIn("ana", target); v.status != 200 || v.url != target {
				t.Fatalf("sign-in ends at %s with status %d, want 200 at %s", v.url, v.status, target)
			}
			b.has("page /deep/a%20b")
			cookie := b.cookie(w.host("app"), "_pomerium")
			if cookie == nil || cookie.SameSite != test.want || !cookie.Secure || !cookie.HTTPOnly {
				t.Errorf("session cookie is %+v, want SameSite=%q, Secure, HttpOnly", cookie, test.want)
			}
			if names := b.cookies(w.host("app")); len(names) != 2 || names[0] != "__Host-_pomerium_round" {
				t.Errorf("cookies of the application: %v, want the session's and, for a minute, the round's", names)
			}

			// The session holds: by a link, and as typed.
			for _, v := range []visit{b.click(`a[href="/next"]`, w.url("app", "/")), b.open(w.url("app", "/typed"), w.url("app", "/"))} {
				if v.status != 200 || strings.Contains(v.url, "/.pomerium/") {
					t.Errorf("the next navigation ends at %s with status %d", v.url, v.status)
				}
			}

			// A strict cookie does not come with a link from another site. The
			// sign-in that follows asks nobody anything.
			linked := w.url("app", "/linked?from=elsewhere")
			there := elsewhere(t, "", `<a href="`+linked+`">go</a>`)
			b.open(there, there)
			if v := b.click("a", w.url("app", "/linked")); v.status != 200 || v.url != linked {
				t.Errorf("a link from another site ends at %s with status %d, want 200 at %s", v.url, v.status, linked)
			}
			b.has("page /linked")
		})
	}
}

func testHandoff(t *testing.T, c *chromium) {
	w := newWorld(t, options{Routes: pageRoutes, Upstreams: pages()})
	target := w.url("app", "/hers")
	a, b := c.profile(t, w), c.profile(t, w)
	a.open(target, w.provider.issuer)
	link, release := a.intercept(`button[value="ana"]`, "*/.pomerium/callback/*")
	w.secretLink(t, link)

	if v := b.open(link, w.url("app", "/.pomerium/callback/")); v.status != http.StatusBadRequest {
		t.Errorf("in another browser the hand-off link gives status %d, want 400:\n%s", v.status, b.text("body"))
	}
	b.has("This sign-in began in another browser", "Nobody was signed in here")
	b.photograph("other-browser")
	b.nobody(w.host("app"), w.options.AuthenticateHost)
	b.click(".actions a", w.provider.issuer)

	// The same link is good for the browser that began.
	number := a.here().number
	release()
	if v := a.shown(number, target); v.status != 200 {
		t.Errorf("for its own browser the link gives status %d", v.status)
	}
	a.has("page /hers")

	// It is of no use for anybody afterwards, and does no harm to its owner.
	if v := c.profile(t, w).open(link, w.url("app", "/.pomerium/callback/")); v.status != http.StatusBadRequest {
		t.Errorf("used, the link gives status %d in another browser, want 400", v.status)
	}
}

func testLoginForgery(t *testing.T, c *chromium) {
	w := newWorld(t, options{Routes: pageRoutes, Upstreams: pages()})
	target := w.url("app", "/theirs")
	attacker, victim := c.profile(t, w), c.profile(t, w)
	attacker.open(target, w.provider.issuer)
	link, release := attacker.intercept(`button[value="ana"]`, "*/oauth2/callback*")
	w.secretLink(t, link)

	// The victim is asked who they are, as if they had begun themselves, and
	// what they answer is not joined to what the attacker began.
	victim.open(link, w.provider.issuer)
	victim.nobodySignedIn(w.host("app"), w.options.AuthenticateHost)
	v := victim.signIn("ben", w.url("app", "/.pomerium/callback/"))
	if v.status != http.StatusBadRequest {
		t.Errorf("the victim ends with status %d, want 400:\n%s", v.status, victim.text("body"))
	}
	if c := victim.cookie(w.host("app"), "_pomerium"); c != nil {
		t.Error("the victim has a session at the application that the attacker began")
	}
	if v := victim.click(".actions a", target); v.status != 200 {
		t.Errorf("starting over ends with status %d", v.status)
	}
	victim.open(w.url("app", "/.pomerium/"), w.url("app", "/.pomerium/"))
	victim.has("ben@companydomain.com")

	// The attacker's code was not used up: the state was compared first.
	number := attacker.here().number
	release()
	attacker.shown(number, target)
	attacker.open(w.url("app", "/.pomerium/"), w.url("app", "/.pomerium/"))
	attacker.has("ana@companydomain.com")
}

// nobodySignedIn fails if the profile holds a session; a sign-in may be under
// way.
func (b *tab) nobodySignedIn(application, authenticate string) {
	b.t.Helper()
	for host, name := range map[string]string{application: "_pomerium", authenticate: "__Host-_pomerium_authenticate"} {
		if b.cookie(host, name) != nil {
			b.t.Errorf("at %s the browser has a session at %s", b.here().url, host)
		}
	}
}

// secretLink registers what a link lets somebody do.
func (w *world) secretLink(t *testing.T, link string) {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	w.secretURL(u)
}
