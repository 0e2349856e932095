package signin

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newFlow(t testing.TB, at time.Time) Flow {
	t.Helper()
	f, err := NewFlow(rand.Reader, at)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// sent is what a browser makes of cookies.
func sent(cookies ...*http.Cookie) []string {
	var pairs []string
	for _, c := range cookies {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return []string{strings.Join(pairs, "; ")}
}

func TestFlowCookie(t *testing.T) {
	f, err := NewFlow(bytes.NewReader(make([]byte, 64)), noon)
	if err != nil {
		t.Fatal(err)
	}
	got := f.Cookie("_pomerium").String()
	want := "__Host-_pomerium_flow_AAAAAAAAAAAA=1800000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA; Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if strings.Contains(f.Hash(), f.Nonce) {
		t.Error("the hash gives the nonce away")
	}
	if _, err := NewFlow(iotest.ErrReader(errors.New("no entropy")), noon); err == nil {
		t.Error("made a flow without randomness")
	}
}

func TestMatchFlow(t *testing.T) {
	mine, other := newFlow(t, noon), newFlow(t, noon)
	forged := Flow{ID: mine.ID, Nonce: other.Nonce, StartedAt: noon}
	tests := []struct {
		name    string
		cookies []string
		flow    string
		now     time.Time
		want    bool
	}{
		{"the browser that began it", sent(mine.Cookie("_pomerium")), mine.Hash(), noon, true},
		{"among other flows", sent(other.Cookie("_pomerium"), mine.Cookie("_pomerium")), mine.Hash(), noon, true},
		{"in the last second", sent(mine.Cookie("_pomerium")), mine.Hash(), noon.Add(FlowLife - time.Second), true},
		{"beside a cookie somebody else planted", sent(forged.Cookie("_pomerium"), mine.Cookie("_pomerium")), mine.Hash(), noon, true},
		{"too late", sent(mine.Cookie("_pomerium")), mine.Hash(), noon.Add(FlowLife), false},
		{"from the future", sent(mine.Cookie("_pomerium")), mine.Hash(), noon.Add(-2 * time.Minute), false},
		{"another browser, without cookies", nil, mine.Hash(), noon, false},
		{"another browser, with its own flow", sent(other.Cookie("_pomerium")), mine.Hash(), noon, false},
		{"the right id, another nonce", sent(forged.Cookie("_pomerium")), mine.Hash(), noon, false},
		{"another cookie name", sent(mine.Cookie("_other")), mine.Hash(), noon, false},
		{"the hash in the cookie", []string{"__Host-_pomerium_flow_" + mine.ID + "=1800000000." + mine.Hash()}, mine.Hash(), noon, false},
		{"no flow", sent(mine.Cookie("_pomerium")), "", noon, false},
		{"an id without a hash", sent(mine.Cookie("_pomerium")), mine.ID, noon, false},
		{"an id with an empty hash", sent(mine.Cookie("_pomerium")), mine.ID + ".", noon, false},
		{"an empty id", []string{"__Host-_pomerium_flow_=1800000000.x"}, ".", noon, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := MatchFlow("_pomerium", tt.cookies, tt.flow, tt.now); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestEndFlow(t *testing.T) {
	f := newFlow(t, noon)
	c := EndFlow("_pomerium", f.Hash())
	if c == nil || c.Name != f.Cookie("_pomerium").Name || c.MaxAge >= 0 || c.Path != "/" || !c.Secure {
		t.Errorf("got %v", c)
	}
	for _, flow := range []string{"", "x", "x;y." + strings.Repeat("A", 43), strings.Repeat("x", 65) + "." + strings.Repeat("A", 43)} {
		if c := EndFlow("_pomerium", flow); c != nil {
			t.Errorf("%q deletes %v", flow, c)
		}
	}
}

func names(cookies []*http.Cookie) (names []string) {
	for _, c := range cookies {
		names = append(names, strings.TrimPrefix(c.Name, "__Host-_pomerium_flow_"))
	}
	return names
}

func TestStaleFlows(t *testing.T) {
	flow := func(id string, age time.Duration) *http.Cookie {
		return Flow{ID: id, Nonce: "n", StartedAt: noon.Add(-age)}.Cookie("_pomerium")
	}
	broken := flow("broken", 0)
	broken.Value = "x"
	tests := []struct {
		name    string
		cookies []string
		keep    int
		want    []string
	}{
		{"none", nil, 2, nil},
		{"as many as are kept", sent(flow("a", 1), flow("b", 2)), 2, nil},
		{"the oldest go first", sent(flow("a", time.Second), flow("b", 3*time.Second), flow("c", 2*time.Second)), 1, []string{"b", "c"}},
		{"what is over goes", sent(flow("a", 0), flow("b", FlowLife)), 2, []string{"b"}},
		{"what is from the future goes", sent(flow("a", -time.Hour)), 2, []string{"a"}},
		{"what is broken goes", sent(broken, flow("a", 0)), 2, []string{"broken"}},
		{"a repeated one goes once", sent(flow("a", FlowLife), flow("a", FlowLife)), 2, []string{"a"}},
		{"a name that we did not give stays", []string{"__Host-_pomerium_flow_a b=x; __Host-_pomerium_flow_=y"}, 0, nil},
		{"nothing is kept", sent(flow("a", 0)), 0, []string{"a"}},
		{"less than nothing is kept", sent(flow("a", 0)), -1, []string{"a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, names(StaleFlows("_pomerium", tt.cookies, noon, tt.keep))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPendingFlowsAreBounded(t *testing.T) {
	jar := map[string]*http.Cookie{}
	for i := range 500 {
		now := noon.Add(time.Duration(i) * 10 * time.Millisecond)
		var have []*http.Cookie
		for _, c := range jar {
			have = append(have, c)
		}
		for _, c := range StaleFlows("_pomerium", sent(have...), now, MaxPending-1) {
			delete(jar, c.Name)
		}
		c := newFlow(t, now).Cookie("_pomerium")
		jar[c.Name] = c
		if len(jar) > MaxPending {
			t.Fatalf("%d flows are under way", len(jar))
		}
	}
	var many []*http.Cookie
	for i := range 1000 {
		many = append(many, Flow{ID: fmt.Sprint(i), Nonce: "n", StartedAt: noon}.Cookie("_pomerium"))
	}
	if got := len(StaleFlows("_pomerium", sent(many...), noon, MaxPending)); got != maxDeletions {
		t.Errorf("one response deletes %d", got)
	}
}

func TestPendingSignIn(t *testing.T) {
	c := PendingSignIn("_pomerium", "abc", "sealed", noon)
	want := "__Host-_pomerium_signin_abc=1800000000.sealed; Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
	if c.String() != want {
		t.Errorf("got  %s\nwant %s", c, want)
	}
	if got := PendingSignIns("_pomerium", "abc", sent(c), noon); !slices.Equal(got, []string{"sealed"}) {
		t.Errorf("got %v", got)
	}
	planted := PendingSignIn("_pomerium", "abc", "other", noon)
	if got := PendingSignIns("_pomerium", "abc", sent(planted, c), noon); !slices.Equal(got, []string{"other", "sealed"}) {
		t.Errorf("with a planted one: got %v", got)
	}
	for name, got := range map[string][]string{
		"too late":     PendingSignIns("_pomerium", "abc", sent(c), noon.Add(FlowLife)),
		"another id":   PendingSignIns("_pomerium", "abd", sent(c), noon),
		"no id":        PendingSignIns("_pomerium", "", sent(c), noon),
		"another name": PendingSignIns("_other", "abc", sent(c), noon),
	} {
		if got != nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if got := StaleSignIns("_pomerium", sent(c), noon, 0); len(got) != 1 || got[0].Name != c.Name || got[0].Name != EndSignIn("_pomerium", "abc").Name {
		t.Errorf("stale: %v", got)
	}
	if got := AuthenticateCookieName("_pomerium"); got != "__Host-_pomerium_authenticate" {
		t.Errorf("the authenticate cookie is %s", got)
	}
}

func FuzzMatchFlow(f *testing.F) {
	flow := newFlow(f, noon)
	f.Add(sent(flow.Cookie("_pomerium"))[0], flow.Hash())
	f.Add("__Host-_pomerium_flow_a=1800000000.b", "a.b")
	f.Fuzz(func(t *testing.T, header, hash string) {
		if MatchFlow("_pomerium", []string{header}, hash, noon) && EndFlow("_pomerium", hash).Valid() != nil {
			t.Errorf("%q matches %q", hash, header)
		}
	})
}
