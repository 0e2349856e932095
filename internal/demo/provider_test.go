package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"
)

// relyingParty is a client of a provider on loopback.
type relyingParty struct {
	http     *http.Client
	issuer   string
	provider *oidc.Provider
	oauth2.Config
}

func newRelyingParty(t *testing.T, change ...func(*ProviderConfig)) *relyingParty {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	issuer := "http://" + server.Listener.Addr().String()
	cfg := ProviderConfig{
		Issuer: issuer, ClientID: "app", ClientSecret: "open sesame",
		RedirectURIs: []string{"https://authenticate.demo.localhost/oauth2/callback"}, People: People(),
	}
	for _, f := range change {
		f(&cfg)
	}
	handler, err := NewProvider(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = handler
	server.Start()
	t.Cleanup(server.Close)
	rp := &relyingParty{issuer: issuer, http: &http.Client{CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if "http://"+r.URL.Host != issuer {
			return http.ErrUseLastResponse
		}
		return nil
	}}}
	if rp.provider, err = oidc.NewProvider(rp.context(), issuer); err != nil {
		t.Fatal(err)
	}
	rp.Config = oauth2.Config{
		ClientID: "app", ClientSecret: "open sesame", Endpoint: rp.provider.Endpoint(),
		RedirectURL: "https://authenticate.demo.localhost/oauth2/callback",
		Scopes:      []string{"openid", "profile", "email", "groups", "offline_access"},
	}
	return rp
}

func (rp *relyingParty) context() context.Context {
	return oidc.ClientContext(context.Background(), rp.http)
}

// begin asks for a sign-in and returns the id that the page has in its form.
func (rp *relyingParty) begin(state, nonce, verifier string, more ...oauth2.AuthCodeOption) (request string, err error) {
	options := append([]oauth2.AuthCodeOption{oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)}, more...)
	response, err := rp.http.Get(rp.AuthCodeURL(state, options...))
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	request = response.Request.URL.Query().Get("request")
	if response.StatusCode != http.StatusOK || request == "" || !strings.Contains(string(page), `value="`+request+`"`) {
		return "", fmt.Errorf("got %s at %s, want the page with the people", response.Status, response.Request.URL.Path)
	}
	return request, nil
}

// choose clicks on a person and returns the query that the client is sent.
func (rp *relyingParty) choose(request, person string) (url.Values, error) {
	response, err := rp.http.PostForm(rp.issuer+"/login", url.Values{"request": {request}, "person": {person}})
	if err != nil {
		return nil, err
	}
	_ = response.Body.Close()
	location, err := response.Location()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", response.Status, err)
	}
	if !strings.HasPrefix(location.String(), rp.RedirectURL+"?") {
		return nil, fmt.Errorf("sent to %s, want %s", location, rp.RedirectURL)
	}
	return location.Query(), nil
}

// signIn is the whole flow up to the tokens.
func (rp *relyingParty) signIn(state, nonce, person string, more ...oauth2.AuthCodeOption) (*oauth2.Token, error) {
	verifier := oauth2.GenerateVerifier()
	request, err := rp.begin(state, nonce, verifier, more...)
	if err != nil {
		return nil, err
	}
	query, err := rp.choose(request, person)
	if err != nil {
		return nil, err
	}
	if got := query.Get("state"); got != state {
		return nil, fmt.Errorf("state is %q, want %q", got, state)
	}
	return rp.Exchange(rp.context(), query.Get("code"), oauth2.VerifierOption(verifier))
}

type identity struct {
	Subject  string   `json:"sub"`
	Email    string   `json:"email"`
	Verified bool     `json:"email_verified"`
	Name     string   `json:"name"`
	Groups   []string `json:"groups"`
}

// claims checks the ID token of an answer.
func (rp *relyingParty) claims(token *oauth2.Token) (identity, string, error) {
	var who identity
	raw, _ := token.Extra("id_token").(string)
	id, err := rp.provider.Verifier(&oidc.Config{ClientID: "app"}).Verify(rp.context(), raw)
	if err != nil {
		return who, "", err
	}
	if err := id.VerifyAccessToken(token.AccessToken); err != nil {
		return who, "", err
	}
	return who, id.Nonce, id.Claims(&who)
}

var ana = identity{"ana", "ana@companydomain.com", true, "Ana Alves", []string{"staff", "engineering"}}

func TestSignIn(t *testing.T) {
	rp := newRelyingParty(t)
	token, err := rp.signIn("state one", "nonce one", "ana")
	if err != nil {
		t.Fatal(err)
	}
	who, nonce, err := rp.claims(token)
	if err != nil {
		t.Fatal(err)
	}
	if nonce != "nonce one" {
		t.Errorf("nonce is %q", nonce)
	}
	if diff := cmp.Diff(ana, who); diff != "" {
		t.Errorf("ID token (-want +got):\n%s", diff)
	}
	info, err := rp.provider.UserInfo(rp.context(), oauth2.StaticTokenSource(token))
	if err != nil {
		t.Fatal(err)
	}
	who = identity{}
	if err := info.Claims(&who); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ana, who); diff != "" {
		t.Errorf("userinfo (-want +got):\n%s", diff)
	}
}

func TestDiscovery(t *testing.T) {
	rp := newRelyingParty(t)
	var d struct {
		PKCE       []string `json:"code_challenge_methods_supported"`
		Grants     []string `json:"grant_types_supported"`
		Scopes     []string `json:"scopes_supported"`
		EndSession string   `json:"end_session_endpoint"`
	}
	if err := rp.provider.Claims(&d); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.PKCE, []string{"S256"}) || !slices.Contains(d.Grants, "refresh_token") ||
		!slices.Contains(d.Scopes, "groups") || d.EndSession != rp.issuer+"/end_session" {
		t.Errorf("discovery is %+v", d)
	}
}

func TestRefreshRotates(t *testing.T) {
	rp := newRelyingParty(t)
	first, err := rp.signIn("s", "n", "ana")
	if err != nil {
		t.Fatal(err)
	}
	refresh := func(token string) (*oauth2.Token, error) {
		return rp.TokenSource(rp.context(), &oauth2.Token{RefreshToken: token}).Token()
	}
	second, err := refresh(first.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	if second.RefreshToken == "" || second.RefreshToken == first.RefreshToken {
		t.Error("the refresh token did not change")
	}
	if who, _, err := rp.claims(second); err != nil || !cmp.Equal(who, ana) {
		t.Errorf("after a refresh the ID token is about %+v, %v", who, err)
	}
	if _, err := refresh(first.RefreshToken); !isOAuthError(err, "invalid_grant") {
		t.Errorf("a used refresh token: got %v, want invalid_grant", err)
	}
	third, err := refresh(second.RefreshToken)
	if err != nil {
		t.Fatalf("the newest refresh token: %v", err)
	}
	// Fewer scopes are for that one answer, RFC 6749, section 6.
	response, err := rp.http.PostForm(rp.Endpoint.TokenURL, url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {third.RefreshToken}, "scope": {"openid"},
		"client_id": {rp.ClientID}, "client_secret": {rp.ClientSecret},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var narrow struct {
		Refresh string `json:"refresh_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&narrow); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", response.Status, err)
	}
	last, err := refresh(narrow.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	if who, _, err := rp.claims(last); err != nil || !cmp.Equal(who, ana) {
		t.Errorf("after a narrow refresh the next ID token is about %+v, %v", who, err)
	}
}

// Whoever wants a fresh sign-in is told when it was, and a refresh is none.
func TestFreshSignIn(t *testing.T) {
	var ahead atomic.Int64
	rp := newRelyingParty(t, func(cfg *ProviderConfig) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	authTime := func(token *oauth2.Token) int64 {
		t.Helper()
		raw, _ := token.Extra("id_token").(string)
		id, err := rp.provider.Verifier(&oidc.Config{ClientID: "app"}).Verify(rp.context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			AuthTime int64 `json:"auth_time"`
		}
		if err := id.Claims(&claims); err != nil {
			t.Fatal(err)
		}
		return claims.AuthTime
	}
	again := []oauth2.AuthCodeOption{oauth2.SetAuthURLParam("max_age", "900"), oauth2.SetAuthURLParam("prompt", "login")}
	for range 2 {
		before := time.Now().Add(time.Duration(ahead.Load())).Unix()
		token, err := rp.signIn("s", "n", "ana", again...)
		if err != nil {
			t.Fatal(err)
		}
		first := authTime(token)
		if first < before || first > before+60 {
			t.Errorf("auth_time is %d, want the moment of the choice, %d", first, before)
		}
		ahead.Add(int64(2 * time.Hour))
		token, err = rp.TokenSource(rp.context(), &oauth2.Token{RefreshToken: token.RefreshToken}).Token()
		if err != nil {
			t.Fatal(err)
		}
		if got := authTime(token); got != first {
			t.Errorf("after a refresh auth_time is %d, want still %d", got, first)
		}
	}
}

func isOAuthError(err error, code string) bool {
	var e *oauth2.RetrieveError
	return errors.As(err, &e) && e.ErrorCode == code
}

func TestCodeIsBoundAndGoodOnce(t *testing.T) {
	rp := newRelyingParty(t)
	code := func() (string, string) {
		t.Helper()
		verifier := oauth2.GenerateVerifier()
		request, err := rp.begin("s", "n", verifier)
		if err != nil {
			t.Fatal(err)
		}
		query, err := rp.choose(request, "ana")
		if err != nil {
			t.Fatal(err)
		}
		return query.Get("code"), verifier
	}
	t.Run("another verifier is refused, and uses the code up", func(t *testing.T) {
		c, verifier := code()
		for _, v := range []string{oauth2.GenerateVerifier(), verifier} {
			if _, err := rp.Exchange(rp.context(), c, oauth2.VerifierOption(v)); !isOAuthError(err, "invalid_grant") {
				t.Errorf("got %v, want invalid_grant", err)
			}
		}
	})
	t.Run("no verifier is refused", func(t *testing.T) {
		c, _ := code()
		if _, err := rp.Exchange(rp.context(), c); !isOAuthError(err, "invalid_grant") {
			t.Errorf("got %v, want invalid_grant", err)
		}
	})
	t.Run("a code is good once", func(t *testing.T) {
		c, verifier := code()
		if _, err := rp.Exchange(rp.context(), c, oauth2.VerifierOption(verifier)); err != nil {
			t.Fatal(err)
		}
		if _, err := rp.Exchange(rp.context(), c, oauth2.VerifierOption(verifier)); !isOAuthError(err, "invalid_grant") {
			t.Errorf("got %v, want invalid_grant", err)
		}
	})
	t.Run("another secret is refused", func(t *testing.T) {
		c, verifier := code()
		other := rp.Config
		other.ClientSecret = "shazam"
		if _, err := other.Exchange(rp.context(), c, oauth2.VerifierOption(verifier)); !isOAuthError(err, "invalid_client") {
			t.Errorf("got %v, want invalid_client", err)
		}
	})
}

func TestAuthorizeRefuses(t *testing.T) {
	rp := newRelyingParty(t)
	tests := []struct {
		name  string
		query url.Values
		// sent is where the browser ends up, "" for a page of the provider.
		sent string
	}{
		{"no PKCE", url.Values{"code_challenge": nil, "code_challenge_method": nil}, "error=invalid_request"},
		{"plain PKCE", url.Values{"code_challenge_method": {"plain"}}, "error=invalid_request"},
		{"no page wanted", url.Values{"prompt": {"none"}}, "error=login_required"},
		{"the implicit flow", url.Values{"response_type": {"id_token token"}}, ""},
		{"another redirect", url.Values{"redirect_uri": {"https://evil.example/"}}, ""},
		{"another client", url.Values{"client_id": {"evil"}}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			u, err := url.Parse(rp.AuthCodeURL("s", oidc.Nonce("n"), oauth2.S256ChallengeOption(oauth2.GenerateVerifier())))
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			for name, value := range test.query {
				q[name] = value
			}
			u.RawQuery = q.Encode()
			response, err := rp.http.Get(u.String())
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			location := response.Header.Get("Location")
			if test.sent == "" && (response.StatusCode != http.StatusBadRequest || location != "") {
				t.Errorf("got %s to %q, want 400", response.Status, location)
			}
			if test.sent != "" && (!strings.HasPrefix(location, rp.RedirectURL) || !strings.Contains(location, test.sent)) {
				t.Errorf("got %s to %q, want %s", response.Status, location, test.sent)
			}
		})
	}
}

func TestManySignInsAtOnce(t *testing.T) {
	rp := newRelyingParty(t)
	people := People()
	var g errgroup.Group
	for i := range 40 {
		g.Go(func() error {
			person := people[i%len(people)]
			token, err := rp.signIn(fmt.Sprint("state ", i), fmt.Sprint("nonce ", i), person.ID)
			if err != nil {
				return err
			}
			who, nonce, err := rp.claims(token)
			if err == nil && (who.Email != person.Email || nonce != fmt.Sprint("nonce ", i)) {
				err = fmt.Errorf("sign-in %d is of %s with %q", i, who.Email, nonce)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLoginPageRefuses(t *testing.T) {
	rp := newRelyingParty(t)
	request, err := rp.begin("s", "n", oauth2.GenerateVerifier())
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, path, host, origin string, form url.Values) int {
		t.Helper()
		r, err := http.NewRequest(method, rp.issuer+path, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		response, err := rp.http.Transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	rp.http.Transport = &http.Transport{}
	own := strings.TrimPrefix(rp.issuer, "http://")
	good := url.Values{"request": {request}, "person": {"ana"}}
	tests := []struct {
		name                       string
		method, path, host, origin string
		form                       url.Values
		want                       int
	}{
		{"an unknown sign-in", "GET", "/login?request=x", own, "", nil, 400},
		{"a form for an unknown sign-in", "POST", "/login", own, "", url.Values{"request": {"x"}, "person": {"ana"}}, 400},
		{"a person whom nobody offered", "POST", "/login", own, "", url.Values{"request": {request}, "person": {"root"}}, 400},
		{"a form of another site", "POST", "/login", own, "https://evil.example", good, 403},
		{"another name of ours", "GET", "/", "rebound.example", "", nil, 421},
		{"a body that never ends", "POST", "/login", own, "", url.Values{"request": {request}, "person": {"ana"}, "x": {strings.Repeat("x", 1<<20)}}, 400},
		{"a token request with broken credentials", "POST", "/oauth/token", own, "", url.Values{"grant_type": {"refresh_token"}, "client_id": {"%zz"}}, 400},
		{"the home page", "GET", "/", own, "", nil, 200},
		{"introspection, which is not offered", "POST", "/oauth/introspect", own, "", nil, 404},
		{"the device flow, which is not offered", "POST", "/device_authorization", own, "", nil, 404},
		{"after all that, the person chosen", "POST", "/login", own, rp.issuer, good, 303},
		{"a code", "GET", "/authorize/callback?id=" + request, own, "", nil, 302},
		{"another code for the same choice", "GET", "/authorize/callback?id=" + request, own, "", nil, 400},
		{"the person chosen again", "POST", "/login", own, rp.issuer, good, 400},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := do(test.method, test.path, test.host, test.origin, test.form); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func TestRecordsAreBounded(t *testing.T) {
	r, now := records[int]{}, time.Unix(1_800_000_000, 0)
	for i := range maxRecords {
		if err := r.put(fmt.Sprint(i), i, now, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.put("one more", 0, now, time.Minute); err == nil {
		t.Error("one more record was kept")
	}
	if _, err := r.get("0", now.Add(time.Minute)); !errors.Is(err, errGone) {
		t.Errorf("an old record: got %v, want %v", err, errGone)
	}
	if err := r.put("later", 0, now.Add(time.Minute), time.Minute); err != nil || len(r) != 1 {
		t.Errorf("when the others are over: %v, %d records", err, len(r))
	}
}
