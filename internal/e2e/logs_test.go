package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// logs is what a world's processes wrote, also kept in a file.
type logs struct {
	mu      sync.Mutex
	content bytes.Buffer
	file    *os.File
	// changed is closed and replaced at each write.
	changed chan struct{}
}

func newLogs(path string) (*logs, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &logs{file: f, changed: make(chan struct{})}, nil
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.content.Write(p)
	close(l.changed)
	l.changed = make(chan struct{})
	return l.file.Write(p)
}

func (l *logs) close() { _ = l.file.Close() }

// text is everything written so far.
func (l *logs) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content.String()
}

// lines are the records whose message is this, oldest first.
func (l *logs) lines(message string) (found []map[string]any) {
	for line := range strings.Lines(l.text()) {
		var record map[string]any
		if strings.Contains(line, message) && json.Unmarshal([]byte(line), &record) == nil && record["msg"] == message {
			found = append(found, record)
		}
	}
	return found
}

func (l *logs) count(message string) int { return len(l.lines(message)) }

// decision waits for the line about the request with this id.
func (w *world) decision(t testing.TB, requestID string) (line map[string]any) {
	t.Helper()
	err := w.log.wait(5*time.Second, "decision about "+requestID, func() bool {
		for _, record := range w.log.lines("authorize check") {
			if record["request-id"] == requestID {
				line = record
			}
		}
		return line != nil
	}, w.process.exited)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// wait waits for a condition on what is written. exited ends it early.
func (l *logs) wait(atMost time.Duration, what string, condition func() bool, exited <-chan struct{}) error {
	timeout := time.After(atMost)
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if condition() {
			return nil
		}
		select {
		case <-changed:
		case <-exited:
			if condition() {
				return nil
			}
			return fmt.Errorf("countersign has ended while we waited for %q:\n%s", what, tail(l.text()))
		case <-timeout:
			return fmt.Errorf("waited %v for %q:\n%s", atMost, what, tail(l.text()))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// secrets are what must not be in a log.
type secrets struct {
	mu    sync.Mutex
	known map[string]bool
}

// secret registers something that no log may show. Of very short values, that
// would be found by chance, nothing is remembered.
func (w *world) secret(values ...string) {
	w.secrets.mu.Lock()
	defer w.secrets.mu.Unlock()
	if w.secrets.known == nil {
		w.secrets.known = map[string]bool{}
	}
	for _, v := range values {
		if len(v) >= 12 {
			w.secrets.known[v] = true
		}
	}
}

// leaks looks for each secret, and for two parts of the long ones, in
// everything that was logged.
func (w *world) leaks() (found []string) {
	if err := w.stateSecrets(); err != nil {
		found = append(found, err.Error())
	}
	text := w.log.text()
	w.secrets.mu.Lock()
	defer w.secrets.mu.Unlock()
	for s := range w.secrets.known {
		needles := []string{s}
		if len(s) >= 64 {
			needles = []string{s[len(s)/2 : len(s)/2+24], s[len(s)-24:]}
		}
		for _, needle := range needles {
			if i := strings.Index(text, needle); i >= 0 {
				line := text[strings.LastIndexByte(text[:i], '\n')+1:]
				line, _, _ = strings.Cut(line, "\n")
				found = append(found, fmt.Sprintf("the log shows the secret %q:\n%s", needle, line))
				break
			}
		}
	}
	return found
}

// stateSecrets registers the generated keys of the state folder.
func (w *world) stateSecrets() error {
	raw, err := os.ReadFile(filepath.Join(w.state, "secrets.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var encoded map[string]string
	var plain map[string][]byte
	if err := errors.Join(json.Unmarshal(raw, &encoded), json.Unmarshal(raw, &plain)); err != nil {
		return err
	}
	for name := range encoded {
		w.secret(encoded[name])
		if name == "signing_key" {
			w.secret(pemLines(plain[name])...)
		} else {
			w.secret(string(plain[name]), fmt.Sprintf("%x", plain[name]))
		}
	}
	for _, name := range []string{"ca-key.pem", "certificate-key.pem"} {
		if key, err := os.ReadFile(filepath.Join(w.state, name)); err == nil {
			w.secret(pemLines(key)...)
		}
	}
	return nil
}

// pemLines are the lines of a PEM file that say something.
func pemLines(raw []byte) (lines []string) {
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") {
			lines = append(lines, line)
		}
	}
	return lines
}
