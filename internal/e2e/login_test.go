package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// terminal is where somebody types commands: a home of their own.
type terminal struct {
	world *world
	// home is $HOME, config $XDG_CONFIG_HOME.
	home, config string
	env          []string
}

// terminal has the authority of the world in its environment.
func (w *world) terminal(t testing.TB) *terminal {
	t.Helper()
	home := t.TempDir()
	config := filepath.Join(home, "settings")
	ca := filepath.Join(w.state, "ca.pem")
	return &terminal{world: w, home: home, config: config, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + config, "SSL_CERT_FILE=" + ca, "CURL_CA_BUNDLE=" + ca,
	}}
}

// command is one that runs in a terminal.
type command struct {
	*exec.Cmd
	mu             sync.Mutex
	stdout, stderr bytes.Buffer
	exited         chan struct{}
}

// locked is a writer for two goroutines.
type locked struct {
	mu  *sync.Mutex
	buf *bytes.Buffer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// start runs a program; it ends with the test at the latest.
func (m *terminal) start(t testing.TB, name string, args ...string) *command {
	t.Helper()
	c := &command{Cmd: exec.Command(name, args...), exited: make(chan struct{})}
	c.Env, c.Dir, c.SysProcAttr = m.env, m.home, childAttributes()
	c.Stdout, c.Stderr = locked{&c.mu, &c.stdout}, locked{&c.mu, &c.stderr}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.Wait() // its state says how it ended
		close(c.exited)
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-c.exited
	})
	return c
}

// said is what it has said so far.
func (c *command) said() (stdout, stderr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stdout.String(), c.stderr.String()
}

// end waits for the end of a command.
func (c *command) end(t testing.TB) result {
	t.Helper()
	select {
	case <-c.exited:
	case <-time.After(60 * time.Second):
		stdout, stderr := c.said()
		t.Fatalf("%s does not end\n%s%s", c.Args, stdout, stderr)
	}
	stdout, stderr := c.said()
	return result{stdout, stderr, c.ProcessState.ExitCode()}
}

// asks waits until the command has said something, and returns the first group of
// the pattern.
func (c *command) asks(t testing.TB, pattern string) string {
	t.Helper()
	want := regexp.MustCompile(pattern)
	var found []string
	eventually(t, 30*time.Second, "the command says "+pattern, func() bool {
		stdout, stderr := c.said()
		found = want.FindStringSubmatch(stdout + stderr)
		if found == nil {
			select {
			case <-c.exited:
				t.Fatalf("%s has ended\n%s%s", c.Args, stdout, stderr)
			default:
			}
		}
		return found != nil
	})
	return found[1]
}

// login runs countersign login.
func (m *terminal) login(t testing.TB, args ...string) *command {
	t.Helper()
	return m.start(t, countersign, append([]string{"login"}, args...)...)
}

const addressToOpen = `(https?://\S+)\n`

// token is the token that a login has printed. What it says to people holds none.
func (r result) token(t testing.TB, w *world) string {
	t.Helper()
	token := strings.TrimSuffix(r.stdout, "\n")
	if r.code != 0 || token == "" || strings.ContainsAny(token, " \n") {
		t.Fatalf("login: exit code %d, stdout %q, stderr %s", r.code, r.stdout, r.stderr)
	}
	if strings.Contains(r.stderr, token) {
		t.Errorf("stderr shows the token")
	}
	w.secret(token)
	return token
}

// person is a browser in which somebody signs in at the demo's provider.
func (w *world) person(t testing.TB, name string) (c *agent, open func(address string) *answer) {
	c = w.client()
	return c, func(address string) *answer {
		t.Helper()
		return w.agree(t, c, address, func(a *answer) *answer { return c.next(t, name, a) })
	}
}

// browse walks the address that a login shows, as a person in a browser does.
func (w *world) browse(t testing.TB, person string, login *command) {
	t.Helper()
	c, open := w.person(t, person)
	back := open(login.asks(t, addressToOpen))
	to, err := back.Location()
	if err != nil {
		t.Fatalf("the sign-in ends at %s: %s", back.Request.URL, back.Body)
	}
	if a := c.navigate(t, to.String()); a.StatusCode != http.StatusOK || !strings.Contains(a.Body, "You are signed in") {
		t.Errorf("the program's page: %s %s", a.Status, a.Body)
	}
}

// kept is the file of the one site that a terminal has signed in at.
func (m *terminal) kept(t testing.TB) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(m.config, "countersign", "login-*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("kept files %v, %v", files, err)
	}
	return files[0]
}

// edit changes what a terminal has kept.
func (m *terminal) edit(t testing.TB, change func(kept map[string]any)) {
	t.Helper()
	raw, err := os.ReadFile(m.kept(t))
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]any{}
	if err := json.Unmarshal(raw, &kept); err != nil {
		t.Fatal(err)
	}
	change(kept)
	if raw, err = json.Marshal(kept); err == nil {
		err = os.WriteFile(m.kept(t), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// whose is whom the application sees behind a token, "" if it refuses it.
func (w *world) whose(t testing.TB, token string) string {
	t.Helper()
	a := w.client().fetch(t, w.url("app", "/"), "Authorization", "Bearer "+token)
	if a.StatusCode == http.StatusUnauthorized {
		return ""
	}
	email, _ := a.echo(t).claims(t)["email"].(string)
	return email
}

const ana, ben = "ana@companydomain.com", "ben@companydomain.com"

// TestLogin is the life of a login: a sign-in in the browser, runs that ask nobody,
// a renewal, a revocation, and its end.
func TestLogin(t *testing.T) {
	w := newWorld(t, options{Settings: []string{"pass_identity_headers: true"}, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	m := w.terminal(t)
	app := w.url("app", "")
	login := m.login(t, "--url", app, "--no-browser")
	w.browse(t, "ana", login)
	first := login.end(t).token(t, w)
	if got := w.whose(t, first); got != ana {
		t.Errorf("with the token the application sees %q", got)
	}
	for path, mode := range map[string]os.FileMode{m.kept(t): 0o600, filepath.Dir(m.kept(t)): 0o700 | os.ModeDir} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v, %v", path, info.Mode(), mode, err)
		}
	}

	t.Run("again", func(t *testing.T) { loginAgain(t, w, m, app, first) })
	t.Run("renewal", func(t *testing.T) { loginRenews(t, w, m, app) })
	t.Run("open file", func(t *testing.T) { loginRefusesOpenFile(t, m, app) })
	t.Run("revocation", func(t *testing.T) { loginAfterRevocation(t, w, m, app, first) })
	t.Run("end", func(t *testing.T) { loginEnds(t, w, m, app) })
}

func loginAgain(t *testing.T, w *world, m *terminal, app, first string) {
	again := m.login(t, "--url", app).end(t)
	if token := again.token(t, w); token != first || again.stderr != "" {
		t.Errorf("it prints another token, or says %q", again.stderr)
	}
	var told struct {
		Token   string
		Expires time.Time `json:"expires_at"`
	}
	r := m.login(t, "--url", app+"/some/page?x=y", "--output", "json").end(t)
	if err := json.Unmarshal([]byte(r.stdout), &told); err != nil || told.Token != first || time.Until(told.Expires) < 50*time.Minute {
		t.Errorf("--output json: %v, good until %v, the same token %v", err, told.Expires, told.Token == first)
	}
}

func loginRenews(t *testing.T, w *world, m *terminal, app string) {
	var before, after any
	m.edit(t, func(kept map[string]any) {
		before, kept["expires_at"] = kept["refresh_token"], time.Now().Add(30*time.Second)
	})
	renewed := m.login(t, "--url", app).end(t)
	token := renewed.token(t, w)
	m.edit(t, func(kept map[string]any) { after = kept["refresh_token"] })
	if before == after || renewed.stderr != "" || w.whose(t, token) != ana {
		t.Errorf("a token that runs out: renewed %v, it says %q", before != after, renewed.stderr)
	}
	// A token that the site does not take is renewed whatever its time.
	m.edit(t, func(kept map[string]any) { kept["access_token"] = "of-another-key" })
	if token := m.login(t, "--url", app).end(t).token(t, w); w.whose(t, token) != ana {
		t.Error("in place of a token that is refused another comes that is refused")
	}
	// Where people sign in is the same site.
	if token := m.login(t, "--url", w.authenticateURL("/")).end(t).token(t, w); w.whose(t, token) != ana {
		t.Error("with the URL of the authenticate host the token is refused")
	}
	if token := m.login(t, "--config", w.config).end(t).token(t, w); w.whose(t, token) != ana {
		t.Error("with the configuration the token is refused")
	}
}

func loginRefusesOpenFile(t *testing.T, m *terminal, app string) {
	if err := os.Chmod(m.kept(t), 0o640); err != nil {
		t.Fatal(err)
	}
	if r := m.login(t, "--url", app).end(t); r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "can be read by others") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	if err := os.Chmod(m.kept(t), 0o600); err != nil {
		t.Fatal(err)
	}
}

func loginAfterRevocation(t *testing.T, w *world, m *terminal, app, first string) {
	sessions := w.list(t, "session", "list", "--user", "ana")
	if len(sessions) != 1 || sessions[0].Method != "program" {
		t.Fatalf("sessions %+v", sessions)
	}
	w.must(t, "session", "revoke", sessions[0].ID)
	eventually(t, time.Second, "the token is refused", func() bool { return w.whose(t, first) == "" })
	asked := m.login(t, "--url", app, "--no-browser")
	w.browse(t, "ben", asked)
	if token := asked.end(t).token(t, w); w.whose(t, token) != ben {
		t.Error("after a revocation and a new sign-in the token is refused")
	}
}

func loginEnds(t *testing.T, w *world, m *terminal, app string) {
	token := m.login(t, "--url", app).end(t).token(t, w)
	if r := m.login(t, "--url", app, "--end").end(t); r.code != 0 || r.stderr != "signed out\n" || r.stdout != "" {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	eventually(t, time.Second, "the token is refused", func() bool { return w.whose(t, token) == "" })
	if got := w.list(t, "session", "list", "--user", "ben"); len(got) != 0 {
		t.Errorf("sessions %+v", got)
	}
	if _, err := os.Stat(filepath.Join(m.config, "countersign")); err != nil {
		t.Error(err)
	}
	if r := m.login(t, "--url", app, "--end").end(t); r.code != 0 || r.stderr != "nobody is signed in here\n" {
		t.Errorf("a second time: exit code %d, %s", r.code, r.stderr)
	}
}

// TestLoginThroughARestart has the site restart while somebody types the code.
func TestLoginThroughARestart(t *testing.T) {
	w := newWorld(t, options{Settings: []string{"pass_identity_headers: true"}, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	login := w.terminal(t).login(t, "--url", w.url("app", ""), "--device")
	page, code := login.asks(t, addressToOpen), login.asks(t, `\n +([B-Z]{4}-[B-Z]{4})\n`)
	w.stop(t)
	// It asks every five seconds.
	select {
	case <-login.exited:
	case <-time.After(6 * time.Second):
	}
	w.restart(t)
	_, open := w.person(t, "ana")
	open(page + "?user_code=" + code)
	if token := login.end(t).token(t, w); w.whose(t, token) != ana {
		t.Error("the token is refused")
	}
}

// TestLoginElsewhere is a login without a browser, one that is refused, one that
// somebody else answers, and a site that nobody has reason to trust.
func TestLoginElsewhere(t *testing.T) {
	w := newWorld(t, options{Settings: []string{"pass_identity_headers: true"}, Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	app := w.url("app", "")
	t.Run("device", func(t *testing.T) { loginByDevice(t, w, app) })
	t.Run("refused", func(t *testing.T) { loginRefused(t, w, app) })
	t.Run("another issuer", func(t *testing.T) { loginOfAnotherIssuer(t, w, app) })
	t.Run("two at once", func(t *testing.T) { loginsAtOnce(t, w, app) })
	t.Run("a certificate that nobody vouches for", func(t *testing.T) { loginWithoutTrust(t, w, app) })
	t.Run("a site that is not ours", func(t *testing.T) { loginAtAnotherSite(t, w) })
}

func loginByDevice(t *testing.T, w *world, app string) {
	t.Parallel()
	// There is no display, so that a code is shown without --device too.
	for _, args := range [][]string{{"--device"}, nil} {
		m := w.terminal(t)
		login := m.login(t, append([]string{"--url", app}, args...)...)
		page := login.asks(t, addressToOpen)
		code := login.asks(t, `\n +([B-Z]{4}-[B-Z]{4})\n`)
		_, open := w.person(t, "ana")
		if a := open(page + "?user_code=" + code); a.StatusCode != http.StatusOK {
			t.Errorf("the page of codes ends with %s: %s", a.Status, a.Body)
		}
		if token := login.end(t).token(t, w); w.whose(t, token) != ana {
			t.Error("the token of a device is refused")
		}
		if again := m.login(t, "--url", app).end(t); again.code != 0 || again.stderr != "" {
			t.Errorf("a second time: exit code %d, %s", again.code, again.stderr)
		}
	}
}

func loginRefused(t *testing.T, w *world, app string) {
	t.Parallel()
	m := w.terminal(t)
	login := m.login(t, "--url", app, "--no-browser")
	c := w.client()
	page := w.follow(t, c, "ana", c.navigate(t, login.asks(t, addressToOpen)))
	back := c.submitFirst(t, page, url.Values{"answer": {"cancel"}})
	to, err := back.Location()
	if err != nil {
		t.Fatalf("%s: %s", back.Status, back.Body)
	}
	// What anybody could send does not end the login.
	q := to.Query()
	for _, change := range []url.Values{{}, {"code": {"x"}}, {"code": {"x"}, "state": {"x"}, "iss": q["iss"]}} {
		forged := *to
		forged.RawQuery = change.Encode()
		if a := c.navigate(t, forged.String()); a.StatusCode != http.StatusBadRequest {
			t.Errorf("%v: %s", change, a.Status)
		}
	}
	if a := c.navigate(t, to.String()); !strings.Contains(a.Body, "You were not signed in") {
		t.Errorf("%s: %s", a.Status, a.Body)
	}
	if r := login.end(t); r.code != 1 || r.stdout != "" || !strings.HasSuffix(r.stderr, "countersign: sign in: it was not allowed in the browser\n") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}

func loginOfAnotherIssuer(t *testing.T, w *world, app string) {
	t.Parallel()
	login := w.terminal(t).login(t, "--url", app, "--no-browser")
	c, open := w.person(t, "ana")
	to, err := open(login.asks(t, addressToOpen)).Location()
	if err != nil {
		t.Fatal(err)
	}
	q := to.Query()
	q.Set("iss", "https://idp.elsewhere.example")
	to.RawQuery = q.Encode()
	c.navigate(t, to.String())
	if r := login.end(t); r.code != 1 || r.stdout != "" || !strings.HasSuffix(r.stderr, "countersign: sign in: the answer came from another site\n") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}

func loginsAtOnce(t *testing.T, w *world, app string) {
	t.Parallel()
	m := w.terminal(t)
	one := m.login(t, "--url", app, "--no-browser")
	one.asks(t, addressToOpen)
	two := m.login(t, "--url", app, "--no-browser")
	two.asks(t, `(another login to this site is under way)`)
	// Ctrl-C gets who waits out of it.
	three := m.login(t, "--url", app, "--no-browser")
	three.asks(t, `(another login to this site is under way)`)
	if err := three.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if r := three.end(t); r.code == 0 || r.stdout != "" {
		t.Errorf("exit code %d, stdout %q", r.code, r.stdout)
	}
	w.browse(t, "ana", one)
	if a, b := one.end(t).token(t, w), two.end(t).token(t, w); a != b {
		t.Error("two logins at once have two tokens")
	}
	// Renewed at once, too, the token stays good.
	m.edit(t, func(kept map[string]any) { kept["expires_at"] = time.Now() })
	all := []*command{m.login(t, "--url", app), m.login(t, "--url", app), m.login(t, "--url", app)}
	for _, l := range all {
		if token := l.end(t).token(t, w); w.whose(t, token) != ana {
			t.Error("a token that was renewed at once with others is refused")
		}
	}
}

func loginWithoutTrust(t *testing.T, w *world, app string) {
	t.Parallel()
	m := w.terminal(t)
	m.env = []string{"HOME=" + m.home}
	r := m.login(t, "--url", app).end(t)
	if r.code != 1 || !strings.Contains(r.stderr, "name the file with its certificate: --ca FILE") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	login := m.login(t, "--url", app, "--no-browser", "--ca", filepath.Join(w.state, "ca.pem"))
	w.browse(t, "ana", login)
	login.end(t).token(t, w)
	if _, err := os.Stat(filepath.Join(m.home, ".config", "countersign")); err != nil {
		t.Errorf("without XDG_CONFIG_HOME: %v", err)
	}
}

func loginAtAnotherSite(t *testing.T, w *world) {
	t.Parallel()
	r := w.terminal(t).login(t, "--url", w.provider.issuer).end(t)
	if r.code != 1 || !strings.Contains(r.stderr, "is Countersign in front of it?") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}
