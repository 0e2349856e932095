package golden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func upper(t *testing.T, c *Case) map[string]string {
	return map[string]string{"want": strings.ToUpper(c.Input(t, "input"))}
}

func TestRun(t *testing.T) {
	Only(t, "testdata", "upper")
	Run(t, "testdata/upper", upper)
}

func TestRunReports(t *testing.T) {
	tests := []struct {
		name, file, problem string
	}{
		{"nothing where the case holds", "A sentence.\n-- input --\na\n-- want --\nA\n", ""},
		{"a difference", "A sentence.\n-- input --\na\n-- want --\nB\n", "-want +got"},
		{"a missing want section", "A sentence.\n-- input --\na\n", "-want +got"},
		{"a want section that nothing produces", "A sentence.\n-- input --\na\n-- want --\nA\n-- want.old --\nA\n", "want.old"},
		{"an input section that nothing reads", "A sentence.\n-- input --\na\n-- stale --\n-- want --\nA\n", "no test reads section stale"},
		{"a case without a sentence", "-- input --\na\n-- want --\nA\n", "begin it with a sentence"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, test.file)
			got := run(t, path, false, upper)
			if (got == "") != (test.problem == "") || !strings.Contains(got, test.problem) {
				t.Errorf("run reported %q, want %q", got, test.problem)
			}
			if after := read(t, path); after != test.file {
				t.Errorf("run without -update wrote %q", after)
			}
		})
	}
}

func TestUpdateRewritesOnlyWhatTheTestProduces(t *testing.T) {
	path := write(t, "A sentence.\n-- want --\nB\n-- want.old --\nC\n-- input --\na\n")
	if problem := run(t, path, true, upper); problem != "" {
		t.Fatal(problem)
	}
	want := "A sentence.\n-- input --\na\n-- want --\nA\n"
	if got := read(t, path); got != want {
		t.Errorf("file is %q, want %q", got, want)
	}
	if problem := run(t, path, false, upper); problem != "" {
		t.Errorf("the updated case does not hold: %s", problem)
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "case.txtar")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
