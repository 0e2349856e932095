package policytest

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/internal/golden"
	"github.com/countersign/countersign/policy"
)

// TestGolden runs tests.yaml of each case, in the world of world.yaml if there is
// one.
func TestGolden(t *testing.T) {
	golden.Only(t, "testdata", "errors", "reports")
	golden.Run(t, "testdata/errors", func(t *testing.T, c *golden.Case) map[string]string {
		_, problems := load(t, c)
		if len(problems) == 0 {
			t.Fatal("no problem was found")
		}
		return map[string]string{"want": printed(problems)}
	})
	golden.Run(t, "testdata/reports", func(t *testing.T, c *golden.Case) map[string]string {
		world := readWorld(t, c)
		cases, problems := bind(t, c, world)
		for _, p := range problems {
			if !p.Warning {
				t.Error(p)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		report, err := Run(t.Context(), cases, world)
		if err != nil {
			t.Fatal(err)
		}
		return outputs(t, report)
	})
}

func outputs(t *testing.T, report *Report) map[string]string {
	var text, junit strings.Builder
	if err := errors.Join(report.WriteText(&text), report.WriteJUnit(&junit)); err != nil {
		t.Fatal(err)
	}
	checkXML(t, junit.String())
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"want.txt": text.String(), "want.xml": junit.String(), "want.json": string(data)}
}

func checkXML(t *testing.T, text string) {
	for decoder := xml.NewDecoder(strings.NewReader(text)); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, text)
		}
	}
}

// readClient is a certificate in PEM.
func readClient(t *testing.T) string {
	archive, err := txtar.ParseFile("testdata/reports/no-authority.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range archive.Files {
		if file.Name == "client.pem" {
			return string(file.Data)
		}
	}
	t.Fatal("there is no client.pem")
	return ""
}

func load(t *testing.T, c *golden.Case) ([]*Case, []Problem) {
	return bind(t, c, readWorld(t, c))
}

func bind(t *testing.T, c *golden.Case, world *World) ([]*Case, []Problem) {
	file, problems := Parse("tests/tests.yaml", []byte(c.Input(t, "tests.yaml")))
	if file == nil {
		return nil, problems
	}
	cases := file.Bind(world)
	problems, fatal := Problems(cases)
	bad := false
	for _, c := range cases {
		errs := slices.ContainsFunc(c.Problems, func(p Problem) bool { return !p.Warning })
		if c.Runs() == errs {
			t.Errorf("%s: runs is %t, with %v", c.Name, c.Runs(), c.Problems)
		}
		bad = bad || errs
	}
	if fatal != bad {
		t.Errorf("fatal is %t, with %v", fatal, problems)
	}
	return cases, problems
}

func printed(problems []Problem) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

// writtenWorld is world.yaml: routes match by host and prefix.
type writtenWorld struct {
	Policies map[string]yaml.Node
	CA       string
	Reject   bool
	Routes   []struct {
		Name, From, Host, Port, Prefix string
		Policy                         yaml.Node
	}
}

func readWorld(t *testing.T, c *golden.Case) *World {
	w := &World{ReadFile: func(path string) ([]byte, error) {
		name := strings.TrimPrefix(path, "tests/")
		if !c.Has(name) {
			return nil, fmt.Errorf("open %s: %w", path, fs.ErrNotExist)
		}
		return []byte(c.Input(t, name)), nil
	}}
	if !c.Has("world.yaml") {
		return w
	}
	var written writtenWorld
	if err := yaml.Unmarshal([]byte(c.Input(t, "world.yaml")), &written); err != nil {
		t.Fatal(err)
	}
	w.Config, w.Policies = "world.yaml", map[string]*policy.Policy{}
	for name, node := range written.Policies {
		w.Policies[name] = parsePolicy(t, &node, nil)
	}
	for _, r := range written.Routes {
		route := Route{Name: r.Name, From: r.From, File: "world.yaml", Line: r.Policy.Line, Host: r.Host, Port: r.Port, Policy: parsePolicy(t, &r.Policy, w.Policies)}
		if r.Prefix != "" {
			route.Match = "prefix " + r.Prefix
		}
		w.Routes = append(w.Routes, route)
	}
	w.Find = func(host, path string) (int, string) {
		for i, r := range written.Routes {
			port := ""
			if r.Port != "" {
				port = ":" + r.Port
			}
			if strings.HasPrefix(path, r.Prefix) && (host == r.Host+port || strings.HasPrefix(r.Host, "*") && strings.HasSuffix(host, r.Host[1:]+port)) {
				return i, ""
			}
		}
		return -1, "the answer is 404"
	}
	w.RejectConnection = written.Reject
	if written.CA != "" {
		var err error
		if w.ClientCA, err = policy.NewClientCA(policy.ClientCAConfig{CA: []byte(c.Input(t, written.CA))}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func parsePolicy(t *testing.T, n *yaml.Node, named map[string]*policy.Policy) *policy.Policy {
	p, problems := policy.Parse(n, named)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}
