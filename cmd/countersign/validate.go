package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
)

func newValidate() *cobra.Command {
	var path, output string
	c := &cobra.Command{
		Use:   "validate --config FILE",
		Short: "Check a configuration: every problem, with its line and a remedy",
		Long: "Check a configuration as run would, without starting or keeping anything.\n" +
			"Problems go to stderr, one a line; with --output json they are the result.\n" +
			"Exit code 2 means that one is an error.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := check(c.Context(), path)
			var problems config.Problems
			switch {
			case err == nil:
				problems = cfg.Warnings
			case !errors.As(err, &problems):
				return err
			}
			if output == "json" {
				if err := printJSON(c.OutOrStdout(), report(cfg, err == nil, problems)); err != nil {
					return err
				}
			} else {
				printProblems(c.ErrOrStderr(), problems)
			}
			if err != nil {
				return errReported
			}
			if output == "text" {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s is good: %s, %s\n", path, count(len(cfg.Routes), "route"), count(len(problems), "warning"))
			}
			return err
		},
	}
	configFlag(c, &path)
	outputFlag(c, &output)
	return c
}

// finding is a problem as JSON.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Warning bool   `json:"warning"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// report is what validate found out. cfg is nil where nothing could be made of
// the file.
func report(cfg *config.Config, good bool, problems config.Problems) map[string]any {
	found := []finding{}
	for _, p := range problems {
		found = append(found, finding{p.Position.File, p.Position.Line, p.Position.Column, p.Warning, p.Message, p.Hint})
	}
	r := map[string]any{"good": good, "problems": found}
	if good {
		r["routes"] = len(cfg.Routes)
	}
	return r
}

// check loads a configuration and builds everything from it, with throw-away
// secrets in place of those that the operator left to us.
func check(ctx context.Context, path string) (*config.Config, error) {
	cfg, err := config.Load(path, config.LoadOptions{Env: os.Environ(), Generate: throwAway})
	if err != nil {
		return nil, err
	}
	// The folder that run would use is checked if it is configured; else it
	// depends on who runs it, and where.
	dir := cfg.Databroker.Dir
	if dir == "" {
		dir = "/run/countersign"
	}
	if err := checkSocketDir(dir); err != nil {
		return nil, err
	}
	store := databroker.NewMemory(databroker.MemoryConfig{})
	defer func() { _ = store.Close() }()
	log, client := slog.New(slog.DiscardHandler), loopbackClient()
	d := &deployment{
		dir:    dir,
		authz:  authz.New(authz.Config{Store: store, Log: log, HTTPClient: client}),
		authn:  authn.New(authn.Config{Store: store, Log: log}),
		client: client,
	}
	_, err = d.build(ctx, cfg)
	return cfg, err
}

// throwAway stands in for the kept secrets where nothing may be kept.
func throwAway(cfg *config.Config) (*config.Generated, error) {
	g, err := newSecrets()
	if err != nil {
		return nil, err
	}
	chain, certKey, err := issue(leaf(certificateHosts(cfg), time.Now()), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	g.Certificates = []config.Certificate{{Chain: chain, Key: certKey}}
	return g, nil
}
