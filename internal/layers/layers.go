// Package layers checks the shape of this repository: which package may
// import which, how many of them, and how large a struct may grow. It parses
// every Go file itself, whatever its build tags. A test that ran `go list`
// could pass from the test cache while the tree holds a violation, because
// the cache does not know what that command reads.
//
// Two kinds of code may import more than their package. Files that end in
// _test.go may import the package they test, what that one reaches through
// others (to build its inputs), internal/golden and every helper folder. A
// helper folder is one whose name ends in "test", directly below a package
// (databroker/databrokertest); it may import what that package's tests may,
// and no code but tests, other helpers and commands may import it.
package layers

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const (
	module = "github.com/countersign/countersign"
	golden = "internal/golden"

	// Style says five. Authz needs one more: it decides (config, policy,
	// databroker, internal/signin), signs (assertion) and shows (internal/pages). So
	// does authn, which asks providers (idp) instead of policies.
	maxImports = 6
	maxFields  = 20
)

// arrows is design.md's table of who may import whom: for each folder with Go
// code, the folders that it may import.
func arrows() map[string][]string {
	return map[string][]string{
		"assertion":       nil,
		"authn":           {"config", "databroker", "assertion", "idp", "internal/signin", "internal/pages"},
		"authz":           {"config", "policy", "databroker", "assertion", "internal/signin", "internal/pages"},
		"config":          {"policy"},
		"databroker":      nil,
		"envoy":           nil,
		"idp":             {"config", "databroker"},
		"internal/demo":   {"assertion", "config"},
		"internal/golden": nil,
		"internal/layers": nil,
		"internal/pages":  nil,
		"internal/signin": nil,
		"policy":          nil,
		"refresh":         {"databroker", "idp"},
		"xds":             {"config"},
		"cmd/countersign": {anything},
		"internal/e2e":    {anything},
	}
}

// anything is for what sits on top: nothing imports it.
const anything = "*"

// large names the structs that mirror what an operator writes and so grow
// with it.
func large() []string { return []string{"config.Config", "config.Route"} }

// Check returns what is wrong with the tree at fsys, one line each, sorted.
func Check(fsys fs.FS) ([]string, error) {
	c := &checker{arrows: arrows(), own: map[string][]string{}, files: token.NewFileSet()}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && skipped(d.Name()):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		return c.file(name, src)
	})
	if err != nil {
		return nil, fmt.Errorf("check layers: %w", err)
	}
	c.countImports()
	slices.Sort(c.problems)
	return slices.Compact(c.problems), nil
}

// skipped are the folders that the go command skips.
func skipped(dir string) bool {
	return dir == "testdata" || strings.HasPrefix(dir, ".") || strings.HasPrefix(dir, "_")
}

type checker struct {
	arrows   map[string][]string
	files    *token.FileSet
	problems []string
	// own holds what each package outside of tests imports of ours.
	own map[string][]string
}

func (c *checker) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *checker) file(name string, src []byte) error {
	parsed, err := parser.ParseFile(c.files, name, src, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	folder := path.Dir(name)
	from := importer{folder: folder, base: folder, tests: strings.HasSuffix(name, "_test.go")}
	if parent, ok := c.helperOf(folder); ok {
		from.base, from.helper = parent, true
	}
	if _, known := c.arrows[from.base]; !known {
		c.problem("%s: folder is not in the table of internal/layers: a new folder must earn its place", folder)
		return nil
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		to, ours := strings.CutPrefix(imported+"/", module+"/")
		if !ours {
			continue
		}
		to = path.Clean(to)
		if !c.may(from, to) {
			c.problem("%s: %s may not import %s", c.files.Position(spec.Pos()), from, to)
		}
		if !from.tests && !from.helper && !slices.Contains(c.own[folder], to) {
			c.own[folder] = append(c.own[folder], to)
		}
	}
	if !from.tests {
		c.countFields(parsed)
	}
	return nil
}

// importer is one file's place in the tree.
type importer struct {
	folder string
	// base is the folder whose arrows count: a helper's is the one above.
	base          string
	tests, helper bool
}

func (i importer) String() string {
	if i.tests {
		return "a test of " + i.folder
	}
	return i.folder
}

func (c *checker) may(from importer, to string) bool {
	allowed := c.arrows[from.base]
	_, toHelper := c.helperOf(to)
	switch {
	case slices.Contains(allowed, anything):
		return true
	case to == from.folder:
		return from.tests
	case from.tests || from.helper:
		return to == from.base || to == golden || toHelper || c.reaches(from.base, to)
	}
	return slices.Contains(allowed, to)
}

// reaches follows the arrows, which hold no circle or Go would not build.
func (c *checker) reaches(from, to string) bool {
	return slices.ContainsFunc(c.arrows[from], func(next string) bool {
		return next == to || c.reaches(next, to)
	})
}

// helperOf returns the package that a helper folder belongs to.
func (c *checker) helperOf(folder string) (string, bool) {
	parent := path.Dir(folder)
	_, known := c.arrows[parent]
	return parent, known && strings.HasSuffix(folder, "test")
}

func (c *checker) countImports() {
	for folder, own := range c.own {
		if !slices.Contains(c.arrows[folder], anything) && len(own) > maxImports {
			slices.Sort(own)
			c.problem("%s: imports %d packages of ours, the budget is %d: %s", folder, len(own), maxImports, strings.Join(own, ", "))
		}
	}
}

func (c *checker) countFields(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		name, typ := "a struct", ast.Expr(nil)
		switch n := n.(type) {
		case *ast.TypeSpec:
			name, typ = n.Name.Name, n.Type
		case *ast.Field:
			typ = n.Type
		case *ast.CompositeLit:
			typ = n.Type
		}
		s, ok := typ.(*ast.StructType)
		if !ok || slices.Contains(large(), file.Name.Name+"."+name) {
			return true
		}
		if fields := s.Fields.NumFields(); fields > maxFields {
			c.problem("%s: %s has %d fields, the budget is %d", c.files.Position(s.Pos()), name, fields, maxFields)
		}
		return true
	})
}
