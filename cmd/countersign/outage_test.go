package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAuthzStopped(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	if got := s.status("app", ana); got != 200 {
		t.Fatalf("before: status %d\n%s", got, s.log)
	}
	if err := s.authz.end(); err != nil {
		t.Fatal(err)
	}
	s.unavailable("who has a session", ana)
	s.unavailable("nobody", "")
	listeners, err := listenUnix(s.state("authz.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s.authz.begin(listeners[0])
	s.until("the same cookie gets in again", func() bool { return s.status("app", ana) == 200 })
}

func TestAuthzRestartedLosesNoRequest(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	end := s.load(8, ana)
	progress := func() {
		before := s.hits.Load()
		s.until("requests get through", func() bool { return s.hits.Load() > before+100 })
	}
	socket := s.state("authz.sock")
	for range 5 {
		progress()
		// As when a process is restarted: for a moment nobody listens.
		if err := s.authz.end(); err != nil {
			t.Error(err)
		}
		listeners, err := listenUnix(socket)
		if err != nil {
			t.Fatal(err)
		}
		listener := listeners[0].(*net.UnixListener)
		s.authz.begin(listener)
		progress()

		// As when a new process takes over: it listens before the old one ends.
		listener.SetUnlinkOnClose(false)
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
		old := *s.authz
		if listeners, err = listenUnix(socket); err != nil {
			t.Fatal(err)
		}
		s.authz.begin(listeners[0])
		if err := old.end(); err != nil {
			t.Error(err)
		}
	}
	progress()
	answered, failures := end()
	if len(failures) > 0 {
		t.Errorf("%d of %d requests were lost, the first: %s", len(failures), answered, failures[0])
	}
	t.Logf("%d requests over 10 restarts", answered)
}

func TestDatabrokerOutage(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana, bob, carol := s.signIn("ana", "ana@example.com"), s.signIn("bob", "bob@example.com"), s.signIn("carol", "carol@example.com")
	for _, cookie := range []string{ana, carol} {
		if got := s.status("app", cookie); got != 200 {
			t.Fatalf("before: status %d\n%s", got, s.log)
		}
	}

	s.store.Break(errors.New("the disk is on fire"))
	broken := time.Now()
	r, err := s.get("app", ana)
	if err != nil || r.status != 200 || r.header.Get("Set-Cookie") != "" {
		t.Errorf("a cached session at the start of an outage: %v, status %d, %v", err, r.status, r.header)
	}
	s.unavailable("a session that is not cached", bob)
	if err := s.store.Store.DeleteSession(t.Context(), "carol"); err != nil { // by another replica
		t.Fatal(err)
	}
	s.until("the grace is over", func() bool { return s.status("app", ana) != 200 })
	// Contact was at most a heartbeat old, and a request takes its time.
	if took := time.Since(broken); took < 2*time.Second || took > 5*time.Second {
		t.Errorf("a grace of 3s took %s", took)
	}
	s.unavailable("a cached session after the grace", ana)
	s.unavailable("a session that is not cached, after the grace", bob)

	s.store.Heal()
	s.until("the same cookies get in again", func() bool { return s.status("app", ana) == 200 && s.status("app", bob) == 200 })
	if got := s.status("app", carol); got != 302 {
		t.Errorf("a session that was revoked in the outage: status %d, want 302", got)
	}
	if strings.Contains(s.log.String(), strings.TrimPrefix(ana, "_pomerium=")) {
		t.Error("the log holds a session token")
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	if got := s.status("app", ana); got != 200 {
		t.Fatalf("before: status %d\n%s", got, s.log)
	}
	before := s.kept()

	// A second one is refused in one sentence, and disturbs nothing.
	second := &deployment{ConfigPath: s.path, Envoy: externalEnvoy, Log: s.deploy.Log}
	err := second.serve(t.Context())
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second run: %v", err)
	}
	if got := s.status("app", ana); got != 200 {
		t.Errorf("after a second run was refused: status %d", got)
	}

	s.stop()
	if left, err := filepath.Glob(s.state("*.sock")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	s.start()
	if got := s.status("app", ana); got != 200 {
		t.Errorf("the same cookie after a restart: status %d", got)
	}
	if diff := cmp.Diff(before, s.kept()); diff != "" {
		t.Errorf("a restart made new ones (-before +after):\n%s", diff)
	}
}

// kept is what a restart must find again.
func (s *system) kept() map[string]string {
	kept := map[string]string{}
	for _, name := range []string{secretsFile, caFile, caKeyFile, certFile, certKeyFile} {
		content, err := os.ReadFile(s.state(name))
		if err != nil {
			s.t.Fatal(err)
		}
		kept[name] = string(content)
	}
	return kept
}

func TestEndUnderLoad(t *testing.T) {
	s := newSystem(t)
	s.start()
	ana := s.signIn("ana", "ana@example.com")
	s.pause.Store(int64(50 * time.Millisecond))
	end := s.load(16, ana)
	s.until("requests are under way", func() bool { return s.hits.Load() > 100 })
	began := time.Now()
	s.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ending took %s", took)
	} else {
		t.Logf("ending took %s", took)
	}
	answered, failures := end()
	if hits := s.hits.Load(); hits != answered {
		t.Errorf("%d requests reached the upstream and %d were answered; failures: %s", hits, answered, strings.Join(failures, "\n"))
	}
}

func TestAddressInUse(t *testing.T) {
	s := newSystem(t)
	taken, err := net.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	d := &deployment{ConfigPath: s.path, Envoy: s.envoy(), Log: s.logger()}
	err = d.serve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another process listens on "+s.addr) || strings.Contains(err.Error(), "\n") {
		t.Errorf("serve: %v\n%s", err, s.log)
	}
}
