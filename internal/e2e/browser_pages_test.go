package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

func testWithoutScripts(t *testing.T, c *chromium) {
	// A strict cookie is the case in which a page has to navigate on by itself.
	w := newWorld(t, options{
		AuthenticateHost: "authenticate.other.localhost", ProviderHost: "idp.other.localhost",
		Settings: []string{"cookie_same_site: strict"}, Routes: pageRoutes, Upstreams: pages(),
	})
	b := c.profile(t, w)
	b.withoutScripts()
	target := w.url("app", "/plain")
	b.open(target, w.provider.issuer)
	if v := b.signIn("ana", target); v.status != 200 {
		t.Fatalf("sign-in ends with status %d", v.status)
	}

	b.open(w.url("app", "/.pomerium/"), w.url("app", "/.pomerium/"))
	b.has("ana@companydomain.com")
	b.do(chromedp.Click(chromedp.CSS("summary")), chromedp.WaitVisible(chromedp.CSS("details table")))
	b.has("email_verified")
	for path, status := range map[string]int64{"/.pomerium/nothing": 404, "/.pomerium/callback/?x=1": 400, "/.pomerium/sign_out": 200} {
		if v := b.open(w.url("app", path), w.url("app", "/.pomerium/")); v.status != status {
			t.Errorf("%s has status %d, want %d", path, v.status, status)
		}
	}
	b.open(w.url("app", "/.pomerium/sign_out?pomerium_redirect_uri="+target), w.url("app", "/.pomerium/sign_out"))
	b.click(`form[action="/.pomerium/sign_out"] button`, w.provider.issuer)
	b.nobodySignedIn(w.host("app"), w.options.AuthenticateHost)

	// The person of another company is refused, and can go to sign out.
	b.signIn("carla", target)
	b.has("403 Forbidden", "carla@partner.example")
}

// testOwnPages walks from who am I to the portal and to the other sessions, and
// signs out of those: of one with the keys alone.
func testOwnPages(t *testing.T, c *chromium) {
	w := newWorld(t, options{Upstreams: pages(), Routes: pageRoutes + `
  - name: Guests
    from: {{url "guests"}}
    to: {{to "pages"}}
    policy:
      - allow:
          and:
            - domain:
                is: partner.example
`})
	target, issuer := w.url("app", "/plain"), w.provider.issuer
	desk, phone := c.profile(t, w), c.profile(t, w)
	for _, b := range []*tab{desk, phone} {
		b.open(target, issuer)
		b.signIn("ana", target)
	}

	desk.open(w.url("app", "/.pomerium/"), w.url("app", "/.pomerium/"))
	desk.click(`a[href="/.pomerium/routes"]`, w.url("app", "/.pomerium/routes"))
	desk.has("Your applications", "ana@companydomain.com", "App")
	if text := desk.text("body"); strings.Contains(text, "Guests") {
		t.Errorf("the portal shows what Ana may not open:\n%s", text)
	}
	desk.click("a.application", w.url("app", "/"))
	desk.has("page /")

	desk.open(w.url("app", "/.pomerium/"), w.url("app", "/.pomerium/"))
	desk.click(`a[href^="https://authenticate"]`, w.authenticateURL("/.pomerium/"))
	desk.has("Your other sessions", "Chrome on Linux", "Sign out everywhere")
	number := desk.here().number
	desk.tabTo(`form[action="/.pomerium/sessions"] button`)
	desk.do(chromedp.KeyEvent("\r"))
	desk.shown(number, w.authenticateURL("/.pomerium/?ended"))
	desk.has("That session is signed out.", "There are none")
	signedOut := func(b *tab) {
		t.Helper()
		eventually(t, time.Second, "the browser is signed out", func() bool {
			return strings.HasPrefix(b.open(target, "http").url, issuer)
		})
	}
	signedOut(phone)

	phone.signIn("ana", target)
	desk.open(w.authenticateURL("/.pomerium/"), w.authenticateURL("/.pomerium/"))
	desk.click(`form:has(input[name="everywhere"]) button`, "http")
	signedOut(phone)
	signedOut(desk)
}

// tabTo presses the tab key until an element has the focus, and fails if that
// cannot be seen on the way.
func (b *tab) tabTo(selector string) {
	b.t.Helper()
	for range 30 {
		b.do(chromedp.KeyEvent("\t"))
		if outline := evaluate[string](b, `(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle + " " + s.outlineWidth; })()`); outline != "solid 3px" {
			b.t.Errorf("at %s the focus on %s is drawn as %q", b.here().url, evaluate[string](b, `document.activeElement.outerHTML`), outline)
		}
		if evaluate[bool](b, `document.activeElement.matches(`+quote(selector)+`)`) {
			return
		}
	}
	b.t.Fatalf("at %s the tab key does not reach %s", b.here().url, selector)
}

func testNoticesViolations(t *testing.T, c *chromium) {
	for what, body := range map[string]string{
		"a style that its hash does not allow": `<style>h1{color:red}</style><h1>page</h1>`,
		"a script":                             `<h1>page</h1><script>document.title = "1"</script>`,
	} {
		b := c.profile(t, nil)
		there := elsewhere(t, "default-src 'none'", body)
		b.open(there, there)
		if found := b.forgive(); len(found) == 0 {
			t.Errorf("nothing is reported of a page with %s", what)
		}
	}
}
