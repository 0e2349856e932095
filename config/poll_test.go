package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestPoll shows that changes are found where the system cannot tell of them.
func TestPoll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("address: :1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	current, err := Load(path, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	got := ""
	w := &watcher{
		path: path, version: current.Version, settle: time.Millisecond, poll: time.Millisecond,
		newNotifier: func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") },
		onChange: func(cfg *Config, err error) {
			if err == nil && cfg.Server.Address == ":2" {
				got = cfg.Server.Address
				cancel()
			}
		},
	}
	if err := os.WriteFile(path, []byte("address: :2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.run(ctx)
	if got != ":2" {
		t.Fatalf("the change was not found: %v", ctx.Err())
	}
}
