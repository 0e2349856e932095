package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

// office is an authorization server with a configuration in force and a log.
type office struct {
	t      *testing.T
	dir    string
	log    *logBuffer
	store  databroker.Store
	server *authz.Server
	// Of the configuration in force:
	cfg   *config.Config
	table *routeTable
	keys  *signin.Keys
	// asked counts the requests, for their ids.
	asked int
}

func newOffice(t *testing.T, text string) *office {
	t.Helper()
	o := &office{t: t, dir: t.TempDir(), log: &logBuffer{}, store: databroker.NewMemory(databroker.MemoryConfig{})}
	o.server = authz.New(authz.Config{Store: o.store, Log: slog.New(slog.NewJSONHandler(o.log, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	path := o.write("running.yaml", text)
	var err error
	if o.cfg, err = config.Load(path, config.LoadOptions{Generate: throwAway}); err != nil {
		t.Fatal(err)
	}
	if o.table, err = newRouteTable(o.cfg); err != nil {
		t.Fatal(err)
	}
	if o.keys, err = signin.NewKeys(o.cfg.Secrets.Shared, o.cfg.Secrets.Cookie); err != nil {
		t.Fatal(err)
	}
	d := &deployment{dir: "/run/countersign", authz: o.server, authn: authn.New(authn.Config{Store: o.store})}
	built, err := d.build(ctx, o.cfg)
	if err != nil {
		t.Fatal(err)
	}
	o.server.Publish(built.authz)
	return o
}

func (o *office) write(name, text string) (path string) {
	o.t.Helper()
	path = filepath.Join(o.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

// person signs in, with groups, and returns the cookie.
func (o *office) person(email string, groups ...any) string {
	o.t.Helper()
	now := time.Now()
	session := &databroker.Session{
		ID: "session-" + email, UserID: "id-" + email, IDPID: o.cfg.IDPs[0].ID(),
		Claims:    map[string]any{"email": email, "groups": groups},
		CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	if err := o.store.PutSession(o.t.Context(), session); err != nil {
		o.t.Fatal(err)
	}
	token, err := o.keys.MintSession(signin.SessionToken{SessionID: session.ID, IDPID: session.IDPID, IssuedAt: now, ExpiresAt: session.ExpiresAt})
	if err != nil {
		o.t.Fatal(err)
	}
	return o.cfg.Cookie.Name + "=" + token
}

// ask has a request decided, as Envoy would, and returns its id.
func (o *office) ask(cookie, method, host, path string) (requestID string) {
	o.t.Helper()
	o.asked++
	requestID = fmt.Sprintf("request-%d", o.asked)
	extensions := map[string]string{}
	if end := o.table.find(host, path); end.route != nil {
		extensions["countersign.route"] = end.route.ID
	}
	headers := &corev3.HeaderMap{}
	for name, value := range map[string]string{":path": path, "cookie": cookie, "x-request-id": requestID, "x-team": "red", "x-countersign-client-address": "203.0.113.9;hops=0"} {
		headers.Headers = append(headers.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	_, err := o.server.Check(o.t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: extensions,
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "203.0.113.9"},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: method, Host: host, Path: path, Scheme: "https", HeaderMap: headers,
		}},
	}})
	if err != nil {
		o.t.Fatal(err)
	}
	return requestID
}

// command runs one of ours and returns what it printed.
func command(t *testing.T, wantCode int, args ...string) string {
	t.Helper()
	var out, errs strings.Builder
	if code := run(t.Context(), args, &out, &errs); code != wantCode {
		t.Fatalf("%v: exit code %d, want %d\n%s%s", args, code, wantCode, &out, &errs)
	}
	return out.String() + errs.String()
}

const officeConfig = `idp_provider_url: https://idp.example.com
idp_client_id: countersign
idp_client_secret: hidden
routes:
- name: App
  from: https://app.example.com
  to: http://127.0.0.1:8080
  policy:
  - allow: {or: [{domain: {is: example.com}}, {groups: {has: eng}}]}
- name: Office
  from: https://office.example.com
  to: http://127.0.0.1:8080
  policy:
  - allow: {and: [{authenticated_user: true}, {source_ip: 203.0.113.0/24}]}
- name: Team
  from: https://team.example.com
  to: http://127.0.0.1:8080
  policy:
  - allow: {and: [{authenticated_user: true}]}
- name: Old
  from: https://old.example.com
  to: http://127.0.0.1:8080
  policy:
  - allow: {and: [{accept: true}]}
`

// asking is an office whose log has requests of ana, of bob who is in group eng,
// and of nobody.
func asking(t *testing.T) *office {
	o := newOffice(t, officeConfig)
	ana, bob := o.person("ana@example.com"), o.person("bob@elsewhere.test", "eng")
	for range 3 {
		o.ask(ana, "GET", "app.example.com", "/x?secret=1")
	}
	o.ask(bob, "POST", "app.example.com", "/y")
	o.ask("", "GET", "app.example.com", "/")
	o.ask(bob, "GET", "office.example.com", "/z")
	o.ask(ana, "GET", "team.example.com", "/")
	o.ask(ana, "GET", "old.example.com", "/")
	o.ask(ana, "GET", "elsewhere.test", "/")
	o.ask(ana, "GET", "app.example.com", "/%zz")
	o.write("log", `{"msg":"ready"}`+"\n"+o.log.String()+"not JSON\n"+strings.Repeat("x", maxLogLine+1)+"\n")
	return o
}

func TestReplay(t *testing.T) {
	o := asking(t)
	replayed := func(text string) string {
		t.Helper()
		o.write("new.yaml", text)
		return command(t, 0, "policy", "diff", o.dir+"/running.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log")
	}
	change := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(officeConfig) }
	tests := []struct {
		name, text string
		want       []string
	}{
		{"nothing changes", officeConfig, []string{
			"4 routes with the same policy in both", "10 decisions of ", "0 changed, 10 the same"}},
		{"another domain", change("domain: {is: example.com}", "domain: {is: example.org}"), []string{
			"-     - domain is example.com\n", "+     - domain is example.org\n",
			"  App: ana@example.com: allow → deny, 3 requests, first GET /x at ", "because domain-unauthorized: domain is example.org (line 9), had example.com; groups-unauthorized: groups has eng (line 9)\n",
			"3 changed, 7 the same"}},
		{"another group", change("groups: {has: eng}", "groups: {has: ops}"), []string{
			"  App: bob@elsewhere.test: allow → deny, 1 request, first POST /y at ", "1 changed, 9 the same"}},
		{"a public route", change("{domain: {is: example.com}}", "{accept: true}"), []string{
			"  App: nobody: sign-in → allow, 1 request, first GET / at ", "because accept: accept (line 9)"}},
		{"another network", change("203.0.113.0/24", "198.51.100.0/24"), []string{
			"  Office: bob@elsewhere.test: allow → deny, 1 request, first GET /z at ", "source-ip-unauthorized", "had 203.0.113.9"}},
		{"what the log does not hold", change("[{authenticated_user: true}]}", "[{authenticated_user: true}, {header/x-team: {is: red}}]}"), []string{
			"  1 cannot be decided: the log does not hold header x-team\n", "0 changed, 9 the same"}},
		{"a claim that was not logged", change("[{authenticated_user: true}]}", "[{claim/department: {is: eng}}]}"), []string{
			"  1 cannot be decided: the log does not hold claim department\n"}},
		{"a route is gone", change("name: Old\n  from: https://old.", "name: Other\n  from: https://other."), []string{
			"route Old was removed", "route Other was added",
			"  Old: anyone: allow → no-route, 1 request, first GET / at ", "because no route has the host old.example.com: the answer is 404\n"}},
		{"a route in front of another", change("routes:\n", "routes:\n- {name: Front, from: https://app.example.com, prefix: /x, to: http://127.0.0.1:1, policy: [{allow: {or: [{user: {is: root}}]}}]}\n"), []string{
			"route Front was added", "  Front: ana@example.com: allow → deny, 3 requests"}},
		{"a new route where there was none", change("routes:\n", "routes:\n- {name: Else, from: https://elsewhere.test, to: http://127.0.0.1:1, allow_public_unauthenticated_access: true}\n"), []string{
			"  Else: anyone: no-route → allow, 1 request"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := replayed(tt.text)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("want %q in\n%s", want, got)
				}
			}
			if strings.Contains(got, "decided otherwise") {
				t.Errorf("the log is of this configuration:\n%s", got)
			}
		})
	}
	if strings.Contains(o.log.String(), "secret=1") {
		t.Error("the log holds a query")
	}
}

// TestReplayOfAnotherLog shows what does not fit the configurations.
func TestReplayOfAnotherLog(t *testing.T) {
	o := asking(t)
	o.write("old.yaml", strings.NewReplacer("domain: {is: example.com}", "domain: {is: example.org}", "old.example.com", "older.example.com").Replace(officeConfig))
	o.write("new.yaml", strings.NewReplacer("old.example.com", "older.example.com").Replace(officeConfig))
	got := command(t, 0, "policy", "diff", o.dir+"/old.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log")
	for _, want := range []string{
		"  App: ana@example.com: deny → allow, 3 requests",
		"  1 went to routes that neither configuration has\n",
		"  3 were decided otherwise than OLD decides, the first with request id request-1: the log is of another configuration",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
	command(t, 1, "policy", "diff", o.dir+"/old.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log", "--exit-code")
	command(t, 0, "policy", "diff", o.dir+"/new.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log", "--exit-code")
}

func TestReplayAsJSON(t *testing.T) {
	o := asking(t)
	o.write("new.yaml", strings.ReplaceAll(officeConfig, "domain: {is: example.com}", "domain: {is: example.org}"))
	var d policyDiff
	out := command(t, 0, "policy", "diff", o.dir+"/running.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log", "--output", "json")
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(d.Routes) != 1 || d.Same != 3 || d.Replay.Changed != 3 || d.Replay.Decisions != 10 || len(d.Replay.Changes) != 1 {
		t.Fatalf("got %s", out)
	}
	c := d.Replay.Changes[0]
	if c.Person != "ana@example.com" || c.From != "allow" || c.To != "deny" || c.Requests != 3 || c.First.RequestID != "request-1" || len(c.Because) != 2 {
		t.Errorf("got %+v", c)
	}
}

// TestReplayIsBounded shows that many strangers do not fill the memory.
func TestReplayIsBounded(t *testing.T) {
	o := newOffice(t, officeConfig)
	var log strings.Builder
	for i := range maxChanges + 5 {
		fmt.Fprintf(&log, `{"time":"2026-01-02T15:04:05Z","msg":"authorize check","outcome":"allow","request-id":"%d","route":"App","host":"app.example.com","path":"/","method":"GET","session-id":"s","user":"u%d","email":"u%d@example.com","groups":[]}`+"\n", i, i, i)
	}
	o.write("log", log.String())
	o.write("new.yaml", strings.ReplaceAll(officeConfig, "domain: {is: example.com}", "domain: {is: example.org}"))
	got := command(t, 0, "policy", "diff", o.dir+"/running.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log")
	if !strings.Contains(got, "and 5 more changed") || !strings.Contains(got, "10005 changed, 0 the same") {
		t.Errorf("got …%s", got[max(0, len(got)-500):])
	}
}

func TestExplainLogged(t *testing.T) {
	o := asking(t)
	team := o.ask("", "GET", "team.example.com", "/again")
	gone := o.ask("", "GET", "elsewhere.test", "/again")
	o.write("log", o.log.String())
	explain := func(code int, config, id string) string {
		t.Helper()
		return command(t, code, "policy", "explain", "--config", o.dir+"/"+config, "--request-id", id, "--log", o.dir+"/log")
	}
	changed := strings.NewReplacer("domain: {is: example.com}", "domain: {is: example.org}",
		"[{authenticated_user: true}]}", "[{authenticated_user: true}, {header/x-team: {is: red}}]}").Replace(officeConfig)
	o.write("new.yaml", changed)
	tests := []struct {
		name, config, id string
		code             int
		want, never      []string
	}{
		{"an allowed one", "running.yaml", "request-1", 0,
			[]string{"allow\nroute App (", "had example.com", "\nThe log has: allow, at 2", "for ana@example.com, GET app.example.com/x, by line 9, because of domain-ok"},
			[]string{"changed", "another one", "does not hold"}},
		{"one of nobody", "running.yaml", team, 0, []string{"sign-in\nroute Team (", "The log has: sign-in", "for nobody, GET team.example.com/again"}, []string{"does not hold"}},
		{"the policy has changed", "new.yaml", "request-1", 0,
			[]string{"deny\nroute App (", "The log has: allow", "The policy has changed since.\n", "The decision above is another one.\n"}, nil},
		{"the log does not hold it all", "new.yaml", team, 0,
			[]string{"sign-in\nroute Team (", "The log does not hold what the policy also reads: header x-team."}, []string{"another one"}},
		{"there was no route", "running.yaml", gone, 1, []string{"the request went to no route then", "what was decided was no-route. Now: no route has the host elsewhere.test"}, nil},
		{"no such request", "running.yaml", "request-99", 1, []string{`has the request id "request-99"; it holds 12 decisions`}, nil},
		{"an odd id", "running.yaml", `a"b`, 1, []string{"no decision in "}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := explain(tt.code, tt.config, tt.id)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("want %q in\n%s", want, got)
				}
			}
			for _, never := range tt.never {
				if strings.Contains(got, never) {
					t.Errorf("there is %q in\n%s", never, got)
				}
			}
		})
	}
	var x struct {
		Logged loggedNow `json:"logged"`
	}
	out := command(t, 0, "policy", "explain", "--config", o.dir+"/new.yaml", "--request-id", "request-1", "--log", o.dir+"/log", "--output", "json")
	if err := json.Unmarshal([]byte(out), &x); err != nil || !x.Logged.Differs || !x.Logged.PolicyChanged || x.Logged.Effect != "allow" {
		t.Errorf("%v %s", err, out)
	}
}

// TestExplainTheNewestOfAnID shows that of several decisions with one id, which
// clients can choose, the newest counts.
func TestExplainTheNewestOfAnID(t *testing.T) {
	o := newOffice(t, officeConfig)
	line := func(at, outcome string) string {
		return fmt.Sprintf(`{"time":"%s","msg":"authorize check","outcome":"%s","request-id":"same","route":"Old","host":"old.example.com","path":"/","method":"GET"}`+"\n", at, outcome)
	}
	o.write("log", line("2026-01-02T15:04:06Z", "allow")+line("2026-01-02T15:04:05Z", "forbidden"))
	got := command(t, 0, "policy", "explain", "--config", o.dir+"/running.yaml", "--request-id", "same", "--log", o.dir+"/log")
	if !strings.Contains(got, "The log has: allow, at 2026-01-02T15:04:06Z") {
		t.Error(got)
	}
	o.write("log", strings.Replace(line("2026-01-02T15:04:06Z", "allow"), "same", `a\"b`, 1))
	got = command(t, 0, "policy", "explain", "--config", o.dir+"/running.yaml", "--request-id", `a"b`, "--log", o.dir+"/log")
	if !strings.HasPrefix(got, "allow\nroute Old (") {
		t.Errorf("an id that JSON escapes: %s", got)
	}
}

// TestReplayOfALongPath shows that the log need not have the end of a path where
// it has the route.
func TestReplayOfALongPath(t *testing.T) {
	old := strings.Replace(officeConfig, "https://old.example.com\n", "https://old.example.com\n  regex: /a+\n", 1)
	o := newOffice(t, old)
	o.ask("", "GET", "old.example.com", "/"+strings.Repeat("a", 2*maxPath))
	o.write("log", o.log.String())
	o.write("new.yaml", strings.Replace(old, "[{accept: true}]", "[{http_method: {is: PUT}}]", 1))
	got := command(t, 0, "policy", "diff", o.dir+"/running.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log")
	if !strings.Contains(got, "  Old: anyone: allow → deny, 1 request") {
		t.Error(got)
	}
	o.write("new.yaml", strings.Replace(old, "[{accept: true}]", "[{http_path: {is: /b}}]", 1))
	got = command(t, 0, "policy", "diff", o.dir+"/running.yaml", o.dir+"/new.yaml", "--replay", o.dir+"/log")
	if !strings.Contains(got, "  1 cannot be decided: the log does not hold the whole path\n") {
		t.Error(got)
	}
}

// FuzzReadLine shows that a log of any bytes is read to its end.
func FuzzReadLine(f *testing.F) {
	f.Add([]byte("a\nb"))
	f.Add([]byte("\n\r\n"))
	f.Add([]byte(`{"msg":"authorize check","outcome":"allow"}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		from, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		l := &decisionLog{name: path, from: from}
		good := 0
		if err := l.each(t.Context(), nil, func(*authz.LoggedCheck) error { good++; return nil }); err != nil {
			t.Fatal(err)
		}
		if good+l.broken != l.decisions {
			t.Errorf("%d good, %d broken of %d", good, l.broken, l.decisions)
		}
	})
}
