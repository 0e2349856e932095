package authn_test

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp/idptest"
	"github.com/countersign/countersign/internal/signin"
)

const (
	firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
	iphone  = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1"
)

// endForms are the sealed values of a page's buttons that end sessions.
func endForms(p page) []string {
	var forms []string
	for _, m := range regexp.MustCompile(`action="/.pomerium/sessions"><input type="hidden" name="form" value="([^"]+)"`).FindAllStringSubmatch(p.body, -1) {
		forms = append(forms, html.UnescapeString(m[1]))
	}
	return forms
}

// put writes a session of a user.
func (w *world) put(id, user string, change ...func(*databroker.Session)) {
	w.t.Helper()
	session := &databroker.Session{
		ID: id, UserID: user, IDPID: w.idpID, Origin: databroker.Origin{Method: "browser", UserAgent: iphone, Address: "203.0.113.7"},
		CreatedAt: w.now().Add(-time.Hour), ExpiresAt: w.now().Add(time.Hour),
	}
	for _, f := range change {
		f(session)
	}
	if err := w.store.PutSession(context.Background(), session); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) lives(id string) bool {
	_, err := w.store.Session(context.Background(), id)
	return err == nil
}

func TestOtherSessions(t *testing.T) {
	w := newWorld(t)
	w.cfg.IDPs[0].Label = "The company"
	b := w.browser()
	b.get(app+"/", "User-Agent", firefox)
	if p := b.get(auth + "/.pomerium/"); len(endForms(p)) != 0 {
		t.Fatal("a session that is alone has others")
	} else {
		p.want(t, http.StatusOK, "you are signed in only here", `value="true"`, "Sign out everywhere", "The company", "Your applications")
	}
	w.put("s-phone", "user-alice")
	w.put("s-script", "user-alice", func(s *databroker.Session) {
		s.Origin = databroker.Origin{Method: "device", UserAgent: "curl/8.5.0"}
		s.CreatedAt, s.RefreshHash = w.now().Add(-2*time.Hour), []byte("a digest")
	})
	w.put("s-asked", "user-alice", func(s *databroker.Session) { s.Origin.Method = "program" }) // and not answered
	w.put("s-over", "user-alice", func(s *databroker.Session) { s.ExpiresAt = w.now().Add(-time.Second) })
	w.put("s-bobs", "user-bob")

	p := b.get(auth + "/.pomerium/")
	p.want(t, http.StatusOK, "Safari on iPhone", "203.0.113.7", "curl", "A terminal or device that you gave a code", ": Safari on iPhone, signed in at ")
	forms := endForms(p)
	if len(forms) != 2 || strings.Index(p.body, "Safari on iPhone") > strings.Index(p.body, "curl") {
		t.Fatalf("got %d sessions, want the phone's and then the script's:\n%s", len(forms), p.body)
	}
	for _, id := range []string{"s-phone", "s-script", "s-over", "s-bobs"} {
		if strings.Contains(p.body, id) {
			t.Errorf("the page shows the id %s", id)
		}
	}

	p = b.post(auth+"/.pomerium/sessions", url.Values{"form": forms[:1]}, "Origin", auth)
	p.want(t, http.StatusOK, "That session is signed out.", "curl")
	if w.lives("s-phone") || !w.lives("s-script") || len(endForms(p)) != 1 {
		t.Error("not the phone's session, or not it alone, was ended")
	}
	if user, err := w.store.User(context.Background(), "user-alice"); err != nil || user.RevokedAt.IsZero() {
		t.Errorf("got user %+v, %v; want one whose id tokens from before buy nothing", user, err)
	}
	// A second click finds nothing left to do.
	b.post(auth+"/.pomerium/sessions", url.Values{"form": forms[:1]}, "Origin", auth).want(t, http.StatusOK, "That session is signed out.")
	b.get(app+"/").want(t, http.StatusOK, welcome)
}

func TestOtherSessionsAreManyAndOlder(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	for i := range 53 {
		w.put(fmt.Sprint("s", i), "user-alice")
	}
	p := b.get(auth + "/.pomerium/")
	p.want(t, http.StatusOK, "Not listed, because they are older: 3")
	if n := len(endForms(p)); n != 50 {
		t.Errorf("%d sessions are listed, want 50", n)
	}
}

// TestSessionsAreEndedAtTheAuthenticateHostAlone: an application's own scripts can
// read what its host shows and press what it has.
func TestSessionsAreEndedAtTheAuthenticateHostAlone(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	w.put("phone", "user-alice")
	p := b.get(app + "/.pomerium/")
	p.want(t, http.StatusOK, `href="`+auth+`/.pomerium/"`)
	if strings.Contains(p.body, "203.0.113.7") || len(endForms(p)) > 0 {
		t.Error("an application's host shows other sessions")
	}
	form := url.Values{"form": endForms(b.get(auth + "/.pomerium/"))}
	b.post(app+"/.pomerium/sessions", form, "Origin", app).want(t, http.StatusNotFound)

	// Nor does a program's token count there.
	session := w.session(requestWith(t, b))
	token, err := w.keys.MintSession(signin.SessionToken{SessionID: session.ID, IDPID: session.IDPID, IssuedAt: w.now(), ExpiresAt: w.now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Authorization": "Bearer Pomerium-" + token, "X-Pomerium-Authorization": token, "Cookie": "_pomerium=" + token} {
		w.browser().get(auth+"/.pomerium/", name, value).want(t, http.StatusOK, "You are not signed in")
		w.browser().post(auth+"/.pomerium/sessions", form, "Origin", auth, name, value).want(t, http.StatusBadRequest)
	}
	if !w.lives("phone") {
		t.Error("the phone's session was ended")
	}
}

func requestWith(t *testing.T, b *browser) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, app, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(b.cookie(app, "_pomerium"))
	return r
}

func TestEndSessionRefuses(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.browser(), w.browser()
	alice.get(app + "/")
	w.put("phone", "user-alice")
	form := endForms(alice.get(auth + "/.pomerium/"))[0]
	elsewhere := w.browser()
	elsewhere.get(app + "/")
	w.idp.Change(func(b *idptest.Behaviour) { b.Claims["sub"] = "user-bob" })
	bob.get(app + "/")
	sessions := auth + "/.pomerium/sessions"

	for _, tt := range []struct {
		name   string
		b      *browser
		form   string
		header []string
		status int
	}{
		{"another site's form", alice, form, []string{"Origin", "https://evil.example"}, 403},
		{"an application's form", alice, form, []string{"Sec-Fetch-Site", "same-site", "Origin", app}, 403},
		{"a form that says nothing of where it is from", alice, form, nil, 403},
		{"a form of another person", bob, form, []string{"Origin", auth}, 400},
		{"a form of another browser of the same person", elsewhere, form, []string{"Origin", auth}, 400},
		{"a form without a person", w.browser(), form, []string{"Origin", auth}, 400},
		{"a form without a session", alice, "", []string{"Origin", auth}, 400},
		{"a session id", alice, "phone", []string{"Origin", auth}, 400},
		{"a form that was changed", alice, damaged(form), []string{"Origin", auth}, 400},
		{"a form sealed for something else", alice, w.keys.Seal(signin.PurposeForm, []byte(`{"e":"phone"}`), []byte("/.pomerium/consent")), []string{"Origin", auth}, 400},
	} {
		tt.b.post(sessions, url.Values{"form": {tt.form}}, tt.header...).want(t, tt.status)
		if !w.lives("phone") {
			t.Fatalf("%s ended the session", tt.name)
		}
	}
	alice.get(sessions).want(t, http.StatusMethodNotAllowed)

	w.offset.Store(int64(59 * time.Minute))
	w.put("long", "user-alice", func(s *databroker.Session) { s.ExpiresAt = w.now().Add(5 * time.Hour) })
	late := endForms(alice.get(auth + "/.pomerium/"))[0]
	w.offset.Store(int64(2 * time.Hour))
	alice.post(sessions, url.Values{"form": {late}}, "Origin", auth).want(t, http.StatusBadRequest, "This button no longer works", "Show my sessions")
	if !w.lives("long") {
		t.Error("a form that is too old ended the session")
	}
}

// TestEndSessionOfAnotherUser: even a form that we sealed ends sessions of the same
// person only.
func TestEndSessionOfAnotherUser(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.get(app + "/")
	w.put("bobs", "user-bob")
	mine := w.session(requestWith(t, b)).ID
	sealed := w.keys.Seal(signin.PurposeForm, fmt.Appendf(nil, `{"e":"bobs","s":%q,"x":%d}`, mine, w.now().Add(time.Hour).Unix()), []byte("/.pomerium/sessions"))
	b.post(auth+"/.pomerium/sessions", url.Values{"form": {sealed}}, "Origin", auth).want(t, http.StatusBadRequest)
	if !w.lives("bobs") {
		t.Error("the session of another was ended")
	}
}

// halfDown is a store of which some operations fail.
type halfDown struct {
	databroker.Store
	operation string
}

func (h *halfDown) Sessions(ctx context.Context, userID string) ([]*databroker.Session, error) {
	if h.operation == "Sessions" {
		return nil, errFault
	}
	return h.Store.Sessions(ctx, userID)
}

func (h *halfDown) RevokeSession(ctx context.Context, id string) error {
	if h.operation == "RevokeSession" {
		return errFault
	}
	return h.Store.RevokeSession(ctx, id)
}

func TestSessionsWhenTheStoreIsDown(t *testing.T) {
	w := newWorld(t)
	store := &halfDown{Store: w.store.Store}
	w.store.Store = store
	b := w.browser()
	b.get(app + "/")
	w.put("phone", "user-alice")
	form := url.Values{"form": endForms(b.get(auth + "/.pomerium/"))}
	store.operation = "Sessions"
	b.get(auth+"/.pomerium/").want(t, http.StatusServiceUnavailable)
	store.operation = "RevokeSession"
	b.post(auth+"/.pomerium/sessions", form, "Origin", auth).want(t, http.StatusServiceUnavailable)
	if !w.lives("phone") {
		t.Error("the session was ended")
	}
	store.operation = ""
	b.post(auth+"/.pomerium/sessions", form, "Origin", auth).want(t, http.StatusOK, "That session is signed out.")
}

func TestClient(t *testing.T) {
	const mozilla, webkit = "Mozilla/5.0 ", " AppleWebKit/537.36 (KHTML, like Gecko) "
	for userAgent, want := range map[string]string{
		firefox: "Firefox on Linux",
		iphone:  "Safari on iPhone",
		mozilla + "(Windows NT 10.0; Win64; x64)" + webkit + "Chrome/140.0.0.0 Safari/537.36":                                         "Chrome on Windows",
		mozilla + "(Windows NT 10.0; Win64; x64)" + webkit + "Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0":                           "Edge on Windows",
		mozilla + "(Macintosh; Intel Mac OS X 10_15_7)" + webkit + "Chrome/140.0.0.0 Safari/537.36 OPR/120.0":                         "Opera on macOS",
		mozilla + "(Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/605.1.15":         "Safari on macOS",
		mozilla + "(Linux; Android 15; SM-S931B)" + webkit + "SamsungBrowser/28.0 Chrome/130.0 Mobile Safari/537.36":                  "Samsung Internet on Android",
		mozilla + "(X11; CrOS x86_64 14541.0.0)" + webkit + "Chrome/140.0.0.0 Safari/537.36":                                          "Chrome on ChromeOS",
		mozilla + "(iPad; CPU OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/140.0 Mobile/15E148 Safari/604.1": "Chrome on iPad",
		"countersign/1.0 (linux)":    "countersign on Linux",
		"curl/8.5.0":                 "curl",
		"python-requests/2.32":       "python-requests",
		"Mozilla/5.0":                "Unknown program",
		"":                           "Unknown program",
		"\x1b[31mred":                "Unknown program",
		strings.Repeat("x", 129):     "Unknown program",
		"backup script (weekly)":     "backup script (weekly)",
		"<script>alert(1)</script>/": "<script>alert(1)<",
	} {
		if got := authn.Client(userAgent); got != want {
			t.Errorf("Client(%q) = %q, want %q", userAgent, got, want)
		}
	}
}

func FuzzClient(f *testing.F) {
	f.Add(firefox)
	f.Add("curl/8.5.0 (\xff)")
	f.Fuzz(func(t *testing.T, userAgent string) {
		got := authn.Client(userAgent)
		if got == "" || len(got) > 60 || strings.ContainsFunc(got, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Errorf("Client(%q) = %q", userAgent, got)
		}
	})
}
