package config

import (
	"regexp"
	"strings"
	"testing"
)

func TestWildPath(t *testing.T) {
	for _, test := range []struct{ name, expr, prefix, want string }{
		{"a wildcard reaches below the prefix", `/.*\.js`, "/admin/", "/admin/.js"},
		{"a wildcard ends inside the prefix", `/[a-z]+/x/y`, "/admin/", "/admin/x/y"},
		{"a class of digits", `/v[0-9]+/.*`, "/v1/admin/", "/v1/admin/"},
		{"one of several branches", `/(static|.*/public)/x`, "/admin/", "/admin/public/x"},
		{"a prefix that is spelled out", `/admin/.*\.js`, "/admin/", ""},
		{"in one branch of several", `/(api|admin)/.*`, "/admin/", ""},
		{"in either case", `(?i)/admin/.*`, "/admin/", ""},
		{"by classes of two", `/[Aa]dmin/.*`, "/admin/", ""},
		{"spelled out and reached by a wildcard", `/(admin|[a-z]+)/.*`, "/admin/", ""},
		{"the other way round", `/([a-z]+|admin)/.*`, "/admin/", ""},
		{"a prefix that is out of reach", `/[a-z]+\.js`, "/admin/", ""},
		{"an anchor in the way", `/.*$x`, "/admin/", ""},
		{"anchors at the ends", `^/.*\.js$`, "/admin/", "/admin/.js"},
		{"other letters", `/[^/]+/é+`, "/admin", "/admin/é"},
		{"an expression that matches nothing", `/.*[^\x00-\x{10FFFF}]`, "/admin/", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			work := mostWork
			if got := newExpression(test.expr).wildPath(test.prefix, &work); got != test.want {
				t.Errorf("%s below %s: got %q, want %q", test.expr, test.prefix, got, test.want)
			}
			if work == mostWork {
				t.Error("it cost nothing")
			}
		})
	}
	work := 20
	if got := newExpression(`/.*\.js`).wildPath("/admin/", &work); got != "" || work >= 0 {
		t.Errorf("beyond its bound: got %q with %d left", got, work)
	}
	if newExpression("(") != nil || newExpression(`(?:(?:a{100}){100})`) != nil {
		t.Error("an expression without bounds")
	}
}

// FuzzWildPath holds that what is found begins with the prefix and matches.
func FuzzWildPath(f *testing.F) {
	f.Add(`/.*\.js`, "/admin/")
	f.Add(`/([a-z0-9/]{1,30}|.{1,40}y){1,10}/x`, "/abc/")
	f.Add(`(?i)\b/(\pL|^$)*\xff`, "/é\xff")
	f.Fuzz(func(t *testing.T, expr, prefix string) {
		e := newExpression(expr)
		if e == nil {
			return
		}
		work := 100_000
		path := e.wildPath(prefix, &work)
		if path == "" {
			return
		}
		if !strings.HasPrefix(path, prefix) || !regexp.MustCompile("^(?:"+expr+")$").MatchString(path) {
			t.Errorf("%q below %q: %q", expr, prefix, path)
		}
	})
}
