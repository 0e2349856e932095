package envoy_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/envoy"
	"github.com/countersign/countersign/envoy/envoytest"
)

// script writes an executable shell script.
func script(t *testing.T, path, body string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func printsVersion(version string) string {
	return "echo; echo 'envoy  version: 0123abcd/" + version + "/Clean/RELEASE/BoringSSL'"
}

func TestFindOrder(t *testing.T) {
	dir := t.TempDir()
	flag := script(t, filepath.Join(dir, "flag", "my-envoy"), printsVersion("1.41.1"))
	env := script(t, filepath.Join(dir, "env", "my-envoy"), printsVersion("1.41.2"))
	onPath := script(t, filepath.Join(dir, "bin", "envoy"), printsVersion("1.41.3"))
	tools := script(t, filepath.Join(dir, ".tools", "envoy"), printsVersion("1.41.4"))
	t.Chdir(dir)
	system := os.Getenv("PATH")

	tests := []struct {
		name            string
		flag, env, path string
		want, version   string
	}{
		{"the flag comes first", flag, env, filepath.Dir(onPath), flag, "1.41.1"},
		{"a relative flag is taken from here", "flag/my-envoy", "", "", flag, "1.41.1"},
		{"then $ENVOY", "", env, filepath.Dir(onPath), env, "1.41.2"},
		{"then PATH", "", "", filepath.Dir(onPath), onPath, "1.41.3"},
		{"then .tools", "", "", "", tools, "1.41.4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("ENVOY", tt.env)
			t.Setenv("PATH", strings.Trim(tt.path+":"+withoutEnvoy(system), ":"))
			got, err := envoy.Find(t.Context(), envoy.FindOptions{Path: tt.flag})
			if err != nil {
				t.Fatal(err)
			}
			if got.Path != tt.want || got.Version.String() != tt.version {
				t.Errorf("Find = %s %s, want %s %s", got.Path, got.Version, tt.want, tt.version)
			}
		})
	}
}

// withoutEnvoy keeps the folders of a PATH that hold no envoy.
func withoutEnvoy(path string) string {
	var keep []string
	for _, dir := range filepath.SplitList(path) {
		if _, err := os.Stat(filepath.Join(dir, "envoy")); err != nil {
			keep = append(keep, dir)
		}
	}
	return strings.Join(keep, ":")
}

func TestFindRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("PATH", withoutEnvoy(os.Getenv("PATH")))
	old := script(t, filepath.Join(dir, "old"), printsVersion("1.38.2"))
	broken := script(t, filepath.Join(dir, "broken"), "exit 3")
	other := script(t, filepath.Join(dir, "other"), "echo 'nginx version: nginx/1.26.0'")
	endless := script(t, filepath.Join(dir, "endless"), "exec tr '\\0' x </dev/zero")
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name, flag, env string
		want            []string
	}{
		{"none anywhere", "", "", []string{"no envoy found", "PATH", ".tools/envoy", "make .tools/envoy", "--envoy"}},
		{"one that is too old", old, "", []string{"envoy 1.38.2 at " + old, "too old", "path confusion", "1.40.0", "1.38.4"}},
		{"an old one in $ENVOY", "", old, []string{"(from $ENVOY)", "too old"}},
		{"a path that does not exist", "nowhere", "", []string{"--envoy names nowhere", "does not exist"}},
		{"a path that does not exist in $ENVOY", "", "nowhere", []string{"$ENVOY names nowhere", "does not exist"}},
		{"a folder", dir, "", []string{"is not a file"}},
		{"a file that is not executable", plain, "", []string{"is not executable"}},
		{"a program that fails", broken, "", []string{broken, "exit status 3"}},
		{"another program", other, "", []string{other, "printed no version of Envoy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("ENVOY", tt.env)
			got, err := envoy.Find(t.Context(), envoy.FindOptions{Path: tt.flag})
			if err == nil {
				t.Fatalf("Find = %v, want an error", got)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q\nlacks %q", err, part)
				}
			}
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("error is more than one line: %q", err)
			}
		})
	}

	t.Run("a program that never ends", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := envoy.Find(ctx, envoy.FindOptions{Path: endless}); err == nil {
			t.Error("Find returned no error")
		}
	})
}

func TestFindTheRealOne(t *testing.T) {
	got, err := envoy.Find(t.Context(), envoy.FindOptions{Path: envoytest.Path(t)})
	if err != nil {
		t.Fatal(err)
	}
	if got.Version.Major < 1 || !filepath.IsAbs(got.Path) {
		t.Errorf("Find = %+v", got)
	}
}
