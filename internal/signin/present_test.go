package signin

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPresent(t *testing.T) {
	long := strings.Repeat("x", MaxToken+1)
	cookie := func(tokens ...string) (found []Presented) {
		for _, t := range tokens {
			found = append(found, Presented{sessionHeader + t, SourceCookie})
		}
		return found
	}
	tests := []struct {
		name                   string
		cookies                []string
		xPomerium, auth, query string
		want                   []Presented
	}{
		{name: "nothing"},
		{name: "one cookie", cookies: []string{"_pomerium=@a"}, want: cookie("a")},
		{name: "among others", cookies: []string{"x=1; _pomerium=@a; y=2"}, want: cookie("a")},
		{name: "without spaces", cookies: []string{"x=1;_pomerium=@a;y=2"}, want: cookie("a")},
		{name: "with tabs and spaces", cookies: []string{"x=1;\t _pomerium = @a\t;y=2"}, want: cookie("a")},
		{name: "in quotes", cookies: []string{`_pomerium="@a"`}, want: cookie("a")},
		{name: "half a quote", cookies: []string{`_pomerium="`}},
		{name: "empty quotes", cookies: []string{`_pomerium=""`}},
		{name: "no token of ours", cookies: []string{"_pomerium=a"}},
		{name: "twice", cookies: []string{"_pomerium=@a; _pomerium=@b"}, want: cookie("a", "b")},
		{name: "in two headers", cookies: []string{"_pomerium=@a", "x=1; _pomerium=@b"}, want: cookie("a", "b")},
		{name: "ten times the same", cookies: []string{strings.Repeat("_pomerium=@a;", 10)}, want: cookie("a")},
		{name: "behind copies", cookies: []string{strings.Repeat("_pomerium=@a;", 10) + "_pomerium=@b"}, want: cookie("a", "b")},
		{name: "behind junk", cookies: []string{strings.Repeat("_pomerium=x;", 10) + "_pomerium=@b"}, want: cookie("b")},
		{name: "five", cookies: []string{"_pomerium=@a;_pomerium=@b;_pomerium=@c;_pomerium=@d;_pomerium=@e"}, want: cookie("a", "b", "c", "d", "e")},
		{name: "more than a browser has", cookies: []string{"_pomerium=@a;_pomerium=@b;_pomerium=@c;_pomerium=@d;_pomerium=@e;_pomerium=@f"}},
		{name: "with an equals sign", cookies: []string{"_pomerium=@a=b"}, want: cookie("a=b")},
		{name: "empty", cookies: []string{"_pomerium=; _pomerium"}},
		{name: "too long", cookies: []string{"_pomerium=@" + long + "; _pomerium=@a"}, want: cookie("a")},
		{name: "another case is another cookie", cookies: []string{"_Pomerium=a"}},
		{name: "names like ours", cookies: []string{"x_pomerium=a; _pomerium2=b; __Host-_pomerium_authenticate=c"}},
		{name: "broken", cookies: []string{";;=;==; ;\x00\xff=;,"}},
		{name: "the header", xPomerium: " a ", want: []Presented{{"a", SourceXPomeriumAuthorization}}},
		{name: "Pomerium", auth: "Pomerium a", want: []Presented{{"a", SourceAuthorizationPomerium}}},
		{name: "pomerium, with spaces", auth: "  pomerium   a ", want: []Presented{{"a", SourceAuthorizationPomerium}}},
		{name: "Pomerium and nothing", auth: "Pomerium "},
		{name: "Bearer Pomerium-", auth: "Bearer Pomerium-a", want: []Presented{{"a", SourceBearerPomerium}}},
		{name: "bearer pomerium-", auth: "bearer pomerium-a", want: []Presented{{"a", SourceBearerPomerium}}},
		{name: "Bearer Pomerium- and nothing", auth: "Bearer Pomerium-"},
		{name: "Bearer and a token of ours", auth: "Bearer @a", want: []Presented{{sessionHeader + "a", SourceBearer}}},
		{name: "bearer, with spaces, and an account's", auth: " bearer   " + accountHeader + "a ", want: []Presented{{accountHeader + "a", SourceBearer}}},
		{name: "a token of ours behind another word", auth: "Bearer x @a"},
		{name: "a token of ours that is too long", auth: "Bearer @" + long},
		{name: "somebody else's bearer token", auth: "Bearer a"},
		{name: "Basic", auth: "Basic YTpi"},
		{name: "a word", auth: "Pomerium"},
		{name: "the query", query: "a=b&pomerium_session=c", want: []Presented{{"c", SourceQuery}}},
		{name: "an escaped query", query: "%70omerium_session=%63", want: []Presented{{"c", SourceQuery}}},
		{name: "the first of the query", query: "pomerium_session=c&pomerium_session=d", want: []Presented{{"c", SourceQuery}}},
		{name: "a broken query", query: "pomerium_session=%zz&%zz=1&&="},
		{
			name:    "all, in order",
			cookies: []string{"_pomerium=@a"}, xPomerium: "b", auth: "Pomerium c", query: "pomerium_session=d",
			want: []Presented{
				{sessionHeader + "a", SourceCookie}, {"b", SourceXPomeriumAuthorization}, {"c", SourceAuthorizationPomerium}, {"d", SourceQuery},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i, header := range tt.cookies { // @ stands for the beginning of a token
				tt.cookies[i] = strings.ReplaceAll(header, "@", sessionHeader)
			}
			tt.auth = strings.ReplaceAll(tt.auth, "@", sessionHeader)
			got := Present("_pomerium", tt.cookies, tt.xPomerium, tt.auth, tt.query)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestCookiesDoNotCrowdOutHeaders(t *testing.T) {
	var cookies strings.Builder
	for i := range maxValues {
		fmt.Fprintf(&cookies, "_pomerium=%s%d;", sessionHeader, i)
	}
	got := Present("_pomerium", []string{cookies.String()}, "b", "Bearer Pomerium-c", "pomerium_session=d")
	if len(got) != MaxPresented || got[len(got)-3].Token != "b" || got[len(got)-1].Token != "d" {
		t.Errorf("got %v", got)
	}
}

func TestChoose(t *testing.T) {
	cookie := func(token string) Presented { return Presented{token, SourceCookie} }
	header := func(token string) Presented { return Presented{token, SourceBearer} }
	broken := errors.New("broken")
	// Tokens stand for the person whose name they begin with; - for nobody.
	open := func(p Presented) (*string, error) {
		name, _, _ := strings.Cut(p.Token, "/")
		switch name {
		case "-":
			return nil, nil
		case "broken":
			return nil, broken
		}
		return &name, nil
	}
	tests := []struct {
		name  string
		found []Presented
		want  string
		err   error
	}{
		{"nothing", nil, "", nil},
		{"a cookie", []Presented{cookie("ana")}, "ana", nil},
		{"a header", []Presented{header("ana")}, "ana", nil},
		{"a bad cookie before a good one", []Presented{cookie("-"), cookie("ana")}, "ana", nil},
		{"two cookies of one person", []Presented{cookie("ana/1"), cookie("ana/2")}, "ana", nil},
		{"two cookies of two people", []Presented{cookie("ana"), cookie("bob")}, "", nil},
		{"three cookies of two people", []Presented{cookie("ana"), cookie("bob"), cookie("ana")}, "", nil},
		{"a cookie before a header", []Presented{cookie("ana"), header("bob")}, "ana", nil},
		{"a bad cookie before a header", []Presented{cookie("-"), header("bob")}, "bob", nil},
		{"a quarrel before a header", []Presented{cookie("ana"), cookie("bob"), header("cy")}, "cy", nil},
		{"a quarrel before a bad header", []Presented{cookie("ana"), cookie("bob"), header("-")}, "", nil},
		{"two headers", []Presented{header("-"), header("bob"), header("cy")}, "bob", nil},
		{"a cookie that cannot be looked up", []Presented{cookie("broken"), cookie("ana")}, "", broken},
		{"a good cookie before one that cannot", []Presented{cookie("ana"), cookie("broken")}, "", broken},
		{"a good cookie before a header that cannot", []Presented{cookie("ana"), header("broken")}, "ana", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			who, err := Choose(tt.found, open, func(name *string) string { return *name })
			got := ""
			if who != nil {
				got = *who
			}
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestBearerToken(t *testing.T) {
	k := testKeys(t)
	for header, want := range map[string]struct {
		token string
		ok    bool
	}{
		"":                            {"", false},
		"Basic YTpi":                  {"", false},
		"Bearerx abc":                 {"", false},
		"Pomerium abc":                {"", false},
		"Bearer Pomerium-abc":         {"", false},
		"Bearer a, Pomerium abc":      {"", false},
		"Bearer " + mintSession(t, k): {"", false},
		"bearer " + mintAccount(t, k): {"", false},
		"Bearer aB0-._~+/==":          {"aB0-._~+/==", true},
		"  bearer \t abc ":            {"abc", true},
		"Bearer":                      {"", true},
		"Bearer a b":                  {"", true},
		"Bearer a,Basic b":            {"", true},
		"Bearer \"a\"":                {"", true},
		"Bearer ä":                    {"", true},
		"Bearer " + strings.Repeat("x", maxBearer):   {strings.Repeat("x", maxBearer), true},
		"Bearer " + strings.Repeat("x", maxBearer+1): {"", true},
	} {
		if token, ok := BearerToken(header); token != want.token || ok != want.ok {
			t.Errorf("%.100q: got %.100q, %v, want %.100q, %v", header, token, ok, want.token, want.ok)
		}
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"Bearer abc", "Pomerium abc", "bearer Pomerium-abc", "Bearer " + sessionHeader + "a.b", "Basic a, Bearer b", "Bearer\t\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		found := Present("_pomerium", nil, "", header, "")
		token, ok := BearerToken(header)
		if len(found) > 0 && (ok || !OwnAuthorization(header)) {
			t.Errorf("%q is ours (%v) and would be read or passed on as somebody else's (%q)", header, found, token)
		}
		if strings.ContainsAny(token, " ,;\t\r\n") || token != "" && !ok {
			t.Errorf("%q gives the token %q", header, token)
		}
	})
}

func TestStripCookies(t *testing.T) {
	tests := []struct {
		name, header, want string
		changed            bool
	}{
		{"nothing", "", "", false},
		{"others only", "a=1;b=2 ;  c", "a=1;b=2 ;  c", false},
		{"ours only", "_pomerium=x", "", true},
		{"ours first", "_pomerium=x; a=1", "a=1", true},
		{"ours in the middle", "a=1; _pomerium=x; b=2", "a=1; b=2", true},
		{"ours twice", "_pomerium=x; a=1; _pomerium=y", "a=1", true},
		{"ours in quotes that hold a semicolon", `a=1; _pomerium="x;y"; b=2`, `a=1; y"; b=2`, true},
		{"ours inside another's quotes", `a="1; _pomerium=x"; b=2`, `a="1; b=2`, true},
		{"ours with odd spaces", "a=1;\t_pomerium =x;b=2", "a=1; b=2", true},
		{"ours without a value", "_pomerium; a=1", "a=1", true},
		{"the count of rounds", "__Host-_pomerium_round=x; a=1", "a=1", true},
		{"sign-ins under way", "__Host-_pomerium_flow_abc=x; a=1; __Host-_pomerium_signin_abc=y; __Host-_pomerium_authenticate=z", "a=1", true},
		{"names like ours", "_pomerium2=x; my_pomerium=y; __Host-_pomerium_other=z; _pomerium_flow_x=1",
			"_pomerium2=x; my_pomerium=y; __Host-_pomerium_other=z; _pomerium_flow_x=1", false},
		{"our name as a value", "a=_pomerium", "a=_pomerium", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, changed := StripCookies("_pomerium", tt.header)
			if got != tt.want || changed != tt.changed {
				t.Errorf("got %q, %v, want %q, %v", got, changed, tt.want, tt.changed)
			}
		})
	}
}

func TestOwnAuthorization(t *testing.T) {
	k := testKeys(t)
	for value, want := range map[string]bool{
		"":                                 false,
		"Basic YTpi":                       false,
		"Bearer abc":                       false,
		"Bearer eyJhbGciOiJSUzI1NiJ9.e30.": false,
		"Pomerium":                         true,
		"Pomerium abc":                     true,
		"POMERIUM\tabc":                    true,
		"  pomerium abc":                   true,
		"Bearer Pomerium-abc":              true,
		"bearer   POMERIUM-abc":            true,
		"Basic YTpi, Bearer Pomerium-abc":  true,
		"Basic YTpi,Pomerium abc":          true,
		"Bearer " + mintSession(t, k):      true,
		"bearer " + mintAccount(t, k):      true,
		"PomeriumX abc":                    false,
		"Bearer xPomerium-abc":             false,
	} {
		if got := OwnAuthorization(value); got != want {
			t.Errorf("%q: got %v", value, got)
		}
	}
}

func TestStripQuery(t *testing.T) {
	tests := []struct {
		name, query, want string
		changed           bool
	}{
		{"nothing", "", "", false},
		{"others", "a=1&&b;c=%zz&", "a=1&&b;c=%zz&", false},
		{"ours", "pomerium_session=x", "", true},
		{"ours among others", "a=1&pomerium_session=x&b=2", "a=1&b=2", true},
		{"ours first", "pomerium_session=x&b=2", "b=2", true},
		{"ours last, twice", "a=1&pomerium_session=x&pomerium_session=y", "a=1", true},
		{"ours without a value", "pomerium_session&a", "a", true},
		{"ours escaped", "a=1&%70omerium%5Fsession=x", "a=1", true},
		{"ours after a semicolon", "a=1;pomerium_session=x;b=2", "a=1;b=2", true},
		{"the rest keeps its spelling", "&a=%7e+1&pomerium_session=x&&b", "&a=%7e+1&&b", true},
		{"names like ours", "pomerium_session2=x&xpomerium_session=y", "pomerium_session2=x&xpomerium_session=y", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, changed := StripQuery(tt.query)
			if got != tt.want || changed != tt.changed {
				t.Errorf("got %q, %v, want %q, %v", got, changed, tt.want, tt.changed)
			}
		})
	}
}

func FuzzCookies(f *testing.F) {
	for _, s := range []string{
		"", "_pomerium=a", `_pomerium="a;b"; x=1`, "__Host-_pomerium_flow_x=1.y;;=", ";_pomerium", strings.Repeat("_pomerium=a;", 700),
		"_pomerium=\x80\xff", "a=b, _pomerium=c", "__Host-_pomerium_flow_x=1800000000.y; __Host-_pomerium_flow_\r\n=z",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		found := Present("_pomerium", []string{header, header}, "", "", "")
		if len(found) > maxValues {
			t.Errorf("%d tokens in %q", len(found), header)
		}
		rest, changed := StripCookies("_pomerium", header)
		if !changed && rest != header {
			t.Errorf("%q became %q unasked", header, rest)
		}
		if left := Present("_pomerium", []string{rest}, "", "", ""); len(left) > 0 {
			t.Errorf("%q leaves %v", header, left)
		}
		if len(rest) > len(header)+strings.Count(header, ";") {
			t.Errorf("%q grew to %q", header, rest)
		}
		for _, c := range StaleFlows("_pomerium", []string{header}, noon, 0) {
			if c.Valid() != nil {
				t.Errorf("%q gives the cookie %q", header, c)
			}
		}
	})
}

func FuzzStripQuery(f *testing.F) {
	f.Add("a=1&pomerium_session=x;b")
	f.Add("%70omerium_session=%zz&&")
	f.Fuzz(func(t *testing.T, query string) {
		rest, changed := StripQuery(query)
		if again, twice := StripQuery(rest); twice || again != rest || !changed && rest != query {
			t.Errorf("%q gives %q, then %q", query, rest, again)
		}
		values, _ := url.ParseQuery(rest)
		if values.Has(ParamSession) {
			t.Errorf("%q leaves %q", query, rest)
		}
	})
}

func BenchmarkPresent(b *testing.B) {
	k := testKeys(b)
	token := mintSession(b, k)
	for name, cookies := range map[string][]string{
		"cookie": {fmt.Sprintf("theme=dark; _ga=GA1.1.1234; _pomerium=%s; x=y", token)},
		"none":   {"theme=dark; _ga=GA1.1.1234; x=y"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = Present("_pomerium", cookies, "", "Basic abc", "a=b&c=d")
			}
		})
	}
}

func BenchmarkStripCookies(b *testing.B) {
	k := testKeys(b)
	header := fmt.Sprintf("theme=dark; _ga=GA1.1.1234; _pomerium=%s; x=y", mintSession(b, k))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = StripCookies("_pomerium", header)
	}
}

func TestSourcesAreOrdered(t *testing.T) {
	all := []Source{SourceCookie, SourceXPomeriumAuthorization, SourceAuthorizationPomerium, SourceBearerPomerium, SourceBearer, SourceQuery}
	if !slices.IsSorted(all) {
		t.Error("the sources are not in the order of trying")
	}
}
