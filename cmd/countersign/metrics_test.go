package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/policy"
	"github.com/countersign/countersign/refresh"
)

func TestMetrics(t *testing.T) {
	stats := func() authz.Stats {
		return authz.Stats{
			Checks:           map[authz.Outcome]uint64{authz.Allow: 7, authz.Forbidden: 2, authz.Unavailable: 0},
			OriginalsDropped: 3, Identities: 5,
			Shadows: []authz.ShadowStats{
				{RouteID: "1", Route: "App", Evaluated: 9, Failed: 1, Different: []authz.ShadowDifference{
					{Policy: policy.Allow, Shadow: policy.Deny, Count: 2}, {Policy: policy.SignIn, Shadow: policy.Deny, Count: 1}}},
				{RouteID: "2", Route: "App", Evaluated: 1, Different: []authz.ShadowDifference{{Policy: policy.Allow, Shadow: policy.Deny, Count: 1}}},
			},
		}
	}
	refreshed := func() refresh.Stats {
		return refresh.Stats{Holding: true, Scheduled: 4, Refreshed: 11, Refused: 1, Unusable: 6}
	}
	handler := metricsHandler(slog.New(slog.DiscardHandler), newAuthzMetrics(stats, func() string { return "abc" }), newRefreshMetrics(refreshed))
	get := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return w
	}
	w := get("GET", "/metrics")
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, want := range []string{
		`countersign_checks_total{outcome="allow"} 7`,
		`countersign_checks_total{outcome="forbidden"} 2`,
		`countersign_checks_total{outcome="unavailable"} 0`,
		`countersign_originals_dropped_total 3`,
		`countersign_identities 5`,
		`countersign_config_version{version="abc"} 1`,
		`countersign_shadow_decisions_total{route="App"} 10`,
		`countersign_shadow_failures_total{route="App"} 1`,
		`countersign_shadow_differences_total{real="allow",route="App",shadow="deny"} 3`,
		`countersign_shadow_differences_total{real="sign-in",route="App",shadow="deny"} 1`,
		`countersign_refresh_holding 1`,
		`countersign_refresh_sessions 4`,
		`countersign_refresh_refreshes_total 11`,
		`countersign_refresh_refused_total 1`,
		`countersign_refresh_failures_total{why="unusable"} 6`,
		`countersign_refresh_failures_total{why="unavailable"} 0`,
		`# TYPE countersign_checks_total counter`,
		`# TYPE countersign_identities gauge`,
		`go_goroutines `,
		`process_open_fds `,
	} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("want %q in\n%s", want, w.Body)
		}
	}
	for _, path := range []string{"/", "/debug/pprof/", "/metrics/", "/debug/vars"} {
		if w := get("GET", path); w.Code != 404 {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	if w := get("POST", "/metrics"); w.Code != 405 {
		t.Errorf("POST: status %d", w.Code)
	}
}

// TestMetricsOfARunningSystem shows the counts of a deployment, with a shadow
// policy, and that another address needs a restart.
func TestMetricsOfARunningSystem(t *testing.T) {
	s := newSystem(t)
	address := freeAddress(t)
	text := strings.TrimRight(s.config("metrics_address: "+address), "\n ") + "\n    policy_shadow: {allow: {or: [{domain: {is: example.org}}]}}\n"
	s.write(text)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	for range 3 {
		if got := s.status("app", ana); got != 200 {
			t.Fatalf("status %d\n%s", got, s.log)
		}
	}
	body := scrape(t, address)
	for _, want := range []string{
		`countersign_checks_total{outcome="allow"} 3`,
		`countersign_identities 1`,
		`countersign_shadow_differences_total{real="allow",route="app",shadow="deny"} 3`,
		fmt.Sprintf(`countersign_config_version{version="%s"} 1`, s.deploy.inForce().Version),
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("want %q in\n%s", want, body)
		}
	}
	s.write(strings.Replace(text, address, freeAddress(t), 1))
	s.until("the other address is refused", func() bool {
		return strings.Contains(s.log.String(), "metrics_address has changed: restart to listen there")
	})
	scrape(t, address)
	s.stop()
	if l, err := net.Listen("tcp", address); err != nil {
		t.Errorf("the listener outlives the deployment: %v", err)
	} else {
		_ = l.Close()
	}
}

func scrape(t *testing.T, address string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	return string(body)
}

// TestMetricsAddressInUse shows that a deployment without its metrics does not
// start.
func TestMetricsAddressInUse(t *testing.T) {
	s := newSystem(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s.write(s.config("metrics_address: " + l.Addr().String()))
	d := &deployment{ConfigPath: s.path, Envoy: externalEnvoy, Log: s.logger()}
	if err := d.serve(t.Context()); err == nil || !strings.Contains(err.Error(), "metrics_address: ") {
		t.Errorf("got %v", err)
	}
}
