package authz

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

func TestAccessible(t *testing.T) {
	other := &config.IdentityProvider{Name: "other", Provider: "oidc", URL: "https://other.example.com", ClientID: "countersign"}
	policies := map[string]string{
		"public":    anyPolicy,
		"staff":     appPolicy,
		"elsewhere": "allow: {or: [{domain: {is: elsewhere.org}}]}",
		"machines":  apiPolicy,
		"nobody":    "",
		// What a person's criteria do not decide alone.
		"header and staff":        "allow: {and: [{domain: example.com}, {header/x-team: core}]}",
		"header and elsewhere":    "allow: {and: [{domain: elsewhere.org}, {header/x-team: core}]}",
		"two headers":             "allow: {and: [{domain: example.com}, {header/x-team: core}, {header/x-tier: gold}, {query/tab: usage}]}",
		"header or elsewhere":     "allow: {or: [{domain: elsewhere.org}, {header/x-team: core}]}",
		"no header":               "[{allow: {or: [{domain: example.com}]}}, {deny: {or: [{header/x-forbidden: yes}]}}]",
		"not a header":            "allow: {not: [{header/x-team: core}, {domain: elsewhere.org}]}",
		"not staff, by header":    "allow: {not: [{header/x-team: core}, {domain: example.com}]}",
		"nor":                     "allow: {nor: [{header/x-team: core}, {domain: example.com}]}",
		"denied all the same":     "[{allow: {or: [{header/x-team: core}]}}, {deny: {or: [{domain: example.com}]}}]",
		"denied with a header":    "[{allow: {or: [{accept: true}]}}, {deny: {and: [{domain: example.com}, {header/x-team: core}]}}]",
		"a certificate":           "allow: {and: [{domain: example.com}, {client_certificate: {san_dns: {is: a.example.com}}}]}",
		"a certificate elsewhere": "allow: {and: [{domain: elsewhere.org}, {client_certificate: {san_dns: {is: a.example.com}}}]}",
		"a good certificate":      "[{allow: {or: [{domain: example.com}]}}, {deny: {or: [{invalid_client_certificate: true}]}}]",
		"a browser":               "allow: {and: [{domain: example.com}, {user_agent: {contains: Firefox}}]}",
		"an office":               "allow: {and: [{domain: example.com}, {source_ip: 192.0.2.0/24}]}",
		"another office":          "allow: {and: [{domain: example.com}, {source_ip: 198.51.100.0/24}]}",
		"a fresh sign-in":         "allow: {and: [{domain: example.com}, {auth_time: {max_age: 5m}}]}",
		"fresh and elsewhere":     "allow: {and: [{domain: elsewhere.org}, {auth_time: {max_age: 5m}}]}",
		"fresh alone":             "allow: {or: [{auth_time: {max_age: 5m}}]}",
		"its own path":            "allow: {and: [{domain: example.com}, {http_path: /app}]}",
		"another path":            "allow: {and: [{domain: example.com}, {http_path: /else}]}",
		"to post to":              "allow: {and: [{domain: example.com}, {http_method: POST}]}",
		"now":                     "allow: {and: [{domain: example.com}, {date: {after: 2026-11-01, before: 2026-12-01}}]}",
		"later":                   "allow: {and: [{domain: example.com}, {date: {after: 2026-12-01}}]}",
		"a record":                "allow: {or: [{record: {type: badge, by: user.id, field: colour, is: red}}]}",
		"a certificate's record":  "allow: {and: [{domain: example.com}, {record: {type: badge, by: client_certificate.fingerprint, field: colour, is: red}}]}",
		"a record, by header":     "allow: {and: [{record: {type: badge, by: user.id, field: colour, is: blue}}, {header/x-team: core}]}",
		"a device":                "allow: {and: [{domain: example.com}, {device: {approved: true}}]}",
		"rego of people":          "rego: 'allow if input.session.user_id == \"user-alice\"'",
		"rego of others":          "rego: 'allow if input.session.user_id == \"user-bob\"'",
		"rego of headers and who": "rego: 'allow if { input.http.headers[\"x-team\"]; input.session.user_id == \"user-bob\" }'",
		"rego of headers":         "rego: 'allow if input.http.headers[\"x-team\"]'",
	}
	defs := map[string]routeDef{}
	for id, text := range policies {
		defs[id] = routeDef{policy: text}
	}
	w := newWorld(t, func(c *config.Config) {
		c.Routes = slices.DeleteFunc(c.Routes, func(r *config.Route) bool { return defs[r.ID].policy == "" && r.ID != "nobody" })
		c.IDPs = append(c.IDPs, other)
		routeNamed(c, "its own path").Path = "/app"
		routeNamed(c, "another path").Prefix = "/app/"
	}, defs)
	w.session("alice", "alice@example.com", map[string]any{"auth_time": float64(noon.Add(-time.Hour).Unix())})
	w.session("gone", "gone@example.com", nil)
	w.sessionOf(other.ID(), "stranger", "alice@example.com")
	w.account("acct", "api-access", time.Time{})
	w.record("badge", "user-alice", map[string]any{"colour": "red"})
	w.server.identities.records.settle(t)
	if err := w.store.RevokeSession(context.Background(), "gone"); err != nil {
		t.Fatal(err)
	}
	nobody := []string{"header or elsewhere", "public", "rego of headers"}
	tests := []struct {
		name  string
		asker Asker
		want  []string
	}{
		{"nobody", Asker{}, nobody},
		{"a session that has ended", Asker{Kind: signin.KindSession, ID: "gone"}, nobody},
		{"a session of a provider that no route takes", Asker{Kind: signin.KindSession, ID: "stranger"}, nobody},
		{"a machine", Asker{Kind: signin.KindServiceAccount, ID: "acct"}, []string{
			"denied all the same", "denied with a header", "fresh alone", "header or elsewhere", "machines", "nor", "not a header", "not staff, by header", "public", "rego of headers", "rego of headers and who",
		}},
		{"a person at the office", Asker{Kind: signin.KindSession, ID: "alice", Address: netip.MustParseAddr("::ffff:192.0.2.7")}, []string{
			"a browser", "a certificate", "a certificate's record", "a fresh sign-in", "a good certificate", "a record", "an office",
			"denied with a header", "fresh alone", "header and staff", "header or elsewhere", "its own path", "no header", "nor", "not a header", "now",
			"public", "rego of headers", "rego of headers and who", "rego of people", "staff", "two headers",
		}},
		{"a person, who knows where", Asker{Kind: signin.KindSession, ID: "alice"}, []string{
			"a browser", "a certificate", "a certificate's record", "a fresh sign-in", "a good certificate", "a record", "an office", "another office",
			"denied with a header", "fresh alone", "header and staff", "header or elsewhere", "its own path", "no header", "nor", "not a header", "now",
			"public", "rego of headers", "rego of headers and who", "rego of people", "staff", "two headers",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			open, err := w.server.Accessible(context.Background(), tt.asker)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Sorted(maps.Keys(open))
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestAccessibleHidesNothing makes up policies and requests: a route that lets one of
// them in is in the list. Whoever is listed without a header in the policy gets in.
func TestAccessibleHidesNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	operator := func() string {
		criterion := func() string {
			return pick("{domain: example.com}", "{domain: elsewhere.org}", "{header/x-a: 1}", "{header/x-b: 1}", "{accept: true}", "{http_path: /}", "{query/c: 1}")
		}
		return "{" + pick("and", "or", "not", "nor") + ": [" + criterion() + ", " + criterion() + "]}"
	}
	defs := map[string]routeDef{}
	for i := range 300 {
		text := "[{allow: " + operator() + "}"
		for range random.IntN(3) {
			text += ", {" + pick("allow", "deny") + ": " + operator() + "}"
		}
		defs[fmt.Sprint(i)] = routeDef{policy: text + "]"}
	}
	w := newWorld(t, nil, defs)
	alice := "cookie: _pomerium=" + w.session("alice", "alice@example.com", nil)
	for name, asker := range map[string]Asker{"alice": {Kind: signin.KindSession, ID: "alice"}, "nobody": {}} {
		open, err := w.server.Accessible(context.Background(), asker)
		if err != nil {
			t.Fatal(err)
		}
		listed, in := 0, 0
		for id, def := range defs {
			admitted := false
			for bits := range 8 {
				path, headers := "/", []string{"x-c: d"}
				if asker.ID != "" {
					headers = append(headers, alice)
				}
				for i, h := range []string{"x-a: 1", "x-b: 1"} {
					if bits&(1<<i) != 0 {
						headers = append(headers, h)
					}
				}
				if bits&4 != 0 {
					path = "/?c=1"
				}
				admitted = admitted || w.check(call(id, "GET", path, headers...)).allowed
			}
			if admitted && !open[id] {
				t.Errorf("%s gets in and does not see the route in the list: %s", name, def.policy)
			}
			if known := !strings.Contains(def.policy, "header") && !strings.Contains(def.policy, "query"); open[id] && known && !admitted {
				t.Errorf("%s does not get in and sees the route in the list: %s", name, def.policy)
			}
			if open[id] {
				listed++
			}
			if admitted {
				in++
			}
		}
		// What criteria that contradict each other add must stay a little.
		if listed > in+in/10 || in < 20 {
			t.Errorf("%s: %d routes are listed, %d let in", name, listed, in)
		}
	}
}

func TestAccessibleToABearerSession(t *testing.T) {
	w, _ := newBearerWorld(t)
	if r := w.check(call("access", "GET", "/", bearer("access.bob"))); !r.allowed {
		t.Fatalf("status %d", r.status)
	}
	open, err := w.server.Accessible(context.Background(), Asker{Kind: signin.KindSession, ID: "bearer-access-bob"})
	if want := (map[string]bool{"access": true, "open": true, "public": true}); err != nil || !maps.Equal(open, want) {
		t.Errorf("got %v, %v, want %v", open, err, want)
	}
}

func TestAccessibleFails(t *testing.T) {
	w := newWorld(t, nil, nil)
	ctx := context.Background()
	if _, err := New(Config{Store: w.store}).Accessible(ctx, Asker{}); err == nil {
		t.Error("before the first configuration there is a list")
	}
	w.session("alice", "alice@example.com", nil)
	w.store.Break(errDown)
	if open, err := w.server.Accessible(ctx, Asker{Kind: signin.KindSession, ID: "alice"}); err == nil {
		t.Errorf("without the store there is a list: %v", open)
	}
	w.store.Heal()
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if open, err := w.server.Accessible(canceled, Asker{}); err == nil {
		t.Errorf("for nobody who waits there is a list: %v", open)
	}
}

// TestAccessibleAsDecided compares the list with what becomes of requests: where
// nothing of a request is unknown, the two are the same.
func TestAccessibleAsDecided(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Routes = append(c.Routes, manyRoutes(t, 40, 20)...) }, nil)
	token := w.session("s", "bob@company3.com", map[string]any{"groups": []any{"team-7", "team-9"}, "department": "department-9"})
	open, err := w.server.Accessible(context.Background(), Asker{Kind: signin.KindSession, ID: "s"})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range w.config.Routes {
		if got := w.check(call(r.ID, "GET", "/", "cookie: _pomerium="+token)).allowed; got != open[r.ID] {
			t.Errorf("route %s: listed %v, let in %v", r.ID, open[r.ID], got)
		}
	}
	if len(open) != 7 {
		t.Errorf("%d routes are listed: %v", len(open), open)
	}
}
