package authz

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// gambler draws policies, people, requests and events.
type gambler struct {
	*rand.Rand
	certificates []string
	fingerprints []string
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// criterion is one of every sort there is, in YAML's flow style.
func (g *gambler) criterion() string {
	r := g.Rand
	person, group := fmt.Sprintf("p%d", r.IntN(4)), fmt.Sprintf("g%d", r.IntN(3))
	from := noon.Add(time.Duration(r.IntN(48)-24) * time.Hour).Format(time.RFC3339)
	return pick(r, []string{
		"accept: true", "reject: true", "authenticated_user: true", "cors_preflight: true",
		"user: user-" + person, "user: {not_in: [user-p1, api]}",
		"email: " + person + "@example.com", "email: {starts_with: p}",
		"domain: " + pick(r, []string{"example.com", "directory.org"}), "domain: {not: example.com}",
		"groups: " + group, "groups: {exclude: " + group + "}", "groups: {is: " + group + "}",
		"claim/department: " + pick(r, []string{"eng", "ops"}), "claim/a/b: {has: x}",
		"acr: {in: [gold, silver]}", "amr: mfa",
		"auth_time: " + pick(r, []string{"10m", "6h"}),
		"device: {approved: true}", "device: {type: enclave_only}", "device: {is: d1}",
		"record: {type: employee, field: level, \">=\": 2}", "record: {type: employee, field: team, is: a}",
		"record: {type: employee, field: gone, exists: true}",
		"record: {type: mail, by: user.email, field: ok, is: yes}",
		"record: {type: network, by: request.ip, field: site, is: hq}",
		"record: {type: laptop, by: client_certificate.fingerprint, field: owner, exists: true}",
		"http_method: " + pick(r, []string{"GET", "POST"}), "http_path: {starts_with: /a}", "http_path: {not: /b}",
		"header/x-team: " + pick(r, []string{"red", "blue"}), "header/x-team: {not: red}", "user_agent: {contains: curl}",
		"query/tab: " + pick(r, []string{"1", "2"}),
		"source_ip: 192.0.2.0/24", "source_ip: [198.51.100.7, '2001:db8::/32']",
		"client_certificate: {fingerprint: " + pick(r, g.fingerprints) + "}", "client_certificate: {san_email: {ends_with: example.com}}",
		"invalid_client_certificate: true",
		"date: {after: '" + from + "'}", "date: {before: '" + from + "'}",
		"day_of_week: mon-wed", "day_of_week: {days: 'sat,sun', timezone: Europe/Berlin}",
		"time_of_day: {timezone: UTC, after: '9:00', before: '15:00'}",
	})
}

func (g *gambler) body() string {
	var operators []string
	for _, name := range []string{"and", "or", "not", "nor"} {
		if g.IntN(3) > 0 {
			continue
		}
		var criteria []string
		for range 1 + g.IntN(3) {
			criteria = append(criteria, "{"+g.criterion()+"}")
		}
		operators = append(operators, name+": ["+strings.Join(criteria, ", ")+"]")
	}
	if operators == nil {
		return "{or: [{" + g.criterion() + "}]}"
	}
	return "{" + strings.Join(operators, ", ") + "}"
}

func (g *gambler) policy() string {
	if g.IntN(12) == 0 {
		return `{rego: "` + pick(g.Rand, []string{
			`allow if input.session.email == \"p1@example.com\"`, `allow if input.http.method == \"GET\"`,
			`allow if \"g1\" in input.session.groups`, `deny if input.http.ip == \"192.0.2.1\"`,
		}) + `"}`
	}
	rules := []string{"{allow: " + g.body() + "}"}
	if g.IntN(2) == 0 {
		rules = append(rules, "{deny: "+g.body()+"}")
	}
	if g.IntN(4) == 0 {
		rules = append(rules, "{allow: "+g.body()+"}")
	}
	return "[" + strings.Join(rules, ", ") + "]"
}

// casino is two servers over one store and one clock, of which one remembers and
// the other does not.
type casino struct {
	*world
	*gambler
	plain *Server
	feed  *feed
	// tokens are those of people, sessions theirs by number.
	tokens []string
	routes int
}

func newCasino(t *testing.T, seed uint64) *casino {
	t.Helper()
	a, other := newAuthority(t), newAuthority(t)
	c := &casino{gambler: &gambler{Rand: rand.New(rand.NewPCG(seed, 1))}, routes: 24}
	for _, chain := range []string{
		presented(a.client("p1@example.com", noon.Add(-time.Hour), noon.Add(9*time.Hour))),
		presented(a.client("p2@example.com", noon.Add(5*time.Hour), noon.Add(90*time.Hour)), a.certificate),
		presented(other.client("p3@example.com", noon.Add(-time.Hour), noon.Add(90*time.Hour))), `Chain="x"`,
	} {
		c.certificates = append(c.certificates, chain)
		if digest, ok := strings.CutPrefix(chain, "Hash="); ok {
			c.fingerprints = append(c.fingerprints, digest[:64])
		}
	}
	c.world = newWorld(t, func(cfg *config.Config) {
		cfg.Routes, cfg.DownstreamMTLS = nil, a.asked()
		for i := range c.routes {
			cfg.Routes = append(cfg.Routes, &config.Route{ID: fmt.Sprint(i), Policy: parsePolicy(t, c.policy())})
		}
	}, nil)
	c.server.log = slog.New(slog.DiscardHandler)
	c.feed = &feed{store: c.store, identities: c.server.identities, log: c.server.log}
	c.plain = New(Config{Store: c.store, Now: c.clock.Now})
	c.plain.uncached, c.plain.identities.uncached = true, true
	c.publish()
	for i := range 4 {
		id := fmt.Sprintf("p%d", i)
		c.tokens = append(c.tokens, c.sessionToken(id))
		c.putSession(id)
	}
	c.tokens = append(c.tokens, c.account("acct", "api", noon.Add(20*time.Hour)), "nonsense", "")
	c.catchUp()
	return c
}

// publish puts the same configuration in force on both.
func (c *casino) publish() {
	c.t.Helper()
	c.world.publish()
	g, err := c.plain.Build(context.Background(), c.config, c.keys, c.ring)
	if err != nil {
		c.t.Fatal(err)
	}
	c.plain.Publish(g)
	c.plain.Retire()
	c.server.Retire()
}

// catchUp lets the feed tell everything that changed.
func (c *casino) catchUp() {
	c.t.Helper()
	ctx := context.Background()
	for {
		sequence, err := c.store.Sequence(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		if c.feed.began && c.feed.after == sequence {
			c.server.identities.records.settle(c.t)
			c.feed.seen(c.clock.Now())
			return
		}
		if err := c.feed.step(ctx); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *casino) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// putSession writes a session anew, with other groups and claims.
func (c *casino) putSession(id string) {
	c.t.Helper()
	ctx := context.Background()
	if old, err := c.store.Session(ctx, id); err == nil {
		c.must(c.store.DeleteSession(ctx, old.ID))
	}
	now := c.clock.Now()
	claims := map[string]any{
		"email": id + "@example.com", "groups": []any{fmt.Sprintf("g%d", c.IntN(3))}, "department": pick(c.Rand, []string{"eng", "ops", ""}),
		"a": map[string]any{"b": []any{"x", "y"}[:c.IntN(3)]}, "acr": pick(c.Rand, []string{"gold", "tin"}), "amr": []any{"pwd", "mfa"}[:c.IntN(3)],
	}
	if c.IntN(2) == 0 {
		claims["auth_time"] = float64(now.Add(-time.Duration(c.IntN(300)) * time.Minute).Unix())
	}
	c.must(c.store.PutSession(ctx, &databroker.Session{
		ID: id, UserID: "user-" + id, IDPID: c.config.IDPs[0].ID(), Claims: claims, CreatedAt: now,
		Devices:   []databroker.DeviceCredential{{ID: "d1", Type: "any"}, {ID: "d2", Type: "enclave_only"}}[:c.IntN(3)],
		ExpiresAt: now.Add(time.Duration(1+c.IntN(30)) * time.Hour),
	}))
}

// putRecord writes or deletes a record that some policy may look at.
func (c *casino) putRecord() {
	c.t.Helper()
	person := fmt.Sprintf("p%d", c.IntN(4))
	r := pick(c.Rand, []*databroker.Record{
		{Type: "employee", ID: "user-" + person, Fields: map[string]any{"level": float64(c.IntN(4)), "team": pick(c.Rand, []string{"a", "b"})}},
		{Type: "mail", ID: person + "@example.com", Fields: map[string]any{"ok": pick(c.Rand, []string{"yes", "no"})}},
		{Type: "network", ID: pick(c.Rand, []string{"192.0.2.0/24", "192.0.2.1", "2001:db8::/32"}), Fields: map[string]any{"site": pick(c.Rand, []string{"hq", "lab"})}},
		{Type: "laptop", ID: pick(c.Rand, c.fingerprints), Fields: map[string]any{"owner": person}},
		{Type: policy.RecordDirectoryUser, ID: "user-" + person, Fields: map[string]any{
			"email": pick(c.Rand, []string{"", person + "@directory.org"}), "group_ids": []any{"g0", "g1", "g2"}[c.IntN(3):]}},
		{Type: policy.RecordDevice, ID: pick(c.Rand, []string{"d1", "d2"}), Fields: map[string]any{
			"user_id": "user-" + person, "type": pick(c.Rand, []string{"any", "enclave_only"}), "approved_by": pick(c.Rand, []string{"", "admin"})}},
	})
	ctx := context.Background()
	if c.IntN(3) == 0 {
		_ = c.store.DeleteRecord(ctx, r.Type, r.ID) // or there was none
		return
	}
	c.must(c.store.PutRecord(ctx, r))
}

// happen is one event after which answers may be others.
func (c *casino) happen() string {
	c.t.Helper()
	person := fmt.Sprintf("p%d", c.IntN(4))
	switch n := c.IntN(100); {
	case n < 30:
		c.clock.Advance(time.Duration(c.IntN(90)) * time.Minute)
		return "time goes by"
	case n < 55:
		c.putRecord()
		return "a record changes"
	case n < 75:
		c.putSession(person)
		return person + " signs in"
	case n < 85:
		_ = c.store.DeleteSession(context.Background(), person) // or it was revoked before
		return person + " is revoked"
	case n < 88:
		c.clock.Advance(-time.Duration(c.IntN(90)) * time.Minute)
		return "the clock is put back"
	default:
		i := c.IntN(len(c.config.Routes))
		routes := slices.Clone(c.config.Routes)
		routes[i] = &config.Route{ID: routes[i].ID, Policy: parsePolicy(c.t, c.policy())}
		if c.IntN(4) == 0 { // another's policy, lines and all
			routes[i].Policy = routes[c.IntN(len(routes))].Policy
		}
		changed := *c.config
		changed.Routes = routes
		c.config = &changed
		c.publish()
		return "a policy changes"
	}
}

func (c *casino) request() *request {
	r := c.Rand
	path := pick(r, []string{"/", "/a", "/a%2Fb", "/b", "/%zz"}) + pick(r, []string{"", "?tab=1", "?tab=2&tab=1", "?tab=%zz", "?pomerium_session=x&tab=1"})
	headers := []string{"user-agent: " + pick(r, []string{"curl/8", "Firefox"})}
	if token := pick(r, c.tokens); token != "" {
		headers = append(headers, "cookie: _pomerium="+token)
	}
	for range r.IntN(3) {
		headers = append(headers, "x-team: "+pick(r, []string{"red", "blue"}))
	}
	method := pick(r, []string{"GET", "POST", "OPTIONS"})
	if r.IntN(2) == 0 {
		headers = append(headers, "origin: https://x", "access-control-request-method: PUT")
	}
	if r.IntN(2) == 0 {
		headers = append(headers, headerCertificate+": "+pick(r, c.certificates))
	}
	m := call(fmt.Sprint(r.IntN(c.routes)), method, path, headers...)
	return fromProto(via(m, pick(r, []string{"192.0.2.1", "::ffff:192.0.2.9", "198.51.100.7", "2001:db8::1", "192.0.2.1", "-"})+";hops=0"))
}

// answer is what both servers must agree on.
func (c *casino) answer(s *Server, r *request) (Outcome, string) {
	ruling := s.rule(context.Background(), s.published.Load(), r)
	answer := ruling.outcome.String()
	if ruling.err != nil {
		answer += " " + ruling.err.Error()
	}
	if v := ruling.verdict; v != nil {
		answer += fmt.Sprintf(" allow %s deny %s line %d max age %s refusals %v", v.allowed, v.denied, v.line, v.maxAge, v.refusals)
	}
	return ruling.outcome, answer
}

// TestTheCacheCannotLie holds that a server which remembers answers as one which
// does not, whatever policies, people, requests and times, after revocations,
// changed groups, changed records and reloads.
func TestTheCacheCannotLie(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			c := newCasino(t, seed)
			var outcomes [Allow + 1]int
			for range 150 {
				event := c.happen()
				c.catchUp()
				for range 20 {
					r := c.request()
					outcome, got := c.answer(c.server, r)
					if _, want := c.answer(c.plain, r); got != want {
						t.Fatalf("at %s, after %s: %+v\npolicy %v\nremembered %s\nfresh      %s",
							c.clock.Now(), event, r, c.server.published.Load().route(r.RouteID).judge.evaluator.Rules(), got, want)
					}
					outcomes[outcome]++
				}
			}
			for _, o := range []Outcome{Forbidden, SignIn, ClientCertificate, Device, Allow} {
				if outcomes[o] == 0 {
					t.Errorf("no request came to %s: %v", o, outcomes)
				}
			}
			if outcomes[Unavailable]+outcomes[NoRoute] > 0 {
				t.Errorf("some could not be decided: %v", outcomes)
			}
		})
	}
}
