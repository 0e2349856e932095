package authn_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

const quarter = 15 * time.Minute

// freshWorld is a world whose provider has our clock, and a browser in which
// alice signed in this long ago. From now on the gate lets nobody pass whose
// sign-in is older than a quarter of an hour.
func freshWorld(t *testing.T, ago time.Duration, change ...func(*idptest.Behaviour)) (*world, *browser) {
	t.Helper()
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.Now = w.now })
	for _, f := range change {
		w.idp.Change(f)
	}
	b := w.browser()
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	w.offset.Add(int64(ago))
	w.maxAge.Store(int64(quarter))
	return w, b
}

// only returns the one session that there is.
func (w *world) only() *databroker.Session {
	w.t.Helper()
	sessions, err := w.store.Store.Sessions(context.Background(), "")
	if err != nil || len(sessions) != 1 {
		w.t.Fatalf("got sessions %v, %v, want one", sessions, err)
	}
	return sessions[0]
}

// link is a signed link for a sign-in with any parameters.
func (w *world) link(change func(url.Values)) string {
	w.t.Helper()
	flow, err := signin.NewFlow(rand.Reader, w.now())
	if err != nil {
		w.t.Fatal(err)
	}
	q := url.Values{signin.ParamRedirectURI: {app + "/x"}, signin.ParamIDPID: {w.cfg.IDPs[0].ID()}, signin.ParamFlow: {flow.Hash()}}
	change(q)
	u := mustURL(w.t, auth+signin.SignInPath)
	u.RawQuery = q.Encode()
	w.keys.SignLink(u, w.now(), signin.LinkLife)
	return u.String()
}

func TestYoungSessionIsHandedOn(t *testing.T) {
	w, b := freshWorld(t, quarter-time.Minute)
	visits := w.idp.Count("authorize")
	b.get(other+"/y").want(t, http.StatusOK, welcome+" /y")
	if got := w.idp.Count("authorize"); got != visits {
		t.Errorf("%d more visits to the provider, want none", got-visits)
	}
}

// authz and authn may run on machines whose clocks differ.
func TestOldByTheClockOfTheLink(t *testing.T) {
	for ahead, old := range map[time.Duration]bool{0: false, 50 * time.Second: true} {
		w, b := freshWorld(t, quarter-30*time.Second)
		flow, err := signin.NewFlow(rand.Reader, w.now())
		if err != nil {
			t.Fatal(err)
		}
		b.stop = func(*url.URL) bool { return true }
		p := b.get(w.keys.SignInURL(signin.Link{
			Authenticate: w.cfg.AuthenticateURL, Redirect: mustURL(t, app+"/x"), IDPID: w.cfg.IDPs[0].ID(), Flow: flow.Hash(), MaxAge: quarter,
		}, w.now().Add(ahead)))
		p.want(t, http.StatusFound)
		if got := strings.HasPrefix(p.Header.Get("Location"), w.idp.URL); got != old {
			t.Errorf("%s ahead: sent to %s", ahead, p.Header.Get("Location"))
		}
	}
}

// A session whose claims others wrote may hold anything.
func TestSessionFromTheFutureSignsInAgain(t *testing.T) {
	w, b := freshWorld(t, time.Minute)
	session := w.only()
	session.Claims["auth_time"] = float64(w.now().UnixMilli())
	if err := w.store.PutSession(context.Background(), session); err != nil {
		t.Fatal(err)
	}
	b.stop = func(u *url.URL) bool { return u.Path == "/authorize" }
	b.get(w.link(func(q url.Values) { q.Set(signin.ParamMaxAge, "900") })).want(t, http.StatusFound)
}

func TestOldSessionSignsInAgain(t *testing.T) {
	w, b := freshWorld(t, quarter+time.Minute)
	before, oldRoute, oldAuth := w.only(), b.cookie(app, "_pomerium").Value, b.cookie(auth, "__Host-_pomerium_authenticate").Value
	asked := mustURL(t, b.until("/authorize", app+"/y?a=1")).Query()
	if asked.Get("max_age") != "900" || asked.Get("prompt") != "login" {
		t.Errorf("the provider is asked for max_age %q and prompt %q, want 900 and login", asked.Get("max_age"), asked.Get("prompt"))
	}
	b.get(app+"/y?a=1").want(t, http.StatusOK, welcome+" /y?a=1")
	if got := w.idp.Count("login"); got != 2 {
		t.Errorf("%d sign-ins at the provider, want 2", got)
	}
	after := w.only()
	if after.ID == before.ID {
		t.Error("the session is the old one")
	}
	if got := after.Claims["auth_time"]; got == before.Claims["auth_time"] {
		t.Errorf("auth_time is still %v", got)
	}
	if b.cookie(app, "_pomerium").Value == oldRoute {
		t.Error("the route's cookie was not replaced")
	}
	if b.cookie(auth, "__Host-_pomerium_authenticate").Value == oldAuth {
		t.Error("the authenticate cookie was not replaced")
	}
	// Everything goes on: here, on another host, and until the next time.
	visits := w.idp.Count("authorize")
	b.get(app+"/z").want(t, http.StatusOK, welcome+" /z")
	b.get(other+"/z").want(t, http.StatusOK, welcome+" /z")
	if got := w.idp.Count("authorize"); got != visits {
		t.Errorf("%d more visits to the provider, want none", got-visits)
	}
	w.offset.Add(int64(quarter + time.Minute))
	b.get(other+"/z").want(t, http.StatusOK, welcome+" /z")
	b.get(app+"/z").want(t, http.StatusOK, welcome+" /z")
	if got := w.idp.Count("login"); got != 3 {
		t.Errorf("%d sign-ins at the provider, want 3", got)
	}
}

// Another host's cookie must not outlive the session that has taken the place
// of the one it names.
func TestSignOutAfterAFreshSignIn(t *testing.T) {
	w, b := freshWorld(t, time.Minute)
	b.get(other+"/y").want(t, http.StatusOK, welcome)
	w.offset.Add(int64(quarter))
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	w.maxAge.Store(0)
	b.post(app+"/.pomerium/sign_out", nil, "Origin", app).want(t, http.StatusOK, "You are signed out")
	w.idp.Change(func(b *idptest.Behaviour) { b.AuthorizeError = "access_denied" })
	b.get(other+"/y").want(t, http.StatusUnauthorized)
}

func TestSomebodyElseSignsInAgain(t *testing.T) {
	w, b := freshWorld(t, time.Hour)
	b.get(other+"/y").want(t, http.StatusOK, welcome)
	w.offset.Add(int64(time.Hour))
	w.idp.Change(func(b *idptest.Behaviour) { b.Subject = "user-bob" })
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	if got := w.only().UserID; got != "user-bob" {
		t.Errorf("the session is %s's, want bob's", got)
	}
	for _, at := range []string{app, other} {
		b.get(at + "/x")
		b.get(at+"/.pomerium/user").want(t, http.StatusOK, "user-bob")
	}
}

func TestProviderDoesNotAskAgain(t *testing.T) {
	w, b := freshWorld(t, 2*time.Hour+5*time.Minute, func(b *idptest.Behaviour) { b.NeverAsksAgain = true })
	before, oldRoute := w.only(), b.cookie(app, "_pomerium").Value
	visits := w.idp.Count("authorize")
	p := b.get(app + "/y")
	p.want(t, http.StatusForbidden, "did not ask you again", "at most 15 minutes old", "2 hours 5 minutes old",
		"Sign out at the identity provider", "max_age nor prompt=login", strings.TrimPrefix(w.idp.URL, "http://"), "request-1", "Start over", `href="`+app+`/y"`)
	if got := w.idp.Count("authorize") - visits; got != 1 {
		t.Errorf("%d visits to the provider, want 1", got)
	}
	if w.only().ID != before.ID || b.cookie(app, "_pomerium").Value != oldRoute {
		t.Error("the session was changed")
	}
	for _, c := range b.Jar.Cookies(mustURL(t, auth)) {
		if strings.Contains(c.Name, "_signin_") {
			t.Errorf("cookie %s is left", c.Name)
		}
	}
	noSecrets(t, w, p.body)
	for _, s := range []string{`"code":"not-asked-again"`, "at most 900s and gave one of 75", `"request-id":"request-1"`} {
		if !strings.Contains(w.log.String(), s) {
			t.Errorf("the log lacks %s", s)
		}
	}
	b.get(app+"/y", "Accept", "application/json").want(t, http.StatusForbidden, `"error":"not-asked-again"`, `"request_id":"request-1"`)

	// In its own time it asks again.
	w.idp.Change(func(b *idptest.Behaviour) { b.NeverAsksAgain = false })
	b.get(app+"/y").want(t, http.StatusOK, welcome+" /y")
}

// A provider that never asks, and whose sign-in has just grown too old, must
// not send the browser round and round.
func TestJustTooOldEndsOnThePage(t *testing.T) {
	w, b := freshWorld(t, quarter+2*time.Second, func(b *idptest.Behaviour) { b.NeverAsksAgain = true })
	visits := w.idp.Count("authorize")
	b.get(app+"/y").want(t, http.StatusForbidden, "did not ask you again")
	if got := w.idp.Count("authorize") - visits; got != 1 {
		t.Errorf("%d visits to the provider, want 1", got)
	}
}

func TestProviderWithoutAuthTime(t *testing.T) {
	for name, change := range map[string]func(*idptest.Behaviour){
		"none":             func(b *idptest.Behaviour) { b.NoAuthTime = true },
		"text":             func(b *idptest.Behaviour) { b.AuthTime = "2026-01-02T03:04:05Z" },
		"milliseconds":     func(b *idptest.Behaviour) { b.AuthTime = time.Now().UnixMilli() },
		"ahead":            func(b *idptest.Behaviour) { b.AuthTime = time.Now().Add(100 * time.Hour).Unix() },
		"nought":           func(b *idptest.Behaviour) { b.AuthTime = 0 },
		"null":             func(b *idptest.Behaviour) { b.NoAuthTime, b.Claims["auth_time"] = true, nil },
		"only in userinfo": func(b *idptest.Behaviour) { b.NoAuthTime, b.UserInfo = true, map[string]any{"auth_time": 1} },
	} {
		t.Run(name, func(t *testing.T) {
			// Nobody knows the age of a session, even of one made this moment.
			w, b := freshWorld(t, 0, change)
			if got, ok := w.only().Claims["auth_time"]; ok {
				t.Errorf("auth_time %v is kept", got)
			}
			visits := w.idp.Count("authorize")
			for range 3 {
				b.get(app+"/y").want(t, http.StatusOK, welcome)
				if at, _ := w.only().Claims["auth_time"].(float64); w.now().Unix()-int64(at) > 10 || int64(at) > w.now().Unix() {
					t.Errorf("auth_time is %v after a fresh sign-in at %d", at, w.now().Unix())
				}
				b.get(app+"/z").want(t, http.StatusOK, welcome)
				b.get(other+"/z").want(t, http.StatusOK, welcome)
				w.offset.Add(int64(time.Hour))
			}
			if got := w.idp.Count("authorize") - visits; got != 3 {
				t.Errorf("%d visits to the provider, want 3", got)
			}
			if got := strings.Count(w.log.String(), "no usable auth_time"); got != 1 {
				t.Errorf("%d warnings, want 1", got)
			}
		})
	}
}

// Nobody asked for a fresh sign-in, so nobody misses auth_time.
func TestNoWarningWithoutMaxAge(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.NoAuthTime = true })
	w.browser().get(app+"/x").want(t, http.StatusOK, welcome)
	if strings.Contains(w.log.String(), "auth_time") {
		t.Errorf("the log warns: %s", w.log)
	}
}

// Who has deleted their cookies and comes back by the provider's single sign-on
// has proved nothing.
func TestSilentSignInIsNotFresh(t *testing.T) {
	w, _ := freshWorld(t, time.Hour, func(b *idptest.Behaviour) { b.AuthTimeIfAsked = true })
	first := w.only().Claims["auth_time"]
	if err := w.store.DeleteSession(context.Background(), w.only().ID); err != nil {
		t.Fatal(err)
	}
	w.maxAge.Store(0)
	b := w.browser()
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	if got := w.only().Claims["auth_time"]; got == nil || got != first {
		t.Errorf("auth_time is %v after a silent sign-in, want still %v", got, first)
	}
	if got := w.idp.Count("login"); got != 1 {
		t.Errorf("%d sign-ins at the provider, want 1", got)
	}
	w.maxAge.Store(int64(quarter))
	b.get(app+"/x").want(t, http.StatusOK, welcome)
	if got := w.idp.Count("login"); got != 2 {
		t.Errorf("%d sign-ins at the provider, want 2", got)
	}
}

// What we ask of the provider passes through the browser.
func TestBrowserLeavesOutMaxAge(t *testing.T) {
	w, b := freshWorld(t, time.Hour, func(b *idptest.Behaviour) { b.AuthTimeIfAsked = true })
	before, to := w.only(), mustURL(t, b.until("/authorize", app+"/y"))
	q := to.Query()
	q.Del("max_age")
	q.Del("prompt")
	to.RawQuery = q.Encode()
	p := b.get(to.String())
	p.want(t, http.StatusForbidden, "did not say when you signed in", "at most 15 minutes old", "leaves auth_time out", "request-1", `href="`+app+`/y"`)
	if w.only().ID != before.ID || w.idp.Count("login") != 1 {
		t.Error("the session was changed")
	}
	noSecrets(t, w, p.body)
	if !strings.Contains(w.log.String(), `"code":"no-auth-time"`) {
		t.Error("the log lacks the refusal")
	}
	b.get(app+"/y").want(t, http.StatusOK, welcome+" /y")

	// In an ordinary sign-in there is nothing to win by it.
	w.maxAge.Store(0)
	thief := w.browser()
	to = mustURL(t, thief.until("/authorize", app+"/y"))
	q = to.Query()
	q.Del("max_age")
	to.RawQuery = q.Encode()
	thief.get(to.String()).want(t, http.StatusOK, welcome)
	w.maxAge.Store(int64(quarter))
	thief.until("/authorize", app+"/y")
}

func TestProviderRefusesMaxAge(t *testing.T) {
	for code, helped := range map[string]bool{
		"invalid_request": true, "invalid_configuration": true, "server_error": true,
		"access_denied": false, "temporarily_unavailable": false, "login_required": false, "unheard_of": false,
	} {
		t.Run(code, func(t *testing.T) {
			w := newWorld(t)
			w.idp.Change(func(b *idptest.Behaviour) { b.MaxAgeError, b.AuthTimeIfAsked = code, true })
			b := w.browser()
			p := b.get(app + "/x")
			if !helped {
				if p.StatusCode == http.StatusOK || w.idp.Count("authorize") != 1 {
					t.Errorf("status %d after %d visits to the provider, want a refusal after 1", p.StatusCode, w.idp.Count("authorize"))
				}
				return
			}
			p.want(t, http.StatusOK, welcome)
			for _, c := range b.Jar.Cookies(mustURL(t, auth)) {
				if strings.Contains(c.Name, "_signin_") {
					t.Errorf("cookie %s is left", c.Name)
				}
			}
			if got, ok := w.only().Claims["auth_time"]; ok {
				t.Errorf("auth_time is %v, want none", got)
			}
			w.browser().get(app+"/x").want(t, http.StatusOK, welcome)
			if got := w.idp.Count("authorize"); got != 4 {
				t.Errorf("%d visits to the provider for two sign-ins, want 4", got)
			}
			if got := strings.Count(w.log.String(), "tried again without max_age"); got != 1 {
				t.Errorf("%d warnings, want 1", got)
			}

			// A fresh sign-in does not go without.
			w.maxAge.Store(int64(quarter))
			b = w.browser()
			p = b.get(app + "/y")
			p.want(t, p.StatusCode, "did not sign you in")
			if got := w.idp.Count("authorize"); got != 5 || p.StatusCode < 400 {
				t.Errorf("status %d after %d visits to the provider, want a refusal after 5", p.StatusCode, got)
			}
			for _, c := range b.Jar.Cookies(mustURL(t, auth)) {
				t.Errorf("cookie %s is left", c.Name)
			}

			// Nobody's sign-in decides about the next one's.
			w.maxAge.Store(0)
			w.idp.Change(func(b *idptest.Behaviour) { b.MaxAgeError = "" })
			if asked := mustURL(t, w.browser().until("/authorize", app+"/x")).Query(); !asked.Has("max_age") {
				t.Error("the provider is no longer asked for max_age")
			}
		})
	}
}

// A provider that always answers with an error is asked twice, not for ever.
func TestProviderRefusesWithoutMaxAgeToo(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.AuthorizeError = "invalid_request" })
	w.browser().get(app+"/x").want(t, http.StatusBadRequest, "did not sign you in", "invalid_request")
	if got := w.idp.Count("authorize"); got != 2 {
		t.Errorf("%d visits to the provider, want 2", got)
	}
}

func TestMaxAgeSurvivesTheState(t *testing.T) {
	for name, lose := range map[string]func(*world, *browser){
		"as it is": func(*world, *browser) {},
		"a restart": func(w *world, _ *browser) {
			w.restart()
		},
		"the cookie is lost": func(w *world, b *browser) {
			for _, c := range b.Jar.Cookies(mustURL(w.t, auth)) {
				if strings.Contains(c.Name, "_signin_") {
					b.Jar.SetCookies(mustURL(w.t, auth), []*http.Cookie{signin.DeleteCookie(c.Name)})
				}
			}
		},
		"it takes too long": func(w *world, _ *browser) { w.offset.Add(int64(11 * time.Minute)) },
	} {
		t.Run(name, func(t *testing.T) {
			w, b := freshWorld(t, time.Hour, func(b *idptest.Behaviour) { b.NeverAsksAgain = true })
			link := b.until("/oauth2/callback", app+"/y")
			lose(w, b)
			b.get(link).want(t, http.StatusForbidden, "did not ask you again")
		})
	}
}

func TestMaxAgeInLinks(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.stop = func(u *url.URL) bool { return u.Path == "/authorize" }
	for _, tt := range []struct {
		name, value string
		status      int
	}{
		{"a second", "1", 302}, {"a year", "31536000", 302},
		{"nothing", "", 400}, {"no time", "0", 400}, {"less than none", "-1", 400}, {"more than a year", "31536001", 400}, {"no number", "5m", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := b.get(w.link(func(q url.Values) { q.Set(signin.ParamMaxAge, tt.value) }))
			p.want(t, tt.status)
			if to := mustURL(t, p.Header.Get("Location")); tt.status == 302 && to.Query().Get("max_age") != tt.value {
				t.Errorf("the provider is asked for %q, want %q", to.Query().Get("max_age"), tt.value)
			}
		})
	}
	changed := strings.Replace(w.link(func(q url.Values) { q.Set(signin.ParamMaxAge, "60") }), "max_age=60", "max_age=6000", 1)
	b.get(changed).want(t, http.StatusBadRequest)
	plain := mustURL(t, b.get(w.link(func(url.Values) {})).Header.Get("Location")).Query()
	if plain.Get("max_age") != "31536000" || plain.Has("prompt") {
		t.Errorf("a link without maximum age asks the provider for max_age %q and prompt %q, want a year and none", plain.Get("max_age"), plain.Get("prompt"))
	}
}

func TestProgrammaticSignInHasNoMaxAge(t *testing.T) {
	w, b := freshWorld(t, time.Hour)
	target := "http://127.0.0.1:5000/done"
	p := b.get(app + "/.pomerium/api/v1/login?pomerium_max_age=60&pomerium_redirect_uri=" + url.QueryEscape(target))
	if p.want(t, http.StatusOK, auth); strings.Contains(p.body, "max_age") {
		t.Errorf("the link is %s", p.body)
	}
	b.get(p.body).want(t, http.StatusOK, "Let a program act as you?")
	b.get(w.link(func(q url.Values) {
		q.Set(signin.ParamRedirectURI, target)
		q.Set(signin.ParamProgrammatic, "true")
		q.Set(signin.ParamMaxAge, "60")
	})).want(t, http.StatusBadRequest)
}

func TestAuthTimeIsKept(t *testing.T) {
	w := newWorld(t)
	at := w.now().Add(-time.Hour).Unix()
	w.idp.Change(func(b *idptest.Behaviour) {
		b.AuthTime = at
		b.Claims["acr"], b.Claims["amr"] = "gold", []string{"otp"}
		b.UserInfo = map[string]any{"auth_time": at + 1000, "acr": "platinum", "amr": []string{"hwk"}, "name": "Alice A."}
	})
	w.browser().get(app+"/x").want(t, http.StatusOK, welcome)
	claims := w.only().Claims
	if got := claims["auth_time"]; got != float64(at) {
		t.Errorf("auth_time: got %v, want %d", got, at)
	}
	if amr, _ := claims["amr"].([]any); claims["acr"] != "gold" || len(amr) != 1 || amr[0] != "otp" || claims["name"] != "Alice A." {
		t.Errorf("got claims %v", claims)
	}
}

// Two clocks that differ must neither refuse a person who has just signed in
// nor let a sign-in pass for younger than it is.
func TestProvidersClock(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ahead time.Duration
	}{{"behind", -50 * time.Second}, {"ahead", 50 * time.Second}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.idp.Change(func(b *idptest.Behaviour) { b.Now = func() time.Time { return w.now().Add(tt.ahead) } })
			w.maxAge.Store(int64(20 * time.Second))
			b := w.browser()
			b.get(app+"/x").want(t, http.StatusOK, welcome)
			off := w.now().Sub(time.Unix(int64(w.only().Claims["auth_time"].(float64)), 0))
			if off < 0 || off > 10*time.Second {
				t.Errorf("a sign-in of this moment is %s old", off)
			}
			w.offset.Add(int64(30 * time.Second))
			w.idp.Change(func(b *idptest.Behaviour) { b.NeverAsksAgain = true })
			b.get(app+"/x").want(t, http.StatusForbidden, "did not ask you again")
		})
	}
}

// Who is asked and takes long about it is not told that nobody asked.
func TestSlowPerson(t *testing.T) {
	w, b := freshWorld(t, time.Hour)
	w.maxAge.Store(int64(10 * time.Second))
	link := b.until("/oauth2/callback", app+"/y")
	w.offset.Add(int64(time.Minute))
	b.get(link).want(t, http.StatusOK, welcome+" /y")
	if got := w.idp.Count("login"); got != 3 {
		t.Errorf("%d sign-ins at the provider, want 3", got)
	}
}

func TestFreshSignInWithoutStore(t *testing.T) {
	w, b := freshWorld(t, time.Hour)
	w.store.Store = &keepsSessions{w.store.Store}
	p := b.get(app + "/y")
	p.want(t, http.StatusServiceUnavailable)
	if got := p.Header["Set-Cookie"]; len(got) > 0 {
		t.Errorf("cookies were touched: %v", got)
	}
}

// keepsSessions is a store that cannot delete.
type keepsSessions struct{ databroker.Store }

func (keepsSessions) DeleteSession(context.Context, string) error { return errFault }
