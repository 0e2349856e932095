// Package golden runs tests whose cases are files: one txtar archive is one
// case. It begins with a comment, a sentence that says what the case shows,
// then come the input sections, then the sections that the test produces, whose
// names are "want" or begin with "want.":
//
//	A rule without an operator list is refused.
//	-- policy.yaml --
//	allow: 1
//	-- want --
//	policy.yaml:1:8: ...
//
// With -update the want sections are rewritten from what the test produced;
// read the diff. Nothing goes unread: a stray file in the folder, an input
// section that no test asked for and a want section that no test produced fail
// the run. Sections end in a newline, whether or not the test wrote one.
package golden

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// update is a variable because flags must be known before the tests start.
var update = flag.Bool("update", false, "rewrite the want sections of golden files")

// Case is one golden file.
type Case struct {
	// Name is the name of the file without folder and extension.
	Name string
	// Comment is the sentence at the top, trimmed.
	Comment string

	inputs map[string]string
	read   map[string]bool
}

// Has reports whether the case has an input section of that name.
func (c *Case) Has(name string) bool {
	_, ok := c.inputs[name]
	return ok
}

// Input returns an input section and fails the test where there is none.
func (c *Case) Input(t testing.TB, name string) string {
	t.Helper()
	content, ok := c.inputs[name]
	if !ok {
		t.Fatalf("%s has no section %q", c.Name, name)
	}
	c.read[name] = true
	return content
}

// Run runs f on each *.txtar file in dir, each as a subtest named for the file.
// F returns the want sections, by name, which are compared with the file's.
func Run(t *testing.T, dir string, f func(t *testing.T, c *Case) map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		t.Fatalf("%s holds no case", dir)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		name, ok := strings.CutSuffix(entry.Name(), ".txtar")
		if !ok || entry.IsDir() {
			t.Errorf("%s is read by no test: cases end in .txtar and have no subfolders", path)
			continue
		}
		t.Run(name, func(t *testing.T) {
			if problem := run(t, path, *update, f); problem != "" {
				t.Error(problem)
			}
		})
	}
}

// Only fails the test if dir holds anything but the named entries and the
// corpus of fuzz tests, so that no folder of cases is left unread.
func Only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != "fuzz" && !slices.Contains(names, entry.Name()) {
			t.Errorf("%s is read by no test", filepath.Join(dir, entry.Name()))
		}
	}
}

// run runs one case and returns what is wrong with it, "" if nothing is.
func run(t *testing.T, path string, update bool, f func(*testing.T, *Case) map[string]string) string {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := &Case{
		Name:    strings.TrimSuffix(filepath.Base(path), ".txtar"),
		Comment: strings.TrimSpace(string(archive.Comment)),
		inputs:  map[string]string{},
		read:    map[string]bool{},
	}
	if c.Comment == "" {
		return path + " does not say what it shows: begin it with a sentence"
	}
	want := map[string]string{}
	var inputs []txtar.File
	for _, file := range archive.Files {
		if isWant(file.Name) {
			want[file.Name] = string(file.Data)
			continue
		}
		c.inputs[file.Name] = string(file.Data)
		inputs = append(inputs, file)
	}

	got := map[string]string{}
	for name, content := range f(t, c) {
		if !isWant(name) {
			t.Fatalf(`the test produced a section %q: the names of such are "want" or begin with "want."`, name)
		}
		if content != "" && !strings.HasSuffix(content, "\n") {
			content += "\n"
		}
		got[name] = content
	}
	if t.Failed() {
		return ""
	}
	for name := range c.inputs {
		if !c.read[name] {
			return path + ": no test reads section " + name
		}
	}
	if cmp.Equal(want, got) {
		return ""
	}
	if !update {
		return path + ": -want +got (run with -update to accept):\n" + cmp.Diff(want, got)
	}
	archive.Files = inputs
	for _, name := range slices.Sorted(maps.Keys(got)) {
		archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(got[name])})
	}
	if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
	return ""
}

func isWant(name string) bool {
	return name == "want" || strings.HasPrefix(name, "want.")
}
