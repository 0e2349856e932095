package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const stableRoutes = `
  - name: App
    from: {{url "app"}}
    to: {{to "app"}}
    allow_websockets: true
    policy: [{allow: {and: [{domain: {is: companydomain.com}}]}}]
  - name: Public
    from: {{url "public"}}
    to: {{to "public"}}
    allow_public_unauthenticated_access: true
`

const addedRoute = `
  - name: Added
    from: {{url "added"}}
    to: {{to "added"}}
    allow_public_unauthenticated_access: true
`

// load is what clients do in a closed loop while a test changes things.
type traffic struct {
	answered atomic.Int64
	stop     context.CancelFunc
	done     sync.WaitGroup
	mu       sync.Mutex
	failures []string
}

// drive sends requests from several clients, each waiting for its answer, until
// finish. Anything but 200 is a failure.
func drive(clients []*agent, targets ...string) *traffic {
	ctx, stop := context.WithCancel(context.Background())
	l := &traffic{stop: stop}
	for i, c := range clients {
		target := targets[i%len(targets)]
		l.done.Go(func() {
			for ctx.Err() == nil {
				r, err := http.NewRequest("GET", target, nil)
				if err != nil {
					l.fail(err.Error())
					return
				}
				r.Header.Set("Accept", "application/json")
				switch a, err := c.try(r); {
				case err != nil:
					l.fail(err.Error())
				case a.StatusCode != http.StatusOK:
					l.fail(fmt.Sprintf("%s: %s: %.300s", target, a.Status, a.Body))
				}
				l.answered.Add(1)
			}
		})
	}
	return l
}

func (l *traffic) fail(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, what)
}

// finish ends the load and reports what failed.
func (l *traffic) finish(t *testing.T) {
	t.Helper()
	l.stop()
	l.done.Wait()
	t.Logf("%d requests under load", l.answered.Load())
	for i, f := range l.failures {
		if i == 10 {
			t.Errorf("and %d more", len(l.failures)-i)
			break
		}
		t.Error(f)
	}
}

// more waits until n more requests were answered.
func (l *traffic) more(t *testing.T, n int64) {
	t.Helper()
	from := l.answered.Load()
	eventually(t, 20*time.Second, "requests under load", func() bool { return l.answered.Load() >= from+n })
}

// eventually waits for a condition that asks something over the network.
func eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); !condition(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// status is what a fetch is answered.
func (c *agent) status(t testing.TB, target string) int {
	t.Helper()
	return c.fetch(t, target).StatusCode
}

// serial is the serial number of the certificate that new connections get.
func (w *world) serial(t testing.TB, host string) int64 {
	t.Helper()
	c, err := tls.Dial("tcp", w.address(), &tls.Config{RootCAs: w.roots(), ServerName: w.host(host)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// TestReloadUnderLoad changes everything that a reload may change while
// requests run: none is lost, and each change can be seen.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, options{
		Settings: []string{"certificate_file: cert.pem", "certificate_key_file: key.pem", "pass_identity_headers: true"},
		Prepare:  func(dir string) error { return ca.write(dir, "*.demo.localhost", 100) },
		Routes:   stableRoutes,
	})
	app, public, added := w.url("app", "/"), w.url("public", "/"), w.url("added", "/")
	ana, ben := w.session(t, "ana", app), w.session(t, "ben", app)
	cookie := ana.cookie(t, app, "_pomerium")
	socket := w.dialWebSocket(t, "app", cookie)
	clients := []*agent{ana, w.client(), w.client1(), w.client1(), ana, w.client()}
	clients[2].Jar = ana.Jar
	l := drive(clients, app, public)
	defer l.finish(t)
	l.more(t, 50)

	one := w.client()
	for round := range int64(3) {
		w.reload(t, stableRoutes+addedRoute)
		eventually(t, 5*time.Second, "the added route is served", func() bool { return one.status(t, added) == http.StatusOK })

		w.reload(t, strings.Replace(stableRoutes, "companydomain.com", "companydomain.com}}, {email: {is: ana@companydomain.com", 1)+addedRoute)
		eventually(t, 5*time.Second, "the stricter policy refuses ben", func() bool { return ben.status(t, app) == http.StatusForbidden })

		w.reload(t, stableRoutes)
		eventually(t, 5*time.Second, "the removed route is gone", func() bool { return one.status(t, added) == http.StatusNotFound })
		eventually(t, 5*time.Second, "the old policy admits ben", func() bool { return ben.status(t, app) == http.StatusOK })

		serial := 101 + round
		w.change(t, "configuration reloaded", func() error { return ca.write(w.dir, "*.demo.localhost", serial) })
		eventually(t, 5*time.Second, "new connections get the new certificate", func() bool { return w.serial(t, "app") == serial })
		socket.say(t, "still here")
		l.more(t, 50)
	}
}

// TestBrokenReload: a configuration that is wrong changes nothing, and the log
// says where it is wrong.
func TestBrokenReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{Routes: stableRoutes})
	good, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	public := w.url("public", "/")
	clients := []*agent{w.client(), w.client1()}
	l := drive(clients, public)
	defer l.finish(t)
	lines := strings.Count(string(good), "\n")
	tests := []struct{ name, content, want string }{
		{"an unknown key", string(good) + "    alow_websockets: true\n", fmt.Sprintf("config.yaml:%d:5: ", lines+1)},
		{"a bad pattern", string(good) + "  - from: " + w.url("x", "") + "\n    to: http://127.0.0.1:1\n    regex: '['\n    allow_public_unauthenticated_access: true\n", fmt.Sprintf("config.yaml:%d:12: ", lines+3)},
		{"no YAML", string(good) + "  - {\n", fmt.Sprintf("config.yaml:%d", lines+1)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			const refused = "configuration refused; the last good one stays in force"
			w.change(t, refused, func() error { return w.write(strings.Replace(test.content, "companydomain.com", "nobody.example", 1)) })
			reported := w.log.lines(refused)
			problem, _ := reported[len(reported)-1]["problem"].(string)
			if !strings.Contains(problem, test.want) {
				t.Errorf("the log says %q, want %s", problem, test.want)
			}
			l.more(t, 20)
			if a := w.signIn(t, w.client(), "ana", w.url("app", "/")); a.StatusCode != http.StatusOK {
				t.Errorf("the policy of the broken configuration is in force: %s", a.Status)
			}
		})
	}
	w.change(t, "configuration reloaded", func() error { return w.write(string(good) + "\n# mended\n") })
}
