package authn_test

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

// withChoice is a world with a choice between First and Second, and a third
// provider that only a route of its own uses.
func withChoice(t *testing.T, change ...func(*config.Config)) (*world, *idptest.Provider) {
	second := idptest.NewProvider(t)
	second.Change(func(b *idptest.Behaviour) { b.Subject = "bea" })
	w := newWorld(t, append([]func(*config.Config){func(c *config.Config) {
		first := c.IDPs[0]
		first.Label = "First"
		two, hidden := *first, *first
		two.Name, two.Label, two.URL = "second", "Second", second.URL
		hidden.Offered, hidden.Label, hidden.ClientID = false, "Hidden", "a-route-s-own-client"
		c.IDPs = append(c.IDPs, &two, &hidden)
	}}, change...)...)
	return w, second
}

var optionLink = regexp.MustCompile(`(?s)<a [^>]*href="([^"]+sign_in[^"]+)"[^>]*>(.*?)</a>`)

// options are what a chooser offers, by label, and the labels in order.
func (p page) options() (links map[string]string, order []string) {
	links = map[string]string{}
	for _, m := range optionLink.FindAllStringSubmatch(p.body, -1) {
		for _, label := range []string{"First", "Second", "Hidden"} {
			if strings.Contains(m[2], label) {
				links[label] = html.UnescapeString(m[1])
				order = append(order, label)
			}
		}
	}
	return links, order
}

// choose goes to a page and takes a provider on the way.
func (b *browser) choose(to, label string) page {
	b.w.t.Helper()
	p := b.get(to)
	links, _ := p.options()
	if links[label] == "" {
		b.w.t.Fatalf("%s: no choice of %s\n%s", to, label, p.body)
	}
	return b.get(links[label])
}

func TestChooser(t *testing.T) {
	w, second := withChoice(t)
	b := w.browser()
	p := b.get(app + "/x?a=1")
	p.want(t, http.StatusOK, "First", "Second", "app.example.com")
	if strings.Contains(p.body, "Hidden") {
		t.Error("a route's own client is offered")
	}
	if got := w.idp.Count("authorize") + second.Count("authorize"); got != 0 {
		t.Errorf("%d visits to a provider before the choice", got)
	}
	b.choose(app+"/x?a=1", "Second").want(t, http.StatusOK, welcome+" /x?a=1")
	sessions := w.sessionsOf("")
	if len(sessions) != 1 || sessions[0].UserID != "second/bea" || sessions[0].IDPID != w.cfg.IDPs[1].ID() {
		t.Fatalf("got sessions %+v", sessions)
	}
	// Once signed in there is nothing to choose.
	b.get(other+"/y").want(t, http.StatusOK, welcome+" /y")

	// What was chosen last comes first.
	b.post(app+"/.pomerium/sign_out", nil, "Origin", app)
	_, order := b.get(app + "/x").options()
	if len(order) != 2 || order[0] != "Second" {
		t.Errorf("offered in the order %v", order)
	}
	if c := b.cookie(auth, "__Host-_pomerium_choice"); c == nil || c.Value != w.cfg.IDPs[1].ID() {
		t.Errorf("the choice was kept as %v", c)
	}
}

func TestChooserLinks(t *testing.T) {
	w, _ := withChoice(t)
	b := w.browser()
	links, _ := b.get(app + "/x").options()
	first := links["First"]
	if err := w.keys.VerifyLink(mustURL(t, first), w.now()); err != nil {
		t.Fatal(err)
	}
	id := func(i int) string { return w.cfg.IDPs[i].ID() }
	b.get(strings.Replace(first, id(0), id(1), 1)).want(t, http.StatusBadRequest, "damaged")
	b.get(strings.Replace(first, "%2Fx", "%2Fy", 1)).want(t, http.StatusBadRequest, "damaged")
	// Another's choice does not sign anybody else in.
	w.browser().get(first).want(t, http.StatusBadRequest, "began in another browser")
	// Who thinks it over for nine minutes can still choose, but not after eleven.
	w.offset.Store(int64(9 * time.Minute))
	b.get(first).want(t, http.StatusOK, welcome+" /x")
	late := w.browser()
	links, _ = late.get(app + "/x").options()
	w.offset.Add(int64(12 * time.Minute))
	late.get(links["First"]).want(t, http.StatusBadRequest, "Start over")
}

func TestChooserKeepsWhatWasAsked(t *testing.T) {
	w, _ := withChoice(t, func(c *config.Config) { c.Routes[0].DependsOn = []string{"other.example.com"} })
	w.maxAge.Store(int64(time.Minute))
	b := w.browser()
	links, _ := b.get(app + "/x?a=1").options()
	q := mustURL(t, links["Second"]).Query()
	for name, want := range map[string]string{
		signin.ParamRedirectURI: app + "/x?a=1", signin.ParamMaxAge: "60", signin.ParamAdditionalHosts: "other.example.com", signin.ParamIDPID: w.cfg.IDPs[1].ID(),
	} {
		if got := q.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if q.Get(signin.ParamFlow) == "" {
		t.Error("no flow")
	}
}

func TestRouteWithItsOwnProvider(t *testing.T) {
	w, second := withChoice(t)
	w.idpID = w.cfg.IDPs[1].ID()
	b := w.browser()
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	if w.idp.Count("authorize") != 0 || second.Count("authorize") != 1 {
		t.Error("not signed in at the route's provider")
	}
	// A session of a provider that people may choose is good where any is.
	w.idpID = ""
	b.get(other+"/x").want(t, http.StatusOK, welcome)

	// One of a route's own client is not.
	hidden := w.sessionsOf("")[0]
	hidden.ID, hidden.Version, hidden.IDPID = "hidden", 0, w.cfg.IDPs[2].ID()
	if err := w.store.PutSession(t.Context(), hidden); err != nil {
		t.Fatal(err)
	}
	c := w.browser()
	sealed := w.keys.Seal(signin.PurposeAuthenticateCookie, []byte(`[{"s":"hidden","i":"`+hidden.IDPID+`","e":99999999999}]`), nil)
	c.Jar.SetCookies(mustURL(t, auth), []*http.Cookie{{Name: "__Host-_pomerium_authenticate", Value: sealed, Path: "/", Secure: true}})
	c.get(auth+"/.pomerium/").want(t, http.StatusOK, "second/bea")
	c.get(app+"/x").want(t, http.StatusOK, "First", "Second")
}

func TestNothingToChooseFrom(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.IDPs[0].Offered = false })
	w.idpID = ""
	w.browser().get(app+"/x").want(t, http.StatusServiceUnavailable, "Nobody can sign in yet", "idps")
}

func TestProgrammaticSignInChooses(t *testing.T) {
	w, _ := withChoice(t)
	b := w.browser()
	link := b.get(app + "/.pomerium/api/v1/login?pomerium_redirect_uri=" + url.QueryEscape("http://127.0.0.1:5000/done")).body
	b.choose(link, "First").want(t, http.StatusOK, "http://127.0.0.1:5000")
}

// A provider that answers with a form from its own page brings no Lax cookies.
func TestFormPost(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := mustURL(t, b.until("/oauth2/callback", app+"/x"))
	form := link.Query()
	form.Set("user", `{"name":"Alice"}`)
	// The browser withholds the cookies from the form, and sends them with the
	// redirect: what the form reaches has to do without.
	stranger := w.browser()
	stranger.stop = func(*url.URL) bool { return true }
	p := stranger.post(auth+"/oauth2/callback", form, "Origin", w.idp.URL, "Sec-Fetch-Site", "cross-site")
	p.want(t, http.StatusFound)
	if c := p.Header["Set-Cookie"]; len(c) > 0 {
		t.Errorf("cookies were touched: %v", c)
	}
	to := p.Header.Get("Location")
	if !strings.HasPrefix(to, "/oauth2/callback?") || strings.Contains(to, "user") {
		t.Errorf("leads to %s", to)
	}
	b.get(auth+to).want(t, http.StatusOK, welcome+" /x")

	form["state"] = []string{"a", "b"}
	b.post(auth+"/oauth2/callback", form).want(t, http.StatusBadRequest)
	b.post(auth+"/oauth2/callback", url.Values{"state": {strings.Repeat("x", 70<<10)}}).want(t, http.StatusBadRequest)
	b.post(auth+"/oauth2/callback", nil).want(t, http.StatusBadRequest)
}
