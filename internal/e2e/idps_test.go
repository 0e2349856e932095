package e2e

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign/countersign/idp/idptest"
)

// TestSeveralProviders: people choose where a route names no provider, and are sent
// to the one that it names where it does.
func TestSeveralProviders(t *testing.T) {
	staff, partners := idptest.NewProvider(t), idptest.NewProvider(t)
	partners.Change(func(b *idptest.Behaviour) { b.Subject = "pat" })
	entry := func(name, label string, p *idptest.Provider) string {
		return "  - {name: " + name + ", label: " + label + ", provider: oidc, provider_url: \"" + p.URL + "\", client_id: " + idptest.ClientID + ", client_secret: " + idptest.ClientSecret + "}"
	}
	w := newWorld(t, options{
		NoProvider: true,
		Settings:   []string{"idps:", entry("staff", "Company account", staff), entry("partners", "Partner account", partners)},
		Routes: `
  - from: {{url "wiki"}}
    to: {{to "wiki"}}
    allow_any_authenticated_user: true
    pass_identity_headers: true
    depends_on: ["{{host "api"}}", "{{host "files"}}"]
  - from: {{url "api"}}
    to: {{to "api"}}
    allow_any_authenticated_user: true
  - from: {{url "files"}}
    to: {{to "files"}}
    allow_any_authenticated_user: true
  - from: {{url "payroll"}}
    to: {{to "payroll"}}
    idp: staff
    allow_any_authenticated_user: true
    pass_identity_headers: true
`})
	wiki, payroll := w.url("wiki", "/page?x=1"), w.url("payroll", "/")
	c := w.client()
	chooser := w.follow(t, c, "", c.navigate(t, wiki))
	if chooser.StatusCode != http.StatusOK || !strings.Contains(chooser.Body, "Company account") || !strings.Contains(chooser.Body, "Partner account") {
		t.Fatalf("no chooser: %s %.900s", chooser.Status, chooser.Body)
	}
	got := w.follow(t, c, "", c.navigate(t, linkCalled(t, chooser, "Partner account"))).echo(t)
	if got.Target != "/page?x=1" || got.claims(t)["sub"] != "partners/pat" {
		t.Errorf("the wiki is asked for %s by %v", got.Target, got.claims(t)["sub"])
	}
	// What the wiki depends on was signed in to along the way.
	for _, host := range []string{"api", "files"} {
		if got := c.status(t, w.url(host, "/")); got != http.StatusOK {
			t.Errorf("%s is answered %d", host, got)
		}
	}
	if partners.Count("authorize") != 1 || staff.Count("authorize") != 0 {
		t.Errorf("the providers were asked %d and %d times", partners.Count("authorize"), staff.Count("authorize"))
	}

	// A partner's session is none at the payroll, whose page asks the staff's provider
	// at once; afterwards both sessions count, each where it is good.
	if got := c.status(t, payroll); got != http.StatusUnauthorized {
		t.Errorf("with a partner's session the payroll answers %d", got)
	}
	got = w.signIn(t, c, "", payroll).echo(t)
	if sub := got.claims(t)["sub"]; sub != "staff/user-alice" {
		t.Errorf("the payroll sees %v", sub)
	}
	for _, target := range []string{wiki, payroll} {
		if got := c.status(t, target); got != http.StatusOK {
			t.Errorf("%s is answered %d", target, got)
		}
	}
	// The cookie of one host is worth nothing at the other.
	stolen := c.cookie(t, wiki, "_pomerium")
	if got := w.client().fetch(t, payroll, "Cookie", "_pomerium="+stolen).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("the wiki's cookie is answered %d at the payroll", got)
	}
}

// linkCalled is where the link of a page leads whose text holds label.
func linkCalled(t testing.TB, page *answer, label string) string {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?s)<a\b[^>]*href="([^"]*)"[^>]*>(.*?)</a>`).FindAllStringSubmatch(page.Body, -1) {
		if strings.Contains(m[2], label) {
			to, err := page.Request.URL.Parse(html.UnescapeString(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			return to.String()
		}
	}
	t.Fatalf("no link says %q: %.900s", label, page.Body)
	return ""
}

// TestLinkOfSomebodyElse: a sign-in link that somebody else began, or has changed,
// signs nobody else in.
func TestLinkOfSomebodyElse(t *testing.T) {
	w := sharedWorld.get(t)
	app := w.url("app", "/mine")
	attacker, victim := w.client(), w.client()
	a := attacker.navigate(t, app)
	link, err := a.Location()
	if err != nil {
		t.Fatal(err)
	}
	// The victim opens the attacker's link, and signs in as themselves.
	ended := w.follow(t, victim, "ben", victim.navigate(t, link.String()))
	if ended.StatusCode != http.StatusBadRequest || victim.cookie(t, app, "_pomerium") != "" {
		t.Errorf("a link that somebody else began ends with %d at %s", ended.StatusCode, ended.Request.URL.Path)
	}
	for name, spoil := range map[string]func(url.Values){
		"for another page":       func(q url.Values) { q.Set("pomerium_redirect_uri", w.url("api", "/")) },
		"for nobody's page":      func(q url.Values) { q.Set("pomerium_redirect_uri", "https://elsewhere.example/") },
		"unsigned":               func(q url.Values) { q.Del("pomerium_signature") },
		"of an hour ago":         func(q url.Values) { q.Set("pomerium_issued", "1") },
		"with another age":       func(q url.Values) { q.Set("pomerium_max_age", "1") },
		"with hosts to visit":    func(q url.Values) { q.Set("pomerium_additional_hosts", "elsewhere.example") },
		"with another's flow":    func(q url.Values) { q.Set("pomerium_flow", "x.y") },
		"for a program":          func(q url.Values) { q.Set("pomerium_programmatic", "true") },
		"for another provider":   func(q url.Values) { q.Set("pomerium_idp_id", "0011223344556677") },
		"with a repeated target": func(q url.Values) { q.Add("pomerium_redirect_uri", "https://elsewhere.example/") },
	} {
		u := *link
		q := u.Query()
		spoil(q)
		u.RawQuery = q.Encode()
		if got := w.client().navigate(t, u.String()); got.StatusCode != http.StatusBadRequest || len(got.Cookies()) > 0 {
			t.Errorf("a link %s is answered %s and sets %d cookies", name, got.Status, len(got.Cookies()))
		}
	}
}
