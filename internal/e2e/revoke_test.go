package e2e

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

// record is an entry of a list of the command line.
type record struct {
	ID, User, Email, Method string
	CreatedAt               time.Time  `json:"created_at"`
	ExpiresAt               *time.Time `json:"expires_at"`
}

func (w *world) list(t testing.TB, args ...string) (list []record) {
	t.Helper()
	r := w.cli(t, append(args, "--output", "json")...)
	if r.code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, r.code, r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("%v: %v: %s", args, err, r.stdout)
	}
	return list
}

// must runs a command that is to succeed.
func (w *world) must(t testing.TB, args ...string) {
	t.Helper()
	if r := w.cli(t, args...); r.code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, r.code, r.stderr)
	}
}

// TestRevoke signs people and machines out with the command line, while
// everything runs: within a second they are refused.
func TestRevoke(t *testing.T) {
	w := newWorld(t, options{Routes: `
  - from: {{url "app"}}
    to: {{to "app"}}
    allow_any_authenticated_user: true
`})
	app := w.url("app", "/")
	phone, laptop, ben := w.session(t, "ana", app), w.session(t, "ana", app), w.session(t, "ben", app)
	sessions := w.list(t, "session", "list", "--user", "ana")
	if len(sessions) != 2 || len(w.list(t, "session", "list")) != 3 {
		t.Fatalf("sessions %+v", sessions)
	}
	for _, s := range sessions {
		if age := time.Since(s.CreatedAt); s.ID == "" || s.User != "ana" || s.Email != "ana@companydomain.com" || age < -time.Second || age > time.Minute ||
			s.ExpiresAt == nil || time.Until(*s.ExpiresAt) < 13*time.Hour {
			t.Errorf("listed: %+v", s)
		}
	}
	refused := func(who string, status func() int) {
		t.Helper()
		eventually(t, time.Second, who+" is refused", func() bool { return status() == http.StatusUnauthorized })
	}
	expect := func(who string, c *agent, want int) {
		t.Helper()
		if got := c.status(t, app); got != want {
			t.Errorf("%s is answered %d, want %d", who, got, want)
		}
	}

	// Oldest first: that is the phone.
	expect("the phone", phone, http.StatusOK)
	w.must(t, "session", "revoke", sessions[0].ID)
	refused("the phone", func() int { return phone.status(t, app) })
	expect("the laptop", laptop, http.StatusOK)

	w.must(t, "session", "revoke", "--user", "ana")
	refused("the laptop", func() int { return laptop.status(t, app) })
	expect("ben", ben, http.StatusOK)
	if r := w.cli(t, "session", "revoke", sessions[0].ID); r.code != 1 {
		t.Errorf("revoking it again: exit code %d, %s", r.code, r.stderr)
	}
	// Whoever was signed out is so at the authenticate host too.
	w.signIn(t, phone, "ben", app).echo(t)
	if got := len(w.list(t, "session", "list", "--user", "ana")); got != 0 {
		t.Errorf("ana has %d sessions again, and nobody asked her", got)
	}

	token := w.serviceAccount(t, "robot")
	robot := func() int { return w.client().fetch(t, app, "Authorization", "Bearer Pomerium-"+token).StatusCode }
	if got := robot(); got != http.StatusOK {
		t.Fatalf("the robot is answered %d", got)
	}
	accounts := w.list(t, "service-account", "list")
	if len(accounts) != 1 || accounts[0].User != "robot" || accounts[0].ID == "" || accounts[0].CreatedAt.IsZero() || accounts[0].ExpiresAt != nil {
		t.Fatalf("accounts %+v", accounts)
	}
	w.must(t, "service-account", "revoke", accounts[0].ID)
	refused("the robot", robot)
	if r := w.cli(t, "service-account", "create", "--user", "ben"); r.code != 1 || r.stdout != "" {
		t.Errorf("an account in the name of a person: exit code %d, prints %q", r.code, r.stdout)
	}
}
