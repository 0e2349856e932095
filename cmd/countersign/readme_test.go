package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme keeps the README true: its configuration is valid as it stands,
// its commands exist with the flags that it gives them, and so do its links.
func TestReadme(t *testing.T) {
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := string(raw)

	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	config := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(readme)
	if config == nil {
		t.Fatal("no configuration in the README")
	}
	for name, content := range map[string]string{path: config[1], filepath.Join(dir, "client-secret.txt"): "hidden\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"validate", "--config", path}, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Errorf("validate: exit code %d\n%s", code, &stderr)
	}

	documentedCommands(t, readme, 6)

	explain := []string{"policy", "explain", "--config", path, "--route", "https://app.example.com", "--email", "ana@example.com"}
	stdout.Reset()
	if code := run(t.Context(), explain, &stdout, &stderr); code != 0 || !strings.HasPrefix(stdout.String(), "allow") {
		t.Errorf("explain: exit code %d\n%s%s", code, &stdout, &stderr)
	}

	for _, target := range regexp.MustCompile(`(?:\]\(|src(?:set)?=")([^)"#]+)`).FindAllStringSubmatch(readme, -1) {
		if _, err := os.Stat(filepath.Join("../..", target[1])); err != nil {
			t.Errorf("a link leads nowhere: %v", err)
		}
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range regexp.MustCompile("(?m)^make ([a-z]+)|`make ([a-z]+)`").FindAllStringSubmatch(readme, -1) {
		if name := target[1] + target[2]; !strings.Contains(string(makefile), "\n"+name+":") {
			t.Errorf("make %s does not exist", name)
		}
	}
}
