package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// policyRoutes are one application behind one host for each kind of criterion that
// Envoy has a part in.
const policyRoutes = `
  - name: Network
    from: {{url "network"}}
    to: {{to "app"}}
    policy:
      - allow: {and: [source_ip: 198.51.100.0/24]}
  - name: Headers
    from: {{url "headers"}}
    to: {{to "app"}}
    policy:
      - allow: {and: [{header/x-team: blue}, {query/tab: one}, {user_agent: {starts_with: tests/}}]}
  - name: Records
    from: {{url "records"}}
    to: {{to "app"}}
    policy:
      - allow: {and: [record: {type: employee, field: level, ">=": 3}]}
  - name: Groups
    from: {{url "groups"}}
    to: {{to "app"}}
    pass_identity_headers: true
    policy:
      - allow: {and: [groups: directors]}
  - name: Shadow
    from: {{url "shadow"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
    policy_shadow:
      - allow: {and: [domain: elsewhere.test]}
  - name: Rego
    from: {{url "rego"}}
    to: {{to "app"}}
    policy:
      - rego: |
          allow if {
            some group in input.session.groups
            input.http.path == concat("/", ["", "teams", group])
          }
`

func policyWorld(t *testing.T) (w *world, metrics string) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	metrics = net.JoinHostPort("127.0.0.1", fmt.Sprint(port))
	return newWorld(t, options{Routes: policyRoutes, Settings: []string{
		"xff_num_trusted_hops: 1", "metrics_address: " + metrics,
	}}), metrics
}

// TestCriteria: what a policy sees of a request is what Envoy vouches for.
func TestCriteria(t *testing.T) {
	t.Parallel()
	w, metrics := policyWorld(t)
	t.Run("the address that a trusted proxy names", func(t *testing.T) { w.addresses(t) })
	t.Run("headers, parameters and the user agent", func(t *testing.T) { w.headerCriteria(t) })
	t.Run("a rule in Rego", func(t *testing.T) {
		ana := w.session(t, "ana", w.url("rego", "/"))
		ana.fetch(t, w.url("rego", "/teams/staff")).echo(t)
		if a := ana.fetch(t, w.url("rego", "/teams/ops")); a.StatusCode != http.StatusForbidden {
			t.Errorf("another team's page: %s", a.Status)
		}
	})
	t.Run("records, felt at once", func(t *testing.T) { w.recordCriteria(t) })
	t.Run("a shadow policy is logged and counted and refuses nobody", func(t *testing.T) { w.shadow(t, metrics) })
	t.Run("a decision is explained from the log", func(t *testing.T) { w.explained(t) })
	t.Run("a change is tried on the log", func(t *testing.T) { w.replayed(t) })
}

func (w *world) addresses(t *testing.T) {
	for _, test := range []struct {
		forwarded []string
		want      int
	}{
		{[]string{"198.51.100.7"}, http.StatusOK},
		{[]string{"203.0.113.9"}, http.StatusForbidden},
		{nil, http.StatusForbidden},
		// What stands further left comes from whoever sent it.
		{[]string{"198.51.100.7, 203.0.113.9"}, http.StatusForbidden},
		{[]string{"198.51.100.7", "203.0.113.9"}, http.StatusForbidden},
		{[]string{"nonsense"}, http.StatusForbidden},
	} {
		r := request(t, http.MethodGet, w.url("network", "/"))
		r.Header["X-Forwarded-For"] = test.forwarded
		if a := w.client().send(t, r); a.StatusCode != test.want {
			t.Errorf("forwarded for %q: %s, want %d", test.forwarded, a.Status, test.want)
		}
	}
}

func (w *world) headerCriteria(t *testing.T) {
	for _, test := range []struct {
		name, query string
		header      http.Header
		want        int
	}{
		{"as asked", "?tab=one", http.Header{"X-Team": {"blue"}}, http.StatusOK},
		{"twice the same", "?tab=one&tab=one", http.Header{"X-Team": {"blue", "blue"}}, http.StatusOK},
		{"another team besides", "?tab=one", http.Header{"X-Team": {"blue", "red"}}, http.StatusForbidden},
		{"another tab besides", "?tab=one&tab=two", http.Header{"X-Team": {"blue"}}, http.StatusForbidden},
		{"another tab besides, written in hex", "?tab=one&%74ab=two", http.Header{"X-Team": {"blue"}}, http.StatusForbidden},
		{"no team", "?tab=one", http.Header{}, http.StatusForbidden},
		{"no tab", "", http.Header{"X-Team": {"blue"}}, http.StatusForbidden},
		{"a broken query", "?tab=one&x=%zz", http.Header{"X-Team": {"blue"}}, http.StatusForbidden},
		{"another client", "?tab=one", http.Header{"X-Team": {"blue"}, "User-Agent": {"curl/8"}}, http.StatusForbidden},
	} {
		r := request(t, http.MethodGet, w.url("headers", "/")+test.query)
		r.Header = test.header
		if r.Header.Get("User-Agent") == "" {
			r.Header.Set("User-Agent", "tests/1.0")
		}
		a := w.client().send(t, r)
		if a.StatusCode != test.want {
			t.Errorf("%s: %s, want %d: %s", test.name, a.Status, test.want, a.Body)
		}
		if a.StatusCode != http.StatusOK && strings.Contains(a.Body, "blue") {
			t.Errorf("%s: the answer tells the value that gets in: %s", test.name, a.Body)
		}
	}
}

// records imports records of a type from JSON.
func (w *world) records(t *testing.T, typ, content string) {
	t.Helper()
	file := filepath.Join(w.dir, "records.json")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(t, "record", "import", "--type", typ, file)
}

func (w *world) recordCriteria(t *testing.T) {
	ana := w.session(t, "ana", w.url("records", "/"))
	status := func(host string, want int) func() bool {
		return func() bool { return ana.status(t, w.url(host, "/")) == want }
	}
	if !status("records", http.StatusForbidden)() {
		t.Error("somebody without a record gets in")
	}
	w.records(t, "employee", `[{"id": "ana", "level": 3}, {"id": "ben", "level": 1}]`)
	eventually(t, time.Second, "the record lets her in", status("records", http.StatusOK))
	w.records(t, "employee", `[{"id": "ana", "level": 2}]`)
	eventually(t, time.Second, "the record keeps her out", status("records", http.StatusForbidden))

	// A directory's groups are the groups, and travel with the assertion.
	ana.navigate(t, w.url("groups", "/"))
	w.signIn(t, ana, "ana", w.url("groups", "/"))
	if !status("groups", http.StatusForbidden)() {
		t.Error("somebody who is in no group gets in")
	}
	w.records(t, policy.RecordDirectoryUser, `[{"id": "ana", "group_ids": ["directors"]}]`)
	eventually(t, time.Second, "the directory lets her in", status("groups", http.StatusOK))
	token := ana.fetch(t, w.url("groups", "/")).echo(t).value("X-Pomerium-Jwt-Assertion")
	var claims struct{ Groups []string }
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token+"..", ".")[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil || !slices.Contains(claims.Groups, "directors") {
		t.Errorf("assertion %s, %v", payload, err)
	}
	w.must(t, "record", "delete", "--type", policy.RecordDirectoryUser, "ana")
	eventually(t, time.Second, "out of the directory, out of the group", status("groups", http.StatusForbidden))
}

func (w *world) shadow(t *testing.T, metrics string) {
	ana := w.session(t, "ana", w.url("shadow", "/"))
	a := ana.fetch(t, w.url("shadow", "/seen"))
	a.echo(t)
	line := w.decision(t, a.Header.Get("X-Request-Id"))
	if line["outcome"] != "allow" || line["shadow"] != "deny" || line["shadow-allow"] != "domain-unauthorized" {
		t.Errorf("logged: %v", line)
	}
	response, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || !strings.Contains(string(body), `countersign_shadow_differences_total{real="allow",route="Shadow",shadow="deny"} `) {
		t.Errorf("metrics: %v\n%s", err, body)
	}
}

// logFile puts the log so far beside the configuration.
func (w *world) logFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(w.dir, "decisions.log")
	if err := os.WriteFile(file, []byte(w.log.text()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (w *world) explained(t *testing.T) {
	a := w.client().fetch(t, w.url("records", "/x"))
	id := a.Header.Get("X-Request-Id")
	w.decision(t, id)
	r := w.cli(t, "policy", "explain", "--request-id", id, "--log", w.logFile(t))
	for _, want := range []string{"sign-in", "employee", "Records"} {
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("exit code %d, want %s: %s%s", r.code, want, r.stdout, r.stderr)
		}
	}
}

func (w *world) replayed(t *testing.T) {
	ana := w.session(t, "ana", w.url("shadow", "/"))
	a := ana.fetch(t, w.url("shadow", "/replayed"))
	a.echo(t)
	w.decision(t, a.Header.Get("X-Request-Id"))
	content, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(w.dir, "next.yaml")
	changed := strings.Replace(string(content), "allow_any_authenticated_user: true", "policy: [{allow: {or: [email: ben@companydomain.com]}}]", 1)
	if err := os.WriteFile(next, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	r := w.cliWithout(t, "policy", "diff", w.config, next, "--replay", w.logFile(t))
	for _, want := range []string{"Shadow", "ana@companydomain.com", "allow", "deny"} {
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("exit code %d, want %s: %s%s", r.code, want, r.stdout, r.stderr)
		}
	}
}

// TestFreshSignIn: a route that asks for a young sign-in sends people with an old
// one to the provider again, once, and tells programs.
func TestFreshSignIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{Routes: `
  - name: App
    from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
  - name: Safe
    from: {{url "safe"}}
    to: {{to "app"}}
    policy:
      - allow: {and: [{domain: companydomain.com}, {auth_time: 10m}]}
`})
	ana, gus := w.session(t, "ana", w.url("safe", "/")), w.session(t, "carla", w.url("safe", "/"))
	w.signIn(t, ana, "ana", w.url("app", "/"))
	ana.fetch(t, w.url("safe", "/")).echo(t)
	w.stop(t)
	w.ageSessions(t, time.Hour)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}

	ana.fetch(t, w.url("app", "/")).echo(t)
	a := ana.fetch(t, w.url("safe", "/"), "Accept", "application/json")
	if challenge := a.Header.Get("WWW-Authenticate"); a.StatusCode != http.StatusUnauthorized ||
		!strings.Contains(challenge, `error="insufficient_user_authentication"`) || !strings.Contains(challenge, `max_age="600"`) {
		t.Errorf("a program is told %s, %q", a.Status, challenge)
	}
	if a := gus.navigate(t, w.url("safe", "/")); a.StatusCode != http.StatusForbidden {
		t.Errorf("whom a fresh sign-in would not help is told %s", a.Status)
	}
	w.signIn(t, ana, "ana", w.url("safe", "/page")).echo(t)
	ana.fetch(t, w.url("safe", "/")).echo(t)
	w.signIn(t, ana, "ana", w.url("app", "/")).echo(t)
	ana.fetch(t, w.url("safe", "/")).echo(t)
}

// ageSessions makes every session older, while nothing runs.
func (w *world) ageSessions(t *testing.T, by time.Duration) {
	t.Helper()
	store, err := databroker.OpenFile(t.Context(), databroker.FileConfig{Dir: w.state, SealKey: w.sharedSecret(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	sessions, err := store.Sessions(t.Context(), "")
	if err != nil || len(sessions) == 0 {
		t.Fatalf("%d sessions, %v", len(sessions), err)
	}
	for _, s := range sessions {
		s.CreatedAt = s.CreatedAt.Add(-by)
		if at, ok := s.Claims["auth_time"].(float64); ok {
			s.Claims["auth_time"] = at - by.Seconds()
		}
		if err := store.PutSession(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

// sharedSecret is the one that the state folder holds.
func (w *world) sharedSecret(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.state, "secrets.json"))
	if err != nil {
		t.Fatal(err)
	}
	var kept struct {
		Shared []byte `json:"shared_secret"`
	}
	if err := json.Unmarshal(raw, &kept); err != nil || len(kept.Shared) == 0 {
		t.Fatalf("%v in %d bytes of secrets", err, len(raw))
	}
	return kept.Shared
}
