package signin

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func parseURL(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func signed(t testing.TB, k *Keys, raw string, at time.Time, life time.Duration) *url.URL {
	t.Helper()
	u := parseURL(t, raw)
	k.SignLink(u, at, life)
	return u
}

func TestVerifyLinkTakesWhatSignLinkMade(t *testing.T) {
	k := testKeys(t)
	for _, raw := range []string{
		"https://auth.example.com",
		"https://auth.example.com/.pomerium/sign_in?b=2&a=1&b=1&c",
		"https://AUTH.example.com:443/x%2Fy/ö?q=a+b%20c&pomerium_redirect_uri=https%3A%2F%2Fapp%2F%3Fx%3D1%26y",
		"http://auth.localhost:8080/",
		"https://user@auth.example.com/#fragment",
	} {
		u := signed(t, k, raw, noon, LinkLife)
		// What arrives is text, its host perhaps spelled otherwise.
		arrived := parseURL(t, u.String())
		arrived.Host = strings.ToUpper(arrived.Host)
		if err := k.VerifyLink(arrived, noon); err != nil {
			t.Errorf("%s: %v", u, err)
		}
		k.SignLink(u, noon.Add(time.Hour), LinkLife)
		if err := k.VerifyLink(u, noon.Add(time.Hour)); err != nil {
			t.Errorf("signed again: %s: %v", u, err)
		}
	}
}

func TestSignLinkPanicsOnALifeThatNoVerifierAccepts(t *testing.T) {
	k := testKeys(t)
	for _, life := range []time.Duration{0, -1, MaxLinkLife + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a life of %v was signed", life)
				}
			}()
			signed(t, k, "https://a.example/", noon, life)
		}()
	}
}

func TestEveryPartOfALinkIsSigned(t *testing.T) {
	k := testKeys(t)
	made := signed(t, k, "https://auth.example.com/.pomerium/sign_in?pomerium_redirect_uri=https%3A%2F%2Fapp.example.com%2F&x=1", noon, LinkLife)
	set := func(name, value string) func(*url.URL) {
		return func(u *url.URL) {
			q := u.Query()
			q.Set(name, value)
			u.RawQuery = q.Encode()
		}
	}
	extra := func(pair string) func(*url.URL) {
		return func(u *url.URL) { u.RawQuery += "&" + pair }
	}
	tests := []struct {
		name   string
		change func(*url.URL)
		want   error
	}{
		{"nothing changed", func(*url.URL) {}, nil},
		{"the parameters in another order", func(u *url.URL) {
			parts := strings.Split(u.RawQuery, "&")
			for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
				parts[i], parts[j] = parts[j], parts[i]
			}
			u.RawQuery = strings.Join(parts, "&")
		}, nil},
		{"the default port written", func(u *url.URL) { u.Host += ":443" }, nil},
		{"another scheme", func(u *url.URL) { u.Scheme = "http" }, ErrSignature},
		{"another host", func(u *url.URL) { u.Host = "evil.example.com" }, ErrSignature},
		{"another port", func(u *url.URL) { u.Host += ":8443" }, ErrSignature},
		{"another path", func(u *url.URL) { u.Path = "/.pomerium/sign_out" }, ErrSignature},
		{"a slash more", func(u *url.URL) { u.Path += "/" }, ErrSignature},
		{"an escaped slash", func(u *url.URL) { u.RawPath = "/.pomerium%2Fsign_in" }, ErrSignature},
		{"another redirect", set(ParamRedirectURI, "https://evil.example.com/"), ErrSignature},
		{"another parameter of no ours", set("x", "2"), ErrSignature},
		{"a parameter more", extra("y=1"), ErrSignature},
		{"a later expiry", set(ParamExpiry, "1800000301"), ErrSignature},
		{"an earlier issue", set(ParamIssued, "1799999999"), ErrSignature},
		{"a wrong signature", set(ParamSignature, strings.Repeat("A", 43)), ErrSignature},
		{"a short signature", set(ParamSignature, "AAAA"), ErrMalformed},
		{"no signature", set(ParamSignature, ""), ErrMalformed},
		{"the redirect twice", extra("pomerium_redirect_uri=https://evil.example.com/"), ErrMalformed},
		{"the signature twice", extra("pomerium_signature=" + strings.Repeat("A", 43)), ErrMalformed},
		{"a parameter of ours twice, one escaped", extra("%70omerium_redirect_uri=x"), ErrMalformed},
		{"a semicolon", extra("a;b"), ErrMalformed},
		{"a bad escape", extra("a=%zz"), ErrMalformed},
		{"user info", func(u *url.URL) { u.User = url.User("x") }, ErrMalformed},
		{"a fragment", func(u *url.URL) { u.Fragment = "x" }, ErrMalformed},
		{"no host", func(u *url.URL) { u.Host = "" }, ErrMalformed},
		{"no scheme", func(u *url.URL) { u.Scheme = "" }, ErrMalformed},
		{"33 KiB", extra("y=" + strings.Repeat("y", 33<<10)), ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := *made
			tt.change(&u)
			if err := k.VerifyLink(&u, noon); !errors.Is(err, tt.want) {
				t.Errorf("%s: got %v, want %v", &u, err, tt.want)
			}
		})
	}
}

func TestLinkTimes(t *testing.T) {
	k := testKeys(t)
	u := signed(t, k, "https://auth.example.com/", noon, 5*time.Minute)
	tests := []struct {
		name string
		now  time.Time
		want error
	}{
		{"when it was made", noon, nil},
		{"by a clock a minute behind", noon.Add(-Leeway), nil},
		{"by a clock further behind", noon.Add(-Leeway - 1), ErrNotYetValid},
		{"at its expiry", noon.Add(5 * time.Minute), nil},
		{"a minute after", noon.Add(6 * time.Minute), nil},
		{"later than that", noon.Add(6*time.Minute + 1), ErrExpired},
	}
	for _, tt := range tests {
		if err := k.VerifyLink(u, tt.now); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

// A key holder that is not this code may sign any times.
func TestLinkTimesMustMakeSense(t *testing.T) {
	k := testKeys(t)
	for name, times := range map[string][2]string{
		"a life of 16 minutes": {"1800000000", "1800000960"},
		"a life of a century":  {"1800000000", "4800000000"},
		"an overflowing life":  {"1800000000", "9223372036854775807"},
		"a life that wraps":    {"-9223372036854775808", "1800000300"},
		"expiry before issue":  {"1800000000", "1799999999"},
		"no life":              {"1800000000", "1800000000"},
		"no number":            {"now", "1800000300"},
		"no expiry":            {"1800000000", ""},
	} {
		u := parseURL(t, "https://auth.example.com/")
		q := url.Values{ParamIssued: {times[0]}, ParamExpiry: {times[1]}}
		q.Set(ParamSignature, k.link.sign(linkText(u, q)))
		u.RawQuery = q.Encode()
		if err := k.VerifyLink(u, noon); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
}

func TestSignInURL(t *testing.T) {
	k := testKeys(t)
	link := Link{
		Authenticate: parseURL(t, "https://authenticate.example.com:8443"), Redirect: parseURL(t, "https://app.example.com/a?b=c&d#e"),
		IDPID: "idp1", Flow: "id.hash",
	}
	u := parseURL(t, k.SignInURL(link, noon))
	if err := k.VerifyLink(u, noon); err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Del(ParamSignature)
	want := url.Values{
		ParamRedirectURI: {"https://app.example.com/a?b=c&d#e"}, ParamIDPID: {"idp1"}, ParamFlow: {"id.hash"},
		ParamIssued: {"1800000000"}, ParamExpiry: {"1800000300"},
	}
	if diff := cmp.Diff(want, q); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := u.Scheme + "://" + u.Host + u.Path; got != "https://authenticate.example.com:8443/.pomerium/sign_in" {
		t.Errorf("it leads to %s", got)
	}
	link.IDPID = ""
	if u := parseURL(t, k.SignInURL(link, noon)); u.Query().Has(ParamIDPID) {
		t.Errorf("a link for any provider says %s", u)
	}
}

func TestAdditionalHosts(t *testing.T) {
	k := testKeys(t)
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 61)
	for _, hosts := range [][]string{
		nil,
		{"api.example.com"},
		{"api.example.com:8443", "192.0.2.7", "[2001:db8::7]:8443", "a", "x_y.example.com"},
		{long + ":65535"},
	} {
		u := parseURL(t, k.SignInURL(Link{
			Authenticate: parseURL(t, "https://auth.example.com"), Redirect: parseURL(t, "https://app.example.com/"), Flow: "id.hash", AdditionalHosts: hosts,
		}, noon))
		if err := k.VerifyLink(u, noon); err != nil {
			t.Errorf("%q: %v", hosts, err)
		}
		if got, err := AdditionalHosts(u.Query()); !slices.Equal(got, hosts) || err != nil {
			t.Errorf("%q: read back %q, %v", hosts, got, err)
		}
	}
	for _, values := range [][]string{
		{}, {""}, {","}, {"a,"}, {",a"}, {"a", "b"}, {"a,a"}, {"a,b,c,d,e,f"}, {"A"}, {"a b"}, {" a"}, {"a/b"}, {"a?b"}, {"a#b"}, {"u@a"}, {"https://a"},
		{"a:"}, {":1"}, {"a:0"}, {"a:65536"}, {"a:x"}, {"a:1:2"}, {"[::1"}, {"[]"}, {"ä.example"}, {`a\b`}, {"a\r\nb"}, {long + "dd:65535"}, {"*.example.com"},
	} {
		if got, err := AdditionalHosts(url.Values{ParamAdditionalHosts: values}); got != nil || !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: got %q, %v, want ErrMalformed", values, got, err)
		}
	}
}

func FuzzAdditionalHosts(f *testing.F) {
	for _, s := range []string{"a", "a,b:1", "[::1]:8443", "a,b,c,d,e,f", "a:99999", "u@a", "a\x00", "%61"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hosts, err := AdditionalHosts(url.Values{ParamAdditionalHosts: {s}})
		if err != nil {
			return
		}
		if len(hosts) == 0 || len(hosts) > MaxAdditionalHosts || strings.Join(hosts, ",") != s {
			t.Errorf("%q is read as %q", s, hosts)
		}
		for _, host := range hosts {
			if u, err := SafeRedirect("https://"+host+"/", func(h string) bool { return h == strings.TrimSuffix(host, ":443") }); err != nil || u.Path != "/" {
				t.Errorf("%q names the host %q, which leads to %v, %v", s, host, u, err)
			}
		}
	})
}

func TestRound(t *testing.T) {
	k := testKeys(t)
	for ask, want := range map[int]int{-1: 0, 0: 0, 1: 1, 3: 3, 9: 9, 10: 9, 1000: 9} {
		u := parseURL(t, k.SignInURL(Link{
			Authenticate: parseURL(t, "https://auth.example.com"), Redirect: parseURL(t, "https://app.example.com/"), Flow: "id.hash", Round: ask,
		}, noon))
		if got, err := Round(u.Query()); got != want || err != nil {
			t.Errorf("round %d: read back %d, %v, want %d", ask, got, err, want)
		}
		if u.Query().Has(ParamRound) != (want > 0) {
			t.Errorf("round %d: the link is %s", ask, u)
		}
	}
	for _, values := range [][]string{{}, {""}, {"10"}, {"-1"}, {"+1"}, {"01"}, {" 1"}, {"x"}, {"\xff"}, {"1", "1"}} {
		if got, err := Round(url.Values{ParamRound: values}); got != 0 || !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: got %d, %v, want ErrMalformed", values, got, err)
		}
	}
}

func TestMaxAge(t *testing.T) {
	k := testKeys(t)
	for _, tt := range []struct {
		ask     time.Duration
		written string
		want    time.Duration
	}{
		{0, "", 0},
		{-time.Second, "", 0},
		{time.Nanosecond, "1", time.Second},
		{90*time.Second + 999*time.Millisecond, "90", 90 * time.Second},
		{MaxMaxAge, "31536000", MaxMaxAge},
		{MaxMaxAge + time.Hour, "31536000", MaxMaxAge},
	} {
		u := parseURL(t, k.SignInURL(Link{Authenticate: parseURL(t, "https://auth.example.com"), Redirect: parseURL(t, "https://app.example.com/"), IDPID: "idp1", Flow: "id.hash", MaxAge: tt.ask}, noon))
		if err := k.VerifyLink(u, noon); err != nil {
			t.Errorf("%s: %v", tt.ask, err)
		}
		if got := u.Query().Get(ParamMaxAge); got != tt.written || u.Query().Has(ParamMaxAge) != (tt.written != "") {
			t.Errorf("%s: the link says %q, want %q", tt.ask, got, tt.written)
		}
		if got, err := MaxAge(u.Query()); got != tt.want || err != nil {
			t.Errorf("%s: read back %s, %v, want %s", tt.ask, got, err, tt.want)
		}
	}
	u := parseURL(t, k.SignInURL(Link{Authenticate: parseURL(t, "https://auth.example.com"), Redirect: parseURL(t, "https://app.example.com/"), IDPID: "idp1", Flow: "id.hash", MaxAge: time.Hour}, noon))
	for name, changed := range map[string]string{
		"longer": strings.Replace(u.RawQuery, "max_age=3600", "max_age=9600", 1),
		"gone":   strings.Replace(u.RawQuery, "pomerium_max_age=3600&", "", 1),
		"twice":  u.RawQuery + "&pomerium_max_age=9600",
	} {
		forged := *u
		forged.RawQuery = changed
		if err := k.VerifyLink(&forged, noon); err == nil || changed == u.RawQuery {
			t.Errorf("%s: accepted %s", name, forged.RawQuery)
		}
	}
}

func TestMaxAgeRefuses(t *testing.T) {
	for _, values := range [][]string{
		{""}, {"0"}, {"-1"}, {"+1"}, {"01"}, {" 1"}, {"1.5"}, {"1e3"}, {"0x10"}, {"1_0"}, {"5m"}, {"31536001"}, {"9223372036854775808"}, {"1", "1"}, {},
	} {
		if got, err := MaxAge(url.Values{ParamMaxAge: values}); got != 0 || !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: got %s, %v, want ErrMalformed", values, got, err)
		}
	}
}

func FuzzMaxAge(f *testing.F) {
	for _, s := range []string{"1", "3600", "31536000", "31536001", "+1", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := MaxAge(url.Values{ParamMaxAge: {s}})
		if err == nil && (got < time.Second || got > MaxMaxAge || strconv.FormatInt(int64(got/time.Second), 10) != s) {
			t.Errorf("%q is read as %s", s, got)
		}
	})
}

func TestHandoff(t *testing.T) {
	k := testKeys(t)
	want := Handoff{
		SessionToken: "token", Flow: "id.hash", RedirectURI: "https://app.example.com:8443/a?b",
		Hosts: []string{"b.example.com"}, Round: 2, ExpiresAt: noon.Add(LinkLife),
	}
	asked := want
	asked.ExpiresAt = time.Time{}
	link, err := k.HandoffURL(asked, noon)
	if err != nil {
		t.Fatal(err)
	}
	u := parseURL(t, link)
	if err := k.VerifyLink(u, noon); err != nil {
		t.Fatal(err)
	}
	if u.Host != "app.example.com:8443" || u.Path != CallbackPath || u.Query().Get(ParamRedirectURI) != want.RedirectURI {
		t.Errorf("the link is %s", u)
	}
	sealed := u.Query().Get(ParamSessionEncrypted)
	if strings.Contains(link, "token") {
		t.Error("the token can be read")
	}
	got, err := k.OpenHandoff(sealed, noon)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for name, tt := range map[string]struct {
		now  time.Time
		want error
	}{
		"a minute after its expiry": {noon.Add(LinkLife + Leeway), nil},
		"later than that":           {noon.Add(LinkLife + Leeway + 1), ErrExpired},
	} {
		if _, err := k.OpenHandoff(sealed, tt.now); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	asked.Host = "b.example.com"
	if link, err = k.HandoffURL(asked, noon); err != nil || parseURL(t, link).Host != "b.example.com" {
		t.Errorf("for another host: got %s, %v", link, err)
	}
	if _, err := k.OpenHandoff(k.Seal(PurposeHandoff, []byte("{"), nil), noon); !errors.Is(err, ErrMalformed) {
		t.Errorf("broken content: got %v", err)
	}
}

func TestHandoffRefuses(t *testing.T) {
	k := testKeys(t)
	for name, h := range map[string]Handoff{
		"no token":             {Flow: "f", RedirectURI: "https://a.example"},
		"no flow":              {SessionToken: "t", RedirectURI: "https://a.example"},
		"no redirect":          {SessionToken: "t", Flow: "f"},
		"a redirect to a path": {SessionToken: "t", Flow: "f", RedirectURI: "/x"},
		"a script":             {SessionToken: "t", Flow: "f", RedirectURI: "javascript:alert(1)"},
	} {
		if link, err := k.HandoffURL(h, noon); err == nil {
			t.Errorf("%s: made %s", name, link)
		}
	}
	if _, err := k.SealHandoff(Handoff{SessionToken: "t", Flow: "f", RedirectURI: "https://a.example"}); err == nil {
		t.Error("sealed without expiry")
	}
	if _, err := k.SealHandoff(Handoff{SessionToken: "t", Flow: "f", RedirectURI: "https://a.example/" + strings.Repeat("x", MaxRedirect), ExpiresAt: noon}); err == nil {
		t.Error("sealed a redirect URL of more than 8 KiB")
	}
}

func FuzzVerifyLink(f *testing.F) {
	k := testKeys(f)
	made := signed(f, k, "https://auth.example.com/x?a=1", noon, LinkLife)
	f.Add(made.String())
	f.Add("https://auth.example.com/x?pomerium_signature=" + strings.Repeat("A", 43))
	f.Add("https://auth.example.com/x?;&%zz&pomerium_issued=1&pomerium_issued=2")
	want := linkText(made, made.Query())
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil {
			return
		}
		if k.VerifyLink(u, noon) == nil && linkText(u, u.Query()) != want {
			t.Errorf("accepted %q", raw)
		}
	})
}
