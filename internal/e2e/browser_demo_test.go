package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/envoy/envoytest"
)

// demoCommand is `countersign demo`, which is what `make run` runs.
type demoCommand struct {
	*process
	dir, address string
	// first is the first URL that it printed.
	first string
	// said is all that it had printed by then.
	said   string
	logged *logs
}

var anyURL = regexp.MustCompile(`https?://\S+`)

func startDemo(t *testing.T) *demoCommand {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // short: sockets go there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(moduleRoot(), ".out", "e2e")
	said, err := newLogs(filepath.Join(kept, "demo.out"))
	if err != nil {
		t.Fatal(err)
	}
	logged, err := newLogs(filepath.Join(kept, "demo.log"))
	if err != nil {
		t.Fatal(err)
	}
	d := &demoCommand{process: &process{exited: make(chan struct{})}, dir: filepath.Join(dir, "demo"), logged: logged}
	d.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	d.command = exec.Command(countersign, "demo", "--listen", d.address, "--dir", d.dir, "--log-level", "info")
	d.command.Env = append(os.Environ(), "ENVOY="+envoytest.Path(t))
	d.command.Stdout, d.command.Stderr, d.command.SysProcAttr = said, logged, childAttributes()
	if err := d.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.command.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		_ = d.command.Process.Kill()
		<-d.exited
		said.close()
		logged.close()
	})
	if err := said.wait(browserPatience, "Ctrl-C", func() bool { return strings.Contains(said.text(), "Ctrl-C") }, d.exited); err != nil {
		t.Fatalf("%v\n%s", err, logged.text())
	}
	d.said = said.text()
	d.first = anyURL.FindString(d.said)
	return d
}

// envoy is the process of this demo's Envoy, which it has written down.
func (d *demoCommand) envoy(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(d.dir, "envoy.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(content))[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func runs(pid int) bool {
	p, err := os.FindProcess(pid)
	return err == nil && p.Signal(syscall.Signal(0)) == nil
}

func testDemo(t *testing.T, c *chromium) {
	d := startDemo(t)
	_, port, _ := net.SplitHostPort(d.address)
	app, authenticate := "https://app.demo.localhost:"+port, "https://authenticate.demo.localhost:"+port
	if d.first != app+"/" {
		t.Errorf("the first URL printed is %s, want that of the app, %s/", d.first, app)
	}
	if !strings.Contains(d.said, "/ca.pem") || !strings.Contains(d.said, "trust it") {
		t.Errorf("no command that trusts its authority is printed:\n%s", d.said)
	}

	ana := c.profile(t, nil)
	ana.open(d.first, "http://idp.demo.localhost:")
	ana.has("Ana Alves", "ana@companydomain.com", "Ben Okafor", "Carla Weiss", "No passwords")
	ana.photograph("provider")
	if v := ana.signIn("ana", app); v.url != d.first || v.status != 200 {
		t.Fatalf("sign-in ends at %s with status %d, want 200 at %s", v.url, v.status, d.first)
	}
	ana.hops()
	ana.photograph("app")

	ana.click(`a[href="/.pomerium/"]`, app+"/.pomerium/")
	ana.has("Ana Alves", "ana@companydomain.com", "staff", "engineering", "Sign out")
	ana.photograph("who-am-i")
	ana.click(`form[action="/.pomerium/sign_out"] button`, authenticate+"/.pomerium/signed_out")
	ana.has("You are signed out")
	ana.photograph("signed-out")
	ana.nobody("app.demo.localhost", "authenticate.demo.localhost")
	ana.open(d.first, "http://idp.demo.localhost:")

	// With a place to go, the sign-out leads back to the app, which asks who
	// is there: a form that ends at three other origins.
	ana.signIn("ana", d.first)
	ana.open(app+"/.pomerium/sign_out?pomerium_redirect_uri="+app+"/hops", app+"/.pomerium/sign_out")
	ana.has("Sign out?", "Stay signed in")
	ana.photograph("sign-out")
	ana.click(`form[action="/.pomerium/sign_out"] button`, "http://idp.demo.localhost:")
	ana.nobodySignedIn("app.demo.localhost", "authenticate.demo.localhost")
	ana.signIn("ben", app+"/hops")
	ana.has("ben@companydomain.com")

	carla := c.profile(t, nil)
	carla.open(d.first, "http://idp.demo.localhost:")
	if v := carla.signIn("carla", d.first); v.status != 403 {
		t.Errorf("Carla gets status %d, want 403:\n%s", v.status, carla.text("body"))
	}
	carla.has("403 Forbidden", "carla@partner.example", "domain is companydomain.com", "partner.example")
	carla.photograph("forbidden")
	carla.click(`.actions a[href*="sign_out"]`, app+"/.pomerium/sign_out")
	carla.click(`form[action="/.pomerium/sign_out"] button`, "http://idp.demo.localhost:")
	carla.signIn("ben", d.first)
	carla.has("Hello, Ben Okafor")

	for _, cookie := range append(ana.jar(), carla.jar()...) {
		if strings.Contains(d.logged.text(), cookie.Value) {
			t.Errorf("the log shows the value of cookie %s", cookie.Name)
		}
	}

	d.interrupt(t)
}

// interrupt is Ctrl-C, which ends everything in time.
func (d *demoCommand) interrupt(t *testing.T) {
	t.Helper()
	envoy := d.envoy(t)
	if !runs(envoy) {
		t.Fatalf("no Envoy runs as process %d", envoy)
	}
	began := time.Now()
	if err := d.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.exited:
	case <-time.After(browserPatience):
		t.Fatalf("Ctrl-C has not ended the demo after %v", browserPatience)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Ctrl-C took %v, want at most 5 s", took)
	}
	if d.err != nil {
		t.Errorf("the demo ended with %v", d.err)
	}
	if runs(envoy) {
		t.Errorf("Envoy, process %d, has outlived the demo", envoy)
	}
	if conn, err := net.Dial("tcp", d.address); err == nil {
		_ = conn.Close()
		t.Errorf("something still listens at %s", d.address)
	}
}

// hops checks the picture of the demo for Ana.
func (b *tab) hops() {
	b.t.Helper()
	b.has("Hello, Ana Alves", "What each hop received")
	for _, part := range []struct {
		section string
		want    []string
	}{
		{"hop-0-caller", []string{"verified", "Ana Alves", "person", "ana@companydomain.com", "staff, engineering", "app.demo.localhost", "pomerium-proxy"}},
		{"hop-0-user", []string{"absent"}},
		{"hop-1-caller", []string{"verified", "api-access", "service account", "api.demo.localhost"}},
		{"hop-1-user", []string{"verified", "Ana Alves", "ana@companydomain.com", "app.demo.localhost", "Byte for byte what App received"}},
		{"hop-2-caller", []string{"verified", "api2-access", "service account", "api2.demo.localhost"}},
		{"hop-2-user", []string{"verified", "Ana Alves", "ana@companydomain.com", "app.demo.localhost", "Byte for byte what App received"}},
	} {
		text := b.text(`section[aria-labelledby="` + part.section + `"]`)
		for _, want := range part.want {
			if !strings.Contains(text, want) {
				b.t.Errorf("the picture's %s does not show %q:\n%s", part.section, want, text)
			}
		}
		if strings.Contains(text, "not verified") {
			b.t.Errorf("the picture's %s is not verified:\n%s", part.section, text)
		}
	}
}
