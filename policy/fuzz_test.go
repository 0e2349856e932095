package policy

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
)

// FuzzParse shows that no policy makes Parse panic, and that whatever Parse
// accepts compiles and evaluates, a stranger who is asked to sign in included.
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
		f.Add(string(txtar.Parse(content).Files[0].Data))
	}
	f.Add("allow: {or: [email: \"\\ud800 \\x00 \\ufeff\"]}")
	f.Add("- allow:\n    or: [&x {claim/&: !!str 1}, *x]")
	f.Fuzz(func(t *testing.T, text string) {
		var n yaml.Node
		if yaml.Unmarshal([]byte(text), &n) != nil {
			return
		}
		p, problems := Parse(&n)
		for _, problem := range problems {
			if problem.Message == "" {
				t.Errorf("empty problem of %q", text)
			}
			if !problem.Warning {
				return
			}
		}
		e, err := Compile(context.Background(), p)
		if err != nil {
			t.Fatalf("%v\n%s", err, Rego(p))
		}
		x, err := e.Explain(context.Background(), &Input{})
		if err != nil {
			t.Fatalf("%v\n%s", err, Rego(p))
		}
		for _, r := range x.Decision.Reasons {
			if r.Code == unauthenticated && x.Decision.Effect != SignIn {
				t.Errorf("%s with reasons %v", x.Decision.Effect, x.Decision.Codes())
			}
		}
	})
}
