package authn_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

// foreignTargets are redirect targets that may lead, or that some browser may take,
// to a place that is not ours.
func foreignTargets() []string {
	return []string{
		"//evil.example", "///evil.example", "////evil.example/", `/\evil.example`, `\\evil.example`, `\/evil.example`, `https:\\evil.example`,
		"https:evil.example", "https:/evil.example", "https:///evil.example", "https://evil.example", "http://evil.example/", "ftp://app.example.com/",
		"https://app.example.com@evil.example/", "https://app.example.com:443@evil.example/", "https://user:pass@app.example.com/", "https://@app.example.com/",
		"https://evil.example#app.example.com", "https://evil.example?app.example.com", "https://evil.example/app.example.com", `https://evil.example\@app.example.com/`,
		"https://app.example.com.evil.example/", "https://evilapp.example.com.example/", "https://app.example.comevil.example/", "https://app.example.com%2eevil.example/",
		"https://app.example.com%00.evil.example/", "https://app.example.com%0d%0aX:y/", "https://app.example.com\r\nX: y/", "https://app.example.com/\r\nX: y", "https://app.example.com\n.evil.example",
		"https://app.example.com/\x00", "\thttps://evil.example/", " https://evil.example/", "https://evil.example/\t", "https://ev\til.example/", "ht\ntps://evil.example/", "/\t/evil.example/", "/\n/evil.example/",
		"https://app.example.com\\.evil.example/", "https://xn--pp-xka.example.com/", "https://аpp.example.com/", "https://app。example。com.evil.example/", "https://ａpp.example.com/",
		"https://app.example.com:8444/", "https://app.example.com:0/", "https://app.example.com:99999/", "https://app.example.com:443:80/", "https://app.example.com:80/",
		"http://app.example.com/", "HTTP://APP.EXAMPLE.COM/", "https://EVIL.example/", "hTTps://eViL.example/",
		"https://[::1]/", "https://[::1%25lo]/", "https://[::ffff:127.0.0.1]/", "https://127.0.0.1/", "https://2130706433/", "https://0x7f.1/", "https://localhost/",
		"javascript:alert(1)", "JaVaScRiPt:alert(1)", "javascript://app.example.com/%0aalert(1)", "java\nscript:alert(1)", "data:text/html,<script>alert(1)</script>", "vbscript:x", "file:///etc/passwd", "about:blank", "blob:https://app.example.com/x",
		"%2f%2fevil.example", "/%2f%2fevil.example/..//", "https://%65vil.example/", "https%3a%2f%2fevil.example",
		"https://.wild.example.com/", "https://wild.example.com.evil.example/", "https://evil.example/.wild.example.com", "?next=//evil.example", "#//evil.example", "evil.example", "app.example.com/x", ".", "..", "*",
		strings.Repeat("https://app.example.com/", 1000),
	}
}

// ours reports whether a browser stays with us, or goes to the provider.
func (w *world) ours(to string) bool {
	u, err := url.Parse(to)
	if err != nil || strings.ContainsAny(to, "\\\r\n\t") || strings.HasPrefix(to, "//") {
		return false
	}
	return u.Scheme == "" && u.Host == "" && strings.HasPrefix(to, "/") || u.User == nil && u.Scheme == "https" && strings.HasSuffix(u.Host, ".example.com") ||
		strings.HasPrefix(to, w.idp.URL+"/")
}

// Every place that takes a target refuses those of other people, signed or not.
func TestForeignTargets(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.SignOutRedirectDomains = []string{"home.example.org"} })
	b := w.browser()
	b.get(app+"/").want(t, http.StatusOK, welcome)
	b.stop = func(*url.URL) bool { return true }
	signed := func(at string, q url.Values) string {
		u := mustURL(t, at)
		u.RawQuery = q.Encode()
		w.keys.SignLink(u, w.now(), signin.LinkLife)
		return u.String()
	}
	target := func(v string) url.Values { return url.Values{signin.ParamRedirectURI: {v}} }
	with := func(v string, more ...string) url.Values {
		q := target(v)
		for i := 0; i+1 < len(more); i += 2 {
			q.Set(more[i], more[i+1])
		}
		return q
	}
	places := map[string]func(v string) page{
		"sign_in":           func(v string) page { return b.get(signed(auth+signin.SignInPath, with(v, signin.ParamFlow, "x.y"))) },
		"sign_in, unsigned": func(v string) page { return b.get(auth + signin.SignInPath + "?" + target(v).Encode()) },
		"sign_in of a program": func(v string) page {
			return b.get(signed(auth+signin.SignInPath, with(v, signin.ParamProgrammatic, "true")))
		},
		"start":                  func(v string) page { return b.get(signed(other+"/.pomerium/start", target(v))) },
		"sign_out":               func(v string) page { return b.get(app + "/.pomerium/sign_out?" + target(v).Encode()) },
		"sign_out by form":       func(v string) page { return b.post(app+"/.pomerium/sign_out", target(v), "Origin", app) },
		"sign_out there":         func(v string) page { return b.get(auth + "/.pomerium/sign_out?" + target(v).Encode()) },
		"sign_out there, signed": func(v string) page { return b.get(signed(auth+"/.pomerium/sign_out", target(v))) },
		"sign_out there by form": func(v string) page { return b.post(auth+"/.pomerium/sign_out", target(v), "Origin", auth) },
		"sign_out there, in the query": func(v string) page {
			return b.post(auth+"/.pomerium/sign_out?"+target(v).Encode(), nil, "Origin", auth)
		},
		"hand-off": func(v string) page {
			sealed, err := w.keys.SealHandoff(signin.Handoff{SessionToken: b.cookie(app, "_pomerium").Value, Flow: "x.y", RedirectURI: v, ExpiresAt: w.now().Add(time.Minute)})
			if err != nil {
				sealed = "x"
			}
			return b.get(signed(app+signin.CallbackPath, with(v, signin.ParamSessionEncrypted, sealed)))
		},
		"hand-off on the way": func(v string) page {
			sealed, err := w.keys.SealHandoff(signin.Handoff{SessionToken: b.cookie(app, "_pomerium").Value, Flow: "x.y", RedirectURI: v, Host: "app.example.com", ExpiresAt: w.now().Add(time.Minute)})
			if err != nil {
				sealed = "x"
			}
			return b.get(signed(app+signin.CallbackPath, with(v, signin.ParamSessionEncrypted, sealed)))
		},
		"callback": func(v string) page {
			state, err := json.Marshal(map[string]any{"t": v, "f": "x.y", "p": w.idpID, "i": "x", "b": "y", "a": w.now().Unix()})
			if err != nil {
				t.Fatal(err)
			}
			return b.get(auth + "/oauth2/callback?code=x&state=" + w.keys.Seal(signin.PurposeProviderState, state, nil))
		},
		"login": func(v string) page { return b.get(app + "/.pomerium/api/v1/login?" + target(v).Encode()) },
	}
	programsMay := map[string]bool{
		"https://[::1]/": true, "https://127.0.0.1/": true, "https://localhost/": true, "https://[::ffff:127.0.0.1]/": true,
	}
	for _, v := range foreignTargets() {
		for place, visit := range places {
			if programsMay[v] && (place == "login" || place == "sign_in of a program") {
				continue
			}
			p := visit(v)
			if p.StatusCode != http.StatusBadRequest {
				t.Errorf("%s with %.60q: got status %d, leads to %q", place, v, p.StatusCode, p.Header.Get("Location"))
			}
			if strings.Contains(p.body, `href="`+v) {
				t.Errorf("%s: the page links to %.60q", place, v)
			}
		}
		for _, at := range []string{auth + "/.pomerium/signed_out?", auth + "/?", auth + "/.pomerium/?", app + "/.pomerium/?"} {
			p := b.get(at + target(v).Encode())
			if to := p.Header.Get("Location"); p.next() != "" || to != "" && !w.ours(to) {
				t.Errorf("%s with %.60q: leads to %q", at, v, to+p.next())
			}
		}
	}
	if n := len(w.sessionsOf("")); n != 1 {
		t.Errorf("%d sessions are left, want 1", n)
	}
}

// Targets that look odd and are ours arrive as they are.
func TestOddTargets(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/", "/a//b", "/%2f%2fevil.example", "/x?u=https://evil.example/&a=%0d%0a", "/;@evil.example", "/x?a=b%26c", "/%41", "/x?"} {
		b := w.browser()
		p := b.get(app + path)
		p.want(t, http.StatusOK, welcome)
		if p.Request.URL.Host != "app.example.com" {
			t.Errorf("%s: ended at %s", path, p.Request.URL)
		}
	}
	b := w.browser()
	b.get("https://a.b.wild.example.com/x").want(t, http.StatusOK, welcome+" /x")
}

// Links of a sign-in are for one route, one browser and some minutes.
func TestSignInLinks(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	link := b.until(signin.SignInPath, app+"/x")
	u := mustURL(t, link)
	unsigned := u.Query()
	unsigned.Del(signin.ParamSignature)
	for name, bad := range map[string]string{
		"unsigned":                 auth + signin.SignInPath + "?" + unsigned.Encode(),
		"for another route":        strings.Replace(link, "app.example.com", "other.example.com", 1),
		"at another path":          strings.Replace(link, signin.SignInPath, "/.pomerium/sign_out", 1),
		"with a parameter":         link + "&pomerium_programmatic=true",
		"with a repeated target":   link + "&pomerium_redirect_uri=" + url.QueryEscape(other),
		"at the route's host":      strings.Replace(link, auth, app, 1),
		"with another flow":        strings.Replace(link, "pomerium_flow=", "pomerium_flow=A", 1),
		"with a round":             link + "&pomerium_round=0",
		"with another host":        link + "&pomerium_additional_hosts=other.example.com",
		"with a host for the hand": link + "&pomerium_callback_uri=" + url.QueryEscape(other+signin.CallbackPath),
	} {
		p := w.browser().get(bad)
		if name == "at another path" {
			p.want(t, http.StatusOK, "Sign out?")
		} else if p.StatusCode != http.StatusBadRequest && p.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got status %d", name, p.StatusCode)
		}
	}
	if got := w.idp.Count("authorize"); got != 0 {
		t.Errorf("%d visits to the provider", got)
	}
	// In another browser it signs its owner in nowhere.
	mallory := w.browser()
	mallory.get(link).want(t, http.StatusBadRequest, "began in another browser")
	if mallory.cookie(app, "_pomerium") != nil {
		t.Error("a session cookie was set")
	}
	// In its own it works, and again: a second time does no harm.
	b.get(link).want(t, http.StatusOK, welcome+" /x")
	b.get(link).want(t, http.StatusOK, welcome+" /x")
}
