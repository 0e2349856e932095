package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// agent is a user agent: it keeps cookies, trusts the world's authority, finds
// every *.localhost on loopback and follows no redirect by itself.
type agent struct {
	*http.Client
	world *world
}

// client speaks HTTP/2.
func (w *world) client() *agent { return w.newClient(true) }

// client1 speaks HTTP/1.1.
func (w *world) client1() *agent { return w.newClient(false) }

func (w *world) newClient(http2 bool) *agent {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(err) // it has no reason to
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		DialContext: dialLoopback, Protocols: protocols, MaxIdleConnsPerHost: 64,
		TLSClientConfig: &tls.Config{RootCAs: w.roots(), MinVersion: tls.VersionTLS12},
	}
	return &agent{world: w, Client: &http.Client{
		Timeout: 20 * time.Second, Jar: jar, Transport: watched{transport, w},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// backchannel is how the provider reaches us. The authority is made later, at the
// first start.
func (w *world) backchannel() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: lateTrust{w}}
}

type lateTrust struct{ world *world }

func (t lateTrust) RoundTrip(r *http.Request) (*http.Response, error) {
	c := t.world.client1()
	defer c.CloseIdleConnections()
	return c.Transport.RoundTrip(r)
}

// dialLoopback finds every host on this machine: the port says which.
func dialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

// watched registers what passes that is secret.
type watched struct {
	*http.Transport
	world *world
}

func (t watched) RoundTrip(r *http.Request) (*http.Response, error) {
	for _, name := range []string{"Authorization", "X-Pomerium-Authorization"} {
		if _, token, ok := strings.Cut(r.Header.Get(name), " "); ok {
			t.world.secret(strings.TrimPrefix(token, "Pomerium-"))
		}
	}
	t.world.secretURL(r.URL)
	response, err := t.Transport.RoundTrip(r)
	if err == nil {
		t.world.secretResponse(response)
	}
	return response, err
}

func (w *world) secretResponse(r *http.Response) {
	for _, c := range r.Cookies() {
		w.secret(c.Value)
	}
	if to, err := r.Location(); err == nil {
		w.secretURL(to)
	}
}

// secretURL registers the parameters of a URL that let somebody in.
func (w *world) secretURL(u *url.URL) {
	q := u.Query()
	for _, name := range []string{"code", "state", "nonce", "pomerium_session", "pomerium_session_encrypted", "pomerium_signature", "pomerium_jwt"} {
		w.secret(q.Get(name))
	}
}

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	Body string
}

// echo is what the upstream got. The test ends if it did not answer.
func (a *answer) echo(t testing.TB) *received {
	t.Helper()
	var r received
	if a.StatusCode != http.StatusOK || json.Unmarshal([]byte(a.Body), &r) != nil || r.Upstream == "" {
		t.Fatalf("%s %s: %s, want an answer of the upstream; location %q, body: %.600s", a.Request.Method, a.Request.URL, a.Status, a.Header.Get("Location"), a.Body)
	}
	return &r
}

// send sends a request and reads the answer. The test ends if there is none.
func (c *agent) send(t testing.TB, r *http.Request) *answer {
	t.Helper()
	a, err := c.try(r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// try is send for those who can bear a failure.
func (c *agent) try(r *http.Request) (*answer, error) {
	response, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("read the body of %s: %w", r.URL, err)
	}
	return &answer{response, string(body)}, nil
}

// request makes a request with headers, given as name, value, name, value …
func request(t testing.TB, method, target string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		// Not Add: names stay as they are written.
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	return r
}

// navigate opens a page as a browser does.
func (c *agent) navigate(t testing.TB, target string) *answer {
	t.Helper()
	return c.send(t, request(t, "GET", target,
		"Accept", "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none"))
}

// fetch gets something as a script of a page does.
func (c *agent) fetch(t testing.TB, target string, headers ...string) *answer {
	t.Helper()
	return c.send(t, request(t, "GET", target, append([]string{"Accept", "*/*", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"}, headers...)...))
}

// cookie is the value that the client has for a URL, "" for none.
func (c *agent) cookie(t testing.TB, target, name string) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	for _, cookie := range c.Jar.Cookies(u) {
		if cookie.Name == name {
			return cookie.Value
		}
	}
	return ""
}

var refreshTo = regexp.MustCompile(`(?i)http-equiv="?refresh"?[^>]*content="[^"]*url=([^"]+)"`)

// signIn opens a page, signs in as a person where that is asked for, and
// returns what the browser ends up with.
func (w *world) signIn(t testing.TB, c *agent, person, target string) *answer {
	t.Helper()
	return w.follow(t, c, person, c.navigate(t, target))
}

// follow does what a browser does with an answer, and what a person does with
// the page of the provider.
func (w *world) follow(t testing.TB, c *agent, person string, a *answer) *answer {
	t.Helper()
	for range 20 {
		next := c.next(t, person, a)
		if next == nil {
			return a
		}
		a = next
	}
	t.Fatalf("sign-in as %s does not end; it is at %s", person, a.Request.URL)
	return nil
}

// next is one step of follow, nil at the end.
func (c *agent) next(t testing.TB, person string, a *answer) *answer {
	t.Helper()
	at := a.Request.URL
	switch {
	case a.StatusCode >= 300 && a.StatusCode < 400:
		to, err := a.Location()
		if err != nil {
			t.Fatalf("%s %s: %v", a.Status, at, err)
		}
		return c.navigate(t, to.String())
	case c.world.provider != nil && strings.HasPrefix(at.String(), c.world.provider.issuer+"/login") && a.Request.Method == http.MethodGet:
		form := url.Values{"request": {at.Query().Get("request")}, "person": {person}}
		r, err := http.NewRequest(http.MethodPost, c.world.provider.issuer+"/login", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		return c.send(t, r)
	case a.StatusCode == http.StatusOK && strings.HasPrefix(a.Header.Get("Content-Type"), "text/html"):
		if m := refreshTo.FindStringSubmatch(a.Body); m != nil {
			to, err := at.Parse(html.UnescapeString(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			return c.navigate(t, to.String())
		}
	}
	return nil
}

// session is a client whom a person has signed in with at a host.
func (w *world) session(t testing.TB, person, target string) *agent {
	t.Helper()
	c := w.client()
	w.signIn(t, c, person, target)
	return c
}
