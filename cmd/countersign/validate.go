package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/assertion"
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
			"Problems go to stderr, one a line. Exit code 2 means that one is an error.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := check(c.Context(), path)
			if err != nil {
				return err
			}
			printProblems(c.ErrOrStderr(), cfg.Warnings)
			if output == "json" {
				return printJSON(c.OutOrStdout(), map[string]any{
					"version": cfg.Version, "routes": len(cfg.Routes), "warnings": len(cfg.Warnings),
				})
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is good: %d routes, %d warnings\n", path, len(cfg.Routes), len(cfg.Warnings))
			return err
		},
	}
	configFlag(c, &path)
	outputFlag(c, &output)
	return c
}

// check loads a configuration and builds everything from it, with throw-away
// secrets in place of those that the operator left to us.
func check(ctx context.Context, path string) (*config.Config, error) {
	cfg, err := config.Load(path, config.LoadOptions{Env: os.Environ(), Generate: throwAway})
	if err != nil {
		return nil, err
	}
	store := databroker.NewMemory(databroker.MemoryConfig{})
	defer func() { _ = store.Close() }()
	log := slog.New(slog.DiscardHandler)
	d := &deployment{
		dir:   filepath.Join(string(filepath.Separator), "countersign"),
		authz: authz.New(authz.Config{Store: store, Log: log}),
		authn: authn.New(authn.Config{Store: store, Log: log}),
	}
	_, err = d.build(ctx, cfg)
	return cfg, err
}

// throwAway stands in for the kept secrets where nothing may be kept.
func throwAway(cfg *config.Config) (*config.Generated, error) {
	key, err := assertion.GenerateSigningKey()
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	g := &config.Generated{Shared: make([]byte, 32), Cookie: make([]byte, 32), SigningKey: key}
	_, _ = rand.Read(g.Shared) // never fails: crypto/rand ends the program instead
	_, _ = rand.Read(g.Cookie)
	chain, certKey, err := issue(leaf(certificateHosts(cfg), time.Now()), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	g.Certificates = []config.Certificate{{Chain: chain, Key: certKey}}
	return g, nil
}
