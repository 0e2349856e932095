package authn_test

import (
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

// A browser that does not keep the cookie is told so instead of going round for ever.
func TestDevicePageWithoutCookies(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	blocked := true
	b.refuse(func(_ *url.URL, c *http.Cookie) bool {
		return blocked && c.Name == "__Host-_pomerium_authenticate"
	})
	p := b.get(auth + "/device?user_code=BCDF-GHJK&x=y")
	p.want(t, http.StatusBadRequest, "does not keep you signed in", "block the cookies of auth.example.com")
	if n := w.idp.Count("authorize"); n != 1 {
		t.Errorf("%d visits to the provider, want one", n)
	}
	again := auth + "/device?user_code=BCDFGHJK"
	if !strings.Contains(p.body, `href="`+html.EscapeString(again)+`"`) {
		t.Errorf("the page does not lead to %s:\n%s", again, p.body)
	}
	b.get(again).want(t, http.StatusBadRequest, "does not keep you signed in")
	blocked = false
	b.get(again).want(t, http.StatusOK, "Enter the code", "BCDF-GHJK")
}

func TestDevicePageLoadedAgain(t *testing.T) {
	w := newWorld(t)
	w.idp.Change(func(b *idptest.Behaviour) { b.Now = w.now })
	b := w.browser()
	p := b.get(auth + "/device")
	p.want(t, http.StatusOK, "Enter the code")
	b.get(p.Request.URL.String()).want(t, http.StatusOK, "Enter the code")
	// The next day the session is over, and nothing is wrong with the browser.
	w.offset.Store(int64(24 * time.Hour))
	b.get(p.Request.URL.String()).want(t, http.StatusOK, "Enter the code")
	for _, at := range []string{"", "x", "-1", "99999999999999999999", fmt.Sprint(w.now().Add(time.Hour).Unix())} {
		w.browser().get(auth+"/device?signed_in="+at).want(t, http.StatusOK, "Enter the code")
	}
}

// signIn puts a session of each provider into the browser's cookie, the first the newest.
func (b *browser) signIn(idpIDs ...string) {
	b.w.t.Helper()
	var list []string
	for _, id := range idpIDs {
		session := *b.w.sessions()[0]
		session.ID, session.Version, session.IDPID = fmt.Sprint("of-", id), 0, id
		if err := b.w.store.PutSession(b.w.t.Context(), &session); err != nil && !errors.Is(err, databroker.ErrConflict) {
			b.w.t.Fatal(err)
		}
		list = append(list, fmt.Sprintf(`{"s":%q,"i":%q,"e":99999999999}`, session.ID, id))
	}
	sealed := b.w.keys.Seal(signin.PurposeAuthenticateCookie, []byte("["+strings.Join(list, ",")+"]"), nil)
	b.Jar.SetCookies(mustURL(b.w.t, auth), []*http.Cookie{{Name: "__Host-_pomerium_authenticate", Value: sealed, Path: "/", Secure: true}})
}

// A device's session must be good wherever people choose their provider, so it is never
// one of a route's own client, whatever the browser has.
func TestDeviceOfABrowserWithARoutesOwnClient(t *testing.T) {
	w, _ := withChoice(t)
	b := w.browser()
	b.choose(app+"/x", "First").want(t, http.StatusOK)
	first, hidden := w.cfg.IDPs[0].ID(), w.cfg.IDPs[2].ID()
	b.signIn(hidden, first)
	d := w.device()
	b.answer(b.enter(d.user), "allow").want(t, http.StatusOK, "You are signed in on the device")
	w.call("/oauth2/token", d.poll()).want(t, http.StatusOK)
	for _, s := range w.sessions() {
		if s.Origin.Method == "device" && s.IDPID != first {
			t.Errorf("the device has a session of %s, want %s", s.IDPID, first)
		}
	}
	b.signIn(hidden)
	b.get(d.page).want(t, http.StatusOK, "First", "Second")
}

// The settings of a provider lose what it needs while a browser has a session of it.
func TestDeviceOfABrowserWhoseProviderIsIncomplete(t *testing.T) {
	w, _ := withChoice(t)
	b := w.browser()
	b.choose(app+"/x", "Second").want(t, http.StatusOK)
	d := w.device()
	typed := b.post(auth+"/device", url.Values{"user_code": {d.user}}, "Origin", auth)
	w.cfg.IDPs[1].ClientSecret = ""
	w.restart()
	b.get(typed.next()).want(t, http.StatusOK, "Enter the code")
	b.answer(b.enter(d.user), "allow").want(t, http.StatusOK, "You are signed in on the device")
	w.call("/oauth2/token", d.poll()).want(t, http.StatusOK)
}
