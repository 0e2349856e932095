package e2e

import (
	"testing"

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
