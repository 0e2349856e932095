// Package envoytest gives tests the real Envoy. There is no fake one: what
// Envoy makes of a configuration is what those tests are about.
package envoytest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/countersign/countersign/envoy"
)

// Path returns the Envoy that envoy.Find finds, or else .tools/envoy at the
// root of the module that the test belongs to. Without one the test fails.
func Path(t testing.TB) string {
	t.Helper()
	binary, err := envoy.Find(t.Context(), envoy.FindOptions{})
	if err == nil {
		return binary.Path
	}
	if os.Getenv("ENVOY") == "" {
		if root, ok := moduleRoot(); ok {
			path := filepath.Join(root, ".tools", "envoy")
			if binary, err := envoy.Find(t.Context(), envoy.FindOptions{Path: path}); err == nil {
				return binary.Path
			}
		}
	}
	t.Fatalf("this test needs an Envoy: %v", err)
	return ""
}

func moduleRoot() (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}
