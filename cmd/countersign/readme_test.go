package main

import (
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

	config := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(readme)
	if config == nil {
		t.Fatal("no configuration in the README")
	}
	files := map[string]string{"config.yaml": config[1], "client-secret.txt": "hidden\n"}
	runs(t, files, "validate", "--config", "config.yaml")
	explained := runs(t, files, "policy", "explain", "--config", "config.yaml", "--route", "https://app.example.com", "--email", "ana@example.com")
	if !strings.HasPrefix(explained, "allow") {
		t.Errorf("explain: %s", explained)
	}
	documentedCommands(t, readme, 6)

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
