package authz

import (
	"testing"
	"time"

	"github.com/countersign/countersign/policy"
)

// TestWhatPoliciesSee holds that each part of a request arrives in the policy
// that reads it, and only as it was sent.
func TestWhatPoliciesSee(t *testing.T) {
	type part struct {
		policy, path string
		headers      []string
		want         int
	}
	tests := map[string]part{
		"a header":                      {"header/x-team: red", "/", []string{"X-Team: red"}, 200},
		"another value":                 {"header/x-team: red", "/", []string{"x-team: blue"}, 403},
		"one value of two":              {"header/x-team: red", "/", []string{"x-team: red", "x-team: red"}, 200},
		"two values, of which one fits": {"header/x-team: red", "/", []string{"x-team: blue", "x-team: red"}, 403},
		"a header that was not sent":    {"header/x-team: {not: red}", "/", nil, 403},
		"a user agent":                  {"user_agent: {contains: curl}", "/", []string{"user-agent: curl/8"}, 200},
		"a parameter":                   {"query/tab: a b", "/?x=1&tab=a%20b", nil, 200},
		"another parameter":             {"query/tab: a", "/?tap=a", nil, 403},
		"a parameter in the fragment":   {"query/tab: a", "/#?tab=a", nil, 403},
		"our token is no parameter":     {"query/pomerium_session: x", "/?pomerium_session=x", nil, 403},
		"parameters beside our token":   {"query/tab: a", "/?pomerium_session=x&tab=a", nil, 200},
		"a semicolon":                   {"query/tab: a", "/?tab=a&b;c", nil, 403},
		"a bad escape":                  {"query/tab: a", "/?tab=a&b=%4", nil, 403},
		"a bad escape of another digit": {"query/tab: a", "/?tab=a&b=%4g", nil, 403},
		"a bad escape nobody reads":     {"http_method: GET", "/?tab=a&b=%4g", nil, 200},
		"the time":                      {"time_of_day: {timezone: UTC, after: '11:59', before: '12:01'}", "/", nil, 200},
		"another time":                  {"time_of_day: {timezone: UTC, after: '12:01'}", "/", nil, 403},
		"the date":                      {"date: {after: 2026-11-22}", "/", nil, 200},
		"the day":                       {"day_of_week: sun", "/", nil, 200},
	}
	routes := map[string]routeDef{}
	for name, tt := range tests {
		routes[name] = routeDef{"allow: {and: [{" + tt.policy + "}]}", false}
	}
	w := newWorld(t, nil, routes)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for range 2 { // what is remembered is the same
				if r := w.check(call(name, "GET", tt.path, tt.headers...)); r.status != tt.want {
					t.Errorf("status %d, want %d", r.status, tt.want)
				}
			}
		})
	}
	p := w.server.published.Load()
	r := fromProto(call("a header", "GET", "/", "x-team: red"))
	r.Source = "203.0.113.7"
	in := &policy.Input{}
	if n := testing.AllocsPerRun(100, func() {
		if v, err := w.server.verdict(t.Context(), p.route("a header").from, p.route("a header").judge, nil, r, noon, in); err != nil || v.effect != policy.Allow {
			t.Error(v, err)
		}
	}); n > 0 {
		t.Errorf("a remembered decision about a header takes %v allocations", n)
	}
	w.clock.Advance(time.Hour)
	for _, name := range []string{"the time", "another time"} {
		want := 200 + 403 - tests[name].want // the other one
		if r := w.check(call(name, "GET", "/")); r.status != want {
			t.Errorf("%s, an hour later: status %d, want %d", name, r.status, want)
		}
	}
}
