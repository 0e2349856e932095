package authn_test

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

const round = "__Host-_pomerium_round"

// A session that does not stick at the route ends on a page that says so.
func TestSessionIsNotKept(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	blocked := true
	b.refuse(func(u *url.URL, c *http.Cookie) bool {
		return blocked && u.Host == "app.example.com" && c.Name == "_pomerium"
	})
	visits := 0
	b.stop = func(u *url.URL) bool {
		if u.Path == signin.CallbackPath {
			visits++
		}
		return false
	}
	p := b.get(app + "/x?a=1")
	p.want(t, http.StatusBadRequest, "You are signed in, but app.example.com does not take it", "block the cookies of app.example.com",
		"two sessions", "clocks", "request-1", mustURL(t, w.idp.URL).Host, "Try again", "Sign out")
	if visits != 3 {
		t.Errorf("went round %d times, want 3", visits)
	}
	if got := w.idp.Count("authorize"); got != 1 {
		t.Errorf("%d visits to the provider, want 1", got)
	}
	// Coming back within the minute says the same at once.
	visits = 0
	b.get(app+"/x").want(t, http.StatusBadRequest, "does not take it")
	if visits != 0 {
		t.Errorf("went round %d times, want 0", visits)
	}
	// To try again begins anew, for three rounds more.
	again := link(t, p, "Try again")
	if q := mustURL(t, again).Query(); q.Has(signin.ParamRound) {
		t.Errorf("tries again with round %s", q.Get(signin.ParamRound))
	}
	p = b.get(again)
	p.want(t, http.StatusBadRequest, "does not take it")
	if visits != 3 {
		t.Errorf("went round %d times, want 3", visits)
	}
	// Signing out of the host leads out of it, too.
	b.stop = nil
	if out := mustURL(t, link(t, p, "Sign out")); out.Host != "app.example.com" || out.Query().Get(signin.ParamRedirectURI) != app+"/x?a=1" {
		t.Errorf("signs out at %s", out)
	}
	b.post(app+"/.pomerium/sign_out", nil, "Origin", app).want(t, http.StatusOK)
	if c := b.cookie(app, round); c != nil {
		t.Errorf("the count is left: %s", c.Value)
	}
	blocked = false
	b.get(app+"/x").want(t, http.StatusOK, welcome)
}

// link is the URL of the action with this label.
func link(t *testing.T, p page, label string) string {
	t.Helper()
	for part := range strings.SplitSeq(p.body, "<a ") {
		if strings.Contains(part, ">"+label+"</a>") {
			_, rest, _ := strings.Cut(part, `href="`)
			to, _, _ := strings.Cut(rest, `"`)
			return strings.ReplaceAll(to, "&amp;", "&")
		}
	}
	t.Fatalf("no action %s\n%s", label, p.body)
	return ""
}

func TestRounds(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	if n := signin.Rounds("_pomerium", []string{round + "=" + b.cookie(app, round).Value}, w.now()); n != signin.MaxRound/3 {
		t.Errorf("after one sign-in, of three, the count is %d", n)
	}
	// It is forgotten in a minute, in which nobody comes three times.
	for range 5 {
		w.offset.Add(int64(61 * time.Second))
		for _, s := range w.sessionsOf("") {
			if err := w.store.DeleteSession(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
		}
		b.get(app+"/x").want(t, http.StatusOK, welcome)
	}
	// Tabs that are opened together count as one.
	late := w.browser()
	var tabs []string
	for range 6 {
		tabs = append(tabs, late.until(signin.SignInPath, app+"/x"))
	}
	for _, tab := range tabs {
		late.get(tab).want(t, http.StatusOK, welcome)
	}
	// Only our own count counts.
	for _, v := range []string{"9", "x", "", "10", "-1", "3.5"} {
		u := mustURL(t, b.until(signin.SignInPath, other+"/x"))
		q := u.Query()
		q.Set(signin.ParamRound, v)
		u.RawQuery = q.Encode()
		b.get(u.String()).want(t, http.StatusBadRequest, "damaged")
		w.keys.SignLink(u, w.now(), signin.LinkLife)
		if p := b.get(u.String()); p.StatusCode != http.StatusBadRequest {
			t.Errorf("round %q: got status %d", v, p.StatusCode)
		}
	}
}

// reconfigure replaces the cookie settings, as a new configuration does.
func (w *world) reconfigure(change func(*config.Cookie)) {
	cfg := *w.cfg
	change(&cfg.Cookie)
	w.cfg = &cfg
	w.restart()
}

// After cookie_domain changes, cookies of both kinds are about. People sign in once
// more at most, and nobody goes round in circles.
func TestCookieDomainChanges(t *testing.T) {
	for _, tt := range []struct{ name, before, after string }{
		{"from the host's own to a domain's", "", "example.com"},
		{"from a domain's to the host's own", "example.com", ""},
		{"from a domain's to one below", "example.com", "app.example.com"},
		{"from a domain's to one above", "app.example.com", "example.com"},
	} {
		for _, readable := range []bool{false, true} {
			for _, live := range []bool{false, true} {
				t.Run(tt.name, func(t *testing.T) {
					w := newWorld(t, func(c *config.Config) { c.Cookie.Domain, c.Cookie.HTTPOnly = tt.before, !readable })
					b := w.browser()
					b.get(app+"/x").want(t, http.StatusOK, welcome)
					w.reconfigure(func(c *config.Cookie) { c.Domain = tt.after })
					w.idp.Change(func(b *idptest.Behaviour) { b.Subject = "user-bob" })
					// A new sign-in, while the old session may still be alive.
					if !live {
						if err := w.store.DeleteSession(t.Context(), w.sessionsOf("user-alice")[0].ID); err != nil {
							t.Fatal(err)
						}
					}
					b.Jar.SetCookies(mustURL(t, auth), []*http.Cookie{signin.DeleteCookie("__Host-_pomerium_authenticate")})
					b.get(start(w, b)).want(t, http.StatusOK, welcome)
					b.get(app+"/x").want(t, http.StatusOK, welcome)
					if c := b.cookie(app, round); c == nil || len(w.sessionsOf("user-bob")) > 1 {
						t.Errorf("signed in %d times", len(w.sessionsOf("user-bob")))
					}
				})
			}
		}
	}
}

// start is the sign-in that the gate would send a browser to.
func start(w *world, b *browser) string {
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, app+"/x", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	// Without the cookies it has: the page may be one that wants a newer session.
	w.maxAge.Store(1)
	defer w.maxAge.Store(0)
	b.stop = func(u *url.URL) bool { return u.Path == signin.SignInPath }
	defer func() { b.stop = nil }()
	resp, err := b.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.Header.Get("Location")
}

// Two live sessions in two cookies count as none, until a sign-in leaves one.
func TestTwoSessionCookies(t *testing.T) {
	for _, domain := range []string{"", "example.com"} {
		w := newWorld(t, func(c *config.Config) { c.Cookie.HTTPOnly, c.Cookie.Domain = false, domain })
		alice, bob := w.browser(), w.browser()
		alice.get(app+"/").want(t, http.StatusOK, welcome)
		w.idp.Change(func(b *idptest.Behaviour) { b.Subject = "user-bob" })
		bob.get(app+"/").want(t, http.StatusOK, welcome)
		planted := &http.Cookie{Name: "_pomerium", Value: bob.cookie(app, "_pomerium").Value, Path: "/", Domain: "example.com"}
		if domain != "" {
			planted.Domain = ""
		}
		alice.Jar.SetCookies(mustURL(t, app), []*http.Cookie{planted})
		if n := len(alice.Jar.Cookies(mustURL(t, app))); n < 2 {
			t.Fatalf("only %d cookies", n)
		}
		alice.get(app+"/.pomerium/user").want(t, http.StatusUnauthorized)
		alice.get(app+"/").want(t, http.StatusOK, welcome)
		var held []string
		for _, c := range alice.Jar.Cookies(mustURL(t, app)) {
			if c.Name == "_pomerium" {
				held = append(held, c.Value)
			}
		}
		if len(held) != 1 || held[0] == planted.Value {
			t.Errorf("cookie_domain %q: %d session cookies are left", domain, len(held))
		}
		alice.get(app+"/.pomerium/user").want(t, http.StatusOK, "user-alice")
	}
}

// On a host that cookie_domain does not cover, the cookie is the host's own.
func TestCookieDomainElsewhere(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Cookie.Domain = "other.example.com" })
	b := w.browser()
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	b.get(other+"/x").want(t, http.StatusOK, welcome)
}

func TestCookieAttributes(t *testing.T) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *config.Config) {
		c.Cookie.Name, c.Cookie.HTTPOnly, c.Cookie.SameSite = "s-id", false, "none"
	})
	w.idp.Change(func(b *idptest.Behaviour) {
		b.Subject = strings.Repeat("u", 255)
		b.Claims["groups"] = idptest.Groups(1000)
	})
	b := w.browser()
	seen := map[string]bool{}
	b.Jar = refusing{jar, func(u *url.URL, c *http.Cookie) bool {
		name, signIn := strings.CutPrefix(c.Name, "__Host-s-id_")
		kind, _, _ := strings.Cut(name, "_")
		switch {
		case signIn:
			seen[kind] = true
			if !c.HttpOnly || !c.Secure || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
				t.Errorf("%s: %+v", c.Name, c)
			}
		case c.Name == "s-id":
			seen["session"] = true
			if c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteNoneMode || len(c.Value) >= 400 || c.Value != "" && c.Expires.IsZero() {
				t.Errorf("%+v", c)
			}
		default:
			t.Errorf("unknown cookie %s", c.Name)
		}
		return false
	}}
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	for _, kind := range []string{"flow", "signin", "authenticate", "round", "session"} {
		if !seen[kind] {
			t.Errorf("no %s cookie", kind)
		}
	}
	// Once it is over it is over, whatever the browser keeps.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, app+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b.Jar.Cookies(r.URL) {
		r.AddCookie(c)
	}
	r.Host = r.URL.Host
	if w.session(r) == nil {
		t.Fatal("the session does not count")
	}
	w.offset.Store(int64(14*time.Hour + time.Second))
	if w.session(r) != nil {
		t.Error("the session counts after cookie_expire")
	}
}

// Cookies that nobody gave count for nothing, and break nothing.
func TestMalformedCookies(t *testing.T) {
	w := newWorld(t)
	good := w.browser()
	good.get(app + "/")
	token := good.cookie(app, "_pomerium").Value
	for _, v := range []string{
		`"`, `""`, "=", ";", "a.b.c", token + "x", token[:len(token)-1], strings.Repeat("A", 8<<10), token + "." + token, `"` + token, strings.ToUpper(token), "%00", "\xff\xfe", "...........",
	} {
		for _, name := range []string{"_pomerium", "__Host-_pomerium_authenticate", "__Host-_pomerium_round", "__Host-_pomerium_choice", "__Host-_pomerium_flow_x", "__Host-_pomerium_signin_x"} {
			b := w.browser()
			for _, at := range []string{app, auth} {
				b.get(at+"/.pomerium/", "Cookie", name+"="+v).want(t, http.StatusOK, "not signed in")
			}
			b.get(app+"/.pomerium/user", "Cookie", name+"="+v).want(t, http.StatusUnauthorized)
		}
	}
}

// Browsers tell a host's own cookie from one of a domain that is that host, as the
// jar of these tests does not.
func TestHostsOwnCookieGoes(t *testing.T) {
	for domain, want := range map[string]int{"": 0, "example.com": 1, "app.example.com": 1, "other.example.com": 0} {
		w := newWorld(t, func(c *config.Config) { c.Cookie.Domain = domain })
		b := w.browser()
		to := b.until(signin.CallbackPath, app+"/x")
		b.stop = func(*url.URL) bool { return true }
		deleted := 0
		for _, c := range b.get(to).Cookies() {
			switch {
			case c.Name != "_pomerium":
			case c.MaxAge < 0 && c.Domain == "":
				deleted++
			case c.MaxAge < 0:
				t.Errorf("cookie_domain %q: deletes that of %s, of which there was no sign", domain, c.Domain)
			case deleted != want:
				t.Errorf("cookie_domain %q: %d deletions before the new one, want %d", domain, deleted, want)
			}
		}
	}
}
