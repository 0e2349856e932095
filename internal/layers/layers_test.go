package layers

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// TestThisTree is the reason for the package.
func TestThisTree(t *testing.T) {
	const root = "../.."
	if _, err := os.Stat(root + "/go.mod"); err != nil {
		t.Fatal(err)
	}
	problems, err := Check(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// imports is a Go file that imports folders of ours.
func imports(pkg string, folders ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "package %s\n", pkg)
	for _, f := range folders {
		fmt.Fprintf(&b, "import %q\n", module+"/"+f)
	}
	return b.String()
}

func fields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\tF%d int\n", i)
	}
	return b.String()
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		tree map[string]string
		want []string
	}{
		{
			"the arrows of the table are allowed",
			map[string]string{
				"authz/a.go":           imports("authz", "config", "policy", "databroker", "assertion", "internal/signin"),
				"config/c.go":          imports("config", "policy") + "import \"net/http\"\n",
				"cmd/countersign/m.go": imports("main", "authz", "authn", "xds", "envoy", "config", "databroker"),
			},
			nil,
		},
		{
			"siblings do not know each other",
			map[string]string{
				"authn/a.go": imports("authn", "authz"),
				"xds/x.go":   imports("xds", "config", "envoy"),
			},
			[]string{
				"authn/a.go:2:8: authn may not import authz",
				"xds/x.go:3:8: xds may not import envoy",
			},
		},
		{
			"arrows do not turn round",
			map[string]string{"policy/p.go": imports("policy", "config")},
			[]string{"policy/p.go:2:8: policy may not import config"},
		},
		{
			"a build tag hides nothing",
			map[string]string{"envoy/e.go": "//go:build never\n\n" + imports("envoy", "config")},
			[]string{"envoy/e.go:4:8: envoy may not import config"},
		},
		{
			"a name or a blank hides nothing",
			map[string]string{"xds/x.go": "package xds\nimport (\n\t_ \"" + module + "/authz\"\n\tc \"" + module + "/cmd/countersign\"\n)\n"},
			[]string{
				"xds/x.go:3:2: xds may not import authz",
				"xds/x.go:4:2: xds may not import cmd/countersign",
			},
		},
		{
			"another module with our name as its beginning is not ours",
			map[string]string{"xds/x.go": "package xds\nimport _ \"" + module + "-extra/thing\"\n"},
			nil,
		},
		{
			"nobody imports the root or what has no place",
			map[string]string{"xds/x.go": "package xds\nimport _ \"" + module + "\"\nimport _ \"" + module + "/util\"\n"},
			[]string{
				"xds/x.go:2:8: xds may not import .",
				"xds/x.go:3:8: xds may not import util",
			},
		},
		{
			"tests may use their package, helpers and golden files",
			map[string]string{
				"xds/x_test.go":                  imports("xds_test", "xds", "config", "policy", "internal/golden", "envoy/envoytest"),
				"databroker/storetest/s.go":      imports("storetest", "databroker", "internal/golden"),
				"authn/authntest/idp.go":         imports("authntest", "authn", "databroker/databrokertest"),
				"authn/authntest/idp_test.go":    imports("authntest_test", "authn/authntest"),
				"internal/e2e/e2e_test.go":       imports("e2e", "cmd/countersign", "authn/authntest"),
				"cmd/countersign/script_test.go": imports("main", "authn/authntest"),
			},
			nil,
		},
		{
			"tests may not reach across",
			map[string]string{
				"xds/x_test.go":             imports("xds_test", "authz"),
				"databroker/storetest/s.go": imports("storetest", "authn"),
			},
			[]string{
				"databroker/storetest/s.go:2:8: databroker/storetest may not import authn",
				"xds/x_test.go:2:8: a test of xds may not import authz",
			},
		},
		{
			"helpers and golden files stay out of what ships",
			map[string]string{"authz/a.go": imports("authz", "databroker/databrokertest", "internal/golden")},
			[]string{
				"authz/a.go:2:8: authz may not import databroker/databrokertest",
				"authz/a.go:3:8: authz may not import internal/golden",
			},
		},
		{
			"a new folder must earn its place",
			map[string]string{
				"util/u.go":            "package util",
				"util/v.go":            "package util",
				"root.go":              "package countersign",
				"authz/cache/c.go":     "package cache",
				"latest/l.go":          "package latest",
				"authz/testdata/x.go":  "not Go",
				".tools/thing/main.go": "not Go",
			},
			[]string{
				".: folder is not in the table of internal/layers: a new folder must earn its place",
				"authz/cache: folder is not in the table of internal/layers: a new folder must earn its place",
				"latest: folder is not in the table of internal/layers: a new folder must earn its place",
				"util: folder is not in the table of internal/layers: a new folder must earn its place",
			},
		},
		{
			"a package has few others",
			map[string]string{
				"authz/a.go":           imports("authz", "config", "policy", "databroker"),
				"authz/b.go":           imports("authz", "config", "assertion", "internal/signin", "internal/pages"),
				"authz/c.go":           imports("authz", "envoy"),
				"cmd/countersign/m.go": imports("main", "config", "policy", "databroker", "assertion", "internal/signin", "internal/pages", "xds"),
			},
			[]string{
				"authz/c.go:2:8: authz may not import envoy",
				"authz: imports 7 packages of ours, the budget is 6: assertion, config, databroker, envoy, internal/pages, internal/signin, policy",
			},
		},
		{
			"a struct has at most twenty fields",
			map[string]string{
				"xds/x.go":      "package xds\ntype Good struct {\n" + fields(20) + "}\ntype Bad struct {\n" + fields(19) + "A, B int\n}\n",
				"authn/a.go":    "package authn\nfunc f() {\n\ttype inner struct {\n\tX struct {\n" + fields(20) + "*int\n}\n}\n}\n",
				"authn/b.go":    "package authn\nfunc g() any {\n\treturn struct {\n" + fields(21) + "}{}\n}\n",
				"config/c.go":   "package config\ntype Route struct {\n" + fields(30) + "}\ntype Cookie struct {\n" + fields(30) + "}\n",
				"xds/x_test.go": "package xds\ntype table struct {\n" + fields(30) + "}\n",
			},
			[]string{
				"authn/a.go:4:4: a struct has 21 fields, the budget is 20",
				"authn/b.go:3:9: a struct has 21 fields, the budget is 20",
				"config/c.go:34:13: Cookie has 30 fields, the budget is 20",
				"xds/x.go:24:10: Bad has 21 fields, the budget is 20",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, content := range tt.tree {
				fsys[name] = &fstest.MapFile{Data: []byte(content)}
			}
			got, err := Check(fsys)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckReportsWhatIsNotGo(t *testing.T) {
	if _, err := Check(fstest.MapFS{"xds/x.go": {Data: []byte("no Go at all")}}); err == nil {
		t.Error("Check returned no error")
	}
}
