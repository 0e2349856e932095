package policytest

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzParse shows that no file makes Parse panic, that every problem of it has a
// message, and that the tests of a file without problems run.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(txtar.Parse(content).Files[0].Data)
	}
	f.Add([]byte("tests: [{name: a, policy: &p [*p], want: deny}]"))
	f.Add([]byte("tests: [{? {a: b} : c, name: !!binary YQ==, policy: {}, want: deny, as: {user: u, claims: {? [1] : 2, n: 0x1p-2, t: 2026-01-02}}}]"))
	f.Fuzz(func(t *testing.T, content []byte) {
		file, problems := Parse("tests.yaml", content)
		for _, p := range problems {
			if p.Message == "" || p.Warning {
				t.Errorf("problem %+v", p)
			}
		}
		if (file == nil) != (len(problems) > 0) {
			t.Fatalf("file %v, problems %v", file, problems)
		}
		if file == nil {
			return
		}
		var runs []*Case
		for _, c := range file.Bind(&World{}) {
			if c.Runs() {
				runs = append(runs, c)
			}
			if !c.Runs() && len(c.Problems) == 0 {
				t.Errorf("%s does not run, and nothing says why", c.Name)
			}
		}
		report, err := Run(t.Context(), runs, &World{})
		if err != nil {
			t.Fatal(err)
		}
		if err := report.WriteText(io.Discard); err != nil {
			t.Fatal(err)
		}
		var junit strings.Builder
		if err := report.WriteJUnit(&junit); err != nil {
			t.Fatal(err)
		}
		checkXML(t, junit.String())
	})
}
