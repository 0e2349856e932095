//go:build linux

package envoy_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/envoy"
)

// slow answers when released; entered says that a request has arrived.
type slow struct{ entered, release chan struct{} }

func (s *slow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "begun ")
	_ = http.NewResponseController(w).Flush()
	s.entered <- struct{}{}
	select {
	case <-s.release:
		_, _ = io.WriteString(w, "ended")
	case <-r.Context().Done():
	}
}

func TestDrainLetsRequestsEnd(t *testing.T) {
	upstream := &slow{make(chan struct{}), make(chan struct{})}
	f := newFixture(t, upstream)
	f.cfg.DrainTimeout = patience
	r := run(t, f.cfg)
	r.ready(t)
	answer := make(chan string, 1)
	go func() {
		got, err := f.get(t.Context())
		answer <- fmt.Sprint(got, " ", err)
	}()
	<-upstream.entered

	r.cancel()
	eventually(t, "the health check fails", func() bool {
		err := r.Admin().Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "503")
	})
	select {
	case <-r.done:
		t.Fatal("Run returned while a request was under way")
	default:
	}
	close(upstream.release)
	if got, want := <-answer, "200 begun ended <nil>"; got != want {
		t.Errorf("the request got %q, want %q", got, want)
	}
	if took := r.stop(t); took > patience/2 {
		t.Errorf("Run took %v more after the last request", took)
	}
}

func TestDrainHasAnEnd(t *testing.T) {
	upstream := &slow{make(chan struct{}), make(chan struct{})}
	f := newFixture(t, upstream)
	f.cfg.DrainTimeout = time.Second
	r := run(t, f.cfg)
	r.ready(t)
	answer := make(chan error, 1)
	go func() {
		_, err := f.get(t.Context())
		answer <- err
	}()
	<-upstream.entered
	took := r.stop(t)
	if took < f.cfg.DrainTimeout/2 || took > f.cfg.DrainTimeout+5*time.Second {
		t.Errorf("Run took %v to end, want about %v", took, f.cfg.DrainTimeout)
	}
	if err := <-answer; err == nil {
		t.Error("a request that never ends got a whole answer")
	}
	if !f.log.has(t, "WARN", "drain cut short") {
		t.Errorf("no warning was logged:\n%s", f.log.buf.String())
	}
}

// stubborn is a program in Envoy's place that has a child and ignores every
// polite signal, as does the child.
const stubborn = `trap '' TERM
(trap '' TERM; read x <"$0.pipe"; :) &
echo $! > "$0.child"
echo '{"level":"info","logger":"main","message":"up"}' >&2
echo 'raw words' >&2
read x <"$0.pipe"`

func TestStubbornEnvoyIsKilled(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	f.cfg.Binary = script(t, filepath.Join(f.dir, "envoy"), `mkfifo "$0.pipe"; exec 3<>"$0.pipe"`+"\n"+stubborn)
	f.cfg.DrainTimeout = 200 * time.Millisecond
	r := run(t, f.cfg)
	var child int
	eventually(t, "the script has its child and has logged", func() bool {
		content, _ := os.ReadFile(f.cfg.Binary + ".child")
		n, _ := fmt.Sscan(string(content), &child)
		return n == 1 && f.log.has(t, "INFO", "up") && f.log.has(t, "WARN", "raw words")
	})
	pid := r.Status().PID
	r.stop(t)
	eventually(t, "the script and its child have ended", func() bool { return !alive(pid) && !alive(child) })
	if !f.log.has(t, "WARN", "did not end when asked") {
		t.Errorf("no warning was logged:\n%s", f.log.buf.String())
	}
}

// wrapper is a script that has started the real Envoy and waits for it.
const wrapper = `sh -c 'trap "echo bye >\"$0.bye\"; exit" TERM; echo up >&2; while :; do read x <"$0.pipe"; done' "$0" &
trap : TERM
wait; wait`

func TestWrappedEnvoyIsAsked(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	f.cfg.Binary = script(t, filepath.Join(f.dir, "envoy"), `mkfifo "$0.pipe"; exec 3<>"$0.pipe"`+"\n"+wrapper)
	r := run(t, f.cfg)
	eventually(t, "the script's child is up", func() bool { return f.log.has(t, "WARN", "up") })
	r.stop(t)
	if content, err := os.ReadFile(f.cfg.Binary + ".bye"); string(content) != "bye\n" {
		t.Errorf("the script's child left %q (%v), want its farewell", content, err)
	}
}

func TestOrphansOfAnEnvoyAreEnded(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	f.cfg.Binary = script(t, filepath.Join(f.dir, "envoy"),
		`[ -e "$0.pipe" ] || mkfifo "$0.pipe"; exec 3<>"$0.pipe"; (read x <&3) & echo $! >> "$0.child"; exit 7`)
	r := run(t, f.cfg)
	eventually(t, "the first attempt has failed", func() bool { return r.Status().Restarts >= 1 })
	content, err := os.ReadFile(f.cfg.Binary + ".child")
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(string(content), &child); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its child has ended", func() bool { return !alive(child) })
}

func TestSupervisorKeepsTrying(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	f.cfg.Binary = script(t, filepath.Join(f.dir, "envoy"), `exit 7`)
	r := run(t, f.cfg)
	eventually(t, "the third attempt has failed", func() bool { return r.Status().Restarts >= 3 })
	if took := r.stop(t); took > 5*time.Second {
		t.Errorf("Run took %v to end between two attempts", took)
	}
	if !f.log.has(t, "ERROR", "envoy ended on its own") {
		t.Errorf("no error was logged:\n%s", f.log.buf.String())
	}
}

func TestSupervisorRefuses(t *testing.T) {
	f := newFixture(t, http.HandlerFunc(ok))
	t.Run("a log level that shows credentials", func(t *testing.T) {
		cfg := f.cfg
		cfg.LogLevel = "debug"
		if _, err := envoy.New(cfg); err == nil {
			t.Error("New returned no error")
		}
	})
	t.Run("a binary that cannot be started", func(t *testing.T) {
		cfg := f.cfg
		cfg.Binary = filepath.Join(f.dir, "nowhere")
		r := run(t, cfg)
		<-r.done
		if r.err == nil {
			t.Error("Run returned no error")
		}
	})
	t.Run("an admin socket that is somebody's file", func(t *testing.T) {
		cfg := f.cfg
		if err := os.WriteFile(cfg.AdminSocket, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := run(t, cfg)
		<-r.done
		if r.err == nil || !strings.Contains(r.err.Error(), "not a socket") {
			t.Errorf("Run = %v, want a refusal", r.err)
		}
		if content, _ := os.ReadFile(cfg.AdminSocket); string(content) != "precious" {
			t.Errorf("the file now holds %q", content)
		}
	})
}
