package authn_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/signin"
)

// portalWorld has routes of every shape, of which nobody may use the last.
type portalWorld struct {
	*world
	// asked is what Accessible was called with, err what it ends with.
	asked []string
	err   error
}

func newPortal(t *testing.T) *portalWorld {
	w := &portalWorld{world: newWorld(t, func(c *config.Config) {
		c.Routes = []*config.Route{
			{ID: "w", Name: "https://wiki.example.com", From: "https://wiki.example.com", Host: "wiki.example.com"},
			{ID: "a", Name: "App <b>", From: app, Host: "app.example.com", Description: `"Quoted" & <i>slanted</i>`, LogoURL: "https://cdn.example.net/logo.png"},
			{ID: "p", Name: "Reports", From: other, Host: "other.example.com", Prefix: "/monthly/ü"},
			{ID: "x", Name: "Old reports", From: other, Host: "other.example.com", Regex: "^/old/[0-9]+$"},
			{ID: "*", Name: "Previews", From: "https://*.wild.example.com", Host: "*.wild.example.com"},
			{ID: "s", Name: "Secret", From: "https://secret.example.com", Host: "secret.example.com"},
		}
	})}
	w.open(func(_ context.Context, kind signin.Kind, id, address string) (map[string]bool, error) {
		w.asked = append(w.asked, kind.String()+" "+id+" "+address)
		return map[string]bool{"w": true, "a": true, "p": true, "x": true, "*": true, "s": false, "gone": true}, w.err
	})
	return w
}

// open replaces the server by one that knows which routes are open.
func (w *portalWorld) open(accessible func(context.Context, signin.Kind, string, string) (map[string]bool, error)) {
	w.t.Helper()
	s := authn.New(authn.Config{Store: w.store, Accessible: accessible, Now: w.now})
	g, err := s.Build(w.cfg, w.keys, w.ring, idp.NewSet(idp.Config{HTTPClient: w.idp.Client(), Now: w.now}, w.cfg, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	s.Publish(g)
	w.server.Store(s)
}

func TestPortal(t *testing.T) {
	w := newPortal(t)
	b := w.browser()
	b.get(app + "/")
	for _, host := range []string{app, auth} {
		w.asked = nil
		p := b.get(host+"/.pomerium/routes", "X-Forwarded-For", "10.0.0.1, 10.0.0.2, 203.0.113.9")
		p.want(t, http.StatusOK, "Your applications", "alice@example.com",
			`href="https://app.example.com/"`, "App &lt;b&gt;", "&#34;Quoted&#34; &amp; &lt;i&gt;slanted&lt;/i&gt;",
			`href="https://wiki.example.com/"`, `href="https://other.example.com/monthly/%C3%BC"`,
			"Without a link", "*.wild.example.com", "other.example.com ^/old/[0-9]&#43;$")
		for _, bad := range []string{"Secret", "cdn.example.net", `href="https://*`, "<img", `href="https://other.example.com/"`} {
			if strings.Contains(p.body, bad) {
				t.Errorf("the page holds %s", bad)
			}
		}
		if csp := p.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "img-src data:;") {
			t.Errorf("policy %q", csp)
		}
		if strings.Index(p.body, "App &lt;b&gt;") > strings.Index(p.body, "Reports") || strings.Index(p.body, "Reports") > strings.Index(p.body, "wiki.example.com") {
			t.Error("the applications are not in the order of their names")
		}
		if want := []string{"session " + w.session(requestWith(t, b)).ID + " 203.0.113.9"}; !cmp.Equal(w.asked, want) {
			t.Errorf("asked for %v, want %v", w.asked, want)
		}
	}
}

func TestPortalJSON(t *testing.T) {
	w := newPortal(t)
	b := w.browser()
	list := app + "/.pomerium/api/v1/routes"
	p := b.get(list)
	p.want(t, http.StatusUnauthorized, `"error":"user-unauthenticated"`)
	if p.Header.Get("WWW-Authenticate") == "" {
		t.Error("no WWW-Authenticate")
	}
	b.get(app + "/")
	type object = map[string]any
	entry := func(id, name, from, description, logo string) object {
		return object{"id": id, "name": name, "type": "http", "from": from, "description": description, "connect_command": "", "logo_url": logo}
	}
	var got struct{ Routes []object }
	p = b.get(list)
	p.want(t, http.StatusOK)
	if err := json.Unmarshal([]byte(p.body), &got); err != nil {
		t.Fatal(err)
	}
	want := []object{
		entry("w", "https://wiki.example.com", "https://wiki.example.com", "", ""),
		entry("a", "App <b>", app, `"Quoted" & <i>slanted</i>`, "https://cdn.example.net/logo.png"),
		entry("p", "Reports", other, "", ""), entry("x", "Old reports", other, "", ""),
		entry("*", "Previews", "https://*.wild.example.com", "", ""),
	}
	if d := cmp.Diff(want, got.Routes); d != "" {
		t.Error(d)
	}
	// Who may use nothing gets a list, not null.
	w.open(func(context.Context, signin.Kind, string, string) (map[string]bool, error) { return nil, nil })
	b.get(list).want(t, http.StatusOK, `{"routes":[]}`)
	b.get(app+"/.pomerium/routes").want(t, http.StatusOK, "There is nothing here that alice@example.com may open.")
}

func TestPortalOfAServiceAccount(t *testing.T) {
	w := newPortal(t)
	if err := w.store.CreateServiceAccount(context.Background(), &databroker.ServiceAccount{ID: "sa-1", UserID: "api"}); err != nil {
		t.Fatal(err)
	}
	token, err := w.keys.MintAccount(signin.AccountToken{AccountID: "sa-1", UserID: "api", IssuedAt: w.now()})
	if err != nil {
		t.Fatal(err)
	}
	w.browser().get(app+"/.pomerium/api/v1/routes", "Authorization", "Bearer Pomerium-"+token).want(t, http.StatusOK, `"id":"w"`)
	if len(w.asked) != 1 || !strings.HasPrefix(w.asked[0], "service account sa-1") {
		t.Errorf("asked for %v", w.asked)
	}
}

func TestPortalRefuses(t *testing.T) {
	w := newPortal(t)
	b := w.browser()
	b.get(app+"/.pomerium/routes", "Accept", "text/html").want(t, http.StatusUnauthorized, "You are not signed in", `<a class="button" href="/">Sign in</a>`)
	p := b.get(auth+"/.pomerium/routes", "Accept", "text/html")
	p.want(t, http.StatusUnauthorized, "You are not signed in", "Open one of the applications")
	if strings.Contains(p.body, "class=\"button\"") {
		t.Error("the authenticate host has a link to nowhere")
	}
	if len(w.asked) > 0 {
		t.Errorf("asked for %v", w.asked)
	}
	b.get(app + "/")
	w.err = errFault
	b.get(app+"/.pomerium/routes").want(t, http.StatusServiceUnavailable, "<h1>Temporarily unavailable")
	b.get(app+"/.pomerium/api/v1/routes").want(t, http.StatusServiceUnavailable, `"error":"portal"`)
	w.open(nil)
	b.get(app+"/.pomerium/routes").want(t, http.StatusServiceUnavailable, "<h1>Temporarily unavailable")
	b.get(app+"/.pomerium/api/v1/routes").want(t, http.StatusServiceUnavailable, `"error":"portal"`)
	w.offset.Store(int64(15 * time.Hour))
	b.get(app+"/.pomerium/routes").want(t, http.StatusUnauthorized)
	b.post(app+"/.pomerium/routes", url.Values{}).want(t, http.StatusMethodNotAllowed)
}
