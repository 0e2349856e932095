package authn_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

// device is a terminal that waits for its person.
type device struct{ code, user, page string }

func (d device) poll() url.Values {
	return url.Values{"grant_type": {grantDevice}, "device_code": {d.code}, "client_id": {client}}
}

func (w *world) device() device {
	w.t.Helper()
	got := w.call("/oauth2/device_authorization", url.Values{"client_id": {client}, "scope": {"openid"}}, "X-Forwarded-For", "203.0.113.7").object(w.t, http.StatusOK)
	if got["expires_in"] != float64(600) || got["interval"] != float64(5) || got["verification_uri"] != auth+"/device" {
		w.t.Errorf("got %v", got)
	}
	return device{text(w.t, got, "device_code"), text(w.t, got, "user_code"), text(w.t, got, "verification_uri_complete")}
}

// browserAtProvider is where a new browser goes to sign in.
func (w *world) browserAtProvider() *url.URL {
	w.t.Helper()
	return mustURL(w.t, w.browser().until("/authorize", app+"/x"))
}

// enter types a code and goes on to the consent page, or to what is wrong.
func (b *browser) enter(code string) page {
	b.w.t.Helper()
	p := b.post(auth+"/device", url.Values{"user_code": {code}}, "Origin", auth)
	if m := refreshed.FindStringSubmatch(p.body); m != nil && p.StatusCode == http.StatusOK {
		return b.walk(strings.ReplaceAll(m[1], "&amp;", "&"))
	}
	return p
}

func TestDevice(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	w.call("/oauth2/token", d.poll()).refused(t, 400, "authorization_pending")

	b := w.browser()
	b.get(d.page).want(t, http.StatusOK, d.user, "alice@example.com")
	asked := b.enter(strings.ToLower(" " + strings.ReplaceAll(d.user, "-", " ")))
	asked.want(t, http.StatusOK, "Let a program act as you?", client, "203.0.113.7", "alice@example.com", "only if you have just started this yourself")
	if n := w.idp.Count("token"); n != 2 {
		t.Errorf("%d codes redeemed, want one for the browser and one for the device", n)
	}
	w.offset.Store(int64(6 * time.Second))
	w.call("/oauth2/token", d.poll()).refused(t, 400, "authorization_pending")
	b.answer(asked, "allow").want(t, http.StatusOK, "You are signed in on the device")

	// It may come too soon now: there is something to fetch.
	got := w.call("/oauth2/token", d.poll()).object(t, http.StatusOK)
	if !w.accepts("Pomerium "+text(t, got, "access_token")) || got["expires_in"] != float64(3600) || got["token_type"] != "Bearer" {
		t.Errorf("got %v", got)
	}
	w.renew(text(t, got, "refresh_token"))
	w.call("/oauth2/token", d.poll()).refused(t, 400, "invalid_grant")
	for _, s := range w.sessions() {
		if s.Origin.Method == "device" && (s.Origin.UserAgent != client || s.ExpiresAt.Sub(w.now()) < 13*time.Hour) {
			t.Errorf("the session is %+v", s)
		}
	}
	for _, secret := range []string{d.code, d.user, text(t, got, "access_token")} {
		if strings.Contains(w.log.String(), secret) {
			t.Error("the log holds a secret")
		}
	}
	b.enter(d.user).want(t, http.StatusBadRequest, "No device waits with this code")
}

func TestDeviceAddress(t *testing.T) {
	for _, tt := range []struct {
		name, header string
		hops         uint32
		skip         bool
		want         string
	}{
		{"the client's own", "203.0.113.7", 0, false, "203.0.113.7"},
		{"what it wrote itself", "192.168.1.5, 203.0.113.7", 0, false, "203.0.113.7"},
		{"a proxy of ours", "192.168.1.5, 203.0.113.7, 10.0.0.1", 1, false, "203.0.113.7"},
		{"a proxy of ours, Envoy adds nothing", "192.168.1.5, 203.0.113.7", 1, true, "203.0.113.7"},
		{"fewer than there should be", "192.168.1.5", 1, false, ""},
		{"Envoy adds nothing", "192.168.1.5", 0, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *config.Config) { c.Server.XFFNumTrustedHops, c.Server.SkipXFFAppend = tt.hops, tt.skip })
			got := w.call("/oauth2/device_authorization", url.Values{"client_id": {client}}, "X-Forwarded-For", tt.header).object(t, http.StatusOK)
			b := w.browser()
			b.get(auth + "/device")
			p := b.enter(text(t, got, "user_code"))
			p.want(t, http.StatusOK, tt.want)
			if shown := strings.Contains(p.body, "It asked from"); shown != (tt.want != "") || strings.Contains(p.body, "192.168.1.5") || strings.Contains(p.body, "10.0.0.1") {
				t.Errorf("the page shows another address:\n%s", p.body)
			}
		})
	}
}

func TestDevicePolling(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	var at time.Duration
	for _, step := range []struct {
		after time.Duration
		code  string
	}{
		{0, "authorization_pending"},
		{4, "slow_down"}, // now 10 s from the first
		{4, "slow_down"}, // now 15
		{6, "slow_down"}, // now 20
		{6, "authorization_pending"},
		{19, "slow_down"}, // now 25
		{6, "authorization_pending"},
		{549, "authorization_pending"},
		{6, "expired_token"},
	} {
		at += step.after * time.Second
		w.offset.Store(int64(at))
		w.call("/oauth2/token", d.poll()).refused(t, 400, step.code)
	}
}

func TestDeviceRefused(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	b := w.browser()
	b.get(auth + "/device")
	b.answer(b.enter(d.user), "cancel").want(t, http.StatusOK, "Nothing was allowed")
	w.call("/oauth2/token", d.poll()).refused(t, 400, "access_denied")
	b.enter(d.user).want(t, http.StatusBadRequest, "No device waits")
	if n := len(w.sessions()); n != 1 {
		t.Errorf("%d sessions, want the browser's alone", n)
	}
}

func TestDeviceAnsweredTwice(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	alice, bob := w.browser(), w.browser()
	for _, b := range []*browser{alice, bob} {
		b.get(auth + "/device")
	}
	first, second := alice.enter(d.user), bob.enter(d.user)
	alice.answer(first, "allow").want(t, http.StatusOK)
	bob.answer(second, "allow").want(t, http.StatusBadRequest, "somebody else has answered it")
	w.call("/oauth2/token", d.poll()).want(t, http.StatusOK)
}

func TestDeviceTokensAreGivenOnce(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	b := w.browser()
	b.get(auth + "/device")
	b.answer(b.enter(d.user), "allow").want(t, http.StatusOK)
	var group errgroup.Group
	status := make([]int, 10)
	for i := range status {
		group.Go(func() error {
			status[i] = w.call("/oauth2/token", d.poll()).StatusCode
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	given := 0
	for _, s := range status {
		if s == http.StatusOK {
			given++
		} else if s != http.StatusBadRequest {
			t.Errorf("status %d", s)
		}
	}
	if given != 1 {
		t.Errorf("the tokens were given %d times", given)
	}
}

func TestDeviceCodeThatIsNotRemoved(t *testing.T) {
	w := newWorld(t)
	store := &faltering{Store: w.store.Store, take: true}
	w.store.Store = store
	d := w.device()
	b := w.browser()
	b.get(auth + "/device")
	b.answer(b.enter(d.user), "allow").want(t, http.StatusOK)
	got := w.call("/oauth2/token", d.poll()).object(t, http.StatusOK)
	// A device that asks again is no thief.
	w.call("/oauth2/token", d.poll()).refused(t, 400, "invalid_grant")
	if store.take || !w.accepts("Pomerium "+text(t, got, "access_token")) {
		t.Error("the session has ended")
	}
}

func TestDeviceBadRequests(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	other := d.poll()
	other.Set("client_id", "other")
	for _, tt := range []struct {
		name   string
		got    page
		status int
		code   string
	}{
		{"no client", w.call("/oauth2/device_authorization", nil), 400, "invalid_request"},
		{"a client of control characters", w.call("/oauth2/device_authorization", url.Values{"client_id": {"\x1b[2J"}}), 400, "invalid_request"},
		{"JSON", w.call("/oauth2/device_authorization", nil, "Content-Type", "application/json"), 415, "invalid_request"},
		{"another client's code", w.call("/oauth2/token", other), 400, "invalid_grant"},
		{"a code that was made up", w.call("/oauth2/token", device{code: "x"}.poll()), 400, "invalid_grant"},
		{"a changed code", w.call("/oauth2/token", device{code: d.code[len(d.code)-1:] + d.code[:len(d.code)-1]}.poll()), 400, "invalid_grant"},
		{"no code", w.call("/oauth2/token", device{}.poll()), 400, "invalid_request"},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.got.refused(t, tt.status, tt.code) })
	}
}

func TestDevicePage(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	b := w.browser()
	// Who is not signed in enters nothing, and a script signs nobody in.
	b.get(auth+"/device", "Sec-Fetch-Mode", "cors").want(t, http.StatusUnauthorized)
	b.stop = func(u *url.URL) bool { return u.Path == "/authorize" }
	b.enter(d.user).want(t, http.StatusFound)
	b.stop = nil

	b.get(auth+"/device?user_code=%3Cscript%3E").want(t, http.StatusOK, "Enter the code")
	for _, header := range [][]string{nil, {"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", app}} {
		b.post(auth+"/device", url.Values{"user_code": {d.user}}, header...).want(t, http.StatusForbidden)
	}
	// What goes on to the provider belongs to the browser that typed the code.
	p := b.post(auth+"/device", url.Values{"user_code": {d.user}}, "Origin", auth)
	p.want(t, http.StatusOK, "The code is right")
	link := strings.ReplaceAll(refreshed.FindStringSubmatch(p.body)[1], "&amp;", "&")
	stranger := w.browser()
	stranger.get(auth + "/device")
	stranger.get(link).want(t, http.StatusBadRequest, "Enter the code again")
	b.get(link).want(t, http.StatusOK, "Let a program act as you?")
	b.get(auth+"/device?device=x").want(t, http.StatusBadRequest)
}

func TestDeviceGuesses(t *testing.T) {
	w := newWorld(t)
	d := w.device()
	b := w.browser()
	b.get(auth + "/device")
	// What cannot be a code is no guess, nor is one that was right.
	for range 15 {
		b.enter("AEIO-UAEI").want(t, http.StatusBadRequest, "eight letters")
		b.enter(strings.Repeat("B", 1000)).want(t, http.StatusBadRequest, "eight letters")
		b.post(auth+"/device", url.Values{"user_code": {d.user}}, "Origin", auth).want(t, http.StatusOK)
	}
	wrong := "BBBB-BBBB"
	for range 9 {
		b.enter(wrong).want(t, http.StatusBadRequest, "No device waits")
	}
	// Many at once and from another browser are no way past.
	var group errgroup.Group
	status := make([]int, 20)
	for i := range status {
		other := w.browser()
		other.get(auth + "/device")
		group.Go(func() error {
			status[i] = other.enter(wrong).StatusCode
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, s := range status {
		if s == http.StatusBadRequest {
			looked++
		}
	}
	if looked > 1 {
		t.Errorf("%d more codes were looked up", looked)
	}
	p := b.enter(d.user)
	p.want(t, http.StatusTooManyRequests, "Too many wrong codes")
	if p.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	w.offset.Store(int64(10*time.Minute + time.Second))
	b.enter(w.device().user).want(t, http.StatusOK, "Let a program act as you?")
}

// deviceFrom asks for a code from an address.
func (w *world) deviceFrom(address string) page {
	w.t.Helper()
	return w.call("/oauth2/device_authorization", url.Values{"client_id": {client}}, "X-Forwarded-For", address)
}

func TestDevicesAreBounded(t *testing.T) {
	w := newWorld(t)
	begin := func(n int) {
		t.Helper()
		for i := range n {
			if p := w.deviceFrom(fmt.Sprintf("198.51.%d.%d", i/250, i%250)); p.StatusCode != http.StatusOK {
				t.Fatalf("device %d: status %d: %s", i, p.StatusCode, p.body)
			}
		}
	}
	begin(1)
	w.offset.Store(int64(10*time.Minute - 30*time.Second))
	begin(4999)
	p := w.deviceFrom("203.0.113.7")
	p.refused(t, 503, "temporarily_unavailable")
	if after, err := strconv.Atoi(p.Header.Get("Retry-After")); err != nil || after < 1 || after > 30 {
		t.Errorf("Retry-After: %q", p.Header.Get("Retry-After"))
	}
	if !strings.Contains(w.log.String(), "device-budget") {
		t.Error("the log does not say why")
	}
	// Those of the next ten minutes come on top, and the store has room for the others.
	w.offset.Store(int64(10*time.Minute + time.Second))
	begin(5000)
	w.byCode()
}

func TestDevicesOfOneAddress(t *testing.T) {
	w := newWorld(t)
	for i := range 100 {
		for _, address := range []string{"198.51.100.1", fmt.Sprintf("2001:db8::%x:%x", i, i), fmt.Sprintf("::ffff:10.0.0.%d", i)} {
			if p := w.deviceFrom(address); p.StatusCode != http.StatusOK {
				t.Fatalf("device %d of %s: status %d: %s", i, address, p.StatusCode, p.body)
			}
		}
	}
	for _, tt := range []struct {
		address string
		status  int
	}{
		{"198.51.100.1", 429},
		{"203.0.113.7, 198.51.100.1", 429},
		{"198.51.100.2", 200},
		{"2001:db8::abcd", 429},
		{"2001:db8:0:1::abcd", 200},
		{"::ffff:198.51.100.3", 200},
		{"", 200},
	} {
		p := w.deviceFrom(tt.address)
		p.want(t, tt.status)
		if tt.status == http.StatusTooManyRequests {
			p.refused(t, tt.status, "temporarily_unavailable")
			if after, err := strconv.Atoi(p.Header.Get("Retry-After")); err != nil || after < 1 || after > 600 {
				t.Errorf("%s: Retry-After: %q", tt.address, p.Header.Get("Retry-After"))
			}
		}
	}
	w.offset.Store(int64(10*time.Minute + time.Second))
	w.deviceFrom("198.51.100.1").want(t, http.StatusOK)
}

func TestTicketsFull(t *testing.T) {
	w := newWorld(t)
	w.store.Store = databroker.NewMemory(databroker.MemoryConfig{Now: w.now, MaxTickets: 1})
	b := w.browser()
	asked := b.get(authorization())
	w.device()
	for name, p := range map[string]page{"a device": w.deviceFrom("203.0.113.7"), "a code": b.answer(asked, "allow")} {
		p.want(t, http.StatusServiceUnavailable, "Too many programs wait")
		if p.Header.Get("Retry-After") != "60" {
			t.Errorf("%s: Retry-After: %q", name, p.Header.Get("Retry-After"))
		}
	}
	w.deviceFrom("203.0.113.7").refused(t, 503, "temporarily_unavailable")
	if log := w.log.String(); strings.Count(log, "tickets-full") != 3 || strings.Contains(log, "databroker-unavailable") {
		t.Errorf("log: %s", log)
	}
	w.offset.Store(int64(10*time.Minute - time.Second))
	asked = b.get(authorization())
	w.offset.Store(int64(10*time.Minute + time.Second))
	b.answer(asked, "allow").want(t, http.StatusFound)
}

// oneCode is a source of randomness that gives every device the same user code.
type oneCode struct{}

func (oneCode) Read(b []byte) (int, error) {
	if len(b) == 1 {
		b[0] = 0
		return 1, nil
	}
	return rand.Read(b)
}

func TestDevicesWithOneUserCode(t *testing.T) {
	w := newWorld(t)
	w.rand = oneCode{}
	w.restart()
	first := w.device()
	if first.user != "BBBB-BBBB" {
		t.Fatalf("user code %s", first.user)
	}
	w.call("/oauth2/device_authorization", url.Values{"client_id": {client}}).refused(t, 503, "temporarily_unavailable")
	b := w.browser()
	b.get(auth + "/device")
	b.answer(b.enter(first.user), "allow").want(t, http.StatusOK)
	w.call("/oauth2/token", first.poll()).want(t, http.StatusOK)
	// The next device has the code of the first, but not its tokens.
	second := w.device()
	b.answer(b.enter(second.user), "allow").want(t, http.StatusOK)
	w.call("/oauth2/token", first.poll()).refused(t, 400, "invalid_grant")
	w.call("/oauth2/token", second.poll()).want(t, http.StatusOK)
}

// Of the authenticate host's own pages only the one for codes is where a sign-in ends.
func TestSignInAtTheAuthenticateHost(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	b.stop = func(u *url.URL) bool { return u.Path == "/authorize" }
	for target, status := range map[string]int{
		auth + "/device": 302, auth + "/device?user_code=BCDF-GHJK": 302, auth + "/devices": 400, auth + "/device/x": 400, auth + "/device#x": 400,
		auth + "/device@evil.example": 400, auth + ".evil.example/device": 400, auth + "/": 400, auth + "/.pomerium/": 400, auth + "/device?\\": 400,
	} {
		link := mustURL(t, auth+signin.SignInPath)
		link.RawQuery = url.Values{signin.ParamRedirectURI: {target}}.Encode()
		w.keys.SignLink(link, w.now(), signin.LinkLife)
		b.get(link.String()).want(t, status)
	}
}

func TestDeviceWithoutAProvider(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.IDPs = nil })
	w.call("/oauth2/device_authorization", url.Values{"client_id": {client}}).refused(t, 503, "temporarily_unavailable")
	w.browser().get(auth+"/device").want(t, http.StatusServiceUnavailable)
	w.browser().get(authorization()).want(t, http.StatusServiceUnavailable)
}

func TestSeveralProvidersForAProgram(t *testing.T) {
	w, _ := withChoice(t)
	b := w.browser()
	to := b.answer(b.choose(authorization(), "Second"), "allow").location(t)
	w.call("/oauth2/token", redemption(to.Query().Get("code"))).want(t, http.StatusOK)

	d := w.device()
	b.choose(d.page, "Second").want(t, http.StatusOK, d.user)
	b.answer(b.enter(d.user), "allow").want(t, http.StatusOK)
	w.call("/oauth2/token", d.poll()).want(t, http.StatusOK)

	link := w.browser().get(app + "/.pomerium/api/v1/login?pomerium_redirect_uri=" + url.QueryEscape(loopbackURI))
	b.answer(b.choose(link.body, "Second"), "allow").want(t, http.StatusFound)
	for _, s := range w.sessions() {
		if s.IDPID != w.cfg.IDPs[1].ID() || s.UserID != "second/bea" {
			t.Errorf("got a session of %s at %s", s.UserID, s.IDPID)
		}
	}
}
