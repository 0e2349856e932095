package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	keycloakHost     = "idp.kc.localhost"
	keycloakRealm    = "company"
	keycloakAdmin    = "admin"
	keycloakPassword = "keycloak-admin-password-0123456789"
)

// keycloak is a Keycloak with the realm of testdata/keycloak.
type keycloak struct {
	t      testing.TB
	port   int
	client *http.Client
	// token is that of the administrator.
	token string
}

// keycloakDir is where the Makefile has put the distribution.
func keycloakDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(moduleRoot(), ".tools", "keycloak")
	if _, err := os.Stat(filepath.Join(dir, "bin", "kc.sh")); err == nil {
		return dir
	}
	if os.Getenv("CI") == "" {
		for _, needed := range []string{"java", "mvn"} {
			if _, err := exec.LookPath(needed); err != nil {
				t.Skipf("there is no %s here, which Keycloak needs; CI has it", needed)
			}
		}
	}
	t.Fatal("Keycloak is not there: run make keycloak")
	return ""
}

// issuer is the URL of the realm on a port.
func keycloakIssuer(port int) string {
	return "http://" + keycloakHost + ":" + strconv.Itoa(port) + "/realms/" + keycloakRealm
}

// startKeycloak starts Keycloak on a port; it trusts the authority of w and finds
// its authenticate host. It ends with the test.
func startKeycloak(t testing.TB, w *world, port int) *keycloak {
	t.Helper()
	home := t.TempDir()
	realms := filepath.Join(home, "data", "import")
	hosts := filepath.Join(home, "hosts")
	realm, err := os.ReadFile("testdata/keycloak/realm.json")
	if err != nil {
		t.Fatal(err)
	}
	dist := keycloakDir(t)
	err = errors.Join(os.MkdirAll(realms, 0o700),
		os.WriteFile(filepath.Join(realms, "realm.json"), realm, 0o600),
		os.WriteFile(hosts, []byte("127.0.0.1 "+w.options.AuthenticateHost+" localhost\n"), 0o600))
	// It writes below its own folder: this one has the rest of it as links.
	for _, name := range []string{"bin", "lib", "conf", "providers", "themes"} {
		err = errors.Join(err, os.Symlink(filepath.Join(dist, name), filepath.Join(home, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(moduleRoot(), ".out", "e2e", "keycloak.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	c := exec.Command(java, "-Xmx400m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dkc.home.dir="+home, "-Djboss.server.config.dir="+filepath.Join(home, "conf"),
		"-Djava.util.logging.manager=org.jboss.logmanager.LogManager", "-Dpicocli.disable.closures=true", "-Djdk.net.hosts.file="+hosts,
		"-cp", filepath.Join(home, "lib", "quarkus-run.jar"), "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
		"start", "--optimized", "--import-realm", "--cache=local", "--http-enabled=true", "--hostname-strict=false",
		"--http-host=127.0.0.1", "--http-port="+strconv.Itoa(port), "--truststore-paths="+filepath.Join(w.state, "ca.pem"))
	c.Env = append(os.Environ(), "KC_BOOTSTRAP_ADMIN_USERNAME="+keycloakAdmin, "KC_BOOTSTRAP_ADMIN_PASSWORD="+keycloakPassword)
	c.Stdout, c.Stderr, c.SysProcAttr = out, out, childAttributes()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-exited:
			exited <- err
		case <-time.After(20 * time.Second):
			_ = c.Process.Kill()
		}
	})
	k := &keycloak{t: t, port: port, client: w.client().Client}
	eventually(t, 90*time.Second, "Keycloak answers", func() bool {
		if len(exited) > 0 {
			log, _ := os.ReadFile(out.Name())
			t.Fatalf("Keycloak has ended:\n%s", log)
		}
		r, err := k.client.Get(keycloakIssuer(port) + "/.well-known/openid-configuration")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	answer := k.post("/realms/master/protocol/openid-connect/token", url.Values{
		"client_id": {"admin-cli"}, "grant_type": {"password"}, "username": {keycloakAdmin}, "password": {keycloakPassword},
	})
	k.token, _ = answer["access_token"].(string)
	return k
}

// post sends a form and returns the JSON of the answer, which must be good.
func (k *keycloak) post(path string, form url.Values) map[string]any {
	k.t.Helper()
	r, err := k.client.PostForm("http://"+keycloakHost+":"+strconv.Itoa(k.port)+path, form)
	if err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	var answer map[string]any
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil || r.StatusCode != http.StatusOK {
		k.t.Fatalf("%s: %s %v %v", path, r.Status, answer, err)
	}
	return answer
}

// admin calls the administration's API with JSON and reads its answer into result,
// if that is not nil.
func (k *keycloak) admin(method, path string, body, result any) {
	k.t.Helper()
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			k.t.Fatal(err)
		}
	}
	r, err := http.NewRequest(method, "http://"+keycloakHost+":"+strconv.Itoa(k.port)+"/admin/realms/"+keycloakRealm+path, &content)
	if err != nil {
		k.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+k.token)
	r.Header.Set("Content-Type", "application/json")
	response, err := k.client.Do(r)
	if err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && result != nil {
		err = json.Unmarshal(text, result)
	}
	if err != nil || response.StatusCode >= 300 {
		k.t.Fatalf("%s %s: %s %v %.300s", method, path, response.Status, err, text)
	}
}

// find returns the id of what a list of the administration has first.
func (k *keycloak) find(path string) string {
	k.t.Helper()
	var list []struct{ ID string }
	k.admin(http.MethodGet, path, nil, &list)
	if len(list) == 0 {
		k.t.Fatalf("%s: nothing found", path)
	}
	return list[0].ID
}

// user is the id of a user of the realm.
func (k *keycloak) user(name string) string { return k.find("/users?exact=true&username=" + name) }

// group is the id of a group of the realm.
func (k *keycloak) group(name string) string { return k.find("/groups?exact=true&search=" + name) }

// sessions are the ids of a user's sessions, but for those in without.
func (k *keycloak) sessions(user string, without ...string) []string {
	k.t.Helper()
	var list []struct{ ID string }
	k.admin(http.MethodGet, "/users/"+k.user(user)+"/sessions", nil, &list)
	var ids []string
	for _, s := range list {
		if !slices.Contains(without, s.ID) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// backchannel has the client of ours told of sign-outs at a URL, with the sid or
// with the user alone.
func (k *keycloak) backchannel(target string, sid bool) {
	k.t.Helper()
	path := "/clients/" + k.find("/clients?clientId=countersign")
	var client map[string]any
	k.admin(http.MethodGet, path, nil, &client)
	attributes, _ := client["attributes"].(map[string]any)
	attributes["backchannel.logout.url"] = target
	attributes["backchannel.logout.session.required"] = strconv.FormatBool(sid)
	k.admin(http.MethodPut, path, client, nil)
}

// keycloakSignIn opens a page and signs in on Keycloak's page where that comes up;
// asked is whether it did.
func (w *world) keycloakSignIn(t testing.TB, c *agent, person, target string) (a *answer, asked bool) {
	t.Helper()
	a = c.navigate(t, target)
	for range 20 {
		if action := formAction(a.Body, "kc-form-login"); action != "" {
			if asked {
				t.Fatalf("Keycloak asks %s twice: %.800s", person, a.Body)
			}
			asked = true
			a = c.submit(t, action, url.Values{"username": {person}, "password": {person + "-has-a-long-password"}})
			continue
		}
		next := c.next(t, person, a)
		if next == nil {
			return a, asked
		}
		a = next
	}
	t.Fatalf("sign-in as %s does not end; it is at %s", person, a.Request.URL)
	return nil, asked
}

// formAction is where the form with this id is sent, "" if there is none.
func formAction(page, id string) string {
	_, form, ok := strings.Cut(page, `id="`+id+`"`)
	if !ok {
		return ""
	}
	_, form, _ = strings.Cut(form, `action="`)
	action, _, _ := strings.Cut(form, `"`)
	return strings.ReplaceAll(action, "&amp;", "&")
}

// submit sends a form as the page that shows it does.
func (c *agent) submit(t testing.TB, action string, form url.Values) *answer {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, action, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	u := r.URL
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "text/html")
	r.Header.Set("Origin", fmt.Sprintf("%s://%s", u.Scheme, u.Host))
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	return c.send(t, r)
}
