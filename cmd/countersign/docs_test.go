package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// TestPolicyDocument keeps docs/policy.md true: its policies compile and its
// linter has nothing to say of them, its configuration and its tests are valid, its
// commands exist with the flags that it gives them, and it names every criterion.
func TestPolicyDocument(t *testing.T) {
	raw, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	document := string(raw)
	var policies, configs, tests int
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(document, -1) {
		switch text := block[1]; {
		case strings.HasPrefix(text, "- "):
			policies++
			documentedPolicy(t, text)
		case strings.HasPrefix(text, "policies:"):
			configs++
			text += "idp_provider_url: https://idp.example.com\nidp_client_id: x\nidp_client_secret: y\n"
			runs(t, map[string]string{"config.yaml": text}, "validate", "--config", "config.yaml")
		case strings.HasPrefix(text, "tests:"):
			tests++
			const routes = "routes:\n  - name: App\n    from: https://app.example.com\n    to: http://127.0.0.1:1\n    policy:\n      - allow: {or: [domain: example.com]}\n"
			runs(t, map[string]string{"config.yaml": routes, "tests.yaml": text}, "policy", "test", "--config", "config.yaml", "tests.yaml")
		default:
			t.Errorf("what is this?\n%s", text)
		}
	}
	if policies < 4 || configs != 1 || tests != 1 {
		t.Errorf("found %d policies, %d configurations and %d tests", policies, configs, tests)
	}
	documentedCommands(t, document, 6)
	for _, name := range policy.Criteria() {
		if !strings.Contains(document, "`"+name) {
			t.Errorf("%s is not described", name)
		}
	}
}

func documentedPolicy(t *testing.T, text string) {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	p, problems := policy.Parse(&n, nil)
	problems = append(problems, policy.Lint(p)...)
	if len(problems) > 0 {
		t.Errorf("%v of\n%s", problems, text)
		return
	}
	if _, err := policy.Compile(t.Context(), p); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

// runs runs a command in a folder with these files and returns what it prints. It
// expects exit code 0 and nothing on stderr.
func runs(t *testing.T, files map[string]string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, arg := range args {
		if _, ok := files[arg]; ok {
			args[i] = filepath.Join(dir, arg)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), args, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Errorf("countersign %s: exit code %d\n%s%s", strings.Join(args, " "), code, &stdout, &stderr)
	}
	return stdout.String()
}

// documentedCommands holds the commands of a document to exist, with the flags that
// it gives them.
func documentedCommands(t *testing.T, document string, atLeast int) {
	t.Helper()
	commands := regexp.MustCompile(`(?m)^bin/countersign (.*?)(?:  +#.*)?$`).FindAllStringSubmatch(document, -1)
	if len(commands) < atLeast {
		t.Errorf("found %d commands only", len(commands))
	}
	for _, c := range commands {
		args := strings.Fields(strings.ReplaceAll(c[1], `"$ASSERTION"`, "TOKEN"))
		command, rest, err := newRoot().Find(args)
		if err == nil {
			err = command.ParseFlags(rest)
		}
		if err == nil {
			err = command.ValidateArgs(command.Flags().Args())
		}
		if err != nil || !command.Runnable() {
			t.Errorf("countersign %s: %v", c[1], err)
		}
	}
}

// TestProgramsDocument keeps docs/programs.md true, and with it that each script of
// examples/programmatic is named there.
func TestProgramsDocument(t *testing.T) {
	document := settingsDocument(t, "../../docs/programs.md", 2, 10)
	scripts, err := filepath.Glob("../../examples/programmatic/*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		name := filepath.Base(script)
		if name != "config.yaml" && name != "requests.sh" && !strings.Contains(document, "../examples/programmatic/"+name) {
			t.Errorf("%s is not named", name)
		}
	}
}

// TestSessionsDocument keeps docs/sessions.md true.
func TestSessionsDocument(t *testing.T) { settingsDocument(t, "../../docs/sessions.md", 3, 3) }

// settingsDocument holds the configurations of a document to be valid, its commands
// and links to exist, and what looks like a key to be one.
func settingsDocument(t *testing.T, path string, configs, commands int) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	document := string(raw)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(document, -1)
	if len(blocks) < configs {
		t.Errorf("found %d configurations", len(blocks))
	}
	for _, block := range blocks {
		text := block[1]
		if !strings.Contains(text, "routes:") {
			text += "routes:\n  - from: https://app.example.com\n    to: http://127.0.0.1:1\n    policy:\n      - allow: {or: [domain: example.com]}\n"
		}
		runs(t, map[string]string{"config.yaml": text, "client-secret.txt": "hidden\n"}, "validate", "--config", "config.yaml")
	}
	documentedCommands(t, document, commands)
	for _, target := range regexp.MustCompile(`\]\(([^)#]+)`).FindAllStringSubmatch(document, -1) {
		if _, err := os.Stat(filepath.Join("../../docs", target[1])); err != nil {
			t.Errorf("a link leads nowhere: %v", err)
		}
	}
	documentedKeys(t, document)
	return document
}

// documentedKeys holds each word in backticks that looks like a key to be a key, or
// one of the words of the protocols.
func documentedKeys(t *testing.T, document string) {
	t.Helper()
	protocol := strings.Fields(`acr_values auth_time authorization_code authorization_pending access_denied client_id
		error_description expired_token grant_type id_token invalid_grant invalid_request jwks_url offline_access
		refresh_token slow_down supported_algs unverified_email pomerium_jwt pomerium_refresh_token pomerium_redirect_uri`)
	known := map[string]bool{}
	for _, k := range config.Keys() {
		known[k.Name] = true
		for _, value := range regexp.MustCompile(`[a-z_]+`).FindAllString(k.Type, -1) {
			known[value] = true
		}
	}
	for _, word := range protocol {
		known[word] = true
	}
	for _, m := range regexp.MustCompile("`([a-z][a-z0-9]*_[a-z0-9_]+)(?::[^`]*)?`").FindAllStringSubmatch(document, -1) {
		if !known[m[1]] {
			t.Errorf("%s is no key", m[1])
		}
	}
}
