package authn_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

func renewal(refresh string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "client_id": {client}}
}

func (w *world) renew(refresh string) (access, next string) {
	w.t.Helper()
	got := w.call("/oauth2/token", renewal(refresh)).object(w.t, http.StatusOK)
	return text(w.t, got, "access_token"), text(w.t, got, "refresh_token")
}

func TestRefreshTokenReuse(t *testing.T) {
	w := newWorld(t)
	_, first := w.byCode()
	_, second := w.renew(first)
	// The answer was lost: the same token again gives the same line of tokens.
	w.offset.Store(int64(29 * time.Second))
	_, second2 := w.renew(first)
	access, third := w.renew(second)
	if _, third2 := w.renew(second2); third2 == "" || !w.accepts("Pomerium "+access) {
		t.Error("a lost answer has ended the session")
	}
	// Two turns later it is a thief's, however soon.
	w.call("/oauth2/token", renewal(first)).refused(t, 400, "invalid_grant")
	if w.accepts("Pomerium " + access) {
		t.Error("the session has outlived the reuse of a refresh token")
	}
	w.call("/oauth2/token", renewal(third)).refused(t, 400, "invalid_grant")
	if log := w.log.String(); !strings.Contains(log, "used a second time") || strings.Contains(log, first) {
		t.Errorf("log: %s", log)
	}

	_, first = w.byCode()
	access, _ = w.renew(first)
	w.offset.Add(int64(31 * time.Second))
	w.call("/oauth2/token", renewal(first)).refused(t, 400, "invalid_grant")
	if w.accepts("Pomerium " + access) {
		t.Error("the session has outlived the late reuse of a refresh token")
	}
}

func TestRefreshAtOnce(t *testing.T) {
	w := newWorld(t)
	_, refresh := w.byCode()
	var group errgroup.Group
	next := make([]string, 20)
	for i := range next {
		group.Go(func() error {
			_, next[i] = w.renew(refresh)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	// Whichever answer the program keeps, it is good.
	for _, n := range next {
		w.renew(n)
	}
}

// meddler writes a session behind the back of who is about to, as the refresher does.
type meddler struct {
	databroker.Store
	times int
}

func (m *meddler) PutSession(ctx context.Context, s *databroker.Session) error {
	if m.times--; m.times >= 0 {
		now, err := m.Session(ctx, s.ID)
		if err != nil {
			return err
		}
		now.RefreshedAt, now.Tokens.RefreshToken = now.RefreshedAt.Add(time.Second), "renewed meanwhile"
		if err := m.Store.PutSession(ctx, now); err != nil {
			return err
		}
	}
	return m.Store.PutSession(ctx, s)
}

func TestRefreshBesideTheRefresher(t *testing.T) {
	w := newWorld(t)
	_, refresh := w.byCode()
	m := &meddler{Store: w.store.Store, times: 3}
	w.store.Store = m
	_, refresh = w.renew(refresh)
	if got := w.sessions()[0].Tokens.RefreshToken; m.times > 0 || got != "renewed meanwhile" {
		t.Errorf("what the refresher wrote is lost: %q", got)
	}
	_, refresh = w.renew(refresh)
	m.times = 1000
	w.call("/oauth2/token", renewal(refresh)).refused(t, 503, "temporarily_unavailable")
}

func TestRefreshAfterTheEnd(t *testing.T) {
	w := newWorld(t)
	_, refresh := w.byCode()
	w.offset.Store(int64(14*time.Hour + time.Second))
	w.call("/oauth2/token", renewal(refresh)).refused(t, 400, "invalid_grant")
}

// TestPurposes brings every kind of token to every place that takes one. Each is
// good where it belongs and nowhere else.
func TestPurposes(t *testing.T) {
	w := newWorld(t)
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "sa-1", UserID: "api"}); err != nil {
		t.Fatal(err)
	}
	account, err := w.keys.MintAccount(signin.AccountToken{AccountID: "sa-1", UserID: "api", IssuedAt: w.now()})
	if err != nil {
		t.Fatal(err)
	}
	// Some places use a token up, so each try gets one of its own.
	kinds := map[string]func() string{
		"session": func() string { access, _ := w.byCode(); return access },
		"account": func() string { return account },
		"refresh": func() string { _, refresh := w.byCode(); return refresh },
		"refresh by link": func() string {
			b := w.browser()
			return b.answer(b.byLink(), "allow").location(t).Query().Get("pomerium_refresh_token")
		},
		"code":        w.code,
		"device code": func() string { return w.device().code },
		"user code":   func() string { return w.device().user },
		"id_token":    func() string { return w.idToken() },
		"id_token that was exchanged": func() string {
			raw := w.idToken()
			w.call("/api/v1/token", url.Values{"id_token": {raw}}).want(t, http.StatusOK)
			return raw
		},
		"state": func() string { return w.browserAtProvider().Query().Get("state") },
		"link": func() string {
			return w.browser().get(app + "/.pomerium/api/v1/login?pomerium_redirect_uri=http://localhost").body
		},
		"hand-off": func() string {
			return mustURL(t, w.browser().until(signin.CallbackPath, app+"/x")).Query().Get("pomerium_session_encrypted")
		},
		"form": func() string { return w.browser().byLink().consentForm(t, "allow").Get("form") },
		"authenticate cookie": func() string {
			b := w.browser()
			b.get(app + "/x")
			return b.cookie(auth, "__Host-_pomerium_authenticate").Value
		},
		"nothing": func() string { return "" },
	}
	tokenForm := func(grant, name string) func(string) int {
		return func(token string) int {
			return w.call("/oauth2/token", url.Values{
				"grant_type": {grant}, name: {token}, "client_id": {client}, "redirect_uri": {loopbackURI}, "code_verifier": {verifier}, "subject_token_type": {typeIDToken},
			}).StatusCode
		}
	}
	status := map[bool]int{true: 200, false: 401}
	places := map[string]struct {
		try  func(token string) int
		good []string
	}{
		"a route":       {func(token string) int { return status[w.accepts("Pomerium "+token)] }, []string{"session", "account"}},
		"a route again": {func(token string) int { return status[w.accepts("Bearer Pomerium-"+token)] }, []string{"session", "account"}},
		"code":          {tokenForm("authorization_code", "code"), []string{"code"}},
		"refresh":       {tokenForm("refresh_token", "refresh_token"), []string{"refresh"}},
		"exchange":      {tokenForm(grantExchange, "subject_token"), []string{"id_token", "id_token that was exchanged"}},
		"api token": {func(token string) int {
			return w.call("/api/v1/token", url.Values{"id_token": {token}}).StatusCode
		}, []string{"id_token", "id_token that was exchanged"}},
		"api refresh": {func(token string) int {
			return w.call("/api/v1/refresh", nil, "Authorization", "Pomerium "+token).StatusCode
		}, []string{"refresh by link"}},
		"device page": {func(token string) int {
			b := w.browser()
			b.get(auth + "/device")
			return b.post(auth+"/device", url.Values{"user_code": {token}}, "Origin", auth).StatusCode
		}, []string{"user code"}},
	}
	for kind, mint := range kinds {
		for place, at := range places {
			want := false
			for _, good := range at.good {
				want = want || good == kind
			}
			got := at.try(mint())
			if (got == http.StatusOK) != want || got >= 500 {
				t.Errorf("%s at %s: got %d, want it accepted: %v", kind, place, got, want)
			}
		}
		// A device code is answered, not taken, while its person is awaited.
		got := w.call("/oauth2/token", url.Values{"grant_type": {grantDevice}, "device_code": {mint()}, "client_id": {client}})
		if pending := strings.Contains(got.body, "authorization_pending"); pending != (kind == "device code") || got.StatusCode != 400 {
			t.Errorf("%s as device code: got %s", kind, got.body)
		}
	}
}

func TestClientsAreToldApart(t *testing.T) {
	w := newWorld(t)
	_, refresh := w.byCode()
	form := renewal(refresh)
	form.Set("client_id", "another")
	w.call("/oauth2/token", form).refused(t, 400, "invalid_grant")
	w.renew(refresh)
}

func TestRevoke(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name  string
		which func(access, refresh string) string
	}{
		{"the access token", func(access, _ string) string { return access }},
		{"the refresh token", func(_, refresh string) string { return refresh }},
		{"a refresh token that was used", func(_, refresh string) string { w.renew(refresh); return refresh }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			access, refresh := w.byCode()
			w.call("/oauth2/revoke", url.Values{"token": {tt.which(access, refresh)}}).want(t, http.StatusOK)
			if w.accepts("Pomerium " + access) {
				t.Error("the session is still there")
			}
			w.call("/oauth2/token", renewal(refresh)).refused(t, 400, "invalid_grant")
			w.call("/oauth2/revoke", url.Values{"token": {access}}).want(t, http.StatusOK)
		})
	}
	user, err := w.store.User(context.Background(), "user-alice")
	if err != nil || user.RevokedAt.IsZero() {
		t.Errorf("the revocation is not remembered: %+v, %v", user, err)
	}
	account, err := w.keys.MintAccount(signin.AccountToken{AccountID: "sa-1", UserID: "api", IssuedAt: w.now()})
	if err != nil {
		t.Fatal(err)
	}
	w.call("/oauth2/revoke", url.Values{"token": {account}}).refused(t, 400, "unsupported_token_type")
	w.call("/oauth2/revoke", nil).refused(t, 400, "invalid_request")
	for _, other := range []string{"x", w.idToken(), w.code()} {
		w.call("/oauth2/revoke", url.Values{"token": {other}, "token_type_hint": {"x"}}).want(t, http.StatusOK)
	}
	access, _ := w.byCode()
	w.store.Break(errFault)
	w.call("/oauth2/revoke", url.Values{"token": {access}}).refused(t, 503, "temporarily_unavailable")
	w.store.Heal()
}

// The session goes on by its refresh token, which must be no good any more.
func TestRevokeAnExpiredAccessToken(t *testing.T) {
	w := newWorld(t)
	access, refresh := w.byCode()
	w.offset.Store(int64(2 * time.Hour))
	w.call("/oauth2/revoke", url.Values{"token": {access}}).want(t, http.StatusOK)
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions live on", n)
	}
	w.call("/oauth2/token", renewal(refresh)).refused(t, 400, "invalid_grant")
}

func TestProgramsWithoutTheStore(t *testing.T) {
	w := newWorld(t)
	_, refresh := w.byCode()
	code, device, raw := w.code(), w.device(), w.idToken()
	b := w.browser()
	asked := b.get(authorization())
	w.store.Break(errFault)
	for name, p := range map[string]page{
		"code":          w.call("/oauth2/token", redemption(code)),
		"refresh":       w.call("/oauth2/token", renewal(refresh)),
		"device":        w.call("/oauth2/token", device.poll()),
		"device start":  w.call("/oauth2/device_authorization", url.Values{"client_id": {client}}),
		"exchange":      w.call("/oauth2/token", url.Values{"grant_type": {grantExchange}, "subject_token": {raw}, "subject_token_type": {typeIDToken}}),
		"api exchange":  w.call("/api/v1/token", url.Values{"id_token": {raw}}),
		"another grant": b.answer(asked, "allow"),
	} {
		p.want(t, http.StatusServiceUnavailable)
		if p.Header.Get("Retry-After") == "" || strings.Contains(p.body, "fire") {
			t.Errorf("%s: got %v %s", name, p.Header, p.body)
		}
	}
	w.store.Heal()
	w.call("/oauth2/token", redemption(code)).want(t, http.StatusOK)
	w.renew(refresh)
	b.answer(asked, "allow").want(t, http.StatusFound)
}
