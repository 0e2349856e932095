package signin

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRounds(t *testing.T) {
	// sent is the Cookie header of a browser that was given the cookie.
	sent := func(n int, at time.Time) string {
		c := RoundCookie("_pomerium", n, at)
		return c.Name + "=" + c.Value
	}
	tests := []struct {
		name    string
		cookies []string
		want    int
	}{
		{"no cookie", nil, 0},
		{"other cookies", []string{"_pomerium=a; __Host-other_round=3.1800000000"}, 0},
		{"the first round", []string{sent(0, noon)}, 0},
		{"the third round", []string{sent(3, noon)}, 3},
		{"among others", []string{"a=b; " + sent(2, noon) + "; c=d"}, 2},
		{"in two headers", []string{sent(2, noon), sent(4, noon)}, 4},
		{"more than we count", []string{sent(10, noon)}, 9},
		{"less than nothing", []string{sent(-1, noon)}, 0},
		{"almost a minute ago", []string{sent(3, noon.Add(time.Second-RoundLife))}, 3},
		{"a minute ago", []string{sent(3, noon.Add(-RoundLife))}, 0},
		{"a clock that is ahead", []string{sent(3, noon.Add(Leeway))}, 3},
		{"far in the future", []string{sent(3, noon.Add(Leeway+time.Second))}, 0},
		{"a stale one beside a live one", []string{sent(5, noon.Add(-time.Hour)) + "; " + sent(1, noon)}, 1},
		{"two digits", []string{"__Host-_pomerium_round=1800000000.10"}, 0},
		{"no digit", []string{"__Host-_pomerium_round=1800000000.x"}, 0},
		{"no count", []string{"__Host-_pomerium_round=1800000000"}, 0},
		{"no time", []string{"__Host-_pomerium_round=.3"}, 0},
		{"a negative time", []string{"__Host-_pomerium_round=-1.3"}, 0},
		{"another cookie_name", []string{strings.Replace(sent(3, noon), "_pomerium", "_other", 1)}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Rounds("_pomerium", tt.cookies, noon); got != tt.want {
				t.Errorf("%q: got %d, want %d", tt.cookies, got, tt.want)
			}
		})
	}
}

func TestRoundCookie(t *testing.T) {
	c := RoundCookie("_pomerium", 2, noon)
	want := fmt.Sprintf("__Host-_pomerium_round=%d.2; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Lax", noon.Unix())
	if c.String() != want {
		t.Errorf("got %s, want %s", c, want)
	}
	if rest, changed := StripCookies("_pomerium", "a=1; "+c.Name+"="+c.Value+"; b=2"); rest != "a=1; b=2" || !changed {
		t.Errorf("an upstream gets %q", rest)
	}
	if c.SameSite != http.SameSiteLaxMode {
		t.Error("it does not come back from another site")
	}
}

func FuzzRounds(f *testing.F) {
	for _, s := range []string{"__Host-_pomerium_round=1800000000.3", "__Host-_pomerium_round=1800000000.10; _round", "_round=;;__Host-_pomerium_round"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if n := Rounds("_pomerium", []string{header, header}, noon); n < 0 || n > MaxRound {
			t.Errorf("%q counts %d", header, n)
		}
	})
}
