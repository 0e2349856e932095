package authn_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

// dependent has the route of app depend on n hosts.
func dependent(n int, change ...func(*config.Config)) (func(*config.Config), []string) {
	var hosts []string
	for i := range n {
		hosts = append(hosts, fmt.Sprintf("d%d.example.com", i+1))
	}
	return func(c *config.Config) {
		for _, h := range hosts {
			c.Routes = append(c.Routes, &config.Route{ID: h, From: "https://" + h, Host: h})
		}
		c.Routes[0].DependsOn = hosts
		for _, f := range change {
			f(c)
		}
	}, hosts
}

// hops counts the redirects in a row of a walk, and the hosts that it came by.
type hops struct {
	longest, run int
	starts       []string
}

func (h *hops) watch(b *browser) {
	b.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		h.run = len(via)
		h.longest = max(h.longest, h.run)
		if r.URL.Path == "/.pomerium/start" {
			h.starts = append(h.starts, r.URL.Host)
		}
		if len(via) > 25 {
			return http.ErrUseLastResponse
		}
		return nil
	}
}

func TestDependsOn(t *testing.T) {
	for _, n := range []int{1, 2, 5} {
		change, hosts := dependent(n)
		w := newWorld(t, change)
		b := w.browser()
		var h hops
		h.watch(b)
		b.walk(app+"/x?a=1").want(t, http.StatusOK, welcome+" /x?a=1")
		// Browsers stop at 16 to 20, and the provider needs some for itself.
		if h.longest > 8 {
			t.Errorf("%d hosts: %d redirects in a row", n, h.longest)
		}
		if got := w.idp.Count("authorize"); got != 1 {
			t.Errorf("%d hosts: %d visits to the provider, want 1", n, got)
		}
		if len(w.sessionsOf("")) != 1 {
			t.Errorf("%d hosts: %d sessions, want 1", n, len(w.sessionsOf("")))
		}
		b.stop = func(*url.URL) bool { return true }
		for _, host := range hosts {
			cookie := b.cookie("https://"+host, "_pomerium")
			if cookie == nil {
				t.Errorf("%d hosts: no session cookie at %s", n, host)
				continue
			}
			b.get("https://"+host+"/y").want(t, http.StatusOK, welcome+" /y")
			// Each is good at its own host alone.
			if c, err := w.keys.OpenCredential(cookie.Value, w.now()); err != nil || !c.GoodFor(host, "") || c.GoodFor("app.example.com", "") {
				t.Errorf("cookie of %s: %+v, %v", host, c, err)
			}
			for _, c := range b.Jar.Cookies(mustURL(t, "https://"+host)) {
				if strings.Contains(c.Name, "_flow_") {
					t.Errorf("%s: cookie %s is left", host, c.Name)
				}
			}
		}
	}
}

func TestDependsOnWhereSignedInAlready(t *testing.T) {
	change, hosts := dependent(2)
	w := newWorld(t, change)
	b := w.browser()
	b.get("https://" + hosts[0] + "/")
	before := b.cookie("https://"+hosts[0], "_pomerium").Value
	callbacks := 0
	b.stop = func(u *url.URL) bool {
		if u.Path == signin.CallbackPath && u.Host == hosts[0] {
			callbacks++
		}
		return false
	}
	b.walk(app+"/x").want(t, http.StatusOK, welcome+" /x")
	if callbacks != 0 || b.cookie("https://"+hosts[0], "_pomerium").Value != before {
		t.Errorf("signed in again at %s", hosts[0])
	}
	if b.cookie("https://"+hosts[1], "_pomerium") == nil {
		t.Errorf("no session cookie at %s", hosts[1])
	}
}

// A host that takes no cookies is passed by, once.
func TestDependsOnHostThatFails(t *testing.T) {
	for name, refuses := range map[string]func(c *http.Cookie) bool{
		"no cookies":        func(*http.Cookie) bool { return true },
		"no session cookie": func(c *http.Cookie) bool { return c.Name == "_pomerium" },
		"no flow cookie":    func(c *http.Cookie) bool { return strings.Contains(c.Name, "_flow_") },
	} {
		t.Run(name, func(t *testing.T) {
			change, hosts := dependent(3)
			w := newWorld(t, change)
			b := w.browser()
			b.refuse(func(u *url.URL, c *http.Cookie) bool { return u.Host == hosts[1] && refuses(c) })
			var h hops
			h.watch(b)
			b.walk(app+"/x").want(t, http.StatusOK, welcome+" /x")
			if !slices.Equal(h.starts, hosts) && !slices.Equal(h.starts, []string{hosts[0], hosts[2]}) {
				t.Errorf("came by %v", h.starts)
			}
			if b.cookie("https://"+hosts[0], "_pomerium") == nil || b.cookie("https://"+hosts[2], "_pomerium") == nil {
				t.Error("the others were passed by, too")
			}
			if b.cookie("https://"+hosts[1], "_pomerium") != nil {
				t.Error("there is a cookie")
			}
		})
	}
}

func TestDependsOnHostsThatAreNotOurs(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Routes[0].DependsOn = []string{"evil.example", "auth.example.com", "other.example.com:444", "other.example.com"}
	})
	b := w.browser()
	var h hops
	h.watch(b)
	b.walk(app+"/x").want(t, http.StatusOK, welcome+" /x")
	if b.cookie(other, "_pomerium") == nil {
		t.Error("the one that is ours was passed by")
	}
}

// With a strict cookie the last page is one of the target's own host, which alone
// brings that host's cookie along.
func TestDependsOnWithStrictCookies(t *testing.T) {
	change, hosts := dependent(2, func(c *config.Config) { c.Cookie.SameSite = "strict" })
	w := newWorld(t, change)
	b := w.browser()
	last := page{}
	for next := app + "/x"; next != "" && next != app+"/x#"; {
		last = b.get(next)
		if next = last.next(); next == app+"/x" {
			break
		}
	}
	last.want(t, http.StatusOK, "Taking you to")
	if last.Request.URL.Host != "app.example.com" {
		t.Errorf("the last page is %s", last.Request.URL)
	}
	for _, host := range hosts {
		if b.cookie("https://"+host, "_pomerium") == nil {
			t.Errorf("no session cookie at %s", host)
		}
	}
	b.get(app+"/x").want(t, http.StatusOK, welcome)
}

func TestDependsOnIsNotForPrograms(t *testing.T) {
	change, _ := dependent(2)
	w := newWorld(t, change)
	link := mustURL(t, auth+signin.SignInPath)
	link.RawQuery = url.Values{
		signin.ParamRedirectURI: {"http://127.0.0.1:5000/"}, signin.ParamProgrammatic: {"true"}, signin.ParamAdditionalHosts: {"d1.example.com"},
	}.Encode()
	w.keys.SignLink(link, w.now(), signin.LinkLife)
	b := w.browser()
	var h hops
	h.watch(b)
	b.get(link.String()).want(t, http.StatusOK, "127.0.0.1:5000")
	if len(h.starts) != 0 {
		t.Errorf("came by %v", h.starts)
	}
}

// startLink is the link with which the first dependent host begins, in a browser
// that has just signed in at app.
func startLink(w *world, b *browser) string {
	w.t.Helper()
	p := b.get(app + "/x")
	next := p.next()
	if !strings.Contains(next, "/.pomerium/start?") {
		w.t.Fatalf("leads to %q", next)
	}
	return next
}

func TestDependsOnIsNoOpenRedirect(t *testing.T) {
	change, _ := dependent(2)
	w := newWorld(t, change)
	start := startLink(w, w.browser())
	good := mustURL(t, start)
	sign := func(at string, change func(q url.Values)) string {
		u := mustURL(t, at+"/.pomerium/start")
		q := good.Query()
		change(q)
		u.RawQuery = q.Encode()
		w.keys.SignLink(u, w.now(), signin.LinkLife)
		return u.String()
	}
	unsigned := *good
	q := good.Query()
	q.Del(signin.ParamSignature)
	unsigned.RawQuery = q.Encode()
	tests := map[string]string{
		"no link":             "https://d1.example.com/.pomerium/start",
		"unsigned":            unsigned.String(),
		"changed target":      strings.Replace(start, "%2Fx", "%2Fy", 1),
		"of another host":     strings.Replace(start, "d1.example.com", "d2.example.com", 1),
		"of the route itself": strings.Replace(start, "d1.example.com", "app.example.com", 1),
		"too many hosts":      sign("https://d1.example.com", func(q url.Values) { q.Set(signin.ParamAdditionalHosts, "a.a,b.a,c.a,d.a,e.a,f.a") }),
		"a host with a path":  sign("https://d1.example.com", func(q url.Values) { q.Set(signin.ParamAdditionalHosts, "evil.example/x") }),
		"a hand-off's":        strings.Replace(w.browser().until(signin.CallbackPath, app+"/x"), signin.CallbackPath, "/.pomerium/start", 1),
	}
	for i, target := range foreignTargets() {
		tests[fmt.Sprintf("target %d", i)] = sign("https://d1.example.com", func(q url.Values) { q.Set(signin.ParamRedirectURI, target) })
	}
	for name, link := range tests {
		b := w.browser()
		p := b.get(link)
		p.want(t, http.StatusBadRequest)
		if len(p.Header["Set-Cookie"]) > 0 {
			t.Errorf("%s: cookies were set", name)
		}
	}
	// Where sign_in would hand a session over besides the target's host.
	for _, via := range []string{
		"https://evil.example/.pomerium/callback/", "https://d1.example.com/", "https://d1.example.com@evil.example/.pomerium/callback/",
		"//evil.example/.pomerium/callback/", "/.pomerium/callback/", "javascript:alert(1)", auth + "/.pomerium/callback/",
	} {
		link := mustURL(t, auth+signin.SignInPath)
		link.RawQuery = url.Values{signin.ParamRedirectURI: {app + "/x"}, signin.ParamFlow: {"x.y"}, signin.ParamCallbackURI: {via}}.Encode()
		w.keys.SignLink(link, w.now(), signin.LinkLife)
		w.browser().get(link.String()).want(t, http.StatusBadRequest)
	}
	// An old link leads to the target, and starts nothing.
	w.offset.Store(int64(7 * time.Minute))
	b := w.browser()
	b.stop = func(*url.URL) bool { return true }
	p := b.get(start)
	if p.Header.Get("Location") != app+"/x" || len(p.Header["Set-Cookie"]) > 0 {
		t.Errorf("an old link: leads to %q, sets %v", p.Header.Get("Location"), p.Header["Set-Cookie"])
	}
}

// A hand-off is for the host that is sealed into it, whatever its link says.
func TestHandoffOfAnotherHost(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	for name, h := range map[string]signin.Handoff{
		"on the way":    {RedirectURI: other + "/x", Host: "app.example.com"},
		"at its target": {RedirectURI: app + "/x"},
	} {
		h.SessionToken, h.Flow, h.ExpiresAt = b.cookie(app, "_pomerium").Value, "x.y", w.now().Add(time.Minute)
		sealed, err := w.keys.SealHandoff(h)
		if err != nil {
			t.Fatal(err)
		}
		u := mustURL(t, other+signin.CallbackPath)
		u.RawQuery = url.Values{signin.ParamSessionEncrypted: {sealed}}.Encode()
		w.keys.SignLink(u, w.now(), signin.LinkLife)
		p := b.get(u.String())
		p.want(t, http.StatusBadRequest, "does not lead to a page of this site")
		if len(p.Header["Set-Cookie"]) > 0 {
			t.Errorf("%s: cookies were set", name)
		}
	}
}

// What was made for one browser signs nobody else in, and asks nobody to sign in.
func TestDependsOnInAnotherBrowser(t *testing.T) {
	change, hosts := dependent(2)
	w := newWorld(t, change)
	mallory := w.browser()
	start := startLink(w, mallory)
	handoff := mallory.until(signin.CallbackPath, start)
	visits := w.idp.Count("authorize")
	for name, link := range map[string]string{"start": start, "hand-off": handoff} {
		victim := w.browser()
		victim.stop = func(u *url.URL) bool { return u.Host == "app.example.com" }
		p := victim.walk(link)
		if got := p.Header.Get("Location"); got != app+"/x" {
			t.Errorf("%s: leads to %q", name, got)
		}
		for _, host := range hosts {
			if victim.cookie("https://"+host, "_pomerium") != nil {
				t.Errorf("%s: the victim got a session cookie at %s", name, host)
			}
		}
	}
	if got := w.idp.Count("authorize"); got != visits {
		t.Errorf("%d visits to the provider", got-visits)
	}

	// Who is signed in gets a session of their own.
	w.idp.Change(func(b *idptest.Behaviour) { b.Subject = "user-bob" })
	bob := w.browser()
	bob.get(other+"/").want(t, http.StatusOK, welcome)
	bob.stop = func(u *url.URL) bool { return u.Host == "app.example.com" }
	bob.walk(start)
	c, err := w.keys.OpenCredential(bob.cookie("https://"+hosts[0], "_pomerium").Value, w.now())
	if err != nil || c.ID != w.sessionsOf("user-bob")[0].ID {
		t.Errorf("bob has the session %q, %v", c.ID, err)
	}
	// An old link of sign_in on the way leads on, too.
	signIn := w.browser().until(signin.SignInPath, start)
	w.offset.Store(int64(7 * time.Minute))
	late := w.browser()
	late.stop = func(u *url.URL) bool { return u.Host == "app.example.com" }
	if got := late.walk(signIn).Header.Get("Location"); got != app+"/x" {
		t.Errorf("late: leads to %q", got)
	}
}
