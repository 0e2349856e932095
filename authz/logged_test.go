package authz

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// lines are the decisions that the log has.
func (w *world) lines() []*LoggedCheck {
	w.t.Helper()
	var checks []*LoggedCheck
	for line := range strings.Lines(w.log.String()) {
		c, err := ParseCheck([]byte(line))
		if err != nil {
			w.t.Fatalf("%s: %v", line, err)
		}
		checks = append(checks, c)
	}
	return checks
}

// withTimes has the log's lines their times.
func (w *world) withTimes() {
	w.server.log = slog.New(slog.NewJSONHandler(w.log, nil))
	w.publish()
}

// TestTheLogIsEnoughToDecideAgain holds that of every line whose policy reads
// only what the log holds the same decision can be made again.
func TestTheLogIsEnoughToDecideAgain(t *testing.T) {
	c := newCasino(t, 99)
	c.withTimes()
	ctx := context.Background()
	again := 0
	for range 60 {
		c.happen()
		c.catchUp()
		c.log.buf.Reset()
		for range 20 {
			c.server.check(ctx, c.request())
		}
		for _, line := range c.lines() {
			j := c.server.published.Load().route(line.RouteID).judge
			if line.Policy != j.name {
				t.Fatalf("policy %s, want %s", line.Policy, j.name)
			}
			if len(line.Unknown(j.reads)) > 0 {
				continue
			}
			again++
			d, err := j.evaluator.Evaluate(ctx, line.Input())
			if err != nil {
				t.Fatal(err)
			}
			v := newVerdict(d)
			if got := decide(&route{}, v, nil).String(); got != line.Outcome || v.line != line.Line ||
				!slices.Equal(split(v.allowed), line.Allow) || !slices.Equal(split(v.denied), line.Deny) {
				t.Fatalf("line %+v\nagain %s %+v\npolicy %v", line, got, v, j.evaluator.Rules())
			}
		}
	}
	if again < 200 {
		t.Errorf("only %d decisions could be made again", again)
	}
}

func TestWhatTheLogHolds(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Routes = append(c.Routes, &config.Route{ID: "b", Name: "b", Policy: parsePolicy(t,
			`allow: {or: [{groups: staff}, {claim/department: eng}, {claim/a.b: x}]}`)})
	}, nil)
	w.withTimes()
	token := w.session("alice", "alice@example.com", map[string]any{
		"groups": []any{"staff", "eng"}, "a": map[string]any{"b": []any{"x", 1.5, true}}, "secret": "s3cret", "auth_time": float64(noon.Unix() - 60),
	})
	m := call("b", "OPTIONS", "/a%20b?tab=hidden", "cookie: _pomerium="+token, "origin: x", "access-control-request-method: GET", "x-team: hidden")
	w.check(from(m, "203.0.113.7"))
	w.check(call("nope", "GET", "/"))
	w.check(call("b", "GET", "/"))
	lines := w.lines()
	got := lines[0]
	key := parsePolicy(t, `allow: {or: [{groups: staff}, {claim/department: eng}, {claim/a.b: x}]}`).Key()
	if got.Outcome != "allow" || !got.Time.Equal(noon) || got.RequestID != "req-1" || got.RouteID != "b" || got.Policy != key[:12] ||
		got.Method != "OPTIONS" || got.Host != "app.example.com" || got.Path != "/a%20b" || got.IP != "203.0.113.7" || !got.Preflight ||
		got.UserID != "user-alice" || got.SessionID != "alice" || !slices.Equal(got.Groups, []string{"staff", "eng"}) ||
		fmt.Sprint(got.Claims) != "map[a.b:[x 1.5 true] department:<nil>]" || !got.AuthTime.Equal(noon.Add(-time.Minute)) ||
		!slices.Equal(got.Allow, []string{"groups-ok", "claim-ok"}) {
		t.Errorf("%+v", got)
	}
	if in := got.Input(); in.Request.Path != "/a b" || in.Request.IP.String() != "203.0.113.7" || in.Principal.Email != "alice@example.com" {
		t.Errorf("%+v", in)
	}
	everything := policy.Reads{
		Session: true, Groups: true, Devices: true, AuthTime: true, Claims: []string{"department", "title"}, Method: true, Path: true, IP: true,
		Certificate: true, Time: true, Headers: []string{"x-team"}, Query: []string{"tab"}, Records: []string{"employee"},
	}
	for i, want := range [][]string{
		{"claim title", "devices", "certificate", "header x-team", "query tab", "records employee"},
		{"who asked", "the client's address", "certificate", "header x-team", "query tab", "records employee"},
		{"the client's address", "certificate", "header x-team", "query tab", "records employee"}, // it was nobody
	} {
		if unknown := lines[i].Unknown(everything); !slices.Equal(unknown, want) {
			t.Errorf("line %d: unknown %q, want %q", i, unknown, want)
		}
	}
	if strings.Contains(w.log.String(), "hidden") || strings.Contains(w.log.String(), "s3cret") || strings.Contains(w.log.String(), token) {
		t.Errorf("the log has what it must not: %s", w.log)
	}
}

func TestWhatTheLogCuts(t *testing.T) {
	w := newWorld(t, nil, map[string]routeDef{"a": {"allow: {or: [{groups: g}, {claim/big: x}, {claim/small: x}, {http_path: /x}]}", false}})
	var groups []any
	for i := range 150 {
		groups = append(groups, fmt.Sprint(i))
	}
	token := w.session("alice", "alice@example.com", map[string]any{"groups": groups, "big": strings.Repeat("b", 5000), "small": "s"})
	w.check(call("a", "GET", "/"+strings.Repeat("p", 5000), "cookie: _pomerium="+token))
	w.check(call("a", "GET", "/\xff", "cookie: _pomerium="+token))
	w.check(call("a", "GET", "/%zz", "cookie: _pomerium="+token))
	lines := w.lines()
	if n := len(lines[0].Groups); n != 100 {
		t.Errorf("%d groups are logged, want 100", n)
	}
	if n := len(w.log.String()); n > 3*(maxLoggedPart+4*maxLogged) {
		t.Errorf("three lines have %d bytes", n)
	}
	reads := w.server.published.Load().route("a").judge.reads
	for i, want := range [][]string{
		{"the whole path", "groups", "claim big"}, {"the whole path", "groups", "claim big"}, {"a well-formed path", "groups", "claim big"},
	} {
		if got := lines[i].Unknown(reads); !slices.Equal(got, want) {
			t.Errorf("line %d: unknown %q, want %q", i, got, want)
		}
	}
	long, cut := loggedGroups([]string{strings.Repeat("g", maxLoggedPart), "h"})
	if len(long) != 1 || !cut {
		t.Errorf("%d long groups, cut %v", len(long), cut)
	}
}

func TestParseCheckRefuses(t *testing.T) {
	for _, line := range []string{
		"", "x", "[]", "null", "{}", `{"msg":"authorize check"}`, `{"msg":"listening","outcome":"allow"}`,
		`{"msg":"authorize check","outcome":"allow","line":"x"}`, `{"msg":"authorize check","outcome":"` + strings.Repeat("x", maxLine) + `"}`,
	} {
		if c, err := ParseCheck([]byte(line)); err == nil {
			t.Errorf("%.40q is a decision: %+v", line, c)
		}
	}
}

func FuzzParseCheck(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-22T12:00:00Z","level":"INFO","msg":"authorize check","user":"u","session-id":"s","auth-time":"2026-11-22T12:00:00Z","groups":["a"],"groups-cut":true,"claims":{"a":{"b":[1]}},"outcome":"allow","ip":"::ffff:192.0.2.1%x","path":"/%41","allow":"a,b","line":3}`))
	f.Add([]byte(`{"msg":"authorize check","outcome":"deny","claims":null,"LoggedPerson":{"user":"x"},"path":"/…"}`))
	e, err := policy.Compile(context.Background(), parsePolicy(f, `{allow: {or: [{groups: a}, {claim/a/b: x}, {source_ip: "::/0"}, {auth_time: 1h}, {date: {after: 2020-01-01}}]}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := ParseCheck(line)
		if err != nil {
			return
		}
		c.Unknown(policy.Reads{Session: true, Groups: true, Path: true, IP: true, Claims: []string{"a"}})
		if _, err := e.Evaluate(context.Background(), c.Input()); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	})
}
