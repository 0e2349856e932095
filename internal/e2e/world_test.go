package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/envoy/envoytest"
	"github.com/countersign/countersign/internal/demo"
)

// countersign is the binary that TestMain built.
var countersign string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "cs")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		countersign = filepath.Join(dir, "countersign")
		build := exec.Command("go", "build", "-o", countersign, "./cmd/countersign")
		build.Dir, build.Stdout, build.Stderr = moduleRoot(), os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build countersign:", err)
			return 1
		}
		code := m.Run()
		for _, problem := range sharedWorld.end() {
			fmt.Fprintln(os.Stderr, "--- FAIL: shared world:", problem)
			code = 1
		}
		return code
	}())
}

func moduleRoot() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

// options describe a world. The zero value has the demo's hosts, provider and
// people, and no routes.
type options struct {
	// Domain is where hosts are, "demo.localhost" if empty.
	Domain string
	// AuthenticateHost and ProviderHost are authenticate.DOMAIN and idp.DOMAIN
	// if empty. Both must end in ".localhost".
	AuthenticateHost, ProviderHost string
	// AccessLife is how long the provider's access tokens live, 0 for its default.
	AccessLife time.Duration
	// NoProvider leaves out every idp_* key.
	NoProvider bool
	// Settings are lines of the global part of the configuration.
	Settings []string
	// Routes is the YAML below `routes:`, indented by any amount, a template:
	// {{url "app"}} is https://app.DOMAIN:PORT, {{to "name"}} the URL of an
	// upstream of this name, made on first use: it echoes (see received). Names
	// that begin with "h2c" are served over h2c.
	Routes string
	// Upstreams are served under their names in place of an echo.
	Upstreams map[string]upstreamHandler
	// Env is added to the environment of the commands.
	Env []string
	// Prepare puts files beside the configuration before anything starts.
	Prepare func(dir string) error
	// Config replaces the whole configuration: a template like Routes. The
	// address and the state folder come from the environment then.
	Config string
}

// world is one deployment and what is around it.
type world struct {
	name    string
	options options
	envoy   string
	// dir holds everything, state is the state folder within it.
	dir, state, config string
	// port is Envoy's.
	port         int
	provider     *provider
	clientSecret string
	log          *logs
	secrets      secrets

	mu        sync.Mutex
	upstreams map[string]*upstream
	process   *process
	ended     bool
}

// process is one run of the binary.
type process struct {
	command *exec.Cmd
	exited  chan struct{}
	err     error
}

// newWorld starts a world that ends with the test.
func newWorld(t testing.TB, o options) *world {
	t.Helper()
	w, err := makeWorld(t.Name(), envoytest.Path(t), o)
	if w != nil {
		t.Cleanup(func() {
			for _, problem := range w.end() {
				t.Error(problem)
			}
		})
	}
	if err == nil {
		err = w.start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// shared is a world for every test that changes nothing in it.
type shared struct {
	once  sync.Once
	world *world
	err   error
}

var sharedWorld shared

func (s *shared) get(t testing.TB) *world {
	t.Helper()
	s.once.Do(func() {
		if s.world, s.err = makeWorld("shared", envoytest.Path(t), options{Routes: sharedRoutes, Settings: sharedSettings()}); s.err == nil {
			s.err = s.world.start()
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.world
}

func (s *shared) end() []string {
	if s.world == nil {
		return nil
	}
	return s.world.end()
}

// makeWorld makes everything but starts nothing of ours.
func makeWorld(name, envoy string, o options) (*world, error) {
	if o.Domain == "" {
		o.Domain = "demo.localhost"
	}
	if o.AuthenticateHost == "" {
		o.AuthenticateHost = "authenticate." + o.Domain
	}
	if o.ProviderHost == "" {
		o.ProviderHost = "idp." + o.Domain
	}
	dir, err := os.MkdirTemp("", "cs") // short: sockets go there
	if err != nil {
		return nil, err
	}
	w := &world{
		name: name, options: o, envoy: envoy, dir: dir, state: filepath.Join(dir, "state"), config: filepath.Join(dir, "config.yaml"),
		clientSecret: "e2e-client-secret-0123456789", upstreams: map[string]*upstream{},
	}
	w.secret(w.clientSecret)
	if w.port, err = freePort(); err != nil {
		return w, err
	}
	out := filepath.Join(moduleRoot(), ".out", "e2e", strings.ReplaceAll(name, "/", "_")+".log")
	if w.log, err = newLogs(out); err != nil {
		return w, err
	}
	if !o.NoProvider {
		if w.provider, err = startProvider(w, demo.People()); err != nil {
			return w, err
		}
	}
	if o.Prepare != nil {
		if err := o.Prepare(dir); err != nil {
			return w, err
		}
	}
	content, err := w.render(o.Routes)
	if err != nil {
		return w, err
	}
	return w, w.write(content)
}

// freePort finds a port outside the range that outgoing connections take
// theirs from, so that it stays free until Envoy listens.
func freePort() (int, error) {
	for range 200 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free port")
}

// host is a host name of this world, without a port.
func (w *world) host(name string) string { return name + "." + w.options.Domain }

// url is the URL of a path (or of nothing) on a host of this world.
func (w *world) url(name, path string) string {
	return "https://" + net.JoinHostPort(w.host(name), strconv.Itoa(w.port)) + path
}

// authenticateURL is the URL of a path on the authenticate host.
func (w *world) authenticateURL(path string) string {
	return "https://" + net.JoinHostPort(w.options.AuthenticateHost, strconv.Itoa(w.port)) + path
}

// address is where Envoy listens.
func (w *world) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(w.port)) }

const configTemplate = `address: {{.Address}}
databroker_storage_connection_string: {{.State}}
authenticate_service_url: {{.Authenticate}}
{{- if .Issuer}}
idp_provider: oidc
idp_provider_url: {{.Issuer}}
idp_client_id: e2e
idp_client_secret: {{.Secret}}
idp_scopes: [openid, profile, email, groups, offline_access]
programmatic_allowed_audiences: [{{.Programs}}]
{{- end}}
{{- range .Settings}}
{{.}}
{{- end}}
`

// render makes a configuration with these routes.
func (w *world) render(routes string) (string, error) {
	content := w.options.Config
	if content == "" {
		content = configTemplate + "routes:\n" + routes
	}
	var failed error
	t, err := template.New("config").Funcs(template.FuncMap{
		"url":  func(name string) string { return w.url(name, "") },
		"host": func(name string) string { return net.JoinHostPort(w.host(name), strconv.Itoa(w.port)) },
		"to": func(name string) string {
			u, err := w.upstream(name)
			if err != nil {
				failed = err
				return ""
			}
			return u.url
		},
	}).Parse(content)
	if err != nil {
		return "", fmt.Errorf("routes: %w", err)
	}
	issuer := ""
	if w.provider != nil {
		issuer = w.provider.issuer
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"Address": w.address(), "State": (&url.URL{Scheme: "file", Path: w.state}).String(), "Authenticate": w.authenticateURL(""),
		"Issuer": issuer, "Secret": w.clientSecret, "Programs": demo.PublicClientID, "Settings": w.options.Settings, "Dir": w.dir, "Domain": w.options.Domain,
	})
	return b.String(), errors.Join(err, failed)
}

// write replaces the configuration, in one step as an editor does.
func (w *world) write(content string) error { return replace(w.config, []byte(content)) }

func replace(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// upstream returns the upstream of a name, and starts it if there is none.
func (w *world) upstream(name string) (*upstream, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if u := w.upstreams[name]; u != nil {
		return u, nil
	}
	u, err := serveUpstream(name, w.options.Upstreams[name], w.secret)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", name, err)
	}
	w.upstreams[name] = u
	return u, nil
}

// environment is what the commands get: nothing of ours but what the test asks for.
func (w *world) environment() []string {
	env := []string{"ENVOY=" + w.envoy}
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	if w.options.Config != "" {
		env = append(env, "ADDRESS="+w.address(), "DATABROKER_STORAGE_CONNECTION_STRING=file://"+w.state)
	}
	return append(env, w.options.Env...)
}

// start runs the binary and waits until it is ready.
func (w *world) start() error {
	ready := w.log.count("ready")
	if err := w.spawn(); err != nil {
		return err
	}
	return w.log.wait(30*time.Second, "ready", func() bool { return w.log.count("ready") > ready }, w.process.exited)
}

// spawn runs the binary.
func (w *world) spawn() error {
	c := exec.Command(countersign, "run", "--config", w.config)
	c.Env, c.Dir, c.Stderr, c.Stdout = w.environment(), w.dir, w.log, w.log
	c.SysProcAttr = childAttributes()
	if err := c.Start(); err != nil {
		return fmt.Errorf("start countersign: %w", err)
	}
	p := &process{command: c, exited: make(chan struct{})}
	go func() {
		p.err = c.Wait()
		close(p.exited)
	}()
	w.mu.Lock()
	w.process = p
	w.mu.Unlock()
	return nil
}

// signal sends the process a signal and waits until it has ended.
func (w *world) signal(s os.Signal, within time.Duration) error {
	p := w.process
	if p == nil {
		return nil
	}
	if err := p.command.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(within):
		return fmt.Errorf("countersign has not ended %v after signal %v", within, s)
	}
}

// stop is Ctrl-C.
func (w *world) stop(t testing.TB) {
	t.Helper()
	if err := w.signal(os.Interrupt, 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (w *world) kill(t testing.TB) {
	t.Helper()
	if err := w.signal(os.Kill, 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

// restart starts again what stop or kill has ended.
func (w *world) restart(t testing.TB) {
	t.Helper()
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
}

// reload puts new routes in force and waits until they are.
func (w *world) reload(t testing.TB, routes string) {
	t.Helper()
	content, err := w.render(routes)
	if err != nil {
		t.Fatal(err)
	}
	w.change(t, "configuration reloaded", func() error { return w.write(content) })
}

// change changes a file, and waits for a line of the log that says message.
func (w *world) change(t testing.TB, message string, change func() error) {
	t.Helper()
	before := w.log.count(message)
	if err := change(); err != nil {
		t.Fatal(err)
	}
	if err := w.log.wait(15*time.Second, message, func() bool { return w.log.count(message) > before }, w.process.exited); err != nil {
		t.Fatal(err)
	}
}

// result is what a command came to.
type result struct {
	stdout, stderr string
	code           int
}

// cli runs a command of the binary, with --config where it takes one.
func (w *world) cli(t testing.TB, args ...string) result {
	t.Helper()
	if args[0] != "verify" && args[0] != "keys" {
		args = append(args, "--config", w.config)
	}
	return w.cliWithout(t, args...)
}

// cliWithout runs a command of the binary as it is given.
func (w *world) cliWithout(t testing.TB, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, countersign, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr, c.Dir = &stdout, &stderr, w.dir
	c.Env = append(w.environment(), "SSL_CERT_FILE="+filepath.Join(w.state, "ca.pem"))
	err := c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// serviceAccount makes a service account and returns its token.
func (w *world) serviceAccount(t testing.TB, user string) string {
	t.Helper()
	r := w.cli(t, "service-account", "create", "--user", user)
	token := strings.TrimSpace(r.stdout)
	if r.code != 0 || token == "" {
		t.Fatalf("service-account create --user %s: exit code %d: %s", user, r.code, r.stderr)
	}
	w.secret(token)
	return token
}

// roots are the authority that the state folder holds, or else the one beside
// the configuration.
func (w *world) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, dir := range []string{w.state, w.dir} {
		if ca, err := os.ReadFile(filepath.Join(dir, "ca.pem")); err == nil {
			pool.AppendCertsFromPEM(ca)
		}
	}
	return pool
}

// signingKey is that of the state folder.
func (w *world) signingKey(t testing.TB) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.state, "secrets.json"))
	if err != nil {
		t.Fatal(err)
	}
	var kept struct {
		SigningKey []byte `json:"signing_key"`
	}
	if err := json.Unmarshal(raw, &kept); err != nil {
		t.Fatal(err)
	}
	return kept.SigningKey
}

// keys is what signs in this world.
func (w *world) keys(t testing.TB) *assertion.KeyRing {
	t.Helper()
	ring, err := assertion.ParseSigningKey(w.signingKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// end stops everything, and returns what is wrong with how it was.
func (w *world) end() (problems []string) {
	if w.ended {
		return nil
	}
	w.ended = true
	if err := w.signal(os.Interrupt, 10*time.Second); err != nil {
		problems = append(problems, err.Error())
		_ = w.signal(os.Kill, 10*time.Second)
	}
	for pid, line := range processes(w.dir) {
		problems = append(problems, "a process is left: "+line)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if w.log != nil {
		problems = append(problems, w.leaks()...)
		w.log.close()
	}
	if w.provider != nil {
		w.provider.close()
	}
	for _, u := range w.upstreams {
		u.close()
	}
	if err := os.RemoveAll(w.dir); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}
