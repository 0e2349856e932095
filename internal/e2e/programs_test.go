package e2e

import (
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// postForm sends a form to the authenticate host as a program does.
func (w *world) postForm(t testing.TB, path string, form url.Values, headers ...string) *answer {
	t.Helper()
	r := request(t, http.MethodPost, w.authenticateURL(path), append([]string{"Content-Type", "application/x-www-form-urlencoded"}, headers...)...)
	r.Body = io.NopCloser(strings.NewReader(form.Encode()))
	return w.client().send(t, r)
}

// object is the JSON object of an answer.
func (a *answer) object(t testing.TB, status int) map[string]any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(a.Body), &object); err != nil || a.StatusCode != status {
		t.Fatalf("%s %s: %s, want %d: %.600s", a.Request.Method, a.Request.URL, a.Status, status, a.Body)
	}
	return object
}

// exchange trades an ID token for a token of ours.
func (w *world) exchange(t testing.TB, idToken string) string {
	t.Helper()
	w.secret(idToken)
	answer := w.postForm(t, "/api/v1/token", url.Values{"id_token": {idToken}}).object(t, http.StatusOK)
	token, _ := answer["Token"].(string)
	expiry, _ := answer["Expiry"].(string)
	until, err := time.Parse(time.RFC3339, expiry)
	if token == "" || len(answer) != 2 || err != nil || time.Until(until) <= 0 {
		t.Fatalf("exchange: Token %v, Expiry %q (%v), %d members", token != "", expiry, err, len(answer))
	}
	w.secret(token)
	return token
}

// claims are those of the assertion that an upstream got.
func (r *received) claims(t testing.TB) map[string]any {
	t.Helper()
	var claims map[string]any
	parts := strings.Split(r.value("X-Pomerium-Jwt-Assertion"), ".")
	if len(parts) != 3 {
		t.Fatalf("the upstream got no assertion: %v", r.Header)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// deviceFlow asks for a code as a terminal does, has allow bring it to the person's
// browser, and returns the answer to the poll that follows.
func (w *world) deviceFlow(t testing.TB, allow func(verification string)) map[string]any {
	t.Helper()
	asked := w.postForm(t, "/oauth2/device_authorization", url.Values{"client_id": {"a terminal"}}).object(t, http.StatusOK)
	code, _ := asked["device_code"].(string)
	verification, _ := asked["verification_uri_complete"].(string)
	w.secret(code)
	poll := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {code}, "client_id": {"a terminal"}}
	if got := w.postForm(t, "/oauth2/token", poll).object(t, http.StatusBadRequest)["error"]; got != "authorization_pending" {
		t.Errorf("before anybody has agreed the terminal is told %v", got)
	}
	allow(verification)
	var granted map[string]any
	// A poll that comes too soon is told to slow down.
	eventually(t, 30*time.Second, "the terminal gets its token", func() bool {
		a := w.postForm(t, "/oauth2/token", poll)
		if a.StatusCode == http.StatusOK {
			granted = a.object(t, http.StatusOK)
		}
		return granted != nil
	})
	for _, name := range []string{"access_token", "refresh_token"} {
		token, _ := granted[name].(string)
		w.secret(token)
		if token == "" {
			t.Errorf("the answer has no %s", name)
		}
	}
	return granted
}

var (
	formTag  = regexp.MustCompile(`(?s)<form[^>]*method="post"[^>]*action="([^"]*)"[^>]*>(.*?)</form>`)
	inputTag = regexp.MustCompile(`(?s)<(?:input|button)\b([^>]*)>`)
	nameAttr = regexp.MustCompile(`\bname="([^"]*)"`)
	valueOf  = regexp.MustCompile(`\bvalue="([^"]*)"`)
)

// submitFirst sends the first form of a page of ours as it stands, with what is in
// typed besides; nil if the page has no form.
func (c *agent) submitFirst(t testing.TB, page *answer, typed url.Values) *answer {
	t.Helper()
	form := formTag.FindStringSubmatch(page.Body)
	if form == nil || page.StatusCode >= 300 {
		return nil
	}
	values := url.Values{}
	for _, tag := range inputTag.FindAllStringSubmatch(form[2], -1) {
		if name := nameAttr.FindStringSubmatch(tag[1]); name != nil {
			value := ""
			if v := valueOf.FindStringSubmatch(tag[1]); v != nil {
				value = html.UnescapeString(v[1])
			}
			values.Set(name[1], value)
		}
	}
	for name, v := range typed {
		values[name] = v
	}
	action, err := page.Request.URL.Parse(html.UnescapeString(form[1]))
	if err != nil {
		t.Fatal(err)
	}
	return c.submit(t, action.String(), values)
}

// agree opens an address, signs in with signIn where that is asked for, and says yes
// to whatever the authenticate host asks, until it asks no more or the browser is
// sent to a program on this machine.
func (w *world) agree(t testing.TB, c *agent, address string, signIn func(*answer) *answer) *answer {
	t.Helper()
	a := c.navigate(t, address)
	for range 20 {
		if to, err := a.Location(); err == nil && to.Hostname() == "127.0.0.1" {
			return a
		}
		next := signIn(a)
		if next == nil {
			next = c.next(t, "", a)
		}
		if next == nil && strings.HasPrefix(a.Request.URL.String(), w.authenticateURL("/")) {
			next = c.submitFirst(t, a, nil)
		}
		if next == nil {
			return a
		}
		a = next
	}
	t.Fatalf("it does not end; it is at %s: %.600s", a.Request.URL, a.Body)
	return nil
}
