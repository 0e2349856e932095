package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
	"github.com/countersign/countersign/policy/policytest"
)

func newPolicyTest() *cobra.Command {
	var path, output string
	var coverage bool
	c := &cobra.Command{
		Use:   "test [--config CONFIG] FILE...",
		Short: "Run tests of policies, and say which rules no test depends on",
		Long: "Run the tests in YAML files, with the evaluator that decides in earnest. A test\n" +
			"names a route of the configuration, or has a policy inline and needs none:\n\n" +
			"  tests:\n" +
			"    - name: staff may read\n" +
			"      route: App\n" +
			"      as: {user: u1, email: ana@example.com, groups: [staff]}\n" +
			"      request: {method: GET, path: /x, ip: 203.0.113.9, time: 2026-01-02T15:04:05Z}\n" +
			"      want: allow    # or deny, sign-in, client-certificate, device\n\n" +
			"Exit code 1 means that a test failed, 2 that a file is wrong.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains([]string{"text", "json", "junit"}, output) {
				return usageError{fmt.Errorf("--output %q is neither text, json nor junit", output)}
			}
			world, err := loadWorld(c.Context(), path)
			if err != nil {
				return err
			}
			files, err := parseTests(c.ErrOrStderr(), args)
			if err != nil {
				return err
			}
			cases, err := bindTests(c.ErrOrStderr(), files, world)
			if err != nil {
				return err
			}
			covering := world
			if !coverage {
				covering = nil
			}
			report, err := policytest.Run(c.Context(), cases, covering)
			if err != nil {
				return fmt.Errorf("run the tests: %w", err)
			}
			if err := printTests(c.OutOrStdout(), output, report); err != nil {
				return err
			}
			if report.Failed > 0 {
				return fmt.Errorf("%d of %s failed", report.Failed, count(report.Passed+report.Failed, "test"))
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.StringVar(&path, "config", "", "the YAML file of settings and routes; tests of inline policies need none")
	flags.StringVar(&output, "output", "text", "text, json or junit")
	flags.BoolVar(&coverage, "coverage", true, "report the rules that decided no test")
	return c
}

func printTests(w io.Writer, output string, report *policytest.Report) error {
	switch output {
	case "json":
		return printJSON(w, report)
	case "junit":
		return report.WriteJUnit(w)
	default:
		return report.WriteText(w)
	}
}

// parseTests reads files of tests. Their problems have been printed if it returns
// errReported.
func parseTests(stderr io.Writer, names []string) ([]*policytest.File, error) {
	var files []*policytest.File
	bad := false
	for _, name := range names {
		content, err := readTests(name)
		if err != nil {
			return nil, usageError{fmt.Errorf("read the tests: %w", err)}
		}
		file, problems := policytest.Parse(name, content)
		for _, p := range problems {
			_, _ = fmt.Fprintln(stderr, p)
		}
		bad = bad || file == nil
		files = append(files, file)
	}
	if bad {
		return nil, errReported
	}
	return files, nil
}

// readTests reads a file, and no more of it than shows that it is too large.
func readTests(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, policytest.MaxFile+1))
	return content, errors.Join(err, f.Close())
}

// bindTests finds what files test in a world, and reports problems as parseTests
// does.
func bindTests(stderr io.Writer, files []*policytest.File, world *policytest.World) ([]*policytest.Case, error) {
	var cases []*policytest.Case
	for _, file := range files {
		cases = append(cases, file.Bind(world)...)
	}
	problems, fatal := policytest.Problems(cases)
	for _, p := range problems {
		_, _ = fmt.Fprintln(stderr, p)
	}
	if fatal {
		return nil, errReported
	}
	return cases, nil
}

// loadWorld is what the configuration at path offers to tests; without a path,
// nothing.
func loadWorld(ctx context.Context, path string) (*policytest.World, error) {
	if path == "" {
		return &policytest.World{ReadFile: readTests}, nil
	}
	cfg, err := check(ctx, path)
	if err != nil {
		return nil, err
	}
	return newWorld(cfg, path)
}

// newWorld is what a configuration, which messages call name, offers to tests.
func newWorld(cfg *config.Config, name string) (*policytest.World, error) {
	table, err := newRouteTable(cfg)
	if err != nil {
		return nil, err
	}
	w := &policytest.World{Config: name, Policies: cfg.Policies, ReadFile: readTests}
	index := make(map[*config.Route]int, len(cfg.Routes))
	for i, r := range cfg.Routes {
		index[r] = i
		w.Routes = append(w.Routes, policytest.Route{
			Name: r.Name, From: r.From, File: r.Position.File, Line: r.Position.Line,
			Host: r.Host, Port: r.Port, Match: pathsOf(r), Policy: r.Policy,
		})
	}
	w.Find = func(host, path string) (int, string) {
		found := table.find(host, path)
		if found.route == nil {
			return -1, found.why
		}
		return index[found.route], ""
	}
	if cfg.DownstreamMTLS != nil {
		w.RejectConnection = cfg.DownstreamMTLS.Enforcement == "reject_connection"
		if w.ClientCA, err = policy.NewClientCA(cfg.DownstreamMTLS.ClientCAConfig); err != nil {
			return nil, fmt.Errorf("downstream_mtls: %w", err)
		}
	}
	return w, nil
}

// pathsOf says which paths a route takes, as its keys do; "" for all.
func pathsOf(r *config.Route) string {
	switch {
	case r.Path != "":
		return "path " + r.Path
	case r.Prefix != "":
		return "prefix " + r.Prefix
	case r.Regex != "":
		return "regex " + r.Regex
	}
	return ""
}
