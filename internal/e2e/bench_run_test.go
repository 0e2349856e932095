package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/envoy"
	"github.com/countersign/countersign/internal/signin"
)

const benchHost = "app.bench.localhost"

// benchDeployment is a `countersign run` with one person signed in.
type benchDeployment struct {
	dir, path, address, upstream string
	routes                       int
	// routeID is what Envoy calls the App's route.
	routeID string
	cookie  string
	cmd     *exec.Cmd
}

// newBenchDeployment writes a configuration of so many routes, the first of
// which is the App's, and a session into its store.
func newBenchDeployment(b *testing.B, upstream string, routes int) *benchDeployment {
	b.Helper()
	dir, err := os.MkdirTemp("", "csb") // the path of a socket must be short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &benchDeployment{
		dir: dir, path: filepath.Join(dir, "config.yaml"), address: freeAddress(b), upstream: upstream, routes: routes,
	}
	d.write(b, "0")
	cfg, err := config.Load(d.path, config.LoadOptions{Generate: func(*config.Config) (*config.Generated, error) {
		return &config.Generated{SigningKey: make([]byte, 32)}, nil
	}})
	if err != nil {
		b.Fatal(err)
	}
	store, err := databroker.OpenFile(b.Context(), databroker.FileConfig{Dir: filepath.Join(dir, "state"), SealKey: cfg.Secrets.Shared})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	session := &databroker.Session{
		ID: "bench", UserID: "alice-id", IDPID: cfg.IDPs[0].ID(), CreatedAt: now, ExpiresAt: now.Add(time.Hour),
		Claims: map[string]any{"email": "alice@companydomain.com", "name": "Alice", "groups": []any{"staff", "engineering"}},
	}
	if err := store.PutSession(b.Context(), session); err != nil {
		b.Fatal(err)
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	keys, err := signin.NewKeys(cfg.Secrets.Shared, cfg.Secrets.Cookie)
	if err != nil {
		b.Fatal(err)
	}
	token, err := keys.MintSession(signin.SessionToken{
		SessionID: session.ID, IDPID: session.IDPID, IssuedAt: now, ExpiresAt: session.ExpiresAt,
	})
	if err != nil {
		b.Fatal(err)
	}
	d.routeID = cfg.Routes[0].ID
	d.cookie = cfg.Cookie.Name + "=" + token
	return d
}

func freeAddress(b *testing.B) string {
	b.Helper()
	port, err := freePort()
	if err != nil {
		b.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// write writes the configuration; the last route marks its answers.
func (d *benchDeployment) write(b *testing.B, mark string) {
	b.Helper()
	secret := func(letter string) string {
		return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(letter, 32)))
	}
	var y strings.Builder
	fmt.Fprintf(&y, `address: %s
insecure_server: true
databroker_storage_connection_string: "file://%s/state"
shared_secret: %s
cookie_secret: %s
authenticate_service_url: https://authenticate.bench.localhost
idp_provider: oidc
idp_provider_url: http://127.0.0.1:9
idp_client_id: bench
idp_client_secret: bench
pass_identity_headers: true
log_level: info
routes:
`, d.address, d.dir, secret("s"), secret("c"))
	for i := range d.routes {
		host, settings := benchHost, ""
		if i > 0 {
			host = fmt.Sprintf("app%d.bench.localhost", i)
		}
		if i == d.routes-1 {
			settings = "\n    set_response_headers: {x-mark: \"" + mark + "\"}"
		}
		fmt.Fprintf(&y, `  - from: https://%s
    to: http://%s%s
    policy:
      - allow:
          and:
            - domain:
                is: companydomain.com
`, host, d.upstream, settings)
	}
	if err := replace(d.path, []byte(y.String())); err != nil {
		b.Fatal(err)
	}
}

// lastHost is the host of the route that write marks.
func (d *benchDeployment) lastHost() string {
	if d.routes == 1 {
		return benchHost
	}
	return fmt.Sprintf("app%d.bench.localhost", d.routes-1)
}

// start runs the deployment, with its log in a file, until the benchmark ends,
// and returns how long it took until the first request got through.
func (d *benchDeployment) start(b *testing.B, binary string) time.Duration {
	b.Helper()
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = log.Close() })
	d.cmd = exec.Command(binary, "run", "--config", d.path)
	d.cmd.Stderr = log
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(d.stop)
	if err := await(d.address, browserRequest(d.lastHost(), "/", d.cookie), func([]byte) bool { return true }); err != nil {
		content, _ := os.ReadFile(log.Name())
		b.Fatalf("%v; its log:\n%s", err, content)
	}
	return time.Since(began)
}

func (d *benchDeployment) stop() {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		_ = d.cmd.Wait() // it was told to end
	}
}

// await asks until an answer of 200 is as wanted.
func await(address string, request []byte, wanted func(head []byte) bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var c *client
	var status int
	var head []byte
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		if c == nil {
			var err error
			if c, err = dialClient(address); err != nil {
				c = nil
				continue
			}
		}
		var err error
		if status, head, err = c.do(request); err != nil {
			_ = c.conn.Close()
			c = nil
			continue
		}
		if status == http.StatusOK && wanted(head) {
			return c.conn.Close()
		}
	}
	return fmt.Errorf("no good answer from %s in time; the last: status %d, %q", address, status, head)
}

// envoyPID is the process id of the deployment's Envoy.
func (d *benchDeployment) envoyPID() (pid int) {
	raw, _ := os.ReadFile(filepath.Join(d.dir, "state", "envoy.pid")) // 0 if there is none
	_, _ = fmt.Sscan(string(raw), &pid)
	return pid
}

// object is JSON whose shape only Envoy knows.
type object = map[string]any

// envoyConfig asks the deployment's Envoy what it runs, and returns that as
// the static part of a bootstrap.
func (d *benchDeployment) envoyConfig(b *testing.B) object {
	b.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, "state", "admin.sock"))
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("http://envoy/config_dump")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var dump struct {
		Configs []struct {
			Clusters []struct {
				Cluster object `json:"cluster"`
			} `json:"dynamic_active_clusters"`
			Listeners []struct {
				State struct {
					Listener object `json:"listener"`
				} `json:"active_state"`
			} `json:"dynamic_listeners"`
			Routes []struct {
				Config object `json:"route_config"`
			} `json:"dynamic_route_configs"`
		} `json:"configs"`
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	// Envoy shows no context extension, and there is only this one.
	raw = bytes.ReplaceAll(raw, []byte("[redacted]"), []byte(d.routeID))
	if err := json.Unmarshal(raw, &dump); err != nil {
		b.Fatal(err)
	}
	var clusters, listeners []any
	var routes object
	for _, c := range dump.Configs {
		for _, c := range c.Clusters {
			delete(c.Cluster, "@type")
			clusters = append(clusters, c.Cluster)
		}
		for _, l := range c.Listeners {
			delete(l.State.Listener, "@type")
			listeners = append(listeners, l.State.Listener)
		}
		for _, r := range c.Routes {
			delete(r.Config, "@type")
			routes = r.Config
		}
	}
	if len(clusters) < 3 || len(listeners) != 1 || routes == nil {
		b.Fatalf("Envoy reports %d clusters, %d listeners and routes %v", len(clusters), len(listeners), routes)
	}
	manager := connectionManager(listeners[0].(object))
	delete(manager, "rds")
	manager["route_config"] = routes
	return object{"clusters": clusters, "listeners": listeners}
}

func connectionManager(listener object) object {
	filter := listener["filter_chains"].([]any)[0].(object)["filters"].([]any)[0].(object)
	return filter["typed_config"].(object)
}

// startEnvoy runs a static Envoy, under the flags that ours run under, until
// the benchmark ends. It listens on the address that it returns.
func startEnvoy(b *testing.B, static object) (address string, pid int) {
	b.Helper()
	dir, err := os.MkdirTemp("", "cse")
	if err != nil {
		b.Fatal(err)
	}
	address = freeAddress(b)
	_, port, _ := net.SplitHostPort(address)
	listener := static["listeners"].([]any)[0].(object)
	listener["address"].(object)["socket_address"].(object)["port_value"] = json.Number(port)
	admin := filepath.Join(dir, "admin.sock")
	bootstrap, err := json.Marshal(object{
		"admin":            object{"address": object{"pipe": object{"path": admin}}},
		"static_resources": static,
	})
	if err != nil {
		b.Fatal(err)
	}
	binary, err := envoy.Find(b.Context(), envoy.FindOptions{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := envoy.New(envoy.Config{Binary: binary.Path, Dir: dir, Bootstrap: bootstrap, AdminSocket: admin})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	ready, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := s.Ready(ready); err != nil {
		b.Fatalf("%v\n%s", err, bootstrap)
	}
	return address, s.Status().PID
}
