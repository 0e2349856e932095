package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

func TestABrokenReloadChangesNothing(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	end := s.load(2, ana)
	good := s.config()
	before := s.deploy.inForce()
	tests := []struct{ name, text, want string }{
		{"an unknown key", good + "nonsense: true\n", `config.yaml:19:1: unknown key \"nonsense\"`},
		{"a policy that means nothing", strings.Replace(good, "domain:", "domian:", 1), `unknown criterion \"domian\"`},
		{"what only a part that is built refuses", s.config("signing_key: c2VjcmV0c2VjcmV0"), "signing_key: "},
		{"another store", s.config("databroker_storage_type: memory"), "databroker_storage_connection_string does not go with"},
		{"another folder", strings.Replace(good, "/state\n", "/elsewhere\n", 1), "databroker_storage_connection_string has changed: restart to use the other store"},
		{"another secret that the store needs", s.config("shared_secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="), "shared_secret has changed, which the stored tokens are encrypted under: restart to use it"},
		{"nothing at all", "", "the configuration is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.write(tt.text)
			s.until("the log says "+tt.want, func() bool {
				return strings.Contains(s.log.String(), tt.want)
			})
			if s.deploy.inForce() != before {
				t.Error("the configuration in force has changed")
			}
			if got := s.status("app", ana); got != 200 {
				t.Errorf("status %d", got)
			}
		})
	}
	if answered, failures := end(); len(failures) > 0 {
		t.Errorf("%d of %d requests were lost, the first: %s", len(failures), answered, failures[0])
	}
	if !strings.Contains(s.log.String(), "configuration refused; the last good one stays in force") {
		t.Error("the log does not say that the last good one stays")
	}
}

func TestReloadRoutesAndCertificate(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	end := s.load(4, ana) // over connections with the certificate of before
	s.until("requests are under way", func() bool { return s.hits.Load() > 10 })
	before := s.kept()

	s.write(s.config() + s.route("new", "example.com"))
	// Its certificate is verified: until it covers the new host there is no
	// answer.
	s.until("the new route is served, under its name", func() bool { return s.status("new", ana) == 200 })
	after := s.kept()
	if before[caFile] != after[caFile] || before[caKeyFile] != after[caKeyFile] || before[secretsFile] != after[secretsFile] {
		t.Error("a reload made a new authority or new secrets")
	}
	if before[certFile] == after[certFile] {
		t.Error("the certificate was not renewed")
	}

	// The route goes; who asks authz for it by its old name learns that too.
	gone := s.deploy.inForce().Routes[1].ID
	if got := s.check(gone); got == 404 {
		t.Errorf("a route in force: status %d", got)
	}
	s.write(s.config())
	s.until("the route is gone", func() bool { return s.status("new", ana) != 200 })
	s.until("authz has forgotten it", func() bool { return s.check(gone) == 404 })

	if answered, failures := end(); len(failures) > 0 {
		t.Errorf("%d of %d requests were lost, the first: %s", len(failures), answered, failures[0])
	}
}

// check asks the authorization server about nobody's request to a route.
func (s *system) check(routeID string) int32 {
	return askAuthz(s.t, s.deploy.authz, routeID)
}

func askAuthz(t testing.TB, server *authz.Server, routeID string) int32 {
	t.Helper()
	resp, err := server.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: map[string]string{"countersign.route": routeID},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: "GET", Host: "new.example.com", Path: "/", Scheme: "https",
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return int32(resp.GetDeniedResponse().GetStatus().GetCode())
}

// TestARouteStaysKnownUntilEnvoyHasLetGoOfIt applies two configurations while
// no Envoy has taken either.
func TestARouteStaysKnownUntilEnvoyHasLetGoOfIt(t *testing.T) {
	s := newSystem(t)
	s.write(s.config() + s.route("old", "example.com"))
	applied := make(chan *deployment, 1)
	d := &deployment{ConfigPath: s.path, Envoy: externalEnvoy, Log: s.logger()}
	d.Ready = func(databroker.Store) { applied <- d }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.serve(ctx) }()
	<-applied
	old := d.inForce().Routes[1].ID
	s.write(s.config())
	s.until("the reload is in force", func() bool { return len(d.inForce().Routes) == 1 })
	if got := askAuthz(t, d.authz, old); got == 404 {
		t.Error("authz forgot a route that an Envoy may still send")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), "has not taken") {
		t.Errorf("a complaint about an Envoy that there is not:\n%s", s.log)
	}
}

func TestRestartNeeded(t *testing.T) {
	load := func(change func(*config.Config)) *config.Config {
		c := &config.Config{
			Databroker: config.Databroker{StorageType: "file", Dir: "/a"},
			Secrets:    config.Secrets{Shared: []byte("one"), Cookie: []byte("one")},
		}
		change(c)
		return c
	}
	old := load(func(*config.Config) {})
	tests := []struct {
		name string
		old  *config.Config
		new  *config.Config
		want string
	}{
		{"the first needs nothing", nil, old, ""},
		{"cookies are no reason", old, load(func(c *config.Config) { c.Secrets.Cookie = []byte("two") }), ""},
		{"another type of store", old, load(func(c *config.Config) { c.Databroker.StorageType = "memory" }), "databroker_storage_type"},
		{"another folder", old, load(func(c *config.Config) { c.Databroker.Dir = "/b" }), "databroker_storage_connection_string"},
		{"another secret", old, load(func(c *config.Config) { c.Secrets.Shared = []byte("two") }), "shared_secret"},
		{"another port for metrics", old, load(func(c *config.Config) { c.MetricsAddress = ":9090" }), "metrics_address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := restartNeeded(tt.old, tt.new)
			if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || !strings.HasPrefix(got, tt.want) && tt.want != "" {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestCommandsFindTheRunningSystem runs them while it has the store open.
func TestCommandsFindTheRunningSystem(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	s.signIn("bob", "bob@example.com")
	if got := s.status("app", ana); got != 200 {
		t.Fatalf("before: status %d\n%s", got, s.log)
	}
	command := func(args ...string) string {
		t.Helper()
		var out, errs strings.Builder
		if code := run(t.Context(), append(args, "--config", s.path), &out, &errs); code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, &errs)
		}
		return out.String()
	}
	if list := command("session", "list", "--output", "json"); !strings.Contains(list, `"user-ana"`) || !strings.Contains(list, `"bob@example.com"`) {
		t.Errorf("session list: %s", list)
	}
	token := strings.TrimSpace(command("service-account", "create", "--user", "robot"))
	s.write(s.config("jwt_claims_headers: [email]") + fmt.Sprintf(`
  - name: api
    from: https://%s
    to: %s
    policy:
      - allow:
          and:
            - user:
                is: robot
`, s.host("api"), s.upstream.URL))
	s.until("the account gets in", func() bool { return s.status("api", "_pomerium="+token) == 200 })

	if got := command("session", "revoke", "--user", "user-ana"); got != "1 session ended\n" {
		t.Errorf("session revoke: %q", got)
	}
	began := time.Now()
	s.until("ana is sent to sign in", func() bool { return s.status("app", ana) == 302 })
	if took := time.Since(began); took > time.Second {
		t.Errorf("a revoked session was refused after %s", took)
	}
	id, _, _ := strings.Cut(strings.TrimSpace(strings.SplitAfter(command("service-account", "list"), "\n")[1]), " ")
	command("service-account", "revoke", id)
	s.until("the account is refused", func() bool { return s.status("api", "_pomerium="+token) != 200 })
	if log := s.log.String(); strings.Contains(log, token) {
		t.Error("the log holds the account's token")
	}

	var out, errs strings.Builder
	if code := run(t.Context(), []string{"session", "revoke", "nobody", "--config", s.path}, &out, &errs); code != 1 || !strings.Contains(errs.String(), `no session has the id "nobody"`) {
		t.Errorf("exit code %d: %s", code, &errs)
	}
	errs.Reset()
	// Nobody may be an account under a person's name.
	if err := s.store.PutUser(t.Context(), &databroker.User{ID: "carol", CreatedAt: began, SignedInAt: began}); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), []string{"service-account", "create", "--user", "carol", "--config", s.path}, &out, &errs); code != 1 || !strings.Contains(errs.String(), "is the id of a person who has signed in") {
		t.Errorf("exit code %d: %s", code, &errs)
	}
}

func TestLogLevelFollowsTheConfiguration(t *testing.T) {
	level := &slog.LevelVar{}
	d := &deployment{Level: level}
	for name, want := range map[string]bool{"debug": true, "info": false, "disabled": false} {
		d.setLevel(name)
		if got := level.Level() <= slog.LevelDebug; got != want {
			t.Errorf("%s: debug is logged: %v", name, got)
		}
	}
	if d.setLevel("disabled"); level.Level() <= slog.LevelError {
		t.Error("disabled: errors are logged")
	}
}
