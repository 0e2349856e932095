package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestExamples holds every example to validate without a warning, with what
// they leave to the environment supplied.
func TestExamples(t *testing.T) {
	t.Setenv("IDP_CLIENT_SECRET", "hidden")
	paths, err := filepath.Glob("../../examples/*/config.yaml")
	if err != nil || len(paths) < 2 {
		t.Fatalf("found %v, %v", paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			var out, errs strings.Builder
			if code := run(t.Context(), []string{"validate", "--config", path}, &out, &errs); code != 0 || errs.Len() > 0 {
				t.Errorf("exit code %d\n%s", code, &errs)
			}
		})
	}
}

// TestExampleOfTwoServices asks who gets in where.
func TestExampleOfTwoServices(t *testing.T) {
	t.Setenv("IDP_CLIENT_SECRET", "hidden")
	tests := []struct {
		name, route, who, want string
	}{
		{"a person of the company uses App", "App", "--email=ana@example.com", "allow"},
		{"somebody else does not", "App", "--email=eve@elsewhere.test", "deny"},
		{"a person does not call API", "API", "--email=ana@example.com", "deny"},
		{"App calls API", "API", "--service-account=api-access", "allow"},
		{"App does not call API2", "API2", "--service-account=api-access", "deny"},
		{"API calls API2", "API2", "--service-account=api2-access", "allow"},
		{"nobody is asked to sign in", "App", "--method=GET", "sign-in"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs strings.Builder
			args := []string{"policy", "explain", "--config", "../../examples/two-services/config.yaml", "--route", tt.route, tt.who}
			if code := run(t.Context(), args, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), tt.want+"\n") {
				t.Errorf("exit code %d, want %s\n%s%s", code, tt.want, &out, &errs)
			}
		})
	}
}

// TestExampleOfPolicies runs the tests that stand beside the example. Every rule of
// its policies is decisive in one of them.
func TestExampleOfPolicies(t *testing.T) {
	t.Setenv("IDP_CLIENT_SECRET", "hidden")
	var out, errs strings.Builder
	args := []string{"policy", "test", "--config", "../../examples/policies/config.yaml", "../../examples/policies/tests.yaml"}
	if code := run(t.Context(), args, &out, &errs); code != 0 || errs.Len() > 0 || strings.Contains(out.String(), "never decisive") {
		t.Errorf("exit code %d\n%s%s", code, &out, &errs)
	}
}
